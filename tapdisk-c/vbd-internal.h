/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * What the files of a VBD share.
 *
 *   vbd.c        its life: transports, image, open; requests
 *   vbd-drain.c  pause, unpause, close, snapshot
 *   vbd-group.c  a snapshot that is one of several
 *   vbd-inactive.c  an image that somebody else still has
 *   vbd-retry.c  requests whose image failed: they wait and are tried again
 *   vbd-stats.c  counting
 *   vbd-note.c   what the next tapdisk finds
 *   vbd-writer.c whether others have written to the image meanwhile
 *
 * A request is in one of three places: with the image (inflight - nr_waiting
 * of them), on the list waiting, or answered.
 */
#ifndef XENBLK_VBD_INTERNAL_H
#define XENBLK_VBD_INTERNAL_H

#include "common/diskfile.h"
#include "common/retry.h"
#include "common/stats.h"
#include "vbd.h"

/* A snapshot that is one of several: what it waits for is in the comments. */
enum group {
	GROUP_NONE,		/* alone, or the flush before the hold */
	GROUP_READY,		/* vbd_snapshot_hold() */
	GROUP_HOLDING,		/* the requests in flight, a flush */
	GROUP_HELD,		/* vbd_snapshot_switch() */
	GROUP_SWITCHED,		/* vbd_snapshot_take() */
};

/* The verb that is under way. DRAIN_OPEN waits for transports, and drains nothing. */
enum drain { DRAIN_NONE, DRAIN_PAUSE, DRAIN_CLOSE, DRAIN_SNAPSHOT, DRAIN_OPEN };

/* What a failed request waits for. */
enum vbd_lack { LACK_STORAGE, LACK_SPACE, NR_LACKS };

struct vbd {
	struct server *server;
	struct engine *engine;
	int minor;			/* -1: none */
	int claim;			/* transport/minor.h; -1: none */
	struct list transports;		/* the one that may refuse to stop is first */
	struct io_stream stream;
	struct image *image;		/* NULL while closed or paused */
	char *args;			/* NULL while closed */
	char *kept_for;			/* NULL: nobody has said */
	bool readonly;
	bool held;			/* an image is open, but a transport could not be released */
	struct image_info info;		/* as last opened */
	bool adopted;			/* from another process: the transports are not started yet */
	bool reopen;			/* and nobody has paused it */
	struct diskfile note;		/* what no other field says */
	struct io_timer note_timer;	/* set while disk.<minor> can't be written */
	int note_failed;		/* why not */
	unsigned int inflight;
	struct error unready;		/* why it was not opened; code 0: it was */
	int lost;			/* a flush that another asked for failed: -errno for the user's next one */
	unsigned int losses;		/* flushes that failed so far, of anybody */
	struct stats_page *stats;

	/* vbd-drain.c */
	enum drain drain;
	server_done drained;		/* NULL: nobody waits for it */
	void *drained_priv;
	struct io_timer drain_timer;
	unsigned int drain_ms;		/* 0: as long as it takes */
	struct image_request flush;	/* ours, before the image is closed */
	bool flushing, flushed;
	int flush_err;			/* of the last one, in this drain */
	bool flush_old;			/* the one that runs began before this drain */
	struct image_snapshot *snapshot;
	bool drain_early;		/* snapshot: the flush before the hold */
	char *decision;			/* vbd-group.c; NULL: a snapshot of this disk alone */
	enum group group;
	uint64_t stall_ns;		/* snapshot: the longest time for which requests waited */
	uint64_t hold_ns;		/* when the hold began */

	/* vbd-inactive.c */
	struct io_timer inactive_timer;	/* set while the image is waited for */
	uint64_t inactive_said_ns;
	uint8_t *first;			/* what can be read meanwhile, IMAGE_LOOK_SECTORS; NULL: nothing */

	/* vbd-retry.c */
	struct retry_policy retry;
	struct list waiting;		/* vbd_request.wait */
	unsigned int nr_waiting;
	unsigned int nr_failed[NR_LACKS];	/* have failed and are not answered */
	uint64_t outage_ns;		/* when the first of them did */
	bool retry_ended;		/* some wait for `tap-ctl unpause` */
	struct io_timer retry_timer;
};

#define for_each_transport(t, vbd) \
	list_for_each(pos_##t, &(vbd)->transports) \
		for (struct transport *t = container_of(pos_##t, \
							struct transport, link); \
		     t; t = NULL)

/* vbd.c */
int vbd_image_open(struct vbd *vbd, const char *args, bool readonly,
		   struct error *err);
/* As image drivers want them, of another path. */
struct image_open_args vbd_image_args(struct vbd *vbd, const char *path,
				      bool readonly);
/* All that was answered has been flushed, so that its error is not the guest's. */
int vbd_image_close(struct vbd *vbd, struct error *err);
/* Hands a request to the image, which is open; one that it can't do is answered. */
void vbd_submit_image(struct vbd *vbd, struct vbd_request *req);
/* Answers a request, which is not on the list waiting. */
void vbd_finish(struct vbd_request *req, int err);
/*
 * A flush has failed, and the next one, which would succeed, must not for whoever
 * has written and has not been told. except: who has; NULL: nobody. Where the first has
 * not written, whoever is told has it told.
 */
void vbd_lose(struct vbd *vbd, int err, const struct transport *except);
/* What the next flush of that transport has to tell, and that it has. NULL: the first. */
int vbd_lost(const struct vbd *vbd, const struct transport *from);
void vbd_told(struct vbd *vbd, struct transport *from);
void vbd_hold_all(struct vbd *vbd);
/* All are held after an error. */
int vbd_release_all(struct vbd *vbd, struct error *err);
/* What a pause after another tapdisk has put off. */
void vbd_restore_dead_timeout(struct vbd *vbd);
/* The same after a pause, or for what was adopted. */
int vbd_start_all(struct vbd *vbd, struct error *err);

/* The disk as vbd->info says, without an image: its requests wait. */
int vbd_open_held(struct vbd *vbd, const char *args, bool readonly,
		  struct error *err);

/* vbd-note.c */
void vbd_note_init(struct vbd *vbd);
void vbd_note_destroy(struct vbd *vbd);

/* vbd-writer.c */
/* The image is open, and this disk is its writer now, unless it is read-only. */
void vbd_writer_sign(struct vbd *vbd, const char *args);
/* -ESTALE: this disk has had the image, and another one was its writer since. */
int vbd_writer_check(const struct vbd *vbd, const char *args,
		     struct error *err);

/* vbd-inactive.c */
void vbd_inactive_init(struct vbd *vbd);
/* The image is waited for no more. */
void vbd_inactive_end(struct vbd *vbd);
/* A request that has come while no image is open: true if it is a read of what is known, and its data is in place. */
bool vbd_read_first(const struct vbd *vbd, struct image_request *image);

/* vbd-drain.c */
void vbd_drain_init(struct vbd *vbd);
/* After each round while vbd->drain is set. */
void vbd_drain_step(struct vbd *vbd);
/* Answers the verb. */
void vbd_drain_answer(struct vbd *vbd, int rc, const struct error *err);
/* A pause or a snapshot failed with rc: the image goes on as it was. */
void vbd_call_off(struct vbd *vbd, int rc, const struct error *err);
/* The disk goes on with the new leaf, which has its name. */
int vbd_snapshot_taken(struct vbd *vbd, struct error *err);

/* Requests wait from now on. */
void vbd_snapshot_hold_now(struct vbd *vbd);

/* vbd-group.c */
/* The next step is the maker's: READY or HELD. */
void vbd_group_wait(struct vbd *vbd, enum group group);
bool vbd_group_waits(const struct vbd *vbd);

/* vbd-retry.c */
void vbd_retry_init(struct vbd *vbd);
void vbd_retry_destroy(struct vbd *vbd);
/* The marker of the minor, which may be a dead tapdisk's. */
void vbd_unmark_no_space(const struct vbd *vbd);
/* A request has failed. True: it waits; false: the error is the guest's. */
bool vbd_retry(struct vbd *vbd, struct vbd_request *req, int err);
/* Whether another try of the same may succeed, and be the truth then. */
bool vbd_may_pass(const struct vbd *vbd, enum image_op op, int err);
/* It has come while no image is open. */
void vbd_retry_hold(struct vbd *vbd, struct vbd_request *req);
/* A request that had failed is about to be answered. */
void vbd_retry_over(struct vbd *vbd, struct vbd_request *req, int err);
/* All that wait are tried now, for another period. */
void vbd_retry_now(struct vbd *vbd);
/* All that wait are answered with their errors. */
void vbd_retry_fail(struct vbd *vbd);

/* vbd-stats.c */
void vbd_stats_open(struct vbd *vbd);
void vbd_stats_describe(struct vbd *vbd);
void vbd_stats_publish(struct vbd *vbd);

static inline void vbd_account(struct vbd *vbd, const struct vbd_request *req,
			       int err)
{
	struct stats_op *op = &vbd->stats->op[req->op];
	uint64_t ns = engine_now(vbd->engine) - req->arrived_ns;

	op->requests++;
	op->sectors += req->image.count;
	op->errors += err != 0;
	op->total_ns += ns;
	op->latency[stats_bucket(ns)]++;
	if (ns > op->max_ns)
		op->max_ns = ns;
}

#endif
