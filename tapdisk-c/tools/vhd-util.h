/* SPDX-License-Identifier: LGPL-2.1-only */
/* What the commands of vhd-util share. */
#ifndef XENBLK_VHD_UTIL_H
#define XENBLK_VHD_UTIL_H

#include "common/error.h"
#include "vhd/vhd.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

struct vhd_util_command {
	const char *name;
	const char *usage;	/* the options, one line */
	/* argv[0] is the command's name. Returns the exit status. */
	int (*run)(const struct vhd_util_command *self, int argc, char **argv);
};

extern const struct vhd_util_command vhd_util_create, vhd_util_snapshot,
	vhd_util_query, vhd_util_read, vhd_util_check, vhd_util_repair;
extern const struct vhd_util_command vhd_util_resize;
extern const struct vhd_util_command vhd_util_set;
extern const struct vhd_util_command vhd_util_modify;
extern const struct vhd_util_command vhd_util_fill;
extern const struct vhd_util_command vhd_util_revert;
extern const struct vhd_util_command vhd_util_key;
extern const struct vhd_util_command vhd_util_scan;
extern const struct vhd_util_command vhd_util_map;
extern const struct vhd_util_command vhd_util_compare;

/* Prints the command's options; the exit status for a wrong or (-h) right call. */
int vhd_util_usage(const struct vhd_util_command *self, int opt);
/* Prints "vhd-util: TEXT" on stderr; EXIT_FAILED. */
int vhd_util_failed(const struct error *err);
/* A whole non-negative decimal number, for option -opt; false with a message. */
bool vhd_util_number(const char *text, int opt, uint64_t max, uint64_t *n);
/* The same in MiB, as bytes. */
bool vhd_util_megabytes(const char *text, int opt, uint64_t *bytes);
/*
 * Opens without a lock an image that may be written meanwhile: metadata that
 * were read half before and half after a change are read again.
 */
int vhd_util_look(struct vhd_image **image, const char *path,
		  struct error *err);
int vhd_util_look_chain(struct vhd_chain **chain, const char *path,
			const struct config *cfg, struct error *err);

#endif
