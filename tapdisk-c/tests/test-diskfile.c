/* SPDX-License-Identifier: LGPL-2.1-only */
/* disk.<minor>: what is written is read back, and what is not understood is not guessed. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/diskfile.h"
#include "common/log.h"
#include "common/process.h"

static char dir[] = "/tmp/test-diskfile-XXXXXX";

static int make_dir(void **state)
{
	(void)state;
	return !mkdtemp(dir) || setenv("XENBLK_CONTROL_DIR", dir, 1);
}

static int remove_dir(void **state)
{
	(void)state;
	return rmdir(dir);
}

static void what_is_written_is_read_back(void **state)
{
	char args[] = "vhd:/a = b/c.vhd";
	struct diskfile out = {
		.minor = 7, .pid = 4711, .id = UINT64_MAX, .args = args,
		.readonly = true, .lost = true, .signed_it = true, .dead_timeout_s = 60, .owner = 12,
		.sectors = 1ull << 40, .sector_size = 4096,
		.retry = { RETRY_ALL, 3, 0, true, false },
		.former = { 5, 6 }, .nr_former = 2,
	};
	struct diskfile in;

	(void)state;
	assert_int_equal(diskfile_write(&out), 0);
	assert_int_equal(diskfile_read(&in, 7), 0);
	assert_string_equal(in.args, args);
	free(in.args);
	in.args = args;
	assert_true(in.readonly && in.lost && in.signed_it && in.dead_timeout_s == 60 && !in.paused && !in.given_up);
	assert_int_equal(in.pid, 4711);
	assert_true(in.id == UINT64_MAX && in.sectors == 1ull << 40);
	assert_int_equal(in.owner, 12);
	assert_int_equal(in.sector_size, 4096);
	assert_int_equal(in.retry.errors, RETRY_ALL);
	assert_int_equal(in.retry.interval_s, 3);
	assert_int_equal(in.retry.for_s, 0);
	assert_true(in.retry.then_pause && !in.retry.no_space_waits);
	assert_int_equal(in.nr_former, 2);
	assert_int_equal(in.former[1], 6);

	diskfile_forget(7, 4712);
	assert_int_equal(diskfile_read(&in, 7), 0);
	diskfile_dispose(&in);
	diskfile_give(4711, 4713);
	diskfile_forget(7, 4711);
	assert_int_equal(diskfile_read(&in, 7), 0);
	diskfile_dispose(&in);
	diskfile_forget(7, 4713);
	assert_int_equal(diskfile_read(&in, 7), -ENOENT);
}

static void the_first_and_the_last_names_are_kept(void **state)
{
	struct diskfile file = { .nr_former = 0 };

	(void)state;
	for (int pid = 100; pid < 200; pid++)
		diskfile_add_former(&file, pid);
	diskfile_add_former(&file, 199);
	assert_int_equal(file.nr_former, DISKFILE_FORMER);
	assert_int_equal(file.former[0], 100);
	assert_int_equal(file.former[1], 200 - DISKFILE_FORMER + 1);
	assert_int_equal(file.former[DISKFILE_FORMER - 1], 199);
}

static int read_text(const char *text)
{
	struct diskfile file;
	char path[64];
	FILE *f;
	int rc;

	snprintf(path, sizeof(path), "%s/disk.3", dir);
	f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
	rc = diskfile_read(&file, 3);
	if (!rc)
		diskfile_dispose(&file);
	unlink(path);
	return rc;
}

static void what_is_not_understood_is_refused(void **state)
{
	static const char *const bad[] = {
		"", "pid=1\n", "args=aio:/a\n", "version=2\npid=1\nargs=aio:/a\n",
		"pid=1\nargs=aio:/a", "pid=-1\nargs=aio:/a\n",
		"pid=1x\nargs=aio:/a\n", "pid=99999999999\nargs=aio:/a\n",
		"pid=1\nargs=aio:/a\nretry_for=x\n", "pid=1\nargs=aio:/a\nword\n",
		"pid=1\nargs=aio:/a\nid=18446744073709551616\n",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(read_text(bad[i]), -EPROTO);
	assert_int_equal(read_text("pid=1\nargs=aio:/a\nof_later=1\n"), 0);
}

static void a_process_that_ended_is_told_from_one_that_lives(void **state)
{
	int pid;

	(void)state;
	assert_false(process_ended(getpid()));
	assert_true(process_born(getpid()) > 0);
	assert_int_equal(process_born(getpid()), process_born(getpid()));
	assert_int_equal(process_born(1 << 30), 0);
	pid = fork();
	if (!pid)
		_exit(0);
	/* A zombie: nobody has waited for it. */
	while (!process_ended(pid))
		usleep(1000);
	assert_true(process_ended(pid));
}

/* Its number is another one's by now. */
static void another_process_with_its_pid_does_not_have_the_disk(void **state)
{
	struct diskfile file = { .pid = getpid(), .born = process_born(getpid()) };

	(void)state;
	assert_false(diskfile_is_left(&file));
	file.born++;
	assert_true(diskfile_is_left(&file));
	/* Of an earlier release. */
	file.born = 0;
	assert_false(diskfile_is_left(&file));
	file.pid = 1 << 30;
	assert_true(diskfile_is_left(&file));
}

/* A process that can open nothing any more. */
static void let_open(bool may)
{
	struct rlimit limit;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = may ? limit.rlim_max : 0;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

static void what_would_mislead_goes_if_it_can_not_be_replaced(void **state)
{
	char one[] = "vhd:/one.vhd", other[] = "vhd:/other.vhd", tmp[64];
	struct diskfile file = {
		.minor = 8, .pid = 4711, .args = one, .retry = retry_defaults,
	};
	struct diskfile in;

	(void)state;
	assert_int_equal(diskfile_write(&file), 0);
	/* In the way of the new one. */
	snprintf(tmp, sizeof(tmp), "%s/disk.8.%d", dir, (int)getpid());
	assert_int_equal(mkdir(tmp, 0700), 0);
	assert_int_equal(diskfile_update(&file, true), -EISDIR);
	assert_int_equal(diskfile_read(&in, 8), 0);
	diskfile_dispose(&in);
	file.args = other;
	assert_int_equal(diskfile_update(&file, true), -EISDIR);
	assert_int_equal(diskfile_read(&in, 8), -ENOENT);
	assert_int_equal(rmdir(tmp), 0);

	/* Nor be read. */
	file.args = one;
	assert_int_equal(diskfile_update(&file, true), 0);
	file.paused = true;
	let_open(false);
	assert_int_equal(diskfile_update(&file, true), -EMFILE);
	let_open(true);
	assert_int_equal(diskfile_read(&in, 8), -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_written_is_read_back),
		cmocka_unit_test(the_first_and_the_last_names_are_kept),
		cmocka_unit_test(what_is_not_understood_is_refused),
		cmocka_unit_test(a_process_that_ended_is_told_from_one_that_lives),
		cmocka_unit_test(another_process_with_its_pid_does_not_have_the_disk),
		cmocka_unit_test(what_would_mislead_goes_if_it_can_not_be_replaced),
	};

	log_open("test-diskfile", false, LOG_LEVEL_ERROR);
	return cmocka_run_group_tests_name("diskfile", tests, make_dir, remove_dir);
}
