/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The owner of a VBD: a process that has it made and may be killed before it
 * has told anybody. Until the VBD is kept, the end of its owner is its own: the
 * gendisk is removed, the image closed, the minor freed. Who creates a VBD with
 * a tapdisk of its own is its owner from the start of that tapdisk until the
 * image is open, so that what is killed halfway leaves neither of them.
 */
#ifndef XENBLK_CONTROL_OWNER_H
#define XENBLK_CONTROL_OWNER_H

#include <stdbool.h>

#include "common/error.h"
#include "common/list.h"
#include "server.h"

struct owners {
	struct server *server;
	struct list list;
};

void owners_open(struct owners *owners, struct server *server);
void owners_close(struct owners *owners);

/* Watches pid for the VBD. -ESRCH if it has ended. */
int owners_add(struct owners *owners, int minor, int pid, struct error *err);

/* The same for what was taken over: a pid that has ended, or ends, undoes it. */
int owners_inherit(struct owners *owners, int minor, int pid,
		   struct error *err);

/*
 * pid creates the VBD, which need not be attached yet. If it has ended, the minor
 * is freed all the same, and this tapdisk ends. minor -1: it brings disks of another tapdisk; if it ends before, this one has none and ends.
 */
int owners_create(struct owners *owners, int minor, int pid,
		  struct error *err);
/* Its image is open: whoever created it, if still there, is not its owner for that. */
void owners_created(struct owners *owners, int minor);

/* But who creates it. */
bool owners_has(struct owners *owners, int minor);
/* The VBD no longer has an owner but who creates it; false if it had none. */
bool owners_forget(struct owners *owners, int minor);
/* The VBD is no longer attached. */
void owners_detached(struct owners *owners, int minor);

#endif
