// SPDX-License-Identifier: LGPL-2.1-only
/*
 * Another size for an image. The footer's current size is the one step from old to
 * new: what a larger disk needs is on the medium before it, and what a smaller
 * one no longer needs is given up after it. Tables too small: resize-tables.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vhd/resize.h"

#define MIB (1ull << 20)
#define CHUNK_BYTES (1u << 20)

int vhd_find_data_end(struct vhd_image *image, struct error *err)
{
	uint64_t block = vhd_block_bytes(image);
	struct vhd_extent extent[VHD_MAX_EXTENTS];
	unsigned int n;
	int rc;

	rc = vhd_collect_extents(image, extent, &n, &image->data_end,
				 INT64_MAX, err);
	if (rc)
		return rc;
	for (uint32_t i = 0; i < image->bat_entries; i++) {
		uint64_t at = (uint64_t)vhd_bat(image, i) * VHD_SECTOR;

		if (vhd_bat(image, i) != VHD_BAT_UNUSED &&
		    at + block > image->data_end)
			image->data_end = at + block;
	}
	return 0;
}

static int finish(struct vhd_image *image, uint64_t size, struct error *err)
{
	image->footer.current_size = size;
	image->footer.geometry = vhd_geometry(size);
	return vhd_write_trailer(image, err);
}

static bool all_zero(const uint8_t *p, size_t len)
{
	return !len || (!*p && !memcmp(p, p + 1, len - 1));
}

/* Zeros from from to to; what is zero already isn't written. */
static int zero_range(const struct vhd_image *image, uint64_t from, uint64_t to)
{
	uint8_t *buf = malloc(CHUNK_BYTES);
	int rc = buf ? 0 : -ENOMEM;

	while (from < to && !rc) {
		size_t n = to - from < CHUNK_BYTES ? (size_t)(to - from) :
						     CHUNK_BYTES;

		rc = vhd_read_at(image->fd, buf, n, from);
		if (!rc && !all_zero(buf, n)) {
			memset(buf, 0, n);
			rc = vhd_write_at(image->fd, buf, n, from);
		}
		from += n;
	}
	free(buf);
	return rc;
}

/* What the last block holds past the disk's old end becomes part of the disk. */
static int zero_behind_end(struct vhd_image *image, struct error *err)
{
	uint64_t size = image->footer.current_size, at, end;
	uint32_t last = image->bat_entries - 1;
	int rc;

	if (size % image->header.block_size == 0 ||
	    vhd_bat(image, last) == VHD_BAT_UNUSED)
		return 0;
	at = ((uint64_t)vhd_bat(image, last) + image->bitmap_sectors) *
	     VHD_SECTOR;
	end = at + image->header.block_size;
	rc = zero_range(image, at + size % image->header.block_size, end);
	return rc ? vhd_fail(image->path, rc, "last block", err) : 0;
}

/* To a size for which the tables have room: nothing is moved. */
static bool grows_in_place(const struct vhd_image *image, uint64_t size)
{
	uint64_t entries = size / image->header.block_size +
			   (size % image->header.block_size != 0);

	return size > image->footer.current_size &&
	       entries <= image->header.max_bat_size &&
	       (!image->has_batmap ||
		(uint64_t)image->batmap_sectors * VHD_SECTOR >=
			round_up_u64(entries / 8, VHD_SECTOR));
}

/* Below disks that are served it may grow in place; all else has it alone. */
static int open_to_resize(struct vhd_image **image,
			  const struct vhd_resize_args *args, struct error *err)
{
	int rc = vhd_open(image, args->path, VHD_OPEN_WRITE | VHD_OPEN_GROW,
			  err);

	if (rc || ((*image)->footer.type != VHD_FIXED &&
		   (args->in_place || grows_in_place(*image, args->size))))
		return rc;
	vhd_close(*image);
	return vhd_open(image, args->path, VHD_OPEN_WRITE, err);
}

static int grow(struct vhd_image *image, uint64_t size,
		const struct vhd_resize_args *args, struct error *err)
{
	const struct vhd_header *h = &image->header;
	uint64_t entries = size / h->block_size, covered;
	uint64_t each = round_up_u64(vhd_block_bytes(image), VHD_ALIGN);
	bool small_map;
	int rc;

	if (entries > VHD_MAX_BAT)
		return error_set(err, -EFBIG,
				 "%s: size needs %llu blocks of %u bytes; at most %u are supported; convert it to an image with larger blocks",
				 image->path, (unsigned long long)entries,
				 h->block_size, VHD_MAX_BAT);
	/* All its blocks must find room below the last sector that a BAT addresses. */
	if (entries * each + 16 * entries + MIB > (uint64_t)VHD_BAT_UNUSED * VHD_SECTOR)
		return error_set(err, -EFBIG,
				 "%s: size is %llu GiB; with blocks of %u bytes a VHD addresses at most %llu GiB; convert it to an image with larger blocks, use several disks or a raw image (aio:)",
				 image->path, (unsigned long long)(size >> 30),
				 h->block_size,
				 (unsigned long long)((((uint64_t)VHD_BAT_UNUSED *
							VHD_SECTOR - MIB) /
						       (each + 16) *
						       h->block_size) >> 30));
	rc = zero_behind_end(image, err);
	if (rc)
		return rc;
	covered = round_up_u64(entries / 8, VHD_SECTOR);
	small_map = image->has_batmap &&
		    (uint64_t)image->batmap_sectors * VHD_SECTOR < covered;
	if (entries > h->max_bat_size || small_map) {
		if (args->in_place)
			return error_set(err, -ENOSPC,
					 "%s: its BAT has room for %llu MiB only; leave out -f to make room for more",
					 image->path,
					 (unsigned long long)((uint64_t)h->max_bat_size *
							      h->block_size / MIB));
		rc = vhd_grow_tables(image, (uint32_t)entries, args->watch,
				     err);
	} else {
		/* A block that lay there once must not come back. */
		rc = vhd_bat_write(image, image->bat_entries,
				   (uint32_t)entries - image->bat_entries, err);
		if (!rc)
			rc = vhd_find_data_end(image, err);
		if (!rc && image->has_batmap)
			rc = vhd_batmap_extend(image, (uint32_t)covered, err);
	}
	return rc ? rc : finish(image, size, err);
}

/* Given back where the file system can; best effort. */
static void punch(const struct vhd_image *image, uint32_t sector)
{
	uint64_t len = vhd_block_bytes(image);

	if (!image->is_blk)
		(void)!fallocate(image->fd,
				 FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				 (off_t)((uint64_t)sector * VHD_SECTOR),
				 (off_t)len);
}

/* Blocks from first on: their entries go once the disk is smaller for sure. */
static int drop_blocks(struct vhd_image *image, uint32_t first,
		       struct error *err)
{
	uint32_t n = image->bat_entries - first;
	uint32_t *dropped = malloc(4ull * n);
	int rc;

	if (!dropped)
		return vhd_fail(image->path, -ENOMEM, "BAT", err);
	for (uint32_t i = 0; i < n; i++) {
		dropped[i] = vhd_bat(image, first + i);
		vhd_bat_set(image, first + i, VHD_BAT_UNUSED);
	}
	rc = vhd_bat_write(image, first, n, err);
	if (!rc && fdatasync(image->fd))
		rc = vhd_fail(image->path, -errno, "sync", err);
	for (uint32_t i = 0; i < n && !rc; i++)
		if (dropped[i] != VHD_BAT_UNUSED)
			punch(image, dropped[i]);
	free(dropped);
	if (!rc)
		rc = vhd_find_data_end(image, err);
	return rc ? rc : vhd_write_trailer(image, err);
}

/* From the old end to the new one, as far as the file went: the old footer is there. */
static int zero_fixed(const struct vhd_image *image, uint64_t from, uint64_t to)
{
	uint64_t end = round_up_u64(image->file_size, VHD_SECTOR);

	return zero_range(image, from, to < end ? to : end);
}

/* The footer with another size, durable. */
static int put_footer(struct vhd_image *image, uint64_t size, uint64_t at)
{
	uint8_t raw[VHD_FOOTER_BYTES];
	int rc;

	image->footer.current_size = size;
	image->footer.geometry = vhd_geometry(size);
	vhd_footer_encode(raw, &image->footer);
	rc = vhd_write_at(image->fd, raw, sizeof(raw), at);
	return !rc && fdatasync(image->fd) ? -errno : rc;
}

/*
 * Beyond the file's end: a footer that still has the old size, so that the old one's
 * place can become part of the disk. The write that extends the file brings it.
 */
static int extend_fixed(struct vhd_image *image, uint64_t size)
{
	uint64_t old = image->footer.current_size;
	int rc = put_footer(image, old, size);

	if (!rc)
		rc = zero_fixed(image, old, size);
	if (!rc && fdatasync(image->fd))
		rc = -errno;
	return rc ? rc : put_footer(image, size, size);
}

/*
 * Within the file: a smaller disk has its size before there is a footer where data
 * was, and what is between the disk and the footer becomes zeros before it is the disk's.
 */
static int cut_fixed(struct vhd_image *image, uint64_t size, uint64_t tail)
{
	uint64_t old = image->footer.current_size;
	int rc;

	if (size < old)
		rc = put_footer(image, size, tail);
	else
		rc = zero_fixed(image, old, size);
	if (!rc && fdatasync(image->fd))
		rc = -errno;
	if (!rc)
		rc = put_footer(image, size, size);
	if (!rc && ftruncate(image->fd, (off_t)(size + VHD_FOOTER_BYTES)))
		rc = -errno;
	return !rc && fdatasync(image->fd) ? -errno : rc;
}

/* A fixed image has its only footer behind the disk. */
static int move_fixed_end(struct vhd_image *image, uint64_t size,
			  struct error *err)
{
	uint64_t old = image->footer.current_size;
	uint64_t tail = image->file_size -
			(image->file_size % VHD_SECTOR == 511 ? 511 : 512);
	int rc;

	if (image->is_blk)
		return error_set(err, -ENOTSUP,
				 "%s: a fixed image on a block device can't be resized: its footer is the device's last sector; copy it into a new one",
				 image->path);
	if (size > old &&
	    fallocate(image->fd, FALLOC_FL_KEEP_SIZE, (off_t)old,
		      (off_t)(size + VHD_FOOTER_BYTES - old)) &&
	    errno != EOPNOTSUPP) {
		rc = -errno;
		/* Part of it may be reserved. */
		(void)!ftruncate(image->fd, (off_t)image->file_size);
		return vhd_fail(image->path, rc, "reserving the disk's space", err);
	}
	rc = size > tail ? extend_fixed(image, size) :
			   cut_fixed(image, size, tail);
	return rc ? vhd_fail(image->path, rc, "writing the footer", err) : 0;
}

static uint64_t data_behind(const struct vhd_image *image, uint64_t size)
{
	uint64_t n = 0;

	if (image->footer.type == VHD_FIXED)
		return image->footer.current_size - size;
	for (uint64_t i = size / image->header.block_size;
	     i < image->bat_entries; i++)
		if (vhd_bat(image, (uint32_t)i) != VHD_BAT_UNUSED)
			n += image->header.block_size;
	return n;
}

static int shrink(const struct vhd_chain *chain, uint64_t size, bool drop_data,
		  struct error *err)
{
	struct vhd_image *image = chain->image[0];
	uint64_t lost = data_behind(image, size), parent = 0;
	uint32_t covered, first;
	int rc;

	if (chain->nr_vhd > 1)
		parent = chain->image[1]->footer.current_size;
	else if (chain->raw_fd >= 0)
		parent = chain->raw_sectors * VHD_SECTOR;
	if (size < parent)
		return error_set(err, -EINVAL,
				 "%s: size %llu is less than the parent's, %llu bytes, whose data would come back if it grew again; copy it into an image without a parent and shrink that",
				 image->path, (unsigned long long)size,
				 (unsigned long long)parent);
	if (lost && !drop_data)
		return error_set(err, -EEXIST,
				 "%s: %llu bytes (%llu MiB) of its data lie beyond the new end of %llu MiB and would be lost; use --force to lose them",
				 image->path, (unsigned long long)lost,
				 (unsigned long long)((lost + MIB - 1) / MIB),
				 (unsigned long long)(size / MIB));
	if (image->footer.type == VHD_FIXED)
		return move_fixed_end(image, size, err);
	first = (uint32_t)(size / image->header.block_size);
	if (image->has_batmap) {
		covered = vhd_batmap_covered(image);
		for (uint32_t i = first; i < image->bat_entries; i++)
			image->batmap[i / 8] &= (uint8_t)~(0x80u >> i % 8);
		/* Cleared in all of the map, so that the disk can grow over it again. */
		rc = vhd_write_at(image->fd, image->batmap, covered,
				  image->batmap_offset);
		if (rc)
			return vhd_fail(image->path, rc, "batmap", err);
	}
	rc = finish(image, size, err);
	return rc ? rc : drop_blocks(image, first, err);
}

/* Gives up what a resize to this size has left if it was cut off: data past the end. */
static int drop_rest(struct vhd_image *image, struct error *err)
{
	uint64_t size = image->footer.current_size;
	int rc;

	if (image->footer.type == VHD_FIXED)
		return image->is_blk ||
		       image->file_size <= size + VHD_FOOTER_BYTES ?
				0 : move_fixed_end(image, size, err);
	rc = vhd_bat_write(image, image->bat_entries,
			   image->header.max_bat_size - image->bat_entries,
			   err);
	if (!rc && fdatasync(image->fd))
		rc = vhd_fail(image->path, -errno, "sync", err);
	if (!rc)
		rc = vhd_find_data_end(image, err);
	return rc ? rc : vhd_write_trailer(image, err);
}

int vhd_resize(const struct vhd_resize_args *args, const struct config *cfg,
	       struct error *err)
{
	struct vhd_chain *chain = NULL;
	struct vhd_image *image;
	uint64_t size = args->size, old;
	int rc;

	rc = vhd_check_size(args->path, "size", size, err);
	if (rc)
		return rc;
	/* Children may read from it: to grow changes nothing for them. */
	rc = open_to_resize(&image, args, err);
	if (rc)
		return rc;
	old = image->footer.current_size;
	if (image->footer.type == VHD_FIXED) {
		if (args->in_place && size != old)
			rc = error_set(err, -ENOTSUP,
				       "%s: is fixed and has no BAT; leave out -f",
				       args->path);
		else if (size > old)
			rc = move_fixed_end(image, size, err);
	} else {
		size = round_up_u64(size, image->header.block_size);
		rc = vhd_check_size(args->path, "size", size, err);
		if (!rc && args->size < old && size > old)
			rc = error_set(err, -EINVAL,
				       "%s: size %llu bytes is less than its %llu, but in whole blocks of %u it is %llu, which is more; give that, or a block less",
				       args->path,
				       (unsigned long long)args->size,
				       (unsigned long long)old,
				       image->header.block_size,
				       (unsigned long long)size);
		if (!rc && args->size > old)
			rc = vhd_check_behind(image, size, cfg, err);
		if (!rc && args->size > old)
			rc = grow(image, size, args, err);
	}
	if (!rc && size == old && args->drop_data)
		rc = drop_rest(image, err);
	vhd_close(image);
	if (!rc && size >= old)
		job_tell(args->watch, 1, 1);
	/* A last block that is used in part leaves no way between. */
	if (rc || size >= old)
		return rc;
	if (args->in_place)
		return error_set(err, -EINVAL,
				 "%s: size %llu MiB is less than its %llu; -f only makes it larger",
				 args->path, (unsigned long long)(size / MIB),
				 (unsigned long long)(old / MIB));
	rc = vhd_chain_open(&chain, args->path, cfg, VHD_OPEN_WRITE, err);
	if (!rc && size < chain->image[0]->footer.current_size)
		rc = shrink(chain, size, args->drop_data, err);
	vhd_chain_close(chain);
	if (!rc)
		job_tell(args->watch, 1, 1);
	return rc;
}
