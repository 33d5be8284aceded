/* SPDX-License-Identifier: LGPL-2.1-only */
#include "signals.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/log.h"

static void signalled(struct io_watch *watch, short revents)
{
	struct signals *signals = container_of(watch, struct signals, watch);
	struct signalfd_siginfo info;

	(void)revents;
	if (read(watch->fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return;
	log_info("signal %u: closing all images", info.ssi_signo);
	if (signals->guardian)
		guardian_dismiss(signals->guardian);
	server_terminate(signals->server);
}

int signals_open(struct signals *signals, struct server *server,
		 struct guardian *guardian, struct error *err)
{
	sigset_t set;
	int fd, rc;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	/* A file size limit is an error of one request, not the end of all. */
	signal(SIGXFSZ, SIG_IGN);
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		return error_set(err, -errno, "signalfd: %s", strerror(errno));
	signals->server = server;
	signals->guardian = guardian;
	signals->watch.fd = fd;
	signals->watch.events = POLLIN;
	signals->watch.ready = signalled;
	rc = engine_watch(server_engine(server), &signals->watch);
	if (rc)
		return error_set(err, rc, "cannot wait for signals: %s",
				 strerror(-rc));
	return 0;
}
