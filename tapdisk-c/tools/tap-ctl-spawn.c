/* SPDX-License-Identifier: LGPL-2.1-only */
/* spawn: finds and starts tapdisk. */
#include "tools/tap-ctl.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/diskfile.h"
#include "control/client.h"
#include "transport/minor.h"

#define START_S		30
#define STEP_NS		5000000
#define KILL_TRIES	1000		/* 5 s */
#define ABANDON_MS	2000

/* $TAPDISK, else beside tap-ctl, else ../libexec, else in $PATH. */
static int find_tapdisk(char *path, size_t size, struct error *err)
{
	static const char *const beside[] = { "tapdisk", "../libexec/tapdisk" };
	const char *given = secure_getenv("TAPDISK");
	char exe[PATH_MAX];
	ssize_t n;

	if (given) {
		if (access(given, X_OK))
			return error_set(err, -errno, "$TAPDISK: %s: %s", given,
					 strerror(errno));
		snprintf(path, size, "%s", given);
		return 0;
	}
	n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
	for (size_t i = 0; n > 0 && i < sizeof(beside) / sizeof(beside[0]); i++) {
		exe[n] = 0;
		*(strrchr(exe, '/') + 1) = 0;
		if ((size_t)snprintf(path, size, "%s%s", exe, beside[i]) < size &&
		    !access(path, X_OK))
			return 0;
	}
	snprintf(path, size, "tapdisk");
	return 0;
}

/*
 * A place for the message of a tapdisk that can't start. Not a pipe, which
 * would break when tap-ctl is gone; and of a fixed size.
 */
static int message_file(void)
{
	int fd = memfd_create("tapdisk-stderr", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, 4096) || fcntl(fd, F_ADD_SEALS, F_SEAL_GROW)) {
		int rc = -errno;

		close(fd);
		return rc;
	}
	return fd;
}

/*
 * A session or a service that ends may take with it all that its control group has. Of
 * guests' disks that is not wanted: at a shutdown guests still write to them.
 */
static void leave_group(void)
{
	static const char *const root[] = {
		"/sys/fs/cgroup/cgroup.procs",
		"/sys/fs/cgroup/systemd/cgroup.procs",
	};

	for (size_t i = 0; i < sizeof(root) / sizeof(root[0]); i++) {
		int fd = open(root[i], O_WRONLY | O_CLOEXEC);

		if (fd < 0)
			continue;
		(void)!write(fd, "0", 1);
		close(fd);
	}
}

static _Noreturn void run_child(const char *path, char *option, int stderr_fd)
{
	char name[] = "tapdisk";
	char *const argv[] = { name, option, NULL };
	int null = open("/dev/null", O_RDWR);
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	/* Outlives what started it: its terminal, session, control group, locks, directory. */
	setsid();
	leave_group();
	if (null < 0 || chdir("/") || dup2(null, STDIN_FILENO) < 0 ||
	    dup2(null, STDOUT_FILENO) < 0 ||
	    dup2(stderr_fd, STDERR_FILENO) < 0 || close_range(3, ~0u, 0))
		_exit(127);
	execvp(path, argv);
	dprintf(STDERR_FILENO, "tapdisk: %s: %s", path, strerror(errno));
	_exit(127);
}

/* The last line it has written, or its exit status. */
static int start_error(int fd, int status, struct error *err)
{
	char text[800] = "";
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	if (n < 0)
		n = 0;
	text[n] = 0;
	text[strcspn(text, "\n")] = 0;
	if (*text)
		return error_set(err, -EIO, "cannot start: %s", text);
	if (WIFSIGNALED(status))
		return error_set(err, -EIO, "tapdisk: cannot start: signal %d",
				 WTERMSIG(status));
	return error_set(err, -EIO, "tapdisk: cannot start: exit status %d",
			 WEXITSTATUS(status));
}

static int wait_until_it_answers(int pid, int stderr_fd, struct error *err)
{
	const struct timespec step = { .tv_nsec = STEP_NS };
	json_t *ping = json_pack("{s:s}", "op", "ping");
	struct timespec start, now;
	bool gone = false;
	int rc, status;

	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		rc = control_call(pid, ping, NULL, START_S * 1000, err);
		if (!rc)
			break;
		gone = waitpid(pid, &status, WNOHANG) == pid;
		if (gone) {
			rc = start_error(stderr_fd, status, err);
			break;
		}
		nanosleep(&step, NULL);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec - start.tv_sec < START_S);
	if (rc && !gone) {
		error_prefix(err, "no answer %d s after its start", START_S);
		tapdisk_kill(pid);
	}
	json_decref(ping);
	return rc;
}

int tapdisk_spawn(int *pid, char *option, struct error *err)
{
	char path[PATH_MAX];
	int fd, rc;

	rc = find_tapdisk(path, sizeof(path), err);
	if (rc)
		return rc;
	fd = message_file();
	if (fd < 0)
		return error_set(err, fd, "memfd: %s", strerror(-fd));

	*pid = fork();
	if (!*pid)
		run_child(path, option, fd);
	if (*pid < 0)
		rc = error_set(err, -errno, "fork: %s", strerror(errno));
	else
		rc = wait_until_it_answers(*pid, fd, err);
	close(fd);
	return rc;
}

void tapdisk_kill(int pid)
{
	const struct timespec step = { .tv_nsec = STEP_NS };

	kill(pid, SIGTERM);
	for (int i = 0; i < KILL_TRIES; i++) {
		if (waitpid(pid, NULL, WNOHANG))
			return;
		nanosleep(&step, NULL);
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

void tapdisk_abandon(int pid, int minor)
{
	struct pollfd gone = { .fd = (int)syscall(SYS_pidfd_open, pid, 0),
			       .events = POLLIN };

	/* Should it get it open yet: no other is to have it. */
	diskfile_forget(minor, pid);
	kill(pid, SIGKILL);
	if (poll(&gone, 1, ABANDON_MS) == 1) {
		diskfile_forget(minor, pid);
		minor_free(minor, NULL);
	} else if (!fork()) {
		/* Nobody waits for this one, and it holds nothing of theirs. */
		setsid();
		if (!chdir("/") && dup3(gone.fd, STDIN_FILENO, 0) >= 0 &&
		    !close_range(1, ~0u, 0)) {
			gone.fd = STDIN_FILENO;
			poll(&gone, 1, -1);
			diskfile_forget(minor, pid);
			minor_free(minor, NULL);
		}
		_exit(0);
	}
	if (gone.fd >= 0)
		close(gone.fd);
}

int cmd_spawn(const struct options *opt, struct error *err)
{
	int pid, rc;

	(void)opt;
	rc = tapdisk_spawn(&pid, NULL, err);
	if (rc)
		return rc;
	/* Scripts take the number; a person gets a sentence, as with XenServer. */
	printf(isatty(STDOUT_FILENO) ? "tapdisk spawned with pid %d\n" : "%d\n",
	       pid);
	return 0;
}
