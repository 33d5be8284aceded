/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The disks that xl block-attach mostly gets, as tap2:vhd:/srv/a.vhd,xvdb,w, without xenblk, whose start is three times
 * the work of all the rest. Only what can be read in no other way, and is in order: what is not taken here is for
 * xenblk, which says what is wrong. tests/unit/test_xl_plain.py holds it against xenblk.
 */
#ifndef XENBLK_XL_PLAIN_H
#define XENBLK_XL_PLAIN_H

#include <limits.h>
#include <stdbool.h>

struct xl_plain {
	char target[PATH_MAX]; /* vhd:/path or aio:/path */
	char vdev[12];
	bool writes;
};

/* The words of a disk, which xl reads one after the other, of one spec or more. False: it is not of that kind. */
bool xl_plain_read(int nr, char *const *words, struct xl_plain *disk);
/* As Xen's xl takes it, to be freed; NULL: out of memory. */
char *xl_plain_rewritten(const struct xl_plain *disk);
/* Settings are applied, xenstored answers, and the image can be opened now. */
bool xl_plain_ready(const struct xl_plain *disk, const char *tap_ctl);

#endif
