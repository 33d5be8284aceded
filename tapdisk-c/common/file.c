/* SPDX-License-Identifier: LGPL-2.1-only */
#include "common/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
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

/* What the kernel says, from Linux 6.1 on, of files of local file systems; 0: nothing. */
static uint32_t direct_block_told(int fd)
{
#ifdef STATX_DIOALIGN
	struct statx st;

	if (!statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) &&
	    st.stx_mask & STATX_DIOALIGN)
		return st.stx_dio_offset_align;
#endif
	return 0;
}

int file_direct_block(int fd, uint32_t *block)
{
	uint32_t told = direct_block_told(fd);
	off_t data = lseek(fd, 0, SEEK_DATA);
	void *buf;
	ssize_t got;
	int rc = 0;

	*block = SMALL_BLOCK;
	if (told && told <= SMALL_BLOCK)
		return 0;
	/*
	 * More may be said than has to be: XFS has its blocks there for a file that
	 * shares some. So it is tried, where there is data: of a hole every read succeeds.
	 */
	if (told && data < 0) {
		*block = LARGE_BLOCK;
		return 0;
	}
	if (posix_memalign(&buf, LARGE_BLOCK, SMALL_BLOCK))
		return -ENOMEM;
	data = data < 0 ? 0 : data - data % LARGE_BLOCK;
	got = pread(fd, buf, SMALL_BLOCK, data + SMALL_BLOCK);
	if (got < 0 && errno == EINVAL)
		*block = LARGE_BLOCK;
	else if (got < 0)
		rc = -errno;
	free(buf);
	return rc;
}
