/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The byte table is in docs/architecture.md, "Image lock". QEMU's bytes: its
 * block/file-posix.c, RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE, plus the
 * bit number of the permission.
 */
#include "common/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/holder.h"

enum {
	BYTE_OURS		= 300,
	BYTE_READS		= 100,
	BYTE_WRITES		= 101,
	BYTE_RESIZES		= 103,
	BYTE_FORBIDS_READ	= 200,
	BYTE_FORBIDS_WRITE	= 201,
	BYTE_FORBIDS_RESIZE	= 203,
};

#define MAX_BYTES 6

/* One second in all. */
#define WAIT_STEPS 100
static const struct timespec wait_step = { .tv_nsec = 10000000 };

static const struct lock_set {
	short ours;			/* F_RDLCK or F_WRLCK of BYTE_OURS */
	short take[MAX_BYTES];		/* shared; 0 past the end */
	short check[MAX_BYTES];		/* nobody else holds these */
} sets[] = {
	[LOCK_READER] = {
		.ours = F_RDLCK,
		.take = { BYTE_READS, BYTE_FORBIDS_WRITE, BYTE_FORBIDS_RESIZE },
		.check = { BYTE_WRITES, BYTE_RESIZES, BYTE_FORBIDS_READ },
	},
	[LOCK_WRITER] = {
		.ours = F_WRLCK,
		.take = { BYTE_READS, BYTE_WRITES, BYTE_RESIZES,
			  BYTE_FORBIDS_WRITE, BYTE_FORBIDS_RESIZE },
		.check = { BYTE_WRITES, BYTE_RESIZES, BYTE_FORBIDS_READ,
			   BYTE_FORBIDS_WRITE, BYTE_FORBIDS_RESIZE },
	},
};

static struct flock one_byte(short type, short byte)
{
	return (struct flock){
		.l_type = type,
		.l_whence = SEEK_SET,
		.l_start = byte,
		.l_len = 1,
	};
}

static int lock_byte(int fd, short type, short byte)
{
	struct flock fl = one_byte(type, byte);

	while (fcntl(fd, F_OFD_SETLK, &fl) < 0) {
		if (errno == EAGAIN || errno == EACCES)
			return -EBUSY;
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

/* -EBUSY if another open file description holds any lock on the byte. */
static int test_byte(int fd, short byte)
{
	struct flock fl = one_byte(F_WRLCK, byte);

	while (fcntl(fd, F_OFD_GETLK, &fl) < 0)
		if (errno != EINTR)
			return -errno;
	return fl.l_type == F_UNLCK ? 0 : -EBUSY;
}

/* What the other one does who has this byte. */
static const char *use_of(short byte)
{
	switch (byte) {
	case BYTE_WRITES:
	case BYTE_RESIZES:
		return "has it open for writing";
	case BYTE_FORBIDS_READ:
		return "forbids all others to read it";
	default:
		return "reads it and forbids all others to write it";
	}
}

/* The same of byte 300, which is tapdisk's and vhd-util's. */
static const char *our_use(int fd)
{
	struct flock fl = one_byte(F_WRLCK, BYTE_OURS);

	if (!fcntl(fd, F_OFD_GETLK, &fl) && fl.l_type == F_RDLCK)
		return "reads it or has it as a parent";
	return "has it open for writing";
}

static int lock_error(struct error *err, int rc, const char *path, int fd,
		      const char *use)
{
	char name[32];
	int pid;

	if (rc == -EBUSY) {
		pid = err ? holder_find(fd, name, sizeof(name)) : 0;
		if (!pid)
			return error_set(err, rc, "%s: in use: another process, "
					 "or another host, %s; end that use "
					 "first", path, use);
		error_set(err, rc, "%s: in use: %s (pid %d) %s; end that use "
			  "first", path, name, pid, use);
		err->holder = pid;
		return rc;
	}
	return error_set(err, rc, "%s: can't be locked: %s; it must lie on a "
			 "file system with locks (NFS: mounted without nolock)",
			 path, strerror(-rc));
}

/* All of the set or nothing; *use is what who has the byte that is missing does. */
static int try_set(int fd, const struct lock_set *set, const char **use)
{
	struct flock all = {
		.l_type = F_UNLCK,
		.l_whence = SEEK_SET,
		.l_start = BYTE_READS,
		.l_len = BYTE_OURS + 1 - BYTE_READS,
	};
	int rc;

	rc = lock_byte(fd, set->ours, BYTE_OURS);
	if (rc) {
		*use = our_use(fd);
		goto out;
	}
	/*
	 * All locks before the first check: two that come at the same moment
	 * then see each other, and at worst both give up.
	 */
	for (int i = 0; i < MAX_BYTES && set->take[i]; i++) {
		*use = "locks it";
		rc = lock_byte(fd, F_RDLCK, set->take[i]);
		if (rc)
			goto out;
	}
	for (int i = 0; i < MAX_BYTES && set->check[i]; i++) {
		*use = use_of(set->check[i]);
		rc = test_byte(fd, set->check[i]);
		if (rc)
			goto out;
	}
out:
	if (rc)
		(void)fcntl(fd, F_OFD_SETLK, &all);
	return rc;
}

/*
 * What a killed process had under way in the kernel holds its locks until it
 * is over. That is right, and soon past: nobody who lives has the lock then.
 */
int lock_take(int fd, const char *path, enum lock_mode mode,
	      struct error *err)
{
	const struct lock_set *set = &sets[mode];
	const char *use = "";
	int rc = try_set(fd, set, &use);

	if (rc == -EBUSY && !holder_lives(fd))
		for (int i = 0; rc == -EBUSY && i < WAIT_STEPS; i++) {
			nanosleep(&wait_step, NULL);
			rc = try_set(fd, set, &use);
		}
	return rc ? lock_error(err, rc, path, fd, use) : 0;
}

int lock_to_reader(int fd)
{
	int rc = lock_byte(fd, F_RDLCK, BYTE_OURS);

	if (!rc)
		rc = lock_byte(fd, F_UNLCK, BYTE_WRITES);
	return rc ? rc : lock_byte(fd, F_UNLCK, BYTE_RESIZES);
}
