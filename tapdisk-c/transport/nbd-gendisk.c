/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/nbd-gendisk.h"

#include <blktap.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/attribute.h"

/* The kernel removes a device in a thread of its own. */
#define GONE_TRIES	100
#define GONE_WAIT_NS	10000000

void nbd_gendisk_of(struct nbd_gendisk *disk, int minor)
{
	disk->link.index = (uint32_t)(NBD_FIRST_INDEX + minor);
	disk->link.backend = disk->backend;
	snprintf(disk->name, sizeof(disk->name), "nbd%u", disk->link.index);
	snprintf(disk->backend, sizeof(disk->backend), "xenblk-tapdev%d", minor);
}

static void attribute_path(const struct nbd_gendisk *disk, const char *attribute,
			   char *path, size_t size)
{
	snprintf(path, size, "/sys/block/%s/%s", disk->name, attribute);
}

bool nbd_gendisk_ours(const struct nbd_gendisk *disk)
{
	char path[96], text[64];

	attribute_path(disk, "backend", path, sizeof(path));
	return !attribute_line(path, text, sizeof(text)) &&
	       !strcmp(text, disk->backend);
}

bool nbd_gendisk_connected(const struct nbd_gendisk *disk)
{
	char path[96];

	attribute_path(disk, "pid", path, sizeof(path));
	return !access(path, F_OK);
}

int nbd_gendisk_read(const struct nbd_gendisk *disk, const char *attribute,
		     uint64_t *value)
{
	char path[96];

	attribute_path(disk, attribute, path, sizeof(path));
	return attribute_number(path, value);
}

int nbd_gendisk_write(const struct nbd_gendisk *disk, const char *attribute,
		      uint64_t value)
{
	char path[96];

	attribute_path(disk, attribute, path, sizeof(path));
	return attribute_set(path, value);
}

static bool is_there(const struct nbd_gendisk *disk)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/%s", disk->name);
	return !access(path, F_OK);
}

/*
 * Without partitions: the kernel would look for a guest's at each first open. Who
 * needs them on other nbd devices loads the module himself.
 */
static int nbd_check(struct error *err)
{
	int rc;

	if (!access("/sys/module/nbd", F_OK))
		return 0;
	rc = module_load("nbd", "max_part=0", err);
	if (rc)
		error_prefix(err, "the kernel's nbd client can't be loaded");
	return rc;
}

static bool nbd_taken(int minor)
{
	struct nbd_gendisk disk;

	nbd_gendisk_of(&disk, minor);
	return is_there(&disk);
}

/*
 * The kernel tells nobody how often a device is open, but it can be told to
 * disconnect it when it is closed for the last time. So we close it.
 */
static int nbd_vacate(int minor, struct error *err)
{
	struct nbd_gendisk disk;
	char path[32];
	int fd, rc;

	nbd_gendisk_of(&disk, minor);
	if (!nbd_gendisk_ours(&disk))
		return 0;
	rc = nbd_link_end_on_close(&disk.link, true, err);
	if (rc)
		return nbd_gendisk_ours(&disk) ? rc : 0;
	snprintf(path, sizeof(path), "/dev/%s", disk.name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	rc = fd < 0 ? -errno : 0;
	if (fd >= 0)
		close(fd);
	if (!nbd_gendisk_ours(&disk))
		return 0;
	if (nbd_link_end_on_close(&disk.link, false, err) &&
	    !nbd_gendisk_ours(&disk))
		return 0;
	if (rc)
		return error_set(err, rc, "%s: %s", path, strerror(-rc));
	return error_set(err, -EBUSY, BLKTAP_DEVICE_PATH " is in use: detach it from the guest or unmount it first",
			 minor);
}

static int nbd_remove(int minor, struct error *err)
{
	const struct timespec pause = { .tv_nsec = GONE_WAIT_NS };
	struct nbd_gendisk disk;
	int rc = 0;

	nbd_gendisk_of(&disk, minor);
	if (nbd_gendisk_ours(&disk))
		rc = nbd_link_disconnect(&disk.link, err);
	if (rc && nbd_gendisk_ours(&disk))
		return rc;
	/* One that is still open goes when it is closed; its minor is not given before. */
	for (int i = 0; i < GONE_TRIES && is_there(&disk); i++)
		nanosleep(&pause, NULL);
	return 0;
}

const struct gendisk_kind nbd_gendisk = {
	.name	= "nbd",
	.check	= nbd_check,
	.vacate	= nbd_vacate,
	.remove	= nbd_remove,
	.taken	= nbd_taken,
};
