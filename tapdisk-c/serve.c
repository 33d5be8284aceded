/* SPDX-License-Identifier: LGPL-2.1-only */
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/config.h"
#include "control/control.h"
#include "guardian.h"
#include "server.h"
#include "signals.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

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

static int parse_number(const char *text, int *number)
{
	char *end;
	long n = strtol(text, &end, 10);

	if (end == text || *end || n <= 0 || n > INT_MAX)
		return -EINVAL;
	*number = (int)n;
	return 0;
}

static int parse_creator(struct serve *serve, const char *text)
{
	char end;

	return sscanf(text, "%9d,%9d%c", &serve->creator, &serve->created,
		      &end) == 2 && serve->creator > 0 && serve->created >= -1 ?
	       0 : -EINVAL;
}

static int parse_pids(struct serve *serve, char *text)
{
	char *save = NULL;

	for (char *p = strtok_r(text, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
		if (serve->nr_pids == TAKEOVER_PIDS ||
		    parse_number(p, &serve->pids[serve->nr_pids]))
			return -EINVAL;
		serve->nr_pids++;
	}
	return serve->nr_pids ? 0 : -EINVAL;
}

bool serve_option(struct serve *serve, const char *name, char *value, int *rc)
{
	*rc = 0;
	if (!strcmp(name, "guardian"))
		*rc = parse_number(value, &serve->guardian);
	else if (!strcmp(name, "guards"))
		*rc = parse_number(value, &serve->guards);
	else if (!strcmp(name, "creates"))
		*rc = parse_creator(serve, value);
	else if (!strcmp(name, "succeed"))
		*rc = parse_pids(serve, value);
	else
		return false;
	return true;
}

/* Without one, the disks of a tapdisk that dies wait. */
static void have_guardian(struct guardian *guardian, const struct serve *serve,
			  const struct config *cfg, char *const *again)
{
	int rc = 0;

	if (serve->guardian >= 0)
		guardian_adopt(guardian, again, serve->guardian);
	else if (cfg->restart)
		rc = guardian_start(guardian, again);
	if (rc)
		log_error("goes without a guardian for now err=%d", -rc);
}

int serve_run(const struct serve *serve, char *program)
{
	static char foreground[] = "--foreground", debug[] = "--debug";
	char *again[4] = { program };
	struct control_server *control = NULL;
	struct guardian guardian = { .fd = -1 };
	struct signals signals = { .server = NULL };
	struct server *server = NULL;
	/* What fails to start with disks to take over has died. */
	bool ended = !serve->nr_pids;
	struct config cfg;
	struct error err;
	int rc, failed = EXIT_FAILURE;
	size_t n = 1;

	if (serve->foreground)
		again[n++] = foreground;
	if (serve->level == LOG_LEVEL_DEBUG)
		again[n++] = debug;
	log_open("tapdisk", !serve->foreground, serve->level);
	if (serve->guards)
		guardian_run(serve->guardian, serve->guards, again);
	rc = config_load(&cfg, NULL, &err);
	/* Before there is anything that a child should not have. */
	if (!rc)
		have_guardian(&guardian, serve, &cfg, again);
	if (!rc)
		rc = server_open(&server, &cfg, &err);
	if (!rc)
		rc = signals_open(&signals, server, &guardian, &err);
	if (!rc) {
		server_export_in(server, control_dir());
		server_keep_files(server);
		rc = control_server_open(&control, server, &err);
	}
	if (!rc && serve->creator)
		rc = control_create(control, serve->created, serve->creator,
				    &err);
	if (rc) {
		log_error("cannot start: %s", err.text);
		fprintf(stderr, "tapdisk: %s\n", err.text);
		failed = serve->nr_pids ? GUARDIAN_NOT_STARTED : EXIT_FAILURE;
		goto out;
	}
	protect();
	guardian_watch(&guardian, server_engine(server));
	if (serve->nr_pids)
		control_take_over(control, serve->pids, serve->nr_pids,
				  guardian_taken, &guardian);
	rc = server_run(server);
	ended = server_ended(server);
	if (!ended)
		log_error("the I/O engine failed, guests' requests wait for the next tapdisk err=%d",
			  -rc);
out:
	guardian_unwatch(&guardian);
	if (control)
		control_server_close(control);
	if (server)
		server_close(server);
	config_dispose(&cfg);
	/* Without a word, it starts another. */
	if (ended)
		guardian_release(&guardian);
	return rc ? failed : EXIT_SUCCESS;
}
