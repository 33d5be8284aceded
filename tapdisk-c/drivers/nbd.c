/* SPDX-License-Identifier: LGPL-2.1-only */
/* nbd: drivers/nbd.h. */
#include "drivers/nbd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

#define STATUS_MAX (1u << 31)		/* bytes that a status is asked for */

static struct nbd_image *nbd_of(struct image *image)
{
	return container_of(image, struct nbd_image, image);
}

static void unplug(struct io_plug *plug)
{
	nbd_send(container_of(plug, struct nbd_image, plug));
}

/* Requests */

static void queue(struct nbd_image *nbd, struct nbd_slot *slot)
{
	list_add_tail(&slot->link, &nbd->queued);
	engine_plug(nbd->image.engine, &nbd->plug);
}

static void nbd_submit(struct image *image, struct image_request *req)
{
	struct nbd_image *nbd = nbd_of(image);
	struct list *item = list_pop(&nbd->free);
	struct nbd_slot *slot;

	req->image = image;
	req->cursor = 0;
	req->nr_extents = 0;
	if (!item) {
		list_add_tail(&req->link, &nbd->waiting);
		return;
	}
	slot = container_of(item, struct nbd_slot, link);
	slot->req = req;
	queue(nbd, slot);
}

static void note_unflushed(struct nbd_image *nbd, const struct nbd_slot *slot)
{
	switch (slot->req->op) {
	case IMAGE_FLUSH:
		nbd->unflushed |= slot->err != 0;
		break;
	case IMAGE_WRITE:
	case IMAGE_DISCARD:
	case IMAGE_ZERO:
		nbd->unflushed = true;
		break;
	case IMAGE_READ:
	case IMAGE_STATUS:
		break;
	}
}

void nbd_slot_end(struct nbd_image *nbd, struct nbd_slot *slot)
{
	struct image_request *req = slot->req;
	/* A flush that makes a write durable has that one's count. */
	bool whole = req->op == IMAGE_FLUSH || req->op == IMAGE_STATUS;
	int err = slot->err;
	struct list *item;

	list_del(&slot->link);
	slot->on_wire = false;
	note_unflushed(nbd, slot);
	req->cursor += slot->cmd.length >> SECTOR_SHIFT;
	if (!err && req->cursor < req->count && !whole) {
		queue(nbd, slot);
		return;
	}
	item = list_pop(&nbd->waiting);
	if (item) {
		slot->req = container_of(item, struct image_request, link);
		queue(nbd, slot);
	} else {
		slot->req = NULL;
		list_add(&slot->link, &nbd->free);
	}
	req->done(req, err);
}

static void command(struct nbd_image *nbd, struct nbd_slot *slot)
{
	static const uint16_t types[] = {
		[IMAGE_READ]	= NBD_CMD_READ,
		[IMAGE_WRITE]	= NBD_CMD_WRITE,
		[IMAGE_FLUSH]	= NBD_CMD_FLUSH,
		[IMAGE_DISCARD]	= NBD_CMD_TRIM,
		[IMAGE_ZERO]	= NBD_CMD_WRITE_ZEROES,
		[IMAGE_STATUS]	= NBD_CMD_BLOCK_STATUS,
	};
	const struct image_request *req = slot->req;
	uint32_t max = req->op == IMAGE_STATUS ? STATUS_MAX : nbd->info.max_block;
	uint32_t left = req->count - req->cursor;

	if (req->op == IMAGE_FLUSH)
		left = 0;
	if (left > max >> SECTOR_SHIFT)
		left = max >> SECTOR_SHIFT;
	slot->cmd = (struct nbd_request) {
		.type	= types[req->op],
		.cookie	= ((uint64_t)++slot->generation << 32) |
			  (uint32_t)(slot - nbd->slots),
		.length	= left << SECTOR_SHIFT,
	};
	if (req->op != IMAGE_FLUSH)
		slot->cmd.offset = (req->sector + req->cursor) << SECTOR_SHIFT;
	if (req->op == IMAGE_ZERO && req->keep_space)
		slot->cmd.flags = NBD_CMD_FLAG_NO_HOLE;
	if (req->op == IMAGE_STATUS && req->max_extents == 1)
		slot->cmd.flags = NBD_CMD_FLAG_REQ_ONE;
	slot->err = 0;
	slot->got = 0;
	slot->answered = false;
}

/*
 * True if this server has no such command (the one before it may have had it);
 * slot->err then says what that means.
 */
static bool lacks(const struct nbd_image *nbd, struct nbd_slot *slot)
{
	static const uint16_t needs[] = {
		[IMAGE_FLUSH]	= NBD_FLAG_SEND_FLUSH,
		[IMAGE_DISCARD]	= NBD_FLAG_SEND_TRIM,
		[IMAGE_ZERO]	= NBD_FLAG_SEND_WRITE_ZEROES,
		[IMAGE_STATUS]	= 0,
	};
	enum image_op op = slot->req->op;

	if (!(needs[op] & ~nbd->info.flags) &&
	    (op != IMAGE_STATUS || nbd->info.status))
		return false;
	if (op == IMAGE_ZERO || op == IMAGE_STATUS)
		slot->err = -EOPNOTSUPP;
	return true;
}

/* Sending */

static void sent(struct io_req *io, int err)
{
	struct nbd_image *nbd = container_of(io, struct nbd_image, send);
	struct list *item, batch;

	nbd->send_busy = false;
	if (nbd->state != NBD_UP) {
		nbd_lost(nbd);
		return;
	}
	if (err) {
		nbd_lose(nbd, strerror(-err));
		return;
	}
	list_init(&batch);
	list_splice(&nbd->sending, &batch);
	while ((item = list_pop(&batch))) {
		struct nbd_slot *slot = container_of(item, struct nbd_slot, link);

		slot->sending = false;
		if (slot->answered)
			nbd_slot_end(nbd, slot);
		else
			list_add_tail(&slot->link, &nbd->sent);
	}
	nbd_send(nbd);
}

static int add_iov(struct nbd_image *nbd, struct nbd_slot *slot, int n)
{
	const struct image_request *req = slot->req;

	nbd_put_request(slot->head, &slot->cmd);
	nbd->send_iov[n++] = (struct iovec) {
		.iov_base	= slot->head,
		.iov_len	= sizeof(slot->head),
	};
	if (req->op == IMAGE_WRITE)
		nbd->send_iov[n++] = (struct iovec) {
			.iov_base	= req->buf +
					  ((size_t)req->cursor << SECTOR_SHIFT),
			.iov_len	= slot->cmd.length,
		};
	slot->on_wire = true;
	slot->sending = true;
	list_add_tail(&slot->link, &nbd->sending);
	nbd->unanswered++;
	nbd->large_reads += req->op == IMAGE_READ &&
			    slot->cmd.length >= NBD_LARGE_READ;
	if (req->op == IMAGE_FLUSH)
		nbd->unflushed = false;
	return n;
}

void nbd_send(struct nbd_image *nbd)
{
	struct list batch;
	int n = 0;

	if (nbd->send_busy || list_empty(&nbd->queued))
		return;
	if (nbd->state != NBD_UP) {
		nbd_want(nbd);
		return;
	}
	/* What is queued by an answer from here comes in the next round. */
	list_init(&batch);
	list_splice(&nbd->queued, &batch);
	while (!list_empty(&batch) && n + 2 <= (int)NBD_IOV) {
		struct nbd_slot *slot = container_of(list_pop(&batch),
						     struct nbd_slot, link);

		command(nbd, slot);
		if (lacks(nbd, slot))
			nbd_slot_end(nbd, slot);
		else
			n = add_iov(nbd, slot, n);
	}
	list_splice(&nbd->queued, &batch);
	list_splice(&batch, &nbd->queued);
	if (!n)
		return;
	nbd->send.op = IO_SEND;
	nbd->send.fd = nbd->fd;
	nbd->send.iov = nbd->send_iov;
	nbd->send.iovcnt = n;
	nbd->send.done = sent;
	nbd->send_busy = true;
	engine_queue(nbd->image.engine, &nbd->send);
	nbd_receive(nbd);
}

void nbd_requeue(struct nbd_image *nbd)
{
	struct list *item, again, batch;

	list_init(&again);
	list_init(&batch);
	list_splice(&nbd->sent, &batch);
	list_splice(&nbd->sending, &batch);
	nbd->unanswered = 0;
	nbd->large_reads = 0;
	while ((item = list_pop(&batch))) {
		struct nbd_slot *slot = container_of(item, struct nbd_slot, link);

		slot->sending = false;
		slot->on_wire = false;
		if (slot->answered) {
			nbd_slot_end(nbd, slot);
			continue;
		}
		slot->req->nr_extents = 0;
		list_add_tail(&slot->link, &again);
	}
	list_splice(&nbd->queued, &again);
	list_splice(&again, &nbd->queued);
}

/* What the callbacks submit is not failed too, or they might never end. */
void nbd_fail_all(struct nbd_image *nbd, int err)
{
	struct list *item, slots, requests;

	list_init(&slots);
	list_init(&requests);
	list_splice(&nbd->queued, &slots);
	list_splice(&nbd->waiting, &requests);
	while ((item = list_pop(&slots))) {
		struct nbd_slot *slot = container_of(item, struct nbd_slot, link);

		slot->err = err;
		slot->cmd.length = 0;
		nbd_slot_end(nbd, slot);
	}
	while ((item = list_pop(&requests))) {
		struct image_request *req =
			container_of(item, struct image_request, link);

		req->done(req, err);
	}
}

/* Open and close */

static void fill_info(struct nbd_image *nbd)
{
	uint16_t flags = nbd->info.flags;

	nbd->image.info.sectors = nbd->info.bytes >> SECTOR_SHIFT;
	nbd->image.info.sector_size = nbd->info.min_block;
	nbd->image.info.depth = 1;
	if (flags & NBD_FLAG_SEND_TRIM)
		nbd->image.info.can |= IMAGE_CAN_DISCARD;
	if (flags & NBD_FLAG_SEND_WRITE_ZEROES)
		nbd->image.info.can |= IMAGE_CAN_ZERO;
	if (nbd->info.status)
		nbd->image.info.can |= IMAGE_CAN_STATUS;
	if (!nbd->image.readonly && !(flags & NBD_FLAG_SEND_FLUSH))
		log_warn("the NBD server has no flush: what is durable is its affair path=%s",
			 nbd->name);
}

static void nbd_free(struct nbd_image *nbd)
{
	free(nbd->slots);
	free(nbd->name);
	free(nbd);
}

static int make_slots(struct nbd_image *nbd, unsigned int nr)
{
	list_init(&nbd->free);
	list_init(&nbd->queued);
	list_init(&nbd->sending);
	list_init(&nbd->sent);
	list_init(&nbd->waiting);
	nbd->nr_slots = nr ? nr : 1;
	nbd->slots = calloc(nbd->nr_slots, sizeof(*nbd->slots));
	if (!nbd->slots)
		return -ENOMEM;
	for (unsigned int i = 0; i < nbd->nr_slots; i++)
		list_add_tail(&nbd->slots[i].link, &nbd->free);
	return 0;
}

static int nbd_open(struct image **image, const struct image_open_args *args,
		    struct error *err)
{
	struct nbd_image *nbd = calloc(1, sizeof(*nbd));
	int rc;

	if (!nbd)
		return error_set(err, -ENOMEM, "nbd:%s: out of memory",
				 args->path);
	nbd->fd = -1;
	nbd->plug.unplug = unplug;
	nbd->image.driver = &nbd_driver;
	nbd->image.engine = args->engine;
	nbd->image.stream = args->stream;
	nbd->image.readonly = args->readonly;
	if (make_slots(nbd, args->max_requests) ||
	    asprintf(&nbd->name, "%s:%s", strncmp(args->path, "///", 3) ?
		     "nbd" : "nbd+unix", args->path) < 0) {
		nbd->name = NULL;
		rc = error_set(err, -ENOMEM, "nbd:%s: out of memory",
			       args->path);
		goto out;
	}
	rc = nbd_parse_address(&nbd->address, nbd->name, args->path, err);
	if (!rc)
		rc = nbd_resolve(nbd, err);
	if (!rc)
		rc = nbd_connect(nbd, err);
	if (rc)
		goto out;
	fill_info(nbd);
	*image = &nbd->image;
	return 0;
out:
	nbd_free(nbd);
	return rc;
}

static int nbd_close(struct image *image, struct error *err)
{
	struct nbd_image *nbd = nbd_of(image);
	int rc = 0;

	engine_plug_cancel(image->engine, &nbd->plug);
	if (nbd->unflushed) {
		rc = nbd_flush_now(nbd);
		if (rc) {
			nbd_disconnect(nbd);
			rc = nbd_connect(nbd, err);
			if (!rc)
				rc = nbd_flush_now(nbd);
		}
		if (rc)
			error_set(err, rc, "%s: final flush: %s", nbd->name,
				  strerror(-rc));
	}
	nbd_disconnect(nbd);
	nbd_free(nbd);
	return rc;
}

const struct image_driver nbd_driver = {
	.type		= "nbd",
	.alias		= "nbd+unix",
	.check		= nbd_check,
	.open		= nbd_open,
	.close		= nbd_close,
	.submit		= nbd_submit,
};
