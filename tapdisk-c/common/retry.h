/* SPDX-License-Identifier: LGPL-2.1-only */
/* What a VBD does about errors of its image: the settings. */
#ifndef XENBLK_RETRY_H
#define XENBLK_RETRY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "common/error.h"

enum retry_errors {
	RETRY_NONE,
	RETRY_TRANSIENT,	/* those that may pass by themselves */
	RETRY_ALL,		/* and any I/O error of a local disk */
};

struct retry_policy {
	enum retry_errors errors;
	uint32_t interval_s;	/* between two tries, 1 to 3600 */
	uint32_t for_s;		/* since the first failure, 0 to 31536000 */
	bool then_pause;	/* after that: wait for `tap-ctl unpause`; else the error is the guest's */
	bool no_space_waits;	/* ENOSPC and EDQUOT: wait for space; else the error is the guest's */
};

extern const struct retry_policy retry_defaults;

/*
 * Sets the field that a key of the configuration names: retry_errors (none,
 * transient, all), retry_interval, retry_for (seconds), retry_then (fail,
 * pause), no_space (wait, fail). -ENOENT: no such key; -EINVAL with a message
 * that names key and value.
 */
int retry_set(struct retry_policy *policy, const char *key, const char *value,
	      struct error *err);

/* All of it as lines of key=value that retry_set() takes. */
void retry_write(const struct retry_policy *policy, FILE *f);

#endif
