/* SPDX-License-Identifier: LGPL-2.1-only */
/* What io/engine.h promises, held against both engines. */
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>

#include "io/engine-internal.h"
#include "tests/engine-bed.h"

#define MS	1000000ull

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int run_vec(struct engine *e, enum io_op op, int fd, uint64_t offset,
		   struct iovec *iov, int iovcnt)
{
	struct one one = {
		.req = { .op = op, .fd = fd, .offset = offset, .iov = iov,
			 .iovcnt = iovcnt, .done = one_done },
	};

	return run_alone(e, &one);
}

static void written_data_is_read_back(void **state)
{
	struct engine_fixture *f = *state;
	char in[] = "one two three", out[14] = "";
	struct iovec w[] = { { in, 4 }, { in + 4, 0 }, { in + 4, 10 } };
	struct iovec r[] = { { out, 9 }, { out + 9, 5 } };

	assert_int_equal(run_vec(f->engine, IO_WRITE, f->fd, 1000, w, 3), 0);
	assert_int_equal(run_one(f->engine, IO_SYNC, f->fd, 0, NULL, 0), 0);
	assert_int_equal(run_vec(f->engine, IO_READ, f->fd, 1000, r, 2), 0);
	assert_string_equal(out, "one two three");
	assert_int_equal(lseek(f->fd, 0, SEEK_END), 1014);
}

static void read_at_the_end_of_the_file_is_enodata(void **state)
{
	struct engine_fixture *f = *state;
	char buf[200];

	assert_int_equal(ftruncate(f->fd, 100), 0);
	assert_int_equal(run_one(f->engine, IO_READ, f->fd, 0, buf, 100), 0);
	assert_int_equal(run_one(f->engine, IO_READ, f->fd, 0, buf, 101), -ENODATA);
	assert_int_equal(run_one(f->engine, IO_READ, f->fd, 100, buf, 1), -ENODATA);
}

static void errors_of_the_kernel_come_through_done(void **state)
{
	struct engine_fixture *f = *state;
	int full = open("/dev/full", O_WRONLY | O_CLOEXEC), p[2];
	char buf[1] = "";

	assert_true(full >= 0);
	assert_int_equal(pipe(p), 0);
	assert_int_equal(run_one(f->engine, IO_WRITE, full, 0, buf, 1), -ENOSPC);
	assert_int_equal(run_one(f->engine, IO_READ, full, 0, buf, 1), -EBADF);
	assert_int_equal(run_one(f->engine, IO_READ, -1, 0, buf, 1), -EBADF);
	assert_int_equal(run_one(f->engine, IO_SYNC, -1, 0, NULL, 0), -EBADF);
	assert_int_equal(run_one(f->engine, IO_SYNC, p[0], 0, NULL, 0), -EINVAL);
	close(p[0]);
	close(p[1]);
	close(full);
}

static void requests_without_sense_are_einval(void **state)
{
	struct engine_fixture *f = *state;
	char buf[2] = "";
	struct iovec huge[] = { { buf, SIZE_MAX }, { buf, SIZE_MAX } };

	assert_int_equal(run_one(f->engine, IO_WRITE, f->fd, INT64_MAX, buf, 1), -EINVAL);
	assert_int_equal(run_one(f->engine, IO_READ, f->fd, UINT64_MAX, buf, 2), -EINVAL);
	assert_int_equal(run_vec(f->engine, IO_WRITE, f->fd, 0, huge, 2), -EINVAL);
	assert_int_equal(run_vec(f->engine, IO_WRITE, f->fd, 0, huge, IOV_MAX + 1), -EINVAL);
	assert_int_equal(run_vec(f->engine, IO_WRITE, f->fd, 0, huge, -1), -EINVAL);
	assert_int_equal(run_one(f->engine, IO_READ, f->fd, 0, buf, 0), 0);
	assert_int_equal(lseek(f->fd, 0, SEEK_END), 0);
}

static void unaligned_direct_io_is_einval(void **state)
{
	struct engine_fixture *f = *state;
	int fd = scratch_file(O_DIRECT);
	char *buf = aligned_alloc(PAGE, 2 * PAGE);

	memset(buf, 'x', 2 * PAGE);
	assert_int_equal(run_one(f->engine, IO_WRITE, fd, 0, buf, PAGE), 0);
	assert_int_equal(run_one(f->engine, IO_WRITE, fd, 0, buf + 1, PAGE), -EINVAL);
	assert_int_equal(run_one(f->engine, IO_WRITE, fd, 100, buf, PAGE), -EINVAL);
	assert_int_equal(run_one(f->engine, IO_READ, fd, 100, buf, PAGE), -EINVAL);
	assert_int_equal(lseek(fd, 0, SEEK_END), PAGE);
	free(buf);
	close(fd);
}

static void direct_read_of_a_torn_last_sector_is_enodata(void **state)
{
	struct engine_fixture *f = *state;
	int fd = scratch_file(O_DIRECT);
	char *buf = aligned_alloc(PAGE, PAGE);

	assert_int_equal(ftruncate(fd, 1000), 0);
	assert_int_equal(run_one(f->engine, IO_READ, fd, 0, buf, PAGE), -ENODATA);
	free(buf);
	close(fd);
}

/*
 * One system call transfers at most 2 GiB - 4 KiB: between the two pages of
 * the last buffer.
 */
static void short_transfer_is_resumed_where_it_stopped(void **state)
{
	enum { N = 513, CHUNK = 4 << 20 };
	const uint64_t at = (2ull << 30) - 2 * PAGE;
	struct engine_fixture *f = *state;
	int fd = scratch_file(O_DIRECT);
	char *chunk = aligned_alloc(PAGE, CHUNK);
	char *last = aligned_alloc(PAGE, 2 * PAGE);
	struct iovec *iov = calloc(N, sizeof(*iov));

	memset(last, 0x5a, PAGE);
	memset(last + PAGE, 0x3c, PAGE);
	assert_int_equal(run_one(f->engine, IO_WRITE, fd, at, last, 2 * PAGE), 0);
	memset(last, 0, 2 * PAGE);
	for (int i = 0; i < N; i++)
		iov[i] = (struct iovec){ chunk, CHUNK };
	iov[N - 2].iov_len -= 2 * PAGE;
	iov[N - 1] = (struct iovec){ last, 2 * PAGE };

	assert_int_equal(run_vec(f->engine, IO_READ, fd, 0, iov, N), 0);
	for (unsigned int i = 0; i < PAGE; i++) {
		assert_int_equal(last[i], 0x5a);
		assert_int_equal(last[PAGE + i], 0x3c);
	}
	free(iov);
	free(last);
	free(chunk);
	close(fd);
}

static void write_cut_short_is_the_error_that_cut_it(void **state)
{
	struct engine_fixture *f = *state;
	struct rlimit old, limit;
	char *buf = calloc(1, 2 * PAGE);
	int rc;

	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &old);
	limit = (struct rlimit){ PAGE, old.rlim_max };
	setrlimit(RLIMIT_FSIZE, &limit);
	rc = run_one(f->engine, IO_WRITE, f->fd, 0, buf, 2 * PAGE);
	setrlimit(RLIMIT_FSIZE, &old);
	assert_int_equal(rc, -EFBIG);
	assert_int_equal(lseek(f->fd, 0, SEEK_END), PAGE);
	free(buf);
}

/* Many requests */

enum { MANY = 1000 };

struct many {
	struct engine_fixture *f;
	struct one *one;
	uint32_t *data;
	unsigned int done, most_in_kernel;
};

static struct many many;

static void many_done(struct io_req *req, int err)
{
	assert_int_equal(err, 0);
	one_done(req, err);
	many.done++;
	if (many.f->engine->in_kernel > many.most_in_kernel)
		many.most_in_kernel = many.f->engine->in_kernel;
	/* A write is read back by a request that its callback queues. */
	if (req->op == IO_WRITE) {
		struct one *one = container_of(req, struct one, req);

		many.data[one - many.one] = 0;
		one->iov = (struct iovec){ &many.data[one - many.one], 4 };
		req->op = IO_READ;
		engine_queue(many.f->engine, req);
	}
}

static void a_thousand_requests_go_through_depth_8(void **state)
{
	struct engine_fixture *f = *state;

	many = (struct many){ .f = f };
	many.one = calloc(MANY, sizeof(*many.one));
	many.data = calloc(MANY, sizeof(*many.data));
	for (uint32_t i = 0; i < MANY; i++) {
		struct one *one = &many.one[i];

		many.data[i] = i + 7;
		one->iov = (struct iovec){ &many.data[i], 4 };
		one->req = (struct io_req){
			.op = IO_WRITE, .fd = f->fd, .offset = (MANY - i) * 4,
			.iov = &one->iov, .iovcnt = 1, .done = many_done,
		};
		engine_queue(f->engine, &one->req);
	}
	assert_int_equal(engine_inflight(f->engine), MANY);
	run_until_idle(f->engine);
	assert_int_equal(many.done, 2 * MANY);
	assert_true(many.most_in_kernel <= DEPTH);
	for (uint32_t i = 0; i < MANY; i++) {
		assert_int_equal(many.one[i].calls, 2);
		assert_int_equal(many.data[i], i + 7);
	}
	free(many.data);
	free(many.one);
}

/* Watches */

struct seen {
	struct io_watch watch;
	struct engine_fixture *f;
	struct io_watch *remove;	/* what the callback removes, or NULL */
	int calls;
	short revents;
	int run_rc;
};

static void saw(struct io_watch *w, short revents)
{
	struct seen *s = container_of(w, struct seen, watch);

	s->calls++;
	s->revents = revents;
	s->run_rc = engine_run(s->f->engine, 0);
	if (s->remove)
		engine_unwatch(s->f->engine, s->remove);
}

static void watch_fd(struct engine_fixture *f, struct seen *s, int fd, short events)
{
	*s = (struct seen){ .watch = { .fd = fd, .events = events,
				       .ready = saw }, .f = f };
	assert_int_equal(engine_watch(f->engine, &s->watch), 0);
}

static void run(struct engine_fixture *f, int timeout_ms)
{
	assert_int_equal(engine_run(f->engine, timeout_ms), 0);
}

static void watch_is_level_triggered(void **state)
{
	struct engine_fixture *f = *state;
	struct seen s;
	char c;
	int p[2];

	assert_int_equal(pipe(p), 0);
	watch_fd(f, &s, p[0], POLLIN);
	run(f, 0);
	assert_int_equal(s.calls, 0);
	assert_int_equal(write(p[1], "ab", 2), 2);
	for (int i = 1; i <= 3; i++) {
		run(f, -1);
		assert_int_equal(s.calls, i);
		assert_int_equal(s.revents, POLLIN);
	}
	assert_int_equal(read(p[0], &c, 1), 1);
	run(f, -1);
	assert_int_equal(s.calls, 4);
	assert_int_equal(read(p[0], &c, 1), 1);
	/* An event may be on its way from before the read; not more than one. */
	run(f, 0);
	run(f, 20);
	assert_in_range(s.calls, 4, 5);
	engine_unwatch(f->engine, &s.watch);
	close(p[0]);
	close(p[1]);
}

static void hangup_and_bad_descriptor_are_reported(void **state)
{
	struct engine_fixture *f = *state;
	struct seen s;
	int p[2];

	assert_int_equal(pipe(p), 0);
	watch_fd(f, &s, p[0], POLLIN);
	close(p[1]);
	run(f, -1);
	assert_int_equal(s.revents & POLLHUP, POLLHUP);
	engine_unwatch(f->engine, &s.watch);
	close(p[0]);
	watch_fd(f, &s, p[0], POLLIN);
	run(f, -1);
	assert_int_equal(s.revents, POLLNVAL);
	engine_unwatch(f->engine, &s.watch);
}

static void callback_may_remove_itself_and_others(void **state)
{
	struct engine_fixture *f = *state;
	struct seen *a = calloc(1, sizeof(*a)), *b = calloc(1, sizeof(*b));
	int p[2];

	assert_int_equal(pipe(p), 0);
	watch_fd(f, a, p[1], POLLOUT);
	watch_fd(f, b, p[1], POLLOUT);
	a->remove = &b->watch;
	b->remove = &a->watch;
	run(f, -1);
	assert_int_equal(a->calls + b->calls, 1);
	if (a->calls) {
		free(b);
	} else {
		free(a);
		a = b;
	}
	a->remove = &a->watch;
	run(f, -1);
	assert_int_equal(a->calls, 2);
	free(a);
	run(f, 0);
	run(f, 10);
	close(p[0]);
	close(p[1]);
}

static void event_of_a_removed_watch_does_not_reach_its_successor(void **state)
{
	struct engine_fixture *f = *state;
	struct seen a, b;
	int p[2], q[2];

	assert_int_equal(pipe(p), 0);
	assert_int_equal(pipe(q), 0);
	watch_fd(f, &a, p[0], POLLIN);
	run(f, 0);
	assert_int_equal(write(p[1], "x", 1), 1);
	engine_unwatch(f->engine, &a.watch);
	watch_fd(f, &b, q[0], POLLIN);
	run(f, 0);
	run(f, 10);
	assert_int_equal(a.calls, 0);
	assert_int_equal(b.calls, 0);
	assert_int_equal(write(q[1], "x", 1), 1);
	run(f, -1);
	assert_int_equal(b.calls, 1);
	engine_unwatch(f->engine, &b.watch);
	for (int i = 0; i < 2; i++) {
		close(p[i]);
		close(q[i]);
	}
}

/* The driver acts on the last close of a ring: it must be the caller's. */
static void unwatch_leaves_no_reference_to_the_file(void **state)
{
	struct engine_fixture *f = *state;
	struct seen s;
	struct pollfd other;
	int p[2];

	for (int round = 0; round < 100; round++) {
		assert_int_equal(pipe(p), 0);
		watch_fd(f, &s, p[0], POLLIN);
		run(f, 0);
		/* In half the rounds the event is on its way. */
		if (round % 2)
			assert_int_equal(write(p[1], "x", 1), 1);
		engine_unwatch(f->engine, &s.watch);
		close(p[0]);
		other = (struct pollfd){ .fd = p[1], .events = 0 };
		assert_int_equal(poll(&other, 1, 0), 1);
		assert_int_equal(other.revents, POLLERR);
		close(p[1]);
	}
}

static void watches_are_limited_and_said_so(void **state)
{
	struct engine_fixture *f = *state;
	struct seen *s = calloc(ENGINE_MAX_WATCHES + 1, sizeof(*s));
	struct seen *over = &s[ENGINE_MAX_WATCHES];
	int p[2];

	assert_int_equal(pipe(p), 0);
	for (int i = 0; i < ENGINE_MAX_WATCHES; i++)
		watch_fd(f, &s[i], p[0], POLLIN);
	over->watch = (struct io_watch){ .fd = p[0], .events = POLLIN,
					 .ready = saw };
	over->f = f;
	assert_int_equal(engine_watch(f->engine, &over->watch), -EMFILE);
	assert_int_equal(write(p[1], "x", 1), 1);
	run(f, -1);
	run(f, 0);
	for (int i = 0; i < ENGINE_MAX_WATCHES; i++)
		assert_in_range(s[i].calls, 1, 2);
	engine_unwatch(f->engine, &s[5].watch);
	assert_int_equal(engine_watch(f->engine, &over->watch), 0);
	run(f, -1);
	run(f, 0);
	assert_true(over->calls >= 1);
	for (int i = 0; i <= ENGINE_MAX_WATCHES; i++)
		engine_unwatch(f->engine, &s[i].watch);
	free(s);
	close(p[0]);
	close(p[1]);
}

static void engine_run_refuses_to_nest(void **state)
{
	struct engine_fixture *f = *state;
	struct seen s;
	int p[2];

	assert_int_equal(pipe(p), 0);
	watch_fd(f, &s, p[1], POLLOUT);
	run(f, -1);
	assert_int_equal(s.run_rc, -EDEADLK);
	engine_unwatch(f->engine, &s.watch);
	close(p[0]);
	close(p[1]);
}

/* Timers */

struct tick {
	struct io_timer timer;
	struct engine *engine;
	struct io_timer *cancel;
	uint64_t again;			/* deadline to arm anew, or 0 */
	char name;
};

static char fired[32];

static void tick(struct io_timer *t)
{
	struct tick *k = container_of(t, struct tick, timer);
	size_t n = strlen(fired);

	assert_true(n < sizeof(fired) - 1);
	fired[n] = k->name;
	fired[n + 1] = 0;
	if (k->cancel)
		engine_timer_cancel(k->engine, k->cancel);
	if (k->again)
		engine_timer_set(k->engine, t, k->again);
}

static void set_tick(struct engine_fixture *f, struct tick *k, char name, uint64_t at)
{
	k->timer.expired = tick;
	k->engine = f->engine;
	k->name = name;
	engine_timer_set(f->engine, &k->timer, at);
}

static void timers_fire_in_the_order_of_their_deadlines(void **state)
{
	struct engine_fixture *f = *state;
	struct tick a = { 0 }, b = { 0 }, c = { 0 }, d = { 0 }, e = { 0 };
	uint64_t t = now();

	fired[0] = 0;
	set_tick(f, &c, 'c', t + 6 * MS);
	set_tick(f, &a, 'a', t + 2 * MS);
	set_tick(f, &b, 'b', t + 4 * MS);
	set_tick(f, &d, 'd', t + 6 * MS);
	set_tick(f, &e, 'e', t + 1 * MS);
	engine_timer_cancel(f->engine, &e.timer);
	set_tick(f, &a, 'a', t + 5 * MS);
	while (strlen(fired) < 4)
		run(f, -1);
	run(f, 10);
	assert_string_equal(fired, "bacd");
}

static void timer_callback_may_cancel_another_that_is_due(void **state)
{
	struct engine_fixture *f = *state;
	struct tick a = { 0 }, b = { 0 };

	fired[0] = 0;
	a.cancel = &b.timer;
	set_tick(f, &a, 'a', 1);
	set_tick(f, &b, 'b', 2);
	run(f, -1);
	run(f, 0);
	assert_string_equal(fired, "a");
}

static void timer_armed_in_its_callback_waits_for_the_next_run(void **state)
{
	struct engine_fixture *f = *state;
	struct tick a = { .again = 1 };

	fired[0] = 0;
	set_tick(f, &a, 'a', 1);
	run(f, -1);
	assert_string_equal(fired, "a");
	a.again = 0;
	run(f, -1);
	assert_string_equal(fired, "aa");
	run(f, 0);
	assert_string_equal(fired, "aa");
}

struct unplugging {
	struct io_plug plug;
	struct engine *engine;
	unsigned int calls;
	bool again;
};

static void unplug(struct io_plug *p)
{
	struct unplugging *u = container_of(p, struct unplugging, plug);

	u->calls++;
	if (u->again)
		engine_plug(u->engine, p);
}

static void plug_is_called_once_by_the_next_run(void **state)
{
	struct engine_fixture *f = *state;
	struct unplugging u = { .plug.unplug = unplug, .engine = f->engine };

	engine_plug(f->engine, &u.plug);
	engine_plug(f->engine, &u.plug);
	assert_int_equal(u.calls, 0);
	run(f, 0);
	run(f, 0);
	assert_int_equal(u.calls, 1);
	engine_plug(f->engine, &u.plug);
	engine_plug_cancel(f->engine, &u.plug);
	engine_plug_cancel(f->engine, &u.plug);
	run(f, 0);
	assert_int_equal(u.calls, 1);
	u.again = true;
	engine_plug(f->engine, &u.plug);
	run(f, 0);
	assert_int_equal(u.calls, 2);
	run(f, 0);
	assert_int_equal(u.calls, 3);
	engine_plug_cancel(f->engine, &u.plug);
}

static void run_waits_no_shorter_and_not_much_longer_than_asked(void **state)
{
	struct engine_fixture *f = *state;
	struct tick a = { 0 };
	uint64_t t = now();

	run(f, 0);
	run(f, 30);
	assert_in_range(now() - t, 30 * MS, 5000 * MS);
	fired[0] = 0;
	t = now();
	set_tick(f, &a, 'a', t + 30 * MS);
	run(f, -1);
	assert_string_equal(fired, "a");
	assert_in_range(now() - t, 30 * MS, 5000 * MS);
}

static void on_alarm(int sig)
{
	(void)sig;
}

static void signal_does_not_end_the_wait(void **state)
{
	const struct itimerval every = { { 0, 5000 }, { 0, 5000 } }, off = { 0 };
	const struct sigaction sa = { .sa_handler = on_alarm };
	struct sigaction old;
	struct engine_fixture *f = *state;
	struct tick a = { 0 };

	needs("signals");
	fired[0] = 0;
	sigaction(SIGALRM, &sa, &old);
	setitimer(ITIMER_REAL, &every, NULL);
	set_tick(f, &a, 'a', now() + 50 * MS);
	run(f, -1);
	setitimer(ITIMER_REAL, &off, NULL);
	sigaction(SIGALRM, &old, NULL);
	assert_string_equal(fired, "a");
}

/* SIGUSR1 would end the process if a thread of the engine took it. */
static void signals_are_not_taken_by_the_engines_threads(void **state)
{
	struct engine_fixture *f = *state;
	sigset_t usr1, pending, old;
	int sig;

	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, &old);
	kill(getpid(), SIGUSR1);
	run(f, 10);
	sigpending(&pending);
	assert_true(sigismember(&pending, SIGUSR1));
	sigwait(&usr1, &sig);
	sigprocmask(SIG_SETMASK, &old, NULL);
}

static void engine_open_refuses_what_it_does_not_know(void **state)
{
	struct engine *e;
	struct error err;

	assert_int_equal(engine_open(&e, "libaio", 8, &err), -EINVAL);
	assert_string_equal(err.text, "I/O engine libaio: must be uring or posix");
	assert_null(e);
	assert_int_equal(engine_open(&e, *state, 0, &err), -EINVAL);
	assert_int_equal(engine_open(&e, *state, ENGINE_MAX_DEPTH + 1, NULL), -EINVAL);
	engine_close(NULL);
}

#define T(name) BOTH(name, engine_setup, engine_teardown)
#define NO_FIXTURE(name) BOTH(name, NULL, NULL)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(written_data_is_read_back),
		T(read_at_the_end_of_the_file_is_enodata),
		T(errors_of_the_kernel_come_through_done),
		T(requests_without_sense_are_einval),
		T(unaligned_direct_io_is_einval),
		T(direct_read_of_a_torn_last_sector_is_enodata),
		T(short_transfer_is_resumed_where_it_stopped),
		T(write_cut_short_is_the_error_that_cut_it),
		T(a_thousand_requests_go_through_depth_8),
		T(watch_is_level_triggered),
		T(hangup_and_bad_descriptor_are_reported),
		T(callback_may_remove_itself_and_others),
		T(event_of_a_removed_watch_does_not_reach_its_successor),
		T(unwatch_leaves_no_reference_to_the_file),
		T(watches_are_limited_and_said_so),
		T(engine_run_refuses_to_nest),
		T(timers_fire_in_the_order_of_their_deadlines),
		T(timer_callback_may_cancel_another_that_is_due),
		T(timer_armed_in_its_callback_waits_for_the_next_run),
		T(plug_is_called_once_by_the_next_run),
		T(run_waits_no_shorter_and_not_much_longer_than_asked),
		T(signal_does_not_end_the_wait),
		T(signals_are_not_taken_by_the_engines_threads),
		NO_FIXTURE(engine_open_refuses_what_it_does_not_know),
	};
	struct rlimit limit;

	/* The usual limit, which fewer entries of poll(2) reach than an engine has. */
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = 1024;
	setrlimit(RLIMIT_NOFILE, &limit);
	return RUN_ALL(tests);
}
