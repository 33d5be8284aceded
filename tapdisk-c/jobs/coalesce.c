/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A child's own sectors into its parent. Sectors that the parent gets are the
 * child's already, so nobody who reads through the child sees the difference,
 * and a parent that has got some of them is as good a start as any.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jobs/job.h"
#include "vhd/vhd-internal.h"

/*
 * Whether the parent's file has few holes, and all blocks that the child has:
 * nearly every write goes to where there is space already.
 */
static bool has_space(const struct vhd_parent *parent,
		      const struct vhd_image *child)
{
	const struct vhd_image *image = parent->vhd;
	uint64_t size = (uint64_t)parent->st.st_size;

	if (S_ISREG(parent->st.st_mode) &&
	    (uint64_t)parent->st.st_blocks * 512 < size - size / 16)
		return false;
	if (!image || image->footer.type == VHD_FIXED)
		return true;
	if (image->spb != child->spb)
		return false;
	for (uint32_t i = 0; i < child->bat_entries; i++)
		if (vhd_bat(child, i) != VHD_BAT_UNUSED &&
		    (i >= image->bat_entries ||
		     vhd_bat(image, i) == VHD_BAT_UNUSED))
			return false;
	return true;
}

static int find_parent(struct vhd_parent *parent, const struct vhd_image *child,
		       const struct config *cfg, bool *in_place,
		       struct error *err)
{
	char *extra = vhd_extra_dir(child->path);
	struct stat seen;
	int rc;

	if (fstat(child->fd, &seen))
		rc = error_set(err, -errno, "%s: %s", child->path,
			       strerror(errno));
	else
		rc = vhd_parent_open(parent, child, cfg, extra, 0, &seen, 1,
				     err);
	free(extra);
	*in_place = !rc && has_space(parent, child);
	/* It is locked for reading; the job needs it for writing. */
	if (!rc && parent->vhd)
		vhd_close(parent->vhd);
	else if (!rc)
		close(parent->raw_fd);
	parent->vhd = NULL;
	parent->raw_fd = -1;
	if (!rc && !parent->path)
		rc = error_set(err, -ENOMEM, "%s: out of memory", child->path);
	return rc;
}

/* The job has it for writing: whether it is the one that was found. */
static int check_same(const struct vhd_parent *parent,
		      const struct vhd_image *child, struct error *err)
{
	struct vhd_image *image;
	struct stat st;
	bool same;
	int rc;

	if (uuid_is_null(child->header.parent_uuid)) {
		same = !stat(parent->path, &st) &&
		       vhd_same_file(&st, &parent->st);
	} else {
		rc = vhd_open(&image, parent->path, VHD_OPEN_NOLOCK, err);
		if (rc)
			return rc;
		same = !uuid_compare(image->footer.uuid,
				     child->header.parent_uuid);
		vhd_close(image);
	}
	return same ? 0 :
		error_set(err, -EAGAIN,
			  "%s: has been replaced just now, so it may not be the parent of %s; look at both and try again",
			  parent->path, child->path);
}

static int check_size(const struct job *job, bool raw, struct error *err)
{
	if (job->to->info.sectors >= job->from->info.sectors)
		return 0;
	return error_set(err, -ENOSPC,
			 "%s: size is %llu bytes, its child %s has %llu; make it as large first (%s)",
			 job->to_name,
			 (unsigned long long)(job->to->info.sectors << SECTOR_SHIFT),
			 job->from_name,
			 (unsigned long long)(job->from->info.sectors << SECTOR_SHIFT),
			 raw ? "truncate -s" : "vhd-util resize");
}

static int coalesce(struct job *job, const struct vhd_image *child,
		    const struct vhd_parent *parent, struct error *err)
{
	bool raw = uuid_is_null(child->header.parent_uuid);
	int rc;

	job->from_name = child->path;
	job->to_name = parent->path;
	rc = job_image(job, &job->from, &vhd_driver,
		       (struct image_open_args){
			       .path = child->path, .readonly = true,
			       .alone = true,
		       }, err);
	if (!rc)
		rc = job_image(job, &job->to, raw ? &raw_driver : &vhd_driver,
			       (struct image_open_args){
				       .path = parent->path,
				       .child = child->path,
				       .any_sector = true,
			       }, err);
	if (!rc)
		rc = check_same(parent, child, err);
	if (!rc)
		rc = check_size(job, raw, err);
	return rc ? rc : job_copy(job, false, err);
}

/* As the parent is left; if another file has its name by now, the data tells. */
static void mark(const struct vhd_image *child, const struct vhd_parent *parent)
{
	int fd = open(parent->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;

	if (fd < 0)
		return;
	if (!fstat(fd, &st) && vhd_same_file(&st, &parent->st))
		vhd_mark_coalesced(child, fd);
	close(fd);
}

int job_coalesce(const char *path, const struct config *cfg,
		 const struct job_watch *watch, struct error *err)
{
	struct vhd_parent parent = { .raw_fd = -1 };
	struct job job = { .engine = NULL };
	struct vhd_image *child;
	int rc;

	rc = vhd_open(&child, path, 0, err);
	if (rc)
		return rc;
	if (child->footer.type != VHD_DIFF)
		rc = error_set(err, -EINVAL,
			       "%s: has no parent to coalesce into", path);
	else
		rc = find_parent(&parent, child, cfg, &job.in_place, err);
	if (!rc)
		rc = job_open(&job, cfg, watch, err);
	if (!rc)
		rc = coalesce(&job, child, &parent, err);
	job_close(&job);
	if (!rc)
		mark(child, &parent);
	free(parent.path);
	vhd_close(child);
	return rc;
}
