/* SPDX-License-Identifier: LGPL-2.1-only */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/diskfile.h"
#include "control/control.h"
#include "vbd.h"

/* libxl allows 40 s for all of it. */
#define OPEN_SECONDS	"20"
/* Closing writes out what is pending. */
#define CLOSE_SECONDS	"25"
#define OUTPUT_MAX	65536

extern char **environ;

/* What tap-ctl said last, on both streams; cut off where it is too long. */
static char output[OUTPUT_MAX];

static void read_all(int fd)
{
	size_t have = 0;
	char rest[512];
	ssize_t n;

	do {
		if (have < OUTPUT_MAX - 1)
			n = read(fd, output + have, OUTPUT_MAX - 1 - have);
		else
			n = read(fd, rest, sizeof(rest));
		if (n > 0 && have < OUTPUT_MAX - 1)
			have += (size_t)n;
	} while (n > 0 || (n < 0 && errno == EINTR));
	output[have] = 0;
}

/* Its exit status, or -errno if it could not be run, which output says too. */
static int tapctl(const char *const argv[])
{
	posix_spawn_file_actions_t actions;
	int fds[2], rc, status;
	pid_t pid;

	*output = 0;
	if (pipe2(fds, O_CLOEXEC))
		return -errno;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, fds[1], 1);
	posix_spawn_file_actions_adddup2(&actions, fds[1], 2);
	/* a tapdisk must not live on with the connection to xenstore */
	posix_spawn_file_actions_addclosefrom_np(&actions, 3);
	rc = posix_spawnp(&pid, argv[0], &actions, NULL,
			  (char *const *)(uintptr_t)argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	close(fds[1]);
	if (rc) {
		snprintf(output, sizeof(output), "%s can't be run: %s; install xenblk completely",
			 argv[0], strerror(rc));
		close(fds[0]);
		return -rc;
	}
	read_all(fds[0]);
	close(fds[0]);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static const char *plain(const char *line)
{
	static const char name[] = "tap-ctl: ";

	return strncmp(line, name, sizeof(name) - 1) ? line : line + sizeof(name) - 1;
}

/* The lines of a complaint as one. */
static void say(struct error *err, int code)
{
	char joined[sizeof(err->text)] = "";
	const char *from = output;
	size_t at = 0;

	while (*from) {
		size_t len = strcspn(from, "\n");
		const char *line = plain(from);
		int n = (int)len - (int)(line - from);

		if (n > 0 && at < sizeof(joined))
			at += (size_t)snprintf(joined + at, sizeof(joined) - at,
					       "%s%.*s", at ? "; " : "", n, line);
		from += len + (from[len] == '\n');
	}
	error_set(err, code, "%s", joined);
}

/* Takes lines out of output: those of which take() says so. */
static void take_lines(bool (*take)(void *priv, const char *line, size_t len),
		       void *priv)
{
	char *from = output, *to = output;

	while (*from) {
		size_t bare = strcspn(from, "\n"), len = bare + (from[bare] == '\n');

		if (!take(priv, from, bare)) {
			memmove(to, from, len);
			to += len;
		}
		from += len;
	}
	*to = 0;
}

struct created {
	struct vbd *vbd;
	int holder;		/* who has the image, instead */
};

/* A line that create prints for scripts. */
static bool take_created(void *priv, const char *line, size_t len)
{
	struct created *created = priv;
	struct vbd *vbd = created->vbd;
	int pid, minor;

	if (*line == '/' && len < sizeof(vbd->device) &&
	    memmem(line, len, "/tapdev", 7)) {
		snprintf(vbd->device, sizeof(vbd->device), "%.*s", (int)len, line);
	} else if (sscanf(line, "pid=%9d minor=%9d", &pid, &minor) == 2) {
		vbd->pid = pid;
		vbd->minor = minor;
	} else if (sscanf(line, "holder=%9d", &created->holder) != 1) {
		return false;
	}
	return true;
}

int tapctl_create(struct vbd *vbd, bool readonly, enum arrival arrival,
		  struct error *err)
{
	struct created created = { .vbd = vbd };
	char owner[32];
	const char *argv[] = {
		"tap-ctl", "create",
		"-a", vbd->params, owner,
		"--wait=" OPEN_SECONDS,
		NULL, NULL, NULL,
	};
	int argc = 6, rc;

	snprintf(owner, sizeof(owner), "--owner=%d", (int)getpid());
	if (readonly)
		argv[argc++] = "-R";
	if (arrival)
		argv[argc++] = arrival == ARRIVAL_HVM ? "--suspended" : "--inactive";
	vbd->pid = vbd->minor = -1;
	rc = tapctl(argv);
	take_lines(take_created, &created);
	if (!rc && vbd->pid > 0 && *vbd->device)
		return 0;
	if (!rc)
		return error_set(err, -EPROTO, "%s: tap-ctl create printed no device; install the tap-ctl of this release",
				 vbd->params);
	say(err, created.holder ? -EBUSY : -EIO);
	err->holder = created.holder;
	return err->code;
}

static const char *number(char *to, size_t size, int n)
{
	snprintf(to, size, "%d", n);
	return to;
}

int tapctl_keep(const struct vbd *vbd, struct error *err)
{
	char pid[16], minor[16], whom[4096];
	const char *argv[] = {
		"tap-ctl", "keep",
		"-p", number(pid, sizeof(pid), vbd->pid),
		"-m", number(minor, sizeof(minor), vbd->minor),
		whom, NULL,
	};

	snprintf(whom, sizeof(whom), "--for=%s", vbd->path);
	if (!tapctl(argv))
		return 0;
	say(err, -EIO);
	return error_prefix(err, "%s", vbd->params);
}

/* What tap-ctl says of other tapdisks, of one that hangs, is none of its rows. */
static bool take_complaint(void *priv, const char *line, size_t len)
{
	(void)priv;
	(void)len;
	return plain(line) != line;
}

/* pid: -1: whoever has it. */
static int list(int pid, int minor)
{
	char p[16], m[16];
	const char *argv[] = {
		"tap-ctl", "list",
		"-m", number(m, sizeof(m), minor),
		pid > 0 ? "-p" : NULL,
		pid > 0 ? number(p, sizeof(p), pid) : NULL, NULL,
	};
	int rc;

	rc = tapctl(argv);
	take_lines(take_complaint, NULL);
	return rc;
}

bool tapctl_serves(struct vbd *vbd)
{
	int pid, minor;

	vbd->pid = control_heir(vbd->pid);
	return !list(vbd->pid, vbd->minor) &&
	       sscanf(output, "pid=%9d minor=%9d", &pid, &minor) == 2 &&
	       pid == vbd->pid && minor == vbd->minor;
}

/* No tapdisk has it: the device is still there. */
static int free_minor(const struct vbd *vbd, struct error *err)
{
	char minor[16];
	const char *argv[] = {
		"tap-ctl", "free",
		"-m", number(minor, sizeof(minor), vbd->minor), NULL,
	};

	if (!tapctl(argv))
		return 0;
	say(err, -EAGAIN);
	return err->code;
}

/*
 * The minor has been given to another disk, since ours was ended by hand: whatever becomes of its tapdisk, it is not ours to
 * remove, and neither is one that somebody is creating.
 */
static bool is_anothers(const struct vbd *vbd)
{
	struct diskfile file;
	bool is;

	if (diskfile_read(&file, vbd->minor))
		return false;
	is = !diskfile_is_of(&file, vbd->pid) &&
	     (strcmp(file.args, vbd->params) || file.owner ||
	      (file.kept_for && strcmp(file.kept_for, vbd->path)));
	diskfile_dispose(&file);
	return is;
}

int tapctl_destroy(struct vbd *vbd, struct error *err)
{
	char p[16], m[16];
	const char *argv[] = {
		"tap-ctl", "destroy",
		"-p", number(p, sizeof(p), vbd->pid),
		"-m", number(m, sizeof(m), vbd->minor),
		"-t", CLOSE_SECONDS, NULL,
	};
	const char *args;
	int pid;

	if (is_anothers(vbd) || !tapctl(argv))
		return 0;
	say(err, -EAGAIN);
	vbd->pid = control_heir(vbd->pid);
	if (list(-1, vbd->minor))
		return -EAGAIN;
	if (!*output)
		return 0;
	if (sscanf(output, "pid=%9d ", &pid) != 1 || pid <= 0)
		return free_minor(vbd, err);
	if (pid == vbd->pid)
		return -EAGAIN;
	/* Ours died, and another was given its disk by hand: tap-ctl(8). Else ours was ended by hand. */
	output[strcspn(output, "\n")] = 0;
	args = strstr(output, " args=");
	if (!args || strcmp(args + 6, vbd->params) || is_anothers(vbd))
		return 0;
	vbd->pid = pid;
	return -EAGAIN;
}
