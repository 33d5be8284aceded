// SPDX-License-Identifier: GPL-2.0-only
/*
 * The input is what happens to the extents of a minor of SECTORS sectors, 8 bytes each:
 *
 *   what u8 | file u8 | sector u16 | number u16 | place u16
 *
 * Held against a model that has an entry for each sector: what the driver finds is
 * there, and what is there it finds, but for what it may forget without memory.
 * A withdrawal is drained when, and only when, nothing that ran before it runs; but
 * one that comes while another is not may wait for what ran before that one was.
 */
#include <string.h>

#include "kernel.h"
#include "blktap_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SECTORS		512u
#define FILES		4u
#define RUNNING		16u

struct gendisk { int unused; };
struct file { int unused; };

struct action {
	u8 what, file;
	u16 sector, nr, place;
};

/* Where one sector is; extent tells those apart that lie side by side. */
struct model {
	u64 offset;
	u32 extent;		/* 0: in none */
	u8 file;
	bool write;
};

struct run {
	bool runs;
	u64 withdrawal;		/* how many there had been when it began */
	u8 epoch;
};

static struct model model[SECTORS];
static struct run runs[RUNNING];
static struct blktap tap;
static struct gendisk disk;
static struct file files[FILES];
static u64 withdrawals;
static u32 last_extent;
/* All earlier withdrawals were drained when the last one came. */
static bool alone;
/* Memory has run out: what the driver does not find may have been forgotten. */
static bool forgetful;

static void start(void)
{
	memset(model, 0, sizeof(model));
	memset(runs, 0, sizeof(runs));
	memset(&tap, 0, sizeof(tap));
	tap.extents = RB_ROOT;
	tap.params.sectors = SECTORS;
	tap.disk = &disk;
	tap.state = BLKTAP_LIVE;
	/* file 1 is read-only, file 3 is not there */
	for (u32 i = 0; i < FILES - 1; i++)
		tap.targets[i] = (struct blktap_target) {
			.file = &files[i], .write = i != 1,
		};
	withdrawals = 0;
	last_extent = 0;
	alone = true;
	forgetful = false;
	fuzz_no_memory = 0;
}

static struct blktap_extent made_of(const struct action *a)
{
	return (struct blktap_extent) {
		.sector = a->sector % (SECTORS + 8), .nr_sectors = a->nr % 80,
		.offset = (u64)a->place << SECTOR_SHIFT,
		.file = a->file % (FILES + 1), .flags = a->file >> 7,
	};
}

static int expected(const struct blktap_extent *e)
{
	if (!e->nr_sectors || e->sector + e->nr_sectors > SECTORS)
		return -EINVAL;
	if (e->file >= FILES - 1)
		return -ENOENT;
	if (e->flags && !tap.targets[e->file].write)
		return -EBADF;
	for (u64 s = e->sector; s < e->sector + e->nr_sectors; s++)
		if (model[s].extent)
			return -EEXIST;
	return 0;
}

static void add(const struct action *a)
{
	struct blktap_extent e = made_of(a);
	int want = expected(&e), rc;
	u32 added, number = tap.nr_extents;
	bool no_memory = fuzz_no_memory & 1;

	rc = blktap_extents_add(&tap, &e, 1, &added);
	fuzz_assert(added == (rc ? 0 : 1) && tap.nr_extents == number + added);
	if (rc == -ENOMEM) {
		fuzz_assert(no_memory && (!want || want == -EEXIST));
		return;
	}
	/* where something was forgotten there is room */
	fuzz_assert(rc == want || (want == -EEXIST && !rc && forgetful));
	if (rc)
		return;
	last_extent++;
	for (u32 i = 0; i < e.nr_sectors; i++)
		model[e.sector + i] = (struct model) {
			.offset = e.offset + ((u64)i << SECTOR_SHIFT), .file = (u8)e.file,
			.write = e.flags, .extent = last_extent,
		};
}

/* One extent of the model becomes two where a range in its midst goes. */
static void cut(u64 sector, u64 end, int file)
{
	u32 was = 0, now = 0;

	for (u64 s = sector; s < end; s++)
		if (file < 0 || model[s].file == file)
			model[s].extent = 0;
	for (u64 s = end; s < SECTORS && sector && sector < end && !model[sector].extent; s++) {
		if (s == end)
			was = model[s].extent;
		if (!was || model[s].extent != was || model[sector - 1].extent != was)
			break;
		now = now ? now : ++last_extent;
		model[s].extent = now;
	}
}

static void withdraw(const struct action *a)
{
	u64 sector = a->sector % (SECTORS + 8), nr = a->nr % 200, end;
	int file = a->file & 1 ? a->file >> 1 & 1 : -1;

	if (a->place & 1) {
		sector = 0;
		nr = U64_MAX;
	}
	end = nr > SECTORS - sector || sector > SECTORS ? SECTORS : sector + nr;
	forgetful |= fuzz_no_memory & 1;
	alone = blktap_drained(&tap);
	blktap_extents_withdraw(&tap, sector, nr, file);
	withdrawals++;
	cut(sector < end ? sector : end, end, file);
}

static void begin(const struct action *a)
{
	struct run *run = &runs[a->file % RUNNING];

	if (run->runs)
		return;
	run->runs = true;
	run->withdrawal = withdrawals;
	run->epoch = blktap_running_begin(&tap);
}

static void finish(const struct action *a)
{
	struct run *run = &runs[a->file % RUNNING];

	if (!run->runs)
		return;
	run->runs = false;
	blktap_running_end(&tap, run->epoch);
}

/* Looked for as queue_rq does. */
static void find(const struct action *a)
{
	u64 sector = a->sector % SECTORS;
	u32 nr = 1 + a->nr % 64;
	bool write = a->file & 1, there = sector + nr <= SECTORS && model[sector].extent;
	struct blktap_place place;

	for (u32 i = 1; there && i < nr; i++)
		there = model[sector + i].extent == model[sector].extent;
	there = there && (!write || model[sector].write);
	if (!blktap_extent_find(&tap, sector, nr, write, &place)) {
		fuzz_assert(!there || forgetful);
		return;
	}
	fuzz_assert(there);
	fuzz_assert(place.file == model[sector].file && place.offset == model[sector].offset);
}

static void check_drained(void)
{
	bool before = false, any = false;

	for (u32 i = 0; i < RUNNING; i++) {
		any |= runs[i].runs;
		before |= runs[i].runs && runs[i].withdrawal < withdrawals;
	}
	fuzz_assert(!(before && blktap_drained(&tap)));
	fuzz_assert(any || blktap_drained(&tap));
	fuzz_assert(!alone || before || blktap_drained(&tap));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct action a;

	start();
	for (; size >= sizeof(a); data += sizeof(a), size -= sizeof(a)) {
		memcpy(&a, data, sizeof(a));
		switch (a.what % 8) {
		case 0:
		case 1:
			add(&a);
			break;
		case 2:
			withdraw(&a);
			break;
		case 3:
			begin(&a);
			break;
		case 4:
			finish(&a);
			break;
		case 5:
			fuzz_no_memory = a.place;
			break;
		default:
			find(&a);
		}
		check_drained();
		fuzz_assert(!fuzz_locked);
	}
	/* what is left has no memory of its own behind it */
	fuzz_no_memory = 0;
	blktap_extents_withdraw(&tap, 0, U64_MAX, -1);
	fuzz_assert(!tap.nr_extents && !tap.extents.rb_node);
	return 0;
}
