/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Opening files that somebody may have a lease on (fcntl(2), F_SETLEASE): an
 * NFS server for a client, which it calls a delegation, or Samba. An open that conflicts
 * takes it back, which is over in some milliseconds if who has it is alive. An open with
 * O_NONBLOCK does not wait for that.
 */
#ifndef XENBLK_LEASE_H
#define XENBLK_LEASE_H

/*
 * openat() with O_NONBLOCK, so that a FIFO doesn't hang; dir may be AT_FDCWD.
 * A descriptor, or -errno: -EAGAIN if a lease is not given up within ten seconds.
 */
int lease_open(int dir, const char *path, int flags);

/* What to say of that error. */
const char *lease_strerror(int rc);

#endif
