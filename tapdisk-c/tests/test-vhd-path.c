/* SPDX-License-Identifier: LGPL-2.1-only */
/* The VHD data path: what requests cost, share and tell, and what of one that fails others meet. */
#include "tests/vhd-bed.h"

static unsigned int nr_writes, nr_metadata;

static int counts_writes(struct engine *e, const struct io_req *req,
			 bool *reached)
{
	(void)e;
	(void)reached;
	nr_writes += req->op == IO_WRITE;
	nr_metadata += req->op == IO_WRITE && fe_len(req) == SECTOR_SIZE;
	return 0;
}

static void a_block_without_a_parent_takes_metadata_once(void **state)
{
	struct spec spec = { .sectors = 4096 * 4, .block_size = 2u << 20 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 8), 0);
	nr_writes = nr_metadata = 0;
	b.engine.script = counts_writes;
	for (unsigned int i = 1; i <= 5; i++)
		assert_int_equal(io(&b, IMAGE_WRITE, i * 64, 8), 0);
	assert_int_equal(nr_writes, 5);
	assert_int_equal(nr_metadata, 0);
	b.engine.script = NULL;
	assert_int_equal(io(&b, IMAGE_READ, 0, 256), 0);
	end(&b);
}

/* A bitmap and a BAT sector for what came together, not for each. */
static void writes_that_come_together_share_their_metadata(void **state)
{
	struct spec spec = { .sectors = 4096 * 8, .block_size = 2u << 20,
			     .parent = "base.raw", .parent_raw = true };
	struct bed b;

	(void)state;
	empty_base(spec.sectors);
	begin(&b, &spec);
	assert_int_equal(io(&b, IMAGE_WRITE, 4096 * 7, 8), 0);
	nr_writes = nr_metadata = 0;
	b.engine.script = counts_writes;
	for (unsigned int i = 0; i < MAX_SLOTS; i++)
		start(&b, IMAGE_WRITE, i * 64, 8);
	assert_int_equal(nr_writes, 0);
	settle(&b);
	assert_in_range(nr_metadata, 2, 1 + MAX_SLOTS);
	nr_metadata = 0;
	for (unsigned int i = 0; i < 6; i++)
		start(&b, IMAGE_WRITE, 4096 * (1 + i), 8);
	settle(&b);
	assert_in_range(nr_metadata, 6 + 1, 6 + 3);
	b.engine.script = NULL;
	end(&b);
}

static unsigned int extents_of(struct bed *b, uint64_t sector, uint32_t count,
			       struct image_extent *extents)
{
	struct slot *s = start(b, IMAGE_STATUS, sector, count);

	settle(b);
	assert_int_equal(b->last_err, 0);
	memcpy(extents, s->extents, s->req.nr_extents * sizeof(*extents));
	return s->req.nr_extents;
}

static void status_tells_what_some_image_holds(void **state)
{
	/* Blocks of the parent that are smaller than the leaf's, and fewer. */
	struct spec parent = { .sectors = 8 * 20, .block_size = 4096 };
	struct spec spec = { .sectors = 128 * 3, .block_size = 65536,
			     .parent = "mid.vhd" };
	struct image_extent e[MAX_EXTENTS];
	struct bed mid, b;
	unsigned int n;

	(void)state;
	begin_with(&mid, "mid.vhd", &parent);
	assert_int_equal(io(&mid, IMAGE_WRITE, 8, 8), 0);
	assert_int_equal(io(&mid, IMAGE_WRITE, 152, 8), 0);
	assert_int_equal(disk_close(&mid), 0);
	fe_close(&mid.engine);
	begin(&b, &spec);
	b.unchecked = true;
	do
		n = extents_of(&b, 0, 384, e);
	while (n < 4);
	assert_true(e[0].zero && e[0].hole && !e[1].zero && !e[1].hole);
	assert_int_equal(e[0].count, 8);
	assert_int_equal(e[1].count, 8);
	assert_int_equal(e[2].count, 136);
	assert_int_equal(e[3].count, 8);
	b.now[8].value = mid.now[8].value;
	assert_int_equal(io(&b, IMAGE_WRITE, 16, 1), 0);
	do
		n = extents_of(&b, 0, 100, e);
	while (n < 3);
	assert_int_equal(e[1].count, 9);
	assert_int_equal(e[2].count, 100 - 17);
	bed_dispose(&mid);
	end(&b);
}

static uint64_t bitmap_at;		/* of the parent's block */

static int parents_bitmap_fails(struct engine *e, const struct io_req *req,
				bool *reached)
{
	(void)reached;
	return req->op == IO_READ && req->offset == bitmap_at &&
	       !fe_follows(req->fd) && e ? -EIO : 0;
}

static void a_bitmap_that_cannot_be_read_hides_no_more_than_it_must(void **state)
{
	struct spec parent = { .sectors = 256, .block_size = 65536,
			       .parent = "base.raw", .parent_raw = true };
	struct spec spec = { .sectors = 256, .block_size = 65536,
			     .parent = "mid.vhd" };
	struct bed mid, b;

	(void)state;
	empty_base(spec.sectors);
	begin_with(&mid, "mid.vhd", &parent);
	assert_int_equal(io(&mid, IMAGE_WRITE, 8, 8), 0);
	bitmap_at = (uint64_t)vhd_bat(mid.disk->leaf, 0) * SECTOR_SIZE;
	assert_int_equal(disk_close(&mid), 0);
	fe_close(&mid.engine);
	begin(&b, &spec);
	b.unchecked = true;
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 8), 0);
	b.faults = true;
	b.engine.script = parents_bitmap_fails;
	assert_int_equal(io(&b, IMAGE_READ, 0, 8), 0);
	assert_int_equal(io(&b, IMAGE_READ, 0, 9), -EIO);
	assert_int_equal(io(&b, IMAGE_READ, 8, 8), -EIO);
	assert_int_equal(io(&b, IMAGE_READ, 128, 8), 0);
	/* It was not for good. */
	b.engine.script = NULL;
	assert_int_equal(io(&b, IMAGE_READ, 0, 128), 0);
	bed_dispose(&mid);
	end(&b);
}

static void a_large_request_lets_others_have_their_turn(void **state)
{
	struct spec spec = { .sectors = 8 * 4000, .block_size = 4096 };
	struct slot *large, *small;
	struct bed b;

	(void)state;
	begin(&b, &spec);
	for (unsigned int i = 0; i < 20; i++)
		assert_int_equal(io(&b, IMAGE_WRITE, i * 16, 8), 0);
	/* Neither all operations at once, nor all steps. */
	large = start(&b, IMAGE_ZERO, 0, (uint32_t)spec.sectors);
	assert_int_equal(b.engine.nr_pending, VHD_MAX_PENDING);
	start(&b, IMAGE_ZERO, 400, (uint32_t)spec.sectors - 400);
	assert_false(list_empty(&b.disk->later));
	assert_true(large->busy);
	small = start(&b, IMAGE_READ, 8 * 3999, 8);
	assert_false(small->busy);
	settle(&b);
	assert_int_equal(b.last_err, 0);
	end(&b);
}

/* The footer ahead of the blocks holds the space that the last one needs. */
static void a_full_file_system_can_be_closed_cleanly(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 8), 0);
	b.engine.full = true;
	assert_int_equal(disk_close(&b), 0);
	check_image(&b, true);
	disk_open(&b, 0, 0);
	look(&b, false);
	end(&b);
}

/* lvextend while writes wait for space. */
static void a_device_that_was_made_larger_has_room(void **state)
{
	struct spec spec = { .sectors = 8 * 64, .block_size = 4096,
			     .device = 64 << 10 };
	struct bed b;
	uint64_t n = 0;

	(void)state;
	begin(&b, &spec);
	b.faults = true;
	while (n < 64 && !io(&b, IMAGE_WRITE, 8 * n, 8))
		n++;
	assert_in_range(n, 2, 20);
	assert_int_equal(io(&b, IMAGE_WRITE, 8 * n, 8), -ENOSPC);
	assert_int_equal(truncate(in_dir("leaf.vhd"), 1 << 20), 0);
	for (; n < 64; n++)
		assert_int_equal(io(&b, IMAGE_WRITE, 8 * n, 8), 0);
	assert_int_equal(io(&b, IMAGE_FLUSH, 0, 0), 0);
	assert_int_equal(disk_close(&b), 0);
	check_image(&b, false);
	disk_open(&b, 0, 0);
	look(&b, false);
	end(&b);
}

static void memory_is_bounded_whatever_the_size_of_a_block(void **state)
{
	struct spec spec = { .sectors = 3 << 19, .block_size = VHD_MAX_BLOCK };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	assert_in_range(b.disk->cache.nr * 2 * b.disk->cache.map_bytes, 1,
			16 << 20);
	for (unsigned int i = 0; i < MAX_SLOTS; i++)
		start(&b, IMAGE_WRITE, (i % 3) << 19 | i * 8, 8);
	settle(&b);
	assert_int_equal(io(&b, IMAGE_READ, 1 << 19, 64), 0);
	end(&b);
}

static int bitmaps_cant_be_read(struct engine *e, const struct io_req *req,
				bool *reached)
{
	(void)e;
	*reached = false;
	return req->op == IO_READ && fe_len(req) == SECTOR_SIZE ? -EIO : 0;
}

/* What the map learns is out of date before it has it, and its next try fails too. */
static void a_bitmap_that_stays_bad_is_an_error_and_no_endless_loop(void **state)
{
	struct spec parent = { .sectors = 128, .block_size = 4096 };
	struct spec spec = { .sectors = 128, .block_size = 65536,
			     .parent = "mid.vhd" };
	struct bed mid, b;

	(void)state;
	begin_with(&mid, "mid.vhd", &parent);
	assert_int_equal(io(&mid, IMAGE_WRITE, 8, 8), 0);
	assert_int_equal(disk_close(&mid), 0);
	fe_close(&mid.engine);
	begin(&b, &spec);
	b.faults = true;
	b.engine.script = bitmaps_cant_be_read;
	b.engine.hold = reads_wait;
	start(&b, IMAGE_READ, 8, 8);
	run(&b);
	assert_int_equal(b.busy, 1);
	vhd_map_forget(b.disk, 0);
	b.engine.hold = NULL;
	run(&b);
	assert_int_equal(b.busy, 0);
	assert_int_equal(b.last_err, -EIO);
	b.engine.script = NULL;
	b.unchecked = true;
	assert_int_equal(io(&b, IMAGE_READ, 8, 8), 0);
	end(&b);
	bed_dispose(&mid);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_block_without_a_parent_takes_metadata_once),
		cmocka_unit_test(writes_that_come_together_share_their_metadata),
		cmocka_unit_test(status_tells_what_some_image_holds),
		cmocka_unit_test(a_bitmap_that_stays_bad_is_an_error_and_no_endless_loop),
		cmocka_unit_test(a_bitmap_that_cannot_be_read_hides_no_more_than_it_must),
		cmocka_unit_test(a_large_request_lets_others_have_their_turn),
		cmocka_unit_test(a_full_file_system_can_be_closed_cleanly),
		cmocka_unit_test(a_device_that_was_made_larger_has_room),
		cmocka_unit_test(memory_is_bounded_whatever_the_size_of_a_block),
	};

	return cmocka_run_group_tests(tests, scratch, scratch_remove);
}
