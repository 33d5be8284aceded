/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The input is a seed (u32) and a chain, which the data path opens as a disk. What it
 * reads is held against a plain reading, then it is written to, closed, checked
 * and read again. Places are watched: a few runs of sectors, chance says which.
 */
#include <string.h>

#include "drivers/vhd-disk.h"
#include "fuzz/fuzz.h"
#include "fuzz/memory-engine.h"
#include "fuzz/memory-files.h"
#include "vhd/check.h"
#include "vhd/vhd-internal.h"

#define SEED_BYTES	4u
#define MAX_PLACES	6u
#define PLACE_SECTORS	24u
#define MAX_SLOTS	4u
#define MAX_ROUNDS	6u
#define MAX_EXTENTS	4u
/* Tables are made anew for each execution. */
#define MAX_BLOCKS	4096u
/* Written as a whole if the file system can't make zeros. */
#define MAX_WRITTEN_BLOCK (64u << 10)

enum known {
	ANY,				/* a request failed, or it was discarded */
	SURE,
};

static struct place {
	uint64_t sector;
	uint32_t count;
	enum known known[PLACE_SECTORS];
	uint8_t bytes[PLACE_SECTORS][VHD_SECTOR];
} places[MAX_PLACES];
static unsigned int nr_places;

static struct slot {
	struct image_request req;
	struct image_extent extents[MAX_EXTENTS];
	bool busy;
	int err;
} slots[MAX_SLOTS];

static _Alignas(IMAGE_ALIGN) uint8_t buffers[MAX_SLOTS]
					    [PLACE_SECTORS * VHD_SECTOR];
static struct engine engine;
static bool failed;			/* a request did */

static void ended(struct image_request *req, int err)
{
	struct slot *s = container_of(req, struct slot, req);

	fuzz_assert(s->busy);
	s->busy = false;
	s->err = err;
	failed |= err != 0;
}

/* All watched sectors of [sector, sector + count); bytes: NULL for zeros. */
static void expect(uint64_t sector, uint32_t count, enum known known,
		   const uint8_t *bytes)
{
	for (unsigned int i = 0; i < nr_places; i++) {
		struct place *p = &places[i];

		for (uint32_t j = 0; j < p->count; j++) {
			uint64_t at = p->sector + j;

			if (at < sector || at >= sector + count)
				continue;
			p->known[j] = known;
			if (bytes)
				memcpy(p->bytes[j], bytes + (at - sector) *
				       VHD_SECTOR, VHD_SECTOR);
			else
				memset(p->bytes[j], 0, VHD_SECTOR);
		}
	}
}

/* Of the place whose sectors start there. */
static void compare(const struct place *p, uint32_t first, uint32_t count,
		    const uint8_t *bytes)
{
	for (uint32_t i = 0; i < count; i++)
		fuzz_assert(p->known[first + i] == ANY ||
			    !memcmp(p->bytes[first + i], bytes + i * VHD_SECTOR,
				    VHD_SECTOR));
}

/* Blocks, their borders, both ends. */
static void choose_places(const struct vhd_disk *disk)
{
	uint64_t sectors = disk->image.info.sectors, spb = disk->leaf->spb;

	nr_places = 2 + memory_below(&engine, MAX_PLACES - 1);
	for (unsigned int i = 0; i < nr_places; i++) {
		struct place *p = &places[i];
		uint64_t at = memory_random(&engine) % sectors;

		switch (memory_below(&engine, 4)) {
		case 0:
			at = i ? sectors - 1 : 0;
			break;
		case 1:
			at = spb ? at / spb * spb : at;
			break;
		case 2:
			at = i ? places[i - 1].sector + spb : at;
			break;
		}
		at -= at >= 4 && memory_below(&engine, 2) ? 4 : 0;
		p->sector = at % sectors;
		p->count = 1 + memory_below(&engine, PLACE_SECTORS);
		if (p->count > sectors - p->sector)
			p->count = (uint32_t)(sectors - p->sector);
		for (uint32_t j = 0; j < p->count; j++) {
			p->known[j] = SURE;
			fuzz_read_sector(disk->chain, p->sector + j,
					 p->bytes[j]);
		}
	}
}

static bool overlaps(uint64_t sector, uint32_t count)
{
	for (unsigned int i = 0; i < MAX_SLOTS; i++)
		if (slots[i].busy && sector < slots[i].req.sector +
						slots[i].req.count &&
		    slots[i].req.sector < sector + count)
			return true;
	return false;
}

/* Zeros where it says so, and as much as was asked for if there was room. */
static void check_status(const struct slot *s, const struct place *p,
			 uint32_t first)
{
	uint32_t at = 0;

	for (unsigned int i = 0; i < s->req.nr_extents; i++) {
		const struct image_extent *x = &s->extents[i];
		static const uint8_t zeros[VHD_SECTOR];

		fuzz_assert(x->count && x->count <= s->req.count - at);
		for (uint32_t j = 0; x->zero && j < x->count; j++)
			compare(p, first + at + j, 1, zeros);
		at += x->count;
	}
	fuzz_assert(at == s->req.count || s->req.nr_extents == MAX_EXTENTS);
}

/* Some requests at once, none of which touches what another one does. */
static void round_of_requests(struct vhd_disk *disk, bool write)
{
	static const enum image_op ops[] = {
		IMAGE_READ, IMAGE_STATUS, IMAGE_FLUSH,
		IMAGE_WRITE, IMAGE_WRITE, IMAGE_WRITE, IMAGE_ZERO,
		IMAGE_DISCARD,
	};
	unsigned int nr_ops = write ? sizeof(ops) / sizeof(ops[0]) : 2;
	struct { const struct place *place; uint32_t first; } what[MAX_SLOTS];
	unsigned int n = 0;

	for (unsigned int i = 0; i < MAX_SLOTS; i++) {
		const struct place *p = &places[memory_below(&engine, nr_places)];
		uint32_t first = memory_below(&engine, p->count);
		uint32_t count = 1 + memory_below(&engine, p->count - first);
		struct slot *s = &slots[n];

		if (overlaps(p->sector + first, count))
			continue;
		s->req = (struct image_request){
			.op = ops[memory_below(&engine, nr_ops)],
			.sector = p->sector + first, .count = count,
			.buf = buffers[n], .done = ended,
			.keep_space = memory_below(&engine, 2),
			.extents = s->extents, .max_extents = MAX_EXTENTS,
		};
		what[n].place = p;
		what[n].first = first;
		if (s->req.op == IMAGE_FLUSH)
			s->req.sector = s->req.count = 0;
		memset(s->req.buf, (int)memory_below(&engine, 256),
		       count * VHD_SECTOR);
		s->busy = true;
		n++;
		vhd_driver.submit(&disk->image, &s->req);
	}
	memory_engine_run(&engine);
	fuzz_assert(!image_busy(&disk->image));
	for (unsigned int i = 0; i < n; i++) {
		const struct image_request *req = &slots[i].req;
		bool ok = !slots[i].err;

		fuzz_assert(!slots[i].busy);
		switch (req->op) {
		case IMAGE_READ:
			/* What has been accepted can be read. */
			fuzz_assert(ok);
			compare(what[i].place, what[i].first, req->count,
				req->buf);
			break;
		case IMAGE_STATUS:
			fuzz_assert(ok);
			check_status(&slots[i], what[i].place, what[i].first);
			break;
		case IMAGE_WRITE:
			expect(req->sector, req->count, ok ? SURE : ANY,
			       req->buf);
			break;
		case IMAGE_ZERO:
			expect(req->sector, req->count, ok ? SURE : ANY, NULL);
			break;
		case IMAGE_DISCARD:
			expect(req->sector, req->count, ANY, NULL);
			break;
		case IMAGE_FLUSH:
			break;
		}
	}
}

/* Every image sound, as far as vhd_check() tells; *warnings of the leaf. */
static bool is_sound(const struct vhd_chain *chain, unsigned int *warnings)
{
	const struct vhd_check_options options = { .bitmaps = true };
	struct vhd_check_result result;
	struct error err;
	bool sound = true;

	for (unsigned int i = chain->nr_vhd; i--;) {
		const struct vhd_image *image = chain->image[i];

		sound = sound && image->bat_entries <= MAX_BLOCKS &&
			!vhd_check(image, &options, &result, &err);
		if (image->bat_entries <= MAX_BLOCKS) {
			*warnings = result.nr_warnings;
			vhd_check_result_dispose(&result);
		}
	}
	return sound;
}

static bool look(unsigned int *warnings, uint32_t *block)
{
	struct vhd_chain *chain;
	struct error err;
	bool sound;

	if (vhd_chain_open(&chain, memory_path(0), fuzz_config(), 0, &err))
		return false;
	sound = is_sound(chain, warnings);
	*block = chain->image[0]->header.block_size;
	vhd_chain_close(chain);
	return sound;
}

static void check_closed(unsigned int warnings_before)
{
	struct vhd_chain *chain;
	uint8_t buf[VHD_SECTOR];
	unsigned int warnings;
	struct error err;

	fuzz_assert(!vhd_chain_open(&chain, memory_path(0), fuzz_config(), 0,
				    &err));
	for (unsigned int i = 0; i < chain->nr_vhd; i++)
		fuzz_check_image(chain->image[i]);
	fuzz_assert(is_sound(chain, &warnings));
	fuzz_assert(failed || warnings <= warnings_before);
	for (unsigned int i = 0; i < nr_places; i++)
		for (uint32_t j = 0; j < places[i].count; j++) {
			fuzz_read_sector(chain, places[i].sector + j, buf);
			compare(&places[i], j, 1, buf);
			fuzz_assert(!vhd_chain_read(chain, places[i].sector + j,
						    1, buf, &err));
			compare(&places[i], j, 1, buf);
		}
	vhd_chain_close(chain);
}

static void use_disk(bool readonly, unsigned int warnings)
{
	struct image_open_args args = {
		.engine = &engine, .config = fuzz_config(),
		.path = memory_path(0), .readonly = readonly,
		.max_requests = MAX_SLOTS,
	};
	uint64_t sums[MEMORY_FILES];
	unsigned int rounds;
	struct vhd_disk *disk;
	struct image *image;
	struct error err;
	int rc;

	for (unsigned int i = 0; i < MEMORY_FILES; i++)
		sums[i] = memory_file_sum(i);
	if (vhd_driver.open(&image, &args, &err))
		return;
	disk = vhd_disk_of(image);
	/* Small steps, so that there are some. */
	disk->grow.step = 1u << (14 + memory_below(&engine, 6));
	disk->map.pool[0].limit = disk->map.pool[1].limit =
		1 + memory_below(&engine, 4);
	choose_places(disk);
	failed = false;
	round_of_requests(disk, false);
	for (rounds = memory_below(&engine, MAX_ROUNDS); rounds; rounds--)
		round_of_requests(disk, !readonly);
	rc = vhd_driver.close(image, &err);
	fuzz_assert(!rc || failed);
	for (unsigned int i = readonly ? 0 : 1; i < MEMORY_FILES; i++)
		fuzz_assert(sums[i] == memory_file_sum(i));
	if (!rc)
		check_closed(warnings);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	unsigned int warnings;
	uint32_t block;

	memory_reset();
	if (size < SEED_BYTES ||
	    !fuzz_make_chain(data + SEED_BYTES, size - SEED_BYTES))
		return 0;
	memory_engine_init(&engine, get_be32(data));
	if (look(&warnings, &block)) {
		engine.no_punch = memory_below(&engine, 4) == 0;
		engine.no_zero = block <= MAX_WRITTEN_BLOCK &&
				 memory_below(&engine, 4) == 0;
		use_disk(memory_below(&engine, 8) == 0, warnings);
	}
	fuzz_assert(!memory_nr_open());
	return 0;
}
