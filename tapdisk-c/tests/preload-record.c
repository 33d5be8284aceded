/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Writes down what a process does by system calls to the files of one directory and to
 * their names there, to be preloaded: $RECORD_DIR, absolute, into $RECORD_LOG, which
 * exists and begins as a log of io/record.c. That is the format, but that a file's number is
 * its inode's, requests of several processes and threads are among each other, and there is more:
 *
 *    8 CREATE   an empty file; payload: its name
 *    9 RENAME, 10 LINK   is about to begin; payload: both names, with a NUL between
 *   11 UNLINK   is about to begin; payload: the name
 *   12 NAMESYNC a sync of the directory is about to begin
 *
 * The file's own offset is not known to it: pwrite, ftruncate, fallocate and syncs only;
 * so no io_uring. CREATE is of mkostemp() alone.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "tests/real.h"

enum { FILE_SEEN = 1, WRITE, PUNCH, ZERO, SYNC, DONE, SIZE, CREATE, RENAME,
       LINK, UNLINK, NAMESYNC };

#define MAX_SEEN 256u
#define MAX_IOV	 65

struct record {
	uint32_t kind, file;
	uint64_t number, offset, length;
	int64_t result;
};

static int log_fd = -1;
static const char *dir;
static size_t dir_len;
static atomic_uint_fast64_t numbers;
static atomic_uint seen[MAX_SEEN];	/* files, by their numbers */

/* In one write, so that records of others are before or behind it. */
static void put(const struct record *r, const struct iovec *data, int n)
{
	struct iovec iov[MAX_IOV + 1] = {
		{ .iov_base = (void *)(uintptr_t)r, .iov_len = sizeof(*r) },
	};
	size_t len = sizeof(*r);

	if (n > MAX_IOV)
		abort();
	for (int i = 0; i < n; i++) {
		iov[i + 1] = data[i];
		len += data[i].iov_len;
	}
	if (syscall(SYS_writev, log_fd, iov, n + 1) != (ssize_t)len)
		abort();
}

static uint64_t begin(uint32_t kind, uint32_t file, uint64_t offset,
		      uint64_t length, const struct iovec *data, int n)
{
	struct record r = { kind, file, (uint64_t)getpid() << 32 | numbers++,
			    offset, length, 0 };

	put(&r, data, n);
	return r.number;
}

static void done(uint32_t file, uint64_t number, int64_t result)
{
	int saved = errno;
	struct record r = { DONE, file, number, 0, 0,
			    result < 0 ? -saved : result };

	put(&r, NULL, 0);
	errno = saved;
}

static void __attribute__((constructor)) start(void)
{
	const char *path = getenv("RECORD_LOG");

	dir = getenv("RECORD_DIR");
	if (!dir || !path)
		return;
	dir_len = strlen(dir);
	log_fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
	if (log_fd < 0)
		abort();
}

/* The name in the directory, or NULL: the path is elsewhere. */
static const char *name_of(const char *path)
{
	if (log_fd < 0 || strncmp(path, dir, dir_len) ||
	    path[dir_len] != '/' || strchr(path + dir_len + 1, '/'))
		return NULL;
	return path + dir_len + 1;
}

static bool is_new(uint32_t file)
{
	for (unsigned int i = 0; i < MAX_SEEN; i++) {
		unsigned int was = 0;

		if (atomic_compare_exchange_strong(&seen[i], &was, file))
			return true;
		if (was == file)
			return false;
	}
	abort();
}

/* Whether it is one of the directory's files, and its number. */
static bool is_recorded(int fd, uint32_t *file)
{
	char link[64], path[PATH_MAX];
	const char *name;
	struct stat st;
	ssize_t n;

	if (log_fd < 0 || fd == log_fd || fstat(fd, &st) || !S_ISREG(st.st_mode))
		return false;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (n < 0)
		return false;
	path[n] = '\0';
	name = name_of(path);
	if (!name)
		return false;
	*file = (uint32_t)st.st_ino;
	if (is_new(*file)) {
		struct iovec iov = { (void *)(uintptr_t)name, strlen(name) };
		struct record r = { FILE_SEEN, *file, 0, 0, iov.iov_len,
				    st.st_size };

		put(&r, &iov, 1);
	}
	return true;
}

static bool is_dir(int fd)
{
	char link[64], path[PATH_MAX];
	ssize_t n;

	if (log_fd < 0)
		return false;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	return n == (ssize_t)dir_len && !memcmp(path, dir, dir_len);
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t offset)
{
	struct iovec iov = { (void *)(uintptr_t)buf, len };
	uint64_t number = 0;
	uint32_t file;
	bool ours = is_recorded(fd, &file);
	ssize_t n;

	if (ours)
		number = begin(WRITE, file, (uint64_t)offset, len, &iov, 1);
	n = real_pwrite(fd, buf, len, offset);
	if (ours)
		done(file, number, n);
	return n;
}

ssize_t pwritev64(int fd, const struct iovec *iov, int count, off64_t offset)
{
	uint64_t number = 0, len = 0;
	uint32_t file;
	bool ours = is_recorded(fd, &file);
	ssize_t n;

	for (int i = 0; i < count; i++)
		len += iov[i].iov_len;
	if (ours)
		number = begin(WRITE, file, (uint64_t)offset, len, iov, count);
	n = real_pwritev(fd, iov, count, offset);
	if (ours)
		done(file, number, n);
	return n;
}

static int synced(int fd, long call)
{
	uint32_t file = 0;
	bool ours = is_recorded(fd, &file), names = !ours && is_dir(fd);
	uint64_t number = 0;
	int rc;

	if (ours || names)
		number = begin(ours ? SYNC : NAMESYNC, file, 0, 0, NULL, 0);
	rc = (int)syscall(call, fd);
	if (ours || names)
		done(file, number, rc);
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
	uint32_t file;

	if (is_recorded(fd, &file))
		begin(SIZE, file, (uint64_t)size, 0, NULL, 0);
	return real_ftruncate(fd, size);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t len)
{
	uint32_t file, kind = mode & FALLOC_FL_PUNCH_HOLE ? PUNCH : ZERO;
	bool ours = is_recorded(fd, &file), zeros;
	uint64_t number = 0;
	struct stat st;
	int rc;

	zeros = ours && mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
	if (zeros)
		number = begin(kind, file, (uint64_t)offset, (uint64_t)len,
			       NULL, 0);
	rc = real_fallocate(fd, mode, offset, len);
	if (zeros)
		done(file, number, rc);
	else if (ours && !rc && !(mode & FALLOC_FL_KEEP_SIZE) && !fstat(fd, &st))
		begin(SIZE, file, (uint64_t)st.st_size, 0, NULL, 0);
	return rc;
}

int mkostemp64(char *template, int flags)
{
	int (*next)(char *, int) =
		(int (*)(char *, int))(uintptr_t)dlsym(RTLD_NEXT, "mkostemp64");
	int fd = next(template, flags);
	const char *name = fd < 0 ? NULL : name_of(template);
	struct stat st;

	if (name && !fstat(fd, &st)) {
		struct iovec iov = { (void *)(uintptr_t)name, strlen(name) };

		begin(CREATE, (uint32_t)st.st_ino, 0, iov.iov_len, &iov, 1);
		is_new((uint32_t)st.st_ino);
	}
	return fd;
}

/* Of a name, or of two. */
static bool name_begins(uint32_t kind, const char *a, const char *b,
			uint64_t *number)
{
	const char *name[2] = { name_of(a), b ? name_of(b) : "" };
	struct iovec iov[2];

	if (!name[0] || !name[1])
		return false;
	for (int i = 0; i < 2; i++) {
		iov[i].iov_base = (void *)(uintptr_t)name[i];
		iov[i].iov_len = strlen(name[i]);
	}
	iov[0].iov_len += b ? 1 : 0;
	*number = begin(kind, 0, 0, iov[0].iov_len + iov[1].iov_len, iov, 2);
	return true;
}

int renameat2(int old_dir, const char *old, int new_dir, const char *new,
	      unsigned int flags)
{
	uint64_t number;
	bool ours = name_begins(RENAME, old, new, &number);
	int rc = (int)syscall(SYS_renameat2, old_dir, old, new_dir, new, flags);

	if (ours)
		done(0, number, rc);
	return rc;
}

int rename(const char *old, const char *new)
{
	return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0);
}

int link(const char *old, const char *new)
{
	uint64_t number;
	bool ours = name_begins(LINK, old, new, &number);
	int rc = (int)syscall(SYS_linkat, AT_FDCWD, old, AT_FDCWD, new, 0);

	if (ours)
		done(0, number, rc);
	return rc;
}

int unlink(const char *name)
{
	uint64_t number;
	bool ours = name_begins(UNLINK, name, NULL, &number);
	int rc = (int)syscall(SYS_unlinkat, AT_FDCWD, name, 0);

	if (ours)
		done(0, number, rc);
	return rc;
}
