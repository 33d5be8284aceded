/* SPDX-License-Identifier: LGPL-2.1-only */
#include "control/leave.h"

#include <errno.h>
#include <string.h>

#include "common/clock.h"

/* Between two looks whether the clients' connections have ended, which they do at once. */
#define LEAVE_STEP_NS 1000000u

static void go_on(struct leave *leave)
{
	struct vbd_view view;

	/* One whose pause was called off goes on by itself. Before they are noted: nobody else has paused them. */
	for (unsigned int i = 0; server_vbd(leave->server, i, &view); i++)
		if (leave->paused[view.minor] && view.state & VBD_PAUSED)
			server_reopen_later(leave->server, view.minor);
	server_set_leaving(leave->server, false);
	takeover_reopen(leave->takeover);
}

static void let_go(struct leave *leave)
{
	struct vbd_view view;

	for (unsigned int i = 0; server_vbd(leave->server, i, &view); i++)
		owners_forget(leave->owners, view.minor);
	leave->takeover->left = true;
	server_let_go(leave->server);
	server_set_leaving(leave->server, false);
}

/* Nothing has to be done that it may go. */
static bool at_rest(const struct vbd_view *view)
{
	return view->state & (VBD_PAUSED | VBD_CLOSED | VBD_REOPENING) &&
	       !view->draining;
}

/* None has been opened, or goes on, since it was paused. */
static int check_all_rest(struct leave *leave)
{
	struct vbd_view view;

	for (unsigned int i = 0; server_vbd(leave->server, i, &view); i++)
		if (!at_rest(&view))
			return error_set(&leave->err, -EBUSY, "minor %d: was closed or went on meanwhile; try again",
					 view.minor);
	return 0;
}

/* Between two rounds of the server, when its VBDs may go. */
static void step(struct io_timer *timer)
{
	struct leave *leave = container_of(timer, struct leave, timer);

	if (!leave->rc && !leave->begun)
		leave->rc = check_all_rest(leave);
	if (!leave->rc && !leave->begun && leave->notes)
		leave->rc = server_note_all(leave->server, &leave->err);
	leave->begun = !leave->rc;
	/* Whoever is closed now is waited for. */
	if (!leave->rc && (!server_leave(leave->server) || check_all_rest(leave))) {
		engine_timer_set(server_engine(leave->server), &leave->timer,
				 now_ns() + LEAVE_STEP_NS);
		return;
	}
	if (leave->rc)
		go_on(leave);
	else
		let_go(leave);
	leave->busy = false;
	leave->done(leave->priv, leave->rc, &leave->err);
}

static void one_done(struct leave *leave)
{
	if (!--leave->pausing)
		engine_timer_set(server_engine(leave->server), &leave->timer,
				 now_ns());
}

/* One for each VBD would be asked for by its minor; they answer in any order. */
static void paused(void *priv, int rc, const struct error *err)
{
	struct leave *leave = priv;

	leave->refused += rc != 0;
	if (rc && !leave->rc) {
		leave->rc = rc;
		leave->err = *err;
	}
	one_done(leave);
}

void leave_open(struct leave *leave, struct server *server,
		struct owners *owners, struct takeover *takeover)
{
	memset(leave, 0, sizeof(*leave));
	leave->server = server;
	leave->owners = owners;
	leave->takeover = takeover;
	leave->timer.expired = step;
	list_init(&leave->timer.link);
}

void leave_close(struct leave *leave)
{
	engine_timer_cancel(server_engine(leave->server), &leave->timer);
}

/* Before anything is paused, so that a refusal costs nobody anything. */
static int check_may_leave(struct leave *leave, struct error *err)
{
	struct vbd_view view;

	if (leave->busy || leave->left_by)
		return error_set(err, -EBUSY, "its disks are being left already");
	for (unsigned int i = 0; server_vbd(leave->server, i, &view); i++) {
		/* What its guest, on the way here, must be able to read is known here alone. */
		if (view.inactive)
			return error_set(err, -EBUSY, "minor %d: is inactive, it waits for its image; try again when its guest has arrived",
					 view.minor);
		/* Nothing tells the next tapdisk of it. */
		if (view.state & VBD_CLOSED)
			return error_set(err, -EBUSY, "minor %d: is attached without an image; open or detach it, and try again",
					 view.minor);
	}
	/* They would be noted as another's while they still name one that died. */
	if (server_expects(leave->server))
		return error_set(err, -EBUSY, "it is taking over disks of a tapdisk that died; try again when it has them, or see tap-ctl list");
	return server_may_leave(leave->server, err);
}

void leave_begin(struct leave *leave, unsigned int timeout_ms, server_done done,
		 void *priv)
{
	struct vbd_view view;
	struct error err;
	int rc = check_may_leave(leave, &err);

	if (rc) {
		done(priv, rc, &err);
		return;
	}
	leave->busy = true;
	leave->rc = 0;
	leave->done = done;
	leave->priv = priv;
	leave->pausing = 1;
	leave->refused = 0;
	leave->begun = false;
	memset(leave->paused, 0, sizeof(leave->paused));
	server_set_leaving(leave->server, true);
	for (unsigned int i = 0; server_vbd(leave->server, i, &view); i++) {
		unsigned int refused = leave->refused;

		if (at_rest(&view))
			continue;
		leave->pausing++;
		server_pause(leave->server, view.minor, timeout_ms, paused,
			     leave);
		/* One that somebody else is pausing stays so. */
		leave->paused[view.minor] = leave->refused == refused;
	}
	one_done(leave);
}
