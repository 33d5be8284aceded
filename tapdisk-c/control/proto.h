/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Control messages: one JSON object each, at most CONTROL_MAX_MESSAGE bytes.
 *
 * op		fields (? optional)			answer, beside "ok": true
 * ping							pid, version
 * list		first?					vbds: [VBD], next?
 * attach	minor
 * detach	minor
 * open		minor, args, readonly?, inactive?, suspended?, owner?, retry_errors?,
 *		retry_interval?, retry_for?, retry_then?, no_space?
 * keep		minor, for?
 * close	minor, force?, timeout?
 * pause	minor, timeout?
 * unpause	minor, args?
 * snapshot	minor, child, parent, timeout?, decision?	stall_us
 * hold		minor
 * switch	minor
 * take		minor					stall_us
 * stats	minor					vbd: VBD and STATS
 * yield	heir, timeout?
 * succeed	heir
 * leave
 *
 * VBD: minor, state (enum vbd_state), args (null while closed), for (null or what
 * keep said), readonly, sectors, sector_size, depth. STATS: chain (paths, leaf first) and what
 * control/stats.h says; for who can't read the statistics page.
 *
 * child and parent are absolute paths: vbd.h, vbd_snapshot(). With decision,
 * one too, the snapshot is one of several, vbd-group.c: then hold, switch and take
 * follow on the same connection. When that ends before, it is taken or
 * undone as decision says.
 *
 * timeout is in seconds, 30 if not given. What open says of errors is text as in
 * the configuration (docs/architecture.md), which holds for what it does not
 * say.
 *
 * inactive: if somebody else has the image's lock, the disk is there at once, its
 * requests wait, and the image is opened when the lock is free.
 *
 * suspended: the same, and nothing writes to the disk where it has been: the first
 * 64 KiB are read at once, and reads of them answered while the rest waits.
 *
 * owner is a pid: when that process ends before keep, the VBD is closed and
 * detached, and its minor freed.
 *
 * for is whatever tells its user whose the disk is, at most 1 KiB without control
 * characters; it stays until the disk is closed.
 *
 * yield, to one tapdisk, leaves all its disks for another one, heir; when the
 * connection ends before leave, by which it exits, it takes back those that heir
 * does not have. succeed, to the other one: it takes the disks that the tapdisk
 * heir has left, all of them, or gives them back and fails.
 *
 * list answers with the VBDs from the first-th on that fit a message; next is
 * where to go on, absent at the end. close and pause are answered when they
 * are done. args are TYPE:PATH in UTF-8, without control characters.
 *
 * A verb that fails is answered by "ok": false, errno (positive), message, and
 * for an image in use its holder (a pid), if that is known; the connection goes
 * on. So is what is no valid request (unknown operations
 * and unknown fields too), and the connection then ends.
 */
#ifndef XENBLK_CONTROL_PROTO_H
#define XENBLK_CONTROL_PROTO_H

#include <jansson.h>

#include "common/error.h"
#include "control/leave.h"
#include "control/owner.h"
#include "control/takeover.h"
#include "server.h"

#define CONTROL_MAX_MESSAGE 65536u

/* A request under way; embedded in what the answer needs. */
struct control_call {
	struct server *server;
	struct owners *owners;		/* NULL: the control server was closed meanwhile */
	/* The minor whose snapshot this connection makes, in steps; or -1. */
	int making;
	int minor;			/* of an open, close or snapshot that is under way by this request */
	struct takeover *takeover;
	struct leave *leave;
	int heir;			/* to whom the disks were left, or from whom they come */
	/*
	 * Called exactly once. Takes over the reply, NULL if memory ran out;
	 * last: the message was no valid request.
	 */
	void (*answer)(struct control_call *call, json_t *reply, bool last);
};

/* Runs the request in msg[len]. The answer may come before it returns. */
void control_dispatch(struct control_call *call, const char *msg, size_t len);

/* A failure's reply; rc is -errno. */
json_t *control_failure(int rc, const char *message);

#endif
