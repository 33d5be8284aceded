/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * server.h without a driver and without images, for the tests of the control
 * plane; included by one file of a program. What it does:
 *
 * attach	minor 13 is refused
 * open		type aio or vhd, of a file that exists; "garbled" in its name gives
 *		an error text that is not UTF-8
 * close	"busy" in the name: -EBUSY unless forced
 * close, pause	"slow" in the name: done 200 ms later, "stuck": when
 *		fake_finish() is called; else at once
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/list.h"
#include "server.h"

#define FAKE_VBDS 128

struct fake_vbd {
	int minor;
	char *args, *kept_for;
	bool readonly, paused, reopen, closing;
	struct retry_policy retry;
	struct io_timer timer;
	server_done done;
	void *priv;
};

struct server {
	struct engine *engine;
	const struct config *cfg;
	bool stop;
	struct fake_vbd *vbd[FAKE_VBDS];
	unsigned int nr;
};

int server_open(struct server **server, const struct config *cfg,
		struct error *err)
{
	*server = calloc(1, sizeof(**server));
	if (!*server)
		return error_set(err, -ENOMEM, "out of memory");
	(*server)->cfg = cfg;
	return engine_open(&(*server)->engine, cfg->engine, 8, err);
}

void server_close(struct server *server)
{
	for (unsigned int i = 0; i < server->nr; i++) {
		free(server->vbd[i]->args);
		free(server->vbd[i]->kept_for);
		free(server->vbd[i]);
	}
	engine_close(server->engine);
	free(server);
}

struct engine *server_engine(struct server *server)
{
	return server->engine;
}

const struct config *server_config(const struct server *server)
{
	return server->cfg;
}

int server_run(struct server *server)
{
	int rc = 0;

	while (!server->stop && !rc)
		rc = engine_run(server->engine, -1);
	return rc;
}

void server_stop(struct server *server)
{
	server->stop = true;
}

void server_stop_if_unused(struct server *server)
{
	server->stop |= !server->nr;
}

void server_expect(struct server *server, bool expects)
{
	(void)server;
	(void)expects;
}

bool server_expects(const struct server *server)
{
	(void)server;
	return false;
}

void server_terminate(struct server *server)
{
	server->stop = true;
}

bool server_keeps_files(const struct server *server)
{
	(void)server;
	return false;
}

void server_set_leaving(struct server *server, bool leaving)
{
	(void)server;
	(void)leaving;
}

int server_note_all(struct server *s, struct error *err)
{
	(void)s;
	(void)err;
	return 0;
}

bool server_is_leaving(const struct server *server)
{
	(void)server;
	return false;
}

int server_may_leave(struct server *server, struct error *err)
{
	(void)server;
	(void)err;
	return 0;
}

bool server_leave(struct server *server)
{
	(void)server;
	return true;
}

void server_let_go(struct server *server)
{
	(void)server;
}

void server_set_owner(struct server *server, int minor, int owner)
{
	(void)server;
	(void)minor;
	(void)owner;
}

int server_adopt(struct server *server, const struct diskfile *file,
		 struct error *err)
{
	(void)server;
	(void)file;
	return error_set(err, -ENODEV, "not here");
}

static struct fake_vbd *fake_find(struct server *server, int minor,
				  struct error *err)
{
	for (unsigned int i = 0; i < server->nr; i++)
		if (server->vbd[i]->minor == minor)
			return server->vbd[i];
	error_set(err, -ENODEV, "minor %d is not attached to this tapdisk", minor);
	return NULL;
}

int server_keep(struct server *server, int minor, const char *kept_for,
		struct error *err)
{
	struct fake_vbd *vbd = fake_find(server, minor, err);

	if (!vbd)
		return -ENODEV;
	free(vbd->kept_for);
	vbd->kept_for = kept_for ? strdup(kept_for) : NULL;
	return 0;
}

int server_attach(struct server *server, int minor, struct error *err)
{
	struct fake_vbd *vbd;

	if (minor == 13)
		return error_set(err, -ENXIO, "minor 13 has no ring");
	if (fake_find(server, minor, NULL) || server->nr == FAKE_VBDS)
		return error_set(err, -EEXIST, "minor %d is already attached", minor);
	vbd = calloc(1, sizeof(*vbd));
	if (!vbd)
		return error_set(err, -ENOMEM, "out of memory");
	vbd->minor = minor;
	server->vbd[server->nr++] = vbd;
	return 0;
}

int server_detach(struct server *server, int minor, struct error *err)
{
	struct fake_vbd *vbd = fake_find(server, minor, err);

	if (!vbd)
		return -ENODEV;
	if (vbd->args)
		return error_set(err, -EBUSY, "minor %d: %s is open; close it first",
				 minor, vbd->args);
	for (unsigned int i = 0; i < server->nr; i++)
		if (server->vbd[i] == vbd)
			server->vbd[i] = server->vbd[--server->nr];
	free(vbd);
	return 0;
}

static int fake_open(struct fake_vbd *vbd, const char *args, struct error *err)
{
	if (strncmp(args, "aio:", 4) && strncmp(args, "vhd:", 4))
		return error_set(err, -EINVAL, "%s: must be TYPE:PATH", args);
	if (strstr(args, "garbled"))
		return error_set(err, -EIO, "parent \xff\xfe of it is bad");
	if (access(args + 4, F_OK))
		return error_set(err, -errno, "%s: %s", args + 4, strerror(errno));
	free(vbd->args);
	vbd->args = strdup(args);
	return 0;
}

void server_open_image(struct server *server, int minor,
		       const struct server_open *open, server_done done,
		       void *priv)
{
	struct error err;
	struct fake_vbd *vbd = fake_find(server, minor, &err);
	int rc = vbd ? 0 : -ENODEV;

	if (vbd && vbd->args)
		rc = error_set(&err, -EBUSY, "minor %d: already has %s open",
			       minor, vbd->args);
	if (!rc) {
		vbd->readonly = open->readonly;
		rc = fake_open(vbd, open->args, &err);
	}
	done(priv, rc, &err);
}

/* Completes the pause or close of a VBD whose name has "stuck" in it. */
static inline void fake_finish(struct fake_vbd *vbd)
{
	server_done done = vbd->done;

	vbd->done = NULL;
	vbd->paused = !vbd->closing;
	if (vbd->closing) {
		free(vbd->args);
		free(vbd->kept_for);
		vbd->args = vbd->kept_for = NULL;
	}
	done(vbd->priv, 0, NULL);
}

static void fake_expired(struct io_timer *timer)
{
	fake_finish(container_of(timer, struct fake_vbd, timer));
}

static void fake_drain(struct server *server, int minor, bool closing,
		       bool force, server_done done, void *priv)
{
	struct error err;
	struct fake_vbd *vbd = fake_find(server, minor, &err);
	struct timespec ts;
	int rc = vbd ? 0 : -ENODEV;

	if (vbd && !vbd->args)
		rc = error_set(&err, -ENODEV, "minor %d: no image is open", minor);
	else if (vbd && vbd->done)
		rc = error_set(&err, -EBUSY, "minor %d: a pause is under way", minor);
	else if (vbd && closing && !force && strstr(vbd->args, "busy"))
		rc = error_set(&err, -EBUSY, "minor %d: the device is open", minor);
	if (rc) {
		done(priv, rc, &err);
		return;
	}
	vbd->closing = closing;
	vbd->done = done;
	vbd->priv = priv;
	if (strstr(vbd->args, "slow")) {
		clock_gettime(CLOCK_MONOTONIC, &ts);
		vbd->timer.expired = fake_expired;
		engine_timer_set(server->engine, &vbd->timer,
				 (uint64_t)ts.tv_sec * 1000000000u +
				 (uint64_t)ts.tv_nsec + 200000000u);
	} else if (!strstr(vbd->args, "stuck")) {
		fake_finish(vbd);
	}
}

int server_set_retry(struct server *server, int minor,
		     const struct retry_policy *policy, struct error *err)
{
	struct fake_vbd *vbd = fake_find(server, minor, err);

	if (vbd)
		vbd->retry = *policy;
	return vbd ? 0 : -ENODEV;
}

void server_close_image(struct server *server, int minor, bool force,
			unsigned int timeout_ms, server_done done, void *priv)
{
	(void)timeout_ms;
	fake_drain(server, minor, true, force, done, priv);
}

void server_pause(struct server *server, int minor, unsigned int timeout_ms,
		  server_done done, void *priv)
{
	(void)timeout_ms;
	fake_drain(server, minor, false, false, done, priv);
}

void server_snapshot(struct server *server, int minor, const char *child,
		     const char *parent, const char *decision,
		     unsigned int timeout_ms, server_done done, void *priv)
{
	struct error err;

	(void)server;
	(void)child;
	(void)parent;
	(void)decision;
	(void)timeout_ms;
	done(priv, error_set(&err, -EOPNOTSUPP, "minor %d: no snapshots here", minor),
	     &err);
}

void server_snapshot_hold(struct server *server, int minor, server_done done,
			  void *priv)
{
	server_snapshot(server, minor, NULL, NULL, NULL, 0, done, priv);
}

int server_snapshot_switch(struct server *server, int minor, struct error *err)
{
	(void)server;
	return error_set(err, -ESTALE, "minor %d: no snapshots here", minor);
}

int server_snapshot_take(struct server *server, int minor, struct error *err)
{
	return server_snapshot_switch(server, minor, err);
}

void server_snapshot_settle(struct server *server, int minor)
{
	(void)server;
	(void)minor;
}

int server_unpause(struct server *server, int minor, const char *args,
		   struct error *err)
{
	struct fake_vbd *vbd = fake_find(server, minor, err);
	char *copy;
	int rc;

	if (!vbd)
		return -ENODEV;
	if (!vbd->paused)
		return error_set(err, -EINVAL, "minor %d: is not paused", minor);
	copy = strdup(args ? args : vbd->args);
	rc = fake_open(vbd, copy, err);
	free(copy);
	if (!rc)
		vbd->paused = vbd->reopen = false;
	return rc;
}

int server_reopen(struct server *server, int minor, struct error *err)
{
	return server_unpause(server, minor, NULL, err);
}

void server_reopen_later(struct server *server, int minor)
{
	struct fake_vbd *vbd = fake_find(server, minor, NULL);

	if (vbd)
		vbd->reopen = true;
}

/* A leaf, a parent whose name is not UTF-8, and, for "long", 29 more. */
static const char *fake_chain_path(const struct vbd_view *view, unsigned int i)
{
	static char path[4000];

	if (i == 0)
		return strchr(view->args, ':') + 1;
	if (i == 1)
		return "/srv/b\xe4se.vhd";
	if (i > 30 || !strstr(view->args, "long"))
		return NULL;
	memset(path, 'p', sizeof(path) - 1);
	return path;
}

static const struct stats_page fake_stats = {
	.inflight = 15, .merged = 16, .waiting = 17,
	.op = {
		{ .requests = 1, .sectors = 2, .errors = 3, .total_ns = 4,
		  .max_ns = 5, .latency = { [3] = 1 } },
		{ .requests = 6, .sectors = 7, .errors = 8, .total_ns = 9,
		  .max_ns = 10 },
		{ .requests = 11, .errors = 12, .retries = 18, .total_ns = 13,
		  .max_ns = 14 },
	},
};

bool server_vbd(struct server *server, unsigned int i, struct vbd_view *view)
{
	const struct fake_vbd *vbd;

	if (i >= server->nr)
		return false;
	vbd = server->vbd[i];
	*view = (struct vbd_view){
		.minor = vbd->minor,
		.state = !vbd->args ? VBD_CLOSED :
			 vbd->done ? VBD_PAUSE_REQUESTED :
			 vbd->paused ? vbd->reopen ? VBD_REOPENING : VBD_PAUSED : 0,
		.args = vbd->args,
		.kept_for = vbd->kept_for,
		.readonly = vbd->readonly,
		.sectors = 2048,
		.sector_size = 512,
		.depth = 2,
		.stats = &fake_stats,
		.chain_path = vbd->args ? fake_chain_path : NULL,
	};
	return true;
}
