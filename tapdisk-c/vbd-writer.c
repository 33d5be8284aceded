/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Which disk had an image open for writing last: an attribute of the file. The guest of a
 * disk that waits for its image may have gone on elsewhere, with the requests that wait here
 * given once more: they would come over what it has written since.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "vbd-internal.h"

#define WRITER_XATTR "user.xenblk.writer"
#define BOOT_ID "/proc/sys/kernel/random/boot_id"
#define NAME_SIZE 96

/* NULL: it is no file. log:BITMAP,TYPE:PATH */
static const char *path_of(const char *args)
{
	if (!strncmp(args, "log:", 4) && strchr(args, ','))
		args = strchr(args, ',') + 1;
	if (strncmp(args, "vhd:/", 5) && strncmp(args, "aio:/", 5) &&
	    strncmp(args, "raw:/", 5))
		return NULL;
	return args + 4;
}

/* Of this disk and no other one, on no other host: the same for each of its tapdisks. */
static int name_self(const struct vbd *vbd, char name[NAME_SIZE])
{
	int fd = open(BOOT_ID, O_RDONLY | O_CLOEXEC);
	char boot[37] = "";
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, boot, sizeof(boot) - 1);
	close(fd);
	if (n != (ssize_t)sizeof(boot) - 1)
		return -EIO;
	snprintf(name, NAME_SIZE, "%s %d %llu", boot, vbd->minor,
		 (unsigned long long)vbd->note.id);
	return 0;
}

void vbd_writer_sign(struct vbd *vbd, const char *args)
{
	const char *path = path_of(args);
	char name[NAME_SIZE];

	vbd->note.signed_it = false;
	if (!path || vbd->minor < 0 || vbd->readonly)
		return;
	/* Where that can't be, there being no attributes or no room, nobody is told. */
	vbd->note.signed_it = !name_self(vbd, name) &&
			      !setxattr(path, WRITER_XATTR, name, strlen(name), 0);
	if (!vbd->note.signed_it)
		(void)removexattr(path, WRITER_XATTR);
}

int vbd_writer_check(const struct vbd *vbd, const char *args, struct error *err)
{
	char name[NAME_SIZE], found[NAME_SIZE];
	const char *path = path_of(args);
	ssize_t n;

	if (!vbd->note.signed_it || !path || vbd->readonly || name_self(vbd, name))
		return 0;
	n = getxattr(path, WRITER_XATTR, found, sizeof(found));
	if (n <= 0 || ((size_t)n == strlen(name) && !memcmp(found, name, (size_t)n)))
		return 0;
	return error_set(err, -ESTALE, "%s: another disk has written to it since; what waits here would come over that: `tap-ctl destroy -f -p %d -m %d` drops it, `tap-ctl unpause -p %d -m %d` goes on all the same",
			 path, getpid(), vbd->minor, getpid(), vbd->minor);
}
