/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * What an NBD server sends. Heads and other numbers are looked at in rx, where
 * a round's small replies come together; a read's data that is not in rx yet is
 * received into the request's buffer, and what follows it into rx, by one call.
 *
 * The server is not trusted: a cookie must be a command's that waits, a chunk
 * must lie in what was asked for and be of a type that answers it, and a read
 * is complete when as many bytes came as it has. All else ends the connection.
 */
#include <errno.h>
#include <string.h>

#include "common/bytes.h"
#include "drivers/nbd.h"

#define ERROR_MAX	(4u + 2 + 4096 + 8)	/* bytes of an error chunk */
#define EXTENTS_MAX	(4u + (8u << 20))	/* bytes of a status chunk: 2^20 extents */

enum verdict { MORE, GO_ON, BROKEN };

static struct nbd_slot *find(struct nbd_image *nbd, uint64_t cookie)
{
	uint32_t i = (uint32_t)cookie;
	struct nbd_slot *slot;

	if (i >= nbd->nr_slots)
		return NULL;
	slot = &nbd->slots[i];
	return slot->on_wire && slot->cmd.cookie == cookie && !slot->answered ?
	       slot : NULL;
}

static void note_error(struct nbd_slot *slot, int err)
{
	if (!slot->err)
		slot->err = err;
}

static uint8_t *slot_data(const struct nbd_slot *slot)
{
	return slot->req->buf + ((size_t)slot->req->cursor << SECTOR_SHIFT);
}

/* The whole answer of the slot is there. */
static enum verdict answer(struct nbd_image *nbd, struct nbd_slot *slot)
{
	if (slot->cmd.type == NBD_CMD_READ && !slot->err &&
	    slot->got != slot->cmd.length)
		return BROKEN;
	if (slot->cmd.type == NBD_CMD_BLOCK_STATUS && !slot->err &&
	    !slot->req->nr_extents)
		return BROKEN;
	/* It goes down as the others do, which await the next server. */
	if (slot->err == -ESHUTDOWN)
		return BROKEN;
	slot->answered = true;
	nbd->answered = true;
	nbd->unanswered--;
	nbd->large_reads -= slot->cmd.type == NBD_CMD_READ &&
			    slot->cmd.length >= NBD_LARGE_READ;
	if (!slot->sending)
		nbd_slot_end(nbd, slot);
	return GO_ON;
}

static enum verdict payload_end(struct nbd_image *nbd)
{
	nbd->rx_state = NBD_RX_HEAD;
	return nbd->reply.last ? answer(nbd, nbd->rx_slot) : GO_ON;
}

/* len bytes of the slot's data, from its byte at on, come next. */
static enum verdict expect_data(struct nbd_image *nbd, uint32_t at, uint32_t len)
{
	struct nbd_slot *slot = nbd->rx_slot;

	if (at > slot->cmd.length || len > slot->cmd.length - at ||
	    len > slot->cmd.length - slot->got || !len)
		return BROKEN;
	slot->got += len;
	nbd->data = slot_data(slot) + at;
	nbd->data_left = len;
	nbd->rx_state = NBD_RX_DATA;
	return GO_ON;
}

static enum verdict chunk(struct nbd_image *nbd)
{
	const struct nbd_reply *r = &nbd->reply;
	uint16_t asked = nbd->rx_slot->cmd.type;

	nbd->rx_left = r->length;
	switch (r->type) {
	case NBD_CHUNK_NONE:
		return r->length || !r->last ? BROKEN : payload_end(nbd);
	case NBD_CHUNK_OFFSET_DATA:
		nbd->rx_state = NBD_RX_OFFSET;
		return asked == NBD_CMD_READ && r->length > 8 ? GO_ON : BROKEN;
	case NBD_CHUNK_OFFSET_HOLE:
		nbd->rx_state = NBD_RX_HOLE;
		return asked == NBD_CMD_READ && r->length == 12 ? GO_ON : BROKEN;
	case NBD_CHUNK_BLOCK_STATUS:
		nbd->rx_state = NBD_RX_CONTEXT;
		return asked == NBD_CMD_BLOCK_STATUS && r->length >= 12 &&
		       r->length <= EXTENTS_MAX && r->length % 8 == 4 &&
		       !nbd->rx_slot->req->nr_extents ? GO_ON : BROKEN;
	default:
		break;
	}
	/* Other types are known to be errors by their highest bit. */
	nbd->rx_state = NBD_RX_ERROR;
	return r->type & NBD_CHUNK_IS_ERROR && r->length >= 6 &&
	       r->length <= ERROR_MAX ? GO_ON : BROKEN;
}

static enum verdict head(struct nbd_image *nbd, const uint8_t *p)
{
	struct nbd_reply *r = &nbd->reply;

	nbd_get_reply(r, p);
	nbd->rx_slot = find(nbd, r->cookie);
	if (!nbd->rx_slot || (r->chunk && !nbd->info.structured))
		return BROKEN;
	if (r->chunk)
		return chunk(nbd);
	if (r->err) {
		note_error(nbd->rx_slot, r->err);
		return payload_end(nbd);
	}
	switch (nbd->rx_slot->cmd.type) {
	case NBD_CMD_READ:
		if (nbd->info.structured)
			return BROKEN;
		return expect_data(nbd, 0, nbd->rx_slot->cmd.length);
	case NBD_CMD_BLOCK_STATUS:
		return BROKEN;
	default:
		return payload_end(nbd);
	}
}

/* The offset in p within what the slot reads. */
static bool offset_in(const struct nbd_slot *slot, const uint8_t *p, uint32_t *at)
{
	uint64_t offset = get_be64(p) - slot->cmd.offset;

	*at = (uint32_t)offset;
	return offset < slot->cmd.length;
}

static enum verdict hole(struct nbd_image *nbd, const uint8_t *p)
{
	struct nbd_slot *slot = nbd->rx_slot;
	uint32_t at, len = get_be32(p + 8);

	if (!offset_in(slot, p, &at) || expect_data(nbd, at, len) != GO_ON)
		return BROKEN;
	memset(nbd->data, 0, len);
	return payload_end(nbd);
}

/*
 * Bytes to sectors. A sector that an extent shares with another ends the
 * answer, or is data if it is the first.
 */
static enum verdict extent(struct nbd_image *nbd, const uint8_t *p)
{
	struct nbd_slot *slot = nbd->rx_slot;
	struct image_request *req = slot->req;
	uint32_t flags = get_be32(p + 4), len = get_be32(p);
	uint32_t left = slot->cmd.length - slot->got;

	if (!len)
		return BROKEN;
	nbd->rx_left -= NBD_EXTENT_BYTES;
	if (left && req->nr_extents < req->max_extents) {
		struct image_extent *e = &req->extents[req->nr_extents];

		len = len < left ? len : left;
		*e = (struct image_extent) {
			.count	= len >> SECTOR_SHIFT,
			/* A hole that is not said to be zeros may hold anything. */
			.hole	= !(~flags & (NBD_STATE_HOLE | NBD_STATE_ZERO)),
			.zero	= flags & NBD_STATE_ZERO,
		};
		if (!e->count && !req->nr_extents)
			*e = (struct image_extent) { .count = 1 };
		req->nr_extents += e->count != 0;
		slot->got = len % SECTOR_SIZE ? slot->cmd.length : slot->got + len;
	}
	return nbd->rx_left ? GO_ON : payload_end(nbd);
}

static enum verdict take_data(struct nbd_image *nbd)
{
	uint32_t n = nbd->rx_to - nbd->rx_from;

	n = n < nbd->data_left ? n : nbd->data_left;
	memcpy(nbd->data, nbd->rx + nbd->rx_from, n);
	nbd->data += n;
	nbd->data_left -= n;
	nbd->rx_from += n;
	return nbd->data_left ? MORE : payload_end(nbd);
}

static enum verdict skip(struct nbd_image *nbd)
{
	uint32_t n = nbd->rx_to - nbd->rx_from;

	n = n < nbd->rx_left ? n : nbd->rx_left;
	nbd->rx_left -= n;
	nbd->rx_from += n;
	return nbd->rx_left ? MORE : payload_end(nbd);
}

/* Bytes that the next step looks at together. */
static uint32_t needs(const struct nbd_image *nbd, const uint8_t *p, uint32_t have)
{
	switch (nbd->rx_state) {
	case NBD_RX_HEAD:
		return have < 4 ? 4 : (uint32_t)nbd_reply_bytes(p);
	case NBD_RX_OFFSET:
	case NBD_RX_EXTENT:
		return 8;
	case NBD_RX_HOLE:
		return 12;
	case NBD_RX_ERROR:
		return 6;
	case NBD_RX_CONTEXT:
		return 4;
	case NBD_RX_DATA:
	case NBD_RX_SKIP:
		break;
	}
	return 1;
}

static enum verdict step(struct nbd_image *nbd)
{
	uint32_t have = nbd->rx_to - nbd->rx_from, at;
	const uint8_t *p = nbd->rx + nbd->rx_from;
	uint32_t need = needs(nbd, p, have);

	if (!need)
		return BROKEN;
	if (have < need)
		return MORE;
	if (nbd->rx_state != NBD_RX_DATA && nbd->rx_state != NBD_RX_SKIP)
		nbd->rx_from += need;
	switch (nbd->rx_state) {
	case NBD_RX_HEAD:
		return head(nbd, p);
	case NBD_RX_OFFSET:
		return offset_in(nbd->rx_slot, p, &at) ?
		       expect_data(nbd, at, nbd->rx_left - 8) : BROKEN;
	case NBD_RX_HOLE:
		return hole(nbd, p);
	case NBD_RX_ERROR:
		if (!get_be32(p))
			return BROKEN;
		note_error(nbd->rx_slot, nbd_wire_error(get_be32(p)));
		nbd->rx_left -= 6;
		nbd->rx_state = NBD_RX_SKIP;
		return nbd->rx_left ? GO_ON : payload_end(nbd);
	case NBD_RX_CONTEXT:
		if (get_be32(p) != nbd->info.context)
			return BROKEN;
		nbd->rx_left -= 4;
		nbd->rx_state = NBD_RX_EXTENT;
		return GO_ON;
	case NBD_RX_EXTENT:
		return extent(nbd, p);
	case NBD_RX_DATA:
		return take_data(nbd);
	case NBD_RX_SKIP:
		return skip(nbd);
	}
	return BROKEN;
}

static void received(struct io_req *io, int err)
{
	struct nbd_image *nbd = container_of(io, struct nbd_image, recv);
	enum verdict v = GO_ON;
	size_t n = io->transferred, direct;

	nbd->recv_busy = false;
	if (nbd->state != NBD_UP) {
		nbd_lost(nbd);
		return;
	}
	if (err || !n) {
		nbd_lose(nbd, err ? strerror(-err) : "ended by the server");
		return;
	}
	if (nbd->rx_state == NBD_RX_DATA) {
		direct = n < nbd->data_left ? n : nbd->data_left;
		nbd->data += direct;
		nbd->data_left -= (uint32_t)direct;
		n -= direct;
		if (!nbd->data_left)
			v = payload_end(nbd);
	}
	nbd->rx_to += (uint32_t)n;
	while (v == GO_ON && nbd->state == NBD_UP)
		v = step(nbd);
	if (v == BROKEN)
		nbd_lose(nbd, "the server sent what makes no sense, or goes down");
	nbd_receive(nbd);
}

void nbd_receive(struct nbd_image *nbd)
{
	uint32_t have = nbd->rx_to - nbd->rx_from;
	uint32_t room = nbd->large_reads ? NBD_RX_SMALL : NBD_RX_BYTES;
	int n = 0;

	if (nbd->state != NBD_UP || nbd->recv_busy || !nbd->unanswered)
		return;
	memmove(nbd->rx, nbd->rx + nbd->rx_from, have);
	nbd->rx_from = 0;
	nbd->rx_to = have;
	/* In a payload all of rx has been taken. */
	if (nbd->rx_state == NBD_RX_DATA)
		nbd->recv_iov[n++] = (struct iovec) {
			.iov_base	= nbd->data,
			.iov_len	= nbd->data_left,
		};
	nbd->recv_iov[n++] = (struct iovec) {
		.iov_base	= nbd->rx + have,
		.iov_len	= room - have,
	};
	nbd->recv.op = IO_RECV;
	nbd->recv.fd = nbd->fd;
	nbd->recv.iov = nbd->recv_iov;
	nbd->recv.iovcnt = n;
	nbd->recv.done = received;
	nbd->recv_busy = true;
	engine_queue(nbd->image.engine, &nbd->recv);
}
