/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/minor.h"

#include <blktap.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"

/* A tapdisk that was killed lets go of its ring a moment after. */
#define FREE_TRIES	100
#define FREE_WAIT_NS	20000000

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

int minor_allocate(int *minor, struct error *err)
{
	struct blktap_alloc alloc = {
		.size = sizeof(alloc),
		.version = BLKTAP_ABI_VERSION,
		.minor = -1,
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

static int free_minor(int minor, unsigned int flags, struct error *err)
{
	const struct timespec pause = { .tv_nsec = FREE_WAIT_NS };
	struct blktap_free arg = {
		.size = sizeof(arg), .minor = minor, .flags = flags,
	};
	int fd = control_open(err);
	int rc = 0;

	if (fd < 0)
		return fd;
	for (int i = 0; i < FREE_TRIES; i++) {
		rc = ioctl(fd, BLKTAP_IOC_FREE, &arg) < 0 ? -errno : 0;
		if (rc != -EBUSY)
			break;
		nanosleep(&pause, NULL);
	}
	close(fd);
	if (rc == -EBUSY)
		return error_set(err, rc, "minor %d: a tapdisk has it; detach it "
				 "first", minor);
	if (rc)
		return error_set(err, rc, "minor %d: %s", minor, strerror(-rc));
	return 0;
}

int minor_free(int minor, struct error *err)
{
	return free_minor(minor, 0, err);
}

int minor_free_now(int minor, struct error *err)
{
	return free_minor(minor, BLKTAP_FREE_FORCE, err);
}

static void sysfs_path(char *path, size_t size, int minor, const char *name)
{
	snprintf(path, size, "/sys/class/blktap2/blktap%d/%s", minor, name);
}

uint64_t minor_id(int minor)
{
	unsigned long long id = 0;
	char path[64];
	FILE *f;

	sysfs_path(path, sizeof(path), minor, "id");
	f = fopen(path, "re");
	if (f && fscanf(f, "%llu", &id) != 1)
		id = 0;
	if (f)
		fclose(f);
	return id;
}

static int sysfs_write(int minor, const char *name, unsigned int value)
{
	char path[64], text[16];
	int fd, n, rc = 0;

	sysfs_path(path, sizeof(path), minor, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = snprintf(text, sizeof(text), "%u", value);
	if (write(fd, text, (size_t)n) != n)
		rc = -errno;
	close(fd);
	return rc;
}

void minor_set_dead_timeout(int minor, unsigned int seconds)
{
	int rc = sysfs_write(minor, "dead_timeout", seconds);

	if (rc)
		log_warn("requests will wait for a tapdisk for ever minor=%d err=%d",
			 minor, -rc);
}

int minor_fail(int minor, struct error *err)
{
	int rc = sysfs_write(minor, "fail", 1);

	if (rc == -EBUSY)
		return error_set(err, rc, "minor %d: a tapdisk serves it, or it has no device",
				 minor);
	return rc ? error_set(err, rc, "minor %d: %s", minor, strerror(-rc)) : 0;
}

/* Asked for a version that there is not, the driver gives none but tells its own. */
int minor_check(struct error *err)
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
