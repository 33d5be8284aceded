// SPDX-License-Identifier: LGPL-2.1-only
#include "vhd/check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vhd/vhd-internal.h"

/* Bitmaps that are under way: each is a read of its own, 2 MiB from the next. */
#define AHEAD 256u

/* Clocks of hosts that share a file server differ. */
#define CLOCK_SLACK 1800

static void warn(struct vhd_check_result *r, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

static void warn(struct vhd_check_result *r, const char *fmt, ...)
{
	char *text;
	va_list ap;

	if (r->nr_warnings == VHD_CHECK_MAX_WARNINGS)
		return;
	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) >= 0)
		r->warning[r->nr_warnings++] = text;
	va_end(ap);
}

static bool zeros(const uint8_t *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (p[i])
			return false;
	return true;
}

static bool in_future(uint32_t timestamp)
{
	return timestamp > vhd_timestamp((int64_t)time(NULL) + CLOCK_SLACK);
}

static void check_footer(const struct vhd_image *image, const uint8_t *raw,
			 const struct vhd_check_options *options,
			 struct vhd_check_result *r)
{
	const struct vhd_footer *f = &image->footer;

	if (!(f->features & 2))
		warn(r, "footer: features 0x%08x lack the reserved bit",
		     f->features);
	if (f->features & ~3u)
		warn(r, "footer: features 0x%08x has unknown bits",
		     f->features);
	if (f->type == VHD_FIXED && f->data_offset != UINT64_MAX)
		warn(r, "footer: data offset of a fixed image is %llu",
		     (unsigned long long)f->data_offset);
	if (!options->ignore_timestamps && in_future(f->timestamp))
		warn(r, "footer: creation time is in the future");
	if (f->saved)
		warn(r, "footer: saved state is %u: a suspended machine may expect the disk as it is",
		     f->saved);
	if (f->hidden > 1)
		warn(r, "footer: hidden is %u", f->hidden);
	if (uuid_is_null(f->uuid))
		warn(r, "footer: uuid is null");
	if (!zeros(raw + 86, VHD_FOOTER_BYTES - 86))
		warn(r, "footer: reserved bytes are not zero");
	if (vhd_creator_is_tap(f) &&
	    f->creator_version > VHD_TAP_VERSION(1, 3))
		warn(r, "footer: creator version 0x%08x is newer than tap 1.3",
		     f->creator_version);
}

static int check_footers(const struct vhd_image *image,
			 const struct vhd_check_options *options,
			 struct vhd_check_result *r)
{
	size_t len = image->file_size % VHD_SECTOR == 511 ? 511 : 512;
	uint8_t front[VHD_FOOTER_BYTES], tail[VHD_FOOTER_BYTES] = { 0 };
	int rc = vhd_read_at(image->fd, front, sizeof(front), 0);

	if (!rc)
		rc = vhd_read_at(image->fd, tail, len, image->file_size - len);
	if (rc)
		return rc;
	check_footer(image, image->front_ok ? front : tail, options, r);
	if (image->footer.type == VHD_FIXED)
		return 0;
	if (!image->front_ok)
		warn(r, "the footer copy at the start is damaged; vhd-util repair restores it");
	else if (!image->tail_ok && !options->ignore_footer)
		warn(r, "the footer at the end is missing (not closed cleanly); vhd-util repair restores it");
	else if (image->tail_ok && memcmp(front, tail, len))
		warn(r, "the two footers differ; the one at the %s counts, and vhd-util repair makes the other like it",
		     get_be64(front + 16) == get_be64(tail + 16) ? "end" :
								   "start");
	return 0;
}

static int check_header(const struct vhd_image *image,
			const struct vhd_check_options *options,
			struct vhd_check_result *r)
{
	const struct vhd_header *h = &image->header;
	uint8_t raw[VHD_HEADER_BYTES];
	int rc = vhd_read_at(image->fd, raw, sizeof(raw),
			     image->footer.data_offset);

	if (rc)
		return rc;
	if (get_be64(raw + 8) != UINT64_MAX)
		warn(r, "header: data offset is %llu, not all ones",
		     (unsigned long long)get_be64(raw + 8));
	if (!zeros(raw + 60, 4) || !zeros(raw + 768, 256))
		warn(r, "header: reserved bytes are not zero");
	if (image->footer.type == VHD_DIFF) {
		if (!options->ignore_timestamps &&
		    in_future(h->parent_timestamp))
			warn(r, "header: parent's time is in the future");
		return 0;
	}
	if (!uuid_is_null(h->parent_uuid) || !zeros(raw + 64, 704))
		warn(r, "header: parent fields are set, but the image is not differencing");
	return 0;
}

static int check_bitmap(const struct vhd_image *image, uint32_t block,
			uint8_t *bitmap, struct vhd_check_result *r,
			struct error *err)
{
	int rc = vhd_read_bitmap(image, block, bitmap);
	bool full;

	if (rc)
		return error_set(err, rc, "%s: bitmap of block %u: reading: %s",
				 image->path, block, strerror(-rc));
	for (uint32_t i = 0; i < image->spb / 8; i++)
		r->sectors_written +=
			(unsigned int)__builtin_popcount(bitmap[i]);
	full = vhd_bitmap_full(bitmap, image->spb);
	if (!full && image->has_batmap &&
	    image->batmap[block / 8] & 0x80u >> block % 8)
		return error_set(err, -EUCLEAN,
				 "%s: batmap: block %u counts as complete, but its bitmap (sector %u) is not; run vhd-util repair -n %s",
				 image->path, block, vhd_bat(image, block),
				 image->path);
	return 0;
}

/* The first used block from block on; without one the number of blocks. */
static uint32_t used_block(const struct vhd_image *image, uint32_t block)
{
	while (block < image->bat_entries &&
	       vhd_bat(image, block) == VHD_BAT_UNUSED)
		block++;
	return block;
}

/* Only saves time: what fails will be told by the read. */
static void fetch_bitmap(const struct vhd_image *image, uint32_t block)
{
	if (block < image->bat_entries)
		(void)posix_fadvise(image->fd,
				    (off_t)vhd_bat(image, block) * VHD_SECTOR,
				    (off_t)image->bitmap_sectors * VHD_SECTOR,
				    POSIX_FADV_WILLNEED);
}

static int check_blocks(const struct vhd_image *image,
			const struct vhd_check_options *options,
			struct vhd_check_result *r, struct error *err)
{
	uint8_t *bitmap = malloc((size_t)image->bitmap_sectors * VHD_SECTOR);
	uint64_t tail = image->file_size % VHD_SECTOR == 511 ? 511 : 512, spare;
	uint32_t ahead = 0, fetched = 0;
	int rc = 0;

	if (!bitmap)
		return error_set(err, -ENOMEM, "%s: out of memory",
				 image->path);
	for (uint32_t i = used_block(image, 0); i < image->bat_entries && !rc;
	     i = used_block(image, i + 1)) {
		r->sectors_allocated += image->spb;
		if (!options->bitmaps)
			continue;
		for (; fetched < AHEAD && ahead < image->bat_entries; ahead++) {
			ahead = used_block(image, ahead);
			fetch_bitmap(image, ahead);
			fetched++;
		}
		job_tell(options->watch, i, image->bat_entries);
		rc = vhd_stopped(image->path, options->watch, err);
		if (!rc)
			rc = check_bitmap(image, i, bitmap, r, err);
		fetched--;
	}
	free(bitmap);
	if (rc)
		return rc;
	if (options->bitmaps)
		job_tell(options->watch, image->bat_entries,
			 image->bat_entries);
	if (image->cut_block)
		warn(r, "the file ends in block %u, of which no data are missing (not closed cleanly); vhd-util repair completes it",
		     image->cut_block - 1);
	if (image->has_batmap && !image->batmap_ok)
		warn(r, "batmap: checksum is wrong; it counts as empty");
	if (!image->is_blk && image->file_size > image->data_end + tail) {
		spare = image->file_size - image->data_end - tail;
		warn(r, "%llu bytes after the last block are in no use",
		     (unsigned long long)spare);
	}
	return 0;
}

int vhd_check(const struct vhd_image *image,
	      const struct vhd_check_options *options,
	      struct vhd_check_result *result, struct error *err)
{
	int rc;

	memset(result, 0, sizeof(*result));
	rc = check_footers(image, options, result);
	if (!rc && image->footer.type != VHD_FIXED)
		rc = check_header(image, options, result);
	if (rc)
		return error_set(err, rc, "%s: reading: %s", image->path,
				 strerror(-rc));
	if (image->footer.type == VHD_FIXED) {
		result->sectors_allocated = image->footer.current_size /
					    VHD_SECTOR;
		return 0;
	}
	return check_blocks(image, options, result, err);
}

void vhd_check_result_dispose(struct vhd_check_result *result)
{
	for (unsigned int i = 0; i < result->nr_warnings; i++)
		free(result->warning[i]);
	result->nr_warnings = 0;
}
