// SPDX-License-Identifier: GPL-2.0-only
#include "toy-direct.h"

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "blktap.h"

static int add_file(int ring_fd, int fd, uint32_t number, uint32_t flags)
{
	struct blktap_file arg = {
		.size = sizeof(arg), .fd = fd, .number = number, .flags = flags,
	};

	return ioctl(ring_fd, BLKTAP_IOC_ADD_FILE, &arg) < 0 ? -errno : 0;
}

static int open_direct(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC);

	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

void toy_add_file(int ring_fd, const char *path, uint32_t number, bool write, int then)
{
	int fd = open_direct(path, O_RDWR | O_DIRECT);
	int rc = add_file(ring_fd, fd, number, write ? BLKTAP_FILE_WRITE : 0);

	if (rc)
		errx(1, "ADD_FILE %s: %s", path, strerror(-rc));
	if (then && fcntl(fd, F_SETFL, then) < 0)
		err(1, "F_SETFL");
	close(fd);
}

static int add_extents(int ring_fd, const struct blktap_extent *e, uint32_t nr,
		       uint32_t *added)
{
	struct blktap_extents arg = {
		.size = sizeof(arg), .nr = nr, .addr = (uintptr_t)e,
	};
	int rc = ioctl(ring_fd, BLKTAP_IOC_ADD_EXTENTS, &arg) < 0 ? -errno : 0;

	*added = arg.added;
	return rc;
}

void toy_move(int fd, off_t from, off_t to, off_t bytes)
{
	static char buf[1 << 20];
	off_t at = from;
	ssize_t n;

	while ((at = lseek(fd, at, SEEK_DATA)) >= 0 && at < from + bytes) {
		n = pread(fd, buf, sizeof(buf) < (size_t)(from + bytes - at) ?
			  sizeof(buf) : (size_t)(from + bytes - at), at);
		if (n <= 0 || pwrite(fd, buf, (size_t)n, at - from + to) != n)
			err(1, "move");
		at += n;
	}
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, bytes) < 0)
		err(1, "punch");
}

void toy_add_extents(int ring_fd, uint64_t sectors, uint64_t offset, bool write)
{
	struct blktap_extent e[BLKTAP_EXTENT_BATCH];
	uint32_t n, added;
	uint64_t at = 0;
	int rc;

	while (at < sectors) {
		for (n = 0; n < BLKTAP_EXTENT_BATCH && at < sectors; n++) {
			uint64_t left = sectors - at;

			e[n] = (struct blktap_extent) {
				.sector = at,
				.offset = offset + (at << BLKTAP_SECTOR_SHIFT),
				.nr_sectors = left < TOY_EXTENT ? (uint32_t)left :
								  TOY_EXTENT,
				.file = TOY_FILE,
				.flags = write ? BLKTAP_EXTENT_WRITE : 0,
			};
			at += e[n].nr_sectors;
		}
		rc = add_extents(ring_fd, e, n, &added);
		if (rc || added != n)
			errx(1, "ADD_EXTENTS: %u of %u: %s", added, n, strerror(-rc));
	}
}

static int withdraw(int ring_fd, uint64_t sector, uint64_t nr, uint32_t flags)
{
	struct blktap_withdraw arg = {
		.size = sizeof(arg), .flags = flags, .sector = sector,
		.nr_sectors = nr,
	};

	return ioctl(ring_fd, BLKTAP_IOC_WITHDRAW, &arg) < 0 ? -errno : 0;
}

void toy_withdraw(int ring_fd)
{
	int rc = withdraw(ring_fd, 0, UINT64_MAX, BLKTAP_WITHDRAW_WAIT);

	if (rc)
		errx(1, "WITHDRAW: %s", strerror(-rc));
}

static void tell(const char *what, int rc)
{
	printf("%s: %s\n", what, strerror(-rc));
}

/* A good extent with one thing changed. */
#define BAD_EXTENT(what, change)					\
	do {								\
		struct blktap_extent e = {				\
			.sector = 8, .offset = 4096, .nr_sectors = 8,	\
			.file = TOY_FILE, .flags = BLKTAP_EXTENT_WRITE,	\
		};							\
		uint32_t added_;					\
									\
		change;							\
		tell(what, add_extents(ring_fd, &e, 1, &added_));	\
	} while (0)

static void bad_extents(int ring_fd, uint64_t sectors)
{
	BAD_EXTENT("flags", e.flags = 2);
	BAD_EXTENT("no sectors", e.nr_sectors = 0);
	BAD_EXTENT("behind the disk", e.sector = sectors);
	BAD_EXTENT("over the end of the disk", e.sector = sectors - 7);
	BAD_EXTENT("wraps", e.sector = UINT64_MAX - 3);
	BAD_EXTENT("file number", e.file = BLKTAP_MAX_FILES);
	BAD_EXTENT("no such file", e.file = 5);
	BAD_EXTENT("offset odd", e.offset = 4097);
	BAD_EXTENT("offset too large", e.offset = 0x7ffffffffffff000u);
	BAD_EXTENT("file not for writing", e.file = 4);
	BAD_EXTENT("good", (void)0);
	BAD_EXTENT("overlaps", e.sector = 15);
}

static void bad_files(int ring_fd, const char *path)
{
	int rw = open_direct(path, O_RDWR | O_DIRECT);
	int ro = open_direct(path, O_RDONLY | O_DIRECT);

	tell("not open", add_file(ring_fd, 999, 0, 0));
	tell("buffered", add_file(ring_fd, open_direct(path, O_RDWR), 0, 0));
	tell("appending", add_file(ring_fd, open_direct(path, O_RDWR | O_DIRECT | O_APPEND), 0, 0));
	tell("read-only to write", add_file(ring_fd, ro, 0, BLKTAP_FILE_WRITE));
	tell("write-only", add_file(ring_fd, open_direct(path, O_WRONLY | O_DIRECT), 0, 0));
	tell("directory", add_file(ring_fd, open_direct("/", O_RDONLY), 0, 0));
	tell("character device", add_file(ring_fd, open_direct("/dev/null", O_RDWR), 0, 0));
	tell("not on a disk", add_file(ring_fd, open_direct("/proc/version", O_RDONLY), 0, 0));
	tell("unknown flags", add_file(ring_fd, rw, 0, 2));
	tell("number", add_file(ring_fd, rw, BLKTAP_MAX_FILES, 0));
	tell("good", add_file(ring_fd, ro, 4, 0));
	tell("number taken", add_file(ring_fd, rw, 4, 0));
}

void toy_bad_extents(int ring_fd, const char *path, uint64_t sectors)
{
	struct blktap_unfile none = { .size = sizeof(none), .number = 7 };
	struct blktap_extents many = {
		.size = sizeof(many), .nr = BLKTAP_EXTENT_BATCH + 1,
		.addr = (uintptr_t)&many,
	};

	bad_files(ring_fd, path);
	bad_extents(ring_fd, sectors);
	tell("withdraw flags", withdraw(ring_fd, 0, 1, 4));
	tell("remove no file", ioctl(ring_fd, BLKTAP_IOC_REMOVE_FILE, &none) < 0 ? -errno : 0);
	tell("too many", ioctl(ring_fd, BLKTAP_IOC_ADD_EXTENTS, &many) < 0 ? -errno : 0);
	many.nr = 1;
	many.addr = 8;
	tell("bad address", ioctl(ring_fd, BLKTAP_IOC_ADD_EXTENTS, &many) < 0 ? -errno : 0);
	toy_withdraw(ring_fd);
	fflush(stdout);
}
