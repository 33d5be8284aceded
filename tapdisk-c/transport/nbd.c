/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/nbd.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "transport/nbd-internal.h"

/* How long after its last use memory is given back, at least; and accepting tried again. */
#define TICK_NS 2000000000u

static const struct transport_ops nbd_ops;

static struct nbd *nbd_of(struct transport *transport)
{
	return container_of(transport, struct nbd, transport);
}

/* The socket's name until it takes connections: no other process has the same. */
static int early_address(struct sockaddr_un *early, const char *path,
			 struct error *err)
{
	const size_t room = sizeof(early->sun_path);
	int n = snprintf(early->sun_path, room, "%s.%d", path, (int)getpid());

	early->sun_family = AF_UNIX;
	if (n < 0 || (size_t)n >= room)
		return error_set(err, -ENAMETOOLONG, "%s: longer than the %zu bytes that the path of this socket may have; name a shorter one",
				 path, room - 1 - ((size_t)n - strlen(path)));
	return 0;
}

int nbd_open(struct transport **transport, struct vbd *vbd,
	     struct engine *engine, const char *path, bool required,
	     struct error *err)
{
	struct sockaddr_un early;
	struct nbd *nbd;
	int rc;

	rc = early_address(&early, path, err);
	if (rc)
		return rc;
	nbd = calloc(1, sizeof(*nbd));
	if (!nbd)
		return error_set(err, -ENOMEM, "%s: out of memory", path);
	nbd->transport.ops = &nbd_ops;
	list_init(&nbd->transport.link);
	nbd->vbd = vbd;
	nbd->engine = engine;
	nbd->required = required;
	nbd->fd = -1;
	nbd->address.sun_family = AF_UNIX;
	strcpy(nbd->address.sun_path, path);
	nbd->pool.engine = engine;
	list_init(&nbd->conns);
	list_init(&nbd->kicked);
	*transport = &nbd->transport;
	return 0;
}

/* Accepting */

static void listen_on(struct nbd *nbd)
{
	int rc;

	if (nbd->fd < 0 || nbd->watch.armed)
		return;
	rc = engine_watch(nbd->engine, &nbd->watch);
	if (rc)
		log_warn("cannot wait for NBD clients minor=%d err=%d",
			 vbd_minor(nbd->vbd), -rc);
}

void nbd_conn_gone(struct nbd *nbd)
{
	list_for_each(pos, &nbd->conns) {
		struct nbd_conn *conn = container_of(pos, struct nbd_conn, link);

		if (conn->waits)
			nbd_conn_kick(conn);
	}
	listen_on(nbd);
}

static void tick_on(struct nbd *nbd)
{
	if (!nbd->tick.armed)
		engine_timer_set(nbd->engine, &nbd->tick, now_ns() + TICK_NS);
}

void nbd_conn_active(struct nbd_conn *conn)
{
	conn->active = true;
	tick_on(conn->nbd);
}

static void accept_ready(struct io_watch *watch, short revents)
{
	struct nbd *nbd = container_of(watch, struct nbd, watch);
	void *part;
	int fd;

	(void)revents;
	/* The client may be one of these, come back. */
	list_for_each(pos, &nbd->conns)
		nbd_conn_look(container_of(pos, struct nbd_conn, link));
	part = nbd_pool_take(&nbd->pool);
	/* The next ones wait in the socket's queue until one has gone. */
	if (!part) {
		engine_unwatch(nbd->engine, watch);
		tick_on(nbd);
		return;
	}
	/* Blocking, since an engine's request on it is to wait. */
	fd = accept4(nbd->fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd >= 0) {
		nbd_conn_open(nbd, part, fd);
		return;
	}
	nbd_pool_give(&nbd->pool, part);
	if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
		return;
	/* Out of descriptors: looking again at once would spin. */
	log_warn("cannot accept an NBD client minor=%d err=%d",
		 vbd_minor(nbd->vbd), errno);
	engine_unwatch(nbd->engine, watch);
	tick_on(nbd);
}

static void tick(struct io_timer *timer)
{
	struct nbd *nbd = container_of(timer, struct nbd, tick);

	list_for_each(pos, &nbd->conns) {
		struct nbd_conn *conn = container_of(pos, struct nbd_conn, link);

		if (conn->active)
			tick_on(nbd);
		else
			nbd_buffers_release(&conn->buffers);
		conn->active = false;
	}
	listen_on(nbd);
}

/* The socket */

/* What is no socket, or is listened at, is not ours to remove. */
static int remove_stale(const struct sockaddr_un *address, struct error *err)
{
	const char *path = address->sun_path;
	struct stat st;
	int fd, rc = 0;

	if (lstat(path, &st))
		return errno == ENOENT ? 0 :
		       error_set(err, -errno, "%s: %s", path, strerror(errno));
	if (!S_ISSOCK(st.st_mode))
		return error_set(err, -EEXIST, "%s: exists and is no socket; remove it or name another",
				 path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_set(err, -errno, "%s: %s", path, strerror(errno));
	if (!connect(fd, (const void *)address, sizeof(*address)) ||
	    errno != ECONNREFUSED)
		rc = error_set(err, -EADDRINUSE, "%s: another process listens there; name another socket",
			       path);
	else if (unlink(path))
		rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
	close(fd);
	return rc;
}

/* The name is there from now on. It takes nobody else's place. */
static int publish(const struct nbd *nbd, const char *early, struct error *err)
{
	const char *path = nbd->address.sun_path;

	if (!link(early, path))
		return 0;
	if (errno == EEXIST)
		return error_set(err, -EADDRINUSE, "%s: another process has made it meanwhile; name another socket",
				 path);
	return error_set(err, -errno, "%s: %s", path, strerror(errno));
}

/*
 * Who waits for the name may connect as soon as it is there. So the socket has
 * another one until it listens.
 */
static int socket_open(struct nbd *nbd, struct error *err)
{
	const char *path = nbd->address.sun_path;
	struct sockaddr_un early;
	int rc;

	rc = early_address(&early, path, err);
	if (!rc)
		rc = remove_stale(&nbd->address, err);
	if (!rc)
		rc = remove_stale(&early, err);
	if (rc)
		return rc;
	nbd->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (nbd->fd < 0)
		return error_set(err, -errno, "%s: %s", path, strerror(errno));
	if (fchmod(nbd->fd, 0600) ||
	    bind(nbd->fd, (const void *)&early, sizeof(early))) {
		rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
		goto out;
	}
	if (lstat(early.sun_path, &nbd->name) ||
	    listen(nbd->fd, NBD_MAX_CLIENTS)) {
		rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
		goto out_name;
	}
	nbd->watch.fd = nbd->fd;
	nbd->watch.events = POLLIN;
	nbd->watch.ready = accept_ready;
	nbd->tick.expired = tick;
	rc = engine_watch(nbd->engine, &nbd->watch);
	if (rc) {
		error_set(err, rc, "%s: cannot wait for clients: %s", path,
			  strerror(-rc));
		goto out_name;
	}
	rc = publish(nbd, early.sun_path, err);
	if (rc)
		engine_unwatch(nbd->engine, &nbd->watch);
out_name:
	unlink(early.sun_path);
out:
	if (rc) {
		close(nbd->fd);
		nbd->fd = -1;
	}
	return rc;
}

/* Unless another has its place. */
static void remove_name(const struct nbd *nbd)
{
	const char *path = nbd->address.sun_path;
	struct stat st;

	if (!lstat(path, &st) && st.st_dev == nbd->name.st_dev &&
	    st.st_ino == nbd->name.st_ino)
		unlink(path);
}

static void socket_close(struct nbd *nbd)
{
	if (nbd->fd < 0)
		return;
	engine_unwatch(nbd->engine, &nbd->watch);
	engine_timer_cancel(nbd->engine, &nbd->tick);
	remove_name(nbd);
	close(nbd->fd);
	nbd->fd = -1;
}

/* The transport */

static int nbd_start(struct transport *transport, const struct image_info *info,
		     bool readonly, struct error *err)
{
	struct nbd *nbd = nbd_of(transport);
	struct error e;
	int rc;

	nbd->info = *info;
	nbd->readonly = readonly;
	nbd->held = false;
	rc = socket_open(nbd, &e);
	if (!rc)
		return 0;
	if (nbd->required) {
		if (err)
			*err = e;
		return rc;
	}
	log_warn("goes without NBD: %s minor=%d", e.text, vbd_minor(nbd->vbd));
	return 0;
}

static int nbd_stop(struct transport *transport, bool force, struct error *err)
{
	struct nbd *nbd = nbd_of(transport);

	(void)force;
	(void)err;
	socket_close(nbd);
	list_for_each(pos, &nbd->conns)
		nbd_conn_shut(container_of(pos, struct nbd_conn, link));
	return 0;
}

static int nbd_reset(struct transport *transport, struct error *err)
{
	(void)err;
	nbd_pool_close(&nbd_of(transport)->pool);
	return 0;
}

static void nbd_hold(struct transport *transport)
{
	nbd_of(transport)->held = true;
}

static int nbd_release(struct transport *transport,
		       const struct image_info *info, bool readonly,
		       struct error *err)
{
	struct nbd *nbd = nbd_of(transport);

	(void)err;
	nbd->info = *info;
	nbd->readonly = readonly;
	nbd->held = false;
	list_for_each(pos, &nbd->conns)
		nbd_conn_kick(container_of(pos, struct nbd_conn, link));
	return 0;
}

static bool nbd_round(struct transport *transport)
{
	struct nbd *nbd = nbd_of(transport);
	struct list *item, kicked;

	list_init(&kicked);
	list_splice(&nbd->kicked, &kicked);
	while ((item = list_pop(&kicked)))
		nbd_conn_round(container_of(item, struct nbd_conn, kick));
	if (nbd->fd >= 0)
		return !list_empty(&nbd->kicked);
	/* Stopped: sockets that were shut down end at once, and are waited for. */
	list_for_each(pos, &nbd->conns)
		if (!container_of(pos, struct nbd_conn, link)->inflight)
			return true;
	return false;
}

static void nbd_close(struct transport *transport)
{
	struct nbd *nbd = nbd_of(transport);

	socket_close(nbd);
	/* Clients that left after the socket was closed may have set it again. */
	engine_timer_cancel(nbd->engine, &nbd->tick);
	/* The process ends, with a disk that is paused: the engine still has their requests. */
	list_for_each(pos, &nbd->conns)
		engine_timer_cancel(nbd->engine,
				    &container_of(pos, struct nbd_conn, link)->deadline);
	if (list_empty(&nbd->conns))
		nbd_pool_close(&nbd->pool);
	free(nbd);
}

static const struct transport_ops nbd_ops = {
	.name		= "nbd",
	.start		= nbd_start,
	.stop		= nbd_stop,
	.reset		= nbd_reset,
	.hold		= nbd_hold,
	.release	= nbd_release,
	.round		= nbd_round,
	.close		= nbd_close,
};
