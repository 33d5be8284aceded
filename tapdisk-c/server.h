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
#include "io/engine.h"

struct server;
struct vbd;

typedef void (*server_done)(void *priv, int rc, const struct error *err);

int server_open(struct server **server, const struct config *cfg,
		struct error *err);
/* Every VBD must have been detached. */
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
/*
 * Pauses every VBD that has a minor and closes the others, so that images are
 * closed cleanly, then stops.
 */
void server_terminate(struct server *server);

/* Opens the ring of a minor: from now on it is this process's. */
int server_attach(struct server *server, int minor, struct error *err);
/* -EBUSY while an image is open. */
int server_detach(struct server *server, int minor, struct error *err);

/* Opens TYPE:PATH and makes the gendisk. */
int server_open_image(struct server *server, int minor, const char *args,
		      bool readonly, struct error *err);
/*
 * Drains, removes the gendisk and closes the image. -EBUSY while the gendisk
 * is open, unless force: then it is failed and removed.
 */
void server_close_image(struct server *server, int minor, bool force,
			server_done done, void *priv);

/* Drains, then closes the image; the gendisk stays and holds its requests. */
void server_pause(struct server *server, int minor, server_done done,
		  void *priv);
/* Opens args (NULL: what was open) and goes on. */
int server_unpause(struct server *server, int minor, const char *args,
		   struct error *err);

/* What tap-ctl list and stats show. */
enum vbd_state {			/* bits, printed as %#x by tap-ctl list */
	VBD_PAUSE_REQUESTED	= 0x10,
	VBD_PAUSED		= 0x20,
	VBD_CLOSED		= 0x40,	/* attached, no image open */
};

struct vbd_counters {
	uint64_t requests, sectors, errors;
	uint64_t total_ns;		/* from arrival to completion */
	uint64_t max_ns;
};

struct vbd_stats {
	struct vbd_counters read, write, flush;
	struct vbd_counters discard;	/* and write zeroes */
	struct vbd_counters status;
	unsigned int inflight;
	uint64_t merged;		/* I/Os that went along with a neighbour's */
};

struct vbd_view {
	int minor;
	unsigned int state;
	const char *args;		/* "type:path", NULL while closed */
	bool readonly;
	uint64_t sectors;
	uint32_t sector_size;
	unsigned int depth;
	struct vbd_stats stats;
	/* leaf first; NULL past the end */
	const char *(*chain_path)(const struct vbd_view *view, unsigned int i);
	const struct vbd *vbd;
};

/* The i-th VBD of the process; false past the end. */
bool server_vbd(struct server *server, unsigned int i, struct vbd_view *view);

#endif
