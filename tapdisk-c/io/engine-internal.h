/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * What engine.c shares with the engines behind it.
 *
 *   engine_queue -> align -> sched -> queued -> ops->submit -> kernel -> ops->wait
 *                     |        |        ^                                   |
 *                     |        |        +---- short, EINTR ---- engine_finish -> done
 *                     |        + only with a stream; what it merged, it splits
 *                     + only on files with large blocks
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
	bool unarmed;			/* is in engine.unarmed */
};

/* What is known of a descriptor that was added: engine.file[fd]. */
#define FILE_BLOCK_SHIFT 0x1fu	/* of the block, if it is more than 512 bytes; else 0 */
#define FILE_IN_MEMORY	0x80u	/* its file system is memory: I/O never waits */
#define FILE_TMPFS	0x40u	/* that is tmpfs: its pages can be lent */

struct sched;
struct align;

struct engine {
	const struct engine_ops *ops;
	struct engine_wrap *wrap;	/* wrap.h; NULL: none */
	struct engine_wrap *innermost_wrap;
	unsigned int depth;
	bool running;
	uint64_t now;			/* 0: not read since the last wait */

	uint8_t *file;			/* by descriptor */
	unsigned int nr_files;
	struct io_map **map;		/* by descriptor, of those in memory; NULL until there is one */
	struct sched *sched;
	struct align *align;		/* NULL until a file needs it */

	struct list queued;		/* io_req.link: go next, as they are */
	struct list endless;		/* the same of those that may wait for ever, so depth is not for them */
	struct list streams;		/* io_stream.link: whose turn it is first */
	unsigned int nr_streams;
	struct list done;		/* io_req.link: result is 0 or -errno */
	struct list timers;		/* io_timer.link, by deadline */
	struct list plugs;		/* io_plug.link */
	bool put_off;			/* the last run went without its wait */
	unsigned int inflight;		/* done() not yet called */
	unsigned int in_kernel;

	struct watch_slot slot[ENGINE_MAX_WATCHES];
	unsigned int nr_slots;		/* none is in use from here on */
	uint16_t ready[ENGINE_MAX_WATCHES];	/* slots with revents, each once */
	unsigned int nr_ready;
	uint16_t unarmed[ENGINE_MAX_WATCHES];	/* slots to poll, or free (uring) */
	unsigned int nr_unarmed;
};

struct engine_ops {
	const char *name;

	/* Allocates the engine around struct engine, which is zeroed. */
	int (*open)(struct engine **engine, unsigned int depth,
		    struct error *err);
	/* No watch and no request is left. Frees the engine. */
	void (*close)(struct engine *engine);

	/*
	 * Hands a request to the kernel; false if there is no room now. May
	 * call engine_finish() for it.
	 */
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

	/*
	 * Optional. FILE_ flags for engine.file[fd]; fd is below nr_files.
	 */
	uint8_t (*file_add)(struct engine *engine, int fd);
	/* Optional, both. */
	uint16_t (*buffer_add)(struct engine *engine, void *base, size_t len);
	void (*buffer_remove)(struct engine *engine, uint16_t buffer);
	/* Optional, both. */
	uint16_t (*creds_add)(struct engine *engine);
	void (*creds_remove)(struct engine *engine, uint16_t creds);
};

static inline bool on_socket(const struct io_req *req)
{
	return req->op == IO_RECV || req->op == IO_SEND;
}

/* What it waits for is not the storage. */
static inline bool is_endless(const struct io_req *req)
{
	return on_socket(req) || req->op == IO_COMMAND;
}

extern const struct engine_ops uring_engine_ops;
extern const struct engine_ops posix_engine_ops;

/* result: what the system call gave, bytes or -errno. */
void engine_finish(struct engine *engine, struct io_req *req, int result);
/* The same behind the wraps: for them. */
void engine_finished(struct engine *engine, struct io_req *req, int result);
void engine_ready(struct engine *engine, unsigned int slot, short revents);

/* The slot's watch is to be polled before the next wait. */
static inline void engine_unarmed(struct engine *engine, unsigned int slot)
{
	if (engine->slot[slot].unarmed)
		return;
	engine->slot[slot].unarmed = true;
	engine->unarmed[engine->nr_unarmed++] = (uint16_t)slot;
}

/* posix.c: runs the system call; bytes or -errno. */
int posix_transfer(const struct io_req *req);

/* engine.c: done(err) will be called. */
void engine_complete(struct engine *engine, struct io_req *req, int err);
/* False if there is no room: the request is at the head of engine.queued then. */
bool engine_submit(struct engine *engine, struct io_req *req);

static inline uint8_t engine_file(const struct engine *engine, int fd)
{
	return (unsigned int)fd < engine->nr_files ? engine->file[fd] : 0;
}

/* sched.c */
int sched_open(struct engine *engine);
void sched_close(struct engine *engine);
void sched_add(struct engine *engine, struct io_req *req);
/* Submits as much as there is room for. */
void sched_run(struct engine *engine);
/* Answers the parts of a merged request, which has no done(). */
void sched_split(struct engine *engine, struct io_req *req, int result);

/* Of a transfer in a stream's share: 4 KiB count as 1, 256 KiB or more as 64. */
static inline unsigned int sched_weight(const struct io_req *req)
{
	uint64_t pages = req->left >> 12;

	return pages < 1 ? 1 : pages > 64 ? 64 : (unsigned int)pages;
}

static inline void engine_schedule(struct engine *engine, struct io_req *req)
{
	if (req->stream)
		sched_add(engine, req);
	else
		list_add_tail(&req->link, &engine->queued);
}

/* lend.c: of a file with FILE_TMPFS */
void lend_add(struct engine *engine, int fd);
void lend_remove(struct engine *engine, int fd);
/* An IO_PUNCH has been done. */
void lend_punched(struct engine *engine, const struct io_req *req);

/* align.c */
#define ALIGN_MAX_BLOCK 65536u

/* 0 or -ENOMEM; no harm if called again. */
int align_open(struct engine *engine);
void align_close(struct engine *engine);
/* A request on a file with blocks of more than 512 bytes. */
void align_queue(struct engine *engine, struct io_req *req);

#endif
