/* SPDX-License-Identifier: LGPL-2.1-only */
#ifndef XENBLK_TRANSPORT_OPEN_H
#define XENBLK_TRANSPORT_OPEN_H

#include "transport/gendisk.h"
#include "vbd.h"

/*
 * The transport of a minor that the caller has claimed (transport/minor.h). start
 * makes the gendisk and its name, or takes over those that a dead tapdisk has
 * left, with the requests held; stop removes both, -EBUSY while the
 * gendisk is open unless force.
 */
int transport_open(const struct gendisk_kind *kind,
		   struct transport **transport, struct vbd *vbd,
		   struct engine *engine, int minor, struct error *err);

#endif
