/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Files registered with blocks of 4096 bytes, on both engines: what reaches the
 * kernel is aligned, whatever the requests are, and no byte is lost.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "io/engine-internal.h"

#define BLOCK	4096u
#define SECTOR	512u
#define SECTORS	2048u			/* of the model: 1 MiB */

struct fixture {
	struct engine *engine;
	const struct engine_ops *real;
	struct engine_ops ops;
	int fd;
	struct io_stream stream;
	uint64_t rng;
};

static struct fixture *active;

/* Beside the program: /tmp may be a tmpfs, which has no O_DIRECT on 6.1. */
static int scratch_file(void)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 32);
	int fd;

	assert_true(n > 0);
	path[n] = 0;
	strcat(path, ".XXXXXX");
	fd = mkostemp(path, O_CLOEXEC | O_DIRECT);
	assert_true(fd >= 0);
	unlink(path);
	return fd;
}

/* As a disk with large blocks would: but the end of a file may cut a read. */
static bool submit(struct engine *engine, struct io_req *req)
{
	uint64_t at = req->offset + req->transferred;

	if (req->op == IO_READ || req->op == IO_WRITE) {
		if (at % BLOCK) {
			engine_finish(engine, req, -EINVAL);
			return true;
		}
		for (int i = 0; i < req->iovcnt; i++) {
			assert_int_equal((uintptr_t)req->iov[i].iov_base % BLOCK, 0);
			assert_int_equal(req->iov[i].iov_len % BLOCK, 0);
		}
	}
	return active->real->submit(engine, req);
}

static int setup(void **state)
{
	const char *name = *state;
	struct fixture *f = calloc(1, sizeof(*f));
	struct error err;

	if (engine_open(&f->engine, name, 64, &err))
		fail_msg("%s", err.text);
	f->real = f->engine->ops;
	f->ops = *f->real;
	f->ops.submit = submit;
	f->engine->ops = &f->ops;
	f->fd = scratch_file();
	f->rng = now_ns() | 1;
	engine_file_add(f->engine, f->fd, BLOCK);
	active = f;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	engine_file_remove(f->engine, f->fd);
	close(f->fd);
	f->engine->ops = f->real;
	engine_close(f->engine);
	free(f);
	return 0;
}

static unsigned int below(struct fixture *f, unsigned int n)
{
	f->rng ^= f->rng << 13;
	f->rng ^= f->rng >> 7;
	f->rng ^= f->rng << 17;
	return (unsigned int)(f->rng >> 20) % n;
}

struct one {
	struct io_req req;
	struct iovec iov[2];
	int calls, err;
};

static void one_done(struct io_req *req, int err)
{
	struct one *one = container_of(req, struct one, req);

	one->calls++;
	one->err = err;
}

static void queue(struct fixture *f, struct one *one, enum io_op op,
		  uint64_t offset, void *base, size_t len)
{
	*one = (struct one){
		.req = { .op = op, .fd = f->fd, .offset = offset, .len = len,
			 .stream = &f->stream, .iov = one->iov, .iovcnt = 1,
			 .done = one_done },
		.iov = { { base, len } },
	};
	engine_queue(f->engine, &one->req);
}

static void run_all_queued(struct fixture *f)
{
	while (engine_inflight(f->engine))
		assert_int_equal(engine_run(f->engine, -1), 0);
}

static int run_one(struct fixture *f, enum io_op op, uint64_t offset,
		   void *base, size_t len)
{
	struct one one;

	queue(f, &one, op, offset, base, len);
	run_all_queued(f);
	assert_int_equal(one.calls, 1);
	return one.err;
}

static off_t file_size(const struct fixture *f)
{
	return lseek(f->fd, 0, SEEK_END);
}

static void a_sector_is_written_and_its_neighbours_stay(void **state)
{
	struct fixture *f = *state;
	uint8_t page[BLOCK], back[BLOCK];

	memset(page, 'a', sizeof(page));
	assert_int_equal(run_one(f, IO_WRITE, 0, page, sizeof(page)), 0);
	memset(page + 3 * SECTOR, 'b', SECTOR);
	assert_int_equal(run_one(f, IO_WRITE, 3 * SECTOR, page + 3 * SECTOR, SECTOR), 0);
	assert_int_equal(run_one(f, IO_READ, 0, back, sizeof(back)), 0);
	assert_memory_equal(back, page, sizeof(page));
	assert_int_equal(run_one(f, IO_READ, 3 * SECTOR, back, 2 * SECTOR), 0);
	assert_memory_equal(back, page + 3 * SECTOR, 2 * SECTOR);
	assert_int_equal(file_size(f), BLOCK);
}

static void the_end_of_a_file_stays_where_requests_put_it(void **state)
{
	struct fixture *f = *state;
	uint8_t sector[SECTOR], back[2 * BLOCK];

	memset(sector, 'x', sizeof(sector));
	assert_int_equal(ftruncate(f->fd, 1000), 0);
	/* Inside the last, partial block. */
	assert_int_equal(run_one(f, IO_WRITE, 0, sector, SECTOR), 0);
	assert_int_equal(file_size(f), 1000);
	/* Over its end, and far behind it: a hole is between. */
	assert_int_equal(run_one(f, IO_WRITE, 2 * SECTOR, sector, SECTOR), 0);
	assert_int_equal(file_size(f), 3 * SECTOR);
	assert_int_equal(run_one(f, IO_WRITE, 10 * BLOCK + SECTOR, sector, SECTOR), 0);
	assert_int_equal(file_size(f), 10 * BLOCK + 2 * SECTOR);

	assert_int_equal(run_one(f, IO_READ, 10 * BLOCK, back, 2 * SECTOR), 0);
	assert_int_equal(back[SECTOR - 1], 0);
	assert_memory_equal(back + SECTOR, sector, SECTOR);
	assert_int_equal(run_one(f, IO_READ, 10 * BLOCK, back, 3 * SECTOR), -ENODATA);
	assert_int_equal(run_one(f, IO_READ, 9 * BLOCK, back, 2 * BLOCK), -ENODATA);
	assert_int_equal(run_one(f, IO_READ, 11 * BLOCK, back, SECTOR), -ENODATA);
	assert_int_equal(run_one(f, IO_READ, 20 * BLOCK, back, BLOCK), -ENODATA);
	assert_int_equal(run_one(f, IO_READ, 2 * SECTOR, back, SECTOR), 0);
	assert_memory_equal(back, sector, SECTOR);
}

/* An extension in steps: one that is cut back must not cut the others. */
static void writes_behind_the_end_don_t_cut_each_other(void **state)
{
	enum { N = 16 };
	struct fixture *f = *state;
	static uint8_t sectors[N][SECTOR], back[SECTOR];
	struct one one[N];

	for (unsigned int round = 0; round < 50; round++) {
		uint64_t end = 0;

		assert_int_equal(ftruncate(f->fd, 0), 0);
		for (unsigned int i = 0; i < N; i++) {
			uint64_t at = i * BLOCK + below(f, 7) * SECTOR;

			memset(sectors[i], (int)(1 + below(f, 255)), SECTOR);
			queue(f, &one[i], IO_WRITE, at, sectors[i], SECTOR);
			end = at + SECTOR;
		}
		run_all_queued(f);
		assert_int_equal(file_size(f), end);
		for (unsigned int i = 0; i < N; i++) {
			assert_int_equal(one[i].err, 0);
			assert_int_equal(run_one(f, IO_READ, one[i].req.offset,
						 back, SECTOR), 0);
			assert_memory_equal(back, sectors[i], SECTOR);
		}
	}
}

/*
 * Batches of requests that don't overlap but often share blocks, more than the
 * engine carries at once, of any alignment in memory, some in two pieces.
 */
static void concurrent_requests_lose_no_sector(void **state)
{
	enum { N = 200 };
	struct fixture *f = *state;
	static uint8_t model[SECTORS * SECTOR], memory[SECTORS * SECTOR + 64];
	struct one *one = calloc(N, sizeof(*one));

	print_message("seed %llu\n", (unsigned long long)f->rng);
	memset(model, 0, sizeof(model));
	assert_int_equal(ftruncate(f->fd, sizeof(model)), 0);
	for (unsigned int round = 0; round < 40; round++) {
		size_t skew = below(f, 3) * 4;
		unsigned int n = 0;

		for (unsigned int at = below(f, 9); n < N && at < SECTORS; n++) {
			unsigned int len = below(f, 20) ? 1 + below(f, 12) :
							  1 + below(f, 300);
			enum io_op op = below(f, 3) ? IO_WRITE : IO_READ;
			uint8_t *mem = memory + skew + at * SECTOR;
			size_t bytes, first;

			if (!below(f, 4))
				at = (at + 7) & ~7u;
			if (at + len > SECTORS)
				len = SECTORS - at;
			if (!len)
				break;
			mem = memory + skew + at * SECTOR;
			bytes = (size_t)len * SECTOR;
			first = bytes;
			if (op == IO_WRITE && !below(f, 10))
				op = IO_ZERO;
			if (op == IO_WRITE) {
				memset(mem, (int)(1 + below(f, 255)), bytes);
				memcpy(model + at * SECTOR, mem, bytes);
			} else if (op == IO_ZERO) {
				memset(model + at * SECTOR, 0, bytes);
			}
			if (below(f, 2))
				first = 1 + below(f, (unsigned int)bytes);
			one[n] = (struct one){
				.req = { .op = op, .fd = f->fd,
					 .offset = (uint64_t)at * SECTOR,
					 .len = bytes, .stream = &f->stream,
					 .iov = one[n].iov, .iovcnt = 2,
					 .done = one_done },
				.iov = { { mem, first },
					 { mem + first, bytes - first } },
			};
			at += len + (below(f, 3) ? 0 : below(f, 4));
		}
		/* In any order. */
		for (unsigned int i = n; i > 1; i--) {
			unsigned int k = below(f, i);
			struct one x = one[k];

			one[k] = one[i - 1];
			one[i - 1] = x;
		}
		for (unsigned int i = 0; i < n; i++) {
			one[i].req.iov = one[i].iov;
			engine_queue(f->engine, &one[i].req);
		}
		run_all_queued(f);
		for (unsigned int i = 0; i < n; i++) {
			assert_int_equal(one[i].calls, 1);
			assert_int_equal(one[i].err, 0);
			if (one[i].req.op == IO_READ)
				assert_memory_equal(memory + skew + one[i].req.offset,
						    model + one[i].req.offset,
						    one[i].req.len);
		}
	}
	assert_int_equal(run_one(f, IO_READ, 0, memory + 1, sizeof(model)), 0);
	assert_memory_equal(memory + 1, model, sizeof(model));
	assert_int_equal(file_size(f), sizeof(model));
	free(one);
}

/* An aligned write beside one that has read the block already. */
static void an_aligned_write_is_not_undone_by_a_sector(void **state)
{
	struct fixture *f = *state;
	uint8_t *page = aligned_alloc(BLOCK, 3 * BLOCK), sector[SECTOR];
	struct one one[2];

	for (unsigned int round = 0; round < 100; round++) {
		memset(page, (int)round, BLOCK);
		memset(sector, 0xee, SECTOR);
		queue(f, &one[round % 2], IO_WRITE, 0,
		      round % 2 ? (void *)page : sector,
		      round % 2 ? BLOCK : SECTOR);
		queue(f, &one[!(round % 2)], IO_WRITE, 0,
		      round % 2 ? sector : (void *)page,
		      round % 2 ? SECTOR : BLOCK);
		run_all_queued(f);
		assert_int_equal(run_one(f, IO_READ, 0, page + BLOCK, BLOCK), 0);
		assert_memory_equal(page + BLOCK + SECTOR, page + SECTOR, BLOCK - SECTOR);
	}
	free(page);
}

static void errors_are_passed_on(void **state)
{
	struct fixture *f = *state;
	char path[64];
	uint8_t sector[SECTOR] = "";
	int readonly;

	assert_int_equal(ftruncate(f->fd, 4 * BLOCK), 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", f->fd);
	readonly = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	assert_true(readonly >= 0);
	engine_file_add(f->engine, readonly, BLOCK);
	f->fd = dup3(readonly, f->fd, O_CLOEXEC);
	assert_int_equal(run_one(f, IO_READ, SECTOR, sector, SECTOR), 0);
	engine_file_remove(f->engine, readonly);
	engine_file_remove(f->engine, f->fd);
	engine_file_add(f->engine, f->fd, BLOCK);
	assert_int_equal(run_one(f, IO_WRITE, SECTOR, sector, SECTOR), -EBADF);
	assert_int_equal(run_one(f, IO_WRITE, 0, sector, 0), 0);
	assert_int_equal(run_one(f, IO_SYNC, 0, NULL, 0), 0);
	close(readonly);
}

#define T(name) { #name, name, setup, teardown, NULL }

static int run_all(const char *engine)
{
	struct CMUnitTest tests[] = {
		T(a_sector_is_written_and_its_neighbours_stay),
		T(the_end_of_a_file_stays_where_requests_put_it),
		T(writes_behind_the_end_don_t_cut_each_other),
		T(concurrent_requests_lose_no_sector),
		T(an_aligned_write_is_not_undone_by_a_sector),
		T(errors_are_passed_on),
	};
	char name[5 + 1];

	snprintf(name, sizeof(name), "%s", engine);
	for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++)
		tests[i].initial_state = name;
	return cmocka_run_group_tests_name(engine, tests, NULL, NULL);
}

int main(void)
{
	return run_all("uring") + run_all("posix");
}
