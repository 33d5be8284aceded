/* SPDX-License-Identifier: LGPL-2.1-only */
/* What the commands of vhd-util share. */
#ifndef XENBLK_VHD_UTIL_H
#define XENBLK_VHD_UTIL_H

#include "common/error.h"
#include "jobs/job.h"
#include "vhd/vhd.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

struct vhd_util_command {
	const char *name;
	const char *usage;	/* the options, one line */
	/* argv[0] is the command's name. Returns the exit status. */
	int (*run)(const struct vhd_util_command *self, int argc, char **argv);
};

extern const struct vhd_util_command vhd_util_create, vhd_util_snapshot,
	vhd_util_query, vhd_util_read, vhd_util_check, vhd_util_repair,
	vhd_util_coalesce, vhd_util_copy, vhd_util_convert, vhd_util_resize,
	vhd_util_set, vhd_util_modify, vhd_util_fill, vhd_util_revert,
	vhd_util_key, vhd_util_scan, vhd_util_map, vhd_util_compare;

/* Of a long command. bar and fd come from its options, fd is -1 without. */
struct vhd_util_progress {
	bool bar;			/* -p: on stderr, if that is a terminal */
	int fd;				/* --progress: "N/100" lines */
	int shown;			/* percent */
	struct job_watch watch;		/* for the job */
};

/* --progress; false with a message. */
bool vhd_util_progress_fd(struct vhd_util_progress *progress, const char *text);
/* What getopt said is -p or --progress ('P'), with its optarg; false with a message. */
bool vhd_util_progress_option(struct vhd_util_progress *progress, int opt);
/*
 * From now on SIGINT, SIGTERM and SIGHUP stop the job, the second one the
 * program; SIGUSR1 prints how far it is.
 */
void vhd_util_progress_begin(struct vhd_util_progress *progress);
/* Before anything else is printed. */
void vhd_util_progress_end(const struct vhd_util_progress *progress);

/* Prints the command's options; the exit status for a wrong or (-h) right call. */
int vhd_util_usage(const struct vhd_util_command *self, int opt);
/* Prints "vhd-util: TEXT" on stderr; EXIT_FAILED, or EIO or ENOSPC for those. */
int vhd_util_failed(const struct error *err);
/*
 * For a line of output: control characters, which a name in an image may have to look
 * like another line, as "?". Of the last four calls.
 */
const char *vhd_util_plain(const char *text);
/* fixed, dynamic or differencing */
const char *vhd_util_type(enum vhd_type type);
/* vhd-util-read-json.c: the metadata, on stdout. */
int vhd_util_read_json(const struct vhd_image *image, struct error *err);
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
