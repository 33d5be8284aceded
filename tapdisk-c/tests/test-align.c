/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Files registered with blocks of 4096 bytes, on both engines: what reaches the
 * kernel is aligned, whatever the requests are, and no byte is lost.
 */
#include <sys/stat.h>

#include "common/clock.h"
#include "io/engine-internal.h"
#include "tests/engine-bed.h"

#define BLOCK	4096u
#define SECTOR	512u
#define SECTORS	2048u			/* of the model: 1 MiB */

struct fixture {
	struct engine *engine;
	const struct engine_ops *real;
	struct engine_ops ops;
	int fd;
	struct io_stream stream, others;
	uint64_t rng;
	bool bad;			/* the second block can't be read */
	int hung;			/* the file whose writes do not end, 0: none */
	struct io_req *held[128];	/* those */
	unsigned int nr_held;
};

static struct fixture *active;

/* As a disk with large blocks would: but the end of a file may cut a read. */
static bool submit(struct engine *engine, struct io_req *req)
{
	uint64_t at = req->offset + req->transferred;

	if (req->op == IO_READ || req->op == IO_WRITE) {
		if (at % BLOCK) {
			engine_finish(engine, req, -EINVAL);
			return true;
		}
		if (req->op == IO_READ && active->bad && at < 2 * BLOCK &&
		    at + req->left > BLOCK) {
			engine_finish(engine, req, -ENODATA);
			return true;
		}
		if (req->op == IO_WRITE && req->fd == active->hung) {
			active->held[active->nr_held++] = req;
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
	struct fixture *f = calloc(1, sizeof(*f));

	f->engine = open_or_fail(*state, 64);
	f->real = f->engine->ops;
	f->ops = *f->real;
	f->ops.submit = submit;
	f->engine->ops = &f->ops;
	f->fd = scratch_file(O_DIRECT);
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

static void queue(struct fixture *f, struct one *one, enum io_op op,
		  uint64_t offset, void *base, size_t len)
{
	*one = (struct one){
		.req = { .op = op, .fd = f->fd, .offset = offset, .len = len,
			 .stream = f->hung && f->fd != f->hung ?
				   &f->others : &f->stream,
			 .iov = &one->iov, .iovcnt = 1, .done = one_done },
		.iov = { base, len },
	};
	engine_queue(f->engine, &one->req);
}

static int io(struct fixture *f, enum io_op op, uint64_t offset, void *base, size_t len)
{
	struct one one;

	queue(f, &one, op, offset, base, len);
	run_until_idle(f->engine);
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
	assert_int_equal(io(f, IO_WRITE, 0, page, sizeof(page)), 0);
	memset(page + 3 * SECTOR, 'b', SECTOR);
	assert_int_equal(io(f, IO_WRITE, 3 * SECTOR, page + 3 * SECTOR, SECTOR), 0);
	assert_int_equal(io(f, IO_READ, 0, back, sizeof(back)), 0);
	assert_memory_equal(back, page, sizeof(page));
	assert_int_equal(io(f, IO_READ, 3 * SECTOR, back, 2 * SECTOR), 0);
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
	assert_int_equal(io(f, IO_WRITE, 0, sector, SECTOR), 0);
	assert_int_equal(file_size(f), 1000);
	/* Over its end, and far behind it: a hole is between. */
	assert_int_equal(io(f, IO_WRITE, 2 * SECTOR, sector, SECTOR), 0);
	assert_int_equal(file_size(f), 3 * SECTOR);
	assert_int_equal(io(f, IO_WRITE, 10 * BLOCK + SECTOR, sector, SECTOR), 0);
	assert_int_equal(file_size(f), 10 * BLOCK + 2 * SECTOR);

	assert_int_equal(io(f, IO_READ, 10 * BLOCK, back, 2 * SECTOR), 0);
	assert_int_equal(back[SECTOR - 1], 0);
	assert_memory_equal(back + SECTOR, sector, SECTOR);
	assert_int_equal(io(f, IO_READ, 10 * BLOCK, back, 3 * SECTOR), -ENODATA);
	assert_int_equal(io(f, IO_READ, 9 * BLOCK, back, 2 * BLOCK), -ENODATA);
	assert_int_equal(io(f, IO_READ, 11 * BLOCK, back, SECTOR), -ENODATA);
	assert_int_equal(io(f, IO_READ, 20 * BLOCK, back, BLOCK), -ENODATA);
	assert_int_equal(io(f, IO_READ, 2 * SECTOR, back, SECTOR), 0);
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
		run_until_idle(f->engine);
		assert_int_equal(file_size(f), end);
		for (unsigned int i = 0; i < N; i++) {
			assert_int_equal(one[i].err, 0);
			assert_int_equal(io(f, IO_READ, one[i].req.offset,
					    back, SECTOR), 0);
			assert_memory_equal(back, sectors[i], SECTOR);
		}
	}
}

struct pieces {
	struct one one;
	struct iovec iov[2];
};

/*
 * Batches of requests that don't overlap but often share blocks, more than the
 * engine carries at once, of any alignment in memory, some in two pieces.
 */
static void concurrent_requests_lose_no_sector(void **state)
{
	enum { N = 200 };
	struct fixture *f = *state;
	static uint8_t model[SECTORS * SECTOR], memory[SECTORS * SECTOR + 64];
	struct pieces *many = calloc(N, sizeof(*many));

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
			many[n] = (struct pieces){
				.one.req = { .op = op, .fd = f->fd,
					     .offset = (uint64_t)at * SECTOR,
					     .len = bytes, .stream = &f->stream,
					     .iovcnt = 2, .done = one_done },
				.iov = { { mem, first },
					 { mem + first, bytes - first } },
			};
			at += len + (below(f, 3) ? 0 : below(f, 4));
		}
		/* In any order. */
		for (unsigned int i = n; i > 1; i--) {
			unsigned int k = below(f, i);
			struct pieces x = many[k];

			many[k] = many[i - 1];
			many[i - 1] = x;
		}
		for (unsigned int i = 0; i < n; i++) {
			many[i].one.req.iov = many[i].iov;
			engine_queue(f->engine, &many[i].one.req);
		}
		run_until_idle(f->engine);
		for (unsigned int i = 0; i < n; i++) {
			const struct one *one = &many[i].one;

			assert_int_equal(one->calls, 1);
			assert_int_equal(one->err, 0);
			if (one->req.op == IO_READ)
				assert_memory_equal(memory + skew + one->req.offset,
						    model + one->req.offset,
						    (size_t)one->req.len);
		}
	}
	assert_int_equal(io(f, IO_READ, 0, memory + 1, sizeof(model)), 0);
	assert_memory_equal(memory + 1, model, sizeof(model));
	assert_int_equal(file_size(f), sizeof(model));
	free(many);
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
		run_until_idle(f->engine);
		assert_int_equal(io(f, IO_READ, 0, page + BLOCK, BLOCK), 0);
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
	assert_int_equal(io(f, IO_READ, SECTOR, sector, SECTOR), 0);
	engine_file_remove(f->engine, readonly);
	engine_file_remove(f->engine, f->fd);
	engine_file_add(f->engine, f->fd, BLOCK);
	assert_int_equal(io(f, IO_WRITE, SECTOR, sector, SECTOR), -EBADF);
	assert_int_equal(io(f, IO_WRITE, 0, sector, 0), 0);
	assert_int_equal(io(f, IO_SYNC, 0, NULL, 0), 0);
	close(readonly);
}

/* The kernel calls both ENODATA. */
static void a_medium_that_cannot_be_read_is_not_the_end_of_the_file(void **state)
{
	struct fixture *f = *state;
	uint8_t *data = aligned_alloc(BLOCK, 4 * BLOCK);

	memset(data, 0xaa, 4 * BLOCK);
	assert_int_equal(io(f, IO_WRITE, 0, data, 4 * BLOCK), 0);
	memset(data, 0x55, 4 * BLOCK);
	f->bad = true;
	assert_int_equal(io(f, IO_WRITE, SECTOR, data, 3 * BLOCK), -EIO);
	assert_int_equal(io(f, IO_READ, 0, data, 2 * BLOCK), -EIO);
	assert_int_equal(io(f, IO_READ, SECTOR, data, BLOCK), -EIO);
	f->bad = false;
	assert_int_equal(file_size(f), 4 * BLOCK);
	assert_int_equal(io(f, IO_READ, 0, data, 4 * BLOCK), 0);
	for (size_t i = 0; i < 4 * BLOCK; i++)
		assert_int_equal(data[i], 0xaa);
	free(data);
}

/* One write of a file that hangs, and one that meets it; or as many as may be under way. */
static void a_file_that_hangs_keeps_no_other_waiting(void **state)
{
	struct fixture *f = *state;
	static struct one many[100], other;
	uint8_t *data = aligned_alloc(BLOCK, BLOCK);
	int fd = scratch_file(O_DIRECT);

	memset(data, 0xaa, BLOCK);
	engine_file_add(f->engine, fd, BLOCK);
	for (unsigned int apart = 0; apart < 2; apart++) {
		f->hung = f->fd;
		for (unsigned int i = 0; i < 100; i++)
			queue(f, &many[i], IO_WRITE, i * apart * 2 * BLOCK,
			      data, BLOCK);
		for (int i = 0; i < 100; i++)
			assert_int_equal(engine_run(f->engine, 0), 0);
		f->fd = fd;
		for (unsigned int i = 0; i < 3; i++) {
			queue(f, &other, IO_WRITE, SECTOR, data, SECTOR);
			run_until_done(f->engine, &other);
			assert_int_equal(other.err, 0);
		}
		f->fd = f->hung;
		f->hung = 0;
		for (unsigned int i = 0; i < f->nr_held; i++)
			assert_true(f->real->submit(f->engine, f->held[i]));
		f->nr_held = 0;
		run_until_idle(f->engine);
		for (unsigned int i = 0; i < 100; i++)
			assert_int_equal(many[i].calls, 1);
	}
	engine_file_remove(f->engine, fd);
	close(fd);
	free(data);
}

#define T(name) BOTH(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(a_sector_is_written_and_its_neighbours_stay),
		T(the_end_of_a_file_stays_where_requests_put_it),
		T(writes_behind_the_end_don_t_cut_each_other),
		T(concurrent_requests_lose_no_sector),
		T(an_aligned_write_is_not_undone_by_a_sector),
		T(errors_are_passed_on),
		T(a_file_that_hangs_keeps_no_other_waiting),
		T(a_medium_that_cannot_be_read_is_not_the_end_of_the_file),
	};

	return RUN_ALL(tests);
}
