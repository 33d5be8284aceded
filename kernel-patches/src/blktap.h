/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * blktap: block devices served by a user-space process.
 *
 * /dev/xen/blktap-2/control	allocates and frees minors
 * /dev/xen/blktap-2/blktapN	the ring of minor N, one server at a time
 * /dev/xen/blktap-2/tapdevN	the gendisk, while a device exists
 *
 * Life of a minor: BLKTAP_IOC_ALLOC; the server opens blktapN, SETUP, mmap,
 * CREATE_DEVICE, then ENTER in a loop with poll(); REMOVE_DEVICE; close;
 * BLKTAP_IOC_FREE. When the server closes the ring while a device exists, its
 * requests are held; the next server does SETUP and RESUME_DEVICE and gets
 * them again. BLKTAP_IOC_FREE of a minor with no server fails what is held and
 * removes the device. If no server has resumed it after dead_timeout seconds (sysfs;
 * 0: never) what is held fails with EIO, and all that comes does until one has.
 *
 * Structs are extended at the end: the caller sets size to what it knows,
 * the kernel treats what it does not send as zero, and refuses (-E2BIG) bytes
 * beyond its own that are not zero. The size in the ioctl's code is ignored, so
 * that a longer struct is still the same ioctl. Reserved fields are zero, in
 * completions too.
 *
 * Opening control or a ring needs CAP_SYS_ADMIN (-EPERM); a ring that is open
 * is -EBUSY. Every ioctl may fail with -EINVAL (a field out of its range, or
 * not in this order), -EFAULT, -EINTR (killed while it waited), -ENOTTY.
 */
#ifndef _UAPI_LINUX_BLKTAP_H
#define _UAPI_LINUX_BLKTAP_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define BLKTAP_ABI_VERSION	3
#define BLKTAP_MAX_MINORS	4096
#define BLKTAP_SECTOR_SHIFT	9

#define BLKTAP_CONTROL_PATH	"/dev/xen/blktap-2/control"
#define BLKTAP_RING_PATH	"/dev/xen/blktap-2/blktap%d"
#define BLKTAP_DEVICE_PATH	"/dev/xen/blktap-2/tapdev%d"

/* ioctls of the control device */

/*
 * -EPROTONOSUPPORT: another version, the driver's is returned. -EBUSY: the
 * minor wanted is taken. -ENOSPC: all minors are.
 */
struct blktap_alloc {
	__u32 size;
	__u32 version;		/* in: BLKTAP_ABI_VERSION; out: the driver's */
	__s32 minor;		/* in: wanted, or -1; out: given */
	__u32 flags;		/* 0 */
};

#define BLKTAP_FREE_FORCE	(1u << 0)	/* a server that has the ring gets -ENODEV */

/*
 * -ENODEV: no such minor. -EBUSY: a server has the ring open. Waits for what the
 * kernel does in files by a server's word; -EINTR (killed): may be repeated.
 */
struct blktap_free {
	__u32 size;
	__s32 minor;
	__u32 flags;		/* BLKTAP_FREE_* */
	__u32 reserved;
};

#define BLKTAP_IOC_ALLOC	_IOWR('t', 0x40, struct blktap_alloc)
#define BLKTAP_IOC_FREE		_IOW('t', 0x41, struct blktap_free)

/* ioctls of a ring */

/* features: asked for in SETUP, the granted ones are returned */
#define BLKTAP_F_COPY		(1ull << 0)	/* data copied to and from the registered buffer */
#define BLKTAP_F_REMAP		(1ull << 1)	/* files and extents: the kernel does the I/O */

/*
 * -EPROTONOSUPPORT: another version. -EOPNOTSUPP: no data mode both sides know.
 * -ERANGE: the minor has a device, made with the entries and max_io_bytes that
 * are returned; ask for those. -EBUSY: done already on this open.
 * Only the process (address space) that did SETUP may ENTER.
 */
struct blktap_setup {
	__u32 size;
	__u32 version;		/* BLKTAP_ABI_VERSION */
	__u64 features;		/* in: wanted; out: granted */
	__u32 nr_queues;	/* in: wanted; out: given, at least 1 */
	__u32 entries;		/* per queue, a power of two up to 256; out: given */
	__u32 max_io_bytes;	/* of one request, a multiple of 4096 up to 1 MiB */
	__u32 reserved;
	__u64 buf_addr;		/* the server's buffer, page-aligned, not of a file on a disk */
	__u64 buf_len;		/* at least nr_queues * entries * max_io_bytes */
	/* out: for mmap(MAP_SHARED) of a queue's rings at queue * ring_bytes */
	__u64 ring_bytes;
	__u32 sq_off;		/* of struct blktap_sqe[entries] */
	__u32 cq_off;		/* of struct blktap_cqe[entries] */
};

#define BLKTAP_DEV_RDONLY	(1u << 0)
#define BLKTAP_DEV_FLUSH	(1u << 1)	/* has a volatile cache */
#define BLKTAP_DEV_FUA		(1u << 2)	/* needs BLKTAP_DEV_FLUSH */
#define BLKTAP_DEV_DISCARD	(1u << 3)
#define BLKTAP_DEV_ZEROES	(1u << 4)

/*
 * CREATE_DEVICE: -EEXIST: the minor has a device.
 * RESUME_DEVICE: -ENODEV: it has none. The block sizes and RDONLY are those of
 * the device, sectors not less, and no other flag is missing (-EINVAL).
 * SET_DEVICE: the same, but RDONLY may change. Other changes are ignored.
 */
struct blktap_device_params {
	__u32 size;
	__u32 flags;
	__u64 sectors;			/* of 512 bytes */
	__u32 logical_block_size;	/* bytes: 512 to 4096 */
	__u32 physical_block_size;	/* a power of two, not less than the logical */
	__u32 io_min;			/* bytes, 0: not said */
	__u32 io_opt;			/* bytes, 0: not said; 16 MiB if more */
	/* with BLKTAP_DEV_DISCARD */
	__u32 discard_granularity;	/* bytes: a power of two, not less than the logical block */
	__u32 discard_max;		/* sectors of one: at least that, and a physical block */
};

/*
 * Takes what is in the completion ring, then fills the submission ring. A
 * completion that does not answer a request this server holds is counted in
 * refused, logged and dropped: the request it meant still waits for an answer.
 * -ENODEV: no live device. -EPERM: not the process that did SETUP.
 * -EPROTO: sq_head or cq_tail is further from the kernel's index than the ring
 * is long; nothing was done. poll() reports EPOLLIN while requests wait and the
 * submission ring has room: take what is in it before you wait.
 */
struct blktap_enter {
	__u32 size;
	__u32 queue;
	__u32 flags;		/* BLKTAP_ENTER_* */
	__u32 completed;	/* out: completions consumed */
	__u32 submitted;	/* out: submissions added to the ring */
	__u32 refused;		/* out: of those completed, the ones that were refused */
};

#define BLKTAP_ENTER_NOFETCH	(1u << 0)	/* take completions, give no new requests (pause) */

/*
 * -EBUSY: the device is open, or is being opened or closed at this moment.
 * -ENODEV: there is none.
 */
struct blktap_remove {
	__u32 size;
	__u32 flags;		/* BLKTAP_REMOVE_* */
};

#define BLKTAP_REMOVE_FORCE	(1u << 0)	/* although open: what is in flight gets EIO */

#define BLKTAP_IOC_SETUP	 _IOWR('t', 0x50, struct blktap_setup)
#define BLKTAP_IOC_CREATE_DEVICE _IOW('t', 0x51, struct blktap_device_params)
#define BLKTAP_IOC_RESUME_DEVICE _IOW('t', 0x52, struct blktap_device_params)
#define BLKTAP_IOC_REMOVE_DEVICE _IOW('t', 0x53, struct blktap_remove)
#define BLKTAP_IOC_ENTER	 _IOWR('t', 0x54, struct blktap_enter)
#define BLKTAP_IOC_SET_DEVICE	 _IOW('t', 0x55, struct blktap_device_params)

/*
 * Files and extents, with BLKTAP_F_REMAP: the kernel serves a read or write that
 * lies inside one extent by itself, on the request's own pages, at that extent's
 * file and offset. All others go to the server, and so do those whose extent
 * failed them (BLKTAP_RQ_DIRECT_FAILED), or whose pages don't fit the file's
 * direct I/O (BLKTAP_RQ_UNFIT). Extents are a cache: the kernel may forget one at any time.
 * Files and extents are the server's: they go when it closes the ring, and the
 * file with the last I/O on it. So a lock that belongs to the open file holds
 * until then, and RESUME_DEVICE waits for that I/O.
 *
 * Whoever changes what an extent stands for withdraws it before, and waits until
 * it is drained if its place in the file gets another use.
 */
#define BLKTAP_MAX_FILES	64
#define BLKTAP_MAX_EXTENTS	(1u << 18)	/* of a minor */
#define BLKTAP_EXTENT_BATCH	1024		/* of one ADD_EXTENTS */

#define BLKTAP_FILE_WRITE	(1u << 0)

/*
 * -EBADF: not open for what flags ask for. -EINVAL: not O_DIRECT, or O_APPEND, or
 * neither a regular file nor a block device, or on the minor's own disk.
 * -EOPNOTSUPP: no block device is under it, or, for writing, one that needs its pages
 * unchanged until it is done. -ETXTBSY: a swap file. -EEXIST: the number is taken.
 */
struct blktap_file {
	__u32 size;
	__s32 fd;
	__u32 flags;		/* BLKTAP_FILE_* */
	__u32 number;		/* below BLKTAP_MAX_FILES: extents name it by that */
};

/* Withdraws its extents. I/O on them may still run: see WITHDRAW. -ENOENT. */
struct blktap_unfile {
	__u32 size;
	__u32 number;
};

#define BLKTAP_EXTENT_WRITE	(1u << 0)	/* writes too */

struct blktap_extent {
	__u64 sector;
	__u64 offset;		/* in the file: bytes, a multiple of 512 */
	__u32 nr_sectors;
	__u16 file;
	__u16 flags;		/* BLKTAP_EXTENT_* */
};

/*
 * Adds them in their order up to the first that can't be. -EEXIST: it overlaps
 * another. -ENOENT: no such file. -EBADF: the file is not for writing.
 * -ENOSPC: there are too many.
 */
struct blktap_extents {
	__u32 size;
	__u32 nr;		/* up to BLKTAP_EXTENT_BATCH */
	__u64 addr;		/* of struct blktap_extent[nr] */
	__u32 added;		/* out, after an error too */
	__u32 reserved;
};

#define BLKTAP_WITHDRAW_WAIT	(1u << 0)	/* until it is drained; -EINTR if killed */

/*
 * Extents, or parts of them, in a range of sectors: no new I/O on them once it
 * returns. It is drained when the I/O that was running has ended: running says
 * how many there were of this and earlier withdrawals, and poll() reports
 * EPOLLOUT while there are none (EPOLLPRI would be lost on io_uring).
 */
struct blktap_withdraw {
	__u32 size;
	__u32 flags;		/* BLKTAP_WITHDRAW_* */
	__u64 sector;
	__u64 nr_sectors;	/* what is beyond the device is ignored */
	__u32 running;		/* out */
	__u32 reserved;
};

#define BLKTAP_IOC_ADD_FILE	 _IOW('t', 0x60, struct blktap_file)
#define BLKTAP_IOC_REMOVE_FILE	 _IOW('t', 0x61, struct blktap_unfile)
#define BLKTAP_IOC_ADD_EXTENTS	 _IOWR('t', 0x62, struct blktap_extents)
#define BLKTAP_IOC_WITHDRAW	 _IOWR('t', 0x63, struct blktap_withdraw)

/* The start of a queue's ring memory. Counters are free-running. */
struct blktap_ring {
	__u32 sq_head;		/* the server's: submissions taken */
	__u32 sq_tail;		/* the kernel's: submissions given */
	__u32 cq_head;		/* the kernel's: completions taken */
	__u32 cq_tail;		/* the server's: completions given */
	__u32 entries;
	__u32 reserved[11];
};

#define BLKTAP_OP_READ		0
#define BLKTAP_OP_WRITE		1
#define BLKTAP_OP_FLUSH		2
#define BLKTAP_OP_DISCARD	3
#define BLKTAP_OP_WRITE_ZEROES	4

#define BLKTAP_RQ_FUA		(1u << 0)
#define BLKTAP_RQ_NOUNMAP	(1u << 1)
/* the kernel tried it in a file: an error, or less than all */
#define BLKTAP_RQ_DIRECT_FAILED	(1u << 2)
/* an extent, or a REMAP, has a place for it, but the file can't take it there now */
#define BLKTAP_RQ_UNFIT		(1u << 3)

struct blktap_sqe {
	__u64 id;		/* never reused while the module is loaded */
	__u64 sector;
	__u64 buf_offset;	/* in the registered buffer; 0 for operations without data */
	__u32 nr_sectors;
	__u16 tag;		/* below entries */
	__u16 queue;
	__u8 op;
	__u8 reserved0[3];
	__u32 flags;
	__u64 reserved1;
};

#define BLKTAP_CQE_DONE		0	/* result is 0 or -errno */
#define BLKTAP_CQE_REMAP	1	/* with BLKTAP_F_REMAP, result 0: do it in file at offset */
#define BLKTAP_CQE_REQUEUE	2	/* result 0: give it to me again later, with a new id */

struct blktap_cqe {
	__u64 id;
	__s32 result;
	__u16 tag;
	__u8 code;
	__u8 reserved0;
	__u64 offset;		/* REMAP: bytes, a multiple of 512; else 0 */
	__u32 file;		/* REMAP: one registered for it; else 0 */
	__u32 reserved1;
	__u64 reserved2[4];
};

#endif
