// SPDX-License-Identifier: LGPL-2.1-only
/* How far a long command is, and how it is stopped. */
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tools/vhd-util.h"

static volatile sig_atomic_t stop, asked;

static void on_stop(int sig)
{
	(void)sig;
	stop = 1;
}

static void on_ask(int sig)
{
	(void)sig;
	asked = 1;
}

static void show(void *priv, uint64_t done, uint64_t total)
{
	struct vhd_util_progress *p = priv;
	int percent = (int)((double)done * 100.0 / (double)total);

	if (asked) {
		asked = 0;
		fprintf(stderr, "%s%d/100\n", p->bar ? "\r" : "", percent);
	}
	if (percent == p->shown)
		return;
	p->shown = percent;
	if (p->bar)
		fprintf(stderr, "\r%3d %%%s", percent,
			percent == 100 ? "\n" : "");
	if (p->fd >= 0)
		dprintf(p->fd, "%d/100\n", percent);
}

bool vhd_util_progress_fd(struct vhd_util_progress *p, const char *text)
{
	char *end;
	long fd = strtol(text, &end, 10);

	if (*text >= '0' && *text <= '9' && !*end && fd <= INT_MAX &&
	    fcntl((int)fd, F_GETFD) >= 0) {
		p->fd = (int)fd;
		return true;
	}
	fprintf(stderr,
		"vhd-util: option --progress: '%s' is not the number of an open descriptor\n",
		text);
	return false;
}

bool vhd_util_progress_option(struct vhd_util_progress *p, int opt)
{
	if (opt == 'P')
		return vhd_util_progress_fd(p, optarg);
	p->bar = true;
	return true;
}

void vhd_util_progress_begin(struct vhd_util_progress *p)
{
	/* A second one ends the program at once. */
	struct sigaction action = {
		.sa_handler = on_stop, .sa_flags = (int)SA_RESETHAND,
	};

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	action.sa_handler = on_ask;
	action.sa_flags = SA_RESTART;
	sigaction(SIGUSR1, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	p->bar = p->bar && isatty(STDERR_FILENO);
	p->shown = -1;
	p->watch.stop = &stop;
	p->watch.progress = show;
	p->watch.priv = p;
}

void vhd_util_progress_end(const struct vhd_util_progress *p)
{
	if (p->bar && p->shown >= 0 && p->shown < 100)
		fputc('\n', stderr);
}
