/* SPDX-License-Identifier: LGPL-2.1-only */
/* Replies whose data lies in a file's memory: they are sent from there, and it is given back. */
#include "tests/nbd-bed.h"
#include "tests/lend-bed.h"

#define FILE_BYTES (4u * MIB)

static void lend_from(struct fixture *f, int fd)
{
	engine_file_add(f->engine, fd, 0);
	vbd.lend_fd = fd;
	vbd.lend_engine = f->engine;
}

static void expect_file(int fd, uint64_t offset, const uint8_t *data, uint32_t len)
{
	uint8_t *same = malloc(len);

	assert_int_equal(pread(fd, same, len, (off_t)offset), len);
	assert_memory_equal(data, same, len);
	free(same);
}

/* Nothing is lent any more: with the file the mapping goes. */
static void expect_given_back(struct fixture *f, int fd)
{
	vbd.lend_fd = -1;
	engine_file_remove(f->engine, fd);
	assert_int_equal(mappings(), 0);
	close(fd);
}

static void a_simple_reply_of_one_piece_and_of_many(void **state)
{
	struct fixture *f = *state;
	int file = memory_file(FILE_BYTES), fd = serve_simple(f);
	uint8_t *data = malloc(MIB);

	lend_from(f, file);
	ask(f, fd, 0, NBD_CMD_READ, 1, 8192, 4096);
	assert_int_equal(simple(f, fd, 1), 0);
	get(f, fd, data, 4096);
	expect_file(file, 8192, data, 4096);
	ask(f, fd, 0, NBD_CMD_READ, 2, 512, MIB);
	assert_int_equal(simple(f, fd, 2), 0);
	get(f, fd, data, MIB);
	expect_file(file, 512, data, MIB);
	assert_true(vbd.lent > 4);
	expect_given_back(f, file);
	free(data);
	close(fd);
}

static void a_structured_reply(void **state)
{
	struct fixture *f = *state;
	int file = memory_file(FILE_BYTES), fd = serve_structured(f);

	lend_from(f, file);
	ask(f, fd, 0, NBD_CMD_READ, 1, MIB, 64 << 10);
	get_chunk(f, fd);
	assert_int_equal(chunk.type, NBD_CHUNK_OFFSET_DATA);
	expect_file(file, MIB, chunk.data + 8, 64 << 10);
	assert_int_equal(vbd.lent, 1);
	expect_given_back(f, file);
	close(fd);
}

/* The slot of a read that was lent its data serves one that was not. */
static void what_was_lent_is_not_sent_again(void **state)
{
	struct fixture *f = *state;
	int file = memory_file(FILE_BYTES), fd = serve_simple(f);
	uint8_t data[4096];

	lend_from(f, file);
	ask(f, fd, 0, NBD_CMD_READ, 1, 8192, 4096);
	assert_int_equal(simple(f, fd, 1), 0);
	get(f, fd, data, 4096);
	expect_given_back(f, file);
	ask(f, fd, 0, NBD_CMD_READ, 2, 8192, 4096);
	assert_int_equal(simple(f, fd, 2), 0);
	get(f, fd, data, 4096);
	assert_memory_equal(data, vbd.disk + 8192, 4096);
	close(fd);
}

static void a_client_that_leaves_in_the_middle_gives_back(void **state)
{
	struct fixture *f = *state;
	int file = memory_file(FILE_BYTES), fd = serve_simple(f);
	uint8_t some[1000];

	lend_from(f, file);
	vbd.hold = true;
	for (uint64_t i = 0; i < 60; i++)
		ask(f, fd, 0, NBD_CMD_READ, i, i * 4096, 256 << 10);
	for (int i = 0; i < 20; i++)
		turn(f);
	/* Some are sent in part, some are ready, some come back when nobody is there. */
	for (unsigned int i = 0; i < 4; i++)
		answer_first();
	get(f, fd, some, sizeof(some));
	assert_true(mappings() == 1 && vbd.nr_held);
	close(fd);
	turn(f);
	vbd.hold = false;
	answer_held(false);
	for (int i = 0; i < 20; i++)
		turn(f);
	expect_given_back(f, file);
}

/* The kernel has no bytes to send: that client goes, the next one is served. */
static void a_file_that_was_cut_short_ends_the_connection_alone(void **state)
{
	struct fixture *f = *state;
	int file = memory_file(FILE_BYTES), fd = serve_simple(f);
	uint8_t data[4096];

	lend_from(f, file);
	ask(f, fd, 0, NBD_CMD_READ, 1, 2 * MIB, 4096);
	assert_int_equal(simple(f, fd, 1), 0);
	get(f, fd, data, 4096);
	assert_int_equal(ftruncate(file, MIB), 0);
	ask(f, fd, 0, NBD_CMD_READ, 2, 2 * MIB, 4096);
	for (int i = 0; i < 20; i++)
		turn(f);
	while (recv(fd, data, sizeof(data), 0) > 0)
		;
	expect_closed(f, fd);
	fd = serve_simple(f);
	ask(f, fd, 0, NBD_CMD_READ, 3, 0, 4096);
	assert_int_equal(simple(f, fd, 3), 0);
	get(f, fd, data, 4096);
	expect_file(file, 0, data, 4096);
	expect_given_back(f, file);
	close(fd);
}

#define T(name) ON(name, "uring", setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(a_simple_reply_of_one_piece_and_of_many),
		T(a_structured_reply),
		T(what_was_lent_is_not_sent_again),
		T(a_client_that_leaves_in_the_middle_gives_back),
		T(a_file_that_was_cut_short_ends_the_connection_alone),
	};

	return RUN_ALL(tests);
}
