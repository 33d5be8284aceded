/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Snapshots of several disks, of one moment: the maker's side of vbd-group.c.
 * Each step is asked of all tapdisks before the first answer is waited for, so
 * that they do it side by side.
 */
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/rundir.h"
#include "control/client.h"
#include "tools/tap-ctl.h"

/* A tapdisk that hangs settles when it doesn't any more. */
#define LEAVE_S 20

struct group {
	struct snapshot *s;
	int *fds;			/* -1: no connection any more */
	unsigned int nr;
	char decision[128];
	int timeout_ms;
	json_int_t stall_us;		/* the longest */
};

static json_t *request_of(const struct group *g, unsigned int i, const char *op)
{
	const struct snapshot *s = &g->s[i];

	if (strcmp(op, "snapshot"))
		return json_pack("{s:s, s:i}", "op", op, "minor", s->minor);
	return json_pack("{s:s, s:i, s:s, s:s, s:i, s:s}", "op", op, "minor",
			 s->minor, "child", s->child, "parent", s->parent,
			 "timeout", g->timeout_ms / 1000, "decision", g->decision);
}

/* Goes on after an error, so that no answer is left behind; the first one is returned. */
static int step(struct group *g, const char *op, struct error *err)
{
	json_t *reply;
	struct error e;
	int rc = 0, r;

	for (unsigned int i = 0; i < g->nr; i++) {
		json_t *request = request_of(g, i, op);

		r = control_send(g->fds[i], request, &e);
		json_decref(request);
		if (r && !rc) {
			rc = r;
			*err = e;
		}
	}
	for (unsigned int i = 0; i < g->nr; i++) {
		r = control_receive(g->fds[i], g->s[i].pid, &reply,
				    g->timeout_ms + TAP_CTL_GRACE_MS, &e);
		if (r && !rc) {
			rc = r;
			*err = e;
		}
		snapshot_stall(r ? NULL : reply, &g->stall_us);
	}
	return rc;
}

static int connect_all(struct group *g, struct error *err)
{
	for (unsigned int i = 0; i < g->nr; i++) {
		g->fds[i] = control_connect(g->s[i].pid, TAP_CTL_TIMEOUT_MS, err);
		if (g->fds[i] < 0)
			return g->fds[i];
	}
	return 0;
}

static int name_decision(struct group *g, struct error *err)
{
	uint64_t random;
	int rc;

	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return error_set(err, -EIO, "random numbers: %s", strerror(errno));
	rc = run_path(g->decision, sizeof(g->decision), "snapshot.%d.%016llx",
		      getpid(), (unsigned long long)random);
	return rc ? error_set(err, rc, "%s: its path is too long", run_dir()) : 0;
}

/* Who decides first decides for all: a tapdisk that has waited too long may have. */
static int decide(const struct group *g, struct error *err)
{
	char word[8] = "";

	if (!symlink("take", g->decision))
		return 0;
	if (errno == EEXIST && readlink(g->decision, word, sizeof(word) - 1) == 4 &&
	    !strcmp(word, "undo"))
		return error_set(err, -ETIMEDOUT, "a disk waited for too long; no snapshot was made");
	return error_set(err, -errno, "%s: %s", g->decision, strerror(errno));
}

/* A connection that ends lets its tapdisk settle, which it does before it closes its own end. */
static void leave(const struct group *g)
{
	char byte;

	for (unsigned int i = 0; i < g->nr; i++)
		if (g->fds[i] >= 0)
			shutdown(g->fds[i], SHUT_WR);
	for (unsigned int i = 0; i < g->nr; i++) {
		if (g->fds[i] < 0)
			continue;
		/* The socket does not block. */
		do
			poll(&(struct pollfd){ .fd = g->fds[i], .events = POLLIN },
			     1, LEAVE_S * 1000);
		while (recv(g->fds[i], &byte, 1, 0) > 0);
		close(g->fds[i]);
	}
}

/* Its tapdisk died between its rename and the decision; the name leads to all data, as after any snapshot. */
static bool kept(const struct snapshot *s)
{
	return access(s->child, F_OK) && !access(s->parent, F_OK);
}

int snapshot_group(struct snapshot *s, unsigned int nr, int timeout_ms,
		   struct error *err)
{
	struct group g = { .s = s, .nr = nr, .timeout_ms = timeout_ms };
	bool decided = false;
	int rc;

	g.fds = malloc(nr * sizeof(*g.fds));
	for (unsigned int i = 0; g.fds && i < nr; i++)
		g.fds[i] = -1;
	rc = g.fds ? name_decision(&g, err) : error_set(err, -ENOMEM, "out of memory");
	if (!rc)
		rc = connect_all(&g, err);
	if (!rc)
		rc = step(&g, "snapshot", err);
	if (!rc)
		rc = step(&g, "hold", err);
	if (!rc)
		rc = step(&g, "switch", err);
	if (!rc)
		rc = decide(&g, err);
	decided = !rc;
	if (decided)
		rc = step(&g, "take", err);
	if (g.fds)
		leave(&g);
	if (decided && rc)
		error_prefix(err, "the snapshots are made");
	for (unsigned int i = 0; !decided && i < nr; i++) {
		snapshot_clear(&s[i]);
		if (kept(&s[i]))
			error_prefix(err, "%s has its snapshot, %s, and others have none",
				     s[i].leaf, s[i].parent);
	}
	/* One that has not answered may still have to know. */
	if (*g.decision && !(decided && rc))
		unlink(g.decision);
	if (!rc)
		snapshot_print_stall(g.stall_us);
	free(g.fds);
	return rc;
}
