// SPDX-License-Identifier: LGPL-2.1-only
/* Files: opening them safely, and synchronous reads and writes of any alignment. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/file.h"
#include "common/lease.h"
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
	/* No more than the pages that hold it: others may have to be waited for. */
	window = BOUNCE_BYTES;
	if (len < BOUNCE_BYTES - VHD_ALIGN)
		window = (size_t)(round_up_u64(end, VHD_ALIGN) -
				  offset / VHD_ALIGN * VHD_ALIGN);
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
			/* On a 4Kn disk an end of the file off a block. */
			if (got < 0 && errno == EINVAL && have % VHD_ALIGN)
				break;
			if (got < 0) {
				/* A medium that can't be read is no end of a file. */
				rc = errno == ENODATA ? -EIO : -errno;
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

/*
 * On a 4Kn disk: buf has room for the VHD_ALIGN blocks that the bytes at
 * buf + skip touch, from offset on. The rest of these blocks stays as it is, and
 * the file as long as without that rest.
 */
static int write_blocks(int fd, uint8_t *buf, size_t skip, size_t len,
			uint64_t offset)
{
	size_t whole = (size_t)round_up_u64(skip + len, VHD_ALIGN);
	uint64_t size = offset + skip + len;
	uint8_t edge[2][VHD_ALIGN];
	struct stat st;
	int rc;

	if (fstat(fd, &st))
		return -errno;
	memset(edge, 0, sizeof(edge));
	for (unsigned int i = 0; i < 2; i++) {
		uint64_t at = i ? offset + whole - VHD_ALIGN : offset;
		uint64_t n = VHD_ALIGN;

		if (S_ISREG(st.st_mode)) {
			if (at >= (uint64_t)st.st_size)
				continue;
			if (n > (uint64_t)st.st_size - at)
				n = (uint64_t)st.st_size - at;
		}
		rc = vhd_read_at(fd, edge[i], (size_t)n, at);
		if (rc)
			return rc;
	}
	memcpy(buf, edge[0], skip);
	memcpy(buf + skip + len, &edge[1][VHD_ALIGN - (whole - skip - len)],
	       whole - skip - len);
	rc = file_write_all(fd, buf, whole, offset);
	if (rc || !S_ISREG(st.st_mode))
		return rc;
	if (size < (uint64_t)st.st_size)
		size = (uint64_t)st.st_size;
	if (size < offset + whole && ftruncate(fd, (off_t)size))
		return -errno;
	return 0;
}

int vhd_write_at(int fd, const void *buf, size_t len, uint64_t offset)
{
	const uint8_t *from = buf;
	uint8_t *bounce;
	size_t window, n, skip;
	int rc = 0;

	if (len % VHD_SECTOR || offset % VHD_SECTOR)
		return -EINVAL;
	window = len < BOUNCE_BYTES ? len : BOUNCE_BYTES;
	if (!window)
		return 0;
	if (posix_memalign((void **)&bounce, VHD_ALIGN,
			   (size_t)round_up_u64(window, VHD_ALIGN) + VHD_ALIGN))
		return -ENOMEM;
	while (len && !rc) {
		n = len < window ? len : window;
		skip = (size_t)(offset % VHD_ALIGN);
		memcpy(bounce, from, n);
		rc = file_write_all(fd, bounce, n, offset);
		if (rc == -EINVAL && (skip || n % VHD_ALIGN)) {
			memcpy(bounce + skip, from, n);
			rc = write_blocks(fd, bounce, skip, n, offset - skip);
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

static int take_lock(int fd, const char *path, unsigned int flags,
		     const uint64_t *child, struct error *err)
{
	bool write = flags & VHD_OPEN_WRITE;

	if (flags & VHD_OPEN_GROW)
		return lock_take(fd, path, LOCK_GROW, 0, err);
	if (child)
		return lock_take(fd, path,
				 write ? LOCK_COALESCE : LOCK_PARENT, *child,
				 err);
	return lock_take(fd, path, write ? LOCK_WRITER : LOCK_READER, 0, err);
}

/*
 * What an earlier run wrote and the kernel could not bring to the medium looks written in
 * the page cache, and would not be written again.
 */
static int forget_unwritten(int fd, const char *path, struct error *err)
{
	if (fdatasync(fd))
		return error_set(err, -errno, "%s: what was written to it before can't be synced: %s; try again when its storage is well",
				 path, strerror(errno));
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	return 0;
}

int vhd_file_open_below(int *fd, const char *path, unsigned int flags,
			const uint64_t *child, struct stat *st, uint64_t *size,
			struct error *err)
{
	bool write = flags & VHD_OPEN_WRITE;
	int oflags = O_CLOEXEC | O_NOCTTY |
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
	/* Should the file become a FIFO now, this still doesn't hang. */
	f = lease_open(AT_FDCWD, path, oflags);
	if (f == -EINVAL && flags & VHD_OPEN_DIRECT) {
		rc = error_set(err, -EINVAL,
			       "%s: its file system has no direct I/O (O_DIRECT); move the image to one that has, as ext4, xfs or NFS",
			       path);
		goto out;
	}
	if (f < 0) {
		rc = error_set(err, f, "%s: can't be opened for %s: %s", path,
			       write ? "writing" : "reading",
			       lease_strerror(f));
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
	if (fcntl(f, F_SETFL, oflags & ~(O_CLOEXEC | O_NOCTTY))) {
		rc = error_set(err, -errno, "%s: fcntl: %s", path,
			       strerror(errno));
		goto out;
	}
	if (!(flags & VHD_OPEN_NOLOCK)) {
		rc = take_lock(f, path, flags, child, err);
		if (rc)
			goto out;
	}
	if (write && !(flags & VHD_OPEN_DIRECT)) {
		rc = forget_unwritten(f, path, err);
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

int vhd_file_open(int *fd, const char *path, unsigned int flags,
		  struct stat *st, uint64_t *size, struct error *err)
{
	return vhd_file_open_below(fd, path, flags, NULL, st, size, err);
}
