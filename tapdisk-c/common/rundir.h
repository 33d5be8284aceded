/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The directory of what a running tapdisk shows: ctl<pid>, its control socket;
 * stats<pid>.<minor>, the statistics page of a VBD (common/stats.h);
 * nospace.<minor>, there while a VBD waits for space; nbd<pid>.<minor>, its NBD socket;
 * minor<minor>, a minor of the stock kernel's transports (transport/minor.h);
 * disk.<minor>, for the next tapdisk (common/diskfile.h). ctl<pid> of a dead one is a
 * link to that of the one that took its disks over.
 */
#ifndef XENBLK_RUNDIR_H
#define XENBLK_RUNDIR_H

#include <stddef.h>

/* $XENBLK_CONTROL_DIR, for tests, else /run/blktap-control. */
const char *run_dir(void);

/* The path of a name in it, which fmt and what follows make; -ENAMETOOLONG. */
int run_path(char *path, size_t size, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#endif
