// SPDX-License-Identifier: LGPL-2.1-only
/* What a clean close leaves behind: the batmap and both footers. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "vhd/vhd-internal.h"

/* The batmap, and the file's end with the footer. */
static int write_end(struct vhd_image *image, struct error *err)
{
	uint8_t raw[VHD_FOOTER_BYTES];
	uint64_t tail = image->data_end;
	int rc;

	rc = vhd_batmap_store(image, err);
	if (rc)
		return rc;
	vhd_footer_encode(raw, &image->footer);
	if (image->is_blk)
		tail = image->file_size - VHD_FOOTER_BYTES;
	rc = vhd_write_at(image->fd, raw, sizeof(raw), tail);
	/* Its place may be what the footer further out takes; there is a third. */
	if ((rc == -ENOSPC || rc == -EDQUOT) && !image->is_blk &&
	    image->front_ok && !ftruncate(image->fd, (off_t)tail))
		rc = vhd_write_at(image->fd, raw, sizeof(raw), tail);
	if (rc)
		return vhd_fail(image->path, rc, "writing the footer", err);
	if (!image->is_blk &&
	    ftruncate(image->fd, (off_t)(tail + VHD_FOOTER_BYTES)))
		return vhd_fail(image->path, -errno, "truncate", err);
	if (!image->is_blk)
		image->file_size = tail + VHD_FOOTER_BYTES;
	return 0;
}

int vhd_leave(struct vhd_image *image, struct error *err)
{
	if (image->footer.type == VHD_FIXED)
		return 0;
	return write_end(image, err);
}

int vhd_write_copy(const struct vhd_image *image, struct error *err)
{
	uint8_t raw[VHD_FOOTER_BYTES];
	int rc;

	/* That at the end may not be on the disk yet. */
	if (fdatasync(image->fd))
		return vhd_fail(image->path, -errno, "sync", err);
	vhd_footer_encode(raw, &image->footer);
	rc = vhd_write_at(image->fd, raw, sizeof(raw), 0);
	if (rc)
		return vhd_fail(image->path, rc, "writing the footer copy", err);
	if (fdatasync(image->fd))
		return vhd_fail(image->path, -errno, "sync", err);
	return 0;
}

int vhd_write_trailer(struct vhd_image *image, struct error *err)
{
	int rc;

	if (image->readonly)
		return vhd_fail(image->path, -EBADF, "opened read-only", err);
	/*
	 * Before a batmap that says "all sectors present" the bitmaps and
	 * data it speaks of must be on the disk.
	 */
	if (fdatasync(image->fd))
		return vhd_fail(image->path, -errno, "sync", err);
	if (image->footer.type == VHD_FIXED)
		return 0;
	/* One of the two footers is whole at any time; that at the end may lie further out, and is cut off. */
	if (!image->front_ok) {
		rc = vhd_write_copy(image, err);
		if (rc)
			return rc;
		image->front_ok = true;
	}
	rc = write_end(image, err);
	if (rc)
		return rc;
	return vhd_write_copy(image, err);
}

int vhd_extend(struct vhd_image *image, uint64_t data_end, struct error *err)
{
	uint8_t raw[VHD_FOOTER_BYTES];
	int rc;

	if (image->is_blk)
		data_end = image->file_size - VHD_FOOTER_BYTES;
	else if (data_end + VHD_FOOTER_BYTES <= image->file_size)
		return 0;
	vhd_footer_encode(raw, &image->footer);
	rc = vhd_write_at(image->fd, raw, sizeof(raw), data_end);
	if (rc)
		return vhd_fail(image->path, rc, "writing the footer", err);
	if (!image->is_blk)
		image->file_size = data_end + VHD_FOOTER_BYTES;
	return fdatasync(image->fd) ? vhd_fail(image->path, -errno, "sync", err) : 0;
}

int vhd_write_fixed_footer(const struct vhd_image *image, struct error *err)
{
	uint64_t tail = image->file_size % VHD_SECTOR == 511 ? 511 : 512;
	uint8_t raw[VHD_FOOTER_BYTES];
	int rc;

	vhd_footer_encode(raw, &image->footer);
	rc = vhd_write_at(image->fd, raw, sizeof(raw),
			  image->file_size - tail);
	if (!rc && fdatasync(image->fd))
		rc = -errno;
	return rc ? vhd_fail(image->path, rc, "writing the footer", err) : 0;
}
