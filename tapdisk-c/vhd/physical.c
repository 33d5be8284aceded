// SPDX-License-Identifier: LGPL-2.1-only
/* An image and the space it lies in: where its last footer is, and all data gone. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "vhd/resize.h"

/*
 * A volume that shrinks and grows again may get the same space back, and with it
 * the footer of before, which would count as the one written last.
 */
static int clear_old_end(const struct vhd_image *image, uint64_t size,
			 struct error *err)
{
	static const uint8_t zeros[VHD_FOOTER_BYTES];
	int rc;

	if (!image->is_blk || size >= image->file_size)
		return 0;
	rc = vhd_write_at(image->fd, zeros, sizeof(zeros),
			  image->file_size - sizeof(zeros));
	if (rc)
		return vhd_fail(image->path, rc, "clearing the old footer", err);
	return fsync(image->fd) ? vhd_fail(image->path, -errno, "sync", err) : 0;
}

/* Without a look at what it holds. */
static int check_physical_size(const struct vhd_image *image, uint64_t size,
			       struct error *err)
{
	if (image->footer.type == VHD_FIXED)
		return error_set(err, -ENOTSUP,
				 "%s: is fixed: its footer follows its data; use resize",
				 image->path);
	if (size % VHD_SECTOR)
		return error_set(err, -EINVAL,
				 "%s: physical size: %llu bytes is not a multiple of 512",
				 image->path, (unsigned long long)size);
	if (image->is_blk && size > image->file_size)
		return error_set(err, -ENOSPC,
				 "%s: physical size: %llu bytes; the device has %llu: extend it first",
				 image->path, (unsigned long long)size,
				 (unsigned long long)image->file_size);
	return 0;
}

static int check_end(const struct vhd_image *image, uint64_t size,
		     struct error *err)
{
	if (size >= image->data_end + VHD_FOOTER_BYTES)
		return 0;
	return error_set(err, -EINVAL,
			 "%s: physical size: %llu bytes would cut off data; it needs %llu (vhd-util query -s)",
			 image->path, (unsigned long long)size,
			 (unsigned long long)image->data_end + VHD_FOOTER_BYTES);
}

/* In memory. */
static void forget_blocks(struct vhd_image *image)
{
	for (uint32_t i = 0; i < image->bat_entries; i++)
		vhd_bat_set(image, i, VHD_BAT_UNUSED);
	if (image->has_batmap)
		memset(image->batmap, 0,
		       (size_t)image->batmap_sectors * VHD_SECTOR);
}

/* What a volume that has just grown or will shrink ends with. */
static int move_footer(struct vhd_image *image, uint64_t size, struct error *err)
{
	uint8_t raw[VHD_FOOTER_BYTES];
	int rc;

	rc = check_physical_size(image, size, err);
	if (rc)
		return rc;
	rc = check_end(image, size, err);
	if (rc)
		return rc;
	vhd_footer_encode(raw, &image->footer);
	rc = vhd_write_at(image->fd, raw, sizeof(raw), size - sizeof(raw));
	if (rc)
		return vhd_fail(image->path, rc, "writing the footer", err);
	if (!image->is_blk && ftruncate(image->fd, (off_t)size))
		return vhd_fail(image->path, -errno, "truncate", err);
	if (fsync(image->fd))
		return vhd_fail(image->path, -errno, "sync", err);
	return clear_old_end(image, size, err);
}

int vhd_set_physical_size(const char *path, uint64_t size, struct error *err)
{
	struct vhd_image *image;
	int rc;

	rc = vhd_open(&image, path, VHD_OPEN_WRITE, err);
	if (rc)
		return rc;
	rc = move_footer(image, size, err);
	vhd_close(image);
	return rc;
}

int vhd_check_physical_size(const char *path, uint64_t size, struct error *err)
{
	struct vhd_image *image;
	int rc;

	rc = vhd_open(&image, path, 0, err);
	if (rc)
		return rc;
	rc = check_physical_size(image, size, err);
	if (!rc) {
		forget_blocks(image);
		rc = vhd_find_data_end(image, err);
	}
	if (!rc)
		rc = check_end(image, size, err);
	vhd_close(image);
	return rc;
}

static int forget(struct vhd_image *image, struct error *err)
{
	int rc;

	if (image->footer.type == VHD_FIXED)
		return error_set(err, -ENOTSUP,
				 "%s: is fixed: it can't do without its data",
				 image->path);
	if (image->footer.hidden)
		return error_set(err, -EBUSY,
				 "%s: footer: the hidden flag is set: it has children, whose data would be lost",
				 image->path);
	rc = vhd_check_no_children(image->fd, image->path, err);
	if (rc)
		return rc;
	forget_blocks(image);
	/* What is trusted by the batmap must not be there when a BAT entry goes. */
	rc = vhd_batmap_store(image, err);
	if (!rc && fdatasync(image->fd))
		rc = vhd_fail(image->path, -errno, "sync", err);
	if (!rc)
		rc = vhd_bat_write(image, 0, image->bat_entries, err);
	if (!rc && fdatasync(image->fd))
		rc = vhd_fail(image->path, -errno, "sync", err);
	if (!rc)
		rc = vhd_find_data_end(image, err);
	return rc ? rc : vhd_write_trailer(image, err);
}

int vhd_kill_data(const char *path, struct error *err)
{
	struct vhd_image *image;
	int rc;

	rc = vhd_open(&image, path, VHD_OPEN_WRITE, err);
	if (rc)
		return rc;
	rc = forget(image, err);
	vhd_close(image);
	return rc;
}
