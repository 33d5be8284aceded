/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A bitmap file: which parts of a disk have changed since the file was made.
 *
 * The file, numbers big-endian:
 *
 *   0     8   "xbdirty" and a zero byte
 *   8     4   version, 1
 *   12    4   granularity: bytes of the disk that a bit stands for, 65536
 *   16    8   size of the disk in bytes
 *   24    4   state: 1 consistent, 0 open
 *   28    4   zero
 *   32    40  the host's boot id while open (/proc/sys/kernel/random/boot_id), zero-padded
 *   4096  ... the bits: part i is bit i % 8 (of value 1 << i % 8) of byte i / 8. As
 *             many bytes as that takes, rounded up to 8
 *
 * A bit is in the file before the change that it stands for begins, and on the
 * medium when a flush is answered. So the bits are complete when the state is
 * consistent, and when it is open but the boot id is the host's: then the disk
 * is being served, or its tapdisk was killed. With another boot id, after a power loss,
 * bits may be missing; the next dirty_open() then sets them all.
 *
 * Nothing clears bits. To begin anew, move the file away while the disk is
 * closed or paused; a missing one is made, with no bit set.
 */
#ifndef XENBLK_DIRTY_H
#define XENBLK_DIRTY_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

struct dirty {
	int fd;
	char *path;
	uint64_t size;			/* of the disk, bytes */
	uint64_t nr_bytes;		/* of bits */
	uint8_t *bits;			/* as in the file */
	bool unsynced;			/* the file has bits that no sync began after */
	bool rewrite;			/* a write or sync has failed: file or medium may lack any bit */
	bool doubtful;			/* and who opens it next must take all for changed */
};

/*
 * Opens or makes the file for a disk of size bytes, locks it, and marks it open
 * on the medium. -EINVAL if it is none, or of a disk of another size.
 */
int dirty_open(struct dirty *d, const char *path, uint64_t size,
	       struct error *err);

/* Marks it consistent, if all bits can be brought to the medium. Closes it in any case. */
int dirty_close(struct dirty *d, struct error *err);

/* len bytes from offset are about to change. 0, or -errno: then they must not. */
int dirty_set(struct dirty *d, uint64_t offset, uint64_t len);

/* To be called before a sync of d->fd begins, and with its result. */
int dirty_sync_begin(struct dirty *d);
void dirty_sync_end(struct dirty *d, int err);

#endif
