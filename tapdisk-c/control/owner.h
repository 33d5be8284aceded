/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The owner of a VBD: a process that has it made and may be killed before it
 * has told anybody. Until the VBD is kept, the end of its owner is its own: the
 * gendisk is removed, the image closed, the minor freed.
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

/* The VBD no longer has an owner; false if it had none. */
bool owners_forget(struct owners *owners, int minor);

#endif
