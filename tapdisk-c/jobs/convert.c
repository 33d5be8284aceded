/* SPDX-License-Identifier: LGPL-2.1-only */
/* A new image with what another reads as. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jobs/job.h"
#include "vhd/vhd-internal.h"

/* The file to be, under the name it has until it is whole. */
struct target {
	const struct image_driver *driver;
	const char *path;
	char *dir;			/* canonical */
	char *tmp;			/* NULL: it is not there */
};

static int check_target(struct target *t, const char *spec, struct error *err)
{
	struct stat st;
	int rc;

	rc = image_parse(spec, &t->driver, &t->path, err);
	if (rc)
		return rc;
	if (t->driver != &raw_driver && t->driver != &vhd_driver)
		return error_set(err, -EINVAL,
				 "%s: a new image is raw:PATH or vhd:PATH",
				 spec);
	if (!lstat(t->path, &st))
		return error_set(err, -EEXIST,
				 "%s: exists already; choose another name or remove it first",
				 t->path);
	t->dir = vhd_dir_of_name(t->path);
	return t->dir ? 0 : vhd_fail(t->path, -errno, "directory", err);
}

/* Takes a name in the directory, by an empty file. */
static int reserve(struct target *t, int *fd, struct error *err)
{
	char *tmp;

	if (asprintf(&tmp, "%s/.xenblk-XXXXXX", t->dir) < 0)
		return vhd_fail(t->path, -ENOMEM, "name", err);
	*fd = mkostemp(tmp, O_CLOEXEC);	/* mode 0600 */
	if (*fd < 0) {
		int rc = vhd_fail(t->path, -errno, "creating a file beside it",
			      err);

		free(tmp);
		return rc;
	}
	t->tmp = tmp;
	return 0;
}

/* An empty image of so many sectors. */
static int create(struct target *t, uint64_t sectors, const struct config *cfg,
		  struct error *err)
{
	struct vhd_create_args args = {
		.size = sectors << SECTOR_SHIFT, .exact = true,
	};
	int fd = -1, rc;

	rc = reserve(t, &fd, err);
	if (rc)
		return rc;
	if (t->driver == &raw_driver &&
	    ftruncate(fd, (off_t)(sectors << SECTOR_SHIFT)))
		rc = vhd_fail(t->path, -errno, "making it as large as the source",
			  err);
	close(fd);
	if (t->driver == &raw_driver)
		return rc;
	/* vhd_create() replaces nothing. The name is ours all the same. */
	unlink(t->tmp);
	args.path = t->tmp;
	rc = vhd_create(&args, cfg, err);
	if (rc) {
		error_prefix(err, "%s", t->path);
		free(t->tmp);
		t->tmp = NULL;
	}
	return rc;
}

static void dispose(struct target *t)
{
	if (t->tmp)
		unlink(t->tmp);
	free(t->tmp);
	free(t->dir);
}

int job_convert(const char *source, const char *target,
		const struct config *cfg, const struct job_watch *watch,
		struct error *err)
{
	char from[PATH_MAX + 32], to[PATH_MAX + 32];
	struct target t = { .driver = NULL };
	const struct image_driver *driver;
	struct job job = { .engine = NULL };
	const char *path;
	int rc;

	rc = image_absolute(source, from, sizeof(from), err);
	if (!rc)
		rc = image_absolute(target, to, sizeof(to), err);
	if (!rc)
		rc = image_parse(from, &driver, &path, err);
	if (!rc)
		rc = check_target(&t, to, err);
	if (!rc)
		rc = job_open(&job, cfg, watch, err);
	if (rc)
		goto out;
	job.from_name = source;
	job.to_name = target;
	rc = job_image(&job, &job.from, driver,
		       (struct image_open_args){
			       .path = path, .readonly = true,
		       }, err);
	if (!rc)
		rc = create(&t, job.from->info.sectors, cfg, err);
	if (rc)
		goto out;
	rc = job_image(&job, &job.to, t.driver,
		       (struct image_open_args){
			       .path = t.tmp, .any_sector = true,
		       }, err);
	if (!rc)
		rc = job_copy(&job, true, err);
	if (!rc)
		rc = vhd_publish(t.tmp, t.path, t.dir, err);
	if (!rc) {
		free(t.tmp);
		t.tmp = NULL;
	}
out:
	job_close(&job);
	dispose(&t);
	return rc;
}
