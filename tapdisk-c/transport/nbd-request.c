/* SPDX-License-Identifier: LGPL-2.1-only */
#include <errno.h>
#include <string.h>

#include "transport/nbd-internal.h"

/* From here on a write's data is worth a system call of its own. */
#define BULK_BYTES (32u << 10)

#define STATUS_BYTES (2u * NBD_PAGE)

/* Pools: in the connection's part, each entry made when it is first needed. */

static struct nbd_command *command_take(struct nbd_conn *conn)
{
	struct list *item = list_pop(&conn->free_commands);
	struct nbd_command *cmd;

	if (item)
		cmd = container_of(item, struct nbd_command, link);
	else if (conn->nr_commands < NBD_COMMANDS)
		cmd = &conn->commands[conn->nr_commands++];
	else
		return NULL;
	list_init(&cmd->link);
	list_init(&cmd->ordered);
	cmd->taken = 0;
	cmd->pieces = 0;
	cmd->losses = vbd_losses(conn->nbd->vbd);
	cmd->err = 0;
	cmd->refused = false;
	cmd->stream = false;
	cmd->begun = false;
	return cmd;
}

void nbd_command_give(struct nbd_conn *conn, struct nbd_command *cmd)
{
	list_del(&cmd->link);
	list_add(&cmd->link, &conn->free_commands);
}

struct nbd_piece *nbd_piece_take(struct nbd_conn *conn,
				 struct nbd_command *cmd, uint32_t len)
{
	bool again = !list_empty(&conn->free_pieces);
	struct nbd_piece *piece;
	uint16_t number = 0;
	uint8_t *buf = NULL;

	if (!again && conn->nr_pieces == NBD_PIECES)
		return NULL;
	if (len) {
		buf = nbd_buffer_take(&conn->buffers, len, &number);
		if (!buf)
			return NULL;
	}
	if (again)
		piece = container_of(list_pop(&conn->free_pieces),
				     struct nbd_piece, link);
	else
		piece = &conn->pieces[conn->nr_pieces++];
	list_init(&piece->link);
	list_init(&piece->order);
	piece->conn = conn;
	piece->cmd = cmd;
	piece->buf = buf;
	piece->len = len;
	piece->at = cmd->taken;
	piece->filled = 0;
	piece->send = NULL;
	piece->send_len = 0;
	piece->err = 0;
	piece->done = false;
	piece->head_len = 0;
	piece->vbd.image.buf = buf;
	piece->vbd.image.buffer = number;
	piece->vbd.image.lent = NULL;
	piece->vbd.fua = false;
	cmd->pieces++;
	return piece;
}

void nbd_piece_give(struct nbd_piece *piece)
{
	struct nbd_conn *conn = piece->conn;

	if (piece->buf)
		nbd_buffer_give(&conn->buffers, piece->buf, piece->len);
	nbd_piece_return(piece);
	list_del(&piece->link);
	list_add(&piece->link, &conn->free_pieces);
}

/* What it lost may be what they wrote. */
static void others_lose(const struct nbd_conn *conn)
{
	list_for_each(pos, &conn->nbd->conns) {
		struct nbd_conn *other = container_of(pos, struct nbd_conn, link);

		if (other != conn)
			other->lost = true;
	}
}

static void vbd_done(struct vbd_request *req, int err)
{
	struct nbd_piece *piece = container_of(req, struct nbd_piece, vbd);

	if (err && req->image.op == IMAGE_FLUSH)
		others_lose(piece->conn);
	piece->conn->inflight--;
	nbd_piece_done(piece, err);
}

static void submit(struct nbd_piece *piece, enum image_op op, uint64_t offset,
		   uint32_t len)
{
	struct nbd_conn *conn = piece->conn;
	struct image_request *image = &piece->vbd.image;

	image->op = op;
	image->lend = op == IMAGE_READ;
	image->sector = offset >> SECTOR_SHIFT;
	image->count = len >> SECTOR_SHIFT;
	piece->vbd.from = &conn->nbd->transport;
	piece->vbd.done = vbd_done;
	conn->inflight++;
	vbd_submit(conn->nbd->vbd, &piece->vbd);
}

void nbd_flush_for(struct nbd_piece *piece)
{
	piece->vbd.fua = true;
	/* Another one's took the error of what its pieces wrote, maybe. */
	if (piece->cmd->losses != vbd_losses(piece->conn->nbd->vbd)) {
		piece->vbd.op = IMAGE_FLUSH;
		nbd_piece_done(piece, -EIO);
		return;
	}
	submit(piece, IMAGE_FLUSH, 0, 0);
}

/* Whether a request can be served */

static bool changes(unsigned int type)
{
	return type == NBD_CMD_WRITE || type == NBD_CMD_TRIM ||
	       type == NBD_CMD_WRITE_ZEROES;
}

static int check_flags(const struct nbd_conn *conn,
		       const struct nbd_request *req)
{
	unsigned int allowed = NBD_CMD_FLAG_FUA;

	switch (req->type) {
	case NBD_CMD_READ:
		if (conn->handshake.structured)
			allowed |= NBD_CMD_FLAG_DF;
		break;
	case NBD_CMD_WRITE:
	case NBD_CMD_FLUSH:
		break;
	case NBD_CMD_TRIM:
		if (!(conn->nbd->info.can & IMAGE_CAN_DISCARD))
			return -EOPNOTSUPP;
		break;
	case NBD_CMD_WRITE_ZEROES:
		allowed |= NBD_CMD_FLAG_NO_HOLE;
		if (!(conn->nbd->info.can & IMAGE_CAN_ZERO))
			return -EOPNOTSUPP;
		break;
	case NBD_CMD_BLOCK_STATUS:
		allowed |= NBD_CMD_FLAG_REQ_ONE;
		if (!conn->handshake.allocation)
			return -EINVAL;
		if (!(conn->nbd->info.can & IMAGE_CAN_STATUS))
			return -EOPNOTSUPP;
		break;
	default:
		return -EINVAL;
	}
	return req->flags & ~allowed ? -EINVAL : 0;
}

static int check(const struct nbd_conn *conn, const struct nbd_request *req)
{
	const struct nbd *nbd = conn->nbd;
	uint64_t bytes = nbd->info.sectors << SECTOR_SHIFT;
	int rc;

	if (changes(req->type) && nbd->readonly)
		return -EPERM;
	rc = check_flags(conn, req);
	if (rc || req->type == NBD_CMD_FLUSH)
		return rc;
	if (!req->length ||
	    (req->offset | req->length) & (nbd->info.sector_size - 1))
		return -EINVAL;
	if (req->offset > bytes || req->length > bytes - req->offset)
		return changes(req->type) ? -ENOSPC : -EINVAL;
	if (req->type == NBD_CMD_WRITE)
		return req->length > NBD_MAX_REQUEST ? -EINVAL : 0;
	if (req->type != NBD_CMD_READ)
		return 0;
	if (req->length > NBD_MAX_REQUEST ||
	    (req->flags & NBD_CMD_FLAG_DF && req->length > NBD_CHUNK_BYTES))
		return -EOVERFLOW;
	return 0;
}

/* From a command to its pieces: true once all are made. */

static uint32_t received(const struct nbd_conn *conn)
{
	return conn->rx_end - conn->rx_start;
}

static bool refuse(struct nbd_conn *conn, struct nbd_command *cmd)
{
	uint32_t n = cmd->req.type == NBD_CMD_WRITE ?
		     cmd->req.length - cmd->taken : 0;
	struct nbd_piece *piece;

	/* The data of a write that is refused is on its way. */
	if (n > received(conn))
		n = received(conn);
	conn->rx_start += n;
	cmd->taken += n;
	if (cmd->req.type == NBD_CMD_WRITE && cmd->taken < cmd->req.length)
		return false;
	cmd->taken = cmd->req.length;
	piece = nbd_piece_take(conn, cmd, 0);
	if (!piece)
		return false;
	conn->cmd = NULL;
	nbd_piece_done(piece, cmd->err);
	return true;
}

/* Whether the piece has all of its data. */
static bool fill(struct nbd_conn *conn, struct nbd_piece *piece)
{
	uint32_t n = piece->len - piece->filled;

	if (n > received(conn))
		n = received(conn);
	memcpy(piece->buf + piece->filled, conn->rx + conn->rx_start, n);
	conn->rx_start += n;
	piece->filled += n;
	return piece->filled == piece->len;
}

static bool transfer(struct nbd_conn *conn, struct nbd_command *cmd)
{
	bool write = cmd->req.type == NBD_CMD_WRITE, last = false;

	while (!last && conn->state == NBD_SERVING) {
		struct nbd_piece *piece = conn->fill;
		uint32_t len = cmd->req.length - cmd->taken;

		if (len > NBD_CHUNK_BYTES)
			len = NBD_CHUNK_BYTES;
		if (!piece)
			piece = nbd_piece_take(conn, cmd, len);
		if (!piece)
			return false;
		if (write) {
			conn->fill = piece;
			if (!fill(conn, piece))
				return false;
			conn->fill = NULL;
		}
		cmd->taken += len;
		last = cmd->taken == cmd->req.length;
		/* A flush at the end serves all of its pieces. */
		piece->vbd.fua = write && len == cmd->req.length &&
				 cmd->req.flags & NBD_CMD_FLAG_FUA;
		if (cmd->stream)
			list_add_tail(&piece->order, &cmd->ordered);
		/* The answer may be there at once, and the command gone. */
		if (last)
			conn->cmd = NULL;
		submit(piece, write ? IMAGE_WRITE : IMAGE_READ,
		       cmd->req.offset + piece->at, len);
	}
	return last;
}

static enum image_op op_of(unsigned int type)
{
	switch (type) {
	case NBD_CMD_TRIM:
		return IMAGE_DISCARD;
	case NBD_CMD_WRITE_ZEROES:
		return IMAGE_ZERO;
	case NBD_CMD_BLOCK_STATUS:
		return IMAGE_STATUS;
	default:
		return IMAGE_FLUSH;
	}
}

static bool without_data(struct nbd_conn *conn, struct nbd_command *cmd)
{
	const struct nbd_request *req = &cmd->req;
	bool status = req->type == NBD_CMD_BLOCK_STATUS;
	struct nbd_piece *piece = nbd_piece_take(conn, cmd,
						 status ? STATUS_BYTES : 0);

	if (!piece)
		return false;
	if (status) {
		piece->vbd.image.extents = (void *)piece->buf;
		piece->vbd.image.max_extents =
			req->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : NBD_MAX_EXTENTS;
		piece->vbd.image.nr_extents = 0;
	}
	piece->vbd.image.keep_space = req->flags & NBD_CMD_FLAG_NO_HOLE;
	piece->vbd.fua = changes(req->type) && req->flags & NBD_CMD_FLAG_FUA;
	cmd->taken = req->length;
	conn->cmd = NULL;
	if (req->type == NBD_CMD_FLUSH && conn->lost) {
		conn->lost = false;
		nbd_piece_done(piece, -EIO);
		return true;
	}
	if (req->type == NBD_CMD_FLUSH)
		submit(piece, IMAGE_FLUSH, 0, 0);
	else
		submit(piece, op_of(req->type), req->offset, req->length);
	return true;
}

static bool go_on(struct nbd_conn *conn)
{
	struct nbd_command *cmd = conn->cmd;

	if (cmd->refused)
		return refuse(conn, cmd);
	if (cmd->req.type <= NBD_CMD_WRITE)
		return transfer(conn, cmd);
	return without_data(conn, cmd);
}

static bool begin(struct nbd_conn *conn)
{
	struct nbd_command *cmd;
	struct nbd_request req;

	if (!nbd_get_request(&req, conn->rx + conn->rx_start)) {
		nbd_conn_shut(conn);
		return false;
	}
	if (req.type == NBD_CMD_DISC) {
		conn->state = NBD_LAST;
		return false;
	}
	cmd = command_take(conn);
	if (!cmd)
		return false;
	conn->rx_start += NBD_REQUEST_BYTES;
	cmd->req = req;
	cmd->err = check(conn, &req);
	cmd->refused = cmd->err;
	if (req.type == NBD_CMD_READ && !cmd->refused &&
	    !conn->handshake.structured && req.length > NBD_CHUNK_BYTES) {
		cmd->stream = true;
		list_add_tail(&cmd->link, &conn->streams);
	}
	conn->bulk = req.type == NBD_CMD_WRITE && req.length >= BULK_BYTES;
	conn->cmd = cmd;
	return true;
}

void nbd_take_requests(struct nbd_conn *conn)
{
	while (conn->state == NBD_SERVING && !conn->nbd->held) {
		if (conn->cmd) {
			if (!go_on(conn))
				return;
		} else if (received(conn) < NBD_REQUEST_BYTES || !begin(conn)) {
			return;
		}
	}
}
