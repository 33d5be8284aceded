/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Who makes a minor's gendisk: the blktap driver, or a part of the stock kernel,
 * ublk or nbd. transport/minor.h says which one a minor has.
 *
 * A gendisk of the stock kernel has a name of its own there. As
 * /dev/xen/blktap-2/tapdevN it is a link to that: when the gendisk is gone, so
 * is what the link leads to, and it leads to no other disk.
 */
#ifndef XENBLK_GENDISK_H
#define XENBLK_GENDISK_H

#include <stdbool.h>

#include "common/error.h"

/* What is done from outside of tapdisk; transport/open.h is for inside. */
struct gendisk_kind {
	const char *name;		/* as in the configuration */

	/*
	 * Required. 0 if the kernel has it, whose module is loaded if need be; else
	 * an error that names the remedy.
	 */
	int (*check)(struct error *err);

	/*
	 * Optional. Ahead of a close that is not forced, for a kind whose stop can't
	 * find out by itself whether the gendisk is open: -EBUSY while it is; after
	 * 0 nobody has it open, or it is gone, and stop finds that so. May wait for tapdisk, which is serving.
	 */
	int (*vacate)(int minor, struct error *err);

	/*
	 * Required, but for blktap. No tapdisk has the minor: fails what the gendisk
	 * holds and removes it. 0 if there is none.
	 */
	int (*remove)(int minor, struct error *err);

	/* Optional. The kernel has something in the place of this minor's gendisk. */
	bool (*taken)(int minor);
};

extern const struct gendisk_kind blktap_gendisk;
extern const struct gendisk_kind ublk_gendisk;	/* transport/ublk.h */

/* By its name; NULL: this release has none. */
const struct gendisk_kind *gendisk_find(const char *name);

/*
 * The first of the transports (the configuration's "transport") that is to be
 * had here. *kind is set and 0 returned, or the error says of each why it is not.
 */
int gendisk_choose(const char *transports, const struct gendisk_kind **kind,
		   struct error *err);

/*
 * Makes /dev/xen/blktap-2/tapdev<minor> lead to /dev/<name>, which becomes root's
 * alone. A link that is there is replaced, anything else is an error.
 */
int gendisk_publish(int minor, const char *name, struct error *err);
/* Removes the link, if it is one. */
void gendisk_unpublish(int minor);

/* `modprobe NAME [PARAMETER]`; -ENODEV and what it said in *err. */
int module_load(const char *name, const char *parameter, struct error *err);

#endif
