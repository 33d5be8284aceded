/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/ublk-desc.h"

#include <errno.h>

/* What one discard may cover: 1 GiB. */
#define DISCARD_MAX_SECTORS	(1u << 21)

#define PHYSICAL_SHIFT		12u	/* 4096 bytes */

static uint8_t shift_of(uint32_t bytes)
{
	return (uint8_t)__builtin_ctz(bytes);
}

struct ublk_params ublk_params_of(const struct image_info *info, bool readonly)
{
	bool discard = info->can & IMAGE_CAN_DISCARD;
	bool zero = info->can & IMAGE_CAN_ZERO;

	return (struct ublk_params){
		.len	= sizeof(struct ublk_params),
		.types	= UBLK_PARAM_BASIC | UBLK_PARAM_DISCARD,
		.basic	= {
			/* FUA is not passed on without a cache. */
			.attrs = UBLK_ATTR_CACHE | UBLK_ATTR_FUA |
				 (readonly ? UBLK_ATTR_READ_ONLY : 0),
			.logical_shift	= shift_of(info->sector_size),
			.physical_shift	= PHYSICAL_SHIFT,
			.io_min_shift	= PHYSICAL_SHIFT,
			.io_opt_shift	= PHYSICAL_SHIFT,
			.max_sectors	= UBLK_MAX_IO_BYTES >> SECTOR_SHIFT,
			.sectors	= info->sectors,
		},
		.discard = {
			.granularity		= 1u << PHYSICAL_SHIFT,
			.max_sectors		= discard ? DISCARD_MAX_SECTORS : 0,
			.max_zeroes_sectors	= zero ? DISCARD_MAX_SECTORS : 0,
			.max_segments		= 1,
		},
	};
}

int ublk_params_fit(const struct ublk_params *params,
		    const struct image_info *info, bool readonly, int minor,
		    struct error *err)
{
	if (!(params->types & UBLK_PARAM_BASIC) ||
	    params->basic.logical_shift < SECTOR_SHIFT ||
	    params->basic.logical_shift > PHYSICAL_SHIFT)
		return error_set(err, -EPROTO, "minor %d: ublk tells of a device without a block size",
				 minor);
	if (params->basic.max_sectors > UBLK_MAX_IO_BYTES >> SECTOR_SHIFT)
		return error_set(err, -ERANGE, "minor %d: its device was made for requests of %u KiB, this tapdisk serves %u; open it with the version that made it",
				 minor, params->basic.max_sectors / 2,
				 UBLK_MAX_IO_BYTES >> 10);
	if (info->sectors < params->basic.sectors)
		return error_set(err, -EINVAL, "minor %d: its device has %llu bytes, the image's disk %llu: a disk in use can't shrink",
				 minor,
				 (unsigned long long)params->basic.sectors << SECTOR_SHIFT,
				 (unsigned long long)info->sectors << SECTOR_SHIFT);
	if (info->sector_size > 1u << params->basic.logical_shift)
		return error_set(err, -EINVAL, "minor %d: its device has sectors of %u bytes, the image's disk of %u; move the image to storage with the same",
				 minor, 1u << params->basic.logical_shift,
				 info->sector_size);
	if (readonly && !(params->basic.attrs & UBLK_ATTR_READ_ONLY))
		return error_set(err, -EROFS, "minor %d: its device was made for writing; open the image for writing",
				 minor);
	return 0;
}

int ublk_decode(const struct ublk_desc *desc, struct image_request *image,
		bool *fua)
{
	uint32_t flags = desc->op_flags;

	image->sector = desc->sector;
	image->count = desc->sectors;
	image->keep_space = false;
	*fua = flags & UBLK_RQ_FUA;
	switch (flags & UBLK_OP_MASK) {
	case UBLK_OP_READ:
		image->op = IMAGE_READ;
		break;
	case UBLK_OP_WRITE:
		image->op = IMAGE_WRITE;
		break;
	case UBLK_OP_FLUSH:
		image->op = IMAGE_FLUSH;
		image->count = 0;
		return 0;
	case UBLK_OP_DISCARD:
		image->op = IMAGE_DISCARD;
		return 0;
	case UBLK_OP_WRITE_ZEROES:
		image->op = IMAGE_ZERO;
		image->keep_space = flags & UBLK_RQ_NOUNMAP;
		return 0;
	default:
		return -EOPNOTSUPP;
	}
	return image->count <= UBLK_MAX_IO_BYTES >> SECTOR_SHIFT ? 0 : -EIO;
}

int32_t ublk_result(const struct image_request *image, enum image_op op,
		    int err)
{
	if (err)
		return err;
	if (op != IMAGE_READ && op != IMAGE_WRITE)
		return 0;
	return (int32_t)(image->count << SECTOR_SHIFT);
}
