/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * upgrade: another process, of the program that is installed now, in the place of a
 * tapdisk. The old one lets go of its disks when the new one runs, and takes them back if
 * that can't open them, or if we end: our connection to it is its sign.
 */
#include "tools/tap-ctl.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "control/client.h"
#include "server.h"

#define EXIT_WAIT_MS	5000
#define BACK_TRIES	600
#define BACK_WAIT_NS	100000000

static double now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static int ask(int fd, int pid, json_t *request, int timeout_ms,
	       struct error *err)
{
	int rc = control_ask(fd, pid, request, NULL, timeout_ms, err);

	json_decref(request);
	return rc;
}

/* 0 once the old one has all of its disks again. */
static int wait_until_back(int pid, size_t disks)
{
	const struct timespec wait = { .tv_nsec = BACK_WAIT_NS };

	for (int i = 0; i < BACK_TRIES; i++) {
		size_t n, open = 0;
		json_t *vbds, *vbd;

		if (tapdisk_vbds(pid, TAP_CTL_TIMEOUT_MS, &vbds, NULL))
			return -ESRCH;
		json_array_foreach(vbds, n, vbd)
			open += !(json_integer_value(json_object_get(vbd, "state")) & VBD_REOPENING);
		json_decref(vbds);
		if (open == disks)
			return 0;
		nanosleep(&wait, NULL);
	}
	return -ETIMEDOUT;
}

/* It may have all of the disks, and must have ended before the old one looks for them. */
static void end_new(int pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static int hand_over(int fd, int old, int new, size_t disks, int timeout_ms,
		     struct error *err)
{
	double begun = now_ms();
	json_t *request;
	int rc;

	rc = ask(fd, old, json_pack("{s:s, s:i, s:i}", "op", "yield", "heir",
				    new, "timeout", timeout_ms / 1000),
		 timeout_ms + TAP_CTL_GRACE_MS, err);
	if (rc) {
		end_new(new);
		/* Else another upgrade has its disks. */
		if (rc != -ENODEV && rc != -EALREADY)
			error_prefix(err, "tapdisk %d goes on", old);
		close(fd);
		return rc;
	}
	request = json_pack("{s:s, s:i}", "op", "succeed", "heir", old);
	rc = control_call(new, request, NULL, TAP_CTL_TIMEOUT_MS, err);
	json_decref(request);
	if (!rc) {
		printf("pid=%d was=%d disks=%zu stall=%.1f ms\n", new, old,
		       disks, now_ms() - begun);
		ask(fd, old, json_pack("{s:s}", "op", "leave"),
		    TAP_CTL_TIMEOUT_MS, NULL);
		close(fd);
		return 0;
	}
	end_new(new);
	close(fd);
	if (wait_until_back(old, disks))
		error_prefix(err, "tapdisk %d has not all disks back yet, see `tap-ctl list`",
			     old);
	else
		error_prefix(err, "tapdisk %d goes on", old);
	return rc;
}

static int upgrade(int pid, int timeout_ms, struct error *err)
{
	struct pollfd exited = { .fd = -1, .events = POLLIN };
	char creates[48];
	json_t *vbds;
	size_t disks;
	int new, fd, rc;

	rc = tapdisk_vbds(pid, TAP_CTL_TIMEOUT_MS, &vbds, err);
	if (rc)
		return rc;
	disks = json_array_size(vbds);
	json_decref(vbds);
	if (!disks)
		return error_set(err, -ENODEV, "tapdisk %d has no disks", pid);
	/* It ends with us if it has no disk by then. */
	snprintf(creates, sizeof(creates), "--creates=%d,-1", (int)getpid());
	rc = tapdisk_spawn(&new, creates, err);
	if (rc)
		return error_prefix(err, "tapdisk %d goes on", pid);
	exited.fd = (int)syscall(SYS_pidfd_open, pid, 0);
	fd = control_connect(pid, TAP_CTL_TIMEOUT_MS, err);
	if (fd < 0) {
		end_new(new);
		rc = fd;
	} else {
		rc = hand_over(fd, pid, new, disks, timeout_ms, err);
	}
	if (!rc && exited.fd >= 0)
		poll(&exited, 1, EXIT_WAIT_MS);
	if (exited.fd >= 0)
		close(exited.fd);
	return rc;
}

static int find_minor(int minor, int *pid, struct error *err)
{
	int *pids, hung = 0;
	size_t n, at;
	int rc = control_pids(&pids, &n, err);

	*pid = 0;
	for (size_t i = 0; !rc && i < n && !*pid; i++) {
		json_t *vbds, *vbd;
		int r = tapdisk_vbds(pids[i], TAP_CTL_TIMEOUT_MS, &vbds, NULL);

		if (r) {
			hung = r == -ESRCH ? hung : pids[i];
			continue;
		}
		json_array_foreach(vbds, at, vbd)
			if (json_integer_value(json_object_get(vbd, "minor")) == minor)
				*pid = pids[i];
		json_decref(vbds);
	}
	free(pids);
	if (!rc && !*pid && hung)
		rc = error_set(err, -ETIMEDOUT, "minor %d: tapdisk %d may have it, and does not answer",
			       minor, hung);
	else if (!rc && !*pid)
		rc = error_set(err, -ENODEV, "minor %d: no tapdisk has it", minor);
	return rc;
}

/* Each, whatever becomes of the others; the first error is told last. */
static int upgrade_all(int timeout_ms, struct error *err)
{
	int *pids, rc, r;
	struct error one;
	json_t *vbds;
	size_t n;

	rc = control_pids(&pids, &n, err);
	if (rc)
		return rc;
	for (size_t i = 0; i < n; i++) {
		r = tapdisk_vbds(pids[i], TAP_CTL_TIMEOUT_MS, &vbds, &one);
		/* It has ended meanwhile. */
		if (r == -ESRCH)
			continue;
		if (!r) {
			if (json_array_size(vbds))
				r = upgrade(pids[i], timeout_ms, &one);
			json_decref(vbds);
		}
		if (r && rc)
			complain(err->text);
		if (r) {
			rc = r;
			*err = one;
		}
	}
	free(pids);
	return rc;
}

int cmd_upgrade(const struct options *opt, struct error *err)
{
	int pid = opt->pid, rc = 0;

	hold_signals();
	if (opt->all)
		return upgrade_all(opt->timeout_ms, err);
	if (opt->minor >= 0)
		rc = find_minor(opt->minor, &pid, err);
	return rc ? rc : upgrade(pid, opt->timeout_ms, err);
}
