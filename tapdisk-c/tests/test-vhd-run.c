/* SPDX-License-Identifier: LGPL-2.1-only */
/* What a VHD says of the places of its data, and when it takes that back. */
#include "tests/vhd-bed.h"

#define BLOCK		128u		/* sectors */

static const struct spec in_parts = { .sectors = BLOCK * 4, .block_size = BLOCK * SECTOR_SIZE,
				      .parent = "base.raw", .parent_raw = true };

struct told {
	struct image_watcher watcher;
	uint64_t sector, count;		/* of what was taken back last */
};

static void moved(struct image_watcher *watcher, uint64_t sector, uint64_t count)
{
	struct told *t = container_of(watcher, struct told, watcher);

	t->sector = sector;
	t->count = count;
}

static void begin_in_parts(struct bed *b, struct told *t)
{
	empty_base(in_parts.sectors);
	begin(b, &in_parts);
	*t = (struct told){ .watcher.moved = moved };
	b->disk->image.watcher = &t->watcher;
}

static void end_in_parts(struct bed *b)
{
	b->disk->image.watcher = NULL;
	end(b);
}

static void write_twice(struct bed *b, uint64_t sector, uint32_t count)
{
	for (int i = 0; i < 2; i++)
		assert_int_equal(io(b, IMAGE_WRITE, sector, count), 0);
}

static void assert_run(struct bed *b, uint64_t sector, uint64_t first, uint64_t count)
{
	struct vhd_image *leaf = b->disk->leaf;
	uint32_t block = (uint32_t)(sector / BLOCK);
	struct image_run run;

	assert_true(vhd_run(&b->disk->image, sector, &run));
	assert_true(run.write);
	assert_int_equal(run.sector, first);
	assert_int_equal(run.count, count);
	assert_int_equal(run.fd, leaf->fd);
	assert_int_equal(run.offset, (vhd_bat(leaf, block) + leaf->bitmap_sectors +
				      first % BLOCK) * SECTOR_SIZE);
}

static void assert_not_to_write(struct bed *b, uint64_t sector)
{
	struct image_run run;

	if (vhd_run(&b->disk->image, sector, &run))
		assert_false(run.write);
}

static void a_part_of_a_block_may_be_written_once_it_was_rewritten(void **state)
{
	struct told t;
	struct bed b;

	(void)state;
	begin_in_parts(&b, &t);
	assert_int_equal(io(&b, IMAGE_WRITE, BLOCK + 9, 16), 0);
	assert_not_to_write(&b, BLOCK + 9);
	assert_int_equal(io(&b, IMAGE_WRITE, BLOCK + 12, 3), 0);
	assert_run(&b, BLOCK + 9, BLOCK + 9, 16);
	assert_run(&b, BLOCK + 24, BLOCK + 9, 16);
	assert_not_to_write(&b, BLOCK + 8);
	assert_not_to_write(&b, BLOCK + 25);
	/* from the first sector of the block to the last of the disk */
	assert_int_equal(io(&b, IMAGE_WRITE, BLOCK * 3, 8), 0);
	assert_int_equal(io(&b, IMAGE_WRITE, BLOCK * 4 - 8, 8), 0);
	assert_int_equal(io(&b, IMAGE_WRITE, BLOCK * 3, 8), 0);
	assert_run(&b, BLOCK * 3 + 7, BLOCK * 3, 8);
	assert_run(&b, BLOCK * 4 - 1, BLOCK * 4 - 8, 8);
	end_in_parts(&b);
}

static void new_sectors_of_a_block_take_it_back_and_it_grows_by_them(void **state)
{
	struct told t;
	struct bed b;

	(void)state;
	begin_in_parts(&b, &t);
	write_twice(&b, 0, 8);
	assert_run(&b, 0, 0, 8);
	t.count = 0;
	assert_int_equal(io(&b, IMAGE_WRITE, 8, 8), 0);
	assert_int_equal(t.sector, 8);
	assert_int_equal(t.count, 8);
	assert_not_to_write(&b, 0);
	assert_int_equal(io(&b, IMAGE_WRITE, 4, 8), 0);
	assert_run(&b, 0, 0, 16);
	end_in_parts(&b);
}

static bool bitmaps_wait(const struct io_req *req)
{
	return req->op == IO_WRITE && fe_len(req) == SECTOR_SIZE;
}

/* Bits that are not in the file yet are no place: a kill would take them. */
static void what_is_not_in_the_file_yet_may_not_be_written(void **state)
{
	struct told t;
	struct bed b;

	(void)state;
	begin_in_parts(&b, &t);
	write_twice(&b, 0, 8);
	b.engine.hold = bitmaps_wait;
	start(&b, IMAGE_WRITE, 8, 8);
	run(&b);
	start(&b, IMAGE_WRITE, 0, 8);
	run(&b);
	assert_int_equal(b.busy, 2);
	assert_not_to_write(&b, 0);
	assert_not_to_write(&b, 8);
	b.engine.hold = NULL;
	settle(&b);
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 8), 0);
	assert_run(&b, 0, 0, 16);
	end_in_parts(&b);
}

static int bitmaps_fail(struct engine *e, const struct io_req *req, bool *reached)
{
	(void)e;
	(void)reached;
	return bitmaps_wait(req) ? -EIO : 0;
}

static void a_bitmap_that_cannot_be_written_takes_back_its_block(void **state)
{
	struct told t;
	struct bed b;

	(void)state;
	begin_in_parts(&b, &t);
	write_twice(&b, BLOCK, 8);
	b.faults = true;
	b.engine.script = bitmaps_fail;
	assert_int_equal(io(&b, IMAGE_WRITE, BLOCK + 8, 8), -EIO);
	assert_int_equal(t.sector, BLOCK);
	assert_int_equal(t.count, BLOCK);
	b.engine.script = NULL;
	assert_not_to_write(&b, BLOCK);
	write_twice(&b, BLOCK, 8);
	assert_run(&b, BLOCK, BLOCK, 16);
	end_in_parts(&b);
}

static void a_whole_block_may_be_written_and_a_parents_only_read(void **state)
{
	struct image_run run;
	struct told t;
	struct bed b;

	(void)state;
	begin_in_parts(&b, &t);
	assert_int_equal(io(&b, IMAGE_WRITE, BLOCK * 2, BLOCK), 0);
	assert_run(&b, BLOCK * 2 + 5, BLOCK * 2, BLOCK);
	assert_false(vhd_run(&b.disk->image, 0, &run));
	assert_int_equal(io(&b, IMAGE_READ, 0, 8), 0);
	assert_true(vhd_run(&b.disk->image, 3, &run));
	assert_false(run.write);
	assert_int_equal(run.fd, b.disk->chain->raw_fd);
	assert_int_equal(run.offset, run.sector * SECTOR_SIZE);
	assert_in_range(3, run.sector, run.sector + run.count - 1);
	end_in_parts(&b);
}

/* Beside what was rewritten: what of a parent is read is as long as the parent has it. */
static void a_run_of_a_parent_ends_where_another_image_has_the_data(void **state)
{
	struct spec parent = in_parts, leaf = { .sectors = in_parts.sectors,
						.block_size = in_parts.block_size,
						.parent = "mid.vhd" };
	struct image_run run;
	struct bed mid, b;

	(void)state;
	empty_base(in_parts.sectors);
	begin_with(&mid, "mid.vhd", &parent);
	assert_int_equal(io(&mid, IMAGE_WRITE, 32, 8), 0);
	assert_int_equal(disk_close(&mid), 0);
	fe_close(&mid.engine);
	begin(&b, &leaf);
	b.unchecked = true;
	write_twice(&b, 0, 8);
	assert_int_equal(io(&b, IMAGE_READ, 0, BLOCK), 0);
	assert_run(&b, 0, 0, 8);
	assert_true(vhd_run(&b.disk->image, 36, &run));
	assert_false(run.write);
	assert_int_equal(run.fd, b.disk->map.level[1].fd);
	assert_int_equal(run.sector, 32);
	assert_int_equal(run.count, 8);
	assert_true(vhd_run(&b.disk->image, 120, &run));
	assert_int_equal(run.fd, b.disk->chain->raw_fd);
	assert_int_equal(run.sector, 40);
	assert_int_equal(run.count, BLOCK - 40);
	bed_dispose(&mid);
	end(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_run_of_a_parent_ends_where_another_image_has_the_data),
		cmocka_unit_test(a_part_of_a_block_may_be_written_once_it_was_rewritten),
		cmocka_unit_test(new_sectors_of_a_block_take_it_back_and_it_grows_by_them),
		cmocka_unit_test(what_is_not_in_the_file_yet_may_not_be_written),
		cmocka_unit_test(a_bitmap_that_cannot_be_written_takes_back_its_block),
		cmocka_unit_test(a_whole_block_may_be_written_and_a_parents_only_read),
	};

	return cmocka_run_group_tests(tests, scratch, scratch_remove);
}
