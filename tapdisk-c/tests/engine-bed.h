/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * For tests that hold for both engines: each test once per engine, a file, and
 * requests run to their end. Included by one file of a program.
 */
#ifndef XENBLK_ENGINE_BED_H
#define XENBLK_ENGINE_BED_H

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
#include <unistd.h>

#include <cmocka.h>

#include "io/engine.h"
#include "tests/needs.h"

#define DEPTH	8u
#define PAGE	4096u
#define LIMIT_S	60u	/* a request that takes longer is lost */

/* Entries of a CMUnitTest array; *state is the engine's name at first. */
#define ON(test, engine, setup, teardown) \
	{ #test " (" engine ")", test, setup, teardown, (void *)(uintptr_t)engine }
#define BOTH(test, setup, teardown) \
	ON(test, "uring", setup, teardown), ON(test, "posix", setup, teardown)

/*
 * Runs them all; where there is no io_uring, those for the engine uring are left out, by
 * name. That it is said not to be there, but is, is a failure too.
 */
#define RUN_ALL(tests) \
	run_all(#tests, tests, sizeof(tests) / sizeof((tests)[0]))

static inline int run_all(const char *group, const struct CMUnitTest *tests, size_t n)
{
	static const char uring[] = " (uring)";
	const size_t tail = sizeof(uring) - 1;
	struct CMUnitTest *kept;
	struct engine *engine;
	size_t nr = 0;
	int failed = 0;

	if (!lacks("io_uring"))
		return _cmocka_run_group_tests(group, tests, n, NULL, NULL);
	if (!engine_open(&engine, "uring", 1, NULL)) {
		fprintf(stderr, "$XENBLK_TESTS_LACK has io_uring, but it works\n");
		engine_close(engine);
		return 1;
	}
	kept = calloc(n, sizeof(*kept));
	for (size_t i = 0; kept && i < n; i++) {
		size_t len = strlen(tests[i].name);

		if (len > tail && !strcmp(tests[i].name + len - tail, uring))
			print_message("[  SKIPPED ] %s: no io_uring here\n", tests[i].name);
		else
			kept[nr++] = tests[i];
	}
	if (nr)
		failed = _cmocka_run_group_tests(group, kept, nr, NULL, NULL);
	else
		print_message("[  PASSED  ] 0 test(s).\n");
	free(kept);
	return kept ? failed : 1;
}

/* Beside the program: /tmp may be a tmpfs, which has no O_DIRECT on 6.1. */
static inline int scratch_file(int flags)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 32);
	int fd;

	assert_true(n > 0);
	path[n] = 0;
	strcat(path, ".XXXXXX");
	fd = mkostemp(path, O_CLOEXEC | flags);
	assert_true(fd >= 0);
	unlink(path);
	return fd;
}

static inline struct engine *open_or_fail(const char *name, unsigned int depth)
{
	struct engine *engine;
	struct error err;

	if (engine_open(&engine, name, depth, &err))
		fail_msg("%s", err.text);
	return engine;
}

/* For tests that need no more than these. */
struct engine_fixture {
	struct engine *engine;
	int fd;				/* an empty file, read-write */
};

static inline int engine_setup(void **state)
{
	struct engine_fixture *f = calloc(1, sizeof(*f));
	const char *name = *state;

	f->engine = open_or_fail(name, DEPTH);
	assert_string_equal(engine_name(f->engine), name);
	f->fd = scratch_file(0);
	*state = f;
	return 0;
}

static inline int engine_teardown(void **state)
{
	struct engine_fixture *f = *state;

	engine_close(f->engine);
	close(f->fd);
	free(f);
	return 0;
}

/* Requests */

struct one {
	struct io_req req;
	struct iovec iov;
	int calls, err;
};

static inline void one_done(struct io_req *req, int err)
{
	struct one *one = container_of(req, struct one, req);

	one->calls++;
	one->err = err;
}

/*
 * The loops wait without a timeout, as tapdisk does: it is the alarm that ends
 * the program where a request is lost.
 */
static inline void run_until_done(struct engine *e, const struct one *one)
{
	alarm(LIMIT_S);
	while (!one->calls)
		assert_int_equal(engine_run(e, -1), 0);
	alarm(0);
}

static inline void run_until_idle(struct engine *e)
{
	alarm(LIMIT_S);
	while (engine_inflight(e))
		assert_int_equal(engine_run(e, -1), 0);
	alarm(0);
}

/* Nothing else is in flight; its error. */
static inline int run_alone(struct engine *e, struct one *one)
{
	engine_queue(e, &one->req);
	assert_int_equal(one->calls, 0);
	assert_int_equal(engine_inflight(e), 1);
	run_until_done(e, one);
	assert_int_equal(engine_run(e, 0), 0);
	assert_int_equal(one->calls, 1);
	assert_int_equal(engine_inflight(e), 0);
	return one->err;
}

static inline int run_one(struct engine *e, enum io_op op, int fd, uint64_t offset,
			  void *buf, size_t len)
{
	struct one one = {
		.req = { .op = op, .fd = fd, .offset = offset, .len = len,
			 .iov = &one.iov, .iovcnt = 1, .done = one_done },
		.iov = { buf, len },
	};

	return run_alone(e, &one);
}

#endif
