/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The server object of one tapdisk process: its engine and its VBDs. The
 * control server calls what is below; the verbs are tap-ctl's.
 *
 * Verbs that must drain requests answer through a callback, which may run
 * before the call returns; err is valid during the callback only.
 */
#ifndef XENBLK_SERVER_H
#define XENBLK_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/config.h"
#include "common/error.h"
#include "common/stats.h"
#include "io/engine.h"

struct diskfile;
struct server;
struct vbd;

typedef void (*server_done)(void *priv, int rc, const struct error *err);

int server_open(struct server **server, const struct config *cfg,
		struct error *err);
/* VBDs that are still attached are left as they are, for another process. */
void server_close(struct server *server);

struct engine *server_engine(struct server *server);
const struct config *server_config(const struct server *server);

/* From now on what is attached is served by NBD too, at <dir>/nbd<pid>.<minor>; dir stays the caller's. */
void server_export_in(struct server *server, const char *dir);

/*
 * Opens TYPE:PATH as a VBD without a minor, whose only transport is NBD at
 * socket. server_terminate() closes it and removes the socket.
 */
int server_serve(struct server *server, const char *args, bool readonly,
		 const char *socket, struct error *err);

/*
 * Runs until server_stop(). -errno if the engine is broken, or an image was not
 * closed cleanly at the end.
 */
int server_run(struct server *server);
void server_stop(struct server *server);
/* Whether disks of another tapdisk are still to be taken over. */
void server_expect(struct server *server, bool expects);
bool server_expects(const struct server *server);
/* Without a VBD, and with none to come. */
void server_stop_if_unused(struct server *server);
/* It ended by server_stop() or server_terminate(): no other tapdisk is wanted. */
bool server_ended(const struct server *server);
/*
 * Pauses every VBD that has a minor and closes the others, so that images are
 * closed cleanly, then stops.
 */
void server_terminate(struct server *server);

/* Claims a minor: from now on it is this process's. */
int server_attach(struct server *server, int minor, struct error *err);
/* -EBUSY while an image is open. */
int server_detach(struct server *server, int minor, struct error *err);

/* What the next image of the minor does about errors, in place of the configuration's. */
int server_set_retry(struct server *server, int minor,
		     const struct retry_policy *policy, struct error *err);
/*
 * Opens TYPE:PATH and makes the gendisk: done is called when that is there.
 */
struct server_open {
	const char *args;
	bool readonly;
	bool inactive;			/* vbd_open_inactive() */
	bool suspended;			/* with inactive: the same */
};
void server_open_image(struct server *server, int minor,
		       const struct server_open *open, server_done done,
		       void *priv);
/*
 * Drains, removes the gendisk and closes the image. -EBUSY while the gendisk
 * is open, unless force: then it is failed and removed. -ETIMEDOUT: I/O did
 * not come back in time (0: no limit); the close ends when it does.
 */
void server_close_image(struct server *server, int minor, bool force,
			unsigned int timeout_ms, server_done done, void *priv);

/*
 * Drains, then closes the image; the gendisk stays and holds its requests.
 * -ETIMEDOUT: as above, but the pause is called off.
 */
void server_pause(struct server *server, int minor, unsigned int timeout_ms,
		  server_done done, void *priv);
/*
 * Opens args (NULL: what was open) and goes on. If the minor is not paused but
 * has requests that wait for the storage or for space, they are tried now.
 */
int server_unpause(struct server *server, int minor, const char *args,
		   struct error *err);
/* vbd.h, vbd_reopen() and vbd_reopen_later() */
int server_reopen(struct server *server, int minor, struct error *err);
void server_reopen_later(struct server *server, int minor);

/* vbd.h, vbd_snapshot() */
void server_snapshot(struct server *server, int minor, const char *child,
		     const char *parent, const char *decision,
		     unsigned int timeout_ms, server_done done, void *priv);
void server_snapshot_hold(struct server *server, int minor, server_done done,
			  void *priv);
int server_snapshot_switch(struct server *server, int minor, struct error *err);
int server_snapshot_take(struct server *server, int minor, struct error *err);
void server_snapshot_settle(struct server *server, int minor);

/*
 * From now on what is open has a disk.<minor> (common/diskfile.h), by which
 * another tapdisk can take it over.
 */
void server_keep_files(struct server *server);
bool server_keeps_files(const struct server *server);
/* disk.<minor> of each is written anew. */
int server_note_all(struct server *server, struct error *err);
/* All disks are being paused for another process, which may begin with any of them. */
bool server_leaves_all(const struct server *server);
void server_set_leaving(struct server *server, bool leaving);
bool server_is_leaving(const struct server *server);
/* Before anything is paused for it: -EBUSY while another process could not go on with one of them. */
int server_may_leave(struct server *server, struct error *err);
/* Before it: ends the connections of clients. False: some have not ended yet; again, after a round. */
bool server_leave(struct server *server);
/* Of paused and closed VBDs: their devices are left, for who attaches the minors next. */
void server_let_go(struct server *server);
/* The process whose disk it is until it is kept, 0: none; before the open. */
void server_set_owner(struct server *server, int minor, int owner);
/* It has none any more. kept_for: what list shows until it is closed, or NULL. */
int server_keep(struct server *server, int minor, const char *kept_for,
		struct error *err);
/* Attaches what another process had, as it is noted; open it by server_unpause(). */
int server_adopt(struct server *server, const struct diskfile *file,
		 struct error *err);

/* What tap-ctl list and stats show. */
enum vbd_state {			/* bits, printed as %#x by tap-ctl list */
	VBD_PAUSE_REQUESTED	= 0x10,
	VBD_PAUSED		= 0x20,
	VBD_CLOSED		= 0x40,	/* attached, no image open */
	VBD_WAITING		= 0x1000,	/* requests failed and are tried again */
	VBD_NO_SPACE		= 0x2000,	/* writes wait for space */
	VBD_REOPENING		= 0x4000,	/* taken over from another tapdisk, and the image can't be opened yet */
	VBD_GIVEN_UP		= 0x8000,	/* its tapdisks died too often: it has none */
};

struct vbd_view {
	int minor;
	unsigned int state;
	const char *args;		/* "type:path", NULL while closed */
	const char *kept_for;		/* server_keep(), or NULL */
	bool readonly;
	bool inactive;			/* opened without its image, which another process, or host, still has */
	bool draining;			/* a pause, a close, a snapshot or an open is under way */
	uint64_t sectors;
	uint32_t sector_size;
	unsigned int depth;
	uint64_t stall_ns;		/* of the last snapshot */
	const struct stats_page *stats;
	/* leaf first; NULL past the end */
	const char *(*chain_path)(const struct vbd_view *view, unsigned int i);
	const struct vbd *vbd;
};

/* The i-th VBD of the process; false past the end. */
bool server_vbd(struct server *server, unsigned int i, struct vbd_view *view);

#endif
