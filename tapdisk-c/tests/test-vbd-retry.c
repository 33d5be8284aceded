/* SPDX-License-Identifier: LGPL-2.1-only */
/* Requests of a VBD that fail: tried again, or waiting for space. */
#include "tests/vbd-bed.h"

#include <limits.h>

/* Retries */

static void an_error_that_passes_is_time_to_the_guest(void **priv)
{
	(void)priv;
	memset(guest.buf[0], 'x', SECTOR_SIZE);
	disk.write_err = -ETIMEDOUT;
	ask(0, IMAGE_WRITE, 5);
	steps(3);
	assert_true(guest.busy[0]);
	assert_int_equal(state(), VBD_WAITING);
	for (int i = 0; i < 100; i++)
		pass(SECOND);
	assert_true(guest.busy[0]);
	assert_int_equal(disk.writes, 101);
	disk.write_err = 0;
	pass(SECOND);
	assert_false(guest.busy[0]);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(disk.data[5][100], 'x');
	assert_int_equal(state(), 0);
	assert_int_equal(stats().op[IMAGE_WRITE].retries, 101);
	assert_int_equal(stats().op[IMAGE_WRITE].errors, 0);
	assert_true(stats().op[IMAGE_WRITE].max_ns > 100 * SECOND);
}

static void others_go_on_while_one_waits(void **priv)
{
	(void)priv;
	disk.write_err = -EAGAIN;
	ask(0, IMAGE_WRITE, 5);
	steps(3);
	ask(1, IMAGE_READ, 6);
	ask(2, IMAGE_FLUSH, 0);
	steps(3);
	assert_true(guest.busy[0]);
	assert_false(guest.busy[1] || guest.busy[2]);
	assert_int_equal(stats().waiting, 1);
	assert_int_equal(stats().inflight, 1);
}

static void an_error_that_stays_is_the_guests_in_the_end(void **priv)
{
	(void)priv;
	settle("retry_for", "60");
	settle("retry_interval", "10");
	disk.read_err = -ESTALE;
	ask(0, IMAGE_READ, 5);
	steps(3);
	for (int i = 0; i < 5; i++)
		pass(10 * SECOND);
	assert_true(guest.busy[0]);
	pass(10 * SECOND);
	assert_int_equal(guest.result[0], -ESTALE);
	assert_int_equal(guest.answered, 1);
	assert_int_equal(state(), 0);
}

/* The time that it waited for space, or paused, is not the storage's. */
static void each_outage_has_its_own_time(void **priv)
{
	(void)priv;
	settle("retry_for", "60");
	disk.write_err = -ENOSPC;
	ask(0, IMAGE_WRITE, 5);
	steps(3);
	pass(100 * SECOND);
	disk.write_err = -ESTALE;
	pass(5 * SECOND);
	assert_int_equal(state(), VBD_WAITING);
	pass(50 * SECOND);
	assert_true(guest.busy[0]);
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	pass(100 * SECOND);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	steps(3);
	pass(50 * SECOND);
	assert_true(guest.busy[0]);
	pass(20 * SECOND);
	assert_int_equal(guest.result[0], -ESTALE);
	assert_int_equal(guest.answered, 1);
}

static void after_that_it_may_wait_to_be_told(void **priv)
{
	(void)priv;
	settle("retry_for", "2");
	settle("retry_then", "pause");
	disk.read_err = -ENOLINK;
	ask(0, IMAGE_READ, 5);
	steps(3);
	pass(SECOND);
	pass(SECOND);
	disk.read_err = 0;
	for (int i = 0; i < 20; i++)
		pass(SECOND);
	assert_true(guest.busy[0]);
	assert_int_equal(state(), VBD_WAITING);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	steps(3);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(guest.answered, 1);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), -EINVAL);
}

/* What the guest gets of a read, or a flush, that fails once. */
static int one_failure(enum image_op op, int err)
{
	disk.read_err = disk.flush_err = err;
	ask(0, op, 0);
	steps(3);
	disk.read_err = disk.flush_err = 0;
	if (guest.busy[0])
		pass(SECOND);
	assert_false(guest.busy[0]);
	return guest.result[0];
}

static void which_errors_are_tried_again(void **priv)
{
	(void)priv;
	assert_int_equal(one_failure(IMAGE_READ, -EIO), -EIO);
	assert_int_equal(one_failure(IMAGE_FLUSH, -EIO), -EIO);
	assert_int_equal(one_failure(IMAGE_READ, -EHOSTUNREACH), 0);
	settle("retry_errors", "all");
	assert_int_equal(one_failure(IMAGE_READ, -EIO), 0);
	/* The next flush would succeed without the data of this one. */
	assert_int_equal(one_failure(IMAGE_FLUSH, -EIO), -EIO);
	assert_int_equal(one_failure(IMAGE_FLUSH, -ETIMEDOUT), 0);
	settle("retry_errors", "none");
	assert_int_equal(one_failure(IMAGE_READ, -ETIMEDOUT), -ETIMEDOUT);
}

static void an_io_error_of_a_server_may_pass(void **priv)
{
	(void)priv;
	disk.remote = disk.remote_leaf = true;
	vbd_pause(bed.vbd, 0, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	assert_int_equal(one_failure(IMAGE_READ, -EIO), 0);
	assert_int_equal(one_failure(IMAGE_FLUSH, -EIO), 0);
	/* Its parents are there, and what is written is here. */
	disk.remote_leaf = false;
	vbd_pause(bed.vbd, 0, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	assert_int_equal(one_failure(IMAGE_READ, -EIO), 0);
	assert_int_equal(one_failure(IMAGE_FLUSH, -EIO), -EIO);
}

/* The page cache of a file may have dropped what was to be written, whatever the reason. */
static void a_flush_of_a_local_file_is_not_tried_again(void **priv)
{
	(void)priv;
	disk.local_file = true;
	vbd_pause(bed.vbd, 0, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	settle("retry_errors", "all");
	assert_int_equal(one_failure(IMAGE_FLUSH, -ETIMEDOUT), -ETIMEDOUT);
	assert_int_equal(one_failure(IMAGE_FLUSH, -ENOLINK), -ENOLINK);
	assert_int_equal(one_failure(IMAGE_READ, -ENOLINK), 0);
	assert_int_equal(one_failure(IMAGE_FLUSH, -EINTR), 0);
}

/* A page cache tells it once, as any error. */
static void a_flush_without_space_is_not_tried_again(void **priv)
{
	(void)priv;
	assert_int_equal(one_failure(IMAGE_FLUSH, -ENOSPC), -ENOSPC);
	assert_int_equal(one_failure(IMAGE_FLUSH, -EDQUOT), -EDQUOT);
	assert_false(marked());
}

static void the_mark_of_a_disk_with_a_long_path_is_cut(void **priv)
{
	char args[2 * PATH_MAX];

	(void)priv;
	memset(args, 'x', sizeof(args));
	memcpy(args, "fake:/", 6);
	args[sizeof(args) - 1] = 0;
	vbd_close(bed.vbd, true, 0, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(vbd_open(bed.vbd, args, false, NULL), 0);
	disk.write_err = -ENOSPC;
	ask(0, IMAGE_WRITE, 1);
	steps(3);
	assert_true(marked());
	disk.write_err = 0;
	pass(3 * SECOND);
	assert_int_equal(guest.result[0], 0);
}

static void the_flush_of_a_fua_write_is_tried_alone(void **priv)
{
	(void)priv;
	guest.slots[0].fua = true;
	disk.flush_err = -EBUSY;
	ask(0, IMAGE_WRITE, 1);
	steps(3);
	assert_true(guest.busy[0]);
	disk.flush_err = 0;
	pass(SECOND);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(disk.writes, 1);
	assert_int_equal(disk.flushes, 2);
}

/* Space */

static void writes_wait_for_space_and_say_so(void **priv)
{
	(void)priv;
	settle("retry_for", "0");
	disk.write_err = -ENOSPC;
	ask(0, IMAGE_WRITE, 1);
	ask(1, IMAGE_READ, 2);
	steps(3);
	assert_true(guest.busy[0]);
	assert_false(guest.busy[1]);
	assert_int_equal(state(), VBD_NO_SPACE);
	assert_true(marked());
	disk.write_err = -EDQUOT;
	for (int i = 0; i < 1000; i++)
		pass(3 * SECOND);
	assert_true(guest.busy[0] && marked());
	disk.write_err = 0;
	pass(3 * SECOND);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(state(), 0);
	assert_false(marked());
}

static void unpause_looks_for_space_at_once(void **priv)
{
	(void)priv;
	disk.write_err = -ENOSPC;
	ask(0, IMAGE_WRITE, 1);
	steps(3);
	disk.write_err = 0;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	steps(3);
	assert_false(guest.busy[0]);
	assert_false(marked());
}

static void a_lack_of_space_may_be_an_error(void **priv)
{
	(void)priv;
	settle("no_space", "fail");
	disk.write_err = -ENOSPC;
	ask(0, IMAGE_WRITE, 1);
	steps(3);
	assert_int_equal(guest.result[0], -ENOSPC);
	assert_false(guest.busy[0] || marked());
	/* Not even if all errors are tried again. */
	settle("retry_errors", "all");
	ask(0, IMAGE_WRITE, 1);
	steps(3);
	assert_false(guest.busy[0]);
}

static void a_request_is_tried_again_while_its_disk_is_being_made(void **priv)
{
	(void)priv;
	vbd_close(bed.vbd, true, 0, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	guest.ready_err = -EINPROGRESS;
	assert_int_equal(vbd_open(bed.vbd, "fake:/disk", false, NULL), 0);
	vbd_when_ready(bed.vbd, verb_done, NULL);
	disk.read_err = -ENOMEM;
	ask(0, IMAGE_READ, 1);
	steps(3);
	disk.read_err = 0;
	pass(SECOND);
	assert_false(guest.busy[0]);
	guest.ready_err = 0;
	assert_int_equal(verb_wait(), 0);
}

/* It may be what others wrote that did not reach the medium, and the kernel tells once. */
static void the_flush_of_a_fua_write_that_fails_is_the_next_flushs_too(void **priv)
{
	(void)priv;
	ask(0, IMAGE_WRITE, 0);
	steps(3);
	assert_int_equal(guest.result[0], 0);
	guest.slots[1].fua = true;
	disk.flush_err = -EIO;
	ask(1, IMAGE_WRITE, 1);
	steps(3);
	assert_int_equal(guest.result[1], -EIO);
	disk.flush_err = 0;
	for (int want = -EIO; want <= 0; want += EIO) {
		ask(0, IMAGE_FLUSH, 0);
		steps(3);
		assert_int_equal(guest.result[0], want);
	}
	/* As a transport asks that made several of the write. */
	disk.flush_err = -EIO;
	ask(1, IMAGE_FLUSH, 0);
	steps(3);
	disk.flush_err = 0;
	ask(0, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], -EIO);
}

static void a_flush_that_waits_is_told_of_a_fua_writes(void **priv)
{
	(void)priv;
	disk.flush_err = -ETIMEDOUT;
	ask(0, IMAGE_FLUSH, 0);
	steps(3);
	guest.slots[1].fua = true;
	disk.flush_err = -EIO;
	ask(1, IMAGE_WRITE, 1);
	steps(3);
	disk.flush_err = 0;
	pass(SECOND);
	assert_int_equal(guest.result[0], -EIO);
}

static void a_flush_that_fails_and_nobody_hears_of_is_the_next_ones(void **priv)
{
	(void)priv;
	ask(0, IMAGE_WRITE, 0);
	steps(3);
	disk.stuck = true;
	ask(1, IMAGE_FLUSH, 0);
	guest.slots[1].unwanted = true;
	vbd_drop_unwanted(bed.vbd);
	disk.stuck = false;
	disk.flush_err = -EIO;
	engine_timer_set(server_engine(bed.server), &disk.timer, 0);
	steps(3);
	disk.flush_err = 0;
	ask(0, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], -EIO);
}

/* Who asked is gone; what others ask for goes on. */
static void what_nobody_wants_any_more_is_not_tried_again(void **priv)
{
	(void)priv;
	disk.write_err = -ENOSPC;
	for (unsigned int i = 0; i < 4; i++)
		ask(i, IMAGE_WRITE, i);
	steps(3);
	assert_int_equal(stats().waiting, 4);
	guest.slots[1].unwanted = true;
	guest.slots[2].unwanted = true;
	vbd_drop_unwanted(bed.vbd);
	assert_int_equal(guest.answered, 2);
	assert_int_equal(guest.result[1], -ENOSPC);
	assert_int_equal(guest.result[2], -ENOSPC);
	assert_true(marked());

	/* One that the image has. */
	disk.stuck = true;
	ask(1, IMAGE_WRITE, 5);
	guest.slots[1].unwanted = true;
	guest.slots[3].unwanted = true;
	pass(3 * SECOND);
	assert_int_equal(guest.answered, 3);
	assert_int_equal(guest.result[3], -ENOSPC);
	disk.stuck = false;
	engine_timer_set(server_engine(bed.server), &disk.timer, 0);
	steps(3);
	assert_int_equal(guest.answered, 4);
	assert_int_equal(guest.result[1], -ENOSPC);
	assert_true(guest.busy[0]);

	disk.write_err = 0;
	pass(3 * SECOND);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(guest.answered, 5);
	assert_int_equal(state(), 0);
	assert_false(marked());
	/* The slot's next request is another one. */
	disk.write_err = -ENOSPC;
	ask(1, IMAGE_WRITE, 1);
	steps(3);
	assert_true(guest.busy[1]);
	vbd_drop_unwanted(bed.vbd);
	assert_true(guest.busy[1]);

	/* Nor is it in a pause. */
	vbd_pause(bed.vbd, 0, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	guest.slots[1].unwanted = true;
	vbd_drop_unwanted(bed.vbd);
	assert_false(guest.busy[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(an_error_that_passes_is_time_to_the_guest),
		TEST(others_go_on_while_one_waits),
		TEST(an_error_that_stays_is_the_guests_in_the_end),
		TEST(each_outage_has_its_own_time),
		TEST(after_that_it_may_wait_to_be_told),
		TEST(which_errors_are_tried_again),
		TEST(a_flush_of_a_local_file_is_not_tried_again),
		TEST(an_io_error_of_a_server_may_pass),
		TEST(a_flush_without_space_is_not_tried_again),
		TEST(the_mark_of_a_disk_with_a_long_path_is_cut),
		TEST(the_flush_of_a_fua_write_is_tried_alone),
		TEST(writes_wait_for_space_and_say_so),
		TEST(unpause_looks_for_space_at_once),
		TEST(a_lack_of_space_may_be_an_error),
		TEST(a_request_is_tried_again_while_its_disk_is_being_made),
		TEST(the_flush_of_a_fua_write_that_fails_is_the_next_flushs_too),
		TEST(a_flush_that_waits_is_told_of_a_fua_writes),
		TEST(a_flush_that_fails_and_nobody_hears_of_is_the_next_ones),
		TEST(what_nobody_wants_any_more_is_not_tried_again),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
