/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The interface of Linux' ublk_drv as of 6.12 (include/uapi/linux/ublk_cmd.h,
 * Documentation/block/ublk.rst), as much of it as is used. The header of
 * Debian 12's kernel has only a part of it.
 */
#ifndef XENBLK_UBLK_ABI_H
#define XENBLK_UBLK_ABI_H

#include <stdint.h>
#include <sys/ioctl.h>

#define UBLK_CONTROL_PATH	"/dev/ublk-control"
#define UBLK_QUEUE_PATH		"/dev/ublkc%d"
#define UBLK_DISK_NAME		"ublkb%d"

/* Commands of the control device: 32 bytes, in an entry of 128, struct ublk_control. */
enum {
	UBLK_GET_INFO		= 0x02,	/* addr: struct ublk_info */
	UBLK_ADD		= 0x04,	/* the same, in and out */
	UBLK_START		= 0x06,	/* data: the server's pid. Waits for all fetches */
	UBLK_STOP		= 0x07,	/* waits for what the server has */
	UBLK_SET_PARAMS		= 0x08,	/* addr: struct ublk_params; before START */
	UBLK_GET_PARAMS		= 0x09,
	UBLK_START_RECOVERY	= 0x10,	/* -EBUSY until nothing of the dead server is left */
	UBLK_END_RECOVERY	= 0x11,	/* as START */
	UBLK_GET_FEATURES	= 0x13,	/* addr: a word of UBLK_F_ */
	UBLK_DELETE_ASYNC	= 0x14,	/* goes when it is closed */
	UBLK_UPDATE_SIZE	= 0x15,	/* data: sectors. Linux 6.16 */
};

/* Commands of a device's queue: 16 bytes, struct ublk_io. */
enum {
	UBLK_FETCH		= 0x20,
	UBLK_COMMIT_AND_FETCH	= 0x21,
};

struct ublk_control {
	uint32_t device;
	uint16_t queue;			/* 0xffff: none */
	uint16_t len;
	uint64_t addr;
	uint64_t data;
	uint16_t path_len, pad;
	uint32_t reserved;
};

struct ublk_io {
	uint16_t queue;
	uint16_t tag;
	int32_t result;			/* bytes, 0 of what moves none, or -errno */
	uint64_t addr;			/* of the buffer for the next request */
};

#define UBLK_COMMAND_SIZE 16u		/* of struct ublk_io */

/* As the kernel numbers them: the size is that of the kernel's own structures. */
#define UBLK_CONTROL_READ(nr)	_IOR('u', nr, struct ublk_control)
#define UBLK_CONTROL_WRITE(nr)	_IOWR('u', nr, struct ublk_control)
#define UBLK_IO_COMMAND(nr)	_IOWR('u', nr, struct ublk_io)

#define UBLK_F_USER_RECOVERY	(1ull << 3)
#define UBLK_F_REISSUE		(1ull << 4)
#define UBLK_F_IOCTL_ENCODE	(1ull << 6)
#define UBLK_F_UPDATE_SIZE	(1ull << 10)

enum ublk_state {
	UBLK_S_DEAD,			/* not started, or stopped */
	UBLK_S_LIVE,
	UBLK_S_QUIESCED,		/* its server is gone, requests wait */
};

struct ublk_info {
	uint16_t nr_queues;
	uint16_t depth;
	uint16_t state;
	uint16_t pad0;
	uint32_t max_io_bytes;
	uint32_t device;
	int32_t pid;
	uint32_t pad1;
	uint64_t flags;
	uint64_t server_flags;		/* the server's: kept and given back by the kernel */
	uint32_t uid, gid;
	uint64_t reserved[2];
};

/* What a request is, in memory that the kernel writes and shows to the server. */
struct ublk_desc {
	uint32_t op_flags;		/* UBLK_OP_ in the low byte, UBLK_RQ_ */
	uint32_t sectors;
	uint64_t sector;
	uint64_t addr;
};

#define UBLK_OP_MASK		0xffu
#define UBLK_OP_READ		0u
#define UBLK_OP_WRITE		1u
#define UBLK_OP_FLUSH		2u
#define UBLK_OP_DISCARD		3u
#define UBLK_OP_WRITE_ZEROES	5u
#define UBLK_RQ_FUA		(1u << 13)
#define UBLK_RQ_NOUNMAP		(1u << 15)

#define UBLK_ATTR_READ_ONLY	1u
#define UBLK_ATTR_CACHE		4u	/* has to be flushed */
#define UBLK_ATTR_FUA		8u

#define UBLK_PARAM_BASIC	1u
#define UBLK_PARAM_DISCARD	2u

struct ublk_params {
	uint32_t len;
	uint32_t types;			/* UBLK_PARAM_ */
	struct {
		uint32_t attrs;		/* UBLK_ATTR_ */
		uint8_t logical_shift;
		uint8_t physical_shift;
		uint8_t io_opt_shift;
		uint8_t io_min_shift;
		uint32_t max_sectors;
		uint32_t chunk_sectors;
		uint64_t sectors;
		uint64_t virt_boundary;
	} basic;
	struct {
		uint32_t alignment;
		uint32_t granularity;
		uint32_t max_sectors;
		uint32_t max_zeroes_sectors;
		uint16_t max_segments;
		uint16_t reserved;
	} discard;
};

_Static_assert(sizeof(struct ublk_control) == 32, "struct ublksrv_ctrl_cmd");
_Static_assert(sizeof(struct ublk_io) == UBLK_COMMAND_SIZE, "struct ublksrv_io_cmd");
_Static_assert(sizeof(struct ublk_info) == 64, "struct ublksrv_ctrl_dev_info");
_Static_assert(sizeof(struct ublk_desc) == 24, "struct ublksrv_io_desc");

#endif
