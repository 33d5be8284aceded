/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/ublk-control.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#define ENTRIES 4u

static int no_ublk(int rc, struct error *err)
{
	return error_set(err, rc, "%s: %s: this kernel has no ublk, or its module is not loaded: `modprobe ublk_drv`. Debian 13 has it, Debian 12 has not",
			 UBLK_CONTROL_PATH, strerror(-rc));
}

int ublk_device_open(struct ublk_device *device, int minor, struct error *err)
{
	struct io_uring_params params = { .flags = IORING_SETUP_SQE128 };
	int rc;

	*device = (struct ublk_device){
		.minor = minor, .control = -1, .file = -1,
	};
	device->control = open(UBLK_CONTROL_PATH, O_RDWR | O_CLOEXEC);
	if (device->control < 0 && (errno == ENOENT || errno == ENXIO ||
				    errno == ENODEV))
		return no_ublk(-ENODEV, err);
	if (device->control < 0)
		return error_set(err, -errno, "%s: %s", UBLK_CONTROL_PATH,
				 strerror(errno));
	rc = io_uring_queue_init_params(ENTRIES, &device->ring, &params);
	if (rc)
		return error_set(err, rc, "ublk needs io_uring: %s; allow it, or set another transport",
				 strerror(-rc));
	device->open = true;
	return 0;
}

void ublk_device_close(struct ublk_device *device)
{
	if (device->open)
		io_uring_queue_exit(&device->ring);
	if (device->control >= 0)
		close(device->control);
	if (device->file >= 0)
		close(device->file);
	device->open = false;
	device->control = -1;
	device->file = -1;
	device->pending = 0;
}

static int submit(struct ublk_device *device)
{
	int rc;

	do
		rc = io_uring_submit(&device->ring);
	while (rc == -EINTR);
	if (rc < 0)
		return rc;
	device->pending++;
	return 0;
}

static int begin(struct ublk_device *device, uint32_t op)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&device->ring);

	if (!sqe)
		return -EBUSY;
	memset(sqe, 0, 2 * sizeof(*sqe));
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = device->control;
	sqe->cmd_op = op;
	memcpy((uint8_t *)sqe + offsetof(struct io_uring_sqe, addr3),
	       &device->cmd, sizeof(device->cmd));
	return submit(device);
}

bool ublk_device_ended(struct ublk_device *device, int *result)
{
	struct io_uring_cqe *cqe;

	if (!device->pending || io_uring_peek_cqe(&device->ring, &cqe))
		return false;
	*result = cqe->res < 0 ? cqe->res : 0;
	io_uring_cqe_seen(&device->ring, cqe);
	device->pending--;
	if (device->file >= 0)
		close(device->file);
	device->file = -1;
	return true;
}

int ublk_device_call(struct ublk_device *device, uint32_t op, void *addr,
		     uint16_t len, uint64_t data)
{
	struct io_uring_cqe *cqe;
	int rc;

	device->cmd = (struct ublk_control){
		.device = (uint32_t)device->minor, .queue = UINT16_MAX,
		.addr = (uint64_t)(uintptr_t)addr, .len = len, .data = data,
	};
	rc = begin(device, op);
	while (!rc && !ublk_device_ended(device, &rc))
		/* It has begun: its end has to be seen, whatever signals come. */
		io_uring_wait_cqe(&device->ring, &cqe);
	return rc;
}

int ublk_device_begin(struct ublk_device *device, uint32_t op, uint64_t data)
{
	device->cmd = (struct ublk_control){
		.device = (uint32_t)device->minor, .queue = UINT16_MAX,
		.data = data,
	};
	return begin(device, op);
}

int ublk_device_begin_write(struct ublk_device *device, const char *path,
			    const char *text)
{
	struct io_uring_sqe *sqe;
	int rc;

	device->file = open(path, O_WRONLY | O_CLOEXEC);
	if (device->file < 0)
		return -errno;
	sqe = io_uring_get_sqe(&device->ring);
	if (!sqe) {
		rc = -EBUSY;
	} else {
		memset(sqe, 0, 2 * sizeof(*sqe));
		io_uring_prep_write(sqe, device->file, text,
				    (unsigned int)strlen(text), 0);
		/* It may wait until requests are answered. */
		io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
		rc = submit(device);
	}
	if (rc) {
		close(device->file);
		device->file = -1;
	}
	return rc;
}

int ublk_device_info(struct ublk_device *device, struct ublk_info *info,
		     struct error *err)
{
	int rc;

	memset(info, 0, sizeof(*info));
	rc = ublk_device_call(device, UBLK_CONTROL_READ(UBLK_GET_INFO), info,
			      sizeof(*info), 0);
	if (rc == -ENODEV)
		return error_set(err, rc, "minor %d: has no ublk device",
				 device->minor);
	if (rc)
		return error_set(err, rc, "minor %d: ublk does not tell of its device: %s",
				 device->minor, strerror(-rc));
	if (info->server_flags != UBLK_TAPDISK)
		return error_set(err, -EEXIST, "/dev/" UBLK_DISK_NAME " is another program's; free minor %d and take another one",
				 device->minor, device->minor);
	return 0;
}
