/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * I/O engines: queued file and socket I/O, descriptor readiness and timers
 * behind one wait. Single-threaded: every call and every callback is on the thread that
 * runs engine_run(). Requests, watches and timers are the caller's memory;
 * the engine allocates only in engine_open().
 *
 * Callbacks run from engine_run() only, never from inside engine_queue(); in a
 * callback everything may be called but engine_close() and engine_run().
 */
#ifndef XENBLK_ENGINE_H
#define XENBLK_ENGINE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/error.h"
#include "common/list.h"

enum io_op {
	IO_READ,
	IO_WRITE,
	IO_SYNC,	/* fdatasync: offset and iov unused */
	IO_PUNCH,	/* len bytes at offset become a hole, which reads as zeros */
	IO_ZERO,	/* len bytes at offset read as zeros, space is kept if possible */
	IO_RECV,	/* stream socket: done when anything is there; transferred says how much, 0: the end */
	IO_SEND,	/* stream socket: done when all is sent */
	IO_COMMAND,	/* io_uring's IORING_OP_URING_CMD: number offset, the 16 bytes at iov->iov_base; may take for ever */
};

/*
 * Whose requests are scheduled together: one for each VBD. What is queued
 * between two waits is sorted and merged within a stream, and streams take
 * turns where the engine's depth is the limit. Zeroed before use.
 */
struct io_stream {
	struct list link;		/* the engine's: streams with something queued */
	struct list queued[2];		/* reads; all else */
	unsigned int nr[2];
	unsigned int sorted[2];		/* so many at the front are in order */
	unsigned int in_kernel;
	unsigned int weight;		/* of these, by size */
	unsigned int turn;		/* which of the two queues is served */
	int64_t deficit;		/* bytes it may still submit in this turn */
	uint64_t merged;		/* requests that went along with another's */
};

struct io_req {
	/* Set by the caller, unchanged until done() has been called. */
	enum io_op op;
	int fd;
	uint64_t offset;		/* bytes */
	uint64_t len;			/* IO_PUNCH and IO_ZERO: bytes */
	uint16_t buffer;		/* of engine_buffer_add(), if iov[0] lies in it and is all; IO_COMMAND: of engine_creds_add(); else 0 */
	struct io_stream *stream;	/* NULL: is not scheduled, goes as it is */
	struct iovec *iov;		/* the engine may modify it while it resumes a short transfer */
	int iovcnt;			/* at most IOV_MAX */
	/*
	 * err is 0 when all bytes were transferred, else -errno. A read
	 * that meets the end of the file is -ENODATA; a write that the
	 * kernel cut short for good is the error that cut it.
	 */
	void (*done)(struct io_req *req, int err);

	/* The engine's. */
	struct list link;
	size_t transferred;
	uint64_t left;			/* bytes of iov not yet transferred, or len */
	int result;
};

struct io_watch {
	int fd;
	short events;			/* POLLIN, POLLOUT */
	void (*ready)(struct io_watch *w, short revents);
	struct list link;
	void *priv;
	bool armed;
};

struct io_timer {
	uint64_t deadline_ns;		/* CLOCK_MONOTONIC */
	void (*expired)(struct io_timer *t);
	struct list link;
	bool armed;
};

struct engine;

/*
 * name is "uring" or "posix", or for tests one of them wrapped (wrap.h,
 * fault.c, record.c); depth (1 to 4096) is how many requests are in the
 * kernel at once, more may be queued. The engine belongs to this process: open
 * it after the last fork(). "uring" fails with -ENOSYS or -EPERM where the
 * kernel forbids io_uring; the caller decides what then.
 */
int engine_open(struct engine **engine, const char *name, unsigned int depth,
		struct error *err);

/* Nothing may be in flight; watches and timers are forgotten. */
void engine_close(struct engine *engine);

const char *engine_name(const struct engine *engine);
/* For tests: something is between its users and the kernel, and must see all I/O. */
bool engine_wrapped(const struct engine *engine);

/* Never fails: an error comes through done(). */
void engine_queue(struct engine *engine, struct io_req *req);

/*
 * A file that is added is known to the engine: what lies in memory is served in the
 * cheapest way, and block is the alignment, in bytes, that direct I/O on the
 * file must keep to (0: requests do); requests that do not are carried through an
 * aligned copy. Nothing may be in flight on what is removed; remove a
 * descriptor before close(). The engine holds no reference to the file; the kernel
 * may, where a thread of its own has just served it, until the next engine_run().
 *
 * The kernel pins a registered buffer once, not for each request. That only
 * saves time: where an engine or a limit does not allow it, the number is 0.
 */
void engine_file_add(struct engine *engine, int fd, uint32_t block);
void engine_file_remove(struct engine *engine, int fd);
/*
 * Where the file was added and lies in memory, on tmpfs: its len bytes at offset, to
 * be read in place; NULL: they must be transferred, as on all other files and where
 * there is a hole. They are the file's, so that what is written later shows, and they stay until engine_lend_end(lender), even if the file is removed.
 * Only for system calls (EFAULT): if others cut the file short, a look is SIGBUS.
 */
struct io_map;
const void *engine_lend(struct engine *engine, int fd, uint64_t offset,
			size_t len, struct io_map **lender);
void engine_lend_end(struct io_map *lender);

/* A number for io_req.buffer, or 0. base is page-aligned. */
uint16_t engine_buffer_add(struct engine *engine, void *base, size_t len);
void engine_buffer_remove(struct engine *engine, uint16_t buffer);

/* The thread's credentials as they are now, a number for an IO_COMMAND's buffer, or 0. */
uint16_t engine_creds_add(struct engine *engine);
void engine_creds_remove(struct engine *engine, uint16_t creds);

#define ENGINE_MAX_WATCHES 1024

/*
 * Level-triggered. A watch may be removed in its own callback. events must
 * not change while it is armed. -EMFILE if ENGINE_MAX_WATCHES are armed.
 */
int engine_watch(struct engine *engine, struct io_watch *watch);
/*
 * After this returns, ready() is not called, the memory may be reused, and the
 * engine holds no reference to the file, so that close() is the last one.
 */
void engine_unwatch(struct engine *engine, struct io_watch *watch);

/* One shot; arming an armed timer moves it. */
void engine_timer_set(struct engine *engine, struct io_timer *timer,
		      uint64_t deadline_ns);
void engine_timer_cancel(struct engine *engine, struct io_timer *timer);

/* What wants to queue all that came together as one, not each as it comes. */
struct io_plug {
	void (*unplug)(struct io_plug *p);
	struct list link;
	bool armed;
};

/*
 * unplug() is called once, when the next engine_run() begins, before anything
 * is submitted: what it queues goes with the rest. Nothing happens if armed.
 */
void engine_plug(struct engine *engine, struct io_plug *plug);
void engine_plug_cancel(struct engine *engine, struct io_plug *plug);

/*
 * Submits what is queued, waits (forever if timeout_ms < 0, not at all if 0)
 * for at least one event, and runs the callbacks of all that has happened.
 * What they queue is submitted by the next call, in the same system call as
 * its wait. A signal does not end the wait: watch a signalfd. 0, or -errno if
 * the engine itself is broken; -EDEADLK if called from a callback.
 */
int engine_run(struct engine *engine, int timeout_ms);

/*
 * CLOCK_MONOTONIC, nanoseconds: when the last wait ended, or shortly after. One
 * reading of the clock serves all that happened together.
 */
uint64_t engine_now(struct engine *engine);

/* Requests queued or in the kernel. */
unsigned int engine_inflight(const struct engine *engine);

#endif
