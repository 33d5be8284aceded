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
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "control/client.h"
#include "vhd/vhd.h"

/* The leaf changes while it is read: a look at it may see two of its moments. */
#define CREATE_TRIES 3

static int out_of_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "out of memory");
}

/* The path of the leaf that the tapdisk serves. */
static int find_leaf(int pid, int minor, char **leaf, struct error *err)
{
	json_t *vbds, *vbd;
	size_t i;
	int rc = tapdisk_vbds(pid, TAP_CTL_TIMEOUT_MS, &vbds, err);

	if (rc)
		return rc;
	rc = error_set(err, -ENODEV, "minor %d is not attached to tapdisk %d",
		       minor, pid);
	json_array_foreach(vbds, i, vbd) {
		const char *args = json_string_value(json_object_get(vbd, "args"));

		if (json_integer_value(json_object_get(vbd, "minor")) != minor)
			continue;
		rc = 0;
		if (!args || strncmp(args, "vhd:", 4))
			rc = error_set(err, -EOPNOTSUPP, "minor %d: %s: only a vhd: can have a snapshot",
				       minor, args ? args : "no image is open");
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
static int make_names(struct snapshot *s, const char *name, struct error *err)
{
	const char *slash = strrchr(name, '/');
	const char *base = slash ? slash + 1 : name;
	char *copy = strdup(s->leaf);
	int rc = 0;

	/* Those are not looked at when children are looked for: vhd/children.c. */
	if (!strncmp(base, VHD_UNFINISHED, strlen(VHD_UNFINISHED))) {
		free(copy);
		return error_set(err, -EINVAL, "%s: names that begin with " VHD_UNFINISHED " are for files that are not whole yet; take another one",
				 name);
	}
	s->dir = copy ? strdup(dirname(copy)) : NULL;
	free(copy);
	if (!s->dir)
		return out_of_memory(err);
	if (slash)
		rc = check_dir(s, name, err);
	if (rc)
		return rc;
	if (asprintf(&s->child, "%s/" VHD_UNFINISHED "snapshot-%d-%d", s->dir, s->pid,
		     s->minor) < 0) {
		s->child = NULL;
		return out_of_memory(err);
	}
	if (asprintf(&s->parent, "%s/%s", s->dir, base) < 0) {
		s->parent = NULL;
		return out_of_memory(err);
	}
	return 0;
}

/*
 * A socket's name, which ends with the process. Another one that makes a snapshot of the disk would
 * take the child for one that a tap-ctl which was killed has left.
 */
static int lock_disk(struct snapshot *s, struct error *err)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int n = snprintf(a.sun_path + 1, sizeof(a.sun_path) - 1,
			 "xenblk-snapshot-%d-%d", s->pid, s->minor);

	s->lock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (s->lock >= 0 && !bind(s->lock, (void *)&a,
				  (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n)))
		return 0;
	if (errno == EADDRINUSE)
		return error_set(err, -EBUSY, "minor %d: another snapshot of it is being made; try again when that is done",
				 s->minor);
	return error_set(err, -errno, "minor %d: the lock of its snapshots: %s",
			 s->minor, strerror(errno));
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

void snapshot_clear(const struct snapshot *s)
{
	if (s->child && s->parent && !unlink(s->child) && s->named)
		unlink(s->parent);
}

void snapshot_free(struct snapshot *s)
{
	free(s->leaf);
	free(s->dir);
	free(s->parent);
	free(s->child);
	if (s->lock >= 0)
		close(s->lock);
}

static bool is_leaf(const char *path, const struct snapshot *s)
{
	struct stat leaf, other;

	return !lstat(s->leaf, &leaf) && !lstat(path, &other) &&
	       leaf.st_dev == other.st_dev && leaf.st_ino == other.st_ino;
}

/*
 * The leaf has that name already, of a tap-ctl that was killed. Its tapdisk may be about to change the names: not
 * without the child, so that it is taken away before the second look.
 */
static bool is_left_over(const struct snapshot *s)
{
	return is_leaf(s->parent, s) &&
	       (!unlink(s->child) || errno == ENOENT) && is_leaf(s->parent, s);
}

static int name_parent(struct snapshot *s, struct error *err)
{
	int rc;

	s->named = !link(s->leaf, s->parent);
	rc = s->named ? 0 : -errno;
	if (rc == -EEXIST && is_left_over(s))
		rc = 0;
	return rc ? error_set(err, rc, "%s: %s%s", s->parent, strerror(-rc),
			      rc == -EEXIST ? "; give the parent another name" : "") : 0;
}

int snapshot_prepare(struct snapshot *s, int pid, int minor, const char *parent,
		     struct error *err)
{
	int rc;

	*s = (struct snapshot){ .pid = pid, .minor = minor, .lock = -1 };
	rc = find_leaf(pid, minor, &s->leaf, err);
	if (!rc)
		rc = lock_disk(s, err);
	if (!rc)
		rc = make_names(s, parent, err);
	if (rc)
		return rc;
	rc = name_parent(s, err);
	if (rc)
		return rc;
	rc = sync_dir(s->dir, err);
	if (!rc)
		rc = create_child(s, err);
	if (rc) {
		unlink(s->child);
		if (s->named)
			unlink(s->parent);
	}
	return rc;
}

void snapshot_stall(json_t *reply, json_int_t *longest)
{
	json_int_t us = json_integer_value(json_object_get(reply, "stall_us"));

	if (us > *longest)
		*longest = us;
	json_decref(reply);
}

void snapshot_print_stall(json_int_t us)
{
	printf("stall_us=%lld\n", (long long)us);
}

static int snapshot_alone(const struct snapshot *s, int timeout_ms,
			  struct error *err)
{
	json_int_t stall_us = 0;
	json_t *reply;
	json_t *request = json_pack("{s:s, s:i, s:s, s:s, s:i}", "op", "snapshot",
				    "minor", s->minor, "child", s->child,
				    "parent", s->parent, "timeout",
				    timeout_ms / 1000);
	int rc = control_call(s->pid, request, &reply,
			      timeout_ms + TAP_CTL_GRACE_MS, err);

	json_decref(request);
	if (rc) {
		snapshot_clear(s);
		return rc;
	}
	snapshot_stall(reply, &stall_us);
	snapshot_print_stall(stall_us);
	return 0;
}

/* PID:MINOR:PARENT */
static int prepare_also(struct snapshot *s, const char *text, struct error *err)
{
	int pid, minor, at = 0;

	if (sscanf(text, "%9d:%9d:%n", &pid, &minor, &at) != 2 || !at || pid < 1 ||
	    minor < 0 || !text[at])
		return error_set(err, -EINVAL, "--also=%s: must be PID:MINOR:PARENT",
				 text);
	return snapshot_prepare(s, pid, minor, text + at, err);
}

int cmd_snapshot(const struct options *opt, struct error *err)
{
	struct snapshot *s = calloc(opt->nr_also + 1, sizeof(*s));
	unsigned int nr = 0;
	int rc;

	if (!s)
		return out_of_memory(err);
	for (unsigned int i = 0; i <= opt->nr_also; i++)
		s[i].lock = -1;
	hold_signals();
	rc = snapshot_prepare(&s[0], opt->pid, opt->minor, opt->name, err);
	while (!rc && nr < opt->nr_also) {
		nr++;
		rc = prepare_also(&s[nr], opt->also[nr - 1], err);
	}
	if (rc) {
		for (unsigned int i = 0; i < nr; i++)
			snapshot_clear(&s[i]);
		nr++;
		goto out;
	}
	nr++;
	rc = nr == 1 ? snapshot_alone(&s[0], opt->timeout_ms, err) :
		       snapshot_group(s, nr, opt->timeout_ms, err);
out:
	for (unsigned int i = 0; i < nr; i++)
		snapshot_free(&s[i]);
	free(s);
	return rc;
}
