/* SPDX-License-Identifier: LGPL-2.1-only */
/* Minors of several transports: a driver and a stock kernel that are in this file. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <blktap.h>
#include <cmocka.h>

#include "common/rundir.h"
#include "transport/blktap-control.h"
#include "transport/minor.h"

/* The driver: gives the lowest that is free. */
static bool driver[16];

bool blktap_has(int minor)
{
	return minor >= 0 && minor < 16 && driver[minor];
}

int blktap_allocate(int *minor, struct error *err)
{
	int m = *minor < 0 ? 0 : *minor;

	while (*minor < 0 && blktap_has(m))
		m++;
	if (blktap_has(m))
		return error_set(err, -EBUSY, "taken");
	driver[m] = true;
	*minor = m;
	return 0;
}

int blktap_free(int minor, unsigned int flags, struct error *err)
{
	(void)flags;
	(void)err;
	driver[minor] = false;
	return 0;
}

uint64_t blktap_id(int minor)
{
	return (uint64_t)minor + 1;
}

uint64_t blktap_get(int minor, const char *name)
{
	(void)minor;
	(void)name;
	return 0;
}

int blktap_set(int minor, const char *name, unsigned int value)
{
	(void)minor;
	(void)name;
	(void)value;
	return 0;
}

/* The stock kernel */
static int removed = -1, remove_rc, busy_name = -1, unpublished;

static int stock_remove(int minor, struct error *err)
{
	removed = minor;
	return remove_rc ? error_set(err, remove_rc, "stuck") : 0;
}

static bool stock_taken(int minor)
{
	return minor == busy_name;
}

const struct gendisk_kind blktap_gendisk = { .name = "blktap" };
static const struct gendisk_kind stock = {
	.name = "stock", .remove = stock_remove, .taken = stock_taken,
};

const struct gendisk_kind *gendisk_find(const char *name)
{
	return strcmp(name, "stock") ? NULL : &stock;
}

int gendisk_choose(const char *transports, const struct gendisk_kind **kind,
		   struct error *err)
{
	(void)err;
	*kind = strcmp(transports, "stock") ? &blktap_gendisk : &stock;
	return 0;
}

void gendisk_unpublish(int minor)
{
	(void)minor;
	unpublished++;
}

static char dir[] = "/tmp/test-minor-XXXXXX";

static int make_dir(void **state)
{
	(void)state;
	strcpy(strrchr(dir, '-'), "-XXXXXX");
	memset(driver, 0, sizeof(driver));
	removed = busy_name = -1;
	remove_rc = 0;
	unpublished = 0;
	return mkdtemp(dir) ? setenv("XENBLK_CONTROL_DIR", dir, 1) : -1;
}

static int remove_dir(void **state)
{
	char command[64];

	(void)state;
	snprintf(command, sizeof(command), "rm -r %s", dir);
	return system(command);
}

static int allocate(const char *transport)
{
	struct error err;
	int minor;

	assert_int_equal(minor_allocate(transport, &minor, &err), 0);
	return minor;
}

static void minors_of_all_transports_differ(void **state)
{
	static bool given[BLKTAP_MAX_MINORS];

	(void)state;
	assert_int_equal(allocate("blktap"), 0);
	assert_int_equal(allocate("stock"), 1);
	assert_int_equal(allocate("stock"), 2);
	/* The driver would give 1. */
	assert_int_equal(allocate("blktap"), 3);
	assert_false(driver[1]);
	assert_ptr_equal(minor_kind(1), &stock);
	assert_ptr_equal(minor_kind(3), &blktap_gendisk);
	assert_null(minor_kind(4));
	minors_given(given);
	assert_true(given[1] && given[2] && !given[4]);
	assert_int_equal(minor_free(1, NULL), 0);
	assert_int_equal(minor_free(3, NULL), 0);
	assert_false(driver[3]);
	assert_int_equal(removed, 1);
	assert_int_equal(allocate("stock"), 1);
}

static void what_is_in_the_place_of_a_gendisk_is_passed_by(void **state)
{
	(void)state;
	busy_name = 0;
	assert_int_equal(allocate("stock"), 1);
	assert_true(unpublished);
}

static void a_file_without_a_name_is_nobodys(void **state)
{
	char path[PATH_MAX];
	struct error err;
	int fd;

	(void)state;
	run_path(path, sizeof(path), "minor0");
	fd = open(path, O_CREAT | O_WRONLY, 0600);
	assert_true(fd >= 0);
	close(fd);
	assert_null(minor_kind(0));
	assert_int_equal(allocate("stock"), 0);
	assert_ptr_equal(minor_kind(0), &stock);
	fd = open(path, O_TRUNC | O_WRONLY);
	assert_int_equal(write(fd, "other\n", 6), 6);
	close(fd);
	assert_int_equal(minor_claim(0, &(const struct gendisk_kind *){ NULL },
				     &fd, &err), -EPROTO);
	assert_int_equal(minor_free(0, NULL), 0);
}

static void processes_that_allocate_at_once_get_different_ones(void **state)
{
	static bool given[BLKTAP_MAX_MINORS];
	int fds[2], minor, got = 0;

	(void)state;
	assert_int_equal(pipe(fds), 0);
	for (int i = 0; i < 8; i++) {
		if (fork())
			continue;
		for (int n = 0; n < 16; n++) {
			if (minor_allocate("stock", &minor, NULL) ||
			    write(fds[1], &minor, sizeof(minor)) != sizeof(minor))
				_exit(1);
			/* So that freeing and giving meet, too. */
			if (n % 4 == 3 && minor_free(minor, NULL))
				_exit(1);
		}
		_exit(0);
	}
	for (int i = 0; i < 8; i++) {
		int status;

		wait(&status);
		assert_int_equal(status, 0);
	}
	close(fds[1]);
	memset(given, 0, sizeof(given));
	minors_given(given);
	for (minor = 0; minor < BLKTAP_MAX_MINORS; minor++)
		got += given[minor];
	assert_int_equal(got, 8 * 12);
	close(fds[0]);
}

/* A process that claims the minor and stays. */
static pid_t claimant(int minor)
{
	const struct gendisk_kind *kind;
	int fds[2], fd;
	pid_t pid;
	char c;

	assert_int_equal(pipe(fds), 0);
	pid = fork();
	if (!pid) {
		c = minor_claim(minor, &kind, &fd, NULL) ? 'n' : 'y';
		if (write(fds[1], &c, 1) == 1)
			pause();
		_exit(1);
	}
	assert_int_equal(read(fds[0], &c, 1), 1);
	assert_int_equal(c, 'y');
	close(fds[0]);
	close(fds[1]);
	return pid;
}

static void a_claim_is_one_processs_until_it_ends(void **state)
{
	const struct gendisk_kind *kind = NULL;
	struct error err;
	pid_t pid;
	int fd;

	(void)state;
	assert_int_equal(allocate("stock"), 0);
	pid = claimant(0);
	assert_int_equal(minor_claim(0, &kind, &fd, &err), -EBUSY);
	assert_string_equal(err.text, "minor 0 is served by another tapdisk; see tap-ctl list");
	assert_int_equal(minor_free(0, &err), -EBUSY);
	assert_string_equal(err.text, "minor 0: a tapdisk has it; detach it first");
	assert_int_equal(removed, -1);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_int_equal(minor_claim(0, &kind, &fd, &err), 0);
	assert_ptr_equal(kind, &stock);
	close(fd);
	/* What can't be removed keeps its minor. */
	remove_rc = -EIO;
	assert_int_equal(minor_free(0, &err), -EIO);
	assert_ptr_equal(minor_kind(0), &stock);
	remove_rc = 0;
	assert_int_equal(minor_free(0, &err), 0);
	assert_int_equal(minor_free(0, &err), -ENODEV);
	assert_string_equal(err.text, "minor 0: is not allocated; see `tap-ctl list`");
}

static void a_minor_without_a_file_is_the_drivers(void **state)
{
	const struct gendisk_kind *kind = NULL;
	int fd;

	(void)state;
	assert_int_equal(minor_claim(allocate("blktap"), &kind, &fd, NULL), 0);
	assert_ptr_equal(kind, &blktap_gendisk);
	assert_int_equal(fd, -1);
}

static void a_minor_that_is_given_again_is_another_one(void **state)
{
	const struct timespec tick = { .tv_nsec = 20000000 };
	uint64_t id;

	(void)state;
	assert_int_equal(allocate("stock"), 0);
	id = minor_id(0);
	assert_true(id);
	assert_true(minor_id(0) == id);
	assert_int_equal(minor_free(0, NULL), 0);
	nanosleep(&tick, NULL);
	assert_int_equal(allocate("stock"), 0);
	assert_true(minor_id(0) != id);
	assert_true(minor_id(allocate("blktap")) == 2);
}

#define test(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)

int main(void)
{
	const struct CMUnitTest tests[] = {
		test(minors_of_all_transports_differ),
		test(what_is_in_the_place_of_a_gendisk_is_passed_by),
		test(a_file_without_a_name_is_nobodys),
		test(processes_that_allocate_at_once_get_different_ones),
		test(a_claim_is_one_processs_until_it_ends),
		test(a_minor_without_a_file_is_the_drivers),
		test(a_minor_that_is_given_again_is_another_one),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
