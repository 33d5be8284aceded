/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The input is what is to be done (u8), a size (u16, of half blocks) and a chain:
 * its leaf is repaired, resized, filled, or gets its parent's name anew. Done or
 * refused, the disk is what it was, and no other file has changed.
 */
#include <string.h>

#include "fuzz/fuzz.h"
#include "fuzz/memory-files.h"
#include "vhd/check.h"
#include "vhd/vhd-internal.h"

#define PREFIX		3u
#define MAX_SAMPLES	96u
#define FIRST_SAMPLES	40u
#define LAST_SAMPLES	16u
/* All of it may be written, and its tables are made anew. */
#define MAX_BLOCK	(64u << 10)
#define MAX_BLOCKS	300u

enum what { REPAIR, RESIZE, RESIZE_IN_PLACE, FILL, SET_PARENT, NR_WHAT };

static struct sample {
	uint64_t sector;
	uint8_t bytes[VHD_SECTOR];
} samples[MAX_SAMPLES];
static unsigned int nr_samples;
static uint64_t old_sectors;
static bool was_sound;			/* as far as vhd_check() tells */
static bool raw_parent;

static bool is_sound(const struct vhd_image *image)
{
	const struct vhd_check_options options = { .bitmaps = true };
	struct vhd_check_result result;
	struct error err;
	int rc = vhd_check(image, &options, &result, &err);

	vhd_check_result_dispose(&result);
	return !rc;
}

/* False if the chain is too large, or can't be opened. */
static bool look(uint32_t *block)
{
	struct vhd_chain *chain;
	const struct vhd_image *leaf;
	uint64_t sectors, at = 0;
	struct error err;
	bool fits;

	if (vhd_chain_open(&chain, memory_path(0), fuzz_config(), 0, &err))
		return false;
	leaf = chain->image[0];
	*block = leaf->header.block_size ? leaf->header.block_size : VHD_MIN_BLOCK;
	fits = *block <= MAX_BLOCK && leaf->bat_entries <= MAX_BLOCKS &&
	       leaf->header.max_bat_size <= 2 * MAX_BLOCKS;
	sectors = old_sectors = leaf->footer.current_size / VHD_SECTOR;
	was_sound = is_sound(leaf);
	raw_parent = chain->nr_vhd == 1 && chain->raw_fd >= 0;
	for (nr_samples = 0; fits && nr_samples < MAX_SAMPLES && at < sectors;
	     nr_samples++) {
		samples[nr_samples].sector = at;
		fuzz_read_sector(chain, at, samples[nr_samples].bytes);
		if (nr_samples < FIRST_SAMPLES)
			at++;
		else if (nr_samples == MAX_SAMPLES - LAST_SAMPLES &&
			 sectors - at > LAST_SAMPLES)
			at = sectors - LAST_SAMPLES;
		else if (nr_samples > MAX_SAMPLES - LAST_SAMPLES)
			at++;
		else
			at += 1 + sectors / MAX_SAMPLES;
	}
	vhd_chain_close(chain);
	return fits;
}

static void check_added(const struct vhd_chain *chain, uint64_t sectors)
{
	static const uint8_t zeros[VHD_SECTOR];
	uint8_t buf[VHD_SECTOR];

	for (unsigned int i = 0; i < 24 && old_sectors + i < sectors; i++) {
		fuzz_read_sector(chain, old_sectors + i, buf);
		fuzz_assert(!memcmp(buf, zeros, sizeof(buf)));
		fuzz_read_sector(chain, sectors - 1 - i, buf);
		fuzz_assert(sectors - 1 - i < old_sectors ||
			    !memcmp(buf, zeros, sizeof(buf)));
	}
}

static void check_disk(bool resized, bool done)
{
	struct vhd_chain *chain;
	uint8_t buf[VHD_SECTOR];
	uint64_t sectors;
	struct error err;

	fuzz_assert(!vhd_chain_open(&chain, memory_path(0), fuzz_config(), 0,
				    &err));
	for (unsigned int i = 0; i < chain->nr_vhd; i++)
		fuzz_check_image(chain->image[i]);
	fuzz_assert(!was_sound || is_sound(chain->image[0]));
	sectors = chain->image[0]->footer.current_size / VHD_SECTOR;
	fuzz_assert(sectors == old_sectors || (resized && done));
	for (unsigned int i = 0; i < nr_samples; i++) {
		if (samples[i].sector >= sectors)
			continue;
		fuzz_read_sector(chain, samples[i].sector, buf);
		fuzz_assert(!memcmp(buf, samples[i].bytes, sizeof(buf)));
	}
	check_added(chain, sectors);
	vhd_chain_close(chain);
}

static int repair(struct error *err)
{
	struct vhd_image *image;
	int rc;

	rc = vhd_open(&image, memory_path(0), VHD_OPEN_WRITE | VHD_OPEN_REPAIR,
		      err);
	if (rc)
		return rc;
	rc = vhd_write_trailer(image, err);
	vhd_close(image);
	return rc;
}

static int change(enum what what, uint64_t size, bool flag, struct error *err)
{
	const struct vhd_resize_args resize = {
		.path = memory_path(0), .size = size,
		.in_place = what == RESIZE_IN_PLACE, .drop_data = flag,
	};
	const struct vhd_parent_args parent = {
		.path = memory_path(0), .parent = memory_path(1),
		.raw = raw_parent || flag,
	};

	switch (what) {
	case REPAIR:
		return repair(err);
	case RESIZE:
	case RESIZE_IN_PLACE:
		return vhd_resize(&resize, fuzz_config(), err);
	case FILL:
		return vhd_fill(memory_path(0), fuzz_config(), NULL, err);
	case SET_PARENT:
	case NR_WHAT:
		break;
	}
	return vhd_set_parent(&parent, fuzz_config(), err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint64_t sums[MEMORY_FILES], bytes;
	struct error err = { 0 };
	enum what what;
	uint32_t block;
	int rc;

	memory_reset();
	if (size < PREFIX || !fuzz_make_chain(data + PREFIX, size - PREFIX))
		return 0;
	if (look(&block)) {
		what = data[0] % NR_WHAT;
		bytes = get_be16(data + 1) % (2 * MAX_BLOCKS) *
			(uint64_t)(block / 2);
		for (unsigned int i = 0; i < MEMORY_FILES; i++)
			sums[i] = memory_file_sum(i);
		rc = change(what, bytes, data[0] & 0x80, &err);
		for (unsigned int i = 1; i < MEMORY_FILES; i++)
			fuzz_assert(sums[i] == memory_file_sum(i));
		fuzz_assert(rc <= 0 && (!rc || err.text[0]));
		check_disk(what == RESIZE || what == RESIZE_IN_PLACE, !rc);
	}
	fuzz_assert(!memory_nr_open());
	return 0;
}
