// SPDX-License-Identifier: LGPL-2.1-only
/* From a leaf to its root: finding, admitting, locking and opening parents. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vhd/vhd-internal.h"

char *vhd_extra_dir(const char *path)
{
	struct stat st;
	char *dir;

	if (stat(path, &st))
		return NULL;
	if (!S_ISBLK(st.st_mode))
		return vhd_dir_of_file(path);
	/*
	 * /dev/VG/LV is a link to /dev/dm-N: the group is the place, not all
	 * of /dev, where every disk of the host is.
	 */
	dir = vhd_dir_of_name(path);
	if (dir && !strcmp(dir, "/dev")) {
		free(dir);
		dir = NULL;
	}
	return dir;
}

int vhd_parent_allowed(const struct config *cfg, const char *path,
		       const struct stat *st, const char *extra_dir,
		       struct error *err)
{
	char *dir;
	int rc;

	if (!S_ISBLK(st->st_mode))
		return config_allows(cfg, path, extra_dir, err);
	/* Links in /dev are udev's. */
	dir = vhd_dir_of_name(path);
	if (!dir)
		return error_set(err, -errno, "%s: %s", path, strerror(errno));
	rc = config_allows(cfg, dir, extra_dir, err);
	if (rc)
		error_prefix(err, "%s", path);
	free(dir);
	return rc;
}

static int try_raw(struct vhd_parent *parent, const char *path,
		   unsigned int flags, uint64_t key, struct error *err)
{
	int rc = vhd_file_open_below(&parent->raw_fd, path, flags, &key,
				     &parent->st, &parent->raw_size, err);

	if (rc)
		return rc;
	if (parent->raw_size % VHD_SECTOR || !parent->raw_size) {
		rc = error_set(err, -EINVAL,
			       "%s: raw parent: size is %llu bytes; it must be a positive multiple of 512",
			       path, (unsigned long long)parent->raw_size);
		close(parent->raw_fd);
		parent->raw_fd = -1;
	}
	return rc;
}

static int try_vhd(struct vhd_parent *parent, const struct vhd_image *child,
		   const char *path, unsigned int flags, uint64_t key,
		   struct error *err)
{
	struct vhd_image *image;
	char want[37], have[37];
	int rc;

	rc = vhd_open_below(&image, path, flags, &key, err);
	if (rc)
		return rc;
	if (uuid_compare(image->footer.uuid, child->header.parent_uuid)) {
		uuid_unparse_lower(child->header.parent_uuid, want);
		uuid_unparse_lower(image->footer.uuid, have);
		vhd_close(image);
		parent->is_other = true;
		return error_set(err, -EUCLEAN,
				 "%s: uuid is %s; the child's parent has %s",
				 path, have, want);
	}
	parent->vhd = image;
	return 0;
}

/* -ENOENT: not there, look further. */
static int try_path(struct vhd_parent *parent, const struct vhd_image *child,
		    const char *path, const struct config *cfg,
		    const char *extra_dir, unsigned int flags,
		    const struct stat *seen, unsigned int nr_seen,
		    struct error *err)
{
	uint64_t key;
	int rc;

	if (stat(path, &parent->st))
		return error_set(err, errno == ENOTDIR ? -ENOENT : -errno,
				 "%s: %s", path, strerror(errno));
	rc = vhd_parent_allowed(cfg, path, &parent->st, extra_dir, err);
	if (rc)
		return rc;
	/* Before the lock, which a second open of the same file would hit. */
	for (unsigned int i = 0; i < nr_seen; i++)
		if (vhd_same_file(&parent->st, &seen[i])) {
			parent->is_other = true;
			return error_set(err, -ELOOP,
					 "%s: is in the chain already: the images form a loop",
					 path);
		}
	rc = vhd_child_key_of(child, &key, err);
	if (rc)
		return rc;
	if (uuid_is_null(child->header.parent_uuid))
		return try_raw(parent, path, flags, key, err);
	return try_vhd(parent, child, path, flags, key, err);
}

/* Directories that a relative name starts from: the child's real one, then that of its name. */
static unsigned int base_dirs(char *dir[2], const char *child)
{
	unsigned int n = 0;

	dir[0] = vhd_dir_of_file(child);
	if (dir[0])
		n++;
	dir[n] = vhd_dir_of_name(child);
	if (dir[n] && n && !strcmp(dir[0], dir[1])) {
		free(dir[n]);
		dir[n] = NULL;
	}
	return dir[n] ? n + 1 : n;
}

/* The name's path with its directory canonical; NULL with errno. */
static char *join(const char *dir, const char *name)
{
	char *path, *canonical = NULL, *real;

	if (*name == '/')
		path = strdup(name);
	else if (asprintf(&path, "%s/%s", dir, name) < 0)
		path = NULL;
	if (!path)
		return NULL;
	real = vhd_dir_of_name(path);
	if (real && asprintf(&canonical, "%s/%s", strcmp(real, "/") ? real : "",
			     vhd_base_name(path)) < 0)
		canonical = NULL;
	free(real);
	free(path);
	return canonical;
}

static int not_found(const struct vhd_image *child,
		     const struct vhd_parent_name *names, unsigned int n,
		     const char *dir, struct error *err)
{
	char uuid[37];

	uuid_unparse_lower(child->header.parent_uuid, uuid);
	if (!n)
		return error_set(err, -EUCLEAN,
				 "%s: header: no parent locator can be read and the parent name is empty; the parent's uuid is %s",
				 child->path, uuid);
	if (uuid_is_null(child->header.parent_uuid))
		return error_set(err, -ENOENT,
				 "%s: its raw parent '%s' (%s) is missing; put it back (relative to %s)",
				 child->path, names[0].path, names[0].source,
				 dir);
	return error_set(err, -ENOENT,
			 "%s: its parent '%s' (%s), uuid %s, is missing; put it back (relative to %s)",
			 child->path, names[0].path, names[0].source, uuid,
			 dir);
}

int vhd_parent_open(struct vhd_parent *parent, const struct vhd_image *child,
		    const struct config *cfg, const char *extra_dir,
		    unsigned int flags, const struct stat *seen,
		    unsigned int nr_seen, struct error *err)
{
	bool raw = uuid_is_null(child->header.parent_uuid);
	struct vhd_parent_name names[VHD_MAX_NAMES];
	struct error fault = { 0 }, now = { 0 };
	char *dir[2] = { NULL, NULL };
	unsigned int nr_dirs, n;
	int rc = -ENOENT;

	flags &= VHD_OPEN_DIRECT | VHD_OPEN_NOLOCK;
	*parent = (struct vhd_parent){ .raw_fd = -1 };
	nr_dirs = base_dirs(dir, child->path);
	n = vhd_parent_names(names, child->fd, &child->header);
	if (!nr_dirs) {
		rc = error_set(err, -errno, "%s: %s", child->path,
			       strerror(errno));
		goto out;
	}
	for (unsigned int i = 0; i < n && rc; i++) {
		/* Without a uuid to check, a mere name is too little. */
		if (raw && i && names[i].mere_name)
			break;
		for (unsigned int d = 0; d < nr_dirs && rc; d++) {
			char *path = join(dir[d], names[i].path);

			if (!path && errno == ENOMEM) {
				rc = error_set(err, -ENOMEM,
					       "%s: out of memory",
					       child->path);
				goto out;
			}
			if (!path) {
				rc = -ENOENT;
				continue;
			}
			parent->is_other = false;
			rc = try_path(parent, child, path, cfg, extra_dir,
				      flags, seen, nr_seen, &now);
			if (!rc) {
				parent->path = path;
				break;
			}
			free(path);
			if (rc != -ENOENT && !fault.code)
				fault = now;
			/* It may well be the parent: a copy elsewhere has its uuid, too. */
			if (rc != -ENOENT && (raw || !parent->is_other)) {
				fault = now;
				goto failed;
			}
		}
	}
	if (!rc)
		goto out;
	if (!fault.code) {
		rc = not_found(child, names, n, dir[0], err);
		goto out;
	}
failed:
	rc = fault.code;
	if (err)
		*err = fault;
	error_prefix(err, "%s: parent", child->path);
out:
	vhd_parent_names_free(names, n);
	free(dir[0]);
	free(dir[1]);
	return rc;
}

/* child: the path of the one child that it may have, or NULL. */
static int check_leaf(const struct vhd_image *leaf, const char *child,
		      struct error *err)
{
	if (child)
		return vhd_check_other_children(leaf->fd, leaf->path, child,
						err);
	if (leaf->footer.hidden)
		return error_set(err, -EBUSY,
				 "%s: footer: the hidden flag is set: it has children, so it can't be written; use a snapshot of it (vhd-util snapshot)",
				 leaf->path);
	return vhd_check_no_children(leaf->fd, leaf->path, err);
}

static int open_chain(struct vhd_chain **out, const char *path,
		      const char *child, const struct config *cfg,
		      const char *extra_dir, unsigned int flags,
		      struct error *err)
{
	struct stat seen[VHD_MAX_CHAIN];
	struct vhd_chain *chain;
	struct vhd_parent parent;
	struct vhd_image *last;
	uint64_t key;
	int rc = 0;

	*out = NULL;
	if (child)
		rc = vhd_child_key(child, &key, err);
	if (rc)
		return rc;
	chain = calloc(1, sizeof(*chain));
	if (!chain)
		return error_set(err, -ENOMEM, "%s: out of memory", path);
	chain->raw_fd = -1;
	rc = vhd_open_below(&last, path, flags, child ? &key : NULL, err);
	if (rc)
		goto out;
	chain->image[0] = last;
	chain->nr_vhd = chain->depth = 1;
	if (fstat(last->fd, &seen[0])) {
		rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
		goto out;
	}
	if (flags & VHD_OPEN_WRITE) {
		rc = check_leaf(last, child, err);
		if (rc)
			goto out;
	}
	while (last->footer.type == VHD_DIFF && !(flags & VHD_OPEN_ALONE)) {
		if (chain->depth == VHD_MAX_CHAIN) {
			rc = error_set(err, -ELOOP,
				       "%s: its chain has more than %u images; coalesce it",
				       path, VHD_MAX_CHAIN);
			goto out;
		}
		rc = vhd_parent_open(&parent, last, cfg, extra_dir, flags, seen,
				     chain->depth, err);
		if (rc)
			goto out;
		seen[chain->depth++] = parent.st;
		if (!parent.vhd) {
			chain->raw_fd = parent.raw_fd;
			chain->raw_path = parent.path;
			chain->raw_sectors = parent.raw_size / VHD_SECTOR;
			break;
		}
		free(parent.path);
		last = parent.vhd;
		chain->image[chain->nr_vhd++] = last;
	}
	*out = chain;
	chain = NULL;
out:
	vhd_chain_close(chain);
	return rc;
}

int vhd_chain_open_in(struct vhd_chain **chain, const char *path,
		      const struct config *cfg, const char *extra_dir,
		      unsigned int flags, struct error *err)
{
	return open_chain(chain, path, NULL, cfg, extra_dir, flags, err);
}

int vhd_chain_open_parent(struct vhd_chain **chain, const char *path,
			  const char *child, const struct config *cfg,
			  unsigned int flags, struct error *err)
{
	char *extra = vhd_extra_dir(path);
	int rc = open_chain(chain, path, child, cfg, extra,
			    flags | VHD_OPEN_WRITE, err);

	free(extra);
	return rc;
}

int vhd_chain_open(struct vhd_chain **chain, const char *path,
		   const struct config *cfg, unsigned int flags,
		   struct error *err)
{
	char *extra = vhd_extra_dir(path);
	int rc = vhd_chain_open_in(chain, path, cfg, extra, flags, err);

	free(extra);
	return rc;
}

void vhd_chain_close(struct vhd_chain *chain)
{
	if (!chain)
		return;
	for (unsigned int i = 0; i < chain->nr_vhd; i++)
		vhd_close(chain->image[i]);
	if (chain->raw_fd >= 0)
		close(chain->raw_fd);
	free(chain->raw_path);
	free(chain);
}
