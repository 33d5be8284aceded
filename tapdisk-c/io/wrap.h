/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Engines around an engine, for the tests. One stands between the queue and the
 * engine proper: what it sees are the transfers of files that the kernel would get,
 * after they have been merged and again for the rest of one that was short.
 * Sockets go past it.
 *
 *   submit -> outermost -> ... -> ops->submit -> kernel
 *   engine_finish <- outermost <- ... <- ops->wait
 *
 * The name of a wrapped engine is PREFIX:PATH:INNER, where INNER may be
 * wrapped itself; PATH holds no ':'. Without a wrap each hook is one test of a pointer.
 */
#ifndef XENBLK_WRAP_H
#define XENBLK_WRAP_H

#include "io/engine-internal.h"

struct engine_wrap_ops {
	const char *prefix;

	/* Allocates the wrap around struct engine_wrap, which is zeroed. */
	int (*open)(struct engine_wrap **wrap, const char *path,
		    unsigned int depth, struct error *err);
	/* Nothing is in flight. Frees the wrap. */
	void (*close)(struct engine_wrap *wrap);
	/* As engine_ops.submit. Hands on by wrap_submit_inner(). */
	bool (*submit)(struct engine_wrap *wrap, struct io_req *req);
	/* A transfer is over; the result that is handed outwards. */
	int (*finish)(struct engine_wrap *wrap, struct io_req *req, int result);
	/*
	 * Optional. Before the engine waits: goes on with what is held, and
	 * says how long the wait may take.
	 */
	int64_t (*before_wait)(struct engine_wrap *wrap, int64_t timeout_ns);
};

struct engine_wrap {
	const struct engine_wrap_ops *ops;
	struct engine *engine;
	struct engine_wrap *inner;	/* NULL: the engine proper */
	struct engine_wrap *outer;	/* NULL: the queue */
};

extern const struct engine_wrap_ops fault_wrap_ops;
extern const struct engine_wrap_ops record_wrap_ops;

/* Opens the wraps that *name asks for, if any, and moves it to the engine's. */
int wrap_open(struct engine_wrap **outermost, const char **name,
	      unsigned int depth, struct error *err);
void wrap_attach(struct engine *engine, struct engine_wrap *outermost);
void wrap_close(struct engine_wrap *outermost);

bool wrap_submit_inner(struct engine_wrap *wrap, struct io_req *req);
/* From before_wait: a request that went no further has this result. */
void wrap_finish_held(struct engine_wrap *wrap, struct io_req *req, int result);

/* engine.c's */
int wrap_finish(struct engine *engine, struct io_req *req, int result);
int64_t wrap_before_wait(struct engine *engine, int64_t timeout_ns);

#endif
