/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Whether the leaf's name is durable. While its directory isn't synced a power
 * loss may give the name back to another file: the old leaf after a snapshot,
 * whose rename may have been the last that a killed tapdisk did. So a flush
 * syncs the directory first, until that has succeeded once. It is tried when
 * the leaf gets its name and when it is opened, so that no flush has to, as a rule.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "drivers/vhd-disk.h"
#include "vhd/vhd-internal.h"

void vhd_name_open(struct vhd_disk *disk)
{
	const char *path = disk->leaf->path;
	char *dir = vhd_dir_of_file(path);
	int rc;

	if (dir)
		disk->unsynced_dir = open(dir, O_RDONLY | O_DIRECTORY |
					  O_CLOEXEC);
	if (disk->unsynced_dir < 0)
		log_warn("the directory of a leaf can't be synced path=%s err=%d",
			 path, errno);
	free(dir);
	rc = vhd_name_sync(disk);
	if (!rc)
		return;
	disk->lost = rc;
	log_error("the sync of a leaf's directory failed, flushes try it again path=%s err=%d",
		  path, -rc);
}

int vhd_name_sync(struct vhd_disk *disk)
{
	const struct vhd_image *parent;
	struct error err;

	if (disk->unsynced_dir < 0)
		return 0;
	/* EINVAL: the file system has nothing to sync. */
	if (fsync(disk->unsynced_dir) && errno != EINVAL)
		return -errno;
	close(disk->unsynced_dir);
	disk->unsynced_dir = -1;
	if (!disk->unmarked_parent)
		return 0;
	/* Later than the child: until then children.c finds the child itself. */
	parent = disk->chain->image[1];
	disk->unmarked_parent = false;
	if (vhd_mark_parent(parent->fd, parent->path, &err))
		log_warn("%s", err.text);
	return 0;
}
