// SPDX-License-Identifier: LGPL-2.1-only
/* Opening one VHD file: which footer holds, and whether the metadata agree. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/pages.h"
#include "vhd/vhd-internal.h"

/* One second in all. */
#define OPEN_TRIES	100
#define OPEN_WAIT_NS	10000000

struct footers {
	uint64_t tail_offset;		/* 0: the file is too short or odd for one */
	uint8_t front_raw[VHD_FOOTER_BYTES], tail_raw[VHD_FOOTER_BYTES];
	struct vhd_footer front, tail;
	bool front_ok, tail_ok;
	struct error front_err, tail_err;
};

static bool has_cookie(const uint8_t *raw)
{
	return !memcmp(raw, "conectix", 8) || !memcmp(raw, "v_poison", 8);
}

static int read_footers(const struct vhd_image *image, struct footers *f,
			struct error *err)
{
	/* Virtual PC before 2004 wrote 511 bytes; the one left out is reserved. */
	size_t tail_len = image->file_size % VHD_SECTOR == 511 ? 511 : 512;
	int rc;

	memset(f, 0, sizeof(*f));
	if (image->file_size < tail_len)
		return error_set(err, -EUCLEAN,
				 "%s: file has %llu bytes, too short for a VHD footer",
				 image->path,
				 (unsigned long long)image->file_size);
	if (image->file_size >= VHD_FOOTER_BYTES) {
		rc = vhd_read_at(image->fd, f->front_raw, VHD_FOOTER_BYTES, 0);
		if (rc)
			goto fail;
	}
	f->front_ok = !vhd_footer_decode(&f->front, f->front_raw, image->path,
					 "footer copy at the start",
					 &f->front_err);
	/* A file of odd length has lost its end. */
	if ((image->file_size - tail_len) % VHD_SECTOR == 0) {
		f->tail_offset = image->file_size - tail_len;
		rc = vhd_read_at(image->fd, f->tail_raw, tail_len,
				 f->tail_offset);
		if (rc)
			goto fail;
	}
	f->tail_ok = !vhd_footer_decode(&f->tail, f->tail_raw, image->path,
					"footer at the end", &f->tail_err);
	return 0;
fail:
	return error_set(err, rc, "%s: footer: reading: %s", image->path,
			 strerror(-rc));
}

/*
 * A valid copy at the start of a dynamic image says which image it is: after a
 * crash the last sector of the file may be a guest's data, which can look like a
 * footer. Where both are the image's and differ, that at the end was written
 * first, and is what other programs read. In
 * a fixed image the first sector is the guest's. So with a valid fixed footer
 * at the end and a valid other one at the start a guest may have made either:
 * to follow the wrong one would let it choose the parent of its disk.
 */
static int choose_footer(struct vhd_image *image, const struct footers *f,
			 unsigned int flags, struct error *err)
{
	bool front = f->front_ok && f->front.type != VHD_FIXED;
	bool fixed = f->tail_ok && f->tail.type == VHD_FIXED;
	const struct error *fault;

	if (front && fixed && f->tail.current_size <= f->tail_offset)
		return error_set(err, -EUCLEAN,
				 "%s: disk type: the footer at the end is of a fixed image, the one at the start is not; if it is fixed, convert it to raw without the footer and use aio:",
				 image->path);
	/* Of this image, so no guest data: XenServer was about to change it. */
	if (front && f->tail_err.code == -ENOTSUP &&
	    !memcmp(f->tail_raw, "v_poison", 8) &&
	    !uuid_compare(f->tail.uuid, f->front.uuid))
		return error_set(err, f->tail_err.code, "%s",
				 f->tail_err.text);
	if (front) {
		image->footer = f->front;
		image->front_ok = true;
		image->tail_ok = f->tail_ok &&
				 !uuid_compare(f->tail.uuid, f->front.uuid);
		if (!image->tail_ok || flags & VHD_OPEN_COPY)
			return 0;
		if (vhd_tail_counts(&f->front, &f->tail))
			image->footer = f->tail;
		image->footer.hidden = f->tail.hidden ? f->tail.hidden :
							f->front.hidden;
		return 0;
	}
	/* Valid but for its being disabled or of an unknown kind. */
	if (!fixed && has_cookie(f->front_raw) &&
	    f->front_err.code == -ENOTSUP) {
		fault = &f->front_err;
	} else if (f->tail_ok) {
		image->footer = f->tail;
		image->tail_ok = true;
		return 0;
	} else {
		fault = has_cookie(f->front_raw) && !f->front_ok ?
				&f->front_err : &f->tail_err;
	}
	return error_set(err, fault->code, "%s", fault->text);
}

static int check_locator(const struct vhd_image *image, unsigned int i,
			 uint64_t limit, struct error *err)
{
	const struct vhd_locator *l = &image->header.locator[i];
	uint64_t end;

	if (l->data_len > VHD_MAX_LOCATOR)
		return error_set(err, -EUCLEAN,
				 "%s: header: parent locator %u: data length is %u bytes; at most %u are supported",
				 image->path, i, l->data_len, VHD_MAX_LOCATOR);
	if (l->data_len > vhd_locator_space(l))
		return error_set(err, -EUCLEAN,
				 "%s: header: parent locator %u: data length %u is more than its data space %u",
				 image->path, i, l->data_len, l->data_space);
	if (!add_u64(l->data_offset, l->data_len, &end) || end > limit)
		return error_set(err, -EUCLEAN,
				 "%s: header: parent locator %u: data offset %llu (length %u) is not inside the file",
				 image->path, i,
				 (unsigned long long)l->data_offset,
				 l->data_len);
	return 0;
}

int vhd_fail(const char *path, int rc, const char *what, struct error *err)
{
	return error_set(err, rc, "%s: %s: %s", path, what, strerror(-rc));
}

int vhd_stopped(const char *path, const struct job_watch *watch,
		struct error *err)
{
	if (!job_stopped(watch))
		return 0;
	return error_set(err, -ECANCELED, "%s: stopped by a signal", path);
}

int vhd_collect_extents(const struct vhd_image *image,
			struct vhd_extent extent[VHD_MAX_EXTENTS],
			unsigned int *nr, uint64_t *end, uint64_t limit,
			struct error *err)
{
	const struct vhd_header *h = &image->header;
	uint64_t batmap = vhd_batmap_header_offset(h), space, last = 0;
	unsigned int n = 0;
	int rc;

	extent[n++] = (struct vhd_extent){ 0, VHD_FOOTER_BYTES, "footer copy" };
	extent[n++] = (struct vhd_extent){ image->footer.data_offset,
		image->footer.data_offset + VHD_HEADER_BYTES, "header" };
	extent[n++] = (struct vhd_extent){ h->table_offset,
		h->table_offset + 4ull * h->max_bat_size, "BAT" };
	if (image->has_batmap) {
		extent[n++] = (struct vhd_extent){ batmap,
			batmap + VHD_SECTOR, "batmap header" };
		extent[n++] = (struct vhd_extent){ image->batmap_offset,
			image->batmap_offset +
			(uint64_t)image->batmap_sectors * VHD_SECTOR,
			"batmap" };
	}
	for (unsigned int i = 0; i < n; i++)
		if (extent[i].end > last)
			last = extent[i].end;
	for (unsigned int i = 0; i < VHD_NR_LOCATORS &&
	     image->footer.type == VHD_DIFF; i++) {
		const struct vhd_locator *l = &h->locator[i];

		if (!l->code || !l->data_len)
			continue;
		rc = check_locator(image, i, limit, err);
		if (rc)
			return rc;
		extent[n++] = (struct vhd_extent){ l->data_offset,
			l->data_offset + l->data_len, "parent locator data" };
		space = l->data_offset + vhd_locator_space(l);
		if (space > limit)
			space = l->data_offset + l->data_len;
		if (space > last)
			last = space;
	}
	for (unsigned int i = 0; i < n; i++)
		for (unsigned int j = i + 1; j < n; j++)
			if (extent[i].start < extent[j].end &&
			    extent[j].start < extent[i].end)
				return error_set(err, -EUCLEAN,
						 "%s: the %s (byte %llu) and the %s (byte %llu) overlap",
						 image->path, extent[i].what,
						 (unsigned long long)extent[i].start,
						 extent[j].what,
						 (unsigned long long)extent[j].start);
	*end = round_up_u64(last, VHD_SECTOR);
	*nr = n;
	return 0;
}

static bool overlap(uint64_t a, uint64_t a_end, uint64_t b, uint64_t b_end)
{
	return a < b_end && b < a_end;
}

bool vhd_clear_of_blocks(const struct vhd_image *image, uint64_t at,
			 uint64_t end)
{
	uint64_t len = vhd_block_bytes(image);

	for (uint32_t i = 0; i < image->bat_entries; i++) {
		uint64_t start = (uint64_t)vhd_bat(image, i) * VHD_SECTOR;

		if (vhd_bat(image, i) != VHD_BAT_UNUSED &&
		    overlap(start, start + len, at, end))
			return false;
	}
	return true;
}

uint64_t vhd_find_gap(const struct vhd_extent *extent, unsigned int nr,
		      uint64_t bytes, const struct vhd_image *blocks,
		      uint64_t best)
{
	for (unsigned int i = 0; i < nr; i++) {
		uint64_t at = round_up_u64(extent[i].end, VHD_SECTOR);
		bool clear = at < best;

		for (unsigned int j = 0; j < nr && clear; j++)
			clear = !overlap(at, at + bytes, extent[j].start,
					 extent[j].end);
		if (clear && (!blocks ||
			      vhd_clear_of_blocks(blocks, at, at + bytes)))
			best = at;
	}
	return best;
}

static int load_header(struct vhd_image *image, uint64_t limit,
		       struct error *err)
{
	uint64_t offset = image->footer.data_offset, end, entries;
	uint8_t raw[VHD_HEADER_BYTES];
	int rc;

	if (offset < VHD_FOOTER_BYTES || offset % VHD_SECTOR ||
	    !add_u64(offset, VHD_HEADER_BYTES, &end) || end > limit)
		return error_set(err, -EUCLEAN,
				 "%s: footer: data offset is %llu; the header must be at a multiple of 512 inside the file (%llu bytes)",
				 image->path, (unsigned long long)offset,
				 (unsigned long long)image->file_size);
	rc = vhd_read_at(image->fd, raw, sizeof(raw), offset);
	if (rc)
		return error_set(err, rc, "%s: header: reading: %s",
				 image->path, strerror(-rc));
	rc = vhd_header_decode(&image->header, raw, image->path, err);
	if (rc)
		return rc;
	if (!add_u64(image->header.table_offset,
		     4ull * image->header.max_bat_size, &end) || end > limit)
		return error_set(err, -EUCLEAN,
				 "%s: header: table offset is %llu: a BAT of %u entries there is not inside the file (%llu bytes)",
				 image->path,
				 (unsigned long long)image->header.table_offset,
				 image->header.max_bat_size,
				 (unsigned long long)image->file_size);
	entries = image->footer.current_size / image->header.block_size;
	entries += image->footer.current_size % image->header.block_size != 0;
	if (entries > image->header.max_bat_size)
		return error_set(err, -EUCLEAN,
				 "%s: footer: current size is %llu bytes, %llu blocks; max BAT size is only %u",
				 image->path,
				 (unsigned long long)image->footer.current_size,
				 (unsigned long long)entries,
				 image->header.max_bat_size);
	image->bat_entries = (uint32_t)entries;
	image->spb = image->header.block_size / VHD_SECTOR;
	image->bitmap_sectors = (image->spb / 8 + VHD_SECTOR - 1) / VHD_SECTOR;
	return 0;
}

/* A locator that claims space past the file's end has what its data need. */
static void bound_locators(struct vhd_image *image, uint64_t limit)
{
	for (unsigned int i = 0; i < VHD_NR_LOCATORS; i++) {
		struct vhd_locator *l = &image->header.locator[i];

		if (l->code && l->data_len && l->data_offset <= limit &&
		    vhd_locator_space(l) > limit - l->data_offset)
			l->data_space = (uint32_t)round_up_u64(l->data_len,
							       VHD_SECTOR);
	}
}

static int load_dynamic(struct vhd_image *image, uint64_t limit,
			struct error *err)
{
	struct vhd_extent extent[VHD_MAX_EXTENTS];
	unsigned int n = 0;
	int rc;

	rc = load_header(image, limit, err);
	if (rc)
		return rc;
	rc = vhd_batmap_load(image, limit, err);
	if (rc)
		return rc;
	rc = vhd_collect_extents(image, extent, &n, &image->data_end, limit,
				 err);
	if (rc)
		return rc;
	bound_locators(image, limit);
	rc = vhd_bat_load(image, extent, n, limit, err);
	if (rc)
		return rc;
	if (!vhd_batmap_trim(image) || image->readonly)
		return 0;
	/* They would come true when the block is there, should nobody close the image. */
	rc = vhd_batmap_store(image, err);
	if (!rc && fdatasync(image->fd))
		rc = error_set(err, -errno, "%s: batmap: syncing: %s",
			       image->path, strerror(errno));
	return rc;
}

/*
 * Who was killed between the two has left the one at the end newer; that is lost with
 * the first block that is allocated, or when a volume grows.
 */
static bool copy_is_stale(const struct vhd_image *image, const struct footers *f)
{
	return image->front_ok && image->tail_ok &&
	       vhd_tail_counts(&f->front, &f->tail) &&
	       memcmp(f->front_raw, f->tail_raw, VHD_FOOTER_BYTES - 1);
}

/* *moving: it is being written meanwhile, by a coalesce of that child. */
static int open_once(struct vhd_image **out, const char *path,
		     unsigned int flags, const uint64_t *child, bool *moving,
		     struct error *err)
{
	bool below = child && !(flags & VHD_OPEN_WRITE);
	struct vhd_image *image;
	struct footers *f = NULL;
	struct stat st;
	uint64_t limit;
	int rc;

	*out = NULL;
	*moving = false;
	image = calloc(1, sizeof(*image));
	if (!image)
		return error_set(err, -ENOMEM, "%s: out of memory", path);
	image->fd = -1;
	image->readonly = !(flags & VHD_OPEN_WRITE);
	image->path = strdup(path);
	f = malloc(sizeof(*f));
	if (!image->path || !f) {
		rc = error_set(err, -ENOMEM, "%s: out of memory", path);
		goto out;
	}
	rc = vhd_file_open_below(&image->fd, path, flags, child, &st,
				 &image->file_size, err);
	if (rc)
		goto out;
	if (flags & VHD_OPEN_WRITE)
		rc = vhd_unmark_coalesced(image->fd, path, err);
	if (rc)
		goto out;
	*moving = below && lock_is_moving(image->fd);
	image->is_blk = S_ISBLK(st.st_mode);
	rc = read_footers(image, f, err);
	if (rc)
		goto out;
	rc = choose_footer(image, f, flags, err);
	if (rc)
		goto out;
	if (image->footer.type == VHD_FIXED) {
		if (image->footer.current_size > f->tail_offset) {
			rc = error_set(err, -EUCLEAN,
				       "%s: footer: current size is %llu bytes; the file has only %llu before the footer",
				       path,
				       (unsigned long long)image->footer.current_size,
				       (unsigned long long)f->tail_offset);
			goto out;
		}
		image->data_end = image->footer.current_size;
	} else {
		/* On a block device the last sector is the footer's, good or not. */
		limit = image->tail_ok || image->is_blk ? f->tail_offset :
							  image->file_size;
		rc = load_dynamic(image, limit, err);
		if (rc)
			goto out;
		/*
		 * The first block that is allocated overwrites the footer at
		 * the end: until the close the copy is all there is.
		 */
		if (!image->front_ok && flags & VHD_OPEN_WRITE &&
		    !(flags & VHD_OPEN_REPAIR)) {
			rc = error_set(err, -EUCLEAN,
				       "%s: the footer copy at the start is damaged, so writing is unsafe; run vhd-util repair -n %s first",
				       path, path);
			goto out;
		}
		/* The block's bits could outlive a file that was to become longer. */
		if (image->cut_block && flags & VHD_OPEN_WRITE &&
		    !(flags & VHD_OPEN_REPAIR)) {
			rc = error_set(err, -EUCLEAN,
				       "%s: BAT: the file ends in block %u (not closed cleanly; no data lost), so writing is unsafe; run vhd-util repair -n %s first",
				       path, image->cut_block - 1, path);
			goto out;
		}
		if (flags & VHD_OPEN_WRITE && !(flags & VHD_OPEN_REPAIR) &&
		    copy_is_stale(image, f)) {
			rc = vhd_write_copy(image, err);
			if (rc)
				goto out;
		}
	}
	*out = image;
	image = NULL;
	rc = 0;
out:
	if (below && (*out || image->fd >= 0) && !*moving)
		*moving = lock_is_moving(*out ? (*out)->fd : image->fd);
	free(f);
	vhd_close(image);
	return rc;
}

/*
 * A coalesce only adds blocks: entries that have been there twice are whole, and one that
 * was not yet there is of no use to those who read below the child.
 */
static bool confirmed(const struct vhd_image *image,
		      const struct vhd_image *again)
{
	if (uuid_compare(image->footer.uuid, again->footer.uuid) ||
	    image->bat_entries != again->bat_entries)
		return false;
	for (uint32_t i = 0; i < image->bat_entries; i++)
		if (image->bat_not[i] && image->bat_not[i] != again->bat_not[i])
			return false;
	return true;
}

int vhd_open_below(struct vhd_image **out, const char *path,
		   unsigned int flags, const uint64_t *child, struct error *err)
{
	const struct timespec wait = { .tv_nsec = OPEN_WAIT_NS };
	struct vhd_image *image, *again;
	bool moving, same = false, dummy;
	int rc;

	*out = NULL;
	for (int i = 0; i < OPEN_TRIES; i++) {
		rc = open_once(&image, path, flags, child, &moving, err);
		/* -ENODATA: the end of a coalesce has cut it. */
		if (!moving || (rc && rc != -EUCLEAN && rc != -ENODATA)) {
			*out = image;
			return rc;
		}
		if (!rc && !open_once(&again, path, flags | VHD_OPEN_NOLOCK,
				      child, &dummy, err)) {
			same = confirmed(image, again);
			vhd_close(again);
		}
		if (same) {
			*out = image;
			return 0;
		}
		vhd_close(image);
		nanosleep(&wait, NULL);
	}
	return error_set(err, -EBUSY,
			 "%s: a coalesce into it changes it too fast to be read; try again",
			 path);
}

int vhd_open(struct vhd_image **out, const char *path, unsigned int flags,
	     struct error *err)
{
	return vhd_open_below(out, path, flags, NULL, err);
}

int vhd_child_key_of(const struct vhd_image *child, uint64_t *key,
		     struct error *err)
{
	struct stat st;

	if (fstat(child->fd, &st))
		return vhd_fail(child->path, -errno, "stat", err);
	*key = lock_child(&st, child->footer.uuid);
	return 0;
}

int vhd_child_key(const char *path, uint64_t *key, struct error *err)
{
	struct vhd_image *child;
	int rc = vhd_open(&child, path, VHD_OPEN_NOLOCK, err);

	if (rc)
		return rc;
	rc = vhd_child_key_of(child, key, err);
	vhd_close(child);
	return rc;
}

void vhd_close(struct vhd_image *image)
{
	if (!image)
		return;
	if (image->fd >= 0)
		close(image->fd);
	free(image->path);
	pages_free(image->bat_not, (size_t)4 * image->bat_entries);
	free(image->batmap);
	free(image);
}
