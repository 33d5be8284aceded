// SPDX-License-Identifier: GPL-2.0-only
/* What the driver accepts from a server; see proto.h. */
#include "proto.h"

#define MAX_ERRNO_RESULT	4095
#define MAX_SECTORS		0x40000000000000ull	/* 2^63 bytes: loff_t holds them */
#define MAX_FILE_BYTES		0x7fffffffffffffffull	/* loff_t */
#define MAX_PHYSICAL_BLOCK	0x100000u	/* 1 MiB */
#define ALL_DEV_FLAGS		(BLKTAP_DEV_RDONLY | BLKTAP_DEV_FLUSH | \
				 BLKTAP_DEV_FUA | BLKTAP_DEV_DISCARD | \
				 BLKTAP_DEV_ZEROES)

static bool power_of_two(__u64 v)
{
	return v && !(v & (v - 1));
}

static __u32 align64(__u32 v)
{
	return (v + 63u) & ~63u;
}

const char *blktap_refusal_text(enum blktap_refusal why)
{
	switch (why) {
	case BLKTAP_CQE_GOOD:
		return "good";
	case BLKTAP_CQE_BAD_TAG:
		return "tag out of range";
	case BLKTAP_CQE_NOT_HELD:
		return "no request is held under this tag";
	case BLKTAP_CQE_BAD_ID:
		return "another request is held under this tag";
	case BLKTAP_CQE_BAD_CODE:
		return "code unknown or not granted";
	case BLKTAP_CQE_BAD_RESULT:
		return "result out of range";
	case BLKTAP_CQE_BAD_PLACE:
		return "file not registered for it, or offset out of range";
	case BLKTAP_CQE_BAD_RESERVED:
		return "reserved field not zero";
	}
	return "unknown";
}

void blktap_ring_layout(__u32 entries, struct blktap_layout *layout)
{
	/* entries is at most BLKTAP_MAX_ENTRIES: 32 bits are enough */
	layout->sq_off = align64(sizeof(struct blktap_ring));
	layout->cq_off = align64(layout->sq_off + entries *
				 (__u32)sizeof(struct blktap_sqe));
	layout->bytes = layout->cq_off +
			(__u64)entries * sizeof(struct blktap_cqe);
}

/* What an extent can't serve is copied, so COPY is always among them. */
__u64 blktap_grant(__u64 wanted)
{
	if (!(wanted & BLKTAP_F_COPY))
		return 0;
	return wanted & (BLKTAP_F_COPY | BLKTAP_F_REMAP);
}

int blktap_check_setup(struct blktap_setup *setup, __u32 page_size)
{
	__u64 need;

	if (setup->reserved || setup->nr_queues == 0)
		return -EINVAL;
	if (!power_of_two(setup->entries) ||
	    setup->entries > BLKTAP_MAX_ENTRIES)
		return -EINVAL;
	if (setup->max_io_bytes == 0 ||
	    setup->max_io_bytes % BLKTAP_IO_UNIT ||
	    setup->max_io_bytes > BLKTAP_MAX_IO_BYTES)
		return -EINVAL;
	setup->nr_queues = 1;
	/* at most 1 * 256 * 1 MiB */
	need = (__u64)setup->entries * setup->max_io_bytes;
	if (setup->buf_addr == 0 || setup->buf_addr % page_size ||
	    setup->buf_len < need ||
	    setup->buf_addr + setup->buf_len < setup->buf_addr)
		return -EINVAL;
	return 0;
}

int blktap_check_params(const struct blktap_device_params *params,
			__u32 max_io_bytes)
{
	__u32 lbs = params->logical_block_size;
	__u32 pbs = params->physical_block_size;

	if (params->flags & ~ALL_DEV_FLAGS)
		return -EINVAL;
	if ((params->flags & BLKTAP_DEV_FUA) &&
	    !(params->flags & BLKTAP_DEV_FLUSH))
		return -EINVAL;
	if (!power_of_two(lbs) || lbs < 512 || lbs > 4096)
		return -EINVAL;
	if (!power_of_two(pbs) || pbs < lbs || pbs > MAX_PHYSICAL_BLOCK)
		return -EINVAL;
	if (max_io_bytes < lbs)
		return -EINVAL;
	if (params->sectors == 0 || params->sectors >= MAX_SECTORS ||
	    params->sectors % (lbs >> BLKTAP_SECTOR_SHIFT))
		return -EINVAL;
	if (params->io_min % lbs || params->io_opt % lbs)
		return -EINVAL;
	if (params->flags & BLKTAP_DEV_DISCARD) {
		if (!power_of_two(params->discard_granularity) ||
		    params->discard_granularity < lbs)
			return -EINVAL;
		/*
		 * The block layer ignores a limit below the granularity, which it
		 * makes a physical block at least.
		 */
		if (params->discard_max <
			    params->discard_granularity >> BLKTAP_SECTOR_SHIFT ||
		    params->discard_max < pbs >> BLKTAP_SECTOR_SHIFT)
			return -EINVAL;
	}
	return 0;
}

int blktap_check_change(const struct blktap_device_params *old,
			const struct blktap_device_params *new,
			bool rdonly_may_change)
{
	__u32 lost = old->flags & ~new->flags;
	__u32 rdonly = (old->flags ^ new->flags) & BLKTAP_DEV_RDONLY;

	if (new->logical_block_size != old->logical_block_size ||
	    new->physical_block_size != old->physical_block_size ||
	    new->sectors < old->sectors)
		return -EINVAL;
	if (lost & ~BLKTAP_DEV_RDONLY)
		return -EINVAL;
	if (rdonly && !rdonly_may_change)
		return -EINVAL;
	return 0;
}

/* The bytes of the largest request fit behind it, whatever is added. */
static bool good_offset(__u64 offset, __u64 bytes)
{
	return offset % 512 == 0 && offset <= MAX_FILE_BYTES - bytes;
}

int blktap_check_extent(const struct blktap_extent *extent, __u64 sectors)
{
	if (extent->flags & ~BLKTAP_EXTENT_WRITE)
		return -EINVAL;
	if (extent->nr_sectors == 0 || extent->sector >= sectors ||
	    extent->nr_sectors > sectors - extent->sector)
		return -EINVAL;
	if (extent->file >= BLKTAP_MAX_FILES ||
	    !good_offset(extent->offset,
			 (__u64)extent->nr_sectors << BLKTAP_SECTOR_SHIFT))
		return -EINVAL;
	return 0;
}

enum blktap_refusal blktap_check_cqe(const struct blktap_cqe *cqe,
				     const __u64 *held_ids, __u32 entries,
				     __u64 features)
{
	bool remap = cqe->code == BLKTAP_CQE_REMAP;

	if (cqe->tag >= entries)
		return BLKTAP_CQE_BAD_TAG;
	if (held_ids[cqe->tag] == 0)
		return BLKTAP_CQE_NOT_HELD;
	if (held_ids[cqe->tag] != cqe->id)
		return BLKTAP_CQE_BAD_ID;
	if (cqe->code > BLKTAP_CQE_REQUEUE ||
	    (remap && !(features & BLKTAP_F_REMAP)))
		return BLKTAP_CQE_BAD_CODE;
	if (cqe->result > 0 || cqe->result < -MAX_ERRNO_RESULT)
		return BLKTAP_CQE_BAD_RESULT;
	if (cqe->code != BLKTAP_CQE_DONE && cqe->result != 0)
		return BLKTAP_CQE_BAD_RESULT;
	if (remap && (cqe->file >= BLKTAP_MAX_FILES ||
		      !good_offset(cqe->offset, BLKTAP_MAX_IO_BYTES)))
		return BLKTAP_CQE_BAD_PLACE;
	if (!remap && (cqe->file || cqe->offset))
		return BLKTAP_CQE_BAD_PLACE;
	if (cqe->reserved0 || cqe->reserved1 || cqe->reserved2[0] ||
	    cqe->reserved2[1] || cqe->reserved2[2] || cqe->reserved2[3])
		return BLKTAP_CQE_BAD_RESERVED;
	return BLKTAP_CQE_GOOD;
}
