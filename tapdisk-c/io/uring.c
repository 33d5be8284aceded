/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * One io_uring for files, watches and the wait. A watch is a one-shot poll that
 * is armed again for each wait, which is what makes it level-triggered; arming
 * rides in the system call that waits anyway.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "io/uring-internal.h"

#define NSEC_PER_SEC	1000000000

/*
 * What is transferred on a file system in memory here and now: up to this size
 * a thread of the kernel's costs more; and not for long without a look
 * at all else.
 */
#define MEMORY_REQUEST	((size_t)32 << 10)
#define MEMORY_ROUND	((size_t)1 << 20)

/* One entry carries no more; the rest is resumed. */
#define MAX_TRANSFER	((size_t)1 << 30)

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
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
			IORING_SETUP_SUBMIT_ALL,
		0,
	};
	unsigned int entries = depth + 64, workers[2] = { depth, 0 };
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
		u->tells_taskrun = flags[i] & IORING_SETUP_TASKRUN_FLAG;
	}
	if (rc) {
		error_set(err, rc, "I/O engine uring: %s; engine=posix works "
			  "without it", strerror(-rc));
		free(u);
		return rc;
	}
	/* Saves a lookup at each wait; where it can't be, nothing is lost. */
	io_uring_register_ring_fd(&u->ring);
	/*
	 * A thread of the kernel's for each request that blocks, where there
	 * were 4 for each CPU: an NFS server that is gone must not stop the
	 * syncs of other files.
	 */
	io_uring_register_iowq_max_workers(&u->ring, workers);
	u->memory_bytes = MEMORY_ROUND;
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

static bool submit_memory(struct uring_engine *u, struct io_req *req)
{
	if (!u->memory_bytes)
		return false;
	u->memory_bytes -= req->left < u->memory_bytes ? req->left :
							 u->memory_bytes;
	engine_finish(&u->engine, req, posix_transfer(req));
	return true;
}

static void prep_transfer(struct io_uring_sqe *sqe, const struct io_req *req)
{
	bool reads = req->op == IO_READ;
	uint64_t offset = req->offset + req->transferred;
	const struct iovec *iov = req->iov;
	unsigned int len;

	if (req->iovcnt > 1) {
		if (reads)
			io_uring_prep_readv(sqe, req->fd, iov,
					    (unsigned int)req->iovcnt, offset);
		else
			io_uring_prep_writev(sqe, req->fd, iov,
					     (unsigned int)req->iovcnt, offset);
		return;
	}
	len = (unsigned int)(iov->iov_len < MAX_TRANSFER ? iov->iov_len :
							   MAX_TRANSFER);
	if (reads)
		io_uring_prep_read(sqe, req->fd, iov->iov_base, len, offset);
	else
		io_uring_prep_write(sqe, req->fd, iov->iov_base, len, offset);
	if (req->buffer) {
		sqe->opcode = reads ? IORING_OP_READ_FIXED :
				      IORING_OP_WRITE_FIXED;
		sqe->buf_index = (uint16_t)(req->buffer - 1);
	}
}

/* liburing's own takes off_t up to 2.3, and __u64 since. */
static void prep_fallocate(struct io_uring_sqe *sqe, const struct io_req *req,
			   unsigned int mode)
{
	io_uring_prep_rw(IORING_OP_FALLOCATE, sqe, req->fd, NULL, mode,
			 req->offset);
	sqe->addr = req->len;
}

static void prep_command(struct io_uring_sqe *sqe, const struct io_req *req)
{
	uint64_t words[2];

	memcpy(words, req->iov->iov_base, sizeof(words));
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = req->fd;
	sqe->cmd_op = (uint32_t)req->offset;
	sqe->personality = req->buffer;
	sqe->addr3 = words[0];
	sqe->__pad2[0] = words[1];
}

static bool uring_submit(struct engine *engine, struct io_req *req)
{
	struct uring_engine *u = to_uring(engine);
	struct io_uring_sqe *sqe;

	if (engine_file(engine, req->fd) & FILE_IN_MEMORY &&
	    req->left <= MEMORY_REQUEST && !is_endless(req))
		return submit_memory(u, req);
	sqe = get_sqe(u);
	if (!sqe)
		return false;
	switch (req->op) {
	case IO_READ:
	case IO_WRITE:
		prep_transfer(sqe, req);
		break;
	case IO_SYNC:
		io_uring_prep_fsync(sqe, req->fd, IORING_FSYNC_DATASYNC);
		break;
	case IO_PUNCH:
		prep_fallocate(sqe, req, FALLOC_FL_PUNCH_HOLE |
			       FALLOC_FL_KEEP_SIZE);
		break;
	case IO_ZERO:
		prep_fallocate(sqe, req, FALLOC_FL_ZERO_RANGE |
			       FALLOC_FL_KEEP_SIZE);
		break;
	case IO_RECV:
	case IO_SEND:
		prep_socket(u, sqe, req);
		break;
	case IO_COMMAND:
		prep_command(sqe, req);
		break;
	}
	io_uring_sqe_set_data(sqe, req);
	return true;
}

static void arm_watches(struct uring_engine *u)
{
	struct engine *engine = &u->engine;

	while (engine->nr_unarmed) {
		unsigned int i = engine->unarmed[engine->nr_unarmed - 1];
		struct watch_slot *slot = &engine->slot[i];
		struct io_uring_sqe *sqe;

		if (slot->watch) {
			sqe = get_sqe(u);
			if (!sqe)
				return;
			io_uring_prep_poll_add(sqe, slot->watch->fd,
					       (unsigned short)slot->watch->events);
			io_uring_sqe_set_data64(sqe, watch_user_data(engine, i));
			slot->polled = true;
		}
		slot->unarmed = false;
		engine->nr_unarmed--;
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
				io_uring_sqe_set_data64(sqe, TAG_IGNORED);
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

	if ((data & TAG_MASK) == TAG_IGNORED)
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
	engine_unarmed(engine, slot);
	engine_ready(engine, slot, res < 0 ? POLLNVAL : (short)res);
}

/* Whether a system call that doesn't wait would submit or get something. */
static bool has_events(struct uring_engine *u)
{
	return !u->tells_taskrun || io_uring_sq_ready(&u->ring) ||
	       __atomic_load_n(u->ring.sq.kflags, __ATOMIC_RELAXED) &
	       (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
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
	/* More waits than was done at once. */
	if (!u->memory_bytes)
		timeout_ns = 0;
	u->memory_bytes = MEMORY_ROUND;
	if (!timeout_ns && !has_events(u))
		rc = 0;
	else if (timeout_ns)
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
	.file_add = uring_file_add,
	.buffer_add = uring_buffer_add,
	.buffer_remove = uring_buffer_remove,
	.creds_add = uring_creds_add,
	.creds_remove = uring_creds_remove,
};
