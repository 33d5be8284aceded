/* SPDX-License-Identifier: LGPL-2.1-only */
/* Where new blocks go, and the file's growth ahead of them. */
#include "drivers/vhd-disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/log.h"

/*
 * A footer may be there or not: the file is cut again before the next step, and a
 * smaller one may succeed.
 */
static void start_over(struct vhd_grower *grow)
{
	grow->durable_end = 0;
	grow->cut = false;
	grow->step = VHD_GROW_BYTES;
}

static void step_done(struct vhd_grower *grow)
{
	if (grow->durable_end && grow->step < VHD_GROW_MAX_BYTES)
		grow->step *= 2;
	grow->durable_end = grow->target;
}

static void grown(struct io_req *io, int err)
{
	struct vhd_grower *grow = container_of(io, struct vhd_grower, io);
	struct vhd_disk *disk = container_of(grow, struct vhd_disk, grow);
	bool again = false;
	struct list waiting;

	if (!err && io->op == IO_WRITE && io->offset == grow->target &&
	    grow->durable_end) {
		/* The footer before is where blocks will be. */
		grow->iov.iov_base = grow->buf + VHD_SECTOR;
		grow->iov.iov_len = VHD_SECTOR;
		io->offset = grow->durable_end;
		image_queue(&disk->image, io);
		return;
	}
	if (!err && io->op == IO_WRITE) {
		io->op = IO_SYNC;
		image_queue(&disk->image, io);
		return;
	}
	/* A file so large can't be, or not yet: in smaller steps it may do. */
	if (err && io->op == IO_WRITE && grow->step > VHD_GROW_MAX_BYTES)
		again = true;
	if (err && !again)
		log_error("cannot extend the image path=%s err=%d",
			  disk->leaf->path, -err);
	if (err && io->op == IO_SYNC)
		disk->lost = err;
	if (err)
		start_over(grow);
	else
		step_done(grow);
	grow->busy = false;
	list_init(&waiting);
	list_splice(&grow->waiting, &waiting);
	vhd_wake(disk, &waiting, again ? 0 : err);
}

/*
 * Writes the footer a step further out, at least to need: that extends the file by
 * a hole. None where all blocks have room already.
 */
static void grow_start(struct vhd_disk *disk, uint64_t need, uint64_t ahead)
{
	struct vhd_grower *grow = &disk->grow;
	uint64_t target = round_up_u64(need + ahead, grow->step);

	if (target > grow->most)
		target = need > grow->most ? need : grow->most;
	if (target <= grow->durable_end)
		return;
	grow->busy = true;
	grow->target = target;
	disk->changed = true;
	grow->iov.iov_base = grow->buf;
	grow->iov.iov_len = VHD_SECTOR;
	grow->io.op = IO_WRITE;
	grow->io.fd = disk->leaf->fd;
	grow->io.offset = grow->target;
	grow->io.iov = &grow->iov;
	grow->io.iovcnt = 1;
	grow->io.done = grown;
	image_queue(&disk->image, &grow->io);
}

/*
 * What a tapdisk that was killed, or the last close, left behind the last
 * block must not pass for the bitmap or the data of a new one after a power
 * loss. Extended again, the file has zeros there.
 */
static int cut_surplus(struct vhd_disk *disk)
{
	struct vhd_image *leaf = disk->leaf;

	if (disk->grow.cut)
		return 0;
	if (ftruncate(leaf->fd, (off_t)leaf->data_end) < 0) {
		int rc = -errno;

		log_error("cannot cut the image to its blocks path=%s err=%d",
			  leaf->path, -rc);
		return rc;
	}
	disk->grow.cut = true;
	disk->changed = true;
	return 0;
}

/* A volume may be made larger under us: then what waits for space goes on. */
static bool device_grew(struct vhd_disk *disk)
{
	struct vhd_image *leaf = disk->leaf;
	off_t size = lseek(leaf->fd, 0, SEEK_END);

	if (!leaf->is_blk || size < 0 || (uint64_t)size <= leaf->file_size)
		return false;
	log_info("the device is larger now path=%s bytes=%lld was=%llu",
		 leaf->path, (long long)size,
		 (unsigned long long)leaf->file_size);
	leaf->file_size = (uint64_t)size;
	disk->grow.durable_end = leaf->file_size - VHD_SECTOR;
	disk->changed = true;
	return true;
}

bool vhd_grow_place(struct vhd_disk *disk, uint32_t block,
		    struct image_request *req, uint64_t *offset)
{
	struct vhd_image *leaf = disk->leaf;
	struct vhd_grower *grow = &disk->grow;
	uint64_t end;

	if (disk->place[block]) {
		*offset = (uint64_t)disk->place[block] << SECTOR_SHIFT;
		return true;
	}
	*offset = vhd_alloc_offset(leaf, leaf->data_end);
	if (*offset == UINT64_MAX && device_grew(disk))
		*offset = vhd_alloc_offset(leaf, leaf->data_end);
	end = *offset + vhd_block_bytes(leaf);
	/* VHD_BAT_UNUSED is not an address. */
	if (*offset >> SECTOR_SHIFT >= VHD_BAT_UNUSED ||
	    (leaf->is_blk && end > grow->durable_end)) {
		req->err = -ENOSPC;
		return false;
	}
	if (end <= grow->durable_end) {
		/* Ahead of need, so that few requests wait for the sync. */
		if (!leaf->is_blk && !grow->busy &&
		    grow->durable_end - end < grow->step / 2)
			grow_start(disk, end, grow->step);
		return true;
	}
	if (!grow->busy)
		req->err = cut_surplus(disk);
	if (req->err)
		return false;
	list_add_tail(&req->link, &grow->waiting);
	if (!grow->busy)
		grow_start(disk, end, grow->step / 2);
	return false;
}

int vhd_grow_init(struct vhd_disk *disk)
{
	struct vhd_image *leaf = disk->leaf;
	struct vhd_grower *grow = &disk->grow;

	list_init(&grow->waiting);
	if (disk->image.readonly || leaf->footer.type == VHD_FIXED)
		return 0;
	grow->buf = aligned_alloc(IMAGE_ALIGN, IMAGE_ALIGN);
	if (!grow->buf)
		return -ENOMEM;
	memset(grow->buf, 0, IMAGE_ALIGN);
	vhd_footer_encode(grow->buf, &leaf->footer);
	grow->step = disk->buffered ? VHD_GROW_BUFFERED_BYTES : VHD_GROW_BYTES;
	grow->most = round_up_u64(leaf->data_end + (uint64_t)leaf->bat_entries *
				  round_up_u64(vhd_block_bytes(leaf), IMAGE_ALIGN),
				  VHD_GROW_BYTES);
	/* A file's end as found is not known to be durable. */
	grow->durable_end = leaf->is_blk ? leaf->file_size - VHD_SECTOR : 0;
	return 0;
}

void vhd_grow_destroy(struct vhd_grower *grow)
{
	free(grow->buf);
}
