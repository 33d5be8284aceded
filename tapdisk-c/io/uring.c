/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * One io_uring for files, watches and the wait. A watch is a one-shot poll that
 * is armed again for each wait, which is what makes it level-triggered; arming
 * rides in the system call that waits anyway.
 */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/log.h"
#include "io/engine-internal.h"

#define MAX_SQ_ENTRIES	512u
#define NSEC_PER_SEC	1000000000

struct uring_engine {
	struct engine engine;
	struct io_uring ring;
	struct msghdr msg[MAX_SQ_ENTRIES];	/* of the entry in the same place: the kernel copies it when it takes the entry */
};

/*
 * user_data: an io_req's address, whose low bits are 0, or a tag in the low
 * bits; a watch is named by slot and generation since the caller's memory may
 * be gone when its event arrives.
 */
#define TAG_MASK	7u
#define TAG_WATCH	1u
#define TAG_CANCEL	2u
#define SLOT_SHIFT	3

static struct uring_engine *to_uring(struct engine *engine)
{
	return container_of(engine, struct uring_engine, engine);
}

static uint64_t watch_user_data(const struct engine *engine, unsigned int slot)
{
	return ((uint64_t)engine->slot[slot].generation << 32) |
	       ((uint64_t)slot << SLOT_SHIFT) | TAG_WATCH;
}

static int uring_open(struct engine **engine, unsigned int depth,
		      struct error *err)
{
	/*
	 * Completions are taken only where we wait: no interrupts in between.
	 * Newest first, older kernels refuse the flags that they don't know.
	 */
	static const unsigned int flags[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN,
		0,
	};
	unsigned int entries = depth + 64;
	struct uring_engine *u;
	int rc = -EINVAL;

	u = calloc(1, sizeof(*u));
	if (!u)
		return error_set(err, -ENOMEM, "I/O engine uring: out of memory");

	for (size_t i = 0; rc == -EINVAL && i < sizeof(flags) / sizeof(flags[0]);
	     i++) {
		struct io_uring_params p = {
			.flags = flags[i] | IORING_SETUP_CQSIZE |
				 IORING_SETUP_CLAMP,
			.cq_entries = 2 * (depth + ENGINE_MAX_WATCHES),
		};

		rc = io_uring_queue_init_params(entries < MAX_SQ_ENTRIES ?
						entries : MAX_SQ_ENTRIES,
						&u->ring, &p);
	}
	if (rc) {
		error_set(err, rc, "I/O engine uring: %s; engine=posix works "
			  "without it", strerror(-rc));
		free(u);
		return rc;
	}
	*engine = &u->engine;
	return 0;
}

static void uring_close(struct engine *engine)
{
	struct uring_engine *u = to_uring(engine);

	io_uring_queue_exit(&u->ring);
	free(u);
}

static struct io_uring_sqe *get_sqe(struct uring_engine *u)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	if (!sqe && io_uring_submit(&u->ring) > 0)
		sqe = io_uring_get_sqe(&u->ring);
	return sqe;
}

static void prep_socket(struct uring_engine *u, struct io_uring_sqe *sqe,
			struct io_req *req)
{
	struct msghdr *msg = &u->msg[sqe - u->ring.sq.sqes];

	if (req->iovcnt == 1 && req->op == IO_RECV) {
		io_uring_prep_recv(sqe, req->fd, req->iov->iov_base,
				   req->iov->iov_len, 0);
		return;
	}
	/* The kernel goes on with a short transfer by itself. */
	if (req->iovcnt == 1) {
		io_uring_prep_send(sqe, req->fd, req->iov->iov_base,
				   req->iov->iov_len,
				   MSG_NOSIGNAL | MSG_WAITALL);
		return;
	}
	*msg = (struct msghdr) {
		.msg_iov	= req->iov,
		.msg_iovlen	= (size_t)req->iovcnt,
	};
	if (req->op == IO_RECV)
		io_uring_prep_recvmsg(sqe, req->fd, msg, 0);
	else
		io_uring_prep_sendmsg(sqe, req->fd, msg,
				      MSG_NOSIGNAL | MSG_WAITALL);
}

static bool uring_submit(struct engine *engine, struct io_req *req)
{
	struct io_uring_sqe *sqe = get_sqe(to_uring(engine));
	uint64_t offset = req->offset + req->transferred;

	if (!sqe)
		return false;
	switch (req->op) {
	case IO_READ:
		io_uring_prep_readv(sqe, req->fd, req->iov,
				    (unsigned int)req->iovcnt, offset);
		break;
	case IO_WRITE:
		io_uring_prep_writev(sqe, req->fd, req->iov,
				     (unsigned int)req->iovcnt, offset);
		break;
	case IO_SYNC:
		io_uring_prep_fsync(sqe, req->fd, IORING_FSYNC_DATASYNC);
		break;
	case IO_RECV:
	case IO_SEND:
		prep_socket(to_uring(engine), sqe, req);
		break;
	case IO_PUNCH:
	case IO_ZERO:
		break;
	}
	io_uring_sqe_set_data(sqe, req);
	return true;
}

static void arm_watches(struct uring_engine *u)
{
	struct engine *engine = &u->engine;

	for (unsigned int i = 0; i < engine->nr_slots; i++) {
		struct watch_slot *slot = &engine->slot[i];
		struct io_uring_sqe *sqe;

		if (!slot->watch || slot->polled)
			continue;
		sqe = get_sqe(u);
		if (!sqe)
			return;
		io_uring_prep_poll_add(sqe, slot->watch->fd,
				       (unsigned short)slot->watch->events);
		io_uring_sqe_set_data64(sqe, watch_user_data(engine, i));
		slot->polled = true;
	}
}

/*
 * A poll holds a reference to its file, so it is cancelled here and now and not
 * with the next wait: submitting runs the cancellation, getting events drops
 * the reference.
 */
static void uring_unwatch(struct engine *engine, unsigned int slot)
{
	struct uring_engine *u = to_uring(engine);
	struct io_uring_sqe *sqe = NULL;
	int rc = 0;

	if (!engine->slot[slot].polled)
		return;
	/* Interrupted, or the kernel is short of memory for a moment. */
	for (int tries = 0; tries < 100; tries++) {
		if (!sqe) {
			sqe = get_sqe(u);
			if (sqe) {
				io_uring_prep_poll_remove(sqe, watch_user_data(
							  engine, slot));
				io_uring_sqe_set_data64(sqe, TAG_CANCEL);
			}
		}
		rc = io_uring_submit_and_get_events(&u->ring);
		if (sqe && rc >= 0 && !io_uring_sq_ready(&u->ring))
			return;
	}
	log_error("I/O engine uring: can't cancel a watch err=%d", rc);
}

static void handle_cqe(struct engine *engine, uint64_t data, int res)
{
	unsigned int slot;

	if ((data & TAG_MASK) == TAG_CANCEL)
		return;
	if (!(data & TAG_MASK)) {
		engine_finish(engine, (struct io_req *)(uintptr_t)data, res);
		return;
	}
	slot = (uint32_t)data >> SLOT_SHIFT;
	if (!engine->slot[slot].watch ||
	    engine->slot[slot].generation != data >> 32)
		return;
	engine->slot[slot].polled = false;
	engine_ready(engine, slot, res < 0 ? POLLNVAL : (short)res);
}

static int uring_wait(struct engine *engine, int64_t timeout_ns)
{
	struct uring_engine *u = to_uring(engine);
	struct __kernel_timespec ts = {
		.tv_sec = timeout_ns / NSEC_PER_SEC,
		.tv_nsec = timeout_ns % NSEC_PER_SEC,
	};
	struct io_uring_cqe *cqe;
	unsigned int head, n = 0;
	int rc;

	arm_watches(u);
	if (timeout_ns)
		rc = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1,
						      timeout_ns < 0 ? NULL : &ts,
						      NULL);
	else
		rc = io_uring_submit_and_get_events(&u->ring);

	io_uring_for_each_cqe(&u->ring, head, cqe) {
		handle_cqe(engine, io_uring_cqe_get_data64(cqe), cqe->res);
		n++;
	}
	io_uring_cq_advance(&u->ring, n);

	/* EBUSY, EAGAIN: the kernel wants completions taken before more. */
	if (rc >= 0 || rc == -ETIME || rc == -EINTR || rc == -EBUSY ||
	    rc == -EAGAIN)
		return 0;
	return rc;
}

const struct engine_ops uring_engine_ops = {
	.name = "uring",
	.open = uring_open,
	.close = uring_close,
	.submit = uring_submit,
	.unwatch = uring_unwatch,
	.wait = uring_wait,
};
