/* SPDX-License-Identifier: LGPL-2.1-only */
/* The flat file that xenblk writes for the C tools: docs/architecture.md. */
#ifndef XENBLK_CONFIG_H
#define XENBLK_CONFIG_H

#include <stdbool.h>

#include "common/error.h"
#include "common/retry.h"

#define CONFIG_PATH "/run/xenblk/config"
#define CONFIG_MAX_DIRS 64
#define CONFIG_TRANSPORT_BYTES 64

/* The transports, in the order in which "auto" tries them. */
#define TRANSPORT_AUTO "blktap,ublk,nbd"

struct config {
	char *image_dir[CONFIG_MAX_DIRS];	/* absolute, as configured */
	unsigned int nr_image_dirs;
	char engine[1024];			/* as engine_open() takes it */
	char transport[CONFIG_TRANSPORT_BYTES];	/* "auto", or names separated by commas: transport/gendisk.h */
	bool kernel_io;				/* the driver may serve what lies in a file in one piece */
	unsigned int dead_timeout_s;		/* what a disk without a tapdisk waits for one, 0: for ever */
	bool restart;				/* another tapdisk takes over from one that dies */
	struct retry_policy retry;		/* of a disk that says nothing else */
};

/*
 * Reads path (NULL: $XENBLK_CONFIG, else CONFIG_PATH); $XENBLK_ENGINE goes
 * before its engine. A missing file gives the defaults; a malformed one is an error that names the line. The caller
 * disposes of cfg in either case.
 */
int config_load(struct config *cfg, const char *path, struct error *err);
void config_dispose(struct config *cfg);

/*
 * Sets cfg->transport, as the configuration's "transport" does. -EINVAL with a
 * message that names the value.
 */
int config_set_transport(struct config *cfg, const char *value,
			 struct error *err);

/*
 * 0 if path, symbolic links resolved, is or lies inside an allowed directory or
 * extra_dir (may be NULL); -EACCES with a message that names both if
 * not; -ENOENT and the like if it can't be resolved.
 */
int config_allows(const struct config *cfg, const char *path,
		  const char *extra_dir, struct error *err);

#endif
