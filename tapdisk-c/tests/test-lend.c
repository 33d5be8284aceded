/* SPDX-License-Identifier: LGPL-2.1-only */
/* Reading in place: what is lent, what is not, and for how long. */
#include <sys/stat.h>

#include "common/lock.h"
#include "tests/lend-bed.h"

static const void *lend(struct engine *e, int fd, uint64_t offset, size_t len)
{
	struct io_map *lender;
	const void *p = engine_lend(e, fd, offset, len, &lender);

	if (p)
		engine_lend_end(lender);
	return p;
}

static void expect_lent(struct engine *e, int fd, uint64_t offset, size_t len)
{
	uint8_t *same = malloc(len);
	struct io_map *lender;
	const void *p = engine_lend(e, fd, offset, len, &lender);

	assert_non_null(p);
	assert_int_equal(pread(fd, same, len, (off_t)offset), len);
	assert_memory_equal(p, same, len);
	engine_lend_end(lender);
	free(same);
}

static void what_lies_in_memory_is_lent_and_nothing_else(void **state)
{
	struct engine_fixture *f = *state;
	int fd = memory_file(2 * CHUNK + PAGE);

	assert_null(lend(f->engine, fd, 0, PAGE));
	engine_file_add(f->engine, fd, 0);
	expect_lent(f->engine, fd, 0, 512);
	expect_lent(f->engine, fd, PAGE, CHUNK);
	expect_lent(f->engine, fd, 2 * CHUNK - 512, 512);
	expect_lent(f->engine, fd, 2 * CHUNK - 512, PAGE + 512);
	assert_null(lend(f->engine, fd, 2 * CHUNK, PAGE + 512));
	assert_null(lend(f->engine, fd, 2 * CHUNK + PAGE, 512));
	assert_null(lend(f->engine, fd, 1ull << 62, 512));
	assert_null(lend(f->engine, fd, UINT64_MAX, 512));
	assert_null(lend(f->engine, fd, 0, 0));
	engine_file_remove(f->engine, fd);
	assert_null(lend(f->engine, fd, 0, PAGE));
	assert_int_equal(mappings(), 0);

	engine_file_add(f->engine, f->fd, 0);
	assert_int_equal(pwrite(f->fd, &fd, sizeof(fd), CHUNK), sizeof(fd));
	assert_null(lend(f->engine, f->fd, 0, 512));
	engine_file_remove(f->engine, f->fd);
	close(fd);
}

static blkcnt_t blocks(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return st.st_blocks;
}

static bool lent_in_time(struct engine *e, int fd, uint64_t offset)
{
	for (int i = 0; i < 1000; i++)
		if (lend(e, fd, offset, PAGE))
			return true;
	return false;
}

static void a_hole_is_not_lent_and_not_filled_by_reading(void **state)
{
	struct engine_fixture *f = *state;
	int fd = memory_file(4 * CHUNK);
	static uint8_t data[CHUNK];
	blkcnt_t before;

	engine_file_add(f->engine, fd, 0);
	expect_lent(f->engine, fd, CHUNK, PAGE);
	assert_int_equal(run_one(f->engine, IO_PUNCH, fd, CHUNK + PAGE, NULL, PAGE), 0);
	before = blocks(fd);
	assert_false(lent_in_time(f->engine, fd, CHUNK + PAGE));
	assert_null(lend(f->engine, fd, CHUNK + PAGE / 2, PAGE));
	assert_null(lend(f->engine, fd, CHUNK, CHUNK));
	expect_lent(f->engine, fd, CHUNK, PAGE);
	expect_lent(f->engine, fd, CHUNK + 2 * PAGE, CHUNK - 2 * PAGE);
	expect_lent(f->engine, fd, 0, CHUNK);
	expect_lent(f->engine, fd, 2 * CHUNK, CHUNK);
	assert_true(blocks(fd) == before);
	/* What has been written is lent some reads later. */
	assert_int_equal(run_one(f->engine, IO_WRITE, fd, CHUNK, data, CHUNK), 0);
	assert_true(lent_in_time(f->engine, fd, CHUNK + PAGE));
	expect_lent(f->engine, fd, CHUNK, CHUNK);
	engine_file_remove(f->engine, fd);
	close(fd);
}

static void a_file_that_grows_is_lent_to_its_new_end(void **state)
{
	struct engine_fixture *f = *state;
	int fd = memory_file(CHUNK);
	static uint8_t data[CHUNK];

	engine_file_add(f->engine, fd, 0);
	assert_null(lend(f->engine, fd, 8 * CHUNK, PAGE));
	assert_int_equal(run_one(f->engine, IO_WRITE, fd, 8 * CHUNK, data, CHUNK), 0);
	assert_true(lent_in_time(f->engine, fd, 8 * CHUNK));
	assert_false(lent_in_time(f->engine, fd, 7 * CHUNK));
	engine_file_remove(f->engine, fd);
	close(fd);
}

/* Where the address space is 4 GiB, a mapping of it may only have its beginning. */
static void a_file_larger_than_the_address_space_is_not_lent_as_its_beginning(void **state)
{
	const uint64_t size = (8ull << 30) + (512 << 20), at[] = { 256 << 20, (8ull << 30) + (256 << 20) };
	struct engine_fixture *f = *state;
	int fd = memfd_create("lend-test", MFD_CLOEXEC), file;
	char path[32], data[2][PAGE];
	const void *p;

	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	for (int i = 0; i < 2; i++) {
		memset(data[i], 'a' + i, PAGE);
		assert_int_equal(pwrite(fd, data[i], PAGE, (off_t)at[i]), PAGE);
	}
	/* Read-only, so that the mapping is as long as the file. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	file = open(path, O_RDONLY | O_CLOEXEC);
	engine_file_add(f->engine, file, 0);
	for (int i = 0; i < 2; i++) {
		p = lend(f->engine, file, at[i], PAGE);
		assert_true(p ? !memcmp(p, data[i], PAGE) : sizeof(size_t) < 8);
	}
	engine_file_remove(f->engine, file);
	close(file);
	close(fd);
}

/* The reply to a slow client must not keep an image locked. */
static void what_is_lent_stays_and_holds_no_lock(void **state)
{
	struct engine_fixture *f = *state;
	int fd = memory_file(CHUNK), again;
	struct io_map *lender;
	struct error err;
	const uint8_t *p;
	char path[32];
	uint8_t byte;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDWR | O_CLOEXEC);
	assert_int_equal(lock_take(fd, "image", LOCK_WRITER, 0, &err), 0);
	engine_file_add(f->engine, fd, 0);
	p = engine_lend(f->engine, fd, PAGE, PAGE, &lender);
	assert_non_null(p);
	engine_file_remove(f->engine, fd);
	assert_int_equal(pread(fd, &byte, 1, PAGE + 9), 1);
	close(fd);
	assert_int_equal(lock_take(again, "image", LOCK_WRITER, 0, &err), 0);
	assert_int_equal(mappings(), 1);
	assert_int_equal(p[9], byte);
	engine_lend_end(lender);
	assert_int_equal(mappings(), 0);
	close(again);
}

/* What of the file counts as this process's memory. */
static long mapped_kib(void)
{
	FILE *smaps = fopen("/proc/self/smaps", "re");
	bool ours = false;
	long kib = -1;
	char line[512];

	while (kib < 0 && fgets(line, sizeof(line), smaps)) {
		ours |= strstr(line, "lend-test") != NULL;
		if (ours && sscanf(line, "Rss: %ld", &kib) != 1)
			kib = -1;
	}
	fclose(smaps);
	return kib;
}

static void what_was_looked_at_is_let_go_of_when_idle(void **state)
{
	struct engine_fixture *f = *state;
	int fd = memory_file(32 * CHUNK);
	volatile const uint8_t *p;
	unsigned int sum = 0;

	engine_file_add(f->engine, fd, 0);
	p = lend(f->engine, fd, 0, PAGE);
	for (size_t i = 0; i < 32 * CHUNK; i += PAGE)
		sum += p[i + 5];
	assert_true(sum > 0 && mapped_kib() == 32 * CHUNK / 1024);
	alarm(LIMIT_S);
	while (mapped_kib())
		assert_int_equal(engine_run(f->engine, 100), 0);
	alarm(0);
	engine_file_remove(f->engine, fd);
	close(fd);
}

/* Faults and records are of transfers. */
static void nothing_is_lent_behind_a_wrap(void **state)
{
	char rules[] = "/tmp/test-lend-XXXXXX", name[64];
	int fd = memory_file(CHUNK), none = mkstemp(rules);
	struct engine *e;

	(void)state;
	snprintf(name, sizeof(name), "fault:%s:uring", rules);
	e = open_or_fail(name, DEPTH);
	engine_file_add(e, fd, 0);
	assert_null(lend(e, fd, 0, PAGE));
	engine_file_remove(e, fd);
	engine_close(e);
	close(fd);
	close(none);
	unlink(rules);
}

#define T(name) ON(name, "uring", engine_setup, engine_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(what_lies_in_memory_is_lent_and_nothing_else),
		T(a_hole_is_not_lent_and_not_filled_by_reading),
		T(a_file_that_grows_is_lent_to_its_new_end),
		T(a_file_larger_than_the_address_space_is_not_lent_as_its_beginning),
		T(what_is_lent_stays_and_holds_no_lock),
		T(what_was_looked_at_is_let_go_of_when_idle),
		ON(nothing_is_lent_behind_a_wrap, "uring", NULL, NULL),
	};

	return RUN_ALL(tests);
}
