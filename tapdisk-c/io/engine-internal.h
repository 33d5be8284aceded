/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * What engine.c shares with the engines behind it.
 *
 *   engine_queue -> queued -> ops->submit -> kernel -> ops->wait
 *                     ^                                   |
 *                     +---- short, EINTR ---- engine_finish -> done
 *
 * Watches live in slots, not in the caller's memory, since an event for a
 * watch that is gone may still be under way.
 */
#ifndef XENBLK_ENGINE_INTERNAL_H
#define XENBLK_ENGINE_INTERNAL_H

#include "io/engine.h"

#define ENGINE_MAX_DEPTH 4096u

struct watch_slot {
	struct io_watch *watch;		/* NULL: free */
	uint32_t generation;		/* of the slot's user */
	short revents;			/* seen, ready() not yet called */
	bool polled;			/* the kernel looks at it (uring) */
};

struct engine {
	const struct engine_ops *ops;
	unsigned int depth;
	bool running;

	struct list queued;		/* io_req.link: not yet in the kernel */
	struct list sockets;		/* the same of IO_RECV and IO_SEND: may wait for ever, so depth is not for them */
	struct list done;		/* io_req.link: result is 0 or -errno */
	struct list timers;		/* io_timer.link, by deadline */
	unsigned int inflight;		/* done() not yet called */
	unsigned int in_kernel;

	struct watch_slot slot[ENGINE_MAX_WATCHES];
	unsigned int nr_slots;		/* none is in use from here on */
	uint16_t ready[ENGINE_MAX_WATCHES];	/* slots with revents, each once */
	unsigned int nr_ready;
};

struct engine_ops {
	const char *name;

	/* Allocates the engine around struct engine, which is zeroed. */
	int (*open)(struct engine **engine, unsigned int depth,
		    struct error *err);
	/* No watch and no request is left. Frees the engine. */
	void (*close)(struct engine *engine);

	/* Hands a request to the kernel; false if there is no room now. */
	bool (*submit)(struct engine *engine, struct io_req *req);

	/*
	 * The kernel no longer refers to the slot's descriptor when it
	 * returns: the caller may close the last one and rely on that.
	 */
	void (*unwatch)(struct engine *engine, unsigned int slot);

	/*
	 * Waits up to timeout_ns (forever if negative) for something to
	 * happen, then calls engine_finish() and engine_ready() for all of
	 * it. May return early with nothing, as after a signal.
	 */
	int (*wait)(struct engine *engine, int64_t timeout_ns);
};

static inline bool on_socket(const struct io_req *req)
{
	return req->op == IO_RECV || req->op == IO_SEND;
}

extern const struct engine_ops uring_engine_ops;
extern const struct engine_ops posix_engine_ops;

/* result: what the system call gave, bytes or -errno. */
void engine_finish(struct engine *engine, struct io_req *req, int result);
void engine_ready(struct engine *engine, unsigned int slot, short revents);

#endif
