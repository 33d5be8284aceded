/* SPDX-License-Identifier: LGPL-2.1-only */
/* What the next tapdisk finds of a VBD: disk.<minor>, common/diskfile.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/process.h"
#include "common/rundir.h"
#include "vbd-internal.h"

/* A run directory that is full: until there is room. */
#define AGAIN_NS 1000000000ull

static void fill(struct vbd *vbd)
{
	struct diskfile *note = &vbd->note;

	note->minor = vbd->minor;
	note->pid = getpid();
	note->born = process_born(note->pid);
	note->args = vbd->args;
	note->kept_for = vbd->kept_for;
	note->readonly = vbd->readonly;
	/* Paused to be left, it is not for the next one. */
	if (!server_leaves_all(vbd->server))
		note->paused = !vbd->image && !vbd->reopen;
	note->lost = vbd->lost;
	note->sectors = vbd->info.sectors;
	note->sector_size = vbd->info.sector_size;
	note->retry = vbd->retry;
}

/* Nobody takes over what is being closed. */
static bool is_noted(const struct vbd *vbd)
{
	return vbd->minor >= 0 && server_keeps_files(vbd->server) &&
	       vbd->drain != DRAIN_CLOSE;
}

int vbd_note(struct vbd *vbd)
{
	int rc;

	if (!is_noted(vbd))
		return 0;
	engine_timer_cancel(vbd->engine, &vbd->note_timer);
	if (!vbd->args) {
		diskfile_forget(vbd->minor, getpid());
		vbd->note_failed = 0;
		return 0;
	}
	fill(vbd);
	rc = diskfile_update(&vbd->note, !vbd->note_failed);
	if (rc)
		engine_timer_set(vbd->engine, &vbd->note_timer,
				 engine_now(vbd->engine) + AGAIN_NS);
	else if (vbd->note_failed)
		log_info("the disk is noted for the next tapdisk minor=%d",
			 vbd->minor);
	vbd->note_failed = rc;
	return rc;
}

static void again(struct io_timer *timer)
{
	vbd_note(container_of(timer, struct vbd, note_timer));
}

static int not_noted(const struct vbd *vbd, int rc, struct error *err)
{
	return error_set(err, rc, "minor %d: cannot be noted in %s for the next tapdisk: %s; make room there and try again",
			 vbd->minor, run_dir(), strerror(-rc));
}

int vbd_note_now(struct vbd *vbd, struct error *err)
{
	int rc = vbd_note(vbd);

	return rc ? not_noted(vbd, rc, err) : 0;
}

void vbd_set_owner(struct vbd *vbd, int owner)
{
	vbd->note.owner = owner;
	if (vbd->args)
		vbd_note(vbd);
}

int vbd_keep(struct vbd *vbd, const char *kept_for, struct error *err)
{
	char *copy = kept_for ? strdup(kept_for) : NULL;
	char *before = vbd->kept_for;
	int owner = vbd->note.owner;
	int rc = 0;

	if (kept_for && !copy)
		return error_set(err, -ENOMEM, "minor %d: out of memory",
				 vbd->minor);
	vbd->kept_for = copy;
	vbd->note.owner = 0;
	/* If that can't be, what is there stays, and is right. */
	if (vbd->args && is_noted(vbd)) {
		fill(vbd);
		rc = diskfile_write(&vbd->note);
	}
	if (rc) {
		vbd->kept_for = before;
		vbd->note.owner = owner;
		fill(vbd);
		free(copy);
		return not_noted(vbd, rc, err);
	}
	free(before);
	return 0;
}

void vbd_note_init(struct vbd *vbd)
{
	vbd->note_timer.expired = again;
	list_init(&vbd->note_timer.link);
}

void vbd_note_destroy(struct vbd *vbd)
{
	engine_timer_cancel(vbd->engine, &vbd->note_timer);
}
