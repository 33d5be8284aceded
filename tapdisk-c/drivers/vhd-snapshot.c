/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A snapshot of a disk that is open, without reading its chain again: the new
 * leaf, made and synced beforehand, is put on top of the images that are in
 * memory. What is on the medium at each moment:
 *
 *   leaf's name    parent's name   new leaf's own name
 *   old leaf       old leaf        new leaf, empty       before the switch
 *   new leaf       old leaf                              after it
 *
 * The rename is the one step. Before it the leaf's name leads to all data; after
 * it too, since the old leaf was flushed, and the directory is synced before
 * the disk goes on. If that sync fails the disk goes on with the new leaf, as it
 * must, but a power loss may bring back the old one at the leaf's name, without
 * what was written since. So no flush succeeds until the directory is synced
 * (vhd-name.c), and the old leaf is not marked as a parent before that. Names that
 * begin with ".xenblk-" are nobody's children (children.c), so what a crash
 * leaves before the rename is in no one's way.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/lock.h"
#include "common/log.h"
#include "drivers/vhd-disk.h"
#include "vhd/vhd-internal.h"

struct image_snapshot {
	struct vhd_disk *old, *new;	/* taken: old is what is to be freed */
	char *name;			/* of the leaf, links resolved */
	char *child;			/* the new leaf's before the switch */
	char *parent;			/* the old leaf's after it */
	int dir;			/* where all three are */
	bool switched;
};

static int failed(const char *path, const char *what, struct error *err)
{
	return error_set(err, -errno, "%s: %s: %s", path, what, strerror(errno));
}

static bool leads_to(const char *path, int fd)
{
	struct stat a, b;

	return !stat(path, &a) && !fstat(fd, &b) && vhd_same_file(&a, &b);
}

/* All in the leaf's directory: a rename must not leave it. */
static int take_names(struct image_snapshot *s, const char *child,
		      const char *parent, struct error *err)
{
	const struct vhd_image *leaf = s->old->leaf;
	char *dir = vhd_dir_of_file(leaf->path);
	char *dirs[2] = { vhd_dir_of_name(child), vhd_dir_of_name(parent) };
	int rc = 0;

	s->name = realpath(leaf->path, NULL);
	s->child = strdup(child);
	s->parent = strdup(parent);
	if (!dir || !s->name || !s->child || !s->parent || !dirs[0] || !dirs[1])
		rc = failed(leaf->path, "its directory", err);
	else if (strcmp(dir, dirs[0]) || strcmp(dir, dirs[1]))
		rc = error_set(err, -EXDEV, "%s: the leaf and its parent must be in one directory, %s; give the parent a name there",
			       parent, dir);
	else if (!leads_to(s->name, leaf->fd))
		rc = error_set(err, -ESTALE, "%s: is not the file that is served any more; put that one back",
			       leaf->path);
	else if (!leads_to(parent, leaf->fd))
		rc = error_set(err, -EINVAL, "%s: is not another name of %s; make it with ln",
			       parent, leaf->path);
	else if ((s->dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
		rc = failed(dir, "directory", err);
	free(dir);
	free(dirs[0]);
	free(dirs[1]);
	return rc;
}

static int check_child(const struct vhd_image *child,
		       const struct vhd_image *leaf, struct error *err)
{
	if (child->footer.type != VHD_DIFF ||
	    uuid_compare(child->header.parent_uuid, leaf->footer.uuid))
		return error_set(err, -EINVAL, "%s: is no child of %s",
				 child->path, leaf->path);
	if (child->footer.current_size != leaf->footer.current_size)
		return error_set(err, -EINVAL, "%s: has %llu bytes, %s has %llu",
				 child->path,
				 (unsigned long long)child->footer.current_size,
				 leaf->path,
				 (unsigned long long)leaf->footer.current_size);
	for (uint32_t i = 0; i < child->bat_entries; i++)
		if (vhd_bat(child, i) != VHD_BAT_UNUSED)
			return error_set(err, -EINVAL, "%s: is not empty",
					 child->path);
	return 0;
}

/* child on top of the images of old, which both chains have until the commit. */
static struct vhd_chain *new_chain(const struct vhd_chain *old,
				   struct vhd_image *child)
{
	struct vhd_chain *chain = calloc(1, sizeof(*chain));

	if (!chain)
		return NULL;
	*chain = *old;
	chain->depth++;
	chain->nr_vhd++;
	memmove(chain->image + 1, old->image,
		old->nr_vhd * sizeof(chain->image[0]));
	chain->image[0] = child;
	return chain;
}

/* The chain keeps its first nr images. */
static void disown(struct vhd_chain *chain, unsigned int nr)
{
	chain->nr_vhd = nr;
	chain->raw_fd = -1;
	chain->raw_path = NULL;
}

int vhd_snapshot_prepare(struct image_snapshot **snapshot,
			 struct image *image,
			 const struct image_open_args *args,
			 const char *parent, struct error *err)
{
	struct vhd_disk *old = vhd_disk_of(image);
	struct vhd_image *child = NULL;
	struct vhd_chain *chain = NULL;
	struct image_snapshot *s;
	int rc;

	if (image->readonly)
		return error_set(err, -EROFS, "%s: is read-only",
				 old->leaf->path);
	if (old->leaf->is_blk)
		return error_set(err, -EOPNOTSUPP, "%s: is a block device, whose name can't pass to a new leaf; pause, vhd-util snapshot and unpause -a",
				 old->leaf->path);
	if (old->chain->depth >= VHD_MAX_CHAIN)
		return error_set(err, -ELOOP, "%s: its chain has %u images, the most there may be; coalesce it first",
				 old->leaf->path, old->chain->depth);
	s = calloc(1, sizeof(*s));
	if (!s)
		return error_set(err, -ENOMEM, "%s: out of memory", args->path);
	s->old = old;
	s->dir = -1;
	rc = take_names(s, args->path, parent, err);
	if (!rc)
		rc = vhd_open(&child, args->path,
			      VHD_OPEN_DIRECT | VHD_OPEN_WRITE, err);
	if (!rc)
		rc = check_child(child, old->leaf, err);
	if (rc)
		goto out;
	chain = new_chain(old->chain, child);
	if (!chain) {
		rc = error_set(err, -ENOMEM, "%s: out of memory", args->path);
		goto out;
	}
	rc = vhd_disk_new(&s->new, chain, args, err);
	if (rc)
		goto out;
	*snapshot = s;
	return 0;
out:
	free(chain);
	vhd_close(child);
	vhd_snapshot_end(s);
	return rc;
}

/* The images, and their names and locks, after the rename: nothing here fails. */
static void take_over(struct image_snapshot *s)
{
	struct vhd_image *leaf = s->old->leaf, *child = s->new->leaf;
	struct vhd_disk *old = s->old;
	struct error err;
	uint64_t key;

	if (vhd_leave(leaf, &err))
		log_warn("%s", err.text);
	if (vhd_child_key_of(child, &key, &err) ||
	    lock_to_parent(leaf->fd, key))
		log_warn("the lock of a parent is still a writer's path=%s",
			 s->parent);
	free(child->path);
	child->path = leaf->path;
	leaf->path = s->parent;
	leaf->readonly = true;
	s->parent = NULL;
	s->new->unsynced_dir = s->dir;
	s->new->unmarked_parent = true;
	s->dir = -1;
	vhd_files_remove(old);
	disown(old->chain, 0);
	vhd_files_add(s->new);
}

static int name_changed(const char *path, struct error *err)
{
	return error_set(err, -ESTALE, "%s: leads to another file meanwhile; is another snapshot of the disk being made?",
			 path);
}

int vhd_snapshot_switch(struct image_snapshot *s, struct error *err)
{
	const struct vhd_image *leaf = s->old->leaf, *child = s->new->leaf;
	int rc;

	if (!leads_to(s->name, leaf->fd))
		return name_changed(s->name, err);
	if (!leads_to(s->parent, leaf->fd))
		return name_changed(s->parent, err);
	if (!leads_to(s->child, child->fd))
		return name_changed(s->child, err);
	/* The new disk knows of the parent what its file says, and may never write there. */
	rc = vhd_bat_retract(s->old, err);
	if (rc)
		return rc;
	if (rename(s->child, s->name))
		return failed(s->child, "renaming it to the leaf's name", err);
	/* All that is written from now on would go to a file without a name. */
	if (!leads_to(s->name, child->fd)) {
		if (rename(s->parent, s->name))
			log_error("a snapshot that is undone has left %s err=%d",
				  s->parent, errno);
		return name_changed(s->child, err);
	}
	s->switched = true;
	return 0;
}

void vhd_snapshot_undo(struct image_snapshot *s)
{
	const struct vhd_image *leaf = s->old->leaf;
	int rc = 0;

	if (s->switched && leads_to(s->parent, leaf->fd))
		rc = rename(s->parent, s->name);
	else if (leads_to(s->child, s->new->leaf->fd) && !unlink(s->child) &&
		 leads_to(s->name, leaf->fd) &&
		 leads_to(s->parent, leaf->fd))
		rc = unlink(s->parent);
	if (rc || fsync(s->dir))
		log_error("a snapshot that is undone may have left %s err=%d",
			  s->parent, errno);
	s->switched = false;
}

int vhd_snapshot_take(struct image_snapshot *s, struct image **image,
		      struct error *err)
{
	int rc;

	take_over(s);
	*image = &s->new->image;
	rc = vhd_name_sync(s->new);
	if (rc) {
		error_set(err, rc, "%s: the snapshot is made and the disk goes on, but the sync of its directory failed: %s; flushes try that again, and until one succeeds a power loss may undo the snapshot and what is written after it",
			  s->new->leaf->path, strerror(-rc));
		log_error("%s", err->text);
	}
	s->new = NULL;
	return rc;
}

void vhd_snapshot_end(struct image_snapshot *s)
{
	/* Not taken: the old disk goes on, the new one has but its leaf. */
	if (s->new) {
		disown(s->new->chain, 1);
		vhd_disk_free(s->new);
	} else if (s->old && !s->old->chain->nr_vhd) {
		vhd_disk_free(s->old);
	}
	if (s->dir >= 0)
		close(s->dir);
	free(s->name);
	free(s->child);
	free(s->parent);
	free(s);
}
