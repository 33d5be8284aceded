// SPDX-License-Identifier: LGPL-2.1-only
/*
 * Whether an image has children: docs/architecture.md, contract 4. Writing to
 * it would change what they read.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "common/lease.h"
#include "common/lock.h"
#include "vhd/vhd-internal.h"

#define CHILDREN_XATTR "user.xenblk.children"

struct self {
	struct stat st;
	uuid_t uuid;		/* null if it is no VHD */
	const char *dir;	/* where children are looked for */
	const struct stat *child;	/* the one that may be there; NULL: none */
};

/* Of a part that the file has no more: nothing. */
static int peek(int fd, void *buf, size_t len, uint64_t offset, bool *there)
{
	int rc = vhd_read_at(fd, buf, len, offset);

	*there = !rc;
	return rc == -ENODATA ? 0 : rc;
}

/* footer and *found stay as they are if there is none. */
static int peek_footer_at(int fd, uint64_t offset, size_t len,
			  struct vhd_footer *footer, bool *found)
{
	uint8_t raw[VHD_FOOTER_BYTES] = { 0 };
	struct vhd_footer one;
	bool there;
	int rc = peek(fd, raw, len, offset, &there);

	if (there && !vhd_footer_decode(&one, raw, "", "", NULL)) {
		*footer = one;
		*found = true;
	}
	return rc;
}

/*
 * The footer of a file as vhd_open() would choose it, without its checks. The
 * first sector of a fixed image is its guest's. -errno: it has none that could be read.
 */
static int peek_footer(int fd, uint64_t size, struct vhd_footer *footer,
		       bool *found)
{
	size_t tail_len = size % VHD_SECTOR == 511 ? 511 : VHD_FOOTER_BYTES;
	int tail, front = 0;

	*found = false;
	if (size < VHD_FOOTER_BYTES)
		return 0;
	tail = peek_footer_at(fd, size - tail_len, tail_len, footer, found);
	if (!*found || footer->type != VHD_FIXED)
		front = peek_footer_at(fd, 0, VHD_FOOTER_BYTES, footer, found);
	if (*found)
		return 0;
	return tail ? tail : front;
}

/* It is gone, or none that this process could use. All else might hide a child. */
static bool may_be_passed_over(int rc)
{
	return rc == -ENOENT || rc == -ESTALE || rc == -ELOOP || rc == -EACCES;
}

/* Whether a path of the child leads to the image: 1, 0, or -errno. */
static int names_self(int fd, const struct vhd_header *header,
		      const struct self *self)
{
	struct vhd_parent_name names[VHD_MAX_NAMES];
	unsigned int n = vhd_parent_names(names, fd, header);
	bool found = false;
	int rc = 0;

	for (unsigned int i = 0; i < n && !found; i++) {
		struct stat st;
		char *path;

		/* As vhd_parent_open() does it. */
		if (i && names[i].mere_name && uuid_is_null(header->parent_uuid))
			continue;
		if (names[i].path[0] == '/')
			path = strdup(names[i].path);
		else if (asprintf(&path, "%s/%s", self->dir,
				  names[i].path) < 0)
			path = NULL;
		if (!path)
			rc = -ENOMEM;
		else if (!stat(path, &st))
			found = vhd_same_file(&st, &self->st);
		else if (errno != ENOTDIR && errno != ENAMETOOLONG &&
			 !may_be_passed_over(-errno))
			rc = -errno;
		free(path);
	}
	vhd_parent_names_free(names, n);
	return found ? 1 : rc;
}

/* 1: it is one; 0; or -errno: it can't be told. */
static int is_child(int fd, uint64_t size, const struct self *self)
{
	uint8_t raw[VHD_HEADER_BYTES];
	struct vhd_footer footer;
	struct vhd_header header;
	bool found;
	int rc;

	rc = peek_footer(fd, size, &footer, &found);
	if (rc || !found || footer.type != VHD_DIFF)
		return rc;
	rc = peek(fd, raw, sizeof(raw), footer.data_offset, &found);
	if (rc || !found || vhd_header_decode(&header, raw, "", NULL))
		return rc;
	/*
	 * A name may have passed to another image, which the child does not
	 * mean. (A null uuid means a raw parent. Such a child can be forged by
	 * a guest in its own raw disk; better a disk that is refused, with the
	 * file named, than one that is written under its children.)
	 */
	if (!uuid_is_null(header.parent_uuid) &&
	    uuid_compare(header.parent_uuid, self->uuid))
		return 0;
	return names_self(fd, &header, self);
}

static int cannot_look(const struct self *self, const char *path,
		       const char *name, int rc, struct error *err)
{
	return error_set(err, rc, "%s: looking for its children: %s/%s: %s",
			 path, self->dir, name, lease_strerror(rc));
}

/* 0: it is no child, or none any more. */
static int look_at(const struct self *self, int dir, const char *name,
		   const char *path, struct error *err)
{
	struct stat st;
	int fd, rc = 0;

	/* Regular files only: opening anything else may have effects. */
	if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW)) {
		rc = -errno;
		return may_be_passed_over(rc) ? 0 :
		       cannot_look(self, path, name, rc, err);
	}
	if (!S_ISREG(st.st_mode) || st.st_size < VHD_HEADER_BYTES ||
	    vhd_same_file(&st, &self->st) ||
	    (self->child && vhd_same_file(&st, self->child)))
		return 0;
	/* -EAGAIN: who writes it has it; it may well be a child. */
	fd = lease_open(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return may_be_passed_over(fd) ? 0 :
		       cannot_look(self, path, name, fd, err);
	rc = is_child(fd, (uint64_t)st.st_size, self);
	if (rc > 0)
		rc = error_set(err, -EBUSY,
			       "%s: is the parent of %s/%s, so it can't be written; use the child, or a new snapshot",
			       path, self->dir, name);
	else if (rc)
		rc = cannot_look(self, path, name, rc, err);
	close(fd);
	return rc;
}

static int scan(const struct self *self, const char *path, struct error *err)
{
	DIR *dir = opendir(self->dir);
	const struct dirent *entry;
	int rc = 0;

	if (!dir)
		return error_set(err, -errno, "%s: looking for children in %s: %s",
				 path, self->dir, strerror(errno));
	while (!rc) {
		errno = 0;
		entry = readdir(dir);
		if (!entry && errno)
			rc = error_set(err, -errno, "%s: looking for children in %s: %s",
				       path, self->dir, strerror(errno));
		if (!entry)
			break;
		/* A directory, which may be a mount point that hangs. */
		if (entry->d_type != DT_REG && entry->d_type != DT_UNKNOWN)
			continue;
		/* Not finished, and nobody's image yet (create.c, tap-ctl snapshot). */
		if (strncmp(entry->d_name, VHD_UNFINISHED, strlen(VHD_UNFINISHED)))
			rc = look_at(self, dirfd(dir), entry->d_name, path, err);
	}
	closedir(dir);
	return rc;
}

/* Looks in the directory of the image at near. */
static int scan_near(struct self *self, const char *near, const char *path,
		     struct error *err)
{
	char *dir = vhd_dir_of_file(near);
	int rc;

	if (!dir)
		return error_set(err, -errno, "%s: %s", near, strerror(errno));
	self->dir = dir;
	rc = scan(self, path, err);
	free(dir);
	return rc;
}

static int know_self(struct self *self, int fd, const char *path,
		     struct error *err)
{
	struct vhd_footer footer;
	bool found;
	int rc;

	if (fstat(fd, &self->st))
		return error_set(err, -errno, "%s: %s", path, strerror(errno));
	if (!S_ISREG(self->st.st_mode))
		return 0;
	rc = peek_footer(fd, (uint64_t)self->st.st_size, &footer, &found);
	if (rc)
		return error_set(err, rc, "%s: footer: reading: %s", path,
				 strerror(-rc));
	if (found)
		uuid_copy(self->uuid, footer.uuid);
	return 0;
}

int vhd_check_no_children(int fd, const char *path, struct error *err)
{
	struct self self = { 0 };
	int rc;

	if (fgetxattr(fd, CHILDREN_XATTR, NULL, 0) >= 0)
		return error_set(err, -EBUSY,
				 "%s: is marked as having children (attribute " CHILDREN_XATTR "), so it can't be written; use a child, or if none is left: vhd-util set -n %s -f children -v 0",
				 path, path);
	if (errno != ENODATA && errno != ENOTSUP && errno != EPERM)
		return error_set(err, -errno, "%s: reading attribute "
				 CHILDREN_XATTR ": %s", path, strerror(errno));
	rc = know_self(&self, fd, path, err);
	/* The directory of a block device isn't one of images. */
	if (rc || !S_ISREG(self.st.st_mode))
		return rc;
	return scan_near(&self, path, path, err);
}

int vhd_check_other_children(int fd, const char *path, const char *child,
			     struct error *err)
{
	struct self self = { 0 };
	struct stat st;
	int rc;

	if (stat(child, &st))
		return error_set(err, -errno, "%s: %s", child, strerror(errno));
	self.child = &st;
	rc = know_self(&self, fd, path, err);
	if (!rc && S_ISREG(self.st.st_mode))
		rc = scan_near(&self, path, path, err);
	if (!rc && S_ISREG(self.st.st_mode) && S_ISREG(st.st_mode))
		rc = scan_near(&self, child, path, err);
	return rc;
}

/* Text that no other process writes there. */
static void name_trial(struct vhd_mark *trial)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	snprintf(trial->text, sizeof(trial->text), "%d %lld.%09ld", (int)getpid(),
		 (long long)now.tv_sec, now.tv_nsec);
}

int vhd_try_mark(int fd, const char *path, struct vhd_mark *trial,
		 struct error *err)
{
	name_trial(trial);
	trial->fresh = !fsetxattr(fd, CHILDREN_XATTR, trial->text,
				  strlen(trial->text), XATTR_CREATE);
	/* Whoever has tried before may not take it back. */
	return trial->fresh ? 0 : vhd_mark_parent(fd, path, err);
}

void vhd_take_mark_back(const char *path, const struct vhd_mark *trial)
{
	char text[sizeof(trial->text)] = "";
	int fd = open(path, O_RDWR | O_CLOEXEC);

	/* With the lock of a writer nobody makes a child of it, and nobody has: that would have said so. */
	if (fd >= 0 && !lock_take(fd, path, LOCK_WRITER, 0, NULL) &&
	    fgetxattr(fd, CHILDREN_XATTR, text, sizeof(text) - 1) > 0 &&
	    !strcmp(text, trial->text))
		(void)fremovexattr(fd, CHILDREN_XATTR);
	if (fd >= 0)
		close(fd);
}

int vhd_mark_parent(int fd, const char *path, struct error *err)
{
	if (!fsetxattr(fd, CHILDREN_XATTR, "1", 1, 0) || errno == ENOTSUP ||
	    errno == EROFS || errno == EPERM)
		return 0;
	return error_set(err, -errno, "%s: setting attribute " CHILDREN_XATTR
			 ": %s", path, strerror(errno));
}

int vhd_forget_children(const char *path, struct error *err)
{
	struct self self = { 0 };
	int fd = open(path, O_RDWR | O_CLOEXEC);
	int rc;

	if (fd < 0)
		return error_set(err, -errno, "%s: %s", path, strerror(errno));
	/* Children that are in use have it locked, wherever they are. */
	rc = lock_take(fd, path, LOCK_WRITER, 0, err);
	if (!rc)
		rc = know_self(&self, fd, path, err);
	if (!rc && S_ISREG(self.st.st_mode))
		rc = scan_near(&self, path, path, err);
	if (!rc && fremovexattr(fd, CHILDREN_XATTR) && errno != ENODATA &&
	    errno != ENOTSUP && errno != EPERM)
		rc = error_set(err, -errno, "%s: removing attribute "
			       CHILDREN_XATTR ": %s", path, strerror(errno));
	close(fd);
	return rc;
}
