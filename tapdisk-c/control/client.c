/* SPDX-License-Identifier: LGPL-2.1-only */
#include "control/client.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common/process.h"
#include "control/control.h"
#include "control/proto.h"

#define MAX_ERRNO 4095
#define OLD_DECISION_S 86400

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* end_ms: INT64_MAX for never. */
static int wait_for(int fd, short events, int64_t end_ms)
{
	struct pollfd p = { .fd = fd, .events = events };
	int64_t left;
	int n;

	do {
		left = end_ms == INT64_MAX ? -1 : end_ms - now_ms();
		if (left < 0 && end_ms != INT64_MAX)
			left = 0;
		n = poll(&p, 1, left > INT_MAX ? INT_MAX : (int)left);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return n ? 0 : -ETIMEDOUT;
}

static void mark_unanswered(struct error *err)
{
	if (err)
		err->unanswered = true;
}

static int connect_to(int pid, int64_t end_ms, struct error *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd, rc;

	rc = control_socket_path(address.sun_path, sizeof(address.sun_path),
				 pid, err);
	if (rc)
		return rc;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_set(err, -errno, "socket: %s", strerror(errno));

	/* EAGAIN: its queue of connections is full; there is no event for it. */
	for (;;) {
		rc = connect(fd, (struct sockaddr *)&address, sizeof(address)) ? -errno : 0;
		if (rc == -EAGAIN && now_ms() < end_ms)
			usleep(10000);
		else if (rc != -EINTR)
			break;
	}
	if (!rc)
		return fd;
	close(fd);
	if (rc == -ENOENT || rc == -ECONNREFUSED)
		return error_set(err, -ESRCH, "tapdisk %d is not running (%s); "
				 "`tap-ctl list` shows which are", pid,
				 address.sun_path);
	if (rc == -EAGAIN)
		rc = -ETIMEDOUT;
	error_set(err, rc, "tapdisk %d: %s: %s", pid, address.sun_path,
		  strerror(-rc));
	if (rc == -ETIMEDOUT)
		mark_unanswered(err);
	return rc;
}

static int receive(int fd, char *answer, int64_t end_ms, size_t *len)
{
	bool reset = false;
	ssize_t n;
	int rc;

	for (;;) {
		rc = wait_for(fd, POLLIN, end_ms);
		if (rc)
			return rc;
		n = recv(fd, answer, CONTROL_MAX_MESSAGE, MSG_TRUNC);
		if (n >= 0 || reset)
			break;
		/* It comes before what was sent ahead of it. */
		reset = errno == ECONNRESET;
		if (!reset && errno != EAGAIN && errno != EINTR)
			break;
	}
	if (n < 0)
		return -errno;
	if (!n)
		return -ECONNRESET;
	if ((size_t)n > CONTROL_MAX_MESSAGE)
		return -EMSGSIZE;
	*len = (size_t)n;
	return 0;
}

static int failed(const json_t *answer, const char *text, int code,
		  struct error *err)
{
	json_int_t holder = json_integer_value(json_object_get(answer, "holder"));

	error_set(err, -code, "%s", text);
	if (err && holder > 0 && holder <= INT_MAX)
		err->holder = (int)holder;
	return -code;
}

/* 0 and *reply, or what the answer says went wrong. */
static int read_answer(int pid, const char *answer, size_t len,
		       json_t **reply, struct error *err)
{
	json_t *root = json_loadb(answer, len, JSON_REJECT_DUPLICATES, NULL);
	const json_t *ok = json_object_get(root, "ok");
	json_int_t code = json_integer_value(json_object_get(root, "errno"));
	const char *text = json_string_value(json_object_get(root, "message"));
	int rc = 0;

	if (json_is_false(ok) && text && code > 0 && code <= MAX_ERRNO)
		rc = failed(root, text, (int)code, err);
	else if (!json_is_true(ok))
		rc = error_set(err, -EPROTO, "tapdisk %d: its answer is not "
			       "understood; is it another release?", pid);
	else if (reply)
		*reply = json_incref(root);
	json_decref(root);
	return rc;
}

static int64_t end_of(int timeout_ms)
{
	return timeout_ms < 0 ? INT64_MAX : now_ms() + timeout_ms;
}

int control_connect(int pid, int timeout_ms, struct error *err)
{
	return connect_to(pid, end_of(timeout_ms), err);
}

int control_send(int fd, const json_t *request, struct error *err)
{
	char *message;
	int rc = 0;

	if (!request)
		return error_set(err, -EINVAL, "the image's path is not UTF-8; "
				 "rename it");
	message = json_dumps(request, JSON_COMPACT);
	if (!message)
		rc = error_set(err, -ENOMEM, "out of memory");
	else if (strlen(message) > CONTROL_MAX_MESSAGE)
		rc = error_set(err, -EMSGSIZE, "the path is too long");
	/* A server that refuses us has said why and closed: read on. */
	else if (send(fd, message, strlen(message), MSG_NOSIGNAL) < 0 &&
		 errno != EPIPE && errno != ECONNRESET)
		rc = error_set(err, -errno, "control socket: %s",
			       strerror(errno));
	free(message);
	return rc;
}

int control_receive(int fd, int pid, json_t **reply, int timeout_ms,
		    struct error *err)
{
	char *answer = malloc(CONTROL_MAX_MESSAGE);
	size_t len = 0;
	int rc;

	if (!answer)
		return error_set(err, -ENOMEM, "out of memory");
	rc = receive(fd, answer, end_of(timeout_ms), &len);
	if (rc == -ETIMEDOUT) {
		error_set(err, rc, "tapdisk %d: no answer in %d s; it may still "
			  "do it, see `tap-ctl list`", pid, timeout_ms / 1000);
		mark_unanswered(err);
	} else if (rc)
		error_set(err, rc, "tapdisk %d: no answer: %s", pid,
			  strerror(-rc));
	else
		rc = read_answer(pid, answer, len, reply, err);
	free(answer);
	return rc;
}

int control_ask(int fd, int pid, json_t *request, json_t **reply,
		int timeout_ms, struct error *err)
{
	int rc = control_send(fd, request, err);

	if (reply)
		*reply = NULL;
	return rc ? rc : control_receive(fd, pid, reply, timeout_ms, err);
}

int control_call(int pid, json_t *request, json_t **reply, int timeout_ms,
		 struct error *err)
{
	int rc, fd;

	if (reply)
		*reply = NULL;
	if (!request)
		return control_send(-1, NULL, err);
	fd = control_connect(pid, timeout_ms, err);
	if (fd < 0)
		return fd;
	rc = control_ask(fd, pid, request, reply, timeout_ms, err);
	close(fd);
	return rc;
}

/* The pid of "ctl<pid>" or, which is no control socket, "nbd<pid>.<minor>"; or 0. */
static int socket_pid(const char *name, bool *control)
{
	char again[64], *end;
	long pid, minor;

	*control = !strncmp(name, "ctl", 3);
	if (!*control && strncmp(name, "nbd", 3))
		return 0;
	pid = strtol(name + 3, &end, 10);
	if (pid <= 0 || pid > INT_MAX)
		return 0;
	if (*control) {
		snprintf(again, sizeof(again), "ctl%ld", pid);
	} else {
		minor = *end == '.' ? strtol(end + 1, NULL, 10) : -1;
		snprintf(again, sizeof(again), "nbd%ld.%ld", pid, minor);
	}
	return strcmp(again, name) ? 0 : (int)pid;
}

static int by_value(const void *a, const void *b)
{
	const int *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static bool is_dead(int pid)
{
	return pid > 0 && process_ended(pid);
}

/* What a dead tapdisk has left beside its socket: common/rundir.h. */
static void remove_if_stale(int dir, const char *name)
{
	char text[32] = "";
	int fd, minor, pid = 0;
	struct stat st;
	char c;

	if (sscanf(name, "stats%d.%d%c", &pid, &minor, &c) != 2 &&
	    sscanf(name, "nbd%d.%d.%d%c", &pid, &minor, &pid, &c) != 3 &&
	    sscanf(name, "disk.%d.%d%c", &minor, &pid, &c) != 2 &&
	    sscanf(name, "ctl%d.%d%c", &pid, &pid, &c) != 2)
		pid = 0;
	if (sscanf(name, "nospace.%d%c", &minor, &c) == 1) {
		fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW |
			    O_NONBLOCK);
		if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0 ||
		    sscanf(text, "pid=%d ", &pid) != 1)
			pid = 0;
		if (fd >= 0)
			close(fd);
	}
	/* A tapdisk that hangs may still have to know of that one: it costs nothing for a day. */
	if (!strncmp(name, "snapshot.", 9) &&
	    (sscanf(name, "snapshot.%d.%*[0-9a-f]%c", &pid, &c) != 1 ||
	     fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) ||
	     time(NULL) - st.st_mtime < OLD_DECISION_S))
		pid = 0;
	if (is_dead(pid))
		unlinkat(dir, name, 0);
}

int control_pids(int **pids, size_t *n, struct error *err)
{
	DIR *dir = opendir(control_dir());
	const struct dirent *entry;
	size_t room = 0;
	int rc = 0;

	*pids = NULL;
	*n = 0;
	if (!dir) {
		if (errno == ENOENT)
			return 0;
		return error_set(err, -errno, "%s: %s", control_dir(),
				 strerror(errno));
	}
	while ((entry = readdir(dir))) {
		bool control;
		int pid = socket_pid(entry->d_name, &control);

		if (!pid) {
			remove_if_stale(dirfd(dir), entry->d_name);
			continue;
		}
		/* The name of one that has died, which leads to another. */
		if (control && control_heir(pid) != pid &&
		    !is_dead(control_heir(pid)))
			continue;
		if (is_dead(pid)) {
			if (control)
				control_forget(pid);
			else
				unlinkat(dirfd(dir), entry->d_name, 0);
			continue;
		}
		if (!control)
			continue;
		if (*n == room) {
			int *more = reallocarray(*pids, room += 64, sizeof(**pids));

			if (!more) {
				rc = error_set(err, -ENOMEM, "out of memory");
				free(*pids);
				*pids = NULL;
				*n = 0;
				break;
			}
			*pids = more;
		}
		(*pids)[(*n)++] = pid;
	}
	closedir(dir);
	if (*n)
		qsort(*pids, *n, sizeof(**pids), by_value);
	return rc;
}
