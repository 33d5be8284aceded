/* SPDX-License-Identifier: LGPL-2.1-only */
#include "control/takeover.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/diskfile.h"
#include "common/log.h"
#include "control/control.h"

#define SECOND_NS	1000000000ull
/* An image that is locked is waited for a second at each try. */
#define WAIT_MAX_S	30u
#define LOG_TRIES	8u
/* Half a minute: longer than a tapdisk takes to give back what it could not open. */
#define TRIES_ALIVE	6u

enum wanted { NO, NOW, LATER };

/* Of another that lives only what it has left to us; what it may yet leave, later. */
static enum wanted is_wanted(const struct takeover *t,
			     const struct diskfile *file)
{
	int pid = file->pid;

	for (unsigned int i = 0; i < t->nr; i++) {
		if (t->pids[i] != pid)
			continue;
		if (pid == getpid() || pid == t->alive || diskfile_is_left(file))
			return NOW;
		return t->tries < TRIES_ALIVE ? LATER : NO;
	}
	return NO;
}

/* Now and then, and whenever it is another reason. */
static bool worth_saying(struct takeover *t, int rc)
{
	bool worth = t->tries % LOG_TRIES == 0 || rc != t->said;

	t->said = rc;
	return worth;
}

/* Whoever calls it by an old name finds us, unless another tapdisk has that pid by now. left_by: has a name, and gives it up. */
static void link_name(int pid, int left_by)
{
	if (pid == left_by || !control_has_name(pid))
		control_link(pid);
}

static void link_names(const struct diskfile *file, int left_by)
{
	for (unsigned int i = 0; i < file->nr_former; i++)
		link_name(file->former[i], left_by);
}

/* Now ours. */
static void adopted(struct takeover *t, const struct diskfile *file)
{
	struct error err;

	if (!t->alive) {
		link_names(file, 0);
		link_name(file->pid, 0);
	}
	log_warn("takes over from tapdisk %d minor=%d path=%s%s", file->pid,
		 file->minor, file->args, file->paused ? " paused" : "");
	if (file->owner &&
	    owners_inherit(t->owners, file->minor, file->owner, &err))
		log_error("%s minor=%d", err.text, file->minor);
}

static void take(struct diskfile *file, void *priv)
{
	struct takeover *t = priv;
	enum wanted wanted = is_wanted(t, file);
	struct error err;
	int rc;

	if (wanted != NOW) {
		t->again |= wanted == LATER;
		return;
	}
	rc = server_adopt(t->server, file, &err);
	switch (-rc) {
	case 0:
		adopted(t, file);
		break;
	case ENOENT:
	case ENXIO:
	case ENODEV:
	case ESTALE:
		log_info("not taken over: %s", err.text);
		diskfile_forget(file->minor, file->pid);
		break;
	case EEXIST:
		break;
	default:
		t->rc = rc;
		t->err = err;
		if (worth_saying(t, rc))
			log_error("cannot be taken over yet: %s", err.text);
		t->again = true;
	}
}

/* True if something is to be tried again. */
static bool take_all(struct takeover *t)
{
	t->again = false;
	diskfile_for_each(take, t);
	return t->again;
}

static bool open_all(struct takeover *t)
{
	struct vbd_view view;
	struct error err;
	bool again = false;

	/* Nothing begins while the disks are left to another one. */
	if (server_is_leaving(t->server))
		return true;
	for (unsigned int i = 0; server_vbd(t->server, i, &view); i++) {
		int rc;

		if (!(view.state & VBD_REOPENING))
			continue;
		rc = server_reopen(t->server, view.minor, &err);
		if (!rc)
			continue;
		t->rc = rc;
		t->err = err;
		again = true;
		if (worth_saying(t, rc))
			log_error("requests wait until it can be opened: %s minor=%d",
				  err.text, view.minor);
	}
	return again;
}

static void link_ours(struct diskfile *file, void *priv)
{
	const int *left_by = priv;

	if (file->pid == getpid())
		link_names(file, *left_by);
}

int takeover_now(struct takeover *t, int pid, struct error *err)
{
	bool again;

	t->pids[0] = t->alive = pid;
	t->nr = 1;
	t->tries = 0;
	t->rc = 0;
	again = take_all(t);
	again |= open_all(t);
	t->nr = 0;
	t->alive = 0;
	if (again) {
		*err = t->err;
		return t->rc;
	}
	diskfile_for_each(link_ours, &pid);
	return 0;
}

static void step(struct io_timer *timer)
{
	struct takeover *t = container_of(timer, struct takeover, timer);
	unsigned int wait = t->tries < 5 ? 1u << t->tries : WAIT_MAX_S;
	bool again = take_all(t);

	server_expect(t->server, again);
	again |= open_all(t);
	t->tries++;
	if (again) {
		engine_timer_set(server_engine(t->server), timer,
				 now_ns() + wait * SECOND_NS);
		return;
	}
	t->nr = 0;
	if (t->done)
		t->done(t->priv);
	if (!t->left)
		server_stop_if_unused(t->server);
}

void takeover_open(struct takeover *t, struct server *server,
		   struct owners *owners)
{
	memset(t, 0, sizeof(*t));
	t->server = server;
	t->owners = owners;
	t->timer.expired = step;
	list_init(&t->timer.link);
}

void takeover_close(struct takeover *t)
{
	engine_timer_cancel(server_engine(t->server), &t->timer);
}

void takeover_begin(struct takeover *t, const int *pids, unsigned int nr)
{
	t->left = false;
	t->nr = nr < TAKEOVER_PIDS ? nr : TAKEOVER_PIDS;
	memcpy(t->pids, pids, t->nr * sizeof(*pids));
	t->tries = 0;
	server_expect(t->server, true);
	engine_timer_set(server_engine(t->server), &t->timer, now_ns());
}

void takeover_reopen(struct takeover *t)
{
	if (!t->timer.armed)
		t->tries = t->nr = 0;
	if (open_all(t) && !t->timer.armed)
		engine_timer_set(server_engine(t->server), &t->timer,
				 now_ns() + SECOND_NS);
}
