/* SPDX-License-Identifier: LGPL-2.1-only */
/* A tapdisk that tap-ctl steers, from its start to its end, with its guardian. */
#ifndef XENBLK_SERVE_H
#define XENBLK_SERVE_H

#include "common/log.h"
#include "control/takeover.h"

struct serve {
	bool foreground;		/* log to stderr */
	enum log_level level;
	int guardian;			/* the descriptor that leads to the one that started us, -1: none did */
	int guards;			/* not 0: is the guardian of that process, which is there */
	int creator;			/* not 0: the process that creates a disk, created, or brings others */
	int created;			/* its minor, -1 for others */
	int pids[TAKEOVER_PIDS];	/* whose disks it takes over */
	unsigned int nr_pids;
};

/*
 * The options by which we start ourselves: --guardian=FD, --guards=PID,
 * --creates=PID,MINOR, --succeed=PID,PID... True if name is one of them; *rc is -EINVAL if its value is
 * not right.
 */
bool serve_option(struct serve *serve, const char *name, char *value, int *rc);

/* The exit status. program: by which name it is started again. */
int serve_run(const struct serve *serve, char *program);

#endif
