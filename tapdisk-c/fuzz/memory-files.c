/* SPDX-License-Identifier: LGPL-2.1-only */
/* In place of the C library's: see memory-files.h. */
#include "fuzz/memory-files.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "common/bytes.h"
#include "fuzz/fuzz.h"

#define BUCKETS		64u
#define FIRST_FD	10000		/* no real descriptor is as high */
#define MAX_FDS		64u
#define DIR_FILE	MEMORY_FILES	/* the directory, as an open file */
#define DEVICE		77u

struct page {
	struct page *next;		/* in its bucket, or of the free ones */
	uint64_t nr;
	uint8_t bytes[MEMORY_PAGE];
};

static struct file {
	bool there;
	uint64_t size;
	unsigned int nr_pages;
	struct page *bucket[BUCKETS];
} files[MEMORY_FILES];

static struct { bool open; unsigned int file; } fds[MAX_FDS];
static struct page *free_pages;

/* Pages */

static struct page *find(const struct file *f, uint64_t nr)
{
	struct page *p = f->bucket[nr % BUCKETS];

	while (p && p->nr != nr)
		p = p->next;
	return p;
}

/* The page, made if it is not there; NULL if the file has as many as it may. */
static struct page *need(struct file *f, uint64_t nr)
{
	struct page *p = find(f, nr);

	if (p)
		return p;
	if (f->nr_pages == MEMORY_PAGES)
		return NULL;
	p = free_pages;
	if (p)
		free_pages = p->next;
	else
		p = malloc(sizeof(*p));
	fuzz_assert(p);
	memset(p->bytes, 0, sizeof(p->bytes));
	p->nr = nr;
	p->next = f->bucket[nr % BUCKETS];
	f->bucket[nr % BUCKETS] = p;
	f->nr_pages++;
	return p;
}

/* Drops the pages from number first on and before end. */
static void drop(struct file *f, uint64_t first, uint64_t end)
{
	for (unsigned int i = 0; i < BUCKETS && f->nr_pages; i++) {
		struct page **at = &f->bucket[i], *p;

		while ((p = *at)) {
			if (p->nr < first || p->nr >= end) {
				at = &p->next;
				continue;
			}
			*at = p->next;
			p->next = free_pages;
			free_pages = p;
			f->nr_pages--;
		}
	}
}

static void read_bytes(const struct file *f, uint8_t *to, size_t len,
		       uint64_t at)
{
	while (len) {
		size_t skip = at % MEMORY_PAGE, n = MEMORY_PAGE - skip;
		const struct page *p = find(f, at / MEMORY_PAGE);

		if (n > len)
			n = len;
		if (p)
			memcpy(to, p->bytes + skip, n);
		else
			memset(to, 0, n);
		to += n;
		at += n;
		len -= n;
	}
}

/* from: NULL for zeros. Bytes written. */
static size_t write_bytes(struct file *f, const uint8_t *from, size_t len,
			  uint64_t at)
{
	size_t done = 0;

	while (done < len) {
		size_t skip = (at + done) % MEMORY_PAGE, n = MEMORY_PAGE - skip;
		struct page *p = need(f, (at + done) / MEMORY_PAGE);

		if (!p)
			break;
		if (n > len - done)
			n = len - done;
		memcpy(p->bytes + skip, from + done, n);
		done += n;
	}
	if (done && f->size < at + done)
		f->size = at + done;
	return done;
}

/* Bytes of one page. */
static void zero_part(struct file *f, uint64_t at, uint64_t len)
{
	struct page *p = find(f, at / MEMORY_PAGE);

	if (p)
		memset(p->bytes + at % MEMORY_PAGE, 0, (size_t)len);
}

static void clear_bytes(struct file *f, uint64_t at, uint64_t end)
{
	uint64_t first = round_up_u64(at, MEMORY_PAGE) / MEMORY_PAGE;
	uint64_t last = end / MEMORY_PAGE;

	if (first > last) {
		zero_part(f, at, end - at);
		return;
	}
	zero_part(f, at, first * MEMORY_PAGE - at);
	drop(f, first, last);
	zero_part(f, last * MEMORY_PAGE, end - last * MEMORY_PAGE);
}

/* What targets call */

void memory_reset(void)
{
	for (unsigned int i = 0; i < MEMORY_FILES; i++) {
		drop(&files[i], 0, UINT64_MAX);
		files[i].there = false;
		files[i].size = 0;
	}
	memset(fds, 0, sizeof(fds));
}

void memory_file_put(unsigned int file, const void *data, size_t len,
		     uint64_t offset)
{
	fuzz_assert(write_bytes(&files[file], data, len, offset) == len);
}

void memory_file_set(unsigned int file, const void *data, size_t len,
		     uint64_t size)
{
	files[file].there = true;
	memory_file_put(file, data, len, 0);
	files[file].size = size;
}

const char *memory_path(unsigned int file)
{
	static const char *const paths[MEMORY_FILES] = {
		MEMORY_DIR "/0", MEMORY_DIR "/1", MEMORY_DIR "/2",
		MEMORY_DIR "/3",
	};

	return paths[file];
}

static int get_fd(unsigned int file)
{
	for (unsigned int i = 0; i < MAX_FDS; i++)
		if (!fds[i].open) {
			fds[i].open = true;
			fds[i].file = file;
			return FIRST_FD + (int)i;
		}
	errno = EMFILE;
	return -1;
}

int memory_open(unsigned int file)
{
	return get_fd(file);
}

uint64_t memory_file_sum(unsigned int file)
{
	const struct file *f = &files[file];
	uint64_t sum = f->size;

	for (unsigned int i = 0; i < BUCKETS; i++)
		for (const struct page *p = f->bucket[i]; p; p = p->next) {
			uint64_t word, part = p->nr;

			for (size_t at = 0; at < MEMORY_PAGE; at += 8) {
				memcpy(&word, p->bytes + at, sizeof(word));
				part = (part ^ word) * 0x9e3779b97f4a7c15u;
				part ^= part >> 29;
			}
			/* In whatever order the pages are. */
			sum += part;
		}
	return sum;
}

unsigned int memory_nr_open(void)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < MAX_FDS; i++)
		n += fds[i].open;
	return n;
}

/* Files by descriptor */

static bool is_ours(int fd)
{
	return fd >= FIRST_FD && fd < FIRST_FD + (int)MAX_FDS;
}

static struct file *file_of(int fd)
{
	fuzz_assert(is_ours(fd) && fds[fd - FIRST_FD].open &&
		    fds[fd - FIRST_FD].file < MEMORY_FILES);
	return &files[fds[fd - FIRST_FD].file];
}

void memory_punch(int fd, uint64_t offset, uint64_t len)
{
	struct file *f = file_of(fd);
	uint64_t end = offset + len;

	if (end > f->size)
		end = f->size;
	if (offset < end)
		clear_bytes(f, offset, end);
}

ssize_t pread(int fd, void *buf, size_t len, off_t offset)
{
	const struct file *f;
	uint64_t at = (uint64_t)offset;

	if (!is_ours(fd))
		return syscall(SYS_pread64, fd, buf, len, offset);
	f = file_of(fd);
	if (offset < 0) {
		errno = EINVAL;
		return -1;
	}
	if (at >= f->size)
		return 0;
	if (len > f->size - at)
		len = (size_t)(f->size - at);
	read_bytes(f, buf, len, at);
	return (ssize_t)len;
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t offset)
{
	size_t n;

	if (!is_ours(fd))
		return syscall(SYS_pwrite64, fd, buf, len, offset);
	fuzz_assert(offset >= 0);
	n = write_bytes(file_of(fd), buf, len, (uint64_t)offset);
	if (n || !len)
		return (ssize_t)n;
	errno = ENOSPC;
	return -1;
}

int ftruncate(int fd, off_t size)
{
	struct file *f;

	if (!is_ours(fd))
		return (int)syscall(SYS_ftruncate, fd, size);
	f = file_of(fd);
	fuzz_assert(size >= 0);
	if ((uint64_t)size < f->size)
		clear_bytes(f, (uint64_t)size, f->size);
	f->size = (uint64_t)size;
	return 0;
}

int fallocate(int fd, int mode, off_t offset, off_t len)
{
	if (!is_ours(fd))
		return (int)syscall(SYS_fallocate, fd, mode, offset, len);
	if (mode & FALLOC_FL_PUNCH_HOLE) {
		memory_punch(fd, (uint64_t)offset, (uint64_t)len);
		return 0;
	}
	errno = EOPNOTSUPP;
	return -1;
}

int fdatasync(int fd)
{
	return is_ours(fd) ? 0 : (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd)
{
	return is_ours(fd) ? 0 : (int)syscall(SYS_fsync, fd);
}

int close(int fd)
{
	if (!is_ours(fd))
		return (int)syscall(SYS_close, fd);
	/* Closed twice, it could have been another's. */
	fuzz_assert(fds[fd - FIRST_FD].open);
	fds[fd - FIRST_FD].open = false;
	return 0;
}

int fcntl(int fd, int cmd, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, cmd);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (!is_ours(fd))
		return (int)syscall(SYS_fcntl, fd, cmd, arg);
	/* Nobody else has a lock. */
	if (cmd == F_OFD_GETLK)
		((struct flock *)arg)->l_type = F_UNLCK;
	return 0;
}

static void fill_stat(unsigned int file, struct stat *st)
{
	memset(st, 0, sizeof(*st));
	st->st_dev = DEVICE;
	st->st_ino = file + 1;
	st->st_mode = file == DIR_FILE ? S_IFDIR | 0700 : S_IFREG | 0600;
	if (file != DIR_FILE)
		st->st_size = (off_t)files[file].size;
}

int fstat(int fd, struct stat *st)
{
	if (!is_ours(fd))
		return (int)syscall(SYS_fstat, fd, st);
	fuzz_assert(fds[fd - FIRST_FD].open);
	fill_stat(fds[fd - FIRST_FD].file, st);
	return 0;
}

int fstatfs(int fd, struct statfs *st)
{
	if (!is_ours(fd))
		return (int)syscall(SYS_fstatfs, fd, st);
	memset(st, 0, sizeof(*st));
	return 0;
}

ssize_t fgetxattr(int fd, const char *name, void *value, size_t size)
{
	(void)fd;
	(void)name;
	(void)value;
	(void)size;
	errno = ENODATA;
	return -1;
}

int fsetxattr(int fd, const char *name, const void *value, size_t size,
	      int flags)
{
	(void)fd;
	(void)name;
	(void)value;
	(void)size;
	(void)flags;
	return 0;
}

/* Files by path */

/*
 * Path, which need not end with a NUL, without "." and "..": MEMORY_FILES for the
 * directory, -1 if it is not there or not ours.
 */
static int look_up(const char *path)
{
	unsigned int depth = 0;
	int file = -1;

	if (*path != '/')
		return -1;
	while (*path) {
		size_t n;

		while (*path == '/')
			path++;
		n = strcspn(path, "/");
		if (!n || (n == 1 && *path == '.')) {
			path += n;
			continue;
		}
		if (n == 2 && path[0] == '.' && path[1] == '.') {
			/* A file is no directory; / is its own parent. */
			if (depth == 2)
				return -1;
			if (depth)
				depth--;
			path += n;
			continue;
		}
		if (depth == 2)
			return -1;
		if (!depth) {
			if (n != strlen(&MEMORY_DIR[1]) ||
			    memcmp(path, &MEMORY_DIR[1], n))
				return -1;
		} else {
			if (n != 1 || *path < '0' ||
			    *path >= '0' + (int)MEMORY_FILES ||
			    !files[*path - '0'].there)
				return -1;
			file = *path - '0';
		}
		depth++;
		path += n;
	}
	if (depth == 2)
		return file;
	return depth == 1 ? (int)DIR_FILE : -1;
}

static bool is_our_path(const char *path)
{
	size_t n = strlen(MEMORY_DIR);

	return !strncmp(path, MEMORY_DIR, n) && (path[n] == '/' || !path[n]);
}

int stat(const char *restrict path, struct stat *restrict st)
{
	int file = look_up(path);

	if (file < 0) {
		errno = ENOENT;
		return -1;
	}
	fill_stat((unsigned int)file, st);
	return 0;
}

char *realpath(const char *restrict path, char *restrict to)
{
	int file = look_up(path);

	fuzz_assert(!to);
	if (file < 0) {
		errno = ENOENT;
		return NULL;
	}
	return strdup(file == (int)DIR_FILE ? MEMORY_DIR :
					      memory_path((unsigned int)file));
}

int open(const char *path, int flags, ...)
{
	va_list ap;
	int mode, file;

	va_start(ap, flags);
	mode = va_arg(ap, int);
	va_end(ap);
	if (!is_our_path(path))
		return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
	file = look_up(path);
	if (file < 0) {
		errno = ENOENT;
		return -1;
	}
	return get_fd((unsigned int)file);
}

/* The directory: children.c looks through it. */

static struct { unsigned int next; struct dirent entry; } dir;

DIR *opendir(const char *path)
{
	static DIR *(*real)(const char *path);

	if (is_our_path(path)) {
		dir.next = 0;
		return (DIR *)(void *)&dir;
	}
	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "opendir");
	return real(path);
}

int closedir(DIR *d)
{
	static int (*real)(DIR *d);

	if ((void *)d == &dir)
		return 0;
	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "closedir");
	return real(d);
}

struct dirent *readdir(DIR *d)
{
	static struct dirent *(*real)(DIR *d);

	if ((void *)d != &dir) {
		if (!real)
			*(void **)&real = dlsym(RTLD_NEXT, "readdir64");
		return real(d);
	}
	while (dir.next < MEMORY_FILES && !files[dir.next].there)
		dir.next++;
	if (dir.next == MEMORY_FILES)
		return NULL;
	snprintf(dir.entry.d_name, sizeof(dir.entry.d_name), "%u", dir.next++);
	return &dir.entry;
}

int dirfd(DIR *d)
{
	fuzz_assert((void *)d == &dir);
	return FIRST_FD + (int)MAX_FDS;
}

static int entry_of(const char *name)
{
	return name[0] >= '0' && name[0] < '0' + (int)MEMORY_FILES && !name[1] &&
	       files[name[0] - '0'].there ? name[0] - '0' : -1;
}

int fstatat(int at, const char *restrict name, struct stat *restrict st,
	    int flags)
{
	(void)flags;
	fuzz_assert(at == FIRST_FD + (int)MAX_FDS && entry_of(name) >= 0);
	fill_stat((unsigned int)entry_of(name), st);
	return 0;
}

int openat(int at, const char *name, int flags, ...)
{
	(void)flags;
	fuzz_assert(at == FIRST_FD + (int)MAX_FDS && entry_of(name) >= 0);
	return get_fd((unsigned int)entry_of(name));
}

/* What _FORTIFY_SOURCE makes of calls without a mode. */
int fuzz_open_2(const char *path, int flags) __asm__("__open64_2");
int fuzz_open_2(const char *path, int flags)
{
	return open(path, flags, 0);
}
