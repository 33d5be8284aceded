/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A request's way: a FETCH comes back, which says that the descriptor of its tag
 * is filled, and a write's data is in the slot's buffer; the VBD answers; a
 * COMMIT_AND_FETCH carries the result, a read's data is copied from the buffer, and the
 * slot is the kernel's again. Commands go with all else that the engine submits:
 * a round of the loop is one system call.
 */
#include "transport/ublk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/log.h"
#include "transport/ublk-internal.h"

#define MAP_AGAIN_NS 100000000ull

static const struct transport_ops ublk_ops;

/*
 * What this process has left to another one. That can take it over only when this one has
 * ended: the kernel has its slots until then, and it may yet go on with it.
 */
static struct list left = { &left, &left };

static void to_kernel(struct ublk_slot *slot, uint32_t op)
{
	struct ublk *ublk = slot->ublk;

	slot->io.offset = UBLK_IO_COMMAND(op);
	slot->io.buffer = op == UBLK_FETCH ? ublk->creds : 0;
	ublk->with_kernel++;
	slot->with_kernel = true;
	engine_queue(ublk->engine, &slot->io);
}

static void commit(struct ublk_slot *slot, int32_t result)
{
	slot->cmd.result = result;
	to_kernel(slot, UBLK_COMMIT_AND_FETCH);
}

static void request_done(struct vbd_request *req, int err)
{
	struct ublk_slot *slot = container_of(req, struct ublk_slot, req);

	commit(slot, ublk_result(&req->image, req->op, err));
}

/*
 * Not before the first request: until Linux 6.12 a device whose queue a process
 * has mapped can't be taken over from it before it has handed over all slots.
 */
static int map_queue(struct ublk *ublk)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes;
	void *p;

	if (ublk->desc)
		return 0;
	bytes = ublk->entries * sizeof(struct ublk_desc);
	bytes = (bytes + page - 1) & ~(page - 1);
	p = mmap(NULL, bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, ublk->queue,
		 0);
	if (p == MAP_FAILED)
		return -errno;
	ublk->desc = p;
	ublk->desc_bytes = bytes;
	return 0;
}

static void take(struct ublk_slot *slot)
{
	struct ublk *ublk = slot->ublk;
	struct vbd_request *req = &slot->req;
	struct ublk_desc desc;
	int rc = map_queue(ublk);

	if (rc) {
		if (!ublk->map_said)
			log_error("ublk: cannot map the queue, requests wait until it can minor=%d err=%d",
				  ublk->minor, -rc);
		ublk->map_said = true;
		list_add_tail(&slot->wait, &ublk->waiting);
		engine_timer_set(ublk->engine, &ublk->timer,
				 engine_now(ublk->engine) + MAP_AGAIN_NS);
		return;
	}
	/* The kernel may write there at any time. */
	desc = ublk->desc[slot->cmd.tag];
	rc = ublk_decode(&desc, &req->image, &req->fua);
	if (rc) {
		log_error("ublk: request refused minor=%d op=%#x sectors=%u err=%d",
			  ublk->minor, desc.op_flags, desc.sectors, -rc);
		commit(slot, rc);
		return;
	}
	req->image.buf = ublk->buf + (size_t)slot->cmd.tag * UBLK_MAX_IO_BYTES;
	req->from = &ublk->transport;
	req->fua = req->fua && req->image.op != IMAGE_FLUSH;
	req->done = request_done;
	vbd_submit(ublk->vbd, req);
}

static void command_done(struct io_req *io, int err)
{
	struct ublk_slot *slot = container_of(io, struct ublk_slot, io);
	struct ublk *ublk = slot->ublk;

	ublk->with_kernel--;
	slot->with_kernel = false;
	/* io_uring had no memory for the entry: ublk has not seen it. */
	if (err == -ENOMEM || err == -EAGAIN) {
		ublk->with_kernel++;
		slot->with_kernel = true;
		engine_queue(ublk->engine, io);
		return;
	}
	if (err) {
		ublk->gone = true;
		/* -ENODEV: the device is being removed. */
		if (err != -ENODEV || ublk->phase == UBLK_LIVE)
			log_error("ublk: the kernel takes a slot back minor=%d tag=%u err=%d",
				  ublk->minor, slot->cmd.tag, -err);
		return;
	}
	if (ublk->phase == UBLK_STOPPING)
		commit(slot, -EIO);
	else if (ublk->held)
		list_add_tail(&slot->wait, &ublk->waiting);
	else
		take(slot);
}

/* In the next round, before anything is submitted: no image is open before. */
static void unplug(struct io_plug *plug)
{
	struct ublk *ublk = container_of(plug, struct ublk, plug);
	struct list *item, batch;

	list_init(&batch);
	list_splice(&ublk->waiting, &batch);
	while ((item = list_pop(&batch)))
		take(container_of(item, struct ublk_slot, wait));
}

void ublk_go_on(struct ublk *ublk)
{
	if (!ublk->held)
		engine_plug(ublk->engine, &ublk->plug);
}

void ublk_fail_waiting(struct ublk *ublk, int err)
{
	struct list *item;

	while ((item = list_pop(&ublk->waiting)))
		commit(container_of(item, struct ublk_slot, wait), err);
}

static int map_buffers(struct ublk *ublk, struct error *err)
{
	void *p;

	p = mmap(NULL, (size_t)ublk->entries * UBLK_MAX_IO_BYTES,
		 PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return error_set(err, -errno, "minor %d: no memory for %u buffers of %u KiB",
				 ublk->minor, ublk->entries,
				 UBLK_MAX_IO_BYTES >> 10);
	ublk->buf = p;
	return 0;
}

int ublk_queue_open(struct ublk *ublk, struct error *err)
{
	char path[32];
	int rc = 0;

	snprintf(path, sizeof(path), UBLK_QUEUE_PATH, ublk->minor);
	ublk->queue = open(path, O_RDWR | O_CLOEXEC);
	if (ublk->queue < 0)
		rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
	if (!rc)
		rc = map_buffers(ublk, err);
	if (rc) {
		ublk_queue_close(ublk);
		return rc;
	}
	for (unsigned int i = 0; i < ublk->entries; i++) {
		struct ublk_slot *slot = &ublk->slots[i];

		slot->cmd = (struct ublk_io){
			.tag	= (uint16_t)i,
			.addr	= (uint64_t)(uintptr_t)(ublk->buf +
					(size_t)i * UBLK_MAX_IO_BYTES),
		};
		slot->iov = (struct iovec){ &slot->cmd, sizeof(slot->cmd) };
		slot->io = (struct io_req){
			.op = IO_COMMAND, .fd = ublk->queue, .iov = &slot->iov,
			.iovcnt = 1, .done = command_done,
		};
		to_kernel(slot, UBLK_FETCH);
	}
	return 0;
}

void ublk_queue_close(struct ublk *ublk)
{
	if (ublk->queue >= 0)
		close(ublk->queue);
	if (ublk->desc)
		munmap((void *)(uintptr_t)ublk->desc, ublk->desc_bytes);
	if (ublk->buf)
		munmap(ublk->buf, (size_t)ublk->entries * UBLK_MAX_IO_BYTES);
	ublk->queue = -1;
	ublk->desc = NULL;
	ublk->buf = NULL;
}

static void drop(struct ublk *ublk)
{
	ublk_reset(&ublk->transport, NULL);
	free(ublk);
}

/* NULL: this process has not left it to another one. */
static struct ublk *take_back(const struct engine *engine, int minor)
{
	list_for_each(item, &left) {
		struct ublk *ublk = container_of(item, struct ublk,
						 transport.link);

		if (ublk->minor != minor || ublk->engine != engine)
			continue;
		list_del(item);
		if (!ublk->gone)
			return ublk;
		/* Removed meanwhile, by force: the minor is another disk's. */
		ublk->mine = false;
		if (!ublk->with_kernel)
			drop(ublk);
		return NULL;
	}
	return NULL;
}

int ublk_open(struct transport **transport, struct vbd *vbd,
	      struct engine *engine, int minor, struct error *err)
{
	struct ublk *ublk = take_back(engine, minor);

	if (ublk) {
		ublk->vbd = vbd;
		*transport = &ublk->transport;
		return 0;
	}
	if (strcmp(engine_name(engine), "uring"))
		return error_set(err, -EOPNOTSUPP, "minor %d: ublk needs the engine uring, this tapdisk has %s; set another transport, or allow io_uring",
				 minor, engine_name(engine));
	ublk = calloc(1, sizeof(*ublk));
	if (!ublk)
		return error_set(err, -ENOMEM, "minor %d: out of memory", minor);
	ublk->transport.ops = &ublk_ops;
	ublk->transport.unseen = true;
	list_init(&ublk->transport.link);
	ublk->vbd = vbd;
	ublk->engine = engine;
	ublk->minor = minor;
	ublk->queue = -1;
	ublk->plug.unplug = unplug;
	list_init(&ublk->plug.link);
	list_init(&ublk->waiting);
	for (unsigned int i = 0; i < UBLK_ENTRIES; i++) {
		ublk->slots[i].ublk = ublk;
		list_init(&ublk->slots[i].wait);
	}
	ublk_life_init(ublk);
	*transport = &ublk->transport;
	return 0;
}

static void ublk_hold(struct transport *transport)
{
	struct ublk *ublk = ublk_of(transport);

	ublk->held = true;
	engine_plug_cancel(ublk->engine, &ublk->plug);
	/* The device is to be had all the same. */
	if (ublk->phase != UBLK_TAKING)
		engine_timer_cancel(ublk->engine, &ublk->timer);
}

static int ublk_release(struct transport *transport,
			const struct image_info *info, bool readonly,
			struct error *err)
{
	struct ublk *ublk = ublk_of(transport);
	int rc = 0;

	(void)readonly;
	/* One that is not there yet is made, or found too small, with what it is to show. */
	if (ublk->phase == UBLK_TAKING)
		ublk->info = *info;
	else
		rc = ublk_grow(ublk, info, err);
	if (rc)
		return rc;
	ublk->held = false;
	ublk_go_on(ublk);
	return 0;
}

/* While it is removed, the kernel waits for answers and tapdisk for the slots. */
static bool ublk_busy(const struct transport *transport)
{
	const struct ublk *ublk = container_of_const(transport, struct ublk,
						     transport);

	return ublk->phase == UBLK_STOPPING ||
	       (ublk->phase >= UBLK_STOPPED && ublk->with_kernel);
}

static bool ublk_round(struct transport *transport)
{
	(void)transport;
	return false;
}

/*
 * What the process leaves to the next one stays as it is, whether the kernel has the slots
 * or requests wait in them.
 */
static void ublk_close(struct transport *transport)
{
	struct ublk *ublk = ublk_of(transport);

	if (!ublk->with_kernel && ublk->phase != UBLK_LIVE) {
		drop(ublk);
		return;
	}
	ublk_hold(transport);
	/* What the VBD had waiting goes with it; the kernel still says what it was. */
	for (unsigned int i = 0; i < ublk->entries; i++) {
		struct ublk_slot *slot = &ublk->slots[i];

		if (!slot->with_kernel && list_empty(&slot->wait))
			list_add_tail(&slot->wait, &ublk->waiting);
	}
	list_add_tail(&transport->link, &left);
}

static const struct transport_ops ublk_ops = {
	.name		= "ublk",
	.start		= ublk_start,
	.ready		= ublk_ready,
	.stop		= ublk_stop,
	.reset		= ublk_reset,
	.hold		= ublk_hold,
	.release	= ublk_release,
	.busy		= ublk_busy,
	.round		= ublk_round,
	.close		= ublk_close,
};
