/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * What the files of the ublk transport share.
 *
 *   ublk.c       a VBD's requests, from the kernel and back
 *   ublk-life.c  the device: made, taken over, removed
 *
 *   NONE -> (TAKING ->) STARTING -> TUNING -> LIVE -> STOPPING -> STOPPED
 *                 any but LIVE -> FAILED
 */
#ifndef XENBLK_UBLK_INTERNAL_H
#define XENBLK_UBLK_INTERNAL_H

#include <poll.h>

#include "transport/ublk-control.h"
#include "transport/ublk-desc.h"
#include "vbd.h"

enum ublk_phase {
	UBLK_NONE,
	UBLK_TAKING,		/* waits until nothing of an older device is in the way */
	UBLK_STARTING,		/* START or END_RECOVERY is under way */
	UBLK_TUNING,		/* the device is there, its queue is set up */
	UBLK_LIVE,
	UBLK_STOPPING,		/* STOP is under way */
	UBLK_STOPPED,		/* the gendisk is gone */
	UBLK_FAILED,		/* ublk.failure */
};

struct ublk_slot {
	struct ublk *ublk;
	struct vbd_request req;
	struct list wait;		/* ublk.waiting */
	bool with_kernel;
	struct io_req io;		/* its command */
	struct iovec iov;
	struct ublk_io cmd;
};

struct ublk {
	struct transport transport;	/* link: of those that are left, too */
	struct vbd *vbd;
	struct engine *engine;
	int minor;
	struct ublk_device device;
	struct io_watch watch;		/* of device.ring */
	struct io_timer timer;		/* TAKING; later: the queue is to be mapped */
	uint64_t deadline_ns;
	struct io_plug plug;		/* what waits is to be submitted */
	enum ublk_phase phase;
	struct error failure;
	bool mine;			/* it is this process's to remove */
	bool gone;			/* the kernel has taken slots back */
	bool readonly;
	struct image_info info;		/* as it was started with */
	uint64_t sectors;		/* of the gendisk */
	uint64_t unshown;		/* of an image that is gone on with though the gendisk stays smaller; 0: none */
	uint64_t features;		/* UBLK_F_ that were granted */
	unsigned int tuned;		/* settings of the queue that are made */
	uint16_t creds;			/* without CAP_SYS_ADMIN; 0: not to be had */

	/* From STARTING on. */
	int queue;			/* /dev/ublkcN */
	const struct ublk_desc *desc;	/* by tag; NULL until the first request */
	size_t desc_bytes;
	bool map_said;			/* that it can't be mapped */
	uint8_t *buf;
	unsigned int entries;
	unsigned int with_kernel;	/* commands that have not come back */
	bool held;
	struct list waiting;		/* ublk_slot.wait: came while held */
	struct ublk_slot slots[UBLK_ENTRIES];
};

static inline struct ublk *ublk_of(struct transport *transport)
{
	return container_of(transport, struct ublk, transport);
}

/* ublk.c */

/* Hands the kernel all slots, which begins when the engine runs next. */
int ublk_queue_open(struct ublk *ublk, struct error *err);
/* No command is with the kernel. */
void ublk_queue_close(struct ublk *ublk);
/* Those that wait are submitted, in the next round. Not held. */
void ublk_go_on(struct ublk *ublk);
/* Those that wait are answered with err. */
void ublk_fail_waiting(struct ublk *ublk, int err);

/* ublk-life.c: of transport_ops */
int ublk_start(struct transport *transport, const struct image_info *info,
	       bool readonly, struct error *err);
int ublk_ready(struct transport *transport, struct error *err);
int ublk_stop(struct transport *transport, bool force, struct error *err);
int ublk_reset(struct transport *transport, struct error *err);
void ublk_life_init(struct ublk *ublk);
/* As large as the image's disk. One that can't be is an error where somebody has asked, and the disk does not go on so already. */
int ublk_grow(struct ublk *ublk, const struct image_info *info,
	      struct error *err);

#endif
