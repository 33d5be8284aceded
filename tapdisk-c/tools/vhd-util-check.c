// SPDX-License-Identifier: LGPL-2.1-only
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/vhd-util.h"
#include "vhd/check.h"
#include "vhd/vhd-internal.h"

/* 2 is taken by "corrupt" here, so that a wrong call is a failure. */
enum { CHECK_VALID = 0, CHECK_FAILED = 1, CHECK_CORRUPT = 2,
       CHECK_UNSUPPORTED = 63 };

struct check {
	struct vhd_check_options options;
	const char *path;
	bool parents, ignore_uuid, stats, json;
	struct vhd_util_progress progress;
	json_t *images;			/* what --json prints */
};

static int status_of(int rc)
{
	switch (rc) {
	case 0:
		return CHECK_VALID;
	case -EUCLEAN:
		return CHECK_CORRUPT;
	case -ENOTSUP:
		return CHECK_UNSUPPORTED;
	default:
		return CHECK_FAILED;
	}
}

static double percent(uint64_t part, uint64_t whole)
{
	return whole ? 100.0 * (double)part / (double)whole : 0.0;
}

/* Bytes of a name or message as JSON text, which is UTF-8. */
static json_t *json_text(const char *s)
{
	json_t *text = json_string(s);

	return text ? text : json_string("(not UTF-8)");
}

static void report(const struct check *c, const char *path,
		   const struct vhd_check_result *r)
{
	json_t *o, *warnings;

	if (c->json) {
		warnings = json_array();
		for (unsigned int i = 0; i < r->nr_warnings; i++)
			json_array_append_new(warnings,
					      json_text(r->warning[i]));
		o = json_pack("{s:o, s:o, s:I}", "image", json_text(path),
			      "warnings", warnings, "sectors_allocated",
			      (json_int_t)r->sectors_allocated);
		json_object_set_new(o, "sectors_written", c->options.bitmaps ?
				    json_integer((json_int_t)r->sectors_written) :
				    json_null());
		json_array_append_new(c->images, o);
		return;
	}
	for (unsigned int i = 0; i < r->nr_warnings; i++)
		fprintf(stderr, "vhd-util: %s: warning: %s\n", path,
			r->warning[i]);
	if (c->stats)
		printf("%s: secs allocated: 0x%" PRIx64
		       " secs written: 0x%" PRIx64 " (%.2f%%)\n",
		       vhd_base_name(path), r->sectors_allocated,
		       r->sectors_written,
		       percent(r->sectors_written, r->sectors_allocated));
	else
		printf("%s is valid\n", vhd_util_plain(path));
}

/* One image, and whether its parent is there; *parent is that. */
static int check_image(const struct check *c, const struct config *cfg,
		       const char *extra_dir, const struct vhd_image *image,
		       struct vhd_parent *parent, const struct stat *seen,
		       unsigned int nr_seen, struct error *err)
{
	struct vhd_check_result r;
	struct error fault = { 0 };
	bool forgiven = false;
	int rc;

	rc = vhd_check(image, &c->options, &r, err);
	if (!rc && image->footer.type == VHD_DIFF) {
		rc = nr_seen < VHD_MAX_CHAIN ?
			vhd_parent_open(parent, image, cfg, extra_dir, 0, seen,
					nr_seen, &fault) :
			error_set(&fault, -ELOOP,
				  "%s: the chain has more than %u images",
				  image->path, VHD_MAX_CHAIN);
		/* None, or one with another uuid; not one that is damaged. */
		forgiven = c->ignore_uuid &&
			   (rc == -ENOENT || (rc == -EUCLEAN && parent->is_other));
		/* The chain can't be read: as bad as a fault of the image. */
		if (rc == -ENOENT || rc == -ELOOP)
			rc = -EUCLEAN;
		if (forgiven)
			rc = 0;
		if (rc)
			error_set(err, rc, "%s", fault.text);
	}
	if (!rc)
		report(c, image->path, &r);
	vhd_check_result_dispose(&r);
	return rc;
}

/* The images stay open, and so locked, until all are checked. */
static int check_chain(const struct check *c, const struct config *cfg,
		       struct error *err)
{
	struct vhd_image *open[VHD_MAX_CHAIN + 1] = { NULL };
	struct stat seen[VHD_MAX_CHAIN + 1];
	char *extra = vhd_extra_dir(c->path);
	unsigned int n = 0;
	int rc;

	rc = vhd_open(&open[0], c->path, 0, err);
	while (!rc && open[n]) {
		struct vhd_parent parent = { .raw_fd = -1 };

		if (fstat(open[n]->fd, &seen[n])) {
			rc = error_set(err, -errno, "%s: %s", open[n]->path,
				       strerror(errno));
			break;
		}
		rc = check_image(c, cfg, extra, open[n], &parent, seen, n + 1,
				 err);
		n++;
		if (parent.raw_fd >= 0)
			close(parent.raw_fd);
		free(parent.path);
		open[n] = parent.vhd;
		if (!c->parents) {
			n++;
			break;
		}
	}
	for (unsigned int i = 0; i <= n && i <= VHD_MAX_CHAIN; i++)
		vhd_close(open[i]);
	free(extra);
	return rc;
}

static void print_json(const struct check *c, int rc, const struct error *err)
{
	static const struct { int status; const char *text; } names[] = {
		{ CHECK_VALID, "valid" }, { CHECK_FAILED, "failed" },
		{ CHECK_CORRUPT, "corrupt" },
		{ CHECK_UNSUPPORTED, "unsupported" },
	};
	const char *text = "failed";
	json_t *o;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i].status == status_of(rc))
			text = names[i].text;
	o = json_pack("{s:o, s:s, s:o, s:O}", "image", json_text(c->path),
		      "status", text,
		      "error", rc ? json_text(err->text) : json_null(),
		      "checked", c->images);
	json_dumpf(o, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(o);
}

static int check(struct check *c)
{
	struct config cfg = { 0 };
	struct error err = { 0 };
	int rc;

	if (c->json)
		c->images = json_array();
	if (c->options.bitmaps)
		vhd_util_progress_begin(&c->progress);
	c->options.watch = &c->progress.watch;
	rc = config_load(&cfg, NULL, &err);
	if (!rc)
		rc = check_chain(c, &cfg, &err);
	config_dispose(&cfg);
	if (c->json)
		print_json(c, rc, &err);
	if (rc)
		vhd_util_failed(&err);
	json_decref(c->images);
	return status_of(rc);
}

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "json", no_argument, NULL, 'J' },
		{ "progress", required_argument, NULL, 'P' },
		{ NULL, 0, NULL, 0 },
	};
	struct check c = { .progress.fd = -1 };
	int opt;

	while ((opt = getopt_long(argc, argv, "n:iItpbBsh", longopts, NULL)) !=
	       -1) {
		switch (opt) {
		case 'n':
			c.path = optarg;
			break;
		case 'i':
			c.options.ignore_footer = true;
			break;
		case 'I':
			c.ignore_uuid = true;
			break;
		case 't':
			c.options.ignore_timestamps = true;
			break;
		case 'p':
			c.parents = true;
			break;
		case 'b':
			c.options.bitmaps = true;
			break;
		case 'B':	/* XenServer's overlap check was slow; this isn't */
			break;
		case 's':
			c.stats = true;
			c.options.bitmaps = true;
			break;
		case 'P':
			if (!vhd_util_progress_fd(&c.progress, optarg))
				return CHECK_FAILED;
			break;
		case 'J':
			c.json = true;
			break;
		case 'h':
			return vhd_util_usage(self, opt);
		default:
			vhd_util_usage(self, opt);
			return CHECK_FAILED;
		}
	}
	if (!c.path || optind != argc) {
		vhd_util_usage(self, 0);
		return CHECK_FAILED;
	}
	return check(&c);
}

const struct vhd_util_command vhd_util_check = {
	.name = "check",
	.usage = "-n NAME [-p] [-b] [-s] [-i] [-I] [-t] [-B] [--json]\n"
		 "      [--progress=FD] [-h]\n"
		 "  -p  check parents too\n"
		 "  -b  check bitmaps\n"
		 "  -s  statistics\n"
		 "  -i  don't warn of a missing footer at the end\n"
		 "  -I  ignore the parent's uuid\n"
		 "  -t  ignore timestamps\n"
		 "exit status: 0 valid, 1 failure, 2 corrupt, 63 unsupported",
	.run = run,
};
