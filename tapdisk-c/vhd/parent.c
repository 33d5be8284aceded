// SPDX-License-Identifier: LGPL-2.1-only
/*
 * Another parent for an image. Header and locators can't be changed in one write, so
 * a second header is written where nothing is, the footers are switched to it,
 * the header in its place is written, and the footers are switched back.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vhd/resize.h"

struct change {
	const struct vhd_parent_args *args;
	struct vhd_image *image;
	struct vhd_chain *parent;
	int raw_fd;
	struct stat st;			/* the parent's */
	char *dir;			/* the image's, for relative paths */
	struct vhd_header header;
	uint8_t locators[VHD_LOCATORS_MAX];
};

/*
 * The lowest place for bytes clear of blocks, metadata and the header's home; if
 * need be the end.
 */
static int find_room(struct vhd_image *image, uint64_t bytes, uint64_t home,
		     uint64_t *at, struct error *err)
{
	struct vhd_extent extent[VHD_MAX_EXTENTS + 1];
	uint64_t end;
	unsigned int n;
	int rc;

	rc = vhd_collect_extents(image, extent, &n, &end, INT64_MAX, err);
	if (rc)
		return rc;
	extent[n++] = (struct vhd_extent){ home, home + VHD_HEADER_BYTES, "" };
	*at = vhd_find_gap(extent, n, bytes, image, image->data_end);
	if (*at + bytes <= image->data_end)
		return 0;
	if (image->is_blk && *at + bytes > image->file_size - VHD_FOOTER_BYTES)
		return error_set(err, -ENOSPC,
				 "%s: no room for the parent's name; extend the device by %llu bytes or more first",
				 image->path, (unsigned long long)bytes);
	rc = vhd_extend(image, *at + bytes, err);
	if (!rc)
		image->data_end = *at + bytes;
	return rc;
}

/* Header and locators, to be synced. */
static int write_header(struct change *c, uint64_t header, uint64_t locators,
			struct error *err)
{
	struct vhd_image *image = c->image;
	uint8_t raw[VHD_HEADER_BYTES];
	size_t used;
	int rc;

	rc = vhd_locators_encode(&c->header, c->locators, locators, &used,
				 image->path, c->dir, c->args->parent, err);
	if (rc)
		return rc;
	vhd_header_encode(raw, &c->header);
	rc = vhd_write_at(image->fd, c->locators, used, locators);
	if (!rc)
		rc = vhd_write_at(image->fd, raw, sizeof(raw), header);
	if (!rc && fdatasync(image->fd))
		rc = -errno;
	return rc ? vhd_fail(image->path, rc, "writing the header", err) : 0;
}

/* Where the header belongs: behind the footer copy, unless something else is there. */
static int find_home(const struct vhd_image *image, uint64_t *home, struct error *err)
{
	const uint64_t start = VHD_FOOTER_BYTES, end = start + VHD_HEADER_BYTES;
	struct vhd_extent extent[VHD_MAX_EXTENTS];
	uint64_t last;
	unsigned int n;
	int rc;

	rc = vhd_collect_extents(image, extent, &n, &last, INT64_MAX, err);
	*home = vhd_clear_of_blocks(image, start, end) ?
		start : image->footer.data_offset;
	for (unsigned int i = 0; !rc && i < n; i++)
		if (strcmp(extent[i].what, "header") &&
		    extent[i].start < end && start < extent[i].end)
			*home = image->footer.data_offset;
	return rc;
}

static int write_parent(struct change *c, struct error *err)
{
	struct vhd_image *image = c->image;
	uint64_t home, second, at;
	size_t used;
	int rc;

	rc = vhd_locators_encode(&c->header, c->locators, 0, &used,
				 image->path, c->dir, c->args->parent, err);
	if (!rc)
		rc = find_home(image, &home, err);
	if (rc || c->args->check)
		return rc;
	rc = find_room(image, VHD_HEADER_BYTES + used, home, &second, err);
	/* No child is without the mark, and no other image has it. */
	if (!rc)
		rc = vhd_mark_parent(c->parent ? c->parent->image[0]->fd : c->raw_fd,
				     c->args->parent, err);
	if (!rc)
		rc = write_header(c, second, second + VHD_HEADER_BYTES, err);
	if (rc)
		return rc;
	image->footer.data_offset = second;
	image->header = c->header;
	rc = vhd_write_trailer(image, err);
	/* The place of the old locators is free now. */
	if (!rc)
		rc = find_room(image, used, home, &at, err);
	if (rc)
		return rc;
	if (at > second)
		at = second + VHD_HEADER_BYTES;
	rc = write_header(c, home, at, err);
	if (rc)
		return rc;
	image->header = c->header;
	image->footer.data_offset = home;
	/* The second header may be the file's end: it goes when no footer leads to it. */
	rc = vhd_write_trailer(image, err);
	if (!rc)
		rc = vhd_find_data_end(image, err);
	return rc ? rc : vhd_write_trailer(image, err);
}

/*
 * *found: the image's chain has the new parent already; *between: the smallest size of
 * those that are left out, or UINT64_MAX. An error if they hold what it has not.
 */
static int in_chain(const struct change *c, const struct config *cfg, uint64_t size,
		    bool *found, uint64_t *between, struct error *err)
{
	const struct vhd_image *image = c->image;
	struct vhd_chain *chain;
	struct stat st;
	int rc = 0;

	*between = UINT64_MAX;
	*found = true;
	if (c->parent &&
	    !uuid_compare(c->parent->image[0]->footer.uuid,
			  image->header.parent_uuid))
		return 0;
	if (c->args->raw && uuid_is_null(image->header.parent_uuid))
		return 0;
	*found = false;
	/* Of what is locked by ourselves: without a lock. */
	if (vhd_chain_open(&chain, c->args->path, cfg, VHD_OPEN_NOLOCK, NULL))
		return 0;
	for (unsigned int i = 1; i < chain->nr_vhd && !*found; i++) {
		const struct vhd_footer *f = &chain->image[i]->footer;

		if (c->parent && !uuid_compare(f->uuid,
					       c->parent->image[0]->footer.uuid)) {
			*found = true;
			rc = vhd_check_absorbed(chain, i, c->parent, err);
		} else if (f->current_size < *between) {
			*between = f->current_size;
		}
	}
	if (c->args->raw && chain->raw_fd >= 0 && !fstat(chain->raw_fd, &st) &&
	    vhd_same_file(&st, &c->st)) {
		struct vhd_chain raw = {
			.raw_fd = c->raw_fd, .raw_sectors = size / VHD_SECTOR,
			.raw_path = chain->raw_path,
		};

		*found = true;
		rc = vhd_check_absorbed(chain, chain->nr_vhd, &raw, err);
	}
	vhd_chain_close(chain);
	return rc;
}

/* The new parent and its chain, none of which is the image itself. */
static int open_parent(struct change *c, const struct config *cfg,
		       const char *extra, const struct stat *self,
		       uint64_t *size, struct error *err)
{
	const char *path = c->args->path, *parent = c->args->parent;
	struct vhd_chain *look;
	struct stat st;
	bool loop = false;
	int rc;

	if (stat(parent, &c->st))
		return error_set(err, -errno, "%s: parent %s: %s", path, parent,
				 strerror(errno));
	rc = vhd_parent_allowed(cfg, parent, &c->st, extra, err);
	if (rc)
		return rc;
	if (vhd_same_file(&c->st, self))
		return error_set(err, -ELOOP, "%s: can't be its own parent",
				 path);
	if (c->args->raw) {
		rc = vhd_file_open(&c->raw_fd, parent, 0, &c->st, size, err);
		if (!rc && (*size % VHD_SECTOR || !*size))
			rc = error_set(err, -EINVAL,
				       "%s: parent %s: size is %llu bytes; it must be a positive multiple of 512",
				       path, parent,
				       (unsigned long long)*size);
		return rc;
	}
	rc = vhd_chain_open_in(&look, parent, cfg, extra, VHD_OPEN_NOLOCK, err);
	if (rc)
		return rc;
	for (unsigned int i = 0; i < look->nr_vhd; i++)
		loop = loop || (!fstat(look->image[i]->fd, &st) &&
				vhd_same_file(&st, self));
	vhd_chain_close(look);
	if (loop)
		return error_set(err, -ELOOP,
				 "%s: parent %s: the image is in its chain: the images would form a loop",
				 path, parent);
	rc = vhd_chain_open_in(&c->parent, parent, cfg, extra, 0, err);
	if (rc)
		return rc;
	if (c->parent->depth >= VHD_MAX_CHAIN)
		return error_set(err, -ELOOP,
				 "%s: the chain of parent %s has %u images, the most there may be; coalesce it first",
				 path, parent, c->parent->depth);
	if (uuid_is_null(c->parent->image[0]->footer.uuid))
		return error_set(err, -EUCLEAN,
				 "%s: parent %s: its uuid is null, by which a child would take it for raw",
				 path, parent);
	*size = c->parent->image[0]->footer.current_size;
	return 0;
}

static int check_parent(const struct change *c, const struct config *cfg,
			uint64_t size, struct error *err)
{
	const struct vhd_image *image = c->image;
	char want[37], have[37] = "none (raw)";
	uint64_t between;
	bool found;
	int rc;

	if (c->args->force)
		return 0;
	rc = in_chain(c, cfg, size, &found, &between, err);
	if (rc)
		return rc;
	if (!found) {
		uuid_unparse_lower(image->header.parent_uuid, want);
		if (c->parent)
			uuid_unparse_lower(c->parent->image[0]->footer.uuid,
					   have);
		return error_set(err, -EINVAL,
				 "%s: parent %s: uuid is %s, which is not in the image's chain (its parent has %s); use --force if it holds the same data",
				 image->path, c->args->parent, have, want);
	}
	if (size > image->footer.current_size)
		return error_set(err, -EINVAL,
				 "%s: parent %s: its size is %llu bytes, more than the image's %llu; use --force if that is meant",
				 image->path, c->args->parent,
				 (unsigned long long)size,
				 (unsigned long long)image->footer.current_size);
	/* As snapshot and resize keep it, no image is smaller than its parent. */
	if (size > between)
		return error_set(err, -EINVAL,
				 "%s: parent %s: its size is %llu bytes; an image between them, of %llu, hides what it has behind that; use --force if that is meant",
				 image->path, c->args->parent,
				 (unsigned long long)size,
				 (unsigned long long)between);
	return 0;
}

static void set_header(struct change *c)
{
	struct vhd_header *h = &c->header;

	*h = c->image->header;
	uuid_clear(h->parent_uuid);
	if (c->parent)
		uuid_copy(h->parent_uuid, c->parent->image[0]->footer.uuid);
	h->parent_timestamp = vhd_timestamp(c->st.st_mtime);
	snprintf(h->parent_name, sizeof(h->parent_name), "%s",
		 vhd_base_name(c->args->parent));
}

int vhd_set_parent(const struct vhd_parent_args *args, const struct config *cfg,
		   struct error *err)
{
	struct change *c = calloc(1, sizeof(*c));
	char *extra = NULL;
	struct stat self;
	uint64_t size = 0;
	int rc;

	if (!c)
		return vhd_fail(args->path, -ENOMEM, "parent", err);
	c->args = args;
	c->raw_fd = -1;
	rc = vhd_open(&c->image, args->path, VHD_OPEN_WRITE, err);
	if (rc)
		goto out;
	if (c->image->footer.type != VHD_DIFF) {
		rc = error_set(err, -EINVAL,
			       "%s: is not differencing, so it has no parent to change",
			       args->path);
		goto out;
	}
	if (fstat(c->image->fd, &self)) {
		rc = vhd_fail(args->path, -errno, "stat", err);
		goto out;
	}
	extra = vhd_extra_dir(args->path);
	c->dir = c->image->is_blk ? vhd_dir_of_name(args->path) :
				    vhd_dir_of_file(args->path);
	if (!c->dir) {
		rc = vhd_fail(args->path, -errno, "directory", err);
		goto out;
	}
	rc = open_parent(c, cfg, extra, &self, &size, err);
	if (rc)
		goto out;
	rc = check_parent(c, cfg, size, err);
	if (rc)
		goto out;
	set_header(c);
	rc = write_parent(c, err);
out:
	vhd_close(c->image);
	vhd_chain_close(c->parent);
	if (c->raw_fd >= 0)
		close(c->raw_fd);
	free(c->dir);
	free(extra);
	free(c);
	return rc;
}
