/* SPDX-License-Identifier: LGPL-2.1-only */
/* Pause, unpause, close and statistics of a VBD. */
#include "tests/vbd-bed.h"

#include "common/diskfile.h"

/* The disk answers what it was stuck with. */
static void let_go(void)
{
	disk.stuck = false;
	engine_timer_set(server_engine(bed.server), &disk.timer, 0);
}

/* The disk has no space for a request, and is paused meanwhile. */
static void pause_while_it_waits(enum image_op op)
{
	disk.write_err = -ENOSPC;
	ask(0, op, 1);
	steps(3);
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
}

/* Open */

/* The image is open, and its transport goes on to start. */
static void open_while_starting(void)
{
	vbd_close(bed.vbd, true, 0, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	guest.ready_err = -EINPROGRESS;
	assert_int_equal(vbd_open(bed.vbd, "fake:/disk", false, NULL), 0);
	vbd_when_ready(bed.vbd, verb_done, NULL);
	steps(4);
	assert_int_equal(verbs_done, 0);
}

static void a_disk_that_is_being_made_answers(void **priv)
{
	(void)priv;
	open_while_starting();
	assert_int_equal(state(), 0);
	ask(0, IMAGE_READ, 1);
	steps(4);
	assert_int_equal(guest.result[0], 0);
	assert_false(guest.busy[0]);
	assert_int_equal(verbs_done, 0);
	/* One verb at a time. */
	vbd_close(bed.vbd, true, 0, verb_done, NULL);
	assert_int_equal(verb_wait(), -EBUSY);
	assert_non_null(strstr(verb_text, "an open is under way"));
	guest.ready_err = 0;
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(state(), 0);
}

static void a_disk_that_cannot_be_made_is_closed(void **priv)
{
	(void)priv;
	open_while_starting();
	ask(0, IMAGE_WRITE, 1);
	guest.ready_err = -EPERM;
	assert_int_equal(verb_wait(), -EPERM);
	assert_string_equal(verb_text, "no gendisk");
	assert_int_equal(state(), VBD_CLOSED);
	assert_int_equal(disk.open, 0);
	assert_false(guest.busy[0] || guest.running);
	/* It is not held against the next one. */
	guest.ready_err = 0;
	assert_int_equal(vbd_open(bed.vbd, "fake:/disk", false, NULL), 0);
	vbd_when_ready(bed.vbd, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	vbd_close(bed.vbd, true, 0, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
}

/* Pause and close */

static void what_waits_does_not_hold_up_a_pause(void **priv)
{
	(void)priv;
	pause_while_it_waits(IMAGE_WRITE);
	assert_int_equal(state(), VBD_PAUSED | VBD_NO_SPACE);
	assert_int_equal(disk.open, 0);
	pass(10 * SECOND);
	assert_true(guest.busy[0]);
	/* The new leaf lies where there is space. */
	disk.write_err = 0;
	assert_int_equal(vbd_unpause(bed.vbd, "fake:/new", NULL), 0);
	steps(3);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(state(), 0);
	assert_false(marked());
}

static void what_waits_may_be_beyond_the_new_image(void **priv)
{
	(void)priv;
	pause_while_it_waits(IMAGE_DISCARD);
	disk.can = 0;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	steps(3);
	assert_int_equal(guest.result[0], -EOPNOTSUPP);
	assert_false(guest.busy[0] || marked());
}

static void a_close_answers_what_waits(void **priv)
{
	(void)priv;
	disk.write_err = -ENOSPC;
	ask(0, IMAGE_WRITE, 1);
	steps(3);
	vbd_close(bed.vbd, true, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(guest.result[0], -ENOSPC);
	assert_false(guest.busy[0] || marked());
}

static void a_pause_that_takes_too_long_is_called_off(void **priv)
{
	(void)priv;
	disk.stuck = true;
	ask(0, IMAGE_WRITE, 1);
	vbd_pause(bed.vbd, 5000, verb_done, NULL);
	assert_false(guest.running);
	pass(4 * SECOND);
	assert_int_equal(verbs_done, 0);
	pass(SECOND);
	assert_int_equal(verb_wait(), -ETIMEDOUT);
	assert_non_null(strstr(verb_text, "1 requests did not come back from fake:/disk in 5 s"));
	assert_true(guest.running);
	assert_int_equal(state(), 0);
	ask(1, IMAGE_READ, 2);
	let_go();
	steps(3);
	assert_false(guest.busy[0] || guest.busy[1]);
	vbd_pause(bed.vbd, 5000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	pass(10 * SECOND);
	assert_int_equal(state(), VBD_PAUSED);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
}

static void a_flush_that_takes_too_long_calls_off_a_pause(void **priv)
{
	(void)priv;
	disk.stuck = true;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	steps(3);
	pass(SECOND);
	assert_int_equal(verb_wait(), -ETIMEDOUT);
	assert_non_null(strstr(verb_text, "a flush of fake:/disk"));
	/* It is still there. */
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	steps(3);
	assert_int_equal(verbs_done, 0);
	let_go();
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(disk.open, 0);
}

/* What was written since is not in it. */
static void the_flush_of_a_pause_that_was_called_off_is_not_the_next_ones(void **priv)
{
	(void)priv;
	disk.stuck = true;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	steps(3);
	pass(SECOND);
	assert_int_equal(verb_wait(), -ETIMEDOUT);
	ask(0, IMAGE_WRITE, 1);
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	let_go();
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(disk.flushes, 2);
}

static void a_pause_that_cannot_be_called_off_is_ended_by_unpause(void **priv)
{
	(void)priv;
	disk.stuck = true;
	guest.release_err = -EINVAL;
	ask(0, IMAGE_WRITE, 1);
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	pass(SECOND);
	assert_int_equal(verb_wait(), -ETIMEDOUT);
	assert_int_equal(state(), VBD_PAUSE_REQUESTED);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), -EINVAL);
	guest.release_err = 0;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	assert_int_equal(state(), 0);
	assert_true(guest.running);
}

static void a_close_that_takes_too_long_says_so_and_goes_on(void **priv)
{
	(void)priv;
	disk.stuck = true;
	ask(0, IMAGE_WRITE, 1);
	vbd_close(bed.vbd, true, 1000, verb_done, NULL);
	pass(SECOND);
	assert_int_equal(verb_wait(), -ETIMEDOUT);
	vbd_close(bed.vbd, true, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), -EBUSY);
	let_go();
	steps(5);
	assert_int_equal(state(), VBD_CLOSED);
	assert_int_equal(verbs_done, 0);
}

static void pauses_end_under_a_load_that_never_stops(void **priv)
{
	(void)priv;
	srandom(1);
	guest.load = true;
	for (int i = 0; i < 100; i++) {
		unsigned int before = guest.answered;

		disk.delay_ns = (uint64_t)random() % MS;
		disk.write_err = random() % 4 ? 0 : -ENOSPC;
		steps((unsigned int)random() % 8);
		vbd_pause(bed.vbd, 5000, verb_done, NULL);
		assert_int_equal(verb_wait(), 0);
		assert_int_equal(disk.open, 0);
		before = guest.answered;
		steps(2);
		assert_int_equal(guest.answered, before);
		disk.write_err = 0;
		assert_int_equal(vbd_unpause(bed.vbd, i % 2 ? "fake:/a" : NULL,
					     NULL), 0);
	}
	guest.load = false;
	pass(10 * SECOND);
	assert_int_equal(stats().inflight, 0);
	assert_int_equal(state(), 0);
}

static void a_new_leaf_may_be_larger_but_not_smaller(void **priv)
{
	struct error err;

	(void)priv;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	disk.sectors = SECTORS - 1;
	assert_int_equal(vbd_unpause(bed.vbd, "fake:/small", &err), -EINVAL);
	assert_non_null(strstr(err.text, "fake:/small: its disk has 32256 bytes, that of minor 3 has 32768"));
	assert_int_equal(disk.open, 0);
	assert_int_equal(state(), VBD_PAUSED);
	disk.open_err = -ENOENT;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, &err), -ENOENT);
	assert_int_equal(state(), VBD_PAUSED);
	disk.open_err = 0;
	disk.sectors = 2 * SECTORS;
	assert_int_equal(vbd_unpause(bed.vbd, "fake:/large", &err), 0);
	assert_int_equal(guest.sectors, 2 * SECTORS);
	ask(0, IMAGE_READ, 2 * SECTORS - 1);
	steps(3);
	assert_int_equal(guest.result[0], 0);
	assert_string_equal(stats().text, "fake:/large");
	assert_int_equal(stats().sectors, 2 * SECTORS);
}

/* The guest's own flush would succeed, and what it should cover may be lost. */
static void a_flush_of_ours_that_fails_is_the_guests_next_one(void **priv)
{
	(void)priv;
	disk.flush_err = -EIO;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), -EIO);
	disk.flush_err = 0;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	ask(0, IMAGE_WRITE, 0);
	ask(1, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(guest.result[1], -EIO);
	ask(1, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[1], 0);
}

/* Of a disk with two users each has to be told once: a second flush would succeed. */
static void a_flush_that_fails_is_told_to_each_user(void **priv)
{
	struct transport other = { .ops = &guest_ops };
	struct error err;

	(void)priv;
	list_init(&other.link);
	assert_int_equal(vbd_add_transport(bed.vbd, &other, &err), 0);
	guest.slots[1].from = &other;
	ask(0, IMAGE_WRITE, 1);
	steps(3);
	/* A client beside the user that only reads has nothing to lose. */
	disk.flush_err = -EIO;
	ask(0, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], -EIO);
	disk.flush_err = 0;
	ask(1, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[1], 0);
	/* One that writes has, also before the user has. */
	ask(1, IMAGE_WRITE, 1);
	steps(3);
	for (unsigned int i = 0; i < 2; i++) {
		disk.flush_err = -EIO;
		ask(i, IMAGE_FLUSH, 0);
		steps(3);
		assert_int_equal(guest.result[i], -EIO);
		disk.flush_err = 0;
		ask(i, IMAGE_FLUSH, 0);
		steps(3);
		assert_int_equal(guest.result[i], 0);
		ask(1 - i, IMAGE_FLUSH, 0);
		steps(3);
		assert_int_equal(guest.result[1 - i], -EIO);
		ask(1 - i, IMAGE_FLUSH, 0);
		steps(3);
		assert_int_equal(guest.result[1 - i], 0);
	}
	list_del(&other.link);
}

static void the_flush_of_a_pause_comes_after_what_the_image_does_by_itself(void **priv)
{
	(void)priv;
	disk.busy = true;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	steps(5);
	assert_int_equal(disk.flushes, 0);
	disk.busy = false;
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(disk.flushes, 1);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
}

/* The kernel tells one of them. */
static void flushes_that_are_under_way_together_fail_together(void **priv)
{
	(void)priv;
	disk.stuck = true;
	ask(0, IMAGE_FLUSH, 0);
	ask(1, IMAGE_FLUSH, 0);
	guest.slots[2].fua = true;
	ask(2, IMAGE_WRITE, 1);
	steps(1);
	disk.flush_once = true;
	let_go();
	steps(4);
	assert_int_equal(guest.result[0], -EIO);
	assert_int_equal(guest.result[1], -EIO);
	assert_int_equal(guest.result[2], -EIO);
	guest.slots[2].fua = false;
	ask(0, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], 0);
}

/* Its client has gone, and the one that comes back sends another. */
static void a_flush_that_nobody_hears_of_tells_of_no_other_ones_error(void **priv)
{
	(void)priv;
	disk.stuck = true;
	guest.slots[0].fua = true;
	ask(0, IMAGE_FLUSH, 0);
	ask(1, IMAGE_FLUSH, 0);
	guest.slots[1].unwanted = true;
	steps(1);
	disk.flush_once = true;
	let_go();
	steps(4);
	assert_int_equal(guest.result[0], -EIO);
	guest.slots[0].fua = false;
	ask(0, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], -EIO);
}

/* It tells of that write; those before it are a flush's. */
static void the_flush_of_a_fua_write_leaves_the_error_of_ours(void **priv)
{
	(void)priv;
	disk.flush_err = -EIO;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), -EIO);
	disk.flush_err = 0;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	guest.slots[1].fua = true;
	ask(1, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[1], 0);
	ask(0, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], -EIO);
	/* And one that waits to be tried again. */
	disk.flush_err = -ETIMEDOUT;
	ask(1, IMAGE_WRITE, 1);
	steps(3);
	assert_true(guest.busy[1]);
	disk.flush_err = -EIO;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), -EIO);
	disk.flush_err = 0;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	steps(3);
	assert_int_equal(guest.result[1], -EIO);
	guest.slots[1].fua = false;
	ask(0, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], -EIO);
	ask(0, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], 0);
}

/* As one of the guest's, which would wait. */
static void a_pause_while_a_server_is_away_costs_the_guest_no_error(void **priv)
{
	(void)priv;
	disk.remote = disk.remote_leaf = true;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	disk.flush_err = -EIO;
	ask(0, IMAGE_FLUSH, 0);
	steps(3);
	assert_true(guest.busy[0]);
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), -EIO);
	disk.flush_err = 0;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	ask(1, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(guest.result[1], 0);
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
}

/* As where there is no space for a footer: all that was answered has been flushed. */
static void a_close_that_fails_after_its_flush_loses_nothing(void **priv)
{
	(void)priv;
	ask(0, IMAGE_WRITE, 1);
	steps(3);
	disk.close_err = -ENOSPC;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), -ENOSPC);
	disk.close_err = 0;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	ask(0, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], 0);
}

/* A close tells what the flush before it, whose error might have passed, did not. */
static void a_close_that_fails_after_a_flush_that_did_is_the_next_flushs_error(void **priv)
{
	(void)priv;
	disk.flush_err = -ETIMEDOUT;
	disk.close_err = -EIO;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), -EIO);
	disk.flush_err = disk.close_err = 0;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	ask(0, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], -EIO);
}

static int noted_as_lost(void)
{
	struct diskfile note;
	int lost;

	assert_int_equal(diskfile_read(&note, MINOR), 0);
	lost = note.lost;
	diskfile_dispose(&note);
	return lost;
}

static void what_a_flush_lost_is_noted_for_the_next_tapdisk_until_it_is_told(void **priv)
{
	(void)priv;
	server_keep_files(bed.server);
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	disk.stuck = true;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	steps(3);
	pass(SECOND);
	assert_int_equal(verb_wait(), -ETIMEDOUT);
	disk.flush_err = -EIO;
	let_go();
	steps(5);
	disk.flush_err = 0;
	assert_int_equal(noted_as_lost(), 1);
	ask(0, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], -EIO);
	assert_int_equal(noted_as_lost(), 0);
}

/* The image that a snapshot is made of, and its new leaf. */
static int snapshot_prepare(struct image_snapshot **s, struct image *image,
			    const struct image_open_args *args, const char *parent,
			    struct error *err)
{
	(void)image;
	(void)args;
	(void)parent;
	(void)err;
	*s = (void *)&disk;
	return 0;
}

static int snapshot_switch(struct image_snapshot *s, struct error *err)
{
	(void)s;
	(void)err;
	return 0;
}

static int snapshot_take(struct image_snapshot *s, struct image **image, struct error *err)
{
	(void)s;
	(void)image;
	(void)err;
	return 0;
}

static void snapshot_end(struct image_snapshot *s)
{
	(void)s;
}

static void with_snapshots(struct image_driver *driver)
{
	driver->snapshot_prepare = snapshot_prepare;
	driver->snapshot_switch = snapshot_switch;
	driver->snapshot_take = snapshot_take;
	driver->snapshot_end = snapshot_end;
}

static void not_to_be_held(struct transport *t)
{
	(void)t;
	fail_msg("held");
}

static int not_to_be_released(struct transport *t, const struct image_info *info, bool readonly,
			      struct error *err)
{
	(void)t;
	(void)info;
	(void)readonly;
	(void)err;
	fail_msg("released, though it was not held");
	return -EIO;
}

/* A transport that is released forgets what it has told the kernel of the image. */
static void a_snapshot_that_is_called_off_in_its_first_flush_leaves_the_transports_alone(void **priv)
{
	struct transport_ops ops = guest_ops;
	struct image_driver driver = disk_driver;

	(void)priv;
	with_snapshots(&driver);
	ops.hold = not_to_be_held;
	ops.release = not_to_be_released;
	guest.transport.ops = &ops;
	disk.image.driver = &driver;
	disk.stuck = true;
	vbd_snapshot(bed.vbd, "child", "parent", NULL, 1000, verb_done, NULL);
	steps(3);
	pass(SECOND);
	assert_int_equal(verb_wait(), -ETIMEDOUT);
	let_go();
	steps(5);
	ask(0, IMAGE_WRITE, 3);
	steps(3);
	assert_int_equal(guest.result[0], 0);
	disk.image.driver = &disk_driver;
	guest.transport.ops = &guest_ops;
}

/* As blktap_check_change() of the driver. */
static int release_with_same_sectors(struct transport *t, const struct image_info *info,
				     bool readonly, struct error *err)
{
	if (info->sector_size != 4096)
		return error_set(err, -EINVAL, "the gendisk does not take it");
	return guest_start(t, info, readonly, err);
}

static void a_snapshot_leaves_the_device_its_sectors(void **priv)
{
	struct transport_ops ops = guest_ops;
	struct image_driver driver = disk_driver;
	int rc;

	(void)priv;
	with_snapshots(&driver);
	ops.release = release_with_same_sectors;
	vbd_close(bed.vbd, true, 0, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	disk.sector_size = 4096;
	assert_int_equal(vbd_open(bed.vbd, "fake:/raw", false, NULL), 0);
	guest.transport.ops = &ops;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	disk.sector_size = 512;
	assert_int_equal(vbd_unpause(bed.vbd, "fake:/vhd", NULL), 0);
	disk.image.driver = &driver;
	vbd_snapshot(bed.vbd, "child", "parent", NULL, 1000, verb_done, NULL);
	rc = verb_wait();
	disk.image.driver = &disk_driver;
	guest.transport.ops = &guest_ops;
	assert_int_equal(rc, 0);
}

/* Were they tried again, they would succeed: what was lost is not told twice. */
static void flushes_that_wait_get_the_error_of_ours(void **priv)
{
	(void)priv;
	disk.flush_err = -ETIMEDOUT;
	ask(0, IMAGE_FLUSH, 0);
	guest.slots[1].fua = true;
	ask(1, IMAGE_WRITE, 3);
	steps(3);
	disk.write_err = -ETIMEDOUT;
	ask(2, IMAGE_WRITE, 4);
	steps(3);
	assert_true(guest.busy[0] && guest.busy[1]);
	disk.flush_err = -EIO;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), -EIO);
	disk.flush_err = disk.write_err = 0;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	steps(3);
	assert_int_equal(guest.result[0], -EIO);
	assert_int_equal(guest.result[1], -EIO);
	assert_int_equal(guest.result[2], 0);
	assert_int_equal(state(), 0);
	/* It has been told. */
	ask(0, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], 0);
}

/* Statistics */

static void durations_are_counted_to_a_fifth(void **priv)
{
	struct stats_op op = { .max_ns = UINT64_MAX };

	(void)priv;
	for (uint64_t ns = 1; ns < 1ull << 40; ns = ns * 9 / 8 + 1) {
		unsigned int b = stats_bucket(ns);

		assert_true(ns < stats_bucket_end(b));
		assert_true(!b || ns >= stats_bucket_end(b - 1));
		assert_true(stats_bucket_end(b) - 1 <= ns + ns / 4);
	}
	assert_int_equal(stats_bucket(UINT64_MAX), STATS_BUCKETS - 1);
	assert_int_equal(stats_percentile(&op, 50), 0);
	op.latency[stats_bucket(1000)] = 99;
	op.latency[stats_bucket(1000000)] = 1;
	assert_in_range(stats_percentile(&op, 50), 1000, 1250);
	assert_in_range(stats_percentile(&op, 98), 1000, 1250);
	assert_in_range(stats_percentile(&op, 99), 1000000, 1250000);
}

static void the_page_is_read_without_a_word(void **priv)
{
	struct stats_page page;

	(void)priv;
	ask(0, IMAGE_WRITE, 0);
	ask(1, IMAGE_READ, 0);
	steps(3);
	page = stats();
	assert_int_equal(page.pid, getpid());
	assert_int_equal(page.op[IMAGE_WRITE].requests, 1);
	assert_int_equal(page.op[IMAGE_READ].sectors, 1);
	assert_string_equal(page.text, "fake:/disk");
	vbd_close(bed.vbd, true, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	page = stats();
	assert_int_equal(page.state, VBD_CLOSED);
	assert_int_equal(page.open, 0);
}

/* A directory that can't be written, or one that is full. */
static void without_the_page_a_disk_works_all_the_same(void **priv)
{
	struct vbd *other;

	(void)priv;
	setenv("XENBLK_CONTROL_DIR", "/proc/nowhere", 1);
	assert_int_equal(vbd_create(&other, bed.server, MINOR + 1, NULL), 0);
	setenv("XENBLK_CONTROL_DIR", bed.dir, 1);
	assert_int_equal(vbd_detach(other, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_disk_that_is_being_made_answers),
		TEST(a_disk_that_cannot_be_made_is_closed),
		TEST(what_waits_does_not_hold_up_a_pause),
		TEST(what_waits_may_be_beyond_the_new_image),
		TEST(a_close_answers_what_waits),
		TEST(a_pause_that_takes_too_long_is_called_off),
		TEST(a_flush_that_takes_too_long_calls_off_a_pause),
		TEST(the_flush_of_a_pause_that_was_called_off_is_not_the_next_ones),
		TEST(a_pause_that_cannot_be_called_off_is_ended_by_unpause),
		TEST(a_close_that_takes_too_long_says_so_and_goes_on),
		TEST(pauses_end_under_a_load_that_never_stops),
		TEST(a_new_leaf_may_be_larger_but_not_smaller),
		TEST(a_flush_of_ours_that_fails_is_the_guests_next_one),
		TEST(flushes_that_wait_get_the_error_of_ours),
		TEST(a_flush_that_fails_is_told_to_each_user),
		TEST(the_flush_of_a_pause_comes_after_what_the_image_does_by_itself),
		TEST(flushes_that_are_under_way_together_fail_together),
		TEST(a_flush_that_nobody_hears_of_tells_of_no_other_ones_error),
		TEST(the_flush_of_a_fua_write_leaves_the_error_of_ours),
		TEST(a_pause_while_a_server_is_away_costs_the_guest_no_error),
		TEST(a_close_that_fails_after_its_flush_loses_nothing),
		TEST(a_close_that_fails_after_a_flush_that_did_is_the_next_flushs_error),
		TEST(what_a_flush_lost_is_noted_for_the_next_tapdisk_until_it_is_told),
		TEST(a_snapshot_leaves_the_device_its_sectors),
		TEST(a_snapshot_that_is_called_off_in_its_first_flush_leaves_the_transports_alone),
		TEST(durations_are_counted_to_a_fifth),
		TEST(the_page_is_read_without_a_word),
		TEST(without_the_page_a_disk_works_all_the_same),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
