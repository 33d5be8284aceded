/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/minor.h"

#include <blktap.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "common/rundir.h"
#include "transport/blktap-control.h"

/* A tapdisk that was killed lets go of its minor a moment after. */
#define FREE_TRIES	100
#define FREE_WAIT_NS	20000000

static int minor_path(char *path, size_t size, int minor)
{
	return run_path(path, size, "minor%d", minor);
}

static int path_error(const char *path, int rc, struct error *err)
{
	return error_set(err, rc, "%s: %s", path, strerror(-rc));
}

/* The lock under which minors come and go: a descriptor, to be closed. */
static int lock_all(struct error *err)
{
	const char *dir = run_dir();
	int fd, rc = 0;

	if (mkdir(dir, 0700) && errno != EEXIST)
		return path_error(dir, -errno, err);
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return path_error(dir, -errno, err);
	while (flock(fd, LOCK_EX)) {
		if (errno == EINTR)
			continue;
		rc = path_error(dir, -errno, err);
		close(fd);
		return rc;
	}
	return fd;
}

/* The transport that the file names; NULL: none, its maker was killed. */
static const struct gendisk_kind *kind_in(int fd)
{
	char text[32] = "";
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	if (n <= 0 || text[n - 1] != '\n')
		return NULL;
	text[n - 1] = 0;
	return gendisk_find(text);
}

const struct gendisk_kind *minor_kind(int minor)
{
	const struct gendisk_kind *kind = NULL;
	char path[PATH_MAX];
	int fd;

	if (minor_path(path, sizeof(path), minor))
		return NULL;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd >= 0) {
		kind = kind_in(fd);
		close(fd);
	} else if (blktap_has(minor)) {
		kind = &blktap_gendisk;
	}
	return kind;
}

void minors_given(bool *given)
{
	const char *const dirs[] = { BLKTAP_SYSFS_CLASS, run_dir() };

	for (size_t i = 0; i < 2; i++) {
		DIR *dir = opendir(dirs[i]);
		const struct dirent *entry;
		int minor;
		char c;

		while (dir && (entry = readdir(dir)))
			if ((i ? sscanf(entry->d_name, "minor%4d%c", &minor, &c) :
				 sscanf(entry->d_name, "blktap%4d%c", &minor, &c)) == 1 &&
			    minor >= 0 && minor < BLKTAP_MAX_MINORS)
				given[minor] = true;
		if (dir)
			closedir(dir);
	}
}

/* Giving, under the lock */

/* 0, -EEXIST if the minor is given already, or another error. */
static int make_file(const struct gendisk_kind *kind, int minor,
		     struct error *err)
{
	char path[PATH_MAX], text[32];
	int fd, n, rc;

	rc = minor_path(path, sizeof(path), minor);
	if (rc)
		return path_error(run_dir(), rc, err);
	/* One that says nothing is left by a tap-ctl that was killed here. */
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return path_error(path, -errno, err);
	n = snprintf(text, sizeof(text), "%s\n", kind->name);
	if (pread(fd, text + n, 1, 0) == 1) {
		rc = -EEXIST;
	} else if (pwrite(fd, text, (size_t)n, 0) != n) {
		rc = path_error(path, errno ? -errno : -EIO, err);
		unlink(path);
	}
	close(fd);
	return rc;
}

static int give_stock(const struct gendisk_kind *kind, int *minor,
		      struct error *err)
{
	for (int m = 0; m < BLKTAP_MAX_MINORS; m++) {
		int rc;

		if (blktap_has(m) || (kind->taken && kind->taken(m)))
			continue;
		rc = make_file(kind, m, err);
		if (rc == -EEXIST)
			continue;
		if (rc)
			return rc;
		/* A name that was left there leads nowhere. */
		gendisk_unpublish(m);
		*minor = m;
		return 0;
	}
	return error_set(err, -ENOSPC, "all %d minors are taken; see `tap-ctl list`",
			 BLKTAP_MAX_MINORS);
}

static bool has_file(int minor)
{
	char path[PATH_MAX];

	return !minor_path(path, sizeof(path), minor) && !access(path, F_OK);
}

static int give_blktap(int *minor, struct error *err)
{
	int rc;

	*minor = -1;
	rc = blktap_allocate(minor, err);
	if (rc || !has_file(*minor))
		return rc;
	/* The driver does not know the others'. */
	rc = blktap_free(*minor, 0, err);
	for (int m = 0; !rc && m < BLKTAP_MAX_MINORS; m++) {
		if (has_file(m))
			continue;
		*minor = m;
		rc = blktap_allocate(minor, err);
		if (rc != -EBUSY)
			return rc;
		rc = 0;
	}
	return rc ? rc : error_set(err, -ENOSPC, "all %d minors are taken; see `tap-ctl list`",
				   BLKTAP_MAX_MINORS);
}

int minor_allocate(const char *transports, int *minor, struct error *err)
{
	const struct gendisk_kind *kind;
	int fd, rc;

	rc = gendisk_choose(transports, &kind, err);
	if (rc)
		return rc;
	fd = lock_all(err);
	if (fd < 0)
		return fd;
	rc = kind == &blktap_gendisk ? give_blktap(minor, err) :
				       give_stock(kind, minor, err);
	close(fd);
	return rc;
}

int minor_check(const char *transports, struct error *err)
{
	const struct gendisk_kind *kind;

	return gendisk_choose(transports, &kind, err);
}

/* Claiming and freeing */

/*
 * The minor's file, locked; -ENOENT: it has none. -EBUSY: a tapdisk has it. Not
 * one that was freed, and given anew, meanwhile.
 */
static int open_locked(int minor, struct error *err)
{
	struct stat st, now;
	char path[PATH_MAX];
	int fd, rc;

	rc = minor_path(path, sizeof(path), minor);
	if (rc)
		return path_error(run_dir(), rc, err);
	do {
		fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
		if (fd < 0)
			return path_error(path, -errno, err);
		if (flock(fd, LOCK_EX | LOCK_NB) || fstat(fd, &st)) {
			rc = errno == EWOULDBLOCK ? -EBUSY : -errno;
			close(fd);
			return path_error(path, rc, err);
		}
		if (!stat(path, &now) && now.st_dev == st.st_dev &&
		    now.st_ino == st.st_ino)
			return fd;
		close(fd);
	} while (1);
}

int minor_claim(int minor, const struct gendisk_kind **kind, int *fd,
		struct error *err)
{
	int rc = open_locked(minor, err);

	if (rc == -ENOENT) {
		*kind = &blktap_gendisk;
		*fd = -1;
		return 0;
	}
	if (rc == -EBUSY)
		return error_set(err, rc, "minor %d is served by another tapdisk; see tap-ctl list",
				 minor);
	if (rc < 0)
		return rc;
	*fd = rc;
	*kind = kind_in(*fd);
	if (*kind)
		return 0;
	close(*fd);
	return error_set(err, -EPROTO, "%s/minor%d: names no transport of this release; free the minor",
			 run_dir(), minor);
}

/* Whoever looks for a free minor finds this one's file, or none. */
static int free_stock(int minor, int fd, struct error *err)
{
	const struct gendisk_kind *kind = kind_in(fd);
	char path[PATH_MAX];
	int rc;

	rc = kind ? kind->remove(minor, err) : 0;
	if (rc)
		return rc;
	gendisk_unpublish(minor);
	rc = minor_path(path, sizeof(path), minor);
	if (!rc && unlink(path))
		rc = path_error(path, -errno, err);
	return rc;
}

static int free_now(int minor, struct error *err)
{
	int fd = open_locked(minor, err);
	int rc;

	if (fd == -ENOENT && !blktap_has(minor))
		return error_set(err, -ENODEV, "minor %d: is not allocated; see `tap-ctl list`",
				 minor);
	if (fd == -ENOENT)
		return blktap_free(minor, 0, err);
	if (fd < 0)
		return fd;
	rc = free_stock(minor, fd, err);
	close(fd);
	return rc;
}

int minor_free(int minor, struct error *err)
{
	const struct timespec pause = { .tv_nsec = FREE_WAIT_NS };
	int rc = 0;

	for (int i = 0; i < FREE_TRIES; i++) {
		rc = free_now(minor, err);
		if (rc != -EBUSY)
			return rc;
		nanosleep(&pause, NULL);
	}
	return error_set(err, rc, "minor %d: a tapdisk has it; detach it "
			 "first", minor);
}

int minor_free_now(int minor, struct error *err)
{
	const struct gendisk_kind *kind = minor_kind(minor);
	int rc = minor_free(minor, err);

	if (rc != -EBUSY)
		return rc;
	if (kind != &blktap_gendisk)
		return error_set(err, rc, "minor %d: only the blktap driver takes a minor from a tapdisk that hangs; run `tap-ctl destroy -f -p PID -m %d`",
				 minor, minor);
	return blktap_free(minor, BLKTAP_FREE_FORCE, err);
}

uint64_t minor_id(int minor)
{
	char path[PATH_MAX];
	struct stat st;

	if (minor_path(path, sizeof(path), minor) || stat(path, &st))
		return blktap_id(minor);
	/* The file is written once, when the minor is given. */
	return ((uint64_t)st.st_mtim.tv_sec * 1000000000u +
		(uint64_t)st.st_mtim.tv_nsec) ^ (uint64_t)st.st_ino << 32;
}

void minor_set_dead_timeout(int minor, unsigned int seconds)
{
	int rc = has_file(minor) ? -EOPNOTSUPP :
				   blktap_set(minor, "dead_timeout", seconds);

	if (rc)
		log_warn("requests will wait for a tapdisk for ever minor=%d err=%d",
			 minor, -rc);
}

unsigned int minor_dead_timeout(int minor)
{
	return has_file(minor) ? 0 :
				 (unsigned int)blktap_get(minor, "dead_timeout");
}

int minor_fail(int minor, struct error *err)
{
	int rc;

	if (has_file(minor))
		return error_set(err, -EOPNOTSUPP, "minor %d: only the blktap driver can fail what waits for a tapdisk; free the minor instead",
				 minor);
	rc = blktap_set(minor, "fail", 1);
	if (rc == -EBUSY)
		return error_set(err, rc, "minor %d: a tapdisk serves it, or it has no device",
				 minor);
	if (rc == -ENOENT)
		return error_set(err, rc, "minor %d: is not allocated; see tap-ctl list",
				 minor);
	return rc ? error_set(err, rc, "minor %d: %s", minor, strerror(-rc)) : 0;
}
