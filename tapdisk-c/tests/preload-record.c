/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Writes down what a process does to one file by system calls, to be preloaded:
 * $RECORD_FILE, which exists, into $RECORD_LOG, in the format of io/record.c. The
 * file's own offset is not known to it: pwrite, ftruncate, fallocate and syncs only.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/real.h"

enum { FILE_SEEN = 1, WRITE, PUNCH, ZERO, SYNC, DONE, SIZE };

struct record {
	uint32_t kind, file;
	uint64_t number, offset, length;
	int64_t result;
};

static int log_fd = -1;
static struct stat recorded;
static uint64_t numbers;

static void put(const void *data, size_t len)
{
	if (write(log_fd, data, len) != (ssize_t)len)
		abort();
}

static uint64_t begin(uint32_t kind, uint64_t offset, uint64_t length,
		      int64_t result)
{
	struct record r = { kind, 0, numbers, offset, length, result };

	put(&r, sizeof(r));
	return numbers++;
}

static void done(uint64_t number, int64_t result)
{
	struct record r = { DONE, 0, number, 0, 0,
			    result < 0 ? -errno : result };

	put(&r, sizeof(r));
}

static void __attribute__((constructor)) start(void)
{
	const char *file = getenv("RECORD_FILE"), *path = getenv("RECORD_LOG");

	if (!file || !path)
		return;
	log_fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (log_fd < 0 || stat(file, &recorded))
		abort();
	put("xenblk-record-1\n", 16);
	begin(FILE_SEEN, 0, strlen(file), recorded.st_size);
	put(file, strlen(file));
}

static int is_recorded(int fd)
{
	struct stat st;

	return log_fd >= 0 && fd != log_fd && !fstat(fd, &st) &&
	       st.st_dev == recorded.st_dev && st.st_ino == recorded.st_ino;
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t offset)
{
	uint64_t number = 0;
	int ours = is_recorded(fd);
	ssize_t n;

	if (ours) {
		number = begin(WRITE, (uint64_t)offset, len, 0);
		put(buf, len);
	}
	n = real_pwrite(fd, buf, len, offset);
	if (ours)
		done(number, n);
	return n;
}

static int synced(int fd, long call)
{
	int ours = is_recorded(fd), rc;
	uint64_t number = ours ? begin(SYNC, 0, 0, 0) : 0;

	rc = (int)syscall(call, fd);
	if (ours)
		done(number, rc);
	return rc;
}

int fdatasync(int fd)
{
	return synced(fd, SYS_fdatasync);
}

int fsync(int fd)
{
	return synced(fd, SYS_fsync);
}

int ftruncate64(int fd, off64_t size)
{
	if (is_recorded(fd))
		begin(SIZE, (uint64_t)size, 0, 0);
	return real_ftruncate(fd, size);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t len)
{
	int ours = is_recorded(fd) && (mode & FALLOC_FL_PUNCH_HOLE), rc;
	uint64_t number = 0;

	if (ours)
		number = begin(PUNCH, (uint64_t)offset, (uint64_t)len, 0);
	rc = real_fallocate(fd, mode, offset, len);
	if (ours)
		done(number, rc);
	return rc;
}
