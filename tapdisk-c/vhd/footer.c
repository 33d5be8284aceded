// SPDX-License-Identifier: LGPL-2.1-only
/* The 512-byte footer: "Hard Disk Footer Format" of the VHD specification. */
#include <errno.h>
#include <string.h>

#include "vhd/vhd-internal.h"

enum {
	OFF_FEATURES = 8, OFF_VERSION = 12, OFF_DATA_OFFSET = 16,
	OFF_TIMESTAMP = 24, OFF_CREATOR = 28, OFF_CREATOR_VERSION = 32,
	OFF_CREATOR_OS = 36, OFF_ORIGINAL_SIZE = 40, OFF_CURRENT_SIZE = 48,
	OFF_GEOMETRY = 56, OFF_TYPE = 60, OFF_CHECKSUM = 64, OFF_UUID = 68,
	OFF_SAVED = 84, OFF_HIDDEN = 85,
};

uint32_t vhd_checksum(const uint8_t *p, size_t len, size_t skip)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < len; i++)
		if (i < skip || i >= skip + 4)
			sum += p[i];
	return ~sum;
}

void vhd_footer_encode(uint8_t *out, const struct vhd_footer *footer)
{
	memset(out, 0, VHD_FOOTER_BYTES);
	memcpy(out, "conectix", 8);
	put_be32(out + OFF_FEATURES, footer->features);
	put_be32(out + OFF_VERSION, footer->version);
	put_be64(out + OFF_DATA_OFFSET, footer->data_offset);
	put_be32(out + OFF_TIMESTAMP, footer->timestamp);
	memcpy(out + OFF_CREATOR, footer->creator, 4);
	put_be32(out + OFF_CREATOR_VERSION, footer->creator_version);
	put_be32(out + OFF_CREATOR_OS, footer->creator_os);
	put_be64(out + OFF_ORIGINAL_SIZE, footer->original_size);
	put_be64(out + OFF_CURRENT_SIZE, footer->current_size);
	put_be32(out + OFF_GEOMETRY, footer->geometry);
	put_be32(out + OFF_TYPE, footer->type);
	memcpy(out + OFF_UUID, footer->uuid, sizeof(footer->uuid));
	out[OFF_SAVED] = footer->saved;
	out[OFF_HIDDEN] = footer->hidden;
	put_be32(out + OFF_CHECKSUM,
		 vhd_checksum(out, VHD_FOOTER_BYTES, OFF_CHECKSUM));
}

bool vhd_tail_counts(const struct vhd_footer *front,
		     const struct vhd_footer *tail)
{
	return tail->type == front->type &&
	       tail->data_offset == front->data_offset &&
	       !uuid_compare(tail->uuid, front->uuid);
}

bool vhd_creator_is_tap(const struct vhd_footer *footer)
{
	return !memcmp(footer->creator, "tap", 4);
}

/* XenServer's first versions set the hidden flag without a new checksum. */
static bool checksum_ok(const uint8_t *in, const struct vhd_footer *f)
{
	uint32_t stored = get_be32(in + OFF_CHECKSUM);
	uint32_t sum = vhd_checksum(in, VHD_FOOTER_BYTES, OFF_CHECKSUM);

	if (stored == sum)
		return true;
	return f->hidden && vhd_creator_is_tap(f) &&
	       (f->creator_version == VHD_TAP_VERSION(0, 1) ||
		f->creator_version == VHD_TAP_VERSION(1, 1)) &&
	       stored == sum + f->hidden;
}

int vhd_footer_decode(struct vhd_footer *f, const uint8_t in[VHD_FOOTER_BYTES],
		      const char *path, const char *where, struct error *err)
{
	uint32_t type = get_be32(in + OFF_TYPE);

	memset(f, 0, sizeof(*f));
	f->features = get_be32(in + OFF_FEATURES);
	f->version = get_be32(in + OFF_VERSION);
	f->data_offset = get_be64(in + OFF_DATA_OFFSET);
	f->timestamp = get_be32(in + OFF_TIMESTAMP);
	memcpy(f->creator, in + OFF_CREATOR, 4);
	f->creator_version = get_be32(in + OFF_CREATOR_VERSION);
	f->creator_os = get_be32(in + OFF_CREATOR_OS);
	f->original_size = get_be64(in + OFF_ORIGINAL_SIZE);
	f->current_size = get_be64(in + OFF_CURRENT_SIZE);
	f->geometry = get_be32(in + OFF_GEOMETRY);
	memcpy(f->uuid, in + OFF_UUID, sizeof(f->uuid));
	f->saved = in[OFF_SAVED];
	f->hidden = in[OFF_HIDDEN];

	if (!memcmp(in, "v_poison", 8))
		return error_set(err, -ENOTSUP,
				 "%s: %s: is disabled (cookie v_poison): a resize by XenServer's vhd-util was interrupted; undo it there with vhd-util revert",
				 path, where);
	if (memcmp(in, "conectix", 8))
		return error_set(err, -EUCLEAN,
				 "%s: %s: cookie is not 'conectix'; is this a VHD image?",
				 path, where);
	if (!checksum_ok(in, f))
		return error_set(err, -EUCLEAN,
				 "%s: %s: checksum is 0x%08x, should be 0x%08x",
				 path, where, get_be32(in + OFF_CHECKSUM),
				 vhd_checksum(in, VHD_FOOTER_BYTES,
					      OFF_CHECKSUM));
	if (f->version >> 16 != 1)
		return error_set(err, -ENOTSUP,
				 "%s: %s: file format version is 0x%08x; 1.0 is supported",
				 path, where, f->version);
	if (type != VHD_FIXED && type != VHD_DYNAMIC && type != VHD_DIFF)
		return error_set(err, -ENOTSUP,
				 "%s: %s: disk type is %u; 2 (fixed), 3 (dynamic) and 4 (differencing) are supported",
				 path, where, type);
	f->type = (enum vhd_type)type;
	if (vhd_creator_is_tap(f) && type != VHD_FIXED &&
	    f->creator_version <= VHD_TAP_VERSION(0, 1))
		return error_set(err, -ENOTSUP,
				 "%s: %s: creator version is tap 0.1, whose bitmaps are little-endian; convert it with the old vhd-update",
				 path, where);
	if (!f->current_size || f->current_size % VHD_SECTOR)
		return error_set(err, -EUCLEAN,
				 "%s: %s: current size is %llu bytes; it must be a positive multiple of 512",
				 path, where,
				 (unsigned long long)f->current_size);
	return 0;
}

uint32_t vhd_geometry(uint64_t size)
{
	uint64_t total = size / VHD_SECTOR, cth;
	uint32_t heads, spt;

	if (total > 65535ull * 16 * 255)
		total = 65535ull * 16 * 255;
	if (total >= 65535ull * 16 * 63) {
		spt = 255;
		heads = 16;
		cth = total / spt;
	} else {
		spt = 17;
		cth = total / spt;
		heads = (uint32_t)((cth + 1023) / 1024);
		if (heads < 4)
			heads = 4;
		if (cth >= heads * 1024ull || heads > 16) {
			spt = 31;
			heads = 16;
			cth = total / spt;
		}
		if (cth >= heads * 1024ull) {
			spt = 63;
			heads = 16;
			cth = total / spt;
		}
	}
	return (uint32_t)(cth / heads) << 16 | heads << 8 | spt;
}

uint32_t vhd_timestamp(int64_t unix_time)
{
	int64_t t = unix_time - VHD_EPOCH;

	if (t < 0)
		return 0;
	return t > UINT32_MAX ? UINT32_MAX : (uint32_t)t;
}
