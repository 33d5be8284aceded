/* SPDX-License-Identifier: LGPL-2.1-only */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "transport/nbd-internal.h"

#define SOCKET_BYTES (1 << 20)	/* the kernel doubles it, for its own */
#define HANDSHAKE_NS 10000000000ull

static_assert(sizeof(struct nbd_conn) <= NBD_CONN_BYTES, "part of a connection");
static_assert(NBD_RX_BYTES >= NBD_OPTION_MAX + 16, "an option fits");
static_assert(NBD_MAX_EXTENTS * sizeof(struct image_extent) <= NBD_PAGE &&
	      4 + NBD_MAX_EXTENTS * NBD_EXTENT_BYTES <= NBD_PAGE, "extents fit");

void nbd_conn_kick(struct nbd_conn *conn)
{
	if (list_empty(&conn->kick))
		list_add_tail(&conn->kick, &conn->nbd->kicked);
}

void nbd_conn_shut(struct nbd_conn *conn)
{
	if (conn->state == NBD_DEAD)
		return;
	conn->state = NBD_DEAD;
	engine_timer_cancel(conn->nbd->engine, &conn->deadline);
	shutdown(conn->fd, SHUT_RDWR);
	for (unsigned int i = 0; i < conn->nr_pieces; i++)
		conn->pieces[i].vbd.unwanted = true;
	if (conn->inflight)
		vbd_drop_unwanted(conn->nbd->vbd);
	nbd_conn_kick(conn);
}

void nbd_conn_look(struct nbd_conn *conn)
{
	struct pollfd p = { .fd = conn->fd };

	if (poll(&p, 1, 0) > 0)
		nbd_conn_shut(conn);
}

/* Receiving */

static void recv_done(struct io_req *req, int err)
{
	struct nbd_conn *conn = container_of(req, struct nbd_conn, recv);
	uint32_t n = (uint32_t)req->transferred;

	conn->receiving = false;
	if (!conn->active)
		nbd_conn_active(conn);
	nbd_conn_kick(conn);
	if (err || !n) {
		nbd_conn_shut(conn);
		return;
	}
	if (conn->fill) {
		uint32_t rest = conn->fill->len - conn->fill->filled;

		if (rest > n)
			rest = n;
		conn->fill->filled += rest;
		n -= rest;
	}
	conn->rx_end += n;
}

/* Not while a request waits for room, or all for the end of a pause. */
static bool may_receive(const struct nbd_conn *conn)
{
	uint32_t have = conn->rx_end - conn->rx_start;

	if (conn->receiving)
		return false;
	if (conn->state == NBD_HANDSHAKE)
		return !conn->answer_len;
	if (conn->state != NBD_SERVING)
		return false;
	/* A full piece waits for the end of a pause: nothing to receive is no end. */
	if (conn->fill)
		return !have && conn->fill->filled < conn->fill->len;
	if (conn->cmd)
		return !have && conn->cmd->refused &&
		       conn->cmd->taken < conn->cmd->req.length;
	return have < NBD_REQUEST_BYTES;
}

static void receive(struct nbd_conn *conn)
{
	struct nbd_piece *fill = conn->fill;
	uint32_t room;
	int n = 0;

	conn->rx_end -= conn->rx_start;
	if (conn->rx_start && conn->rx_end)
		memmove(conn->rx, conn->rx + conn->rx_start, conn->rx_end);
	conn->rx_start = 0;
	room = NBD_RX_BYTES - conn->rx_end;
	if (fill)
		conn->recv_iov[n++] = (struct iovec) {
			fill->buf + fill->filled, fill->len - fill->filled };
	/* The data of the next write should not land here. */
	if (conn->bulk && conn->state == NBD_SERVING && !(conn->cmd && !fill))
		room = NBD_REQUEST_BYTES - conn->rx_end;
	if (!fill || fill->at + fill->len == conn->cmd->req.length)
		conn->recv_iov[n++] = (struct iovec) { conn->rx + conn->rx_end,
						       room };
	conn->recv.iov = conn->recv_iov;
	conn->recv.iovcnt = n;
	conn->receiving = true;
	engine_queue(conn->nbd->engine, &conn->recv);
}

/* Sending */

static void send_done(struct io_req *req, int err)
{
	struct nbd_conn *conn = container_of(req, struct nbd_conn, send);

	conn->sending = false;
	nbd_conn_kick(conn);
	if (err)
		nbd_conn_shut(conn);
	else
		nbd_sent(conn);
}

static void send_ready(struct nbd_conn *conn)
{
	int n;

	if (conn->sending)
		return;
	n = nbd_gather(conn);
	if (!n)
		return;
	conn->send.iov = conn->iov;
	conn->send.iovcnt = n;
	conn->sending = true;
	engine_queue(conn->nbd->engine, &conn->send);
}

/* The handshake */

static void too_slow(struct io_timer *timer)
{
	struct nbd_conn *conn = container_of(timer, struct nbd_conn, deadline);

	log_warn("NBD client left for its slow handshake minor=%d",
		 vbd_minor(conn->nbd->vbd));
	nbd_conn_shut(conn);
}

static void handshake(struct nbd_conn *conn)
{
	enum nbd_step step = NBD_STEP_ANSWER;

	while (step == NBD_STEP_ANSWER && !conn->answer_len) {
		size_t used, answered;

		step = nbd_handshake_step(&conn->handshake,
					  conn->rx + conn->rx_start,
					  conn->rx_end - conn->rx_start, &used,
					  conn->answer, &answered);
		conn->rx_start += (uint32_t)used;
		conn->answer_len = (uint32_t)answered;
	}
	if (step == NBD_STEP_READY)
		conn->state = NBD_SERVING;
	else if (step == NBD_STEP_END)
		conn->state = NBD_LAST;
	else
		return;
	engine_timer_cancel(conn->nbd->engine, &conn->deadline);
}

/* Life */

static struct nbd_export export_of(const struct nbd *nbd)
{
	return (struct nbd_export) {
		.bytes		= nbd->info.sectors << SECTOR_SHIFT,
		.min_block	= nbd->info.sector_size,
		.max_block	= NBD_MAX_REQUEST,
		.flags		= (uint16_t)nbd_server_flags(nbd),
		.status		= nbd->info.can & IMAGE_CAN_STATUS,
	};
}

/* So that a round's data is sent in one go. Without privilege the system has a limit. */
void nbd_conn_widen(int fd)
{
	int bytes = SOCKET_BYTES;

	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)))
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}

void nbd_conn_open_ready(struct nbd *nbd, void *part, int fd)
{
	struct nbd_conn *conn = part;

	memset(conn, 0, offsetof(struct nbd_conn, commands));
	conn->nbd = nbd;
	conn->fd = fd;
	conn->rx = nbd_part_rx(part);
	list_init(&conn->kick);
	list_init(&conn->ready);
	list_init(&conn->in_send);
	list_init(&conn->streams);
	list_init(&conn->blocked);
	list_init(&conn->free_commands);
	list_init(&conn->free_pieces);
	nbd_buffers_init(&conn->buffers, nbd->engine, part);
	conn->recv = (struct io_req) { .op = IO_RECV, .fd = fd,
				       .done = recv_done };
	conn->send = (struct io_req) { .op = IO_SEND, .fd = fd,
				       .done = send_done };
	nbd_conn_widen(fd);
	conn->waits = true;
	conn->lost = nbd->lost;
	nbd->lost = false;
	conn->state = NBD_SERVING;
	list_add_tail(&conn->link, &nbd->conns);
	nbd_conn_kick(conn);
}

void nbd_conn_open(struct nbd *nbd, void *part, int fd)
{
	struct nbd_export export = export_of(nbd);
	struct nbd_conn *conn = part;

	nbd_conn_open_ready(nbd, part, fd);
	conn->state = NBD_HANDSHAKE;
	conn->deadline.expired = too_slow;
	engine_timer_set(nbd->engine, &conn->deadline, now_ns() + HANDSHAKE_NS);
	conn->answer_len = (uint32_t)nbd_handshake_begin(&conn->handshake,
							 &export, conn->answer);
}

static void end(struct nbd_conn *conn)
{
	struct nbd *nbd = conn->nbd;

	list_del(&conn->kick);
	list_del(&conn->link);
	nbd->lost |= conn->lost;
	/* It may have come back before this ended. */
	list_for_each(pos, &nbd->conns) {
		struct nbd_conn *other = container_of(pos, struct nbd_conn, link);

		other->lost |= conn->lost && other->waits;
	}
	for (unsigned int i = 0; i < conn->nr_pieces; i++)
		nbd_piece_return(&conn->pieces[i]);
	memset(conn->buffers.free, 0xff, sizeof(conn->buffers.free));
	nbd_buffers_release(&conn->buffers);
	close(conn->fd);
	nbd_pool_give(&nbd->pool, conn);
	nbd_conn_gone(nbd);
}

static bool all_answered(const struct nbd_conn *conn)
{
	return !conn->inflight && !conn->sending && !conn->answer_len &&
	       list_empty(&conn->ready);
}

/*
 * What a connection that was lost has in flight is over before the next one
 * begins: the client may be the same, and write to the same places.
 */
static bool must_wait(struct nbd_conn *conn)
{
	struct list *pos = &conn->link;

	while (conn->waits && (pos = pos->prev) != &conn->nbd->conns)
		if (container_of(pos, struct nbd_conn, link)->state == NBD_DEAD)
			return true;
	conn->waits = false;
	return false;
}

void nbd_conn_round(struct nbd_conn *conn)
{
	if (conn->state == NBD_HANDSHAKE)
		handshake(conn);
	if (conn->state == NBD_SERVING && !must_wait(conn))
		nbd_take_requests(conn);
	/* What was answered at once is sent below. */
	list_del(&conn->kick);
	if (conn->state != NBD_DEAD)
		send_ready(conn);
	if (conn->state == NBD_LAST && all_answered(conn))
		nbd_conn_shut(conn);
	if (may_receive(conn))
		receive(conn);
	if (conn->state == NBD_DEAD && !conn->receiving && !conn->sending &&
	    !conn->inflight)
		end(conn);
}
