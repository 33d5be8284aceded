/* SPDX-License-Identifier: LGPL-2.1-only */
#include "standalone.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "drivers/image.h"
#include "server.h"
#include "signals.h"

/* The command's process: made before the engine is, let go when the socket is there. */
struct command {
	pid_t pid;
	int go_fd;
	char dir[PATH_MAX];
	char socket[PATH_MAX + 8];
	struct io_watch ended;
	struct server *server;
};

/* The characters that RFC 3986 leaves as they are, and "/". */
static void put_uri(char *to, size_t size, const char *socket)
{
	size_t n = (size_t)snprintf(to, size, "nbd+unix:///?socket=");

	for (const unsigned char *p = (const void *)socket;
	     *p && n + 4 <= size; p++)
		n += (size_t)snprintf(to + n, size - n, isalnum(*p) ||
				      strchr("-._~/", *p) ? "%c" : "%%%02X", *p);
}

static void command_exec(const char *command, const char *socket)
{
	char uri[3 * PATH_MAX];

	put_uri(uri, sizeof(uri), socket);
	setenv("uri", uri, 1);
	setenv("unixsocket", socket, 1);
	execl("/bin/sh", "sh", "-c", command, (char *)NULL);
	fprintf(stderr, "tapdisk: /bin/sh: %s\n", strerror(errno));
	_exit(127);
}

static int command_prepare(struct command *c, const char *command,
			   const char *socket, struct error *err)
{
	const char *tmp = getenv("TMPDIR");
	int fds[2], rc;
	char go;

	if (!socket) {
		snprintf(c->dir, sizeof(c->dir), "%s/tapdisk-XXXXXX",
			 tmp && *tmp ? tmp : "/tmp");
		if (!mkdtemp(c->dir)) {
			rc = error_set(err, -errno, "%s: %s", c->dir,
				       strerror(errno));
			c->dir[0] = 0;
			return rc;
		}
		snprintf(c->socket, sizeof(c->socket), "%s/socket", c->dir);
	} else {
		snprintf(c->socket, sizeof(c->socket), "%s", socket);
	}
	if (pipe2(fds, O_CLOEXEC))
		return error_set(err, -errno, "pipe: %s", strerror(errno));
	c->pid = fork();
	if (c->pid < 0) {
		rc = error_set(err, -errno, "fork: %s", strerror(errno));
		close(fds[0]);
		close(fds[1]);
		return rc;
	}
	if (!c->pid) {
		close(fds[1]);
		if (read(fds[0], &go, 1) == 1)
			command_exec(command, c->socket);
		_exit(1);
	}
	close(fds[0]);
	c->go_fd = fds[1];
	return 0;
}

static void command_ended(struct io_watch *watch, short revents)
{
	struct command *c = container_of(watch, struct command, ended);

	(void)revents;
	engine_unwatch(server_engine(c->server), watch);
	server_terminate(c->server);
}

static int command_go(struct command *c, struct server *server,
		      struct error *err)
{
	int rc;

	c->server = server;
	c->ended.fd = pidfd_open(c->pid, 0);
	if (c->ended.fd < 0)
		return error_set(err, -errno, "pidfd_open: %s", strerror(errno));
	c->ended.events = POLLIN;
	c->ended.ready = command_ended;
	rc = engine_watch(server_engine(server), &c->ended);
	if (rc)
		return error_set(err, rc, "cannot wait for the command: %s",
				 strerror(-rc));
	if (write(c->go_fd, "", 1) != 1)
		return error_set(err, -EPIPE, "the command's process is gone");
	return 0;
}

/* Whether it has ended within so many seconds. */
static bool command_ends(struct command *c, unsigned int seconds, int *status)
{
	uint64_t until = now_ns() + seconds * UINT64_C(1000000000), now;
	struct pollfd p = { .fd = c->ended.fd, .events = POLLIN };

	if (p.fd < 0)
		p.fd = c->ended.fd = pidfd_open(c->pid, 0);
	while (!waitpid(c->pid, status, WNOHANG)) {
		now = now_ns();
		if (now >= until)
			return false;
		poll(&p, 1, (int)((until - now) / 1000000) + 1);
	}
	return true;
}

/*
 * Its exit status, as a shell tells it. It ends too if we do first. No more than
 * the shell is killed: a process group of its own would cost it the terminal.
 */
static int command_status(struct command *c, unsigned int grace_s)
{
	int status = W_EXITCODE(EXIT_FAILURE, 0);

	if (c->go_fd >= 0)
		close(c->go_fd);
	if (!command_ends(c, 0, &status)) {
		kill(c->pid, SIGTERM);
		if (!command_ends(c, grace_s, &status)) {
			fprintf(stderr, "tapdisk: the command goes on %u s after SIGTERM; it is killed\n",
				grace_s);
			kill(c->pid, SIGKILL);
			if (waitpid(c->pid, &status, 0) < 0)
				return EXIT_FAILURE;
		}
	}
	if (c->ended.fd >= 0)
		close(c->ended.fd);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int standalone_run(const struct standalone *args, const struct config *cfg)
{
	struct command command = { .go_fd = -1, .ended.fd = -1 };
	struct signals signals = { .server = NULL };
	const char *socket = args->socket;
	int rc, status = EXIT_SUCCESS;
	struct server *server = NULL;
	char spec[PATH_MAX + 32];
	bool served = false;
	struct error err;

	rc = image_absolute(args->spec, spec, sizeof(spec), &err);
	if (!rc && args->command) {
		rc = command_prepare(&command, args->command, socket, &err);
		socket = command.socket;
	}
	if (!rc)
		rc = server_open(&server, cfg, &err);
	if (!rc)
		rc = signals_open(&signals, server, NULL, &err);
	if (!rc)
		rc = server_serve(server, spec, args->readonly, socket, &err);
	served = !rc;
	if (!rc && args->command)
		rc = command_go(&command, server, &err);
	if (rc) {
		fprintf(stderr, "tapdisk: %s\n", err.text);
		if (served)
			server_terminate(server);
	}
	if (served && server_run(server) && !rc) {
		fprintf(stderr, "tapdisk: %s: not closed cleanly\n", spec);
		rc = -EIO;
	}
	if (served)
		server_detach(server, -1, NULL);
	if (server)
		server_close(server);
	if (command.pid > 0)
		status = command_status(&command, args->grace_s);
	if (command.dir[0])
		rmdir(command.dir);
	return rc ? EXIT_FAILURE : status;
}
