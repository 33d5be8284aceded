/* SPDX-License-Identifier: LGPL-2.1-only */
/* create, keep and destroy: a disk from nothing, and back to nothing. */
#include "tools/tap-ctl.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <blktap.h>

#include "common/diskfile.h"
#include "drivers/image.h"
#include "transport/minor.h"

#define EXIT_WAIT_MS 5000
#define UNDO_TRIES 3
/* Longer than a tapdisk takes to open what another leaves. */
#define LEFT_TRIES 100
#define LEFT_WAIT_NS 100000000

void hold_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	/* Nor stopped: a tapdisk would wait for what comes next. */
	sigaddset(&set, SIGTSTP);
	sigaddset(&set, SIGTTIN);
	sigaddset(&set, SIGTTOU);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

/*
 * Takes back what create has made. Its tapdisk may have died with the image open:
 * no other one is to have the disk, and one that has it closes it. What fails here
 * must not hide what failed first.
 */
static void undo(int pid, int minor)
{
	for (int i = 0; i < UNDO_TRIES; i++) {
		diskfile_forget(minor, pid);
		vbd_close(pid, minor, false, TAP_CTL_TIMEOUT_MS, NULL);
		/* A tapdisk without a VBD exits. */
		vbd_call("detach", pid, minor, NULL);
		if (!i)
			tapdisk_kill(pid);
		if (minor_free(minor, NULL) != -EBUSY)
			break;
	}
}

int cmd_create(const struct options *opt, struct error *err)
{
	const struct image_driver *driver;
	const char *path;
	char creates[48];
	int minor, pid, rc;

	hold_signals();
	/* Before a device is looked for that nobody would have. */
	rc = image_parse(opt->args, &driver, &path, err);
	if (!rc)
		rc = allocate(opt, &minor, err);
	if (rc)
		return rc;
	snprintf(creates, sizeof(creates), "--creates=%d,%d", (int)getpid(),
		 minor);
	rc = tapdisk_spawn(&pid, creates, err);
	if (rc) {
		minor_free(minor, NULL);
		return rc;
	}
	rc = vbd_call("attach", pid, minor, err);
	if (rc)
		goto fail;
	rc = vbd_open(pid, minor, opt, opt->owner, opt->timeout_ms, err);
	if (rc == -ETIMEDOUT && err->unanswered) {
		tapdisk_abandon(pid, minor);
		return error_set(err, rc, "%s: not open after %d s; is its file "
				 "server or disk stuck?", opt->args,
				 opt->timeout_ms / 1000);
	}
	if (rc)
		goto fail;
	printf(BLKTAP_DEVICE_PATH "\n", minor);
	if (opt->owner >= 0)
		printf("pid=%d minor=%d\n", pid, minor);
	if (fflush(stdout) || ferror(stdout)) {
		rc = error_set(err, -EIO, "cannot write the device's name; "
			       "the device is removed");
		goto fail;
	}
	return 0;

fail:
	undo(pid, minor);
	if (opt->owner >= 0 && err->holder)
		printf("holder=%d\n", err->holder);
	return rc;
}

enum found { DEAD, ATTACHED, OPEN };

/*
 * What the tapdisk says of the minor. *alone: it has no other, so that it exits
 * with this one.
 */
static int look(int pid, int minor, int timeout_ms, enum found *found,
		bool *alone, struct error *err)
{
	bool known = false;
	json_t *vbds, *vbd;
	size_t i;
	int rc;

	*found = DEAD;
	*alone = false;
	rc = tapdisk_vbds(pid, timeout_ms, &vbds, err);
	if (rc)
		return rc == -ESRCH ? 0 : rc;
	*alone = json_array_size(vbds) == 1;
	json_array_foreach(vbds, i, vbd) {
		if (json_integer_value(json_object_get(vbd, "minor")) != minor)
			continue;
		known = true;
		*found = json_is_null(json_object_get(vbd, "args")) ? ATTACHED :
								      OPEN;
	}
	json_decref(vbds);
	if (!known)
		return error_set(err, -ENODEV, "minor %d is not attached to "
				 "tapdisk %d", minor, pid);
	return 0;
}

/*
 * The tapdisk hangs on its storage. It keeps its image and the lock until that comes
 * back; its device goes now.
 */
static int destroy_hung(const struct options *opt, struct error *err)
{
	struct error why = *err;
	int rc;

	diskfile_forget(opt->minor, opt->pid);
	kill(opt->pid, SIGKILL);
	rc = minor_free_now(opt->minor, err);
	if (!rc)
		complain(why.text);
	return rc;
}

/* The disk is, or was before an upgrade, this tapdisk's; owned: and was not kept yet. */
static bool is_of(int minor, int pid, bool owned)
{
	struct diskfile file;
	bool found;

	if (diskfile_read(&file, minor))
		return false;
	found = diskfile_is_of(&file, pid) && (file.owner || !owned);
	diskfile_dispose(&file);
	return found;
}

/*
 * The tapdisk has died, and its minor may have been given to another disk since, whose tapdisk may have died too. last: whom the
 * disk's file names, one that took it over from this one.
 */
static int refuse_anothers(int minor, int pid, int *last, struct error *err)
{
	struct diskfile file;
	int rc = 0;

	if (diskfile_read(&file, minor))
		return 0;
	if (diskfile_is_of(&file, pid))
		*last = file.pid;
	else
		rc = error_set(err, -ENODEV, "minor %d is not tapdisk %d's but that of tapdisk %d (%s); see tap-ctl list",
			       minor, pid, file.pid, file.args);
	diskfile_dispose(&file);
	return rc;
}

/* It has not the disk, or has ended since it was looked at. */
static bool is_gone(int rc)
{
	return rc == -ENODEV || rc == -ESRCH || rc == -ECONNRESET || rc == -EPIPE;
}

/* is_gone(): not attached, or not any more. */
static int take_down(const struct options *opt, struct error *err)
{
	struct pollfd exited = { .fd = -1, .events = POLLIN };
	int last = opt->pid, rc;
	enum found found;
	bool alone;

	rc = look(opt->pid, opt->minor, opt->timeout_ms, &found, &alone, err);
	if (rc == -ETIMEDOUT && opt->force)
		return destroy_hung(opt, err);
	if (!rc && found == DEAD)
		rc = refuse_anothers(opt->minor, opt->pid, &last, err);
	if (rc)
		return rc;
	/* Before another one takes over. */
	if (found == DEAD)
		diskfile_forget(opt->minor, last);
	if (alone)
		exited.fd = (int)syscall(SYS_pidfd_open, opt->pid, 0);
	if (found == OPEN)
		rc = vbd_close(opt->pid, opt->minor, opt->force,
			       opt->timeout_ms, err);
	if (rc == -ETIMEDOUT && opt->force) {
		if (exited.fd >= 0)
			close(exited.fd);
		return alone ? destroy_hung(opt, err) : rc;
	}
	if (!rc && found != DEAD) {
		rc = vbd_call("detach", opt->pid, opt->minor, err);
		/* Nobody is to have what is closed: an upgrade leaves it, and may end the tapdisk. */
		if (found == OPEN && is_gone(rc))
			rc = 0;
	}
	if (!rc && exited.fd >= 0)
		poll(&exited, 1, EXIT_WAIT_MS);
	if (exited.fd >= 0)
		close(exited.fd);
	if (rc)
		return rc;
	rc = minor_free(opt->minor, err);
	return rc == -ENODEV && found != DEAD ? 0 : rc;
}

int once_it_is_there(int (*verb)(const struct options *opt, struct error *err),
		     const struct options *opt, bool owned, struct error *err)
{
	const struct timespec pause = { .tv_nsec = LEFT_WAIT_NS };
	int rc = verb(opt, err);

	for (int i = 0; is_of(opt->minor, opt->pid, owned); i++) {
		/* An upgrade takes its time, and then the next one has it. */
		int tries = rc == -EAGAIN ? opt->timeout_ms / (LEFT_WAIT_NS / 1000000) :
			    is_gone(rc) ? LEFT_TRIES : 0;

		if (i >= tries)
			break;
		nanosleep(&pause, NULL);
		rc = verb(opt, err);
	}
	return rc;
}

/*
 * With a tapdisk that has died the minor is freed all the same; the driver
 * refuses if another one has it.
 */
int cmd_destroy(const struct options *opt, struct error *err)
{
	hold_signals();
	return once_it_is_there(take_down, opt, false, err);
}

int cmd_keep(const struct options *opt, struct error *err)
{
	return once_it_is_there(vbd_keep, opt, true, err);
}
