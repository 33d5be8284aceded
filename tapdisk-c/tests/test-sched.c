/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The scheduler before a kernel of the test's own: what is submitted waits in a
 * list until the test says how it ends.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/clock.h"
#include "io/engine-internal.h"

#define PAGE	4096u
#define DEPTH	64u
#define FD	3	/* never used: this kernel has no files */

struct kernel {
	struct engine *engine;
	const struct engine_ops *real;
	struct engine_ops ops;
	struct io_req *req[ENGINE_MAX_DEPTH];	/* submitted, in order */
	unsigned int nr;
	int (*result)(struct io_req *req);	/* ends the oldest in each wait; NULL: none */
};

static struct kernel kernel;

static bool submit(struct engine *engine, struct io_req *req)
{
	(void)engine;
	assert_true(kernel.nr < ENGINE_MAX_DEPTH);
	kernel.req[kernel.nr++] = req;
	return true;
}

static void finish(unsigned int i, int result)
{
	struct io_req *req = kernel.req[i];

	assert_true(i < kernel.nr);
	memmove(&kernel.req[i], &kernel.req[i + 1],
		(--kernel.nr - i) * sizeof(kernel.req[0]));
	engine_finish(kernel.engine, req, result);
}

static int wait(struct engine *engine, int64_t timeout_ns)
{
	(void)engine;
	(void)timeout_ns;
	if (kernel.result && kernel.nr)
		finish(0, kernel.result(kernel.req[0]));
	return 0;
}

static void open_depth(unsigned int depth)
{
	struct error err;

	memset(&kernel, 0, sizeof(kernel));
	if (engine_open(&kernel.engine, "posix", depth, &err))
		fail_msg("%s", err.text);
	kernel.real = kernel.engine->ops;
	kernel.ops = *kernel.real;
	kernel.ops.submit = submit;
	kernel.ops.wait = wait;
	kernel.engine->ops = &kernel.ops;
}

static int setup(void **state)
{
	(void)state;
	open_depth(DEPTH);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	assert_int_equal(engine_inflight(kernel.engine), 0);
	kernel.engine->ops = kernel.real;
	engine_close(kernel.engine);
	return 0;
}

struct one {
	struct io_req req;
	struct iovec iov;
	int calls, err;
};

static uint8_t memory[1024 * PAGE];
static struct one ones[4096];
static unsigned int nr_done;

static void one_done(struct io_req *req, int err)
{
	struct one *one = container_of(req, struct one, req);

	one->calls++;
	one->err = err;
	nr_done++;
}

static struct one *queue_memory(unsigned int i, struct io_stream *stream,
				enum io_op op, uint64_t offset, void *base,
				size_t len)
{
	struct one *one = &ones[i];

	*one = (struct one){
		.req = { .op = op, .fd = FD, .offset = offset,
			 .stream = stream, .iov = &one->iov,
			 .iovcnt = op == IO_READ || op == IO_WRITE,
			 .done = one_done },
		.iov = { base, len },
	};
	engine_queue(kernel.engine, &one->req);
	return one;
}

/* Memory that touches nothing else's. */
static struct one *queue(unsigned int i, struct io_stream *stream,
			 enum io_op op, uint64_t page)
{
	return queue_memory(i, stream, op, page * PAGE,
			    memory + 2 * i % 1024 * PAGE, PAGE);
}

static void run(void)
{
	assert_int_equal(engine_run(kernel.engine, 0), 0);
}

static void finish_all(int (*result)(struct io_req *))
{
	kernel.result = result;
	while (engine_inflight(kernel.engine))
		run();
}

static int all_of_it(struct io_req *req)
{
	return (int)req->left;
}

static void neighbours_go_as_one_in_the_order_of_the_file(void **state)
{
	static const unsigned int order[] = { 5, 2, 7, 0, 3, 6, 1, 4 };
	struct io_stream stream = { 0 };
	struct io_req *req;

	(void)state;
	for (unsigned int i = 0; i < 8; i++)
		queue(order[i], &stream, IO_READ, 100 + order[i]);
	run();
	assert_int_equal(kernel.nr, 1);
	req = kernel.req[0];
	assert_int_equal(req->op, IO_READ);
	assert_int_equal(req->offset, 100 * PAGE);
	assert_int_equal(req->left, 8 * PAGE);
	assert_int_equal(req->iovcnt, 8);
	for (unsigned int i = 0; i < 8; i++) {
		assert_ptr_equal(req->iov[i].iov_base, ones[i].iov.iov_base);
		assert_int_equal(req->iov[i].iov_len, PAGE);
	}
	assert_int_equal(stream.merged, 7);
	finish_all(all_of_it);
	for (unsigned int i = 0; i < 8; i++) {
		assert_int_equal(ones[i].calls, 1);
		assert_int_equal(ones[i].err, 0);
	}
}

static void memory_that_touches_is_one_piece_and_keeps_its_buffer(void **state)
{
	struct io_stream stream = { 0 };

	(void)state;
	for (unsigned int i = 0; i < 4; i++)
		queue_memory(i, &stream, IO_WRITE, i * PAGE, memory + i * PAGE,
			     PAGE)->req.buffer = i < 3 ? 7 : 8;
	queue_memory(4, &stream, IO_WRITE, 10 * PAGE, memory, PAGE)->req.buffer = 7;
	queue_memory(5, &stream, IO_WRITE, 11 * PAGE, memory + PAGE, PAGE)->req.buffer = 7;
	run();
	assert_int_equal(kernel.nr, 2);
	assert_int_equal(kernel.req[0]->iovcnt, 1);
	assert_int_equal(kernel.req[0]->iov[0].iov_len, 4 * PAGE);
	assert_int_equal(kernel.req[0]->buffer, 0);
	assert_int_equal(kernel.req[1]->iovcnt, 1);
	assert_int_equal(kernel.req[1]->buffer, 7);
	finish_all(all_of_it);
}

static void what_does_not_touch_stays_apart(void **state)
{
	struct io_stream stream = { 0 }, other = { 0 };

	(void)state;
	queue(0, &stream, IO_READ, 0);
	queue(1, &stream, IO_READ, 2);
	queue(2, &stream, IO_WRITE, 1);
	queue(3, &stream, IO_WRITE, 3)->req.fd = FD + 1;
	queue(4, &stream, IO_WRITE, 2);
	queue(5, &other, IO_WRITE, 4)->req.fd = FD + 1;
	queue(6, NULL, IO_READ, 1);
	queue(7, &stream, IO_ZERO, 5)->req.len = 0;
	run();
	/* 2 and 4 touch; 7 had nothing to do. */
	assert_int_equal(kernel.nr, 6);
	assert_int_equal(stream.merged, 1);
	assert_int_equal(other.merged, 0);
	finish_all(all_of_it);
}

static void a_merge_is_bounded(void **state)
{
	struct io_stream stream = { 0 };

	(void)state;
	for (unsigned int i = 0; i < 200; i++)
		queue(i, &stream, IO_WRITE, i);
	for (unsigned int i = 200; i < 205; i++)
		queue_memory(i, &stream, IO_READ, (uint64_t)i << 19,
			     memory + ((size_t)(i - 200) << 19), 1u << 19);
	run();
	assert_int_equal(kernel.nr, 3 + 4);
	for (unsigned int i = 0; i < kernel.nr; i++) {
		assert_in_range(kernel.req[i]->iovcnt, 1, 64);
		assert_in_range(kernel.req[i]->left, 1, 1u << 20);
	}
	finish_all(all_of_it);
	for (unsigned int i = 0; i < 205; i++)
		assert_int_equal(ones[i].calls, 1);
}

static void the_rest_of_a_short_merge_is_asked_for_one_by_one(void **state)
{
	struct io_stream stream = { 0 };

	(void)state;
	for (unsigned int i = 0; i < 5; i++)
		queue(i, &stream, IO_READ, i);
	run();
	finish(0, 2 * PAGE + 512);
	run();
	assert_int_equal(ones[0].calls, 1);
	assert_int_equal(ones[1].calls, 1);
	assert_int_equal(ones[2].calls, 0);
	assert_int_equal(kernel.nr, 3);
	for (unsigned int i = 0; i < 3; i++) {
		assert_int_equal(kernel.req[i]->offset, (i + 2) * PAGE);
		assert_int_equal(kernel.req[i]->left, PAGE);
	}
	/* The end of the file is in the fourth. */
	finish(0, PAGE);
	finish(0, 512);
	finish(0, 0);
	run();
	finish(0, 0);
	run();
	for (unsigned int i = 0; i < 5; i++) {
		assert_int_equal(ones[i].calls, 1);
		assert_int_equal(ones[i].err, i < 3 ? 0 : -ENODATA);
	}
}

static int page_2_is_bad(struct io_req *req)
{
	if (req->offset <= 2 * PAGE && req->offset + req->left > 2 * PAGE)
		return -EIO;
	return (int)req->left;
}

static void an_error_is_the_requests_that_it_belongs_to(void **state)
{
	struct io_stream stream = { 0 };

	(void)state;
	for (unsigned int i = 0; i < 5; i++)
		queue(i, &stream, IO_WRITE, i);
	finish_all(page_2_is_bad);
	for (unsigned int i = 0; i < 5; i++) {
		assert_int_equal(ones[i].calls, 1);
		assert_int_equal(ones[i].err, i == 2 ? -EIO : 0);
	}
	assert_int_equal(stream.in_kernel, 0);
}

static void an_interrupted_merge_goes_again_as_it_was(void **state)
{
	struct io_stream stream = { 0 };

	(void)state;
	queue(0, &stream, IO_WRITE, 0);
	queue(1, &stream, IO_WRITE, 1);
	run();
	finish(0, -EINTR);
	run();
	assert_int_equal(kernel.nr, 1);
	assert_int_equal(kernel.req[0]->left, 2 * PAGE);
	finish_all(all_of_it);
	assert_int_equal(ones[0].calls + ones[1].calls, 2);
}

static void syncs_of_a_file_are_one_and_share_its_error(void **state)
{
	struct io_stream stream = { 0 };

	(void)state;
	for (unsigned int i = 0; i < 3; i++)
		queue(i, &stream, IO_SYNC, 0);
	queue(3, &stream, IO_SYNC, 0)->req.fd = FD + 1;
	run();
	assert_int_equal(kernel.nr, 2);
	finish(0, -EIO);
	run();
	assert_int_equal(kernel.nr, 1);
	finish(0, 0);
	run();
	for (unsigned int i = 0; i < 4; i++) {
		assert_int_equal(ones[i].calls, 1);
		assert_int_equal(ones[i].err, i < 3 ? -EIO : 0);
	}
}

/* A sync that is queued while another runs must see later writes: it is its own. */
static void a_sync_does_not_join_one_that_runs(void **state)
{
	struct io_stream stream = { 0 };

	(void)state;
	queue(0, &stream, IO_SYNC, 0);
	run();
	queue(1, &stream, IO_SYNC, 0);
	run();
	assert_int_equal(kernel.nr, 2);
	finish_all(all_of_it);
}

static void streams_get_equal_bytes_whatever_they_queue(void **state)
{
	struct io_stream a = { 0 }, b = { 0 };
	uint64_t bytes[2] = { 0 };

	(void)state;
	kernel.result = all_of_it;
	/* No neighbours: 64 KiB each of one, 4 KiB of the other. */
	for (unsigned int i = 0; i < 400; i++)
		queue_memory(i, &a, IO_WRITE, (uint64_t)i << 20, memory, 65536);
	for (unsigned int i = 400; i < 4000; i++)
		queue_memory(i, &b, IO_WRITE, (uint64_t)i << 20, memory, PAGE);
	while (a.nr[1] && b.nr[1]) {
		unsigned int before = nr_done;

		run();
		assert_in_range(nr_done - before, 0, 1);
	}
	for (unsigned int i = 0; i < 4000; i++)
		bytes[i >= 400] += ones[i].calls ? ones[i].iov.iov_len : 0;
	assert_in_range(bytes[0], bytes[1] / 2, bytes[1] * 2);
	finish_all(all_of_it);
}

static void neither_reads_nor_writes_starve(void **state)
{
	struct io_stream stream = { 0 };
	unsigned int done[2] = { 0 };

	(void)state;
	kernel.result = all_of_it;
	for (unsigned int i = 0; i < 4000; i++)
		queue_memory(i, &stream, i < 2000 ? IO_WRITE : IO_READ,
			     (uint64_t)i << 20, memory, PAGE);
	while (stream.nr[0] && stream.nr[1])
		run();
	for (unsigned int i = 0; i < 4000; i++)
		done[i < 2000] += ones[i].calls != 0;
	assert_in_range(done[0], done[1] - 200, done[1] + 200);
	finish_all(all_of_it);
}

static void nothing_is_overtaken_for_ever(void **state)
{
	struct io_stream stream = { 0 };
	unsigned int next = 1;

	(void)state;
	kernel.result = all_of_it;
	queue_memory(0, &stream, IO_READ, 1ull << 40, memory, PAGE);
	while (!ones[0].calls && next < 2000) {
		/* Twice as many come as go, all before it in the file. */
		for (unsigned int i = 0; i < 2; i++, next++)
			queue_memory(next, &stream, IO_READ,
				     (uint64_t)next << 14, memory, PAGE);
		run();
	}
	assert_true(ones[0].calls);
	assert_in_range(next, 1, 1000);
	finish_all(all_of_it);
}

static bool hangs(const struct io_req *req)
{
	return req->fd != FD;
}

static void a_stream_whose_device_hangs_leaves_room(void **state)
{
	struct io_stream hung[3] = { 0 }, well = { 0 };
	unsigned int n = 0;

	(void)state;
	for (unsigned int s = 0; s < 3; s++)
		for (unsigned int i = 0; i < 200; i++, n++)
			queue_memory(n, &hung[s], IO_WRITE, (uint64_t)n << 20,
				     memory, PAGE)->req.fd = FD + 1 + (int)s;
	run();
	for (unsigned int i = n; i < n + 100; i++)
		queue_memory(i, &well, IO_READ, (uint64_t)i << 20, memory, PAGE);
	for (unsigned int round = 0; round < 200; round++) {
		run();
		for (unsigned int i = 0; i < kernel.nr; i++) {
			if (hangs(kernel.req[i]))
				continue;
			finish(i, PAGE);
			break;
		}
	}
	run();
	for (unsigned int i = n; i < n + 100; i++)
		assert_int_equal(ones[i].calls, 1);
	for (unsigned int i = 0; i < n; i++)
		assert_int_equal(ones[i].calls, 0);
	finish_all(all_of_it);
}

/* A file of the kernel's, in which some pages are bad. */

enum { PAGES = 64, ROUNDS = 3000 };

static struct {
	uint64_t rng;
	uint8_t file[PAGES * PAGE];
	bool bad[PAGES];
} model;

static unsigned int below(unsigned int n)
{
	model.rng ^= model.rng << 13;
	model.rng ^= model.rng >> 7;
	model.rng ^= model.rng << 17;
	return (unsigned int)(model.rng >> 20) % n;
}

/* Transfers as far as the first bad page; now and then less. */
static int transfer(struct io_req *req)
{
	uint64_t at = req->offset + req->transferred, end = at + req->left;
	int n = 0;

	if (!below(10))
		return -EINTR;
	if (req->op == IO_SYNC)
		return 0;
	if (model.bad[at / PAGE])
		return -EIO;
	while (end > at + PAGE && !below(20))
		end -= 512;
	for (uint64_t p = at / PAGE; p * PAGE < end; p++)
		if (model.bad[p] && p * PAGE > at)
			end = p * PAGE;
	for (int i = 0; i < req->iovcnt && at < end; i++) {
		size_t len = req->iov[i].iov_len;

		if (len > end - at)
			len = (size_t)(end - at);
		if (req->op == IO_READ)
			memcpy(req->iov[i].iov_base, model.file + at, len);
		else
			memcpy(model.file + at, req->iov[i].iov_base, len);
		at += len;
		n += (int)len;
	}
	return n;
}

static void each_request_gets_its_own_answer_whatever_happens(void **state)
{
	struct io_stream stream[2] = { 0 };
	uint8_t expected[PAGES] = { 0 };

	(void)state;
	model.rng = now_ns() | 1;
	print_message("seed %llu\n", (unsigned long long)model.rng);
	for (unsigned int i = 0; i < 6; i++)
		model.bad[below(PAGES)] = true;
	for (unsigned int round = 0; round < ROUNDS; round++) {
		unsigned int n = 1 + below(PAGES), first[PAGES];

		/* Requests of 1 to 3 pages that don't overlap, in any order. */
		for (unsigned int i = 0, page = 0; i < n; i++) {
			first[i] = page;
			page += 1 + below(3) + below(2);
			if (page > PAGES - 6)
				n = i + 1;
		}
		for (unsigned int i = 0; i < n; i++) {
			unsigned int pages = 1 + below(i + 1 < n ?
				first[i + 1] - first[i] < 3 ?
				first[i + 1] - first[i] : 3 : 3);
			bool sync = !below(12);
			enum io_op op = sync ? IO_SYNC : below(2) ? IO_READ : IO_WRITE;
			uint8_t *mem = memory + i * 8 * PAGE;

			for (unsigned int p = 0; p < pages && op == IO_WRITE; p++) {
				memset(mem + p * PAGE, (int)(1 + below(255)), PAGE);
			}
			queue_memory(i, &stream[below(2)], op,
				     sync ? 0 : (uint64_t)first[i] * PAGE, mem,
				     (size_t)pages * PAGE);
		}
		/* They end in any order. */
		while (engine_inflight(kernel.engine)) {
			run();
			if (kernel.nr) {
				unsigned int k = below(kernel.nr);

				finish(k, transfer(kernel.req[k]));
			}
		}
		for (unsigned int i = 0; i < n; i++) {
			struct one *one = &ones[i];
			bool bad = false;

			assert_int_equal(one->calls, 1);
			if (one->req.op == IO_SYNC) {
				assert_int_equal(one->err, 0);
				continue;
			}
			for (unsigned int p = 0; p < PAGES; p++)
				bad |= model.bad[p] && p >= first[i] &&
				       p * PAGE < one->req.offset + one->req.left +
						  one->req.transferred;
			assert_int_equal(one->err, bad ? -EIO : 0);
			for (unsigned int p = first[i]; !bad &&
			     p * PAGE < one->req.offset + one->req.left +
					one->req.transferred; p++) {
				uint8_t *mem = memory + i * 8 * PAGE +
					       (p - first[i]) * PAGE;

				if (one->req.op == IO_WRITE)
					expected[p] = *mem;
				assert_memory_equal(mem, model.file + p * PAGE, PAGE);
				assert_int_equal(*mem, expected[p]);
			}
			/* A write that failed may have reached some pages. */
			for (unsigned int p = first[i]; bad && p < PAGES &&
			     one->req.op == IO_WRITE && p < first[i] + 3; p++)
				expected[p] = model.file[p * PAGE];
		}
	}
	assert_true(stream[0].merged);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(neighbours_go_as_one_in_the_order_of_the_file),
		T(memory_that_touches_is_one_piece_and_keeps_its_buffer),
		T(what_does_not_touch_stays_apart),
		T(a_merge_is_bounded),
		T(the_rest_of_a_short_merge_is_asked_for_one_by_one),
		T(an_error_is_the_requests_that_it_belongs_to),
		T(an_interrupted_merge_goes_again_as_it_was),
		T(syncs_of_a_file_are_one_and_share_its_error),
		T(a_sync_does_not_join_one_that_runs),
		T(streams_get_equal_bytes_whatever_they_queue),
		T(neither_reads_nor_writes_starve),
		T(nothing_is_overtaken_for_ever),
		T(a_stream_whose_device_hangs_leaves_room),
		T(each_request_gets_its_own_answer_whatever_happens),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
