/* SPDX-License-Identifier: LGPL-2.1-only */
#include "common/attribute.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int attribute_line(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, text, size - 1);
	if (n < 0)
		n = -errno;
	close(fd);
	if (n <= 0)
		return n ? (int)n : -ENODATA;
	text[n] = 0;
	text[strcspn(text, "\n")] = 0;
	return 0;
}

int attribute_number(const char *path, uint64_t *number)
{
	char text[64];
	int rc = attribute_line(path, text, sizeof(text));

	if (!rc && sscanf(text, "%" SCNu64, number) != 1)
		rc = -EPROTO;
	return rc;
}

int attribute_set(const char *path, uint64_t number)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int rc = 0;

	if (fd < 0)
		return -errno;
	/* In one call, as the kernel wants it. */
	if (dprintf(fd, "%" PRIu64, number) < 0)
		rc = -errno;
	close(fd);
	return rc;
}
