/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A VBD: one disk, served by this process. Its transports bring requests,
 * its image answers them; between the two it counts, and drains for pause and
 * close.
 */
#ifndef XENBLK_VBD_H
#define XENBLK_VBD_H

#include "common/retry.h"
#include "drivers/image.h"
#include "server.h"
#include "transport/transport.h"

/*
 * In a slot of the transport, which fills image (the caller's part of struct
 * image_request but done), fua and done.
 */
struct vbd_request {
	struct image_request image;
	bool fua;			/* a write, discard or zero is durable when done; a flush is for some of them */
	bool unwanted;			/* set while it is under way: who asked is gone, it is not tried again */
	struct transport *from;		/* whose flushes tell of errors; NULL: the VBD's first */
	void (*done)(struct vbd_request *req, int err);

	struct vbd *vbd;
	enum image_op op;		/* as it came: a flush may follow for fua */
	unsigned int losses;		/* the VBD's when it came: if there are more, its flush tells nothing */
	uint64_t arrived_ns;

	/* vbd-retry.c */
	struct list wait;
	uint64_t failed_ns;		/* when it first did, for this reason; 0: it has not */
	int failure;			/* -errno, of the last time */
	unsigned int lack;		/* enum vbd_lack */
	bool gave_up;			/* waits for `tap-ctl unpause` */
};

/*
 * Writes disk.<minor> as things are now; removes it when nothing is open. If it can't be
 * written, which is logged, that is tried again until it can, and what would mislead the next
 * tapdisk is removed.
 */
int vbd_note(struct vbd *vbd);
/* The same, with a message: for verbs that are not done before it is there. */
int vbd_note_now(struct vbd *vbd, struct error *err);
/* Flushes that failed so far, of anybody: who has more at the end than at the beginning has lost something, maybe. */
unsigned int vbd_losses(const struct vbd *vbd);
/* A flush has failed, and the user's next one has to tell. */
bool vbd_has_lost(const struct vbd *vbd);

/* minor is -1 for a VBD that has none. It has no transport yet. */
int vbd_create(struct vbd **vbd, struct server *server, int minor,
	       struct error *err);
/* With the transport of minor, which is this process's until it is detached. */
int vbd_attach(struct vbd **vbd, struct server *server, int minor,
	       struct error *err);
/* Closes the transports and frees the VBD; -EBUSY while an image is open. */
int vbd_detach(struct vbd *vbd, struct error *err);
/* Before it is paused for another process to go on with it: -EBUSY while that could not. */
int vbd_may_leave(struct vbd *vbd, struct error *err);
/* Paused or closed, and another process goes on with it: ends clients' connections. False: again, after a round. */
bool vbd_leave(struct vbd *vbd);
/* The process ends: requests that are not answered are left to the transport. */
void vbd_abandon(struct vbd *vbd);

/* From now on the VBD's, which closes it; started if an image is open. */
int vbd_add_transport(struct vbd *vbd, struct transport *transport,
		      struct error *err);

/* What is done about errors from the next request on; until then as the configuration says. */
void vbd_set_retry(struct vbd *vbd, const struct retry_policy *policy);

int vbd_open(struct vbd *vbd, const char *args, bool readonly,
	     struct error *err);
/*
 * The same, but if somebody else has the image's lock the disk is there at once,
 * its requests wait, and the image is opened when the lock is free (vbd-inactive.c).
 * suspended: nobody writes to it any more, so its beginning can be read at once.
 */
int vbd_open_inactive(struct vbd *vbd, const char *args, bool readonly,
		      bool suspended, struct error *err);
/*
 * After a vbd_open(): calls done when all transports are ready. If one fails, the
 * VBD is closed first.
 */
void vbd_when_ready(struct vbd *vbd, server_done done, void *priv);

/*
 * Of a VBD that is attached and closed: it has what is noted open, but its image
 * not yet: vbd_unpause() opens it.
 */
int vbd_adopt(struct vbd *vbd, const struct diskfile *file, struct error *err);
/* Noted with the disk: server_set_owner(). */
void vbd_set_owner(struct vbd *vbd, int owner);
/* server_keep() */
int vbd_keep(struct vbd *vbd, const char *kept_for, struct error *err);

/*
 * Pause and close wait for the requests that the image has, at most timeout_ms
 * (0: as long as it takes). Requests that wait for the storage or for space
 * don't hold them up: after a pause they are still there, a close answers them
 * with their errors. A pause that ran out of time (-ETIMEDOUT) is called off
 * and the VBD goes on; a close goes on and ends when its I/O does.
 */
void vbd_close(struct vbd *vbd, bool force, unsigned int timeout_ms,
	       server_done done, void *priv);
void vbd_pause(struct vbd *vbd, unsigned int timeout_ms, server_done done,
	       void *priv);
/*
 * Opens args (NULL: what was open), at least as large as the disk was, and goes
 * on. After an error the VBD is paused as before. One that is not paused but has
 * requests that wait tries them now (args NULL). A pause that is under way is called off (args NULL).
 */
int vbd_unpause(struct vbd *vbd, const char *args, struct error *err);
/*
 * The same for one that is to go on by itself (VBD_REOPENING): -ESTALE if another disk has written
 * to the image since this one had it.
 */
int vbd_reopen(struct vbd *vbd, struct error *err);
/* Paused, and that is over: vbd_reopen() is for the caller to try until it succeeds. */
void vbd_reopen_later(struct vbd *vbd);

/*
 * child, in a file that the caller has made, gets the leaf's name and has the
 * leaf, under its name parent, as its parent (image.h). Requests wait no
 * longer than a flush and a rename take. After an error nothing has changed.
 */
void vbd_snapshot(struct vbd *vbd, const char *child, const char *parent,
		  const char *decision, unsigned int timeout_ms,
		  server_done done, void *priv);
/*
 * With a decision (a path, vbd-group.c; else NULL) done is called before the hold.
 * The next steps are hold, switch, take; or settle, when the maker is gone, which takes or
 * undoes it as is decided. -ESTALE: it is not at this step, or was settled.
 */
void vbd_snapshot_hold(struct vbd *vbd, server_done done, void *priv);
int vbd_snapshot_switch(struct vbd *vbd, struct error *err);
int vbd_snapshot_take(struct vbd *vbd, struct error *err);
void vbd_snapshot_settle(struct vbd *vbd);

/*
 * From the transport. Answers -EIO to what is not on the disk, -EPERM to what
 * would change a read-only one, -EOPNOTSUPP to what the image can't.
 */
void vbd_submit(struct vbd *vbd, struct vbd_request *req);

/* From the transport: of what waits, answers what is unwanted. */
void vbd_drop_unwanted(struct vbd *vbd);

/*
 * After each round of the engine: hands completions over, takes new requests,
 * and goes on with a drain that has come to its end. True if there is more to
 * do before the next wait.
 */
bool vbd_round(struct vbd *vbd);

/* No image is open, and no verb is under way. */
bool vbd_idle(const struct vbd *vbd);

/* A pause, a close, a snapshot or an open is under way. */
bool vbd_draining(const struct vbd *vbd);
/* -EBUSY then. */
int vbd_check_not_draining(const struct vbd *vbd, struct error *err);

/* For transports: the image that is open, or NULL. */
struct image *vbd_image(struct vbd *vbd);
const struct config *vbd_config(const struct vbd *vbd);
int vbd_minor(const struct vbd *vbd);
unsigned int vbd_state(const struct vbd *vbd);
void vbd_fill_view(const struct vbd *vbd, struct vbd_view *view);

#endif
