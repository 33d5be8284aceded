/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The C library's own functions, for what stands in for them. Not system
 * calls: how those take a 64-bit offset, a time or the arguments of mmap() differs
 * from machine to machine.
 */
#ifndef XENBLK_REAL_H
#define XENBLK_REAL_H

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

/* ISO C has no conversion from dlsym()'s pointer to that of a function. */
#define REAL(function, name) \
	do { \
		void *found_ = function ? NULL : dlsym(RTLD_NEXT, name); \
		if (!function && !found_) \
			abort(); \
		if (!function) \
			memcpy(&function, &found_, sizeof(found_)); \
	} while (0)

static inline ssize_t real_pread(int fd, void *buf, size_t len, off_t offset)
{
	static ssize_t (*f)(int, void *, size_t, off_t);

	REAL(f, "pread64");
	return f(fd, buf, len, offset);
}

static inline ssize_t real_pwrite(int fd, const void *buf, size_t len, off_t offset)
{
	static ssize_t (*f)(int, const void *, size_t, off_t);

	REAL(f, "pwrite64");
	return f(fd, buf, len, offset);
}

static inline ssize_t real_pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
	static ssize_t (*f)(int, const struct iovec *, int, off_t);

	REAL(f, "pwritev64");
	return f(fd, iov, count, offset);
}

static inline int real_ftruncate(int fd, off_t size)
{
	static int (*f)(int, off_t);

	REAL(f, "ftruncate64");
	return f(fd, size);
}

static inline int real_fallocate(int fd, int mode, off_t offset, off_t len)
{
	static int (*f)(int, int, off_t, off_t);

	REAL(f, "fallocate64");
	return f(fd, mode, offset, len);
}

static inline int real_open(const char *path, int flags, mode_t mode)
{
	static int (*f)(const char *, int, ...);

	REAL(f, "open64");
	return f(path, flags, mode);
}

static inline int real_listen(int fd, int backlog)
{
	static int (*f)(int, int);

	REAL(f, "listen");
	return f(fd, backlog);
}

static inline void *real_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	static void *(*f)(void *, size_t, int, int, int, off_t);

	REAL(f, "mmap64");
	return f(addr, len, prot, flags, fd, offset);
}

static inline int real_clock_gettime(clockid_t clock, struct timespec *ts)
{
	static int (*f)(clockid_t, struct timespec *);

	REAL(f, sizeof(long) < sizeof(time_t) ? "__clock_gettime64" : "clock_gettime");
	return f(clock, ts);
}

#endif
