/* SPDX-License-Identifier: LGPL-2.1-only */
/* The caller's side of the control socket. */
#ifndef XENBLK_CONTROL_CLIENT_H
#define XENBLK_CONTROL_CLIENT_H

#include <jansson.h>
#include <stddef.h>

#include "common/error.h"

/*
 * Sends a request to the tapdisk with that pid and waits for its answer, at
 * most timeout_ms (forever if negative). reply may be NULL; it gets what
 * proto.h says, "ok" included. Borrows the request; NULL is -EINVAL (json_pack()
 * gives it for what is not UTF-8). Errors: -ESRCH if there is no such tapdisk,
 * -ETIMEDOUT, -EPROTO; if the verb failed its own -errno and message.
 */
int control_call(int pid, json_t *request, json_t **reply, int timeout_ms,
		 struct error *err);

/*
 * The same in steps, for several requests on one connection, one at a time, or for
 * asking several tapdisks at once. connect gives a descriptor, which the caller closes.
 */
int control_connect(int pid, int timeout_ms, struct error *err);
int control_ask(int fd, int pid, json_t *request, json_t **reply,
		int timeout_ms, struct error *err);
/* Its two halves. */
int control_send(int fd, const json_t *request, struct error *err);
int control_receive(int fd, int pid, json_t **reply, int timeout_ms,
		    struct error *err);

/*
 * The pids in the control directory, ascending; those without a process are
 * left out and what they left there is removed. The caller frees *pids. No directory is
 * no pids.
 */
int control_pids(int **pids, size_t *n, struct error *err);

#endif
