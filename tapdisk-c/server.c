/* SPDX-License-Identifier: LGPL-2.1-only */
#include "server.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/diskfile.h"
#include "common/log.h"
#include "transport/minor.h"
#include "transport/nbd.h"
#include "vbd.h"

/* More than any dom0 gives one process; the table is searched linearly. */
#define MAX_VBDS 256

#define ENGINE_DEPTH 256
#define TERMINATE_STEP_NS 10000000u

struct server {
	struct engine *engine;
	const struct config *config;
	const char *export_dir;		/* of NBD sockets; NULL: none */
	struct vbd *vbds[MAX_VBDS];
	unsigned int nr;
	bool stop;
	bool terminating;
	struct io_timer again;		/* terminating: the next look */
	bool keep_files;
	bool leaving;
	bool expects;			/* disks of another tapdisk are still to be taken over */
	int rc;				/* of the first image that closed badly at the end */
};

/* The loop does all there is to do. */
static void look_again(struct io_timer *timer)
{
	(void)timer;
}

int server_open(struct server **server, const struct config *cfg,
		struct error *err)
{
	struct server *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return error_set(err, -ENOMEM, "out of memory");
	s->config = cfg;
	s->again.expired = look_again;
	rc = engine_open(&s->engine, cfg->engine, ENGINE_DEPTH, err);
	if (rc && !strcmp(cfg->engine, "uring")) {
		log_warn("engine %s is not to be had, using posix err=%d",
			 cfg->engine, -rc);
		rc = engine_open(&s->engine, "posix", ENGINE_DEPTH, err);
	}
	if (rc) {
		free(s);
		return rc;
	}
	*server = s;
	return 0;
}

void server_close(struct server *server)
{
	for (unsigned int i = 0; i < server->nr; i++)
		vbd_abandon(server->vbds[i]);
	engine_close(server->engine);
	free(server);
}

struct engine *server_engine(struct server *server)
{
	return server->engine;
}

const struct config *server_config(const struct server *server)
{
	return server->config;
}

void server_export_in(struct server *server, const char *dir)
{
	server->export_dir = dir;
}

void server_stop(struct server *server)
{
	server->stop = true;
}

void server_expect(struct server *server, bool expects)
{
	server->expects = expects;
}

bool server_expects(const struct server *server)
{
	return server->expects;
}

void server_stop_if_unused(struct server *server)
{
	if (!server->nr && !server->expects)
		server_stop(server);
}

void server_terminate(struct server *server)
{
	server->terminating = true;
}

void server_keep_files(struct server *server)
{
	server->keep_files = true;
}

bool server_keeps_files(const struct server *server)
{
	return server->keep_files;
}

bool server_leaves_all(const struct server *server)
{
	return server->terminating || server->leaving;
}

void server_set_leaving(struct server *server, bool leaving)
{
	server->leaving = leaving;
	/* What has been paused meanwhile was not noted. */
	for (unsigned int i = 0; !leaving && i < server->nr; i++)
		vbd_note(server->vbds[i]);
}

int server_note_all(struct server *server, struct error *err)
{
	for (unsigned int i = 0; i < server->nr; i++) {
		int rc = vbd_note_now(server->vbds[i], err);

		if (rc)
			return rc;
	}
	return 0;
}

bool server_is_leaving(const struct server *server)
{
	return server->leaving;
}

int server_may_leave(struct server *server, struct error *err)
{
	for (unsigned int i = 0; i < server->nr; i++) {
		int rc = vbd_check_not_draining(server->vbds[i], err);

		if (!rc)
			rc = vbd_may_leave(server->vbds[i], err);
		if (rc)
			return rc;
	}
	return 0;
}

bool server_leave(struct server *server)
{
	bool left = true;

	for (unsigned int i = 0; i < server->nr; i++)
		left &= vbd_leave(server->vbds[i]);
	return left;
}

void server_let_go(struct server *server)
{
	while (server->nr)
		vbd_abandon(server->vbds[--server->nr]);
}

bool server_ended(const struct server *server)
{
	return server->stop;
}

/* What went wrong is in the log. */
static void left(void *priv, int rc, const struct error *err)
{
	struct server *server = priv;

	(void)err;
	if (!server->rc)
		server->rc = rc;
}

/* Something in the kernel waits for requests that this process alone can answer. */
static bool is_waited_for(struct server *server)
{
	struct error err;

	for (unsigned int i = 0; i < server->nr; i++)
		if (vbd_may_leave(server->vbds[i], &err))
			return true;
	return false;
}

/* True if a pause was begun, which may be at its end in the next round. */
static bool terminate_step(struct server *server)
{
	bool idle = true, begun = false;

	if (is_waited_for(server)) {
		engine_timer_set(server->engine, &server->again,
				 now_ns() + TERMINATE_STEP_NS);
		return false;
	}
	for (unsigned int i = 0; i < server->nr; i++) {
		struct vbd *vbd = server->vbds[i];

		idle &= vbd_idle(vbd);
		if (vbd_draining(vbd) || vbd_idle(vbd))
			continue;
		if (vbd_minor(vbd) < 0)
			vbd_close(vbd, true, 0, left, server);
		else
			vbd_pause(vbd, 0, left, server);
		begun = true;
	}
	server->stop = idle;
	return begun;
}

/* 0 if there is room for the path. */
static int socket_path(const struct server *server, int minor, char *path,
		       size_t size)
{
	int n = snprintf(path, size, "%s/nbd%d.%d", server->export_dir,
			 (int)getpid(), minor);

	return n < 0 || (size_t)n >= size ? -ENAMETOOLONG : 0;
}

/*
 * Of disks that wait for the next tapdisk, which is started by hand: this one's
 * sockets lead nowhere.
 */
static void remove_files(const struct server *server)
{
	char path[PATH_MAX];

	for (unsigned int i = 0; i < server->nr; i++) {
		int minor = vbd_minor(server->vbds[i]);

		if (server->export_dir &&
		    !socket_path(server, minor, path, sizeof(path)))
			unlink(path);
		/* Who opens the disk by hand has to know. */
		if (server->keep_files && !vbd_has_lost(server->vbds[i]))
			diskfile_forget(minor, getpid());
	}
}

int server_run(struct server *server)
{
	bool more = false;
	int rc = 0;

	while (!server->stop && !rc) {
		rc = engine_run(server->engine, more ? 0 : -1);
		more = false;
		for (unsigned int i = 0; i < server->nr; i++)
			more |= vbd_round(server->vbds[i]);
		if (server->terminating)
			more |= terminate_step(server);
	}
	if (server->terminating)
		remove_files(server);
	return rc ? rc : server->rc;
}

static struct vbd **find(struct server *server, int minor, struct error *err)
{
	for (unsigned int i = 0; i < server->nr; i++)
		if (vbd_minor(server->vbds[i]) == minor)
			return &server->vbds[i];
	error_set(err, -ENODEV, "minor %d is not attached to this tapdisk",
		  minor);
	return NULL;
}

/* A guest's disk does not depend on it. */
static void export(struct server *server, struct vbd *vbd, int minor)
{
	struct transport *nbd;
	char path[PATH_MAX];
	struct error err;
	int rc;

	if (!server->export_dir)
		return;
	rc = socket_path(server, minor, path, sizeof(path));
	if (rc)
		error_set(&err, rc, "%s: too long for the path of a socket",
			  server->export_dir);
	else
		rc = nbd_open(&nbd, vbd, server->engine, path, false, &err);
	if (!rc)
		rc = vbd_add_transport(vbd, nbd, &err);
	if (rc)
		log_warn("goes without NBD: %s minor=%d", err.text, minor);
}

int server_attach(struct server *server, int minor, struct error *err)
{
	int rc;

	if (find(server, minor, NULL))
		return error_set(err, -EEXIST, "minor %d is already attached",
				 minor);
	if (server->nr == MAX_VBDS)
		return error_set(err, -ENOSPC,
				 "this tapdisk has %d minors attached, the most it can",
				 MAX_VBDS);
	rc = vbd_attach(&server->vbds[server->nr], server, minor, err);
	if (rc)
		return rc;
	export(server, server->vbds[server->nr++], minor);
	return 0;
}

int server_serve(struct server *server, const char *args, bool readonly,
		 const char *socket, struct error *err)
{
	struct transport *nbd;
	struct vbd *vbd;
	int rc;

	if (server->nr == MAX_VBDS)
		return error_set(err, -ENOSPC, "too many disks");
	rc = vbd_create(&vbd, server, -1, err);
	if (rc)
		return rc;
	rc = nbd_open(&nbd, vbd, server->engine, socket, true, err);
	if (!rc)
		rc = vbd_add_transport(vbd, nbd, err);
	if (!rc)
		rc = vbd_open(vbd, args, readonly, err);
	if (rc)
		vbd_detach(vbd, NULL);
	else
		server->vbds[server->nr++] = vbd;
	return rc;
}

int server_detach(struct server *server, int minor, struct error *err)
{
	struct vbd **vbd = find(server, minor, err);
	int rc;

	if (!vbd)
		return -ENODEV;
	rc = vbd_detach(*vbd, err);
	if (!rc)
		*vbd = server->vbds[--server->nr];
	return rc;
}

void server_open_image(struct server *server, int minor,
		       const struct server_open *open, server_done done,
		       void *priv)
{
	struct error err;
	struct vbd **vbd = find(server, minor, &err);
	int rc = -ENODEV;

	if (vbd)
		rc = open->inactive ?
			vbd_open_inactive(*vbd, open->args, open->readonly,
					  open->suspended, &err) :
			vbd_open(*vbd, open->args, open->readonly, &err);

	if (rc)
		done(priv, rc, &err);
	else
		vbd_when_ready(*vbd, done, priv);
}

int server_adopt(struct server *server, const struct diskfile *file,
		 struct error *err)
{
	int minor = file->minor, rc;
	struct diskfile now;

	rc = server_attach(server, minor, err);
	if (rc)
		return rc;
	/* From here on the minor stays, and its file is ours to write. */
	rc = diskfile_read(&now, minor);
	if (!rc) {
		if (now.pid != file->pid || now.id != file->id ||
		    minor_id(minor) != file->id)
			rc = -ESTALE;
		diskfile_dispose(&now);
	}
	if (rc)
		error_set(err, rc, "minor %d: is another disk now", minor);
	else
		rc = vbd_adopt(server->vbds[server->nr - 1], file, err);
	if (rc)
		server_detach(server, minor, NULL);
	return rc;
}

void server_set_owner(struct server *server, int minor, int owner)
{
	struct vbd **vbd = find(server, minor, NULL);

	if (vbd)
		vbd_set_owner(*vbd, owner);
}

int server_keep(struct server *server, int minor, const char *kept_for,
		struct error *err)
{
	struct vbd **vbd = find(server, minor, err);

	return vbd ? vbd_keep(*vbd, kept_for, err) : -ENODEV;
}

int server_set_retry(struct server *server, int minor,
		     const struct retry_policy *policy, struct error *err)
{
	struct vbd **vbd = find(server, minor, err);

	if (!vbd)
		return -ENODEV;
	vbd_set_retry(*vbd, policy);
	return 0;
}

void server_close_image(struct server *server, int minor, bool force,
			unsigned int timeout_ms, server_done done, void *priv)
{
	struct error err;
	struct vbd **vbd = find(server, minor, &err);

	if (vbd)
		vbd_close(*vbd, force, timeout_ms, done, priv);
	else
		done(priv, -ENODEV, &err);
}

void server_pause(struct server *server, int minor, unsigned int timeout_ms,
		  server_done done, void *priv)
{
	struct error err;
	struct vbd **vbd = find(server, minor, &err);

	if (vbd)
		vbd_pause(*vbd, timeout_ms, done, priv);
	else
		done(priv, -ENODEV, &err);
}

int server_unpause(struct server *server, int minor, const char *args,
		   struct error *err)
{
	struct vbd **vbd = find(server, minor, err);

	return vbd ? vbd_unpause(*vbd, args, err) : -ENODEV;
}

int server_reopen(struct server *server, int minor, struct error *err)
{
	struct vbd **vbd = find(server, minor, err);

	return vbd ? vbd_reopen(*vbd, err) : -ENODEV;
}

void server_reopen_later(struct server *server, int minor)
{
	struct vbd **vbd = find(server, minor, NULL);

	if (vbd)
		vbd_reopen_later(*vbd);
}

void server_snapshot(struct server *server, int minor, const char *child,
		     const char *parent, const char *decision,
		     unsigned int timeout_ms, server_done done, void *priv)
{
	struct error err;
	struct vbd **vbd = find(server, minor, &err);

	if (vbd)
		vbd_snapshot(*vbd, child, parent, decision, timeout_ms, done,
			     priv);
	else
		done(priv, -ENODEV, &err);
}

void server_snapshot_hold(struct server *server, int minor, server_done done,
			  void *priv)
{
	struct error err;
	struct vbd **vbd = find(server, minor, &err);

	if (vbd)
		vbd_snapshot_hold(*vbd, done, priv);
	else
		done(priv, -ENODEV, &err);
}

int server_snapshot_switch(struct server *server, int minor, struct error *err)
{
	struct vbd **vbd = find(server, minor, err);

	return vbd ? vbd_snapshot_switch(*vbd, err) : -ENODEV;
}

int server_snapshot_take(struct server *server, int minor, struct error *err)
{
	struct vbd **vbd = find(server, minor, err);

	return vbd ? vbd_snapshot_take(*vbd, err) : -ENODEV;
}

void server_snapshot_settle(struct server *server, int minor)
{
	struct error err;
	struct vbd **vbd = find(server, minor, &err);

	if (vbd)
		vbd_snapshot_settle(*vbd);
}

bool server_vbd(struct server *server, unsigned int i, struct vbd_view *view)
{
	if (i >= server->nr)
		return false;
	vbd_fill_view(server->vbds[i], view);
	return true;
}
