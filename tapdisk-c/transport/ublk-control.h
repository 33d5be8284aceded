/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Commands of /dev/ublk-control, and writes to sysfs, in an io_uring of their
 * own, since they need entries of 128 bytes. The kernel runs them in a thread of
 * its own: those that wait for tapdisk to answer requests are begun, and their
 * end is seen when fd is readable.
 */
#ifndef XENBLK_UBLK_CONTROL_H
#define XENBLK_UBLK_CONTROL_H

#include <liburing.h>
#include <stdbool.h>

#include "common/error.h"
#include "transport/ublk-abi.h"

struct ublk_device {
	struct io_uring ring;
	bool open;
	int minor;			/* the device's number, too */
	int control;			/* /dev/ublk-control */
	unsigned int pending;		/* begun and not ended */
	int file;			/* of the write that has begun, or -1 */
	struct ublk_control cmd;	/* that has begun */
};

/*
 * ublk_device_close() in either case. -ENODEV and the like with the remedy if
 * the kernel has no ublk.
 */
int ublk_device_open(struct ublk_device *device, int minor, struct error *err);
void ublk_device_close(struct ublk_device *device);

/* Runs a command of UBLK_CONTROL_*() to its end; nothing is pending. 0 or -errno. */
int ublk_device_call(struct ublk_device *device, uint32_t op, void *addr,
		     uint16_t len, uint64_t data);

/* Nothing is pending before either. */
int ublk_device_begin(struct ublk_device *device, uint32_t op, uint64_t data);
/* text lives until the end. */
int ublk_device_begin_write(struct ublk_device *device, const char *path,
			    const char *text);
/* True if what was begun has ended: *result is 0 or -errno. */
bool ublk_device_ended(struct ublk_device *device, int *result);

/*
 * 0, -ENODEV if there is none, or -EEXIST with a message if it is another
 * program's.
 */
int ublk_device_info(struct ublk_device *device, struct ublk_info *info,
		     struct error *err);

/* In server_flags: a device that tapdisk has made. */
#define UBLK_TAPDISK 0x6b6c626e6578ull

#endif
