/* SPDX-License-Identifier: LGPL-2.1-only */
/* A new image with what another reads as. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "drivers/nbd.h"
#include "jobs/disk.h"
#include "jobs/job.h"
#include "vhd/vhd-internal.h"

/* Zeroed at once, so that a stop is seen soon. */
#define ZERO_STEP (64u << 20 >> SECTOR_SHIFT)

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
	if (t->driver == &nbd_driver)
		return 0;
	if (t->driver != &raw_driver && t->driver != &vhd_driver)
		return error_set(err, -EINVAL,
				 "%s: a new image is raw:PATH or vhd:PATH, or an NBD URI",
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

	if (asprintf(&tmp, "%s/" VHD_UNFINISHED "XXXXXX", t->dir) < 0)
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
	if (rc)
		error_prefix(err, "%s", t->path);
	return rc;
}

static void dispose(struct target *t)
{
	if (t->tmp)
		unlink(t->tmp);
	free(t->tmp);
	free(t->dir);
}

/* An extent of the target that may hold something, at most so long, to zeros. */
static int zero(struct image *to, uint64_t sector, uint32_t count)
{
	struct image_request req = { .op = IMAGE_ZERO };
	int rc = 0;

	for (uint32_t n; count && !rc; sector += n, count -= n) {
		n = count;
		if (!(to->info.can & IMAGE_CAN_ZERO)) {
			req.op = IMAGE_WRITE;
			req.buf = image_zeros;
			if (n > IMAGE_ZEROS >> SECTOR_SHIFT)
				n = IMAGE_ZEROS >> SECTOR_SHIFT;
		}
		req.sector = sector;
		req.count = n;
		rc = image_call(to, &req);
	}
	return rc;
}

/* An export is there already, and may hold anything: a new image reads as zeros. */
static int clear(struct job *job, struct error *err)
{
	struct image *to = job->to;
	struct image_extent extent;
	int rc = 0;

	for (uint64_t at = 0; at < to->info.sectors; at += extent.count) {
		uint64_t left = to->info.sectors - at;
		struct image_request req = {
			.op = IMAGE_STATUS, .sector = at,
			.count = left < ZERO_STEP ? (uint32_t)left : ZERO_STEP,
			.extents = &extent, .max_extents = 1,
		};

		if (job->watch->stop && *job->watch->stop)
			return error_set(err, -ECANCELED,
					 "%s: stopped by a signal",
					 job->to_name);
		extent = (struct image_extent){ .count = req.count };
		if (to->info.can & IMAGE_CAN_STATUS)
			rc = image_call(to, &req);
		if (!rc && !extent.count)
			rc = -EIO;
		if (extent.count > req.count)
			extent.count = req.count;
		if (!rc && !extent.zero)
			rc = zero(to, at, extent.count);
		if (rc)
			return error_set(err, rc, "%s: zeroing at sector %llu: %s",
					 job->to_name, (unsigned long long)at,
					 strerror(-rc));
	}
	return 0;
}

static int open_export(struct job *job, const struct target *t,
		       struct error *err)
{
	int rc = job_image(job, &job->to, t->driver,
			   (struct image_open_args){ .path = t->path }, err);

	if (rc)
		return rc;
	if (job->to->info.sector_size != SECTOR_SIZE)
		return error_set(err, -ENOTSUP,
				 "%s: takes blocks of %u bytes, and no smaller ones",
				 job->to_name, job->to->info.sector_size);
	if (job->to->info.sectors < job->from->info.sectors)
		return error_set(err, -ENOSPC,
				 "%s: has %llu bytes; %s has %llu",
				 job->to_name,
				 (unsigned long long)job->to->info.sectors << SECTOR_SHIFT,
				 job->from_name,
				 (unsigned long long)job->from->info.sectors << SECTOR_SHIFT);
	return clear(job, err);
}

/* The same file, by whatever path. */
static bool same_socket(const char *a, const char *b)
{
	struct stat one, other;

	return !stat(a, &one) && !stat(b, &other) &&
	       vhd_same_file(&one, &other);
}

/* Some address is one of both. */
static bool same_host(const struct nbd_address *a, const struct nbd_address *b)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
	struct addrinfo *one = NULL, *other = NULL;
	bool same = false;

	if (getaddrinfo(a->host, a->port, &hints, &one) ||
	    getaddrinfo(b->host, b->port, &hints, &other))
		goto out;
	for (struct addrinfo *i = one; i; i = i->ai_next)
		for (struct addrinfo *j = other; j; j = j->ai_next)
			same |= i->ai_addrlen == j->ai_addrlen &&
				!memcmp(i->ai_addr, j->ai_addr, i->ai_addrlen);
out:
	if (one)
		freeaddrinfo(one);
	if (other)
		freeaddrinfo(other);
	return same;
}

/*
 * The source must not be emptied, however it is written. A server at a socket, as tapdisk,
 * may have one disk whatever the export is called.
 */
static int check_exports(const char *from, const char *source, const char *to,
			 const char *target, struct error *err)
{
	struct nbd_address a, b;
	int rc;

	rc = nbd_parse_address(&a, from, source, err);
	if (!rc)
		rc = nbd_parse_address(&b, to, target, err);
	if (rc)
		return rc;
	if (*a.socket ? !*b.socket || !same_socket(a.socket, b.socket) :
			*b.socket || strcmp(a.export, b.export) || !same_host(&a, &b))
		return 0;
	if (strcmp(a.export, b.export))
		return error_set(err, -EINVAL, "%s: is an export of the target's server, and may be the target; convert it into a file first",
				 from);
	return error_set(err, -EINVAL, "%s: is both source and target", from);
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
	/* A file that is there is refused later; an export would be emptied. */
	if (!rc && driver == &nbd_driver && t.driver == &nbd_driver)
		rc = check_exports(from, path, to, t.path, err);
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
	if (!rc && t.driver == &nbd_driver) {
		rc = open_export(&job, &t, err);
		if (!rc)
			rc = job_copy(&job, true, err);
		goto out;
	}
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
