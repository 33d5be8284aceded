/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the driver accepts from a server: pure checks of blktap.h's structs.
 * No kernel API, so that the unit tests compile it in user space.
 * Functions return 0 or -errno; nothing here keeps state.
 */
#ifndef BLKTAP_PROTO_H
#define BLKTAP_PROTO_H

#include <linux/errno.h>

#include "blktap.h"

#ifndef __KERNEL__
#include <stdbool.h>
#endif

#define BLKTAP_MAX_ENTRIES	256u
#define BLKTAP_MAX_IO_BYTES	0x100000u	/* 1 MiB */
#define BLKTAP_IO_UNIT		4096u

/* The bytes of each struct's first version: a caller cannot send fewer. */
#define BLKTAP_ALLOC_SIZE_V3	16u
#define BLKTAP_FREE_SIZE_V3	16u
#define BLKTAP_SETUP_SIZE_V3	64u
#define BLKTAP_PARAMS_SIZE_V3	40u
#define BLKTAP_ENTER_SIZE_V3	24u
#define BLKTAP_REMOVE_SIZE_V3	8u
#define BLKTAP_FILE_SIZE_V3	16u
#define BLKTAP_UNFILE_SIZE_V3	8u
#define BLKTAP_EXTENTS_SIZE_V3	24u
#define BLKTAP_WITHDRAW_SIZE_V3	32u

/* Where the parts of one queue's ring memory lie, in bytes from its start. */
struct blktap_layout {
	__u32 sq_off;
	__u32 cq_off;
	__u64 bytes;		/* not yet rounded to pages */
};

/* Why a completion is refused; the text is for the log. */
enum blktap_refusal {
	BLKTAP_CQE_GOOD,
	BLKTAP_CQE_BAD_TAG,	/* not below entries */
	BLKTAP_CQE_NOT_HELD,	/* no request with this tag: a double, or invented */
	BLKTAP_CQE_BAD_ID,	/* the tag is held by another request */
	BLKTAP_CQE_BAD_CODE,	/* unknown, or of a feature that was not granted */
	BLKTAP_CQE_BAD_RESULT,	/* outside [-4095, 0], or not 0 with REQUEUE and REMAP */
	BLKTAP_CQE_BAD_PLACE,	/* file, or what it was registered for, or offset */
	BLKTAP_CQE_BAD_RESERVED,
};

const char *blktap_refusal_text(enum blktap_refusal why);

/*
 * The number of entries between two free-running indices.
 * -EPROTO when it is above entries: then the peer's index is nonsense.
 */
static inline int blktap_ring_used(__u32 head, __u32 tail, __u32 entries)
{
	__u32 used = tail - head;

	return used <= entries ? (int)used : -EPROTO;
}

void blktap_ring_layout(__u32 entries, struct blktap_layout *layout);

/*
 * The features granted of those wanted, 0 if there is no data mode in common.
 */
__u64 blktap_grant(__u64 wanted);

/*
 * Checks what the server asks for and sets nr_queues to what it gets.
 * page_size: bytes, of the machine.
 */
int blktap_check_setup(struct blktap_setup *setup, __u32 page_size);

/* The parameters of a new device whose requests are at most max_io_bytes. */
int blktap_check_params(const struct blktap_device_params *params,
			__u32 max_io_bytes);

/*
 * Whether a device with parameters old may go on with new: what a file system
 * on it relies on must stay. rdonly_may_change: SET_DEVICE, not RESUME_DEVICE.
 */
int blktap_check_change(const struct blktap_device_params *old,
			const struct blktap_device_params *new,
			bool rdonly_may_change);

/*
 * Checks a snapshot of a completion, never the shared memory itself.
 * held_ids: the id of the request held under each tag, 0 for none;
 * entries of them. features: those granted.
 */
enum blktap_refusal blktap_check_cqe(const struct blktap_cqe *cqe,
				     const __u64 *held_ids, __u32 entries,
				     __u64 features);

/* A snapshot of an extent, against a device of so many sectors. */
int blktap_check_extent(const struct blktap_extent *extent, __u64 sectors);

#endif
