// SPDX-License-Identifier: LGPL-2.1-only
/* Files: opening them safely, and synchronous reads and writes of any alignment. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vhd/vhd-internal.h"

#define BOUNCE_BYTES (1u << 20)

int vhd_read_at(int fd, void *buf, size_t len, uint64_t offset)
{
	uint8_t *bounce, *to = buf;
	uint64_t end, start;
	size_t window, have, skip, n;
	ssize_t got;
	int rc = 0;

	if (!add_u64(offset, len, &end) || end > INT64_MAX - BOUNCE_BYTES)
		return -ENODATA;
	window = (size_t)round_up_u64((uint64_t)len + VHD_ALIGN, VHD_ALIGN);
	if (window > BOUNCE_BYTES)
		window = BOUNCE_BYTES;
	if (posix_memalign((void **)&bounce, VHD_ALIGN, window))
		return -ENOMEM;
	while (offset < end) {
		start = offset & ~(uint64_t)(VHD_ALIGN - 1);
		skip = (size_t)(offset - start);
		have = 0;
		while (have < window) {
			got = pread(fd, bounce + have, window - have,
				    (off_t)(start + have));
			if (got < 0 && errno == EINTR)
				continue;
			if (got < 0) {
				rc = -errno;
				goto out;
			}
			have += (size_t)got;
			/* O_DIRECT: an odd end is the end of the file. */
			if (!got || have % VHD_SECTOR ||
			    start + have >= end)
				break;
		}
		if (have <= skip) {
			rc = -ENODATA;
			goto out;
		}
		n = have - skip;
		if (n > end - offset)
			n = (size_t)(end - offset);
		memcpy(to, bounce + skip, n);
		to += n;
		offset += n;
	}
out:
	free(bounce);
	return rc;
}

int vhd_write_at(int fd, const void *buf, size_t len, uint64_t offset)
{
	const uint8_t *from = buf;
	uint8_t *bounce;
	size_t window, n, done;
	ssize_t put;
	int rc = 0;

	if (len % VHD_SECTOR || offset % VHD_SECTOR)
		return -EINVAL;
	window = len < BOUNCE_BYTES ? len : BOUNCE_BYTES;
	if (!window)
		return 0;
	if (posix_memalign((void **)&bounce, VHD_ALIGN, window))
		return -ENOMEM;
	while (len && !rc) {
		n = len < window ? len : window;
		memcpy(bounce, from, n);
		for (done = 0; done < n && !rc;) {
			put = pwrite(fd, bounce + done, n - done,
				     (off_t)(offset + done));
			if (put > 0)
				done += (size_t)put;
			else if (!put)
				rc = -EIO;
			else if (errno != EINTR)
				rc = -errno;
		}
		from += n;
		offset += n;
		len -= n;
	}
	free(bounce);
	return rc;
}

bool vhd_same_file(const struct stat *a, const struct stat *b)
{
	if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
		return a->st_rdev == b->st_rdev;
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static int check_kind(const struct stat *st, const char *path,
		      struct error *err)
{
	const char *kind;

	switch (st->st_mode & S_IFMT) {
	case S_IFREG:
	case S_IFBLK:
		return 0;
	case S_IFDIR:
		kind = "a directory";
		break;
	case S_IFIFO:
		kind = "a FIFO";
		break;
	case S_IFSOCK:
		kind = "a socket";
		break;
	default:
		kind = "a character device";
		break;
	}
	return error_set(err, -EINVAL,
			 "%s: is %s; an image is a regular file or a block device",
			 path, kind);
}

/* VHD metadata comes in units of 512 bytes, which O_DIRECT on a 4Kn disk can't do. */
static int check_direct(int fd, const char *path, struct error *err)
{
	void *buf;
	ssize_t got;

	if (posix_memalign(&buf, VHD_ALIGN, VHD_SECTOR))
		return error_set(err, -ENOMEM, "%s: out of memory", path);
	got = pread(fd, buf, VHD_SECTOR, VHD_SECTOR);
	free(buf);
	if (got < 0 && errno == EINVAL)
		return error_set(err, -ENOTSUP,
				 "%s: lies on a disk with sectors of more than 512 bytes, where VHD can't be opened for direct I/O; move it to a disk with 512-byte logical sectors",
				 path);
	return 0;
}

int vhd_file_open(int *fd, const char *path, unsigned int flags,
		  struct stat *st, uint64_t *size, struct error *err)
{
	bool write = flags & VHD_OPEN_WRITE;
	/* O_NONBLOCK: should the file become a FIFO now, we still don't hang. */
	int oflags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK |
		     (write ? O_RDWR : O_RDONLY) |
		     (flags & VHD_OPEN_DIRECT ? O_DIRECT : 0);
	int f = -1, rc;

	/* Before open(): opening a character device can have effects. */
	if (stat(path, st)) {
		rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
		goto out;
	}
	rc = check_kind(st, path, err);
	if (rc)
		goto out;
	f = open(path, oflags);
	if (f < 0 && errno == EINVAL && flags & VHD_OPEN_DIRECT) {
		rc = error_set(err, -EINVAL,
			       "%s: its file system has no direct I/O (O_DIRECT); move the image to one that has, as ext4, xfs or NFS",
			       path);
		goto out;
	}
	if (f < 0) {
		rc = error_set(err, -errno, "%s: can't be opened for %s: %s",
			       path, write ? "writing" : "reading",
			       strerror(errno));
		goto out;
	}
	if (fstat(f, st)) {
		rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
		goto out;
	}
	rc = check_kind(st, path, err);
	if (rc)
		goto out;
	/* With O_NONBLOCK io_uring would answer EAGAIN instead of waiting. */
	if (fcntl(f, F_SETFL, oflags & ~(O_NONBLOCK | O_CLOEXEC | O_NOCTTY))) {
		rc = error_set(err, -errno, "%s: fcntl: %s", path,
			       strerror(errno));
		goto out;
	}
	if (!(flags & VHD_OPEN_NOLOCK)) {
		rc = lock_take(f, path, write ? LOCK_WRITER : LOCK_READER, err);
		if (rc)
			goto out;
	}
	if (flags & VHD_OPEN_DIRECT) {
		rc = check_direct(f, path, err);
		if (rc)
			goto out;
	}
	/* The size is the locked file's: another writer may just have closed it. */
	if (fstat(f, st)) {
		rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
		goto out;
	}
	*size = (uint64_t)st->st_size;
	if (S_ISBLK(st->st_mode) && ioctl(f, BLKGETSIZE64, size)) {
		rc = error_set(err, -errno, "%s: size of the device: %s", path,
			       strerror(errno));
		goto out;
	}
	*fd = f;
	return 0;
out:
	if (f >= 0)
		close(f);
	*fd = -1;
	return rc;
}
