/* SPDX-License-Identifier: LGPL-2.1-only */
/* The VHD data path when I/O fails, a process dies or the power goes: single cases. */
#include "tests/vhd-bed.h"

#define BAT_OFFSET 1536u		/* make_image()'s */

/* All that has been written is on the medium. */
static void all_durable(struct bed *b)
{
	fe_make_durable(&b->engine, b->engine.clock);
	memcpy(b->flushed, b->now, (size_t)b->sectors * sizeof(*b->now));
}

static void power_loss(struct bed *b, bool (*survives)(const struct fe_change *))
{
	disk_kill(b);
	b->engine.survives = survives;
	fe_power_loss(&b->engine);
	check_image(b, false);
	disk_open(b, 0, 0);
	look(b, true);
}

static uint64_t wanted;			/* an offset in the file, for the filters below */

static bool all_but_wanted(const struct fe_change *c)
{
	return c->truncate || c->offset != wanted;
}

static int bat_fails(struct engine *e, const struct io_req *req, bool *reached)
{
	(void)e;
	*reached = false;
	return req->op == IO_WRITE && req->offset == BAT_OFFSET ? -EIO : 0;
}

static int bat_fails_but_is_written(struct engine *e, const struct io_req *req,
				    bool *reached)
{
	int err = bat_fails(e, req, reached);

	*reached = err;
	return err;
}

/* The first write, of count sectors, has failed; the script stays. */
static void begin_failed(struct bed *b, const struct spec *spec, uint32_t count,
			 int (*script)(struct engine *, const struct io_req *, bool *))
{
	begin(b, spec);
	b->faults = true;
	b->engine.script = script;
	assert_int_equal(io(b, IMAGE_WRITE, 0, count), -EIO);
}

static bool metadata_waits(const struct io_req *req)
{
	return req->op == IO_WRITE && req->iov->iov_len < 8 * SECTOR_SIZE;
}

static bool syncs_wait(const struct io_req *req)
{
	return req->op == IO_SYNC;
}

static void a_write_is_read_back(void **state)
{
	struct spec spec = { .sectors = 100, .block_size = 4096 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	assert_int_equal(io(&b, IMAGE_WRITE, 3, 50), 0);
	assert_int_equal(io(&b, IMAGE_READ, 0, 100), 0);
	assert_int_equal(disk_close(&b), 0);
	check_image(&b, true);
	end(&b);
}

/* Were its place given to another block, two BAT entries would name it. */
static void a_bat_write_that_fails_may_have_reached_the_file(void **state)
{
	struct spec spec = { .sectors = 8 * 300, .block_size = 4096 };
	struct bed b;

	(void)state;
	begin_failed(&b, &spec, 8, bat_fails_but_is_written);
	b.engine.script = NULL;
	/* In another sector of the BAT. */
	assert_int_equal(io(&b, IMAGE_WRITE, 8 * 200, 8), 0);
	assert_int_equal(disk_close(&b), 0);
	check_image(&b, false);
	disk_open(&b, 0, 0);
	look(&b, false);
	end(&b);
}

/* The file would be cut off before a block that its BAT has. */
static void the_close_keeps_blocks_whose_bat_write_failed(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096 };
	struct bed b;

	(void)state;
	begin_failed(&b, &spec, 8, bat_fails_but_is_written);
	assert_int_equal(disk_close(&b), 0);
	check_image(&b, false);
	end(&b);
}

static void a_read_never_meets_another_blocks_data(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	/* Grown, so that writes of less than a block are metadata. */
	assert_int_equal(io(&b, IMAGE_WRITE, 72, 8), 0);
	b.faults = true;
	b.engine.script = bat_fails;
	b.engine.hold = metadata_waits;
	start(&b, IMAGE_WRITE, 0, 8);
	run(&b);
	start(&b, IMAGE_READ, 0, 8);
	b.engine.hold = reads_wait;
	run(&b);
	assert_int_equal(b.last_err, -EIO);
	b.engine.script = NULL;
	start(&b, IMAGE_WRITE, 40, 8);
	run(&b);
	assert_int_equal(b.last_err, 0);
	b.engine.hold = NULL;
	settle(&b);
	end(&b);
}

/* A bitmap and data that no BAT entry leads to, as a kill may leave them. */
static void what_a_kill_left_never_passes_for_a_block(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096 };
	struct bed b;

	(void)state;
	begin_failed(&b, &spec, 8, bat_fails);
	disk_kill(&b);
	all_durable(&b);
	b.engine.script = NULL;
	disk_open(&b, 0, 0);
	assert_int_equal(io(&b, IMAGE_WRITE, 43, 1), 0);
	wanted = (uint64_t)vhd_bat(b.disk->leaf, 5) * VHD_SECTOR;
	power_loss(&b, all_but_wanted);
	end(&b);
}

static void a_footer_never_passes_for_data(void **state)
{
	struct spec spec = { .sectors = 6 * 32768, .block_size = 16u << 20 };
	struct bed b;
	uint64_t first;

	(void)state;
	begin(&b, &spec);
	for (unsigned int i = 0; i < 4; i++)
		assert_int_equal(io(&b, IMAGE_WRITE, 32768 * i, 1), 0);
	wanted = VHD_GROW_BYTES;
	first = ((uint64_t)vhd_bat(b.disk->leaf, 3) +
		 b.disk->leaf->bitmap_sectors) * VHD_SECTOR;
	assert_in_range(wanted, first, first + spec.block_size - 1);
	assert_int_equal(io(&b, IMAGE_FLUSH, 0, 0), 0);
	assert_int_equal(io(&b, IMAGE_WRITE, 3 * 32768 +
			    (wanted - first) / SECTOR_SIZE, 1), 0);
	power_loss(&b, all_but_wanted);
	end(&b);
}

static void a_device_never_shows_what_lay_there_before(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096,
			     .device = 1 << 20 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 1), 0);
	assert_int_equal(io(&b, IMAGE_FLUSH, 0, 0), 0);
	assert_int_equal(io(&b, IMAGE_WRITE, 1, 1), 0);
	wanted = ((uint64_t)vhd_bat(b.disk->leaf, 0) + 2) * VHD_SECTOR;
	power_loss(&b, all_but_wanted);
	end(&b);
}

/* Its BAT entry is on the medium, though the write of it failed. */
static void a_block_tried_again_is_as_careful_as_one_in_use(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096,
			     .device = 1 << 20 };
	struct bed b;

	(void)state;
	begin_failed(&b, &spec, 1, bat_fails_but_is_written);
	b.engine.script = NULL;
	all_durable(&b);
	b.engine.hold = syncs_wait;
	start(&b, IMAGE_WRITE, 1, 1);
	run(&b);
	wanted = ((uint64_t)vhd_bat(b.disk->leaf, 0) + 2) * VHD_SECTOR;
	power_loss(&b, all_but_wanted);
	b.engine.hold = NULL;
	end(&b);
}

/* Of an image that was made smaller, or was made to grow. */
static int syncs_fail(struct engine *e, const struct io_req *req, bool *reached)
{
	(void)e;
	(void)reached;
	return req->op == IO_SYNC ? -EIO : 0;
}

/* It may be what was acknowledged before that did not reach the medium, and the kernel tells once. */
static void a_flush_tells_of_a_sync_of_our_own_that_failed(void **state)
{
	struct spec on_device = { .sectors = 80, .block_size = 4096, .device = 1u << 20 };
	struct spec grows = { .sectors = 80, .block_size = 4096 };
	struct bed b;

	(void)state;
	for (int i = 0; i < 2; i++) {
		begin_failed(&b, i ? &grows : &on_device, 8, syncs_fail);
		b.engine.script = NULL;
		assert_int_equal(io(&b, IMAGE_WRITE, 8, 8), 0);
		assert_int_equal(io(&b, IMAGE_FLUSH, 0, 0), -EIO);
		assert_int_equal(io(&b, IMAGE_FLUSH, 0, 0), 0);
		end(&b);
	}
}

/* What the page cache holds would not be written again by who tries again. */
static void a_sync_that_failed_through_the_page_cache_leaves_no_block_complete(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096, .batmap = true };
	struct vhd_image *image;
	struct error err;
	struct bed b;

	(void)state;
	for (int i = 0; i < 2; i++) {
		begin(&b, &spec);
		b.disk->buffered = true;
		assert_int_equal(io(&b, IMAGE_WRITE, 0, 8), 0);
		b.faults = true;
		b.engine.script = i ? syncs_fail : NULL;
		assert_int_equal(io(&b, IMAGE_FLUSH, 0, 0), i ? -EIO : 0);
		b.engine.script = NULL;
		assert_int_equal(io(&b, IMAGE_FLUSH, 0, 0), i ? -EIO : 0);
		assert_int_equal(disk_close(&b), i ? -EIO : 0);
		assert_int_equal(vhd_open(&image, in_dir("leaf.vhd"), VHD_OPEN_NOLOCK, &err), 0);
		assert_int_equal(vhd_bit(image->batmap, 0), !i);
		vhd_close(image);
		end(&b);
	}
}

/* The copy at the start is damaged, and the footer lies beyond space that nothing uses. */
static void make_damaged(const struct spec *spec)
{
	uint8_t footer[SECTOR_SIZE], zeros[SECTOR_SIZE] = { 0 };
	uint64_t at;
	int fd;

	make_image("leaf.vhd", spec);
	fd = open(in_dir("leaf.vhd"), O_RDWR);
	assert_true(fd >= 0);
	at = (uint64_t)lseek(fd, 0, SEEK_END) - SECTOR_SIZE;
	assert_int_equal(pread(fd, footer, SECTOR_SIZE, (off_t)at), SECTOR_SIZE);
	put(fd, zeros, SECTOR_SIZE, 0);
	put(fd, zeros, SECTOR_SIZE, at);
	put(fd, footer, SECTOR_SIZE, at + 16 * SECTOR_SIZE);
	close(fd);
}

static void a_repair_that_is_cut_off_leaves_a_footer(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096 };
	struct vhd_image *image;
	unsigned int cut = 0;
	struct error err;
	struct engine e;

	(void)state;
	for (unsigned int i = 0; i < 200; i++) {
		make_damaged(&spec);
		fe_open(&e, in_dir("leaf.vhd"), i);
		assert_int_equal(vhd_open(&image, in_dir("leaf.vhd"),
					  VHD_OPEN_WRITE | VHD_OPEN_REPAIR, &err), 0);
		e.die_after = 1 + i % 10;
		cut += vhd_write_trailer(image, &err) != 0;
		vhd_close(image);
		fe_kill(&e);
		fe_power_loss(&e);
		fe_close(&e);
		if (vhd_open(&image, in_dir("leaf.vhd"), VHD_OPEN_NOLOCK, &err))
			fail_msg("%u: %s", i, err.text);
		vhd_close(image);
	}
	assert_in_range(cut, 1, 199);
}

static void bat_entries_beyond_the_size_are_kept(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096, .spare = 2 };
	uint32_t entry = 0x12345678;
	struct bed b;
	int fd;

	(void)state;
	make_image("leaf.vhd", &spec);
	bed_init(&b, "leaf.vhd", spec.sectors);
	fd = open(in_dir("leaf.vhd"), O_RDWR);
	assert_true(fd >= 0);
	put(fd, &entry, sizeof(entry), BAT_OFFSET + 4 * 11);
	follow(&b, 1);
	disk_open(&b, 0, 0);
	assert_int_equal(io(&b, IMAGE_WRITE, 72, 8), 0);
	assert_int_equal(disk_close(&b), 0);
	entry = 0;
	assert_int_equal(pread(fd, &entry, sizeof(entry), BAT_OFFSET + 4 * 11),
			 sizeof(entry));
	assert_int_equal(entry, 0x12345678);
	close(fd);
	end(&b);
}

/* Zeros that were answered would give way to what the failed write has left. */
static void zeros_cover_a_block_whose_bat_write_failed(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096 };
	struct bed b;

	(void)state;
	begin_failed(&b, &spec, 8, bat_fails_but_is_written);
	b.engine.script = NULL;
	assert_int_equal(io(&b, IMAGE_ZERO, 0, 8), 0);
	disk_kill(&b);
	disk_open(&b, 0, 0);
	look(&b, false);
	end(&b);
}

static int data_fails(struct engine *e, const struct io_req *req, bool *reached)
{
	(void)e;
	(void)reached;
	return req->op == IO_WRITE && fe_len(req) == 8 * SECTOR_SIZE ? -EIO : 0;
}

/* A disk that begins with a block whose write failed and is in the file, to be snapshot. */
static struct image_snapshot *begin_snapshot(struct bed *b)
{
	struct spec spec = { .sectors = 80, .block_size = 4096 };
	struct spec child = { .sectors = 80, .block_size = 4096,
			      .parent = "parent.vhd" };
	struct image_open_args args;
	struct image_snapshot *s;
	struct error err;

	begin_failed(b, &spec, 8, bat_fails_but_is_written);
	b->engine.script = NULL;
	assert_int_equal(io(b, IMAGE_FLUSH, 0, 0), 0);
	assert_int_equal(link(in_dir("leaf.vhd"), in_dir("parent.vhd")), 0);
	make_image(".xenblk-child", &child);
	args = (struct image_open_args) {
		.engine = &b->engine, .config = &b->cfg,
		.path = in_dir(".xenblk-child"), .max_requests = MAX_SLOTS,
	};
	if (vhd_driver.snapshot_prepare(&s, &b->disk->image, &args,
					in_dir("parent.vhd"), &err))
		fail_msg("%s", err.text);
	return s;
}

static void zeros_after_a_snapshot_cover_what_a_failed_write_left(void **state)
{
	struct image_snapshot *s;
	struct image *image;
	struct error err;
	struct bed b;

	(void)state;
	s = begin_snapshot(&b);
	assert_int_equal(vhd_driver.snapshot_switch(s, &err), 0);
	assert_int_equal(vhd_driver.snapshot_take(s, &image, &err), 0);
	vhd_driver.snapshot_end(s);
	b.disk = vhd_disk_of(image);
	assert_int_equal(io(&b, IMAGE_ZERO, 0, 8), 0);
	assert_int_equal(io(&b, IMAGE_FLUSH, 0, 0), 0);
	disk_kill(&b);
	fe_close(&b.engine);
	follow(&b, 1);
	disk_open(&b, 0, 0);
	look(&b, false);
	end(&b);
	unlink(in_dir("parent.vhd"));
}

static void a_snapshot_is_refused_if_its_parent_cannot_forget_a_failed_write(void **state)
{
	struct image_snapshot *s;
	struct error err;
	struct bed b;

	(void)state;
	s = begin_snapshot(&b);
	b.engine.fail_write = 1;
	assert_int_equal(vhd_driver.snapshot_switch(s, &err), -EIO);
	assert_non_null(strstr(err.text, "leaf.vhd: BAT: writing: "));
	b.engine.fail_write = 0;
	vhd_driver.snapshot_undo(s);
	vhd_driver.snapshot_end(s);
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 8), 0);
	assert_int_equal(io(&b, IMAGE_READ, 0, 8), 0);
	end(&b);
	assert_int_equal(access(in_dir("parent.vhd"), F_OK), -1);
}

/* Its metadata goes beside the data: who closes the image must wait for that. */
static void an_image_is_busy_while_metadata_is_written(void **state)
{
	struct spec spec = { .sectors = 4096 * 4, .block_size = 2u << 20 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	assert_int_equal(io(&b, IMAGE_WRITE, 0, 8), 0);
	b.faults = true;
	b.engine.script = data_fails;
	b.engine.hold = metadata_waits;
	start(&b, IMAGE_WRITE, 4096, 8);
	run(&b);
	assert_int_equal(b.busy, 0);
	assert_int_equal(b.last_err, -EIO);
	assert_true(image_busy(&b.disk->image));
	b.engine.script = NULL;
	b.engine.hold = NULL;
	settle(&b);
	assert_int_equal(io(&b, IMAGE_READ, 4096, 8), 0);
	end(&b);
}

static bool bitmaps_wait(const struct io_req *req)
{
	return req->op == IO_WRITE && req->offset != BAT_OFFSET && fe_len(req) == SECTOR_SIZE;
}

/* With the data failed and the block published, nothing but its own write needs it. */
static void a_bitmap_that_is_being_written_is_not_taken_for_another_block(void **state)
{
	struct spec spec = { .sectors = 80, .block_size = 4096 };
	struct bed b;

	(void)state;
	begin(&b, &spec);
	/* Grown, so that no footer has to be written. */
	assert_int_equal(io(&b, IMAGE_WRITE, 72, 8), 0);
	b.disk->cache.limit = 1;
	b.faults = true;
	b.engine.script = data_fails;
	b.engine.hold = bitmaps_wait;
	start(&b, IMAGE_WRITE, 0, 8);
	run(&b);
	assert_int_equal(b.last_err, -EIO);
	b.engine.script = NULL;
	start(&b, IMAGE_WRITE, 8, 8);
	run(&b);
	assert_int_equal(b.busy, 1);
	b.engine.hold = NULL;
	settle(&b);
	assert_int_equal(b.last_err, 0);
	assert_int_equal(io(&b, IMAGE_READ, 0, 16), 0);
	end(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_write_is_read_back),
		cmocka_unit_test(a_bat_write_that_fails_may_have_reached_the_file),
		cmocka_unit_test(the_close_keeps_blocks_whose_bat_write_failed),
		cmocka_unit_test(a_read_never_meets_another_blocks_data),
		cmocka_unit_test(what_a_kill_left_never_passes_for_a_block),
		cmocka_unit_test(a_footer_never_passes_for_data),
		cmocka_unit_test(a_device_never_shows_what_lay_there_before),
		cmocka_unit_test(a_block_tried_again_is_as_careful_as_one_in_use),
		cmocka_unit_test(a_flush_tells_of_a_sync_of_our_own_that_failed),
		cmocka_unit_test(a_sync_that_failed_through_the_page_cache_leaves_no_block_complete),
		cmocka_unit_test(a_repair_that_is_cut_off_leaves_a_footer),
		cmocka_unit_test(bat_entries_beyond_the_size_are_kept),
		cmocka_unit_test(zeros_cover_a_block_whose_bat_write_failed),
		cmocka_unit_test(zeros_after_a_snapshot_cover_what_a_failed_write_left),
		cmocka_unit_test(a_snapshot_is_refused_if_its_parent_cannot_forget_a_failed_write),
		cmocka_unit_test(an_image_is_busy_while_metadata_is_written),
		cmocka_unit_test(a_bitmap_that_is_being_written_is_not_taken_for_another_block),
	};

	return cmocka_run_group_tests(tests, scratch, scratch_remove);
}
