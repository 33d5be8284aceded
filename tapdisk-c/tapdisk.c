/* SPDX-License-Identifier: LGPL-2.1-only */
/* tapdisk: serves VBDs that tap-ctl attaches and opens over the control socket. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <poll.h>
#include <unistd.h>

#include "common/config.h"
#include "common/log.h"
#include "control/control.h"
#include "server.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

struct signals {
	struct io_watch watch;
	struct server *server;
};

static void usage(FILE *f)
{
	fputs("usage: tapdisk [--foreground] [--debug]\n"
	      "Serves block devices; tap-ctl spawn starts it and tap-ctl open gives it images.\n"
	      "  -f, --foreground  log to stderr\n"
	      "  -d, --debug       log more\n"
	      "  -V, --version     print the version\n", f);
}

static void signalled(struct io_watch *watch, short revents)
{
	struct signals *signals = container_of(watch, struct signals, watch);
	struct signalfd_siginfo info;

	(void)revents;
	if (read(watch->fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return;
	log_info("signal %u: closing all images", info.ssi_signo);
	server_terminate(signals->server);
}

static int signals_open(struct signals *signals, struct server *server,
			struct error *err)
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
	signals->watch.fd = fd;
	signals->watch.events = POLLIN;
	signals->watch.ready = signalled;
	rc = engine_watch(server_engine(server), &signals->watch);
	if (rc)
		return error_set(err, rc, "cannot wait for signals: %s",
				 strerror(-rc));
	return 0;
}

/*
 * The pages that this process needs to write a page may not wait for such a
 * write, and the guests' disks outlive other processes when memory is short.
 * Both need privilege and are worth going on without.
 */
static void protect(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	/*
	 * Only what has been touched: buffers that no request used cost
	 * nothing. Without privilege a limit would make later mappings fail.
	 */
	if (geteuid() == 0 && mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0)
		log_warn("cannot lock memory err=%d", errno);
	if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0)
		log_warn("cannot become an I/O flusher err=%d", errno);
	if (fd < 0 || write(fd, "-1000", 5) != 5)
		log_warn("cannot be exempted from the OOM killer err=%d", errno);
	if (fd >= 0)
		close(fd);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "foreground", no_argument, NULL, 'f' },
		{ "debug", no_argument, NULL, 'd' },
		{ "version", no_argument, NULL, 'V' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	struct control_server *control = NULL;
	struct signals signals = { .server = NULL };
	enum log_level level = LOG_LEVEL_INFO;
	struct server *server = NULL;
	bool foreground = false;
	struct config cfg;
	struct error err;
	int c, rc;

	while ((c = getopt_long(argc, argv, "fdVh", options, NULL)) != -1) {
		switch (c) {
		case 'f':
			foreground = true;
			break;
		case 'd':
			level = LOG_LEVEL_DEBUG;
			break;
		case 'V':
			puts("tapdisk " XENBLK_VERSION);
			return 0;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	}
	if (optind != argc) {
		usage(stderr);
		return 2;
	}

	log_open("tapdisk", !foreground, level);
	rc = config_load(&cfg, NULL, &err);
	if (!rc)
		rc = server_open(&server, &cfg, &err);
	if (!rc)
		rc = signals_open(&signals, server, &err);
	if (!rc)
		rc = control_server_open(&control, server, &err);
	if (rc) {
		log_error("cannot start: %s", err.text);
		fprintf(stderr, "tapdisk: %s\n", err.text);
		goto out;
	}
	protect();
	rc = server_run(server);
	if (rc)
		log_error("the I/O engine failed, guests' requests wait for the next tapdisk err=%d",
			  -rc);
out:
	if (control)
		control_server_close(control);
	if (server)
		server_close(server);
	config_dispose(&cfg);
	return rc ? EXIT_FAILURE : EXIT_SUCCESS;
}
