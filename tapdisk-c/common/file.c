/* SPDX-License-Identifier: LGPL-2.1-only */
#include "common/file.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#define SMALL_BLOCK 512u
#define LARGE_BLOCK 4096u

int file_read_all(int fd, void *buf, size_t len, uint64_t offset)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pread(fd, (char *)buf + done, len - done,
				  (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		/* A medium that can't be read is no end of a file. */
		if (n < 0)
			return errno == ENODATA ? -EIO : -errno;
		if (!n)
			return -ENODATA;
		done += (size_t)n;
	}
	return 0;
}

int file_write_all(int fd, const void *buf, size_t len, uint64_t offset)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pwrite(fd, (const char *)buf + done, len - done,
				   (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

int file_direct_block(int fd, uint32_t *block)
{
	void *buf;
	ssize_t got;
	int rc = 0;

	*block = SMALL_BLOCK;
	if (posix_memalign(&buf, LARGE_BLOCK, SMALL_BLOCK))
		return -ENOMEM;
	got = pread(fd, buf, SMALL_BLOCK, SMALL_BLOCK);
	if (got < 0 && errno == EINVAL)
		*block = LARGE_BLOCK;
	else if (got < 0)
		rc = -errno;
	free(buf);
	return rc;
}
