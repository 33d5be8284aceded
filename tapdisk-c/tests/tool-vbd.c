/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * tool-vbd: a tapdisk in all but the ring, for tests of tap-ctl and of a disk's
 * life without the driver. What is attached has a transport that brings nothing,
 * and is served by NBD in the control directory.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"
#include "serve.h"
#include "tests/real.h"
#include "transport/blktap.h"

/*
 * $NO_DEVICE: its devices can't be started. $DIE_AT_START: it dies instead.
 *
 * In place of the C library's: for a directory it fails while there is the file
 * $DIR_SYNC_FAILS, which holds the error's number.
 */
int fsync(int fd)
{
	const char *name = getenv("DIR_SYNC_FAILS");
	FILE *f = name ? fopen(name, "r") : NULL;
	struct stat st;
	int number = 0;

	if (f) {
		if (fstat(fd, &st) || !S_ISDIR(st.st_mode) ||
		    fscanf(f, "%d", &number) != 1)
			number = 0;
		fclose(f);
	}
	/* The C library's, or that of a preloaded library. */
	if (!number)
		return ((int (*)(int))(uintptr_t)dlsym(RTLD_NEXT, "fsync"))(fd);
	errno = number;
	return -1;
}

/* The same for a socket's: $LISTEN_LATE, microseconds, is what goes before it. */
int listen(int fd, int backlog)
{
	const char *late = getenv("LISTEN_LATE");

	if (late)
		usleep((useconds_t)atoi(late));
	return real_listen(fd, backlog);
}

static int ring_start(struct transport *t, const struct image_info *info,
		      bool readonly, struct error *err)
{
	(void)t;
	(void)info;
	(void)readonly;
	if (getenv("DIE_AT_START"))
		abort();
	if (getenv("NO_DEVICE"))
		return error_set(err, -EPROTO, "no device for this one");
	return 0;
}

static int ring_stop(struct transport *t, bool force, struct error *err)
{
	(void)t;
	(void)force;
	(void)err;
	return 0;
}

static int ring_reset(struct transport *t, struct error *err)
{
	(void)t;
	(void)err;
	return 0;
}

static void ring_hold(struct transport *t)
{
	(void)t;
}

static bool ring_round(struct transport *t)
{
	(void)t;
	return false;
}

static void ring_close(struct transport *t)
{
	free(t);
}

static const struct transport_ops ring_ops = {
	.name = "none", .start = ring_start, .stop = ring_stop,
	.reset = ring_reset, .hold = ring_hold, .release = ring_start,
	.round = ring_round, .close = ring_close,
};

int blktap_open(struct transport **transport, struct vbd *vbd,
		struct engine *engine, int minor, bool kernel_io,
		struct error *err)
{
	struct transport *t = calloc(1, sizeof(*t));

	(void)vbd;
	(void)engine;
	(void)minor;
	(void)kernel_io;
	if (!t)
		return error_set(err, -ENOMEM, "out of memory");
	t->ops = &ring_ops;
	list_init(&t->link);
	*transport = t;
	return 0;
}

int main(int argc, char **argv)
{
	struct serve serve = {
		.foreground = true, .level = LOG_LEVEL_INFO, .guardian = -1,
	};

	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		int rc = 0;

		if (!value)
			continue;
		*value = 0;
		serve_option(&serve, argv[i] + 2, value + 1, &rc);
		if (rc)
			return 2;
	}
	return serve_run(&serve, argv[0]);
}
