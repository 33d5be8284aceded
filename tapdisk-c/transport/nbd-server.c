/* SPDX-License-Identifier: LGPL-2.1-only */
#include "common/clock.h"
#include "transport/nbd-internal.h"

/* How long after its last use memory is given back, at least; and accepting tried again. */
#define TICK_NS 2000000000u

void nbd_conn_gone(struct nbd *nbd)
{
	list_for_each(pos, &nbd->conns) {
		struct nbd_conn *conn = container_of(pos, struct nbd_conn, link);

		if (conn->waits)
			nbd_conn_kick(conn);
	}
	nbd->gone(nbd);
}

void nbd_tick(struct nbd *nbd)
{
	if (!nbd->tick.armed)
		engine_timer_set(nbd->engine, &nbd->tick, now_ns() + TICK_NS);
}

void nbd_conn_active(struct nbd_conn *conn)
{
	conn->active = true;
	nbd_tick(conn->nbd);
}

static void tick(struct io_timer *timer)
{
	struct nbd *nbd = container_of(timer, struct nbd, tick);

	list_for_each(pos, &nbd->conns) {
		struct nbd_conn *conn = container_of(pos, struct nbd_conn, link);

		if (conn->active)
			nbd_tick(nbd);
		else
			nbd_buffers_release(&conn->buffers);
		conn->active = false;
	}
	nbd->gone(nbd);
}

void nbd_server_init(struct nbd *nbd, struct vbd *vbd, struct engine *engine)
{
	nbd->vbd = vbd;
	nbd->engine = engine;
	nbd->fd = -1;
	nbd->tick.expired = tick;
	nbd->pool.engine = engine;
	list_init(&nbd->conns);
	list_init(&nbd->kicked);
}

unsigned int nbd_server_flags(const struct nbd *nbd)
{
	unsigned int can = nbd->readonly ? 0 : nbd->info.can;
	unsigned int flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH |
			     NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN;

	if (nbd->readonly)
		flags |= NBD_FLAG_READ_ONLY;
	if (can & IMAGE_CAN_DISCARD)
		flags |= NBD_FLAG_SEND_TRIM;
	if (can & IMAGE_CAN_ZERO)
		flags |= NBD_FLAG_SEND_WRITE_ZEROES;
	return flags;
}

void nbd_server_start(struct nbd *nbd, const struct image_info *info,
		      bool readonly)
{
	nbd->info = *info;
	nbd->readonly = readonly;
	nbd->held = false;
	nbd->lost = false;
	nbd->serving = true;
}

void nbd_server_stop(struct nbd *nbd)
{
	nbd->serving = false;
	engine_timer_cancel(nbd->engine, &nbd->tick);
	list_for_each(pos, &nbd->conns)
		nbd_conn_shut(container_of(pos, struct nbd_conn, link));
}

void nbd_server_release(struct nbd *nbd, const struct image_info *info,
			bool readonly)
{
	nbd->info = *info;
	nbd->readonly = readonly;
	nbd->held = false;
	list_for_each(pos, &nbd->conns)
		nbd_conn_kick(container_of(pos, struct nbd_conn, link));
}

bool nbd_server_leave(struct nbd *nbd)
{
	if (nbd->serving)
		nbd_server_stop(nbd);
	return list_empty(&nbd->conns);
}

bool nbd_server_round(struct nbd *nbd)
{
	struct list *item, kicked;

	list_init(&kicked);
	list_splice(&nbd->kicked, &kicked);
	while ((item = list_pop(&kicked)))
		nbd_conn_round(container_of(item, struct nbd_conn, kick));
	if (nbd->serving)
		return !list_empty(&nbd->kicked);
	/* Sockets that were shut down end at once, and are waited for. */
	list_for_each(pos, &nbd->conns)
		if (!container_of(pos, struct nbd_conn, link)->inflight)
			return true;
	return false;
}

void nbd_server_close(struct nbd *nbd)
{
	/* Clients that left after the stop may have set it again. */
	engine_timer_cancel(nbd->engine, &nbd->tick);
	/* The process ends, with a disk that is paused: the engine still has their requests. */
	list_for_each(pos, &nbd->conns)
		engine_timer_cancel(nbd->engine,
				    &container_of(pos, struct nbd_conn, link)->deadline);
	if (list_empty(&nbd->conns))
		nbd_pool_close(&nbd->pool);
}
