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
#include "common/log.h"

enum {
	BYTE_OURS		= 300,
	BYTE_MOVES		= 301,
	BYTE_READS		= 100,
	BYTE_WRITES		= 101,
	BYTE_RESIZES		= 103,
	BYTE_FORBIDS_READ	= 200,
	BYTE_FORBIDS_WRITE	= 201,
	BYTE_FORBIDS_RESIZE	= 203,
};

/* A byte for each child that an image may have. */
#define BELOW		((off_t)1 << 40)
#define NR_BELOW	((off_t)1 << 40)

#define MAX_BYTES 6

/* One second in all. */
#define WAIT_STEPS 100
#define LOOK_STEPS 10
static const struct timespec wait_step = { .tv_nsec = 10000000 };

/* QEMU's bytes. */
static const struct lock_set {
	short take[MAX_BYTES];		/* shared; 0 past the end */
	short check[MAX_BYTES];		/* nobody else holds these */
} sets[] = {
	[LOCK_READER] = {
		.take = { BYTE_READS, BYTE_FORBIDS_WRITE, BYTE_FORBIDS_RESIZE },
		.check = { BYTE_WRITES, BYTE_RESIZES, BYTE_FORBIDS_READ },
	},
	[LOCK_WRITER] = {
		.take = { BYTE_READS, BYTE_WRITES, BYTE_RESIZES,
			  BYTE_FORBIDS_WRITE, BYTE_FORBIDS_RESIZE },
		.check = { BYTE_WRITES, BYTE_RESIZES, BYTE_FORBIDS_READ,
			   BYTE_FORBIDS_WRITE, BYTE_FORBIDS_RESIZE },
	},
	/* Not BYTE_READS, by which a coalesce knows QEMU's readers. */
	[LOCK_PARENT] = {
		.take = { BYTE_FORBIDS_WRITE, BYTE_FORBIDS_RESIZE },
		.check = { BYTE_WRITES, BYTE_RESIZES, BYTE_FORBIDS_READ },
	},
	[LOCK_COALESCE] = {
		.take = { BYTE_READS, BYTE_WRITES, BYTE_RESIZES,
			  BYTE_FORBIDS_WRITE, BYTE_FORBIDS_RESIZE },
		.check = { BYTE_READS, BYTE_WRITES, BYTE_RESIZES,
			   BYTE_FORBIDS_READ },
	},
	[LOCK_GROW] = {
		.take = { BYTE_READS, BYTE_WRITES, BYTE_RESIZES,
			  BYTE_FORBIDS_WRITE, BYTE_FORBIDS_RESIZE },
		.check = { BYTE_READS, BYTE_WRITES, BYTE_RESIZES,
			   BYTE_FORBIDS_READ },
	},
};

/* Where an attempt failed, and what the one does who is there. */
struct conflict {
	off_t at;
	const char *use;
};

uint64_t lock_child(const struct stat *st, const uint8_t uuid[16])
{
	uint64_t id = S_ISBLK(st->st_mode) ? st->st_rdev : st->st_ino;
	uint64_t hash = 0xcbf29ce484222325u;	/* FNV-1a, 64 bits */

	for (unsigned int i = 0; i < 24; i++) {
		hash ^= i < 8 ? id >> 8 * i & 0xff : uuid[i - 8];
		hash *= 0x100000001b3u;
	}
	return (hash ^ hash >> 40) & ((uint64_t)NR_BELOW - 1);
}

static struct flock range(short type, off_t start, off_t len)
{
	return (struct flock){
		.l_type = type,
		.l_whence = SEEK_SET,
		.l_start = start,
		.l_len = len,
	};
}

static int lock_range(int fd, short type, off_t start, off_t len)
{
	struct flock fl = range(type, start, len);

	if (!len)		/* to fcntl() all that follows */
		return 0;
	while (fcntl(fd, F_OFD_SETLK, &fl) < 0) {
		if (errno == EAGAIN || errno == EACCES)
			return -EBUSY;
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

/* What another open file description has there: l_type F_UNLCK is nothing. */
static int look(int fd, struct flock *fl)
{
	while (fcntl(fd, F_OFD_GETLK, fl) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

/* -EBUSY if another open file description holds any lock on the byte. */
static int test_byte(int fd, short byte)
{
	struct flock fl = range(F_WRLCK, byte, 1);
	int rc = look(fd, &fl);

	return rc ? rc : fl.l_type == F_UNLCK ? 0 : -EBUSY;
}

bool lock_is_free(int fd)
{
	return test_byte(fd, BYTE_OURS) != -EBUSY;
}

bool lock_is_moving(int fd)
{
	return test_byte(fd, BYTE_MOVES) == -EBUSY;
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

/* A lock of ours, and if it is refused who has it. */
static int lock_ours(int fd, short type, off_t start, off_t len,
		     struct conflict *c)
{
	struct flock fl = range(type, start, len);
	int rc = lock_range(fd, type, start, len);

	if (rc != -EBUSY)
		return rc;
	c->at = start;
	c->use = "has it open for writing";
	if (look(fd, &fl) || fl.l_type == F_UNLCK)
		return rc;
	c->at = fl.l_start > start ? fl.l_start : start;
	if (fl.l_type == F_RDLCK)
		c->use = start == BYTE_OURS ? "reads it" :
					      "has it as a parent";
	else if (lock_is_moving(fd))
		c->use = "coalesces a child into it or makes it larger";
	return rc;
}

/*
 * These alone decide among our own. A coalesce has all bytes but that of its child, so
 * nobody reads the image but below that one, and nobody begins to.
 */
static int take_ours(int fd, enum lock_mode mode, off_t child,
		     struct conflict *c)
{
	int rc;

	if (mode == LOCK_PARENT)
		return lock_ours(fd, F_RDLCK, BELOW + child, 1, c);
	rc = lock_ours(fd, mode == LOCK_READER ? F_RDLCK : F_WRLCK, BYTE_OURS,
		       1, c);
	if (rc || mode == LOCK_READER || mode == LOCK_GROW)
		return rc;
	if (mode == LOCK_WRITER)
		return lock_ours(fd, F_WRLCK, BELOW, NR_BELOW, c);
	rc = lock_ours(fd, F_WRLCK, BELOW, child, c);
	if (!rc)
		rc = lock_ours(fd, F_WRLCK, BELOW + child + 1,
			       NR_BELOW - child - 1, c);
	if (rc == -EBUSY && !strcmp(c->use, "has it as a parent"))
		c->use = "has it as a parent of another image";
	return rc;
}

static int test_foreign(int fd, enum lock_mode mode, short byte)
{
	int rc = test_byte(fd, byte);

	if (rc != -EBUSY || mode != LOCK_PARENT || byte == BYTE_FORBIDS_READ)
		return rc;
	/*
	 * A coalesce or a grower has seen that it is the only one to write before it
	 * takes this byte, and keeps QEMU out since. If it is gone already, so is its lock.
	 */
	return lock_is_moving(fd) ? 0 : test_byte(fd, byte);
}

static int lock_error(struct error *err, int rc, const char *path, int fd,
		      const struct conflict *c)
{
	char name[32];
	int pid;

	if (rc == -EBUSY) {
		pid = err ? holder_find(fd, c->at, name, sizeof(name)) : 0;
		if (!pid)
			return error_set(err, rc, "%s: in use: another process, "
					 "or another host, %s; end that use "
					 "first", path, c->use);
		error_set(err, rc, "%s: in use: %s (pid %d) %s; end that use "
			  "first", path, name, pid, c->use);
		err->holder = pid;
		return rc;
	}
	return error_set(err, rc, "%s: can't be locked: %s; it must lie on a "
			 "file system with locks (NFS: mounted without nolock)",
			 path, strerror(-rc));
}

/* All of the mode or nothing. */
static int try_mode(int fd, enum lock_mode mode, off_t child,
		    struct conflict *c)
{
	const struct lock_set *set = &sets[mode];
	int rc;

	rc = take_ours(fd, mode, child, c);
	if (rc)
		goto out;
	/*
	 * All locks before the first check: two that come at the same moment
	 * then see each other, and at worst both give up.
	 */
	for (int i = 0; i < MAX_BYTES && set->take[i]; i++) {
		c->use = "locks it";
		c->at = set->take[i];
		rc = lock_range(fd, F_RDLCK, set->take[i], 1);
		if (rc)
			goto out;
	}
	for (int i = 0; i < MAX_BYTES && set->check[i]; i++) {
		c->use = use_of(set->check[i]);
		c->at = set->check[i];
		rc = test_foreign(fd, mode, set->check[i]);
		if (rc)
			goto out;
	}
	if (mode == LOCK_COALESCE || mode == LOCK_GROW) {
		c->use = "locks it";
		c->at = BYTE_MOVES;
		rc = lock_range(fd, F_WRLCK, BYTE_MOVES, 1);
	}
out:
	if (rc) {
		(void)lock_range(fd, F_UNLCK, BYTE_READS,
				 BYTE_MOVES + 1 - BYTE_READS);
		(void)lock_range(fd, F_UNLCK, BELOW, NR_BELOW);
	}
	return rc;
}

/*
 * What a killed process had under way in the kernel holds its locks until it
 * is over. That is right, and soon past: nobody who lives has the lock then. And
 * tap-ctl has one to see whether an image can be opened.
 */
static bool is_soon_past(int fd, off_t at)
{
	char name[32];

	return !holder_lives(fd, at) ||
	       (holder_find(fd, at, name, sizeof(name)) && !strcmp(name, "tap-ctl"));
}

int lock_take(int fd, const char *path, enum lock_mode mode, uint64_t child,
	      struct error *err)
{
	struct conflict c = { .use = "" };
	int rc = try_mode(fd, mode, (off_t)child, &c);

	if (rc == -EBUSY && is_soon_past(fd, c.at)) {
		for (int i = 0; rc == -EBUSY && i < WAIT_STEPS; i++) {
			if (i % LOOK_STEPS == LOOK_STEPS - 1 && !is_soon_past(fd, c.at))
				break;
			nanosleep(&wait_step, NULL);
			rc = try_mode(fd, mode, (off_t)child, &c);
		}
		if (!rc)
			log_info("waited for the lock of a process that is gone, or only looked path=%s",
				 path);
	}
	return rc ? lock_error(err, rc, path, fd, &c) : 0;
}

int lock_to_parent(int fd, uint64_t child)
{
	const off_t at = BELOW + (off_t)child;
	int rc = lock_range(fd, F_RDLCK, at, 1);

	if (!rc)
		rc = lock_range(fd, F_UNLCK, BELOW, (off_t)child);
	if (!rc)
		rc = lock_range(fd, F_UNLCK, at + 1,
				NR_BELOW - (off_t)child - 1);
	if (!rc)
		rc = lock_range(fd, F_UNLCK, BYTE_READS,
				BYTE_RESIZES + 1 - BYTE_READS);
	return rc ? rc : lock_range(fd, F_UNLCK, BYTE_OURS, 1);
}
