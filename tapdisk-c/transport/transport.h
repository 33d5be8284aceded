/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Transports: where a VBD's requests come from. A VBD may have several; it
 * calls what is below, in this order:
 *
 *   start -> { hold -> release } ... -> stop -> reset -> start ...
 *                                  close at any time when nothing is in flight
 *
 * A transport hands requests over by vbd_submit() and gets each back exactly
 * once through its done(), which may run before vbd_submit() returns.
 */
#ifndef XENBLK_TRANSPORT_H
#define XENBLK_TRANSPORT_H

#include "drivers/image.h"

struct transport_ops;

struct transport {
	const struct transport_ops *ops;
	struct list link;		/* the VBD's; the first is the user's, the others are beside it */
	bool unseen;			/* its user may write without us, or has before us: a kernel's */
	bool wrote;			/* since the disk was opened */
	bool adopted;			/* its gendisk was another process's, with requests in it */
	bool unasked;			/* release: nobody is there to be told of a size that can't be shown */
	int lost;			/* not the first: -errno, what its next flush has to tell */
};

struct transport_ops {
	const char *name;

	/* Required. An image is open: requests may come from now on. */
	int (*start)(struct transport *transport, const struct image_info *info,
		     bool readonly, struct error *err);

	/*
	 * Optional. After start: 0 when what it began is done, -EINPROGRESS until
	 * then, or why it failed: stop and reset undo it.
	 */
	int (*ready)(struct transport *transport, struct error *err);

	/*
	 * Required. No new request afterwards; those in flight may still be
	 * answered. -EBUSY while in use, unless force, and with force -EAGAIN while something waits
	 * for requests, those that are tried again too: nothing has changed then.
	 */
	int (*stop)(struct transport *transport, bool force, struct error *err);

	/* Required. After stop, nothing is in flight: back to before start. */
	int (*reset)(struct transport *transport, struct error *err);

	/* Required. New requests wait where they are, until release. */
	void (*hold)(struct transport *transport);

	/*
	 * Required. Goes on with an image whose size may have grown, and shows it. After an
	 * error the transport is still held.
	 */
	int (*release)(struct transport *transport,
		       const struct image_info *info, bool readonly,
		       struct error *err);

	/*
	 * Optional. After hold: true while something else still does I/O in the
	 * image's files by the transport's word. The image is neither flushed nor
	 * closed before.
	 */
	bool (*busy)(const struct transport *transport);

	/*
	 * Required. After each round of the engine: hands completions over and
	 * takes new requests. True if some were answered at once and another
	 * round is due before the next wait.
	 */
	bool (*round)(struct transport *transport);

	/*
	 * Optional. Before hold: whether another process could go on with the disk, -EBUSY while
	 * something that waits for its requests would keep that one out.
	 */
	int (*may_leave)(struct transport *transport, struct error *err);

	/*
	 * Optional. Held, and another process goes on with the disk: ends what only
	 * this one has. True when the engine has none of it any more, so that close
	 * may come.
	 */
	bool (*leave)(struct transport *transport);

	/* Required. Nothing is in flight, or the process ends. Frees the transport. */
	void (*close)(struct transport *transport);
};

#endif
