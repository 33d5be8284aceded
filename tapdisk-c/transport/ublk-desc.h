/* SPDX-License-Identifier: LGPL-2.1-only */
/* From ublk's words to ours and back; no system calls. */
#ifndef XENBLK_UBLK_DESC_H
#define XENBLK_UBLK_DESC_H

#include <stdbool.h>

#include "drivers/image.h"
#include "transport/ublk-abi.h"

/*
 * Requests in flight, and the size of one, as the blktap driver has them
 * (transport/blktap.h): their product is what a VBD's buffers may grow to.
 */
#define UBLK_ENTRIES		64u
#define UBLK_MAX_IO_BYTES	(256u << 10)

/* What a new device is to be. */
struct ublk_params ublk_params_of(const struct image_info *info, bool readonly);

/*
 * 0 if a device that was made with these serves the image, whose disk may be larger;
 * else an error that names what does not fit.
 */
int ublk_params_fit(const struct ublk_params *params,
		    const struct image_info *info, bool readonly, int minor,
		    struct error *err);

/*
 * Sets op, sector, count and keep_space of *image, and *fua. The
 * kernel's words are bounded here by what the buffers hold, and by the VBD to the disk.
 * -EOPNOTSUPP: no operation of ours; -EIO: more than fits.
 */
int ublk_decode(const struct ublk_desc *desc, struct image_request *image,
		bool *fua);

/* What is committed for a request that ended with err. */
int32_t ublk_result(const struct image_request *image, enum image_op op,
		    int err);

#endif
