/* SPDX-License-Identifier: LGPL-2.1-only */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>
#include <xenstore.h>

#include "common/clock.h"
#include "vbd.h"

/* blkback closes the device a moment after it says Closed. */
#define CLOSE_NS	10000000000ull
#define AGAIN_NS	200000000l

/* stderr is xen-hotplug.log. */
static void complain(const char *text)
{
	fprintf(stderr, "block-xenblk: %s\n", text);
	syslog(LOG_ERR, "%s", text);
}

static int check(const struct vbd *vbd, struct error *err)
{
	if (strcmp(vbd->state, "2"))
		return error_set(err, -ENODEV, "%s: state is %s, not 2: the device was removed meanwhile",
				 vbd->path, *vbd->state ? vbd->state : "none");
	if (strncmp(vbd->params, "vhd:/", 5) && strncmp(vbd->params, "aio:/", 5))
		return error_set(err, -EINVAL, "target %s: not a disk that tapdisk serves; write target=vhd:/path or target=aio:/path",
				 vbd->params);
	return 0;
}

/*
 * Xen's scripts look and take under the lock "block", so that what is found there
 * holds until others can see this disk. No image is opened under it.
 */
static int publish(struct vbd *vbd, bool joined, struct error *err)
{
	int rc = lock_named("block", err);

	if (!rc)
		rc = sharing_look(vbd, err);
	if (!rc)
		rc = sharing_check_chain(vbd, err);
	if (!rc)
		rc = store_connect(vbd, err);
	/* One that is joined is kept by the other already. */
	return rc || joined ? rc : tapctl_keep(vbd, err);
}

static int add(struct vbd *vbd, struct error *err)
{
	bool writes = strchr(vbd->mode, 'w'), joined;
	struct error undo;
	int rc;

	if (vbd->minor >= 0 && tapctl_serves(vbd))
		return store_connected(vbd, err);
	rc = check(vbd, err);
	/* Who uses it and takes no lock may be changing it: then it is not opened. */
	if (!rc)
		rc = sharing_look(vbd, err);
	if (!rc)
		rc = sharing_check(vbd, strchr(vbd->params, ':') + 1, writes, err);
	if (rc)
		return rc;
	joined = twin_join(vbd);
	if (!joined)
		rc = tapctl_create(vbd, !writes, store_arrival(vbd), err);
	/* Both came at once, and the other was first. */
	if (rc == -EBUSY)
		joined = twin_join(vbd);
	if (rc && !joined) {
		if (rc == -EBUSY)
			sharing_name_holder(vbd, err);
		return rc;
	}
	rc = publish(vbd, joined, err);
	if (!rc || joined)
		return rc;
	if (tapctl_destroy(vbd, &undo)) {
		error_prefix(&undo, "%s: pid=%d minor=%d is left over", vbd->params,
			     vbd->pid, vbd->minor);
		complain(undo.text);
	} else {
		store_undo(vbd);
	}
	return rc;
}

static int remove_disk(struct vbd *vbd, struct error *err)
{
	const struct timespec again = { .tv_nsec = AGAIN_NS };
	uint64_t end = now_ns() + CLOSE_NS;
	bool stays;
	int rc;

	if (vbd->minor < 0)
		return 0;
	rc = twin_stays(vbd, &stays, err);
	if (rc)
		return rc;
	while (!stays && tapctl_destroy(vbd, err)) {
		if (now_ns() > end)
			return error_prefix(err, "pid=%d minor=%d is still there",
					    vbd->pid, vbd->minor);
		nanosleep(&again, NULL);
	}
	store_forget(vbd);
	return 0;
}

/* One lock for each vbd: a file server that hangs holds up nobody else's. */
static int lock_vbd(const struct vbd *vbd, struct error *err)
{
	char name[256];

	snprintf(name, sizeof(name), "xenblk-%s", vbd->path);
	for (char *p = name; *p; p++)
		if (*p == '/')
			*p = '-';
	return lock_named(name, err);
}

int main(int argc, char **argv)
{
	const char *base = getenv("XENBUS_BASE_PATH");
	struct vbd vbd = {
		.path = getenv("XENBUS_PATH"),
		.backends = base ? base : "backend",
		.pid = -1,
		.minor = -1,
	};
	bool adds = argc == 2 && !strcmp(argv[1], "add");
	struct error err = { .code = 0 };
	int rc;

	if (!vbd.path || (!adds && (argc != 2 || strcmp(argv[1], "remove")))) {
		fputs("usage: XENBUS_PATH=backend/vbd/DOMID/DEVID xenblk-vbd add|remove\n",
		      stderr);
		return 2;
	}
	openlog("block-xenblk", LOG_PID, LOG_DAEMON);
	signal(SIGPIPE, SIG_IGN);
	/* Whoever ignores it hands that down, and no child's status could be had. */
	signal(SIGCHLD, SIG_DFL);
	rc = store_open(&vbd, &err);
	if (!rc)
		rc = lock_vbd(&vbd, &err);
	if (!rc) {
		store_load(&vbd);
		rc = adds ? add(&vbd, &err) : remove_disk(&vbd, &err);
	}
	if (rc) {
		store_fail(&vbd, rc == -EBUSY ? "busy" : "error", err.text);
		complain(err.text);
	}
	unlock_all();
	if (vbd.xs)
		xs_close(vbd.xs);
	free(vbd.params);
	free(vbd.mode);
	free(vbd.state);
	return rc ? 1 : 0;
}
