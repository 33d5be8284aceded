// SPDX-License-Identifier: LGPL-2.1-only
/*
 * New images, laid out as XenServer does: footer copy, header, BAT, batmap
 * header, batmap, locators, footer; creator "tap\0" 1.3.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "vhd/vhd-internal.h"

#define GIB (1ull << 30)
#define FEATURE_RESERVED 2u	/* "must always be set" */

/* An image to be: its decoded metadata, and their bytes. */
struct plan {
	const struct vhd_create_args *args;
	char *dir;			/* the new image's, canonical */
	struct vhd_footer footer;
	struct vhd_header header;
	uint8_t *metadata;		/* from the start of the file; none if fixed */
	size_t metadata_bytes;
	struct vhd_chain *parent;
	int raw_fd;			/* a raw parent's */
	struct vhd_mark trial;		/* of the parent */
};

int vhd_check_size(const char *path, const char *what, uint64_t size,
		   struct error *err)
{
	if (!size)
		return error_set(err, -EINVAL, "%s: %s is 0", path, what);
	if (size > VHD_MAX_SIZE)
		return error_set(err, -EFBIG,
				 "%s: %s is %llu GiB; a VHD addresses at most 2040 GiB; use several disks or a raw image (aio:)",
				 path, what,
				 (unsigned long long)((size + GIB - 1) / GIB));
	return 0;
}

/* Opens and locks the parent; *size and *mtime are its own. */
static int open_parent(struct plan *p, const struct config *cfg,
		       const char *extra_dir, uint64_t *size, int64_t *mtime,
		       struct error *err)
{
	const char *path = p->args->path, *parent = p->args->parent;
	struct stat st;
	int rc;

	if (stat(parent, &st))
		return error_set(err, -errno, "%s: parent %s: %s", path, parent,
				 strerror(errno));
	rc = vhd_parent_allowed(cfg, parent, &st, extra_dir, err);
	if (rc)
		return rc;
	if (p->args->parent_raw) {
		rc = vhd_file_open(&p->raw_fd, parent, 0, &st, size, err);
		if (rc)
			return rc;
		*mtime = st.st_mtime;
		if (*size % VHD_SECTOR || !*size)
			return error_set(err, -EINVAL,
					 "%s: parent %s: size is %llu bytes; it must be a positive multiple of 512; extend it with truncate",
					 path, parent,
					 (unsigned long long)*size);
		return 0;
	}
	/* All of its chain, as it will be opened from the new image. */
	rc = vhd_chain_open_in(&p->parent, parent, cfg, extra_dir,
			       p->args->parent_served ? VHD_OPEN_NOLOCK : 0,
			       err);
	if (rc)
		return rc;
	if (p->parent->depth >= VHD_MAX_CHAIN)
		return error_set(err, -ELOOP,
				 "%s: the chain of parent %s has %u images, the most there may be; coalesce it first",
				 path, parent, p->parent->depth);
	if (uuid_is_null(p->parent->image[0]->footer.uuid))
		return error_set(err, -EUCLEAN,
				 "%s: parent %s: its uuid is null, by which a child would take it for raw",
				 path, parent);
	if (fstat(p->parent->image[0]->fd, &st))
		return vhd_fail(parent, -errno, "stat", err);
	*mtime = st.st_mtime;
	*size = p->parent->image[0]->footer.current_size;
	return 0;
}

static void init_footer(struct plan *p, uint64_t size)
{
	struct vhd_footer *f = &p->footer;

	f->features = FEATURE_RESERVED;
	f->version = VHD_VERSION_1_0;
	f->data_offset = p->args->fixed ? UINT64_MAX : VHD_FOOTER_BYTES;
	f->timestamp = vhd_timestamp(time(NULL));
	memcpy(f->creator, "tap", 4);
	f->creator_version = VHD_TAP_VERSION(1, 3);
	f->original_size = size;
	f->current_size = size;
	f->geometry = vhd_geometry(size);
	f->type = p->args->fixed ? VHD_FIXED :
		  p->args->parent ? VHD_DIFF : VHD_DYNAMIC;
	uuid_generate(f->uuid);
}

/* Everything before the blocks, as bytes. */
static int encode_metadata(struct plan *p, uint64_t capacity, int64_t mtime,
			   struct error *err)
{
	const size_t locator_max = VHD_LOCATORS_MAX;
	struct vhd_header *h = &p->header;
	uint64_t batmap, map, locators;
	uint32_t map_sectors;
	size_t used = 0;
	int rc = 0;

	h->table_offset = VHD_FOOTER_BYTES + VHD_HEADER_BYTES;
	h->version = VHD_VERSION_1_0;
	h->block_size = VHD_DEFAULT_BLOCK;
	h->max_bat_size = (uint32_t)((capacity + VHD_DEFAULT_BLOCK - 1) /
				     VHD_DEFAULT_BLOCK);
	batmap = vhd_batmap_header_offset(h);
	map = batmap + VHD_SECTOR;
	map_sectors = ((h->max_bat_size + 7) / 8 + VHD_SECTOR - 1) /
		      VHD_SECTOR;
	locators = map + (uint64_t)map_sectors * VHD_SECTOR;
	p->metadata = calloc(1, (size_t)locators + locator_max);
	if (!p->metadata)
		return vhd_fail(p->args->path, -ENOMEM, "metadata", err);
	memset(p->metadata + h->table_offset, 0xff, 4ull * h->max_bat_size);
	vhd_batmap_header_init(p->metadata + batmap, map, map_sectors);
	if (p->args->parent) {
		h->parent_timestamp = vhd_timestamp(mtime);
		if (p->parent)
			uuid_copy(h->parent_uuid,
				  p->parent->image[0]->footer.uuid);
		snprintf(h->parent_name, sizeof(h->parent_name), "%s",
			 vhd_base_name(p->args->parent));
		rc = vhd_locators_encode(h, p->metadata + locators, locators,
					 &used, p->args->path, p->dir,
					 p->args->parent, err);
	}
	p->metadata_bytes = (size_t)locators + used;
	vhd_footer_encode(p->metadata, &p->footer);
	vhd_header_encode(p->metadata + VHD_FOOTER_BYTES, h);
	return rc;
}

static int plan_image(struct plan *p, const struct config *cfg,
		      const char *extra_dir, struct error *err)
{
	const struct vhd_create_args *a = p->args;
	uint64_t size = a->size, parent_size = 0, capacity;
	int64_t mtime = 0;
	int rc;

	if (a->parent) {
		rc = open_parent(p, cfg, extra_dir, &parent_size, &mtime, err);
		if (rc)
			return rc;
		if (!size)
			size = parent_size;
		if (size < parent_size)
			return error_set(err, -EINVAL,
					 "%s: size %llu is less than the parent's, %llu bytes",
					 a->path, (unsigned long long)size,
					 (unsigned long long)parent_size);
	}
	rc = vhd_check_size(a->path, "size", size, err);
	if (rc)
		return rc;
	rc = vhd_check_size(a->path, "size to reserve", a->reserve_size ? a->reserve_size : size, err);
	if (rc)
		return rc;
	capacity = a->reserve_size ? a->reserve_size : size;
	if (!a->parent && !a->exact) {
		size = round_up_u64(size, VHD_DEFAULT_BLOCK);
		capacity = round_up_u64(capacity, VHD_DEFAULT_BLOCK);
	}
	if (capacity < size)
		return error_set(err, -EINVAL,
				 "%s: size to reserve, %llu bytes, is less than the size, %llu",
				 a->path, (unsigned long long)capacity,
				 (unsigned long long)size);
	init_footer(p, size);
	return a->fixed ? 0 : encode_metadata(p, capacity, mtime, err);
}

/* Space that reads as zeros and is there when it is written. */
static int reserve(int fd, const struct plan *p, struct error *err)
{
	const uint64_t size = p->footer.current_size;
	const size_t chunk = 1u << 20;
	uint8_t *zeros;
	int rc = 0;

	if (!fallocate(fd, 0, 0, (off_t)size))
		return 0;
	if (errno != EOPNOTSUPP)
		return vhd_fail(p->args->path, -errno, "reserving the disk's space",
			    err);
	zeros = calloc(1, chunk);
	if (!zeros)
		return vhd_fail(p->args->path, -ENOMEM, "zeros", err);
	/* A multiple of a block, so of the chunk. */
	for (uint64_t at = 0; at < size && !rc; at += chunk)
		rc = vhd_write_at(fd, zeros, chunk, at);
	free(zeros);
	if (rc)
		vhd_fail(p->args->path, rc, "reserving the disk's space", err);
	return rc;
}

static int write_file(int fd, const struct plan *p, struct error *err)
{
	uint64_t tail = p->args->fixed ? p->footer.current_size :
					 p->metadata_bytes;
	uint8_t raw[VHD_FOOTER_BYTES];
	int rc;

	if (p->args->fixed) {
		rc = reserve(fd, p, err);
		if (rc)
			return rc;
	} else {
		rc = vhd_write_at(fd, p->metadata, p->metadata_bytes, 0);
		if (rc)
			return vhd_fail(p->args->path, rc, "writing", err);
	}
	vhd_footer_encode(raw, &p->footer);
	rc = vhd_write_at(fd, raw, sizeof(raw), tail);
	if (!rc && fsync(fd))
		rc = -errno;
	return rc ? vhd_fail(p->args->path, rc, "writing", err) : 0;
}

int vhd_publish(const char *tmp, const char *path, const char *dir,
		struct error *err)
{
	int fd, rc = 0;

	if (renameat2(AT_FDCWD, tmp, AT_FDCWD, path, RENAME_NOREPLACE)) {
		rc = -errno;
		/* NFS has no flags for rename. */
		if (rc == -EINVAL || rc == -ENOSYS) {
			rc = link(tmp, path) ? -errno : 0;
			if (!rc)
				unlink(tmp);
		}
	}
	if (rc)
		return vhd_fail(path, rc, "creating", err);
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd))
		rc = vhd_fail(dir, -errno, "sync of the directory", err);
	if (fd >= 0)
		close(fd);
	return rc;
}

static int parent_fd(const struct plan *p)
{
	return p->parent ? p->parent->image[0]->fd : p->raw_fd;
}

static bool marks_parent(const struct plan *p)
{
	return p->args->parent && !p->args->parent_served;
}

static int mark_parent(const struct plan *p, struct error *err)
{
	return marks_parent(p) ? vhd_mark_parent(parent_fd(p), p->args->parent, err) : 0;
}

static int create_file(struct plan *p, struct error *err)
{
	const char *path = p->args->path;
	char *tmp;
	int fd, rc;

	if (asprintf(&tmp, "%s/" VHD_UNFINISHED "XXXXXX", p->dir) < 0)
		return vhd_fail(path, -ENOMEM, "name", err);
	fd = mkostemp(tmp, O_CLOEXEC);	/* mode 0600: a disk is not for all to read */
	if (fd < 0) {
		rc = vhd_fail(path, -errno, "creating a file beside it", err);
		free(tmp);
		return rc;
	}
	rc = write_file(fd, p, err);
	/* The mark comes first: a child never is without it. */
	if (!rc && marks_parent(p))
		rc = vhd_try_mark(parent_fd(p), p->args->parent, &p->trial, err);
	if (close(fd) && !rc)
		rc = vhd_fail(path, -errno, "closing", err);
	if (!rc)
		rc = vhd_publish(tmp, path, p->dir, err);
	if (!rc && p->trial.fresh)
		rc = mark_parent(p, err);
	/* Even after an error the child may be there: its name was not synced. */
	if (access(tmp, F_OK))
		p->trial.fresh = false;
	if (rc)
		unlink(tmp);
	free(tmp);
	return rc;
}

static int zero_device(int fd, const struct plan *p, struct error *err)
{
	uint64_t range[2] = { 0, p->footer.current_size };

	if (p->args->fixed && ioctl(fd, BLKZEROOUT, range))
		return vhd_fail(p->args->path, -errno, "zeroing", err);
	return 0;
}

/*
 * In place: both footers go first, so that the device is no image until all
 * else is written.
 */
static int create_on_device(const struct plan *p, struct error *err)
{
	uint64_t size, need = p->args->fixed ? p->footer.current_size :
					       p->metadata_bytes;
	uint8_t raw[VHD_FOOTER_BYTES] = { 0 };
	const char *path = p->args->path;
	int fd = -1, claim, rc;
	struct stat st;

	/* The kernel's own users take no lock: a mount, swap, LVM, md. */
	claim = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);
	if (claim < 0 && errno == EBUSY)
		return error_set(err, -EBUSY, "%s: is mounted, or in use by the kernel otherwise (swap, LVM, RAID); name another device, or end that use first",
				 path);
	rc = vhd_file_open(&fd, path, VHD_OPEN_WRITE, &st, &size, err);
	if (rc)
		goto out;
	if (size < need + VHD_FOOTER_BYTES) {
		rc = error_set(err, -ENOSPC,
			       "%s: the device has %llu bytes; the image needs %llu",
			       path, (unsigned long long)size,
			       (unsigned long long)(need + VHD_FOOTER_BYTES));
		goto out;
	}
	rc = vhd_write_at(fd, raw, sizeof(raw), size - VHD_FOOTER_BYTES);
	if (!rc)
		rc = vhd_write_at(fd, raw, sizeof(raw), 0);
	if (!rc && fdatasync(fd))
		rc = -errno;
	if (rc)
		goto failed;
	rc = zero_device(fd, p, err);
	if (rc)
		goto out;
	if (!p->args->fixed)
		rc = vhd_write_at(fd, p->metadata + VHD_FOOTER_BYTES,
				  p->metadata_bytes - VHD_FOOTER_BYTES,
				  VHD_FOOTER_BYTES);
	if (!rc && fdatasync(fd))
		rc = -errno;
	if (rc)
		goto failed;
	rc = mark_parent(p, err);
	if (rc)
		goto out;
	vhd_footer_encode(raw, &p->footer);
	rc = vhd_write_at(fd, raw, sizeof(raw), size - VHD_FOOTER_BYTES);
	if (!rc && !p->args->fixed)
		rc = vhd_write_at(fd, raw, sizeof(raw), 0);
	if (!rc && fdatasync(fd))
		rc = -errno;
	if (!rc)
		goto out;
failed:
	vhd_fail(path, rc, "writing", err);
out:
	if (fd >= 0)
		close(fd);
	if (claim >= 0)
		close(claim);
	return rc;
}

int vhd_create(const struct vhd_create_args *args, const struct config *cfg,
	       struct error *err)
{
	struct plan p = { .args = args, .raw_fd = -1 };
	char *extra = NULL;
	struct stat st;
	bool device;
	int rc;

	if (args->fixed && args->parent)
		return error_set(err, -EINVAL,
				 "%s: a fixed image can't have a parent",
				 args->path);
	device = !stat(args->path, &st) && S_ISBLK(st.st_mode);
	if (!device && !lstat(args->path, &st))
		return error_set(err, -EEXIST,
				 "%s: exists already; choose another name or remove it first",
				 args->path);
	p.dir = vhd_dir_of_name(args->path);
	if (!p.dir)
		return vhd_fail(args->path, -errno, "directory", err);
	extra = device ? vhd_extra_dir(args->path) : strdup(p.dir);
	rc = plan_image(&p, cfg, extra, err);
	if (rc)
		goto out;
	rc = device ? create_on_device(&p, err) : create_file(&p, err);
out:
	vhd_chain_close(p.parent);
	if (p.raw_fd >= 0)
		close(p.raw_fd);
	if (p.trial.fresh)
		vhd_take_mark_back(args->parent, &p.trial);
	free(p.metadata);
	free(p.dir);
	free(extra);
	return rc;
}
