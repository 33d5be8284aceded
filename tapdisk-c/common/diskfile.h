/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * disk.<minor> in the run directory: what the next tapdisk needs to go on with
 * a disk whose tapdisk has died. Lines of key=value, unknown keys ignored,
 * replaced as a whole; there from open to close. Whoever has the ring of the
 * minor may write it.
 */
#ifndef XENBLK_DISKFILE_H
#define XENBLK_DISKFILE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/retry.h"

/* The first one, by which scripts may still call the disk, and the last ones. */
#define DISKFILE_FORMER 32

struct diskfile {
	int minor;
	int pid;			/* of the tapdisk that has or had it */
	uint64_t born;			/* that one, and not another with its pid: process.h; 0: not known */
	uint64_t id;			/* of the minor: minor.h */
	char *args;			/* TYPE:PATH */
	bool readonly;
	bool paused;
	bool lost;			/* a flush of tapdisk's own failed: the guest's next one must */
	bool signed_it;			/* its image names this disk as the last writer: vbd-writer.c */
	unsigned int dead_timeout_s;	/* to be the driver's again when it goes on; 0: it is as it was */
	bool given_up;			/* its tapdisks died too often: no other is started */
	int owner;			/* 0: none */
	char *kept_for;			/* what tap-ctl keep said; NULL: nothing */
	uint64_t sectors;		/* of the device */
	uint32_t sector_size;
	struct retry_policy retry;
	int former[DISKFILE_FORMER];	/* pids of earlier tapdisks, oldest first */
	unsigned int nr_former;
};

/* minor is set. -errno without a message: it is logged. */
int diskfile_write(const struct diskfile *file);
/*
 * The same; if it fails, a file that says another thing is removed: without one a disk waits for `tap-ctl`, with that it
 * could go on with an image that is not its own any more. loud: whether a failure is logged.
 */
int diskfile_update(const struct diskfile *file, bool loud);

/*
 * -ENOENT: there is none. -EPROTO: not understood, which is logged. The caller
 * disposes of it after 0.
 */
int diskfile_read(struct diskfile *file, int minor);
void diskfile_dispose(struct diskfile *file);

/* The tapdisk that has or had it is gone. */
bool diskfile_is_left(const struct diskfile *file);

/* It is this tapdisk's, or was before another one had it. */
bool diskfile_is_of(const struct diskfile *file, int pid);

/* Adds pid to those before; one of the middle gives way when there is no room. */
void diskfile_add_former(struct diskfile *file, int pid);

/* Removes it if it is of this tapdisk, 0: whosever it is. */
void diskfile_forget(int minor, int pid);

/* What names the tapdisk from names the tapdisk to. */
void diskfile_give(int from, int to);

/* Calls see for each that can be read, by the order of minors; it may change and remove the file. */
void diskfile_for_each(void (*see)(struct diskfile *file, void *priv),
		       void *priv);

#endif
