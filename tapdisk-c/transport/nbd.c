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

#include "common/log.h"
#include "transport/nbd-internal.h"

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
	nbd_server_init(nbd, vbd, engine);
	nbd->gone = listen_on;
	nbd->required = required;
	nbd->address.sun_family = AF_UNIX;
	strcpy(nbd->address.sun_path, path);
	*transport = &nbd->transport;
	return 0;
}

/* Accepting */

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
		nbd_tick(nbd);
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
	nbd_tick(nbd);
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

	nbd_server_start(nbd, info, readonly);
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
	nbd_server_stop(nbd);
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
	(void)err;
	nbd_server_release(nbd_of(transport), info, readonly);
	return 0;
}

static bool nbd_round(struct transport *transport)
{
	return nbd_server_round(nbd_of(transport));
}

static bool nbd_leave(struct transport *transport)
{
	struct nbd *nbd = nbd_of(transport);

	socket_close(nbd);
	return nbd_server_leave(nbd);
}

static void nbd_close(struct transport *transport)
{
	struct nbd *nbd = nbd_of(transport);

	socket_close(nbd);
	nbd_server_close(nbd);
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
	.leave		= nbd_leave,
	.close		= nbd_close,
};
