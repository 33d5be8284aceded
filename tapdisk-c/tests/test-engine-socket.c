/* SPDX-License-Identifier: LGPL-2.1-only */
/* IO_RECV and IO_SEND as io/engine.h promises them, held against both engines. */
#include <sys/socket.h>

#include "tests/engine-bed.h"

static void socket_pair(int s[2])
{
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s), 0);
}

static void socket_req(struct one *one, enum io_op op, int fd, void *buf, size_t len)
{
	one->iov = (struct iovec){ buf, len };
	one->calls = 0;
	one->req = (struct io_req) { .op = op, .fd = fd, .iov = &one->iov,
				     .iovcnt = 1, .done = one_done };
}

static void recv_is_done_when_anything_is_there(void **state)
{
	struct engine_fixture *f = *state;
	char buf[100], more[8];
	struct iovec two[] = { { buf, 3 }, { more, sizeof(more) } };
	struct one one;
	int s[2];

	socket_pair(s);
	socket_req(&one, IO_RECV, s[0], buf, sizeof(buf));
	engine_queue(f->engine, &one.req);
	assert_int_equal(engine_run(f->engine, 20), 0);
	assert_int_equal(one.calls, 0);
	assert_int_equal(write(s[1], "abcde", 5), 5);
	run_until_done(f->engine, &one);
	assert_int_equal(one.err, 0);
	assert_int_equal(one.req.transferred, 5);
	assert_memory_equal(buf, "abcde", 5);

	assert_int_equal(write(s[1], "fghij", 5), 5);
	one.calls = 0;
	one.req.iov = two;
	one.req.iovcnt = 2;
	engine_queue(f->engine, &one.req);
	run_until_done(f->engine, &one);
	assert_int_equal(one.req.transferred, 5);
	assert_memory_equal(buf, "fgh", 3);
	assert_memory_equal(more, "ij", 2);
	close(s[0]);
	close(s[1]);
}

static void recv_at_the_end_is_0_bytes_and_no_error(void **state)
{
	struct engine_fixture *f = *state;
	struct one one;
	char buf[8];
	int s[2];

	socket_pair(s);
	socket_req(&one, IO_RECV, s[0], buf, sizeof(buf));
	engine_queue(f->engine, &one.req);
	assert_int_equal(engine_run(f->engine, 0), 0);
	close(s[1]);
	run_until_done(f->engine, &one);
	assert_int_equal(one.err, 0);
	assert_int_equal(one.req.transferred, 0);
	close(s[0]);
}

static void shutdown_ends_a_pending_recv_and_send(void **state)
{
	static uint8_t big[8 << 20];
	struct engine_fixture *f = *state;
	struct one in, out;
	char buf[8];
	int s[2];

	socket_pair(s);
	socket_req(&in, IO_RECV, s[0], buf, sizeof(buf));
	socket_req(&out, IO_SEND, s[0], big, sizeof(big));
	engine_queue(f->engine, &in.req);
	engine_queue(f->engine, &out.req);
	assert_int_equal(engine_run(f->engine, 20), 0);
	assert_int_equal(in.calls + out.calls, 0);
	assert_int_equal(engine_inflight(f->engine), 2);
	shutdown(s[0], SHUT_RDWR);
	run_until_done(f->engine, &in);
	run_until_done(f->engine, &out);
	assert_int_equal(in.err, 0);
	assert_int_equal(in.req.transferred, 0);
	assert_int_equal(out.err, -EPIPE);
	assert_int_equal(engine_inflight(f->engine), 0);
	close(s[0]);
	close(s[1]);
}

/* The peer's buffer takes a part at a time; a vector is resumed inside. */
static void send_is_done_when_all_is_sent(void **state)
{
	static uint8_t data[3 << 20], got[sizeof(data)];
	struct iovec iov[] = { { data, 1 }, { data + 1, 1 << 20 },
			       { data + 1 + (1 << 20), sizeof(data) - 1 - (1 << 20) } };
	struct engine_fixture *f = *state;
	size_t n = 0;
	struct one one;
	int s[2];

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 31 + (i >> 8));
	socket_pair(s);
	socket_req(&one, IO_SEND, s[0], NULL, 0);
	one.req.iov = iov;
	one.req.iovcnt = 3;
	engine_queue(f->engine, &one.req);
	while (n < sizeof(data)) {
		ssize_t r;

		assert_int_equal(engine_run(f->engine, 0), 0);
		r = recv(s[1], got + n, 100000, MSG_DONTWAIT);
		if (r > 0)
			n += (size_t)r;
		if (n < sizeof(data) / 2)
			assert_int_equal(one.calls, 0);
	}
	run_until_done(f->engine, &one);
	assert_int_equal(one.err, 0);
	assert_int_equal(one.req.transferred, sizeof(data));
	assert_memory_equal(got, data, sizeof(data));
	close(s[0]);
	close(s[1]);
}

static void send_to_nobody_is_epipe(void **state)
{
	struct engine_fixture *f = *state;
	struct one one;
	char x = 'x';
	int s[2];

	socket_pair(s);
	close(s[1]);
	socket_req(&one, IO_SEND, s[0], &x, 1);
	engine_queue(f->engine, &one.req);
	run_until_done(f->engine, &one);
	assert_int_equal(one.err, -EPIPE);
	close(s[0]);
}

/* More than the depth wait on sockets; a file's request still gets through. */
static void waiting_sockets_take_no_depth(void **state)
{
	struct engine_fixture *f = *state;
	struct one one[2 * DEPTH];
	int s[2 * DEPTH][2];
	char buf[8];

	for (unsigned int i = 0; i < 2 * DEPTH; i++) {
		socket_pair(s[i]);
		socket_req(&one[i], IO_RECV, s[i][0], buf, sizeof(buf));
		engine_queue(f->engine, &one[i].req);
	}
	struct one file = { .req = { .op = IO_SYNC, .fd = f->fd,
				     .done = one_done } };

	engine_queue(f->engine, &file.req);
	run_until_done(f->engine, &file);
	for (unsigned int i = 0; i < 2 * DEPTH; i++) {
		assert_int_equal(one[i].calls, 0);
		close(s[i][1]);
	}
	run_until_idle(f->engine);
	for (unsigned int i = 0; i < 2 * DEPTH; i++) {
		assert_int_equal(one[i].calls, 1);
		close(s[i][0]);
	}
}

#define T(name) BOTH(name, engine_setup, engine_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(recv_is_done_when_anything_is_there),
		T(recv_at_the_end_is_0_bytes_and_no_error),
		T(shutdown_ends_a_pending_recv_and_send),
		T(send_is_done_when_all_is_sent),
		T(send_to_nobody_is_epipe),
		T(waiting_sockets_take_no_depth),
	};

	return RUN_ALL(tests);
}
