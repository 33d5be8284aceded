/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * How a command is answered:
 *
 *   structured read    a chunk for each piece, as they come
 *   simple read        one reply; of several pieces: in order, with nothing
 *                      between them, and an error that comes after the first
 *                      can only be said by ending the connection
 *   all else           one reply when the last piece is done
 */
#include <errno.h>
#include <string.h>

#include "common/bytes.h"
#include "transport/nbd-internal.h"

/* So much at once: what was sent makes room for what comes next. */
#define SEND_BYTES (512u << 10)

static bool complete(const struct nbd_command *cmd)
{
	return !cmd->pieces && cmd->taken == cmd->req.length;
}

static void ready(struct nbd_conn *conn, struct nbd_piece *piece)
{
	list_add_tail(&piece->link, conn->streaming ? &conn->blocked :
						      &conn->ready);
}

static const uint8_t *data_of(const struct nbd_piece *piece)
{
	const struct image_request *image = &piece->vbd.image;

	return image->lent ? image->lent : piece->buf;
}

static void put_error(struct nbd_piece *piece, int err)
{
	const struct nbd_command *cmd = piece->cmd;

	piece->head_len = (uint8_t)(piece->conn->handshake.structured ?
		nbd_put_error(piece->head, true, cmd->req.cookie, err) :
		nbd_put_simple(piece->head, cmd->req.cookie, err));
}

static void read_chunk(struct nbd_piece *piece, bool last)
{
	const struct nbd_request *req = &piece->cmd->req;
	uint64_t at = req->offset + piece->at;

	if (piece->err) {
		piece->head_len = (uint8_t)nbd_put_error_at(piece->head, last,
				  req->cookie, piece->err, at);
		return;
	}
	piece->head_len = (uint8_t)nbd_put_data(piece->head, last, req->cookie,
						at, piece->len);
	piece->send = data_of(piece);
	piece->send_len = piece->len;
}

/* The VBD's extents lie in the first page, what goes to the client in the second. */
static void put_status(struct nbd_piece *piece)
{
	const struct image_request *image = &piece->vbd.image;
	uint8_t *out = piece->buf + NBD_PAGE, *p = out + 4;
	uint32_t left = image->count;

	put_be32(out, NBD_CONTEXT_ALLOCATION);
	for (unsigned int i = 0; i < image->nr_extents && left; i++) {
		const struct image_extent *e = &image->extents[i];
		uint32_t count = e->count < left ? e->count : left;

		put_be32(p, count << SECTOR_SHIFT);
		put_be32(p + 4, (e->hole ? NBD_STATE_HOLE : 0) |
				(e->zero ? NBD_STATE_ZERO : 0));
		p += NBD_EXTENT_BYTES;
		left -= count;
	}
	piece->send = out;
	piece->send_len = (uint32_t)(p - out);
	piece->head_len = (uint8_t)nbd_put_chunk(piece->head,
			  NBD_CHUNK_BLOCK_STATUS, true, piece->cmd->req.cookie,
			  piece->send_len);
}

/* The last piece carries the answer of all. */
static void answer(struct nbd_piece *piece)
{
	struct nbd_conn *conn = piece->conn;
	struct nbd_command *cmd = piece->cmd;
	const struct nbd_request *req = &cmd->req;

	if (req->type == NBD_CMD_WRITE && !cmd->err &&
	    req->flags & NBD_CMD_FLAG_FUA && req->length > NBD_CHUNK_BYTES &&
	    piece->vbd.op == IMAGE_WRITE) {
		cmd->pieces++;
		nbd_flush_for(piece);
		return;
	}
	if (cmd->err) {
		put_error(piece, cmd->err);
	} else if (req->type == NBD_CMD_BLOCK_STATUS) {
		put_status(piece);
	} else if (conn->handshake.structured) {
		piece->head_len = (uint8_t)nbd_put_chunk(piece->head,
				  NBD_CHUNK_NONE, true, req->cookie, 0);
	} else {
		piece->head_len = (uint8_t)nbd_put_simple(piece->head,
							  req->cookie, 0);
		if (req->type == NBD_CMD_READ) {
			piece->send = data_of(piece);
			piece->send_len = piece->len;
		}
	}
	nbd_command_give(conn, cmd);
	ready(conn, piece);
}

static void one_of_all(struct nbd_piece *piece)
{
	struct nbd_command *cmd = piece->cmd;

	cmd->pieces--;
	if (complete(cmd))
		answer(piece);
	else
		nbd_piece_give(piece);
}

/* Streams */

/* No byte of it is out: it becomes one error reply when all pieces are done. */
static void stream_fail(struct nbd_command *cmd)
{
	cmd->stream = false;
	list_del(&cmd->link);
	list_for_each_safe(pos, next, &cmd->ordered) {
		struct nbd_piece *piece = container_of(pos, struct nbd_piece,
						       order);

		list_del(&piece->order);
		if (piece->done)
			one_of_all(piece);
	}
}

/* True if the command has come to its end, one way or the other. */
static bool stream_advance(struct nbd_conn *conn, struct nbd_command *cmd)
{
	while (!list_empty(&cmd->ordered)) {
		struct nbd_piece *piece = container_of(cmd->ordered.next,
						       struct nbd_piece, order);

		if (!piece->done)
			return false;
		if (piece->err && cmd->begun) {
			nbd_conn_shut(conn);
			return false;
		}
		if (piece->err) {
			stream_fail(cmd);
			return true;
		}
		list_del(&piece->order);
		if (!cmd->begun)
			piece->head_len = (uint8_t)nbd_put_simple(piece->head,
						cmd->req.cookie, 0);
		piece->send = data_of(piece);
		piece->send_len = piece->len;
		list_add_tail(&piece->link, &conn->ready);
		cmd->begun = true;
		conn->streaming = cmd;
		cmd->pieces--;
	}
	if (!complete(cmd))
		return false;
	conn->streaming = NULL;
	nbd_command_give(conn, cmd);
	list_splice(&conn->blocked, &conn->ready);
	return true;
}

static void streams_go(struct nbd_conn *conn)
{
	bool ended;

	do {
		ended = false;
		list_for_each_safe(pos, next, &conn->streams) {
			struct nbd_command *cmd =
				container_of(pos, struct nbd_command, link);

			if (!conn->streaming || conn->streaming == cmd)
				ended |= stream_advance(conn, cmd);
			if (conn->state == NBD_DEAD)
				return;
		}
	} while (ended);
}

void nbd_piece_done(struct nbd_piece *piece, int err)
{
	struct nbd_conn *conn = piece->conn;
	struct nbd_command *cmd = piece->cmd;

	nbd_conn_kick(conn);
	/* Its part is given back as a whole. */
	if (conn->state == NBD_DEAD)
		return;
	piece->err = err;
	piece->done = true;
	if (err && !cmd->err)
		cmd->err = err;
	if (cmd->stream) {
		streams_go(conn);
	} else if (cmd->req.type == NBD_CMD_READ && !cmd->refused &&
		   conn->handshake.structured) {
		cmd->pieces--;
		read_chunk(piece, complete(cmd));
		if (complete(cmd))
			nbd_command_give(conn, cmd);
		ready(conn, piece);
	} else {
		one_of_all(piece);
	}
}

/* Sending */

int nbd_gather(struct nbd_conn *conn)
{
	struct iovec *iov = conn->iov;
	size_t bytes = 0;
	int n = 0;

	if (conn->answer_len) {
		iov[n++] = (struct iovec) { conn->answer, conn->answer_len };
		return n;
	}
	while (!list_empty(&conn->ready) && n + 2 <= (int)NBD_MAX_IOV &&
	       bytes < SEND_BYTES) {
		struct nbd_piece *piece = container_of(list_pop(&conn->ready),
						       struct nbd_piece, link);

		if (piece->head_len)
			iov[n++] = (struct iovec) { piece->head,
						    piece->head_len };
		if (piece->send_len)
			iov[n++] = (struct iovec) { (void *)(uintptr_t)piece->send,
						    piece->send_len };
		bytes += piece->head_len + piece->send_len;
		list_add_tail(&piece->link, &conn->in_send);
	}
	return n;
}

void nbd_sent(struct nbd_conn *conn)
{
	struct list *item;

	conn->answer_len = 0;
	while ((item = list_pop(&conn->in_send)))
		nbd_piece_give(container_of(item, struct nbd_piece, link));
}
