/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * snapshot: makes all that can be made while the disk runs, the parent's name
 * and the new leaf, and has tapdisk do the rest.
 */
#include "tools/tap-ctl.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control/client.h"
#include "vhd/vhd.h"

/* The leaf changes while it is read: a look at it may see two of its moments. */
#define CREATE_TRIES 3

struct snapshot {
	char *leaf;			/* links resolved */
	char *dir;
	char *parent;
	char *child;
};

static int out_of_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "out of memory");
}

/* The path of the leaf that the tapdisk serves. */
static int find_leaf(const struct options *opt, char **leaf, struct error *err)
{
	json_t *vbds, *vbd;
	size_t i;
	int rc = tapdisk_vbds(opt->pid, TAP_CTL_TIMEOUT_MS, &vbds, err);

	if (rc)
		return rc;
	rc = error_set(err, -ENODEV, "minor %d is not attached to tapdisk %d",
		       opt->minor, opt->pid);
	json_array_foreach(vbds, i, vbd) {
		const char *args = json_string_value(json_object_get(vbd, "args"));

		if (json_integer_value(json_object_get(vbd, "minor")) != opt->minor)
			continue;
		rc = 0;
		if (!args || strncmp(args, "vhd:", 4))
			rc = error_set(err, -EOPNOTSUPP, "minor %d: %s: only a vhd: can have a snapshot",
				       opt->minor, args ? args : "no image is open");
		else if (!(*leaf = realpath(args + 4, NULL)))
			rc = error_set(err, -errno, "%s: %s", args + 4,
				       strerror(errno));
	}
	json_decref(vbds);
	return rc;
}

/* 0 if the directory of an absolute path is the leaf's. */
static int check_dir(const struct snapshot *s, const char *path,
		     struct error *err)
{
	char *copy = strdup(path), *real = NULL;
	int rc = 0;

	if (!copy)
		return out_of_memory(err);
	if (*path != '/')
		rc = error_set(err, -EINVAL, "%s: must be absolute, or a mere name",
			       path);
	else if (!(real = realpath(dirname(copy), NULL)))
		rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
	else if (strcmp(real, s->dir))
		rc = error_set(err, -EXDEV, "%s: must be in the directory of the leaf, %s",
			       path, s->dir);
	free(real);
	free(copy);
	return rc;
}

/* A name without a slash is in the leaf's directory. */
static int make_names(struct snapshot *s, const struct options *opt,
		      struct error *err)
{
	const char *slash = strrchr(opt->name, '/');
	const char *base = slash ? slash + 1 : opt->name;
	char *copy = strdup(s->leaf);
	int rc = 0;

	s->dir = copy ? strdup(dirname(copy)) : NULL;
	free(copy);
	if (!s->dir)
		return out_of_memory(err);
	if (slash)
		rc = check_dir(s, opt->name, err);
	if (rc)
		return rc;
	if (asprintf(&s->child, "%s/.xenblk-snapshot-%d-%d", s->dir, opt->pid,
		     opt->minor) < 0) {
		s->child = NULL;
		return out_of_memory(err);
	}
	if (asprintf(&s->parent, "%s/%s", s->dir, base) < 0) {
		s->parent = NULL;
		return out_of_memory(err);
	}
	return 0;
}

static int sync_dir(const char *dir, struct error *err)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int rc = 0;

	if (fd < 0 || fsync(fd))
		rc = error_set(err, -errno, "%s: sync of the directory: %s", dir,
			       strerror(errno));
	if (fd >= 0)
		close(fd);
	return rc;
}

static int create_child(const struct snapshot *s, struct error *err)
{
	const struct vhd_create_args args = {
		.path = s->child, .parent = s->parent, .parent_served = true,
	};
	struct config cfg;
	int rc = config_load(&cfg, NULL, err);

	/* Of a tap-ctl that was killed. */
	if (!rc && unlink(s->child) && errno != ENOENT)
		rc = error_set(err, -errno, "%s: %s", s->child, strerror(errno));
	for (int i = 0; i < CREATE_TRIES; i++) {
		if (!rc || rc == -EUCLEAN)
			rc = vhd_create(&args, &cfg, err);
		if (!rc)
			break;
	}
	config_dispose(&cfg);
	return rc;
}

int cmd_snapshot(const struct options *opt, struct error *err)
{
	struct snapshot s = { NULL };
	json_t *request;
	int rc;

	hold_signals();
	rc = find_leaf(opt, &s.leaf, err);
	if (!rc)
		rc = make_names(&s, opt, err);
	if (rc)
		goto out;
	if (link(s.leaf, s.parent)) {
		rc = error_set(err, -errno, "%s: %s%s", s.parent, strerror(errno),
			       errno == EEXIST ? "; give the parent another name" : "");
		goto out;
	}
	rc = sync_dir(s.dir, err);
	if (!rc)
		rc = create_child(&s, err);
	if (rc) {
		unlink(s.child);
		unlink(s.parent);
		goto out;
	}
	request = json_pack("{s:s, s:i, s:s, s:s, s:i}", "op", "snapshot",
			    "minor", opt->minor, "child", s.child, "parent",
			    s.parent, "timeout", opt->timeout_ms / 1000);
	rc = control_call(opt->pid, request, NULL,
			  opt->timeout_ms + TAP_CTL_GRACE_MS, err);
	json_decref(request);
	/*
	 * Without the child it can't happen any more. If the child is gone it
	 * has happened, whatever the answer: then the parent's name is the only one.
	 */
	if (rc && !unlink(s.child))
		unlink(s.parent);
out:
	free(s.leaf);
	free(s.dir);
	free(s.parent);
	free(s.child);
	return rc;
}
