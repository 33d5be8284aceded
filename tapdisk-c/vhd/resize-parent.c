// SPDX-License-Identifier: LGPL-2.1-only
/* What parents have behind the end of a disk that is smaller than they are. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vhd/resize.h"

#define CHUNK_SECTORS 2048u

static bool all_zero(const uint8_t *p, size_t len)
{
	return !len || (!*p && !memcmp(p, p + 1, len - 1));
}

/* The first sector from first on, below end, that is not zeros; end if there is none. */
static int find_data(const struct vhd_chain *parents, uint64_t *first,
		     uint64_t end, struct error *err)
{
	uint8_t *buf = malloc((size_t)CHUNK_SECTORS * VHD_SECTOR);
	int rc = 0;

	if (!buf)
		return error_set(err, -ENOMEM, "out of memory");
	while (*first < end) {
		uint64_t left = end - *first;
		struct vhd_place place;
		uint32_t n = 0;

		rc = vhd_chain_locate(parents, *first, left < UINT32_MAX ?
				      (uint32_t)left : UINT32_MAX, &place, err);
		if (rc)
			break;
		if (place.fd < 0) {
			*first += place.count;
			continue;
		}
		if (place.count > CHUNK_SECTORS)
			place.count = CHUNK_SECTORS;
		rc = vhd_chain_read(parents, *first, place.count, buf, err);
		if (rc)
			break;
		while (n < place.count && all_zero(buf + (size_t)n * VHD_SECTOR,
						   VHD_SECTOR))
			n++;
		*first += n;
		if (n < place.count)
			break;
	}
	free(buf);
	return rc;
}

int vhd_check_behind(const struct vhd_image *image, uint64_t size,
		     const struct config *cfg, struct error *err)
{
	uint64_t first = image->footer.current_size / VHD_SECTOR;
	struct vhd_chain *chain, parents;
	int rc;

	if (image->footer.type != VHD_DIFF)
		return 0;
	/* The image's lock is ours. */
	rc = vhd_chain_open(&chain, image->path, cfg, VHD_OPEN_NOLOCK, err);
	if (rc)
		return rc;
	parents = *chain;
	parents.depth--;
	parents.nr_vhd--;
	memmove(parents.image, parents.image + 1,
		parents.nr_vhd * sizeof(parents.image[0]));
	size /= VHD_SECTOR;
	rc = find_data(&parents, &first, size, err);
	if (!rc && first < size)
		rc = error_set(err, -EINVAL,
			       "%s: its parent %s is larger and has data behind the disk's end (byte %llu), which would become the disk's; copy the image (vhd-util copy) and resize the copy",
			       image->path, parents.nr_vhd ? parents.image[0]->path :
							     parents.raw_path,
			       (unsigned long long)first * VHD_SECTOR);
	vhd_chain_close(chain);
	return rc;
}
