/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A snapshot that is one of several, of one moment. Whoever makes them has all
 * disks flushed, then holds all, then switches the names of all, then decides,
 * then has all taken. Each step is answered when it is done.
 *
 *   snapshot -> hold -> switch -> (decision: take) -> take
 *                              -> (decision: undo) -> as it was
 *
 * The decision is a symbolic link, which is made at once or not at all: what it
 * leads to is "take" or "undo", and who makes it first decides for all. That is
 * the maker, or a tapdisk that is left alone: its connection has ended, or it
 * has waited for too long. So all disks have their snapshot, or none, whenever
 * the maker is killed.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "vbd-internal.h"

#define NSEC_PER_MSEC 1000000ull
/* The guests may be waiting meanwhile. */
#define MAKER_MS 10000u

/* ms 0: there is none. */
static void limit(struct vbd *vbd, unsigned int ms)
{
	engine_timer_cancel(vbd->engine, &vbd->drain_timer);
	if (ms)
		engine_timer_set(vbd->engine, &vbd->drain_timer,
				 engine_now(vbd->engine) + ms * NSEC_PER_MSEC);
}

bool vbd_group_waits(const struct vbd *vbd)
{
	return vbd->group != GROUP_NONE && vbd->group != GROUP_HOLDING;
}

void vbd_group_wait(struct vbd *vbd, enum group group)
{
	vbd->group = group;
	/* While it is merely ready no request waits, and other disks may take their time until they are. */
	limit(vbd, group == GROUP_READY ? vbd->drain_ms : MAKER_MS);
	vbd_drain_answer(vbd, 0, NULL);
}

static int check(const struct vbd *vbd, enum group group, struct error *err)
{
	if (vbd->group == group)
		return 0;
	return error_set(err, -ESTALE, "minor %d: has no snapshot that waits for this; one that waits too long is undone",
			 vbd->minor);
}

void vbd_snapshot_hold(struct vbd *vbd, server_done done, void *priv)
{
	struct error err;
	int rc = check(vbd, GROUP_READY, &err);

	if (rc) {
		done(priv, rc, &err);
		return;
	}
	vbd->drained = done;
	vbd->drained_priv = priv;
	vbd->group = GROUP_HOLDING;
	limit(vbd, vbd->drain_ms);
	vbd_snapshot_hold_now(vbd);
}

int vbd_snapshot_switch(struct vbd *vbd, struct error *err)
{
	int rc = check(vbd, GROUP_HELD, err);

	if (!rc)
		rc = vbd->image->driver->snapshot_switch(vbd->snapshot, err);
	if (!rc)
		vbd->group = GROUP_SWITCHED;
	return rc;
}

int vbd_snapshot_take(struct vbd *vbd, struct error *err)
{
	int rc = check(vbd, GROUP_SWITCHED, err);

	return rc ? rc : vbd_snapshot_taken(vbd, err);
}

/* True: take. Undone if it can't be known: what was not taken has changed nothing. */
static bool decided_to_take(const char *decision)
{
	char word[8];
	ssize_t n;

	if (!symlink("undo", decision))
		return false;
	n = readlink(decision, word, sizeof(word));
	return n == 4 && !memcmp(word, "take", 4);
}

void vbd_snapshot_settle(struct vbd *vbd)
{
	struct error err;

	if (!vbd_group_waits(vbd))
		return;
	if (decided_to_take(vbd->decision) && vbd->group == GROUP_SWITCHED) {
		if (vbd_snapshot_taken(vbd, &err))
			log_error("%s", err.text);
		return;
	}
	log_warn("a snapshot of several disks is undone minor=%d path=%s",
		 vbd->minor, vbd->args);
	vbd->image->driver->snapshot_undo(vbd->snapshot);
	vbd_call_off(vbd, -ECANCELED, NULL);
}
