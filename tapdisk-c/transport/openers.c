/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/openers.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/attribute.h"

/*
 * The entry of dir whose file says text; empty if there is none. With an entry of
 * 255 bytes, as file systems have them, a path fits.
 */
static void find_saying(const char *dir, const char *file, const char *text,
			char *entry, size_t size)
{
	DIR *d = opendir(dir);
	const struct dirent *e;
	char path[512], line[512];

	*entry = 0;
	while (d && !*entry && (e = readdir(d))) {
		int n = snprintf(path, sizeof(path), "%s/%s/%s", dir, e->d_name,
				 file);

		if (n > 0 && (size_t)n < sizeof(path) &&
		    !attribute_line(path, line, sizeof(line)) && !strcmp(line, text))
			snprintf(entry, size, "%s", e->d_name);
	}
	if (d)
		closedir(d);
}

/* blkback opens a device by its number, without a claim. */
static void find_backend(dev_t dev, char *who, size_t size)
{
	char number[32], name[256];

	snprintf(number, sizeof(number), "%x:%x", major(dev), minor(dev));
	find_saying("/sys/bus/xen-backend/devices", "physical_device", number,
		    name, sizeof(name));
	if (*name)
		snprintf(who, size, "a guest (%s)", name);
}

static void find_loop(const char *node, char *who, size_t size)
{
	char name[256];

	find_saying("/sys/block", "loop/backing_file", node, name, sizeof(name));
	if (*name)
		snprintf(who, size, "/dev/%s", name);
}

static bool has_open(const char *pid, const char *node)
{
	char path[64], target[64];
	const struct dirent *e;
	bool found = false;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
	d = opendir(path);
	while (d && !found && (e = readdir(d))) {
		ssize_t n = readlinkat(dirfd(d), e->d_name, target,
				       sizeof(target) - 1);

		if (n <= 0)
			continue;
		target[n] = 0;
		found = !strcmp(target, node);
	}
	if (d)
		closedir(d);
	return found;
}

static void find_process(const char *node, char *who, size_t size)
{
	DIR *d = opendir("/proc");
	const struct dirent *e;
	char path[64], name[64];

	while (d && !*who && (e = readdir(d))) {
		if (!isdigit((unsigned char)*e->d_name) ||
		    atoi(e->d_name) == (int)getpid() || !has_open(e->d_name, node))
			continue;
		snprintf(path, sizeof(path), "/proc/%.20s/comm", e->d_name);
		if (attribute_line(path, name, sizeof(name)))
			*name = 0;
		snprintf(who, size, "%s, pid %d", name, atoi(e->d_name));
	}
	if (d)
		closedir(d);
}

int openers_check(const char *name, const char *device, struct error *err)
{
	char node[64], who[320] = "";
	struct stat st;
	int fd;

	snprintf(node, sizeof(node), "/dev/%s", name);
	/* While it is claimed nobody else can claim it. */
	fd = open(node, O_RDONLY | O_EXCL | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return errno != EBUSY ? 0 :
		       error_set(err, -EBUSY, "%s is in use: unmount it first, or take away what is on top of it",
				 device);
	if (!fstat(fd, &st) && S_ISBLK(st.st_mode)) {
		find_backend(st.st_rdev, who, sizeof(who));
		if (!*who)
			find_loop(node, who, sizeof(who));
		if (!*who)
			find_process(node, who, sizeof(who));
	}
	close(fd);
	if (!*who)
		return 0;
	return error_set(err, -EBUSY, "%s is in use by %s: detach it from the guest or unmount it first",
			 device, who);
}
