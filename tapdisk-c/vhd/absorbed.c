// SPDX-License-Identifier: LGPL-2.1-only
/*
 * Whether a chain reads the same without some of its images, as after their
 * coalesce. A coalesce marks its child when the parent has all of it, and who opens it to write takes the
 * mark away; without marks the data tells.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include "vhd/vhd-internal.h"

#define PIECE (1u << 20)
#define COALESCED_XATTR "user.xenblk.coalesced"
#define MARK_BYTES 160u

struct look {
	const struct vhd_chain *chain, *parent;
	const char *parent_path;
	uint8_t *one, *other;		/* PIECE bytes */
};

/* A run that an image left out would no longer show: -EINVAL if the parent has something else there. */
static int check_run(const struct look *look, uint64_t sector, uint32_t count,
		     unsigned int level, struct error *err)
{
	int rc = 0;

	for (uint32_t n; !rc && count; sector += n, count -= n) {
		n = count < PIECE / VHD_SECTOR ? count : PIECE / VHD_SECTOR;
		rc = vhd_chain_read(look->chain, sector, n, look->one, err);
		if (!rc)
			rc = vhd_chain_read(look->parent, sector, n, look->other,
					    err);
		if (!rc && memcmp(look->one, look->other, (size_t)n * VHD_SECTOR))
			rc = error_set(err, -EINVAL,
				       "%s: parent %s: has not what %s holds from sector %llu on, which would be lost; coalesce that first, or use --force if it is meant",
				       look->chain->image[0]->path,
				       look->parent_path,
				       look->chain->image[level]->path,
				       (unsigned long long)sector);
	}
	return rc;
}

/*
 * A null uuid: raw. As text, so that getfattr shows it. Not every program that
 * writes the child takes the mark away, but its time changes; so does the parent's, and
 * another file may have come to its place.
 */
static bool mark_of(const struct vhd_image *image, int parent_fd,
		    char mark[MARK_BYTES])
{
	struct stat st, parent;
	char uuid[37];

	if (fstat(image->fd, &st) || fstat(parent_fd, &parent))
		return false;
	uuid_unparse_lower(image->header.parent_uuid, uuid);
	snprintf(mark, MARK_BYTES, "%s %lld.%09ld %llu %lld.%09ld", uuid,
		 (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec,
		 (unsigned long long)parent.st_ino,
		 (long long)parent.st_mtim.tv_sec, parent.st_mtim.tv_nsec);
	return true;
}

void vhd_mark_coalesced(const struct vhd_image *image, int parent_fd)
{
	char mark[MARK_BYTES];

	/* Without it they are compared, which takes longer. */
	if (mark_of(image, parent_fd, mark))
		(void)fsetxattr(image->fd, COALESCED_XATTR, mark, strlen(mark),
				0);
}

int vhd_unmark_coalesced(int fd, const char *path, struct error *err)
{
	/* fdatasync leaves the removal, and the new time, to the file system: a power loss could bring both back. */
	if (!fremovexattr(fd, COALESCED_XATTR) && fsync(fd))
		return error_set(err, -errno, "%s: sync: %s", path,
				 strerror(errno));
	return 0;
}

static bool is_coalesced(const struct vhd_image *image, int parent_fd)
{
	char mark[MARK_BYTES], found[MARK_BYTES] = "";

	return mark_of(image, parent_fd, mark) &&
	       fgetxattr(image->fd, COALESCED_XATTR, found,
			 sizeof(found) - 1) >= 0 &&
	       !strcmp(mark, found);
}

/* Of its images, a raw parent at last. */
static int fd_of(const struct vhd_chain *chain, unsigned int level)
{
	return level < chain->nr_vhd ? chain->image[level]->fd : chain->raw_fd;
}

static bool all_coalesced(const struct vhd_chain *chain, unsigned int below)
{
	for (unsigned int i = 1; i < below; i++)
		if (!is_coalesced(chain->image[i], fd_of(chain, i + 1)))
			return false;
	return true;
}

int vhd_check_absorbed(const struct vhd_chain *chain, unsigned int below,
		       const struct vhd_chain *parent, struct error *err)
{
	uint64_t sectors = chain->image[0]->footer.current_size / VHD_SECTOR;
	struct look look = { .chain = chain, .parent = parent };
	struct stat a, b;
	int rc = 0;

	look.parent_path = parent->nr_vhd ? parent->image[0]->path : parent->raw_path;
	/* Into that file, and not another one with its uuid. */
	if (!fstat(fd_of(parent, 0), &a) &&
	    !fstat(fd_of(chain, below), &b) && vhd_same_file(&a, &b) &&
	    all_coalesced(chain, below))
		return 0;
	look.one = malloc(2u * PIECE);
	if (!look.one)
		return error_set(err, -ENOMEM, "%s: out of memory",
				 chain->image[0]->path);
	look.other = look.one + PIECE;
	for (uint64_t sector = 0; !rc && sector < sectors;) {
		uint64_t left = sectors - sector;
		struct vhd_place place;

		rc = vhd_chain_locate(chain, sector, left < UINT32_MAX ?
					      (uint32_t)left : UINT32_MAX,
				      &place, err);
		if (!rc && place.level && place.level < below)
			rc = check_run(&look, sector, place.count, place.level,
				       err);
		sector += place.count;
	}
	free(look.one);
	return rc;
}
