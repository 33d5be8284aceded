/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The ABI's layout, compiled for 64 and for 32 bits, where a __u64 is aligned
 * to 4 bytes only: a 32-bit server must find every field at the same place,
 * since the driver converts nothing. Nothing here runs.
 */
#include <stddef.h>

#include "proto.h"

#define AT(type, field, offset) \
	_Static_assert(offsetof(struct type, field) == (offset), #type "." #field)
#define SIZE(type, bytes) \
	_Static_assert(sizeof(struct type) == (bytes), #type)

SIZE(blktap_alloc, BLKTAP_ALLOC_SIZE_V3);
SIZE(blktap_free, BLKTAP_FREE_SIZE_V3);
SIZE(blktap_setup, BLKTAP_SETUP_SIZE_V3);
SIZE(blktap_device_params, BLKTAP_PARAMS_SIZE_V3);
SIZE(blktap_enter, BLKTAP_ENTER_SIZE_V3);
SIZE(blktap_remove, BLKTAP_REMOVE_SIZE_V3);
SIZE(blktap_file, BLKTAP_FILE_SIZE_V3);
SIZE(blktap_unfile, BLKTAP_UNFILE_SIZE_V3);
SIZE(blktap_extents, BLKTAP_EXTENTS_SIZE_V3);
SIZE(blktap_withdraw, BLKTAP_WITHDRAW_SIZE_V3);
SIZE(blktap_extent, 24);
SIZE(blktap_ring, 64);
SIZE(blktap_sqe, 48);
SIZE(blktap_cqe, 64);

AT(blktap_setup, features, 8);
AT(blktap_setup, nr_queues, 16);
AT(blktap_setup, buf_addr, 32);
AT(blktap_setup, buf_len, 40);
AT(blktap_setup, ring_bytes, 48);
AT(blktap_setup, cq_off, 60);
AT(blktap_device_params, sectors, 8);
AT(blktap_device_params, logical_block_size, 16);
AT(blktap_device_params, discard_max, 36);
AT(blktap_enter, refused, 20);
AT(blktap_ring, entries, 16);
AT(blktap_sqe, buf_offset, 16);
AT(blktap_sqe, nr_sectors, 24);
AT(blktap_sqe, op, 32);
AT(blktap_sqe, flags, 36);
AT(blktap_sqe, reserved1, 40);
AT(blktap_cqe, result, 8);
AT(blktap_cqe, tag, 12);
AT(blktap_cqe, code, 14);
AT(blktap_cqe, offset, 16);
AT(blktap_cqe, file, 24);
AT(blktap_cqe, reserved2, 32);
AT(blktap_extent, offset, 8);
AT(blktap_extent, nr_sectors, 16);
AT(blktap_extent, flags, 22);
AT(blktap_extents, addr, 8);
AT(blktap_withdraw, nr_sectors, 16);
