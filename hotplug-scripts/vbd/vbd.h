/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * xenblk-vbd: what block-xenblk does, in one process. libxl calls the script as
 * "block-xenblk add|remove" with XENBUS_PATH set, and kills it after 40 s: what
 * it has begun by then undoes itself, since tapdisk watches this process until
 * it keeps the disk.
 */
#ifndef XENBLK_VBD_H
#define XENBLK_VBD_H

#include <stdbool.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "common/error.h"

struct xs_handle;

/* A backend node, and the tapdisk that has its disk. */
struct vbd {
	struct xs_handle *xs;
	const char *path;		/* XENBUS_PATH */
	const char *backends;		/* XENBUS_BASE_PATH: where all backend nodes are */
	char *params, *mode, *state;	/* "" where there is none */
	int pid, minor;			/* -1: none */
	char device[1024];		/* /dev/xen/blktap-2/tapdevN */
};

/* store.c: xenstore, through libxenstore. Paths are printf's. */

/* The value, to be freed; NULL if there is none. */
char *store_read(struct xs_handle *xs, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* The names below a node, to be freed as one; NULL if there are none. */
char **store_list(struct xs_handle *xs, unsigned int *nr, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Calls see for each backend node of a kind until one fails. */
int store_for_each(const struct vbd *vbd, const char *kind,
		   int (*see)(const struct vbd *vbd, const char *node,
			      void *priv, struct error *err),
		   void *priv, struct error *err);
int store_open(struct vbd *vbd, struct error *err);
/* The frontend's domain of a backend node; -1: it is none. */
int node_domid(const char *node);
/* -1: not there, or no number. */
int store_number(struct xs_handle *xs, const char *node, const char *name);
bool ends_with(const char *text, const char *end);
/* Fills params to minor. */
void store_load(struct vbd *vbd);
/* What Xen's write_dev does, and our keys, in one transaction. */
int store_connect(const struct vbd *vbd, struct error *err);
/*
 * Whether the guest comes from another host, or from this one, where it has its disk until it is here. It is suspended
 * there before libxl makes its disks; and an HVM guest's QEMU reads them before it goes on.
 */
enum arrival { ARRIVAL_NONE, ARRIVAL, ARRIVAL_HVM };
enum arrival store_arrival(const struct vbd *vbd);
/* hotplug-status alone: the disk is served already. */
int store_connected(const struct vbd *vbd, struct error *err);
/* Why it failed, where libxl finds it; status is "error" or "busy". */
void store_fail(const struct vbd *vbd, const char *status, const char *why);
/* The tapdisk is gone. */
void store_forget(const struct vbd *vbd);
/* Nor is there a device: the node is as it was before add. */
void store_undo(const struct vbd *vbd);

/* lock.c: Xen's claim_lock and release_lock, with its files and its protocol. */

/* Waits. All are released by unlock_all(), the one that was taken last by unlock_last(). */
int lock_named(const char *name, struct error *err);
void unlock_last(void);
void unlock_all(void);

/* tapctl.c: tap-ctl(8). Messages are without its name. */

/*
 * Opens params for this process: pid, minor, device. -EBUSY: another process
 * of this host, err->holder if it is known, has the image locked. With an arrival
 * the disk is there all the same then, and has the image when that is let go.
 */
int tapctl_create(struct vbd *vbd, bool readonly, enum arrival arrival,
		  struct error *err);
/* The disk is the guest's, and outlives this process. */
int tapctl_keep(const struct vbd *vbd, struct error *err);
/* Ends the service of pid and minor; -EAGAIN: it may be tried again. */
int tapctl_destroy(struct vbd *vbd, struct error *err);
bool tapctl_serves(struct vbd *vbd);

/*
 * sharing.c: who else uses an image, by dev:inode. The image lock is the last
 * word among tapdisks and all who lock; here are those who don't (QEMU, as libxl
 * runs it, loop devices, and for a block device mounts and other backends), and
 * the names of guests. -EBUSY: somebody's use and ours don't go together.
 */

/* Looks who uses files, anew. */
int sharing_look(const struct vbd *vbd, struct error *err);
/* The file, if we are to write it or only to read it. */
int sharing_check(const struct vbd *vbd, const char *file, bool writes,
		  struct error *err);
/* All that the tapdisk has opened: the image and its parents. */
int sharing_check_chain(const struct vbd *vbd, struct error *err);
/* Names the guest that err->holder serves, if it serves one. */
void sharing_name_holder(const struct vbd *vbd, struct error *err);

/* twin.c */

/*
 * True if a tapdisk serves params to the other one of the two, whether it has the image yet or not: pid, minor and device are those, and
 * the lock of the minor is held.
 */
bool twin_join(struct vbd *vbd);
/* Whether another node has the minor, whose lock is held after 0. */
int twin_stays(const struct vbd *vbd, bool *stays, struct error *err);

/* ask.c */
/*
 * stat(2) of another user's file, within seconds, all told; false if that is not to be had. device: of the file system
 * of our own image, which has answered; 0: none.
 */
bool ask_stat(const char *path, dev_t device, struct stat *st);

#endif
