/* SPDX-License-Identifier: LGPL-2.1-only */
/* What the files of tap-ctl share. */
#ifndef XENBLK_TAP_CTL_H
#define XENBLK_TAP_CTL_H

#include <jansson.h>
#include <stdbool.h>

#include "common/error.h"

#define TAP_CTL_TIMEOUT_MS 60000
/* A verb that has a limit of its own answers by then; the image is closed meanwhile. */
#define TAP_CTL_GRACE_MS   5000

#define EXIT_USAGE 2

/* Disks in one snapshot, beside the first */
#define TAP_CTL_ALSO 127

/* The settings for errors, as in the configuration: retry_errors and so on. */
#define TAP_CTL_RETRY 5
extern const char *const retry_keys[TAP_CTL_RETRY];

/* What a verb was called with. Numbers are -1 and strings NULL if not given. */
struct options {
	int pid;
	int minor;
	const char *args;		/* TYPE:PATH */
	const char *type;
	const char *file;
	bool readonly;
	bool inactive;
	bool suspended;
	bool force;
	bool json;
	bool all;
	int timeout_ms;
	int owner;
	const char *kept_for;
	const char *name;		/* the parent's, of snapshot */
	const char *also[TAP_CTL_ALSO];	/* PID:MINOR:PARENT */
	unsigned int nr_also;
	const char *transport;		/* as in the configuration */
	const char *retry[TAP_CTL_RETRY];	/* of the keys below */
};

/* Verbs: 0 or -errno with *err set. */
int cmd_list(const struct options *opt, struct error *err);
int cmd_allocate(const struct options *opt, struct error *err);
int cmd_free(const struct options *opt, struct error *err);
int cmd_fail(const struct options *opt, struct error *err);
int cmd_check(const struct options *opt, struct error *err);
int cmd_spawn(const struct options *opt, struct error *err);
int cmd_attach(const struct options *opt, struct error *err);
int cmd_detach(const struct options *opt, struct error *err);
int cmd_open(const struct options *opt, struct error *err);
int cmd_close(const struct options *opt, struct error *err);
int cmd_pause(const struct options *opt, struct error *err);
int cmd_unpause(const struct options *opt, struct error *err);
int cmd_probe(const struct options *opt, struct error *err);
int cmd_keep(const struct options *opt, struct error *err);
int cmd_restart(const struct options *opt, struct error *err);
int cmd_upgrade(const struct options *opt, struct error *err);
int cmd_create(const struct options *opt, struct error *err);
int cmd_destroy(const struct options *opt, struct error *err);

/* tap-ctl.c: "tap-ctl: <text>" on stderr, in one line */
void complain(const char *text);

/* tap-ctl-device.c */
/* A new minor, of the transport that opt or the configuration says. */
int allocate(const struct options *opt, int *minor, struct error *err);

/* tap-ctl-spawn.c */
/* Starts a tapdisk, with an option or NULL, and waits until it answers. It is a child of the caller. */
int tapdisk_spawn(int *pid, char *option, struct error *err);
/* Ends a child that has no VBD. */
void tapdisk_kill(int pid);
/*
 * Kills a child that hangs and leaves it to a process of its own to free the
 * minor once it is gone, which may be when a file server comes back.
 */
void tapdisk_abandon(int pid, int minor);

/* tap-ctl-vbd.c */
/* Verbs without further fields. */
int vbd_call(const char *op, int pid, int minor, struct error *err);
/* owner: -1, or the process without which it is undone until it is kept. */
int vbd_open(int pid, int minor, const struct options *opt, int owner,
	     int timeout_ms, struct error *err);
/* Tries again for a moment while the device is open, as udev does now and then. */
int vbd_close(int pid, int minor, bool force, int timeout_ms,
	      struct error *err);
int vbd_keep(const struct options *opt, struct error *err);

/* tap-ctl-stats.c */
int cmd_stats(const struct options *opt, struct error *err);

/* tap-ctl-snapshot.c */
int cmd_snapshot(const struct options *opt, struct error *err);

/* A snapshot to be made: of which disk, and what is made for it beforehand. */
struct snapshot {
	int pid;
	int minor;
	char *leaf;			/* links resolved */
	char *dir;			/* of all three */
	char *parent;			/* another name of the leaf */
	char *child;			/* its child, empty */
	bool named;			/* the parent, by us */
	int lock;			/* one at a time for a disk; -1: not taken */
};
/*
 * Makes the names and the child while the disk runs. parent: a name, or a path in the leaf's
 * directory. After an error nothing is left but what snapshot_free() frees.
 */
int snapshot_prepare(struct snapshot *s, int pid, int minor, const char *parent,
		     struct error *err);
/*
 * After a failure: without the child it can't happen any more. If the child is gone it
 * has happened, whatever was answered: then the parent's name is the only one.
 */
void snapshot_clear(const struct snapshot *s);
void snapshot_free(struct snapshot *s);
/* How long requests waited, from a tapdisk's answer, which is freed. */
void snapshot_stall(json_t *reply, json_int_t *longest);
void snapshot_print_stall(json_int_t us);

/* tap-ctl-group.c: snapshots of several disks, of one moment. */
int snapshot_group(struct snapshot *s, unsigned int nr, int timeout_ms,
		   struct error *err);

/* tap-ctl-create.c */
/* Stopping halfway would leave a minor, a tapdisk or a file behind. */
void hold_signals(void);
/*
 * A verb of a disk whose tapdisk is being upgraded: that has no disks before the next one has, by the same
 * name. owned: of one that has an owner.
 */
int once_it_is_there(int (*verb)(const struct options *opt, struct error *err),
		     const struct options *opt, bool owned, struct error *err);

/* tap-ctl-list.c */
/* All VBDs of a tapdisk as proto.h has them, in a new array. */
int tapdisk_vbds(int pid, int timeout_ms, json_t **vbds, struct error *err);
/* pid, minor, state, type, path, readonly, size, sector_size, depth, transport, waits_for. */
json_t *vbd_output(int pid, const json_t *vbd);

#endif
