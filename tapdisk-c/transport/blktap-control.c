/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/blktap-control.h"

#include <blktap.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "common/attribute.h"
#include "transport/gendisk.h"

/* udev, or the kernel's own thread, makes the node a moment after the module is there. */
#define NODE_TRIES	100
#define NODE_WAIT_NS	20000000

static int control_open(struct error *err)
{
	int fd = open(BLKTAP_CONTROL_PATH, O_RDWR | O_CLOEXEC);

	if (fd >= 0)
		return fd;
	if (errno == ENOENT || errno == ENXIO || errno == ENODEV)
		return error_set(err, -errno, "%s: the blktap driver is not "
				 "loaded; `modprobe blktap`",
				 BLKTAP_CONTROL_PATH);
	return error_set(err, -errno, "%s: %s", BLKTAP_CONTROL_PATH,
			 strerror(errno));
}

static int version_error(unsigned int version, int rc, struct error *err)
{
	return error_set(err, rc, "the blktap driver has interface version %u, "
			 "tap-ctl %u; load the driver of this release", version,
			 BLKTAP_ABI_VERSION);
}

int blktap_allocate(int *minor, struct error *err)
{
	struct blktap_alloc alloc = {
		.size = sizeof(alloc),
		.version = BLKTAP_ABI_VERSION,
		.minor = *minor,
	};
	int fd = control_open(err);
	int rc = 0;

	if (fd < 0)
		return fd;
	if (ioctl(fd, BLKTAP_IOC_ALLOC, &alloc) < 0) {
		rc = -errno;
		if (alloc.version != BLKTAP_ABI_VERSION)
			version_error(alloc.version, rc, err);
		else
			error_set(err, rc, "no minor to be had from the blktap "
				  "driver: %s", strerror(errno));
	}
	close(fd);
	if (!rc)
		*minor = alloc.minor;
	return rc;
}

int blktap_free(int minor, unsigned int flags, struct error *err)
{
	struct blktap_free arg = {
		.size = sizeof(arg), .minor = minor, .flags = flags,
	};
	int fd = control_open(err);
	int rc = 0;

	if (fd < 0)
		return fd;
	if (ioctl(fd, BLKTAP_IOC_FREE, &arg) < 0)
		rc = error_set(err, -errno, "minor %d: %s", minor, strerror(errno));
	close(fd);
	return rc;
}

/* Asked for a version that there is not, the driver gives none but tells its own. */
static int check_version(struct error *err)
{
	struct blktap_alloc alloc = { .size = sizeof(alloc), .minor = -1 };
	int fd = control_open(err);
	int rc;

	if (fd < 0)
		return fd;
	rc = ioctl(fd, BLKTAP_IOC_ALLOC, &alloc) < 0 ? -errno : -EPROTO;
	close(fd);
	if (rc != -EPROTONOSUPPORT)
		return error_set(err, rc, "%s: is not the blktap driver's: %s",
				 BLKTAP_CONTROL_PATH, strerror(-rc));
	if (alloc.version != BLKTAP_ABI_VERSION)
		return version_error(alloc.version, rc, err);
	return 0;
}

int blktap_check(struct error *err)
{
	const struct timespec pause = { .tv_nsec = NODE_WAIT_NS };
	int rc;

	if (!access(BLKTAP_CONTROL_PATH, F_OK))
		return check_version(err);
	rc = module_load("blktap", NULL, err);
	if (rc) {
		error_prefix(err, "the blktap driver can't be loaded");
		return rc;
	}
	for (int i = 0; i < NODE_TRIES && access(BLKTAP_CONTROL_PATH, F_OK); i++)
		nanosleep(&pause, NULL);
	return check_version(err);
}

static void sysfs_path(char *path, size_t size, int minor, const char *name)
{
	snprintf(path, size, BLKTAP_SYSFS_CLASS "/blktap%d/%s", minor, name);
}

uint64_t blktap_get(int minor, const char *name)
{
	uint64_t value;
	char path[64];

	sysfs_path(path, sizeof(path), minor, name);
	return attribute_number(path, &value) ? 0 : value;
}

uint64_t blktap_id(int minor)
{
	return blktap_get(minor, "id");
}

int blktap_set(int minor, const char *name, unsigned int value)
{
	char path[64];

	sysfs_path(path, sizeof(path), minor, name);
	return attribute_set(path, value);
}

bool blktap_has(int minor)
{
	char path[64];

	snprintf(path, sizeof(path), BLKTAP_SYSFS_CLASS "/blktap%d", minor);
	return !access(path, F_OK);
}

const struct gendisk_kind blktap_gendisk = {
	.name	= "blktap",
	.check	= blktap_check,
};
