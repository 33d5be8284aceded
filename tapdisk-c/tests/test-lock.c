/* SPDX-License-Identifier: LGPL-2.1-only */
/* The image lock's bytes, and who excludes whom among our own. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/lock.h"

#define FIRST_CHILD	((uint64_t)1 << 40)
#define LAST_CHILD	(((uint64_t)1 << 40) - 1)
#define CHILD		12345u

static char path[64];

static int make_file(void **state)
{
	int fd;

	(void)state;
	strcpy(path, "/tmp/test-lock.XXXXXX");
	fd = mkostemp(path, O_CLOEXEC);
	assert_true(fd >= 0);
	close(fd);
	return 0;
}

static int remove_file(void **state)
{
	(void)state;
	return unlink(path);
}

static int reopen(int flags)
{
	int fd = open(path, flags | O_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

/* What others see of a child's byte. */
static short child_byte(uint64_t child)
{
	struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET,
			    .l_start = (off_t)(FIRST_CHILD + child), .l_len = 1 };
	int fd = reopen(O_RDWR);

	assert_int_equal(fcntl(fd, F_OFD_GETLK, &fl), 0);
	close(fd);
	return fl.l_type;
}

/* "byte:R " or "byte:W " for each locked byte, as others see it. */
static const char *bytes_held(void)
{
	static char text[256];
	int fd = reopen(O_RDWR);
	size_t n = 0;

	text[0] = 0;
	for (int i = 0; i < 1000; i++) {
		struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET,
				    .l_start = i, .l_len = 1 };

		assert_int_equal(fcntl(fd, F_OFD_GETLK, &fl), 0);
		if (fl.l_type == F_UNLCK)
			continue;
		n += (size_t)snprintf(text + n, sizeof(text) - n, "%d:%c ", i,
				      fl.l_type == F_RDLCK ? 'R' : 'W');
	}
	close(fd);
	return text;
}

static void reader_and_writer_hold_the_bytes_of_the_table(void **state)
{
	int fd = reopen(O_RDONLY);

	(void)state;
	assert_int_equal(lock_take(fd, path, LOCK_READER, 0, NULL), 0);
	assert_string_equal(bytes_held(), "100:R 201:R 203:R 300:R ");
	close(fd);
	fd = reopen(O_RDWR);
	assert_int_equal(lock_take(fd, path, LOCK_WRITER, 0, NULL), 0);
	assert_string_equal(bytes_held(),
			    "100:R 101:R 103:R 201:R 203:R 300:W ");
	close(fd);
	assert_string_equal(bytes_held(), "");
}

static void parent_and_coalesce_hold_the_bytes_of_the_table(void **state)
{
	int fd = reopen(O_RDWR);

	(void)state;
	assert_int_equal(lock_take(fd, path, LOCK_PARENT, CHILD, NULL), 0);
	assert_string_equal(bytes_held(), "201:R 203:R ");
	assert_int_equal(child_byte(CHILD), F_RDLCK);
	assert_int_equal(child_byte(CHILD + 1), F_UNLCK);
	assert_int_equal(child_byte(CHILD - 1), F_UNLCK);
	close(fd);
	fd = reopen(O_RDWR);
	assert_int_equal(lock_take(fd, path, LOCK_COALESCE, CHILD, NULL), 0);
	assert_string_equal(bytes_held(),
			    "100:R 101:R 103:R 201:R 203:R 300:W 301:W ");
	assert_int_equal(child_byte(CHILD), F_UNLCK);
	assert_int_equal(child_byte(CHILD + 1), F_WRLCK);
	assert_int_equal(child_byte(CHILD - 1), F_WRLCK);
	assert_int_equal(child_byte(0), F_WRLCK);
	assert_int_equal(child_byte(LAST_CHILD), F_WRLCK);
	close(fd);
	assert_int_equal(child_byte(CHILD + 1), F_UNLCK);
	/* A writer becomes the parent of its first child. */
	fd = reopen(O_RDWR);
	assert_int_equal(lock_take(fd, path, LOCK_WRITER, 0, NULL), 0);
	assert_int_equal(child_byte(CHILD), F_WRLCK);
	assert_int_equal(lock_to_parent(fd, CHILD), 0);
	assert_string_equal(bytes_held(), "201:R 203:R ");
	assert_int_equal(child_byte(CHILD), F_RDLCK);
	assert_int_equal(child_byte(CHILD + 1), F_UNLCK);
	assert_int_equal(child_byte(0), F_UNLCK);
	close(fd);
}

/* The first and the last child that there may be have nothing on one side. */
static void children_at_the_ends(void **state)
{
	static const uint64_t ends[] = { 0, LAST_CHILD };

	(void)state;
	for (int i = 0; i < 2; i++) {
		int a = reopen(O_RDWR), b = reopen(O_RDWR), c = reopen(O_RDWR);

		assert_int_equal(lock_take(a, path, LOCK_COALESCE, ends[i],
					   NULL), 0);
		assert_int_equal(lock_take(b, path, LOCK_PARENT, ends[i], NULL),
				 0);
		assert_int_equal(lock_take(c, path, LOCK_PARENT, CHILD, NULL),
				 -EBUSY);
		assert_int_equal(lock_take(c, path, LOCK_PARENT, ends[!i],
					   NULL), -EBUSY);
		close(a);
		assert_int_equal(lock_take(c, path, LOCK_PARENT, CHILD, NULL),
				 0);
		close(b);
		close(c);
	}
}

static void a_child_is_known_by_its_file_and_its_uuid(void **state)
{
	struct stat a = { .st_mode = S_IFREG, .st_ino = 5, .st_dev = 1 };
	struct stat b = { .st_mode = S_IFREG, .st_ino = 6, .st_dev = 1 };
	struct stat dev = { .st_mode = S_IFBLK, .st_ino = 5, .st_rdev = 7 };
	const uint8_t one[16] = { 1 }, two[16] = { [15] = 1 };

	(void)state;
	assert_true(lock_child(&a, one) <= LAST_CHILD);
	assert_true(lock_child(&a, one) != lock_child(&b, one));
	assert_true(lock_child(&a, one) != lock_child(&a, two));
	assert_true(lock_child(&a, one) != lock_child(&dev, one));
	/* Another host may number its file systems in another way. */
	b = a;
	b.st_dev = 9;
	assert_true(lock_child(&a, one) == lock_child(&b, one));
	/* A node may be another one after a reboot, the device is the same. */
	b = dev;
	b.st_ino = 99;
	assert_true(lock_child(&dev, one) == lock_child(&b, one));
}

static void closing_another_descriptor_keeps_the_lock(void **state)
{
	int fd = reopen(O_RDWR), copy;

	(void)state;
	assert_int_equal(lock_take(fd, path, LOCK_WRITER, 0, NULL), 0);
	close(reopen(O_RDWR));
	copy = dup(fd);
	close(fd);
	assert_string_not_equal(bytes_held(), "");
	close(copy);
	assert_string_equal(bytes_held(), "");
}

static void take_of(enum lock_mode first, uint64_t first_child,
		    enum lock_mode second, uint64_t second_child, int expected,
		    const char *says)
{
	int a = reopen(O_RDWR), b = reopen(O_RDWR);
	struct error err = { .text = "" };
	char before[256];

	assert_int_equal(lock_take(a, path, first, first_child, NULL), 0);
	strcpy(before, bytes_held());
	assert_int_equal(lock_take(b, path, second, second_child, &err),
			 expected);
	if (expected) {
		assert_non_null(strstr(err.text, path));
		assert_non_null(strstr(err.text, says));
		assert_int_equal(err.code, expected);
		assert_string_equal(bytes_held(), before);
		close(a);
		/* Nothing is left of the attempt that failed. */
		assert_string_equal(bytes_held(), "");
		assert_int_equal(lock_take(b, path, second, second_child,
					   NULL), 0);
		close(b);
		return;
	}
	close(a);
	close(b);
}

static void take(enum lock_mode first, enum lock_mode second, int expected,
		 const char *says)
{
	take_of(first, 0, second, 0, expected, says);
}

static void a_coalesce_is_beside_those_who_read_below_its_child(void **state)
{
	const uint64_t c = CHILD, d = CHILD + 1;
	const char *writes = "has it open for writing";
	const char *coalesces = "coalesces a child into it";

	(void)state;
	take_of(LOCK_PARENT, c, LOCK_PARENT, c, 0, "");
	take_of(LOCK_PARENT, c, LOCK_PARENT, d, 0, "");
	take_of(LOCK_PARENT, c, LOCK_READER, 0, 0, "");
	take_of(LOCK_READER, 0, LOCK_PARENT, c, 0, "");
	take_of(LOCK_PARENT, c, LOCK_WRITER, 0, -EBUSY, "has it as a parent");
	take_of(LOCK_WRITER, 0, LOCK_PARENT, c, -EBUSY, writes);
	take_of(LOCK_PARENT, c, LOCK_COALESCE, c, 0, "");
	take_of(LOCK_COALESCE, c, LOCK_PARENT, c, 0, "");
	take_of(LOCK_PARENT, d, LOCK_COALESCE, c, -EBUSY,
		"has it as a parent of another image");
	take_of(LOCK_COALESCE, c, LOCK_PARENT, d, -EBUSY, coalesces);
	take_of(LOCK_READER, 0, LOCK_COALESCE, c, -EBUSY, "reads it");
	take_of(LOCK_COALESCE, c, LOCK_READER, 0, -EBUSY, coalesces);
	take_of(LOCK_WRITER, 0, LOCK_COALESCE, c, -EBUSY, writes);
	take_of(LOCK_COALESCE, c, LOCK_WRITER, 0, -EBUSY, coalesces);
	take_of(LOCK_COALESCE, c, LOCK_COALESCE, c, -EBUSY, coalesces);
	take_of(LOCK_COALESCE, c, LOCK_COALESCE, d, -EBUSY, coalesces);
	take_of(LOCK_PARENT, c, LOCK_GROW, 0, 0, "");
	take_of(LOCK_GROW, 0, LOCK_PARENT, c, 0, "");
	take_of(LOCK_GROW, 0, LOCK_GROW, 0, -EBUSY, "makes it larger");
	take_of(LOCK_GROW, 0, LOCK_READER, 0, -EBUSY, "makes it larger");
	take_of(LOCK_READER, 0, LOCK_GROW, 0, -EBUSY, "reads it");
	take_of(LOCK_GROW, 0, LOCK_WRITER, 0, -EBUSY, "makes it larger");
	take_of(LOCK_WRITER, 0, LOCK_GROW, 0, -EBUSY, writes);
	take_of(LOCK_GROW, 0, LOCK_COALESCE, c, -EBUSY, "makes it larger");
	take_of(LOCK_COALESCE, c, LOCK_GROW, 0, -EBUSY, coalesces);
}

static void readers_share_and_a_writer_is_alone(void **state)
{
	(void)state;
	take(LOCK_READER, LOCK_READER, 0, "");
	take(LOCK_READER, LOCK_WRITER, -EBUSY, "reads it");
	take(LOCK_WRITER, LOCK_READER, -EBUSY, "has it open for writing");
	take(LOCK_WRITER, LOCK_WRITER, -EBUSY, "has it open for writing");
}

static void foreign_byte(int byte, enum lock_mode mode, const char *says)
{
	struct flock fl = { .l_type = F_RDLCK, .l_whence = SEEK_SET,
			    .l_start = byte, .l_len = 1 };
	int a = reopen(O_RDWR), b = reopen(O_RDWR);
	struct error err = { .text = "" };
	int rc;

	assert_int_equal(fcntl(a, F_OFD_SETLK, &fl), 0);
	rc = lock_take(b, path, mode, CHILD, &err);
	if (says) {
		assert_int_equal(rc, -EBUSY);
		assert_non_null(strstr(err.text, says));
	} else {
		assert_int_equal(rc, 0);
	}
	close(a);
	close(b);
}

/* What QEMU would hold: 100 + what it does, 200 + what it forbids others. */
static void foreign_permissions_are_respected(void **state)
{
	(void)state;
	for (enum lock_mode m = LOCK_READER; m <= LOCK_WRITER; m++) {
		foreign_byte(100, m, NULL);
		foreign_byte(101, m, "open for writing");
		foreign_byte(103, m, "open for writing");
		foreign_byte(200, m, "forbids all others to read");
	}
	/* QEMU's readers read an image, whatever is above it. */
	foreign_byte(100, LOCK_COALESCE, "reads it");
	foreign_byte(101, LOCK_COALESCE, "open for writing");
	foreign_byte(103, LOCK_COALESCE, "open for writing");
	foreign_byte(200, LOCK_COALESCE, "forbids all others to read");
	foreign_byte(100, LOCK_GROW, "reads it");
	foreign_byte(101, LOCK_GROW, "open for writing");
	foreign_byte(100, LOCK_PARENT, NULL);
	foreign_byte(101, LOCK_PARENT, "open for writing");
	foreign_byte(103, LOCK_PARENT, "open for writing");
	foreign_byte(200, LOCK_PARENT, "forbids all others to read");
	foreign_byte(201, LOCK_PARENT, NULL);
	foreign_byte(201, LOCK_READER, NULL);
	foreign_byte(203, LOCK_READER, NULL);
	foreign_byte(201, LOCK_WRITER, "forbids all others to write");
	foreign_byte(203, LOCK_WRITER, "forbids all others to write");
}

static void a_descriptor_that_cannot_be_locked_is_an_error(void **state)
{
	struct error err;
	int fd = reopen(O_RDONLY);

	(void)state;
	assert_int_equal(lock_take(-1, "x.img", LOCK_READER, 0, &err), -EBADF);
	assert_non_null(strstr(err.text, "x.img: can't be locked"));
	assert_int_equal(lock_take(fd, path, LOCK_WRITER, 0, &err), -EBADF);
	assert_string_equal(bytes_held(), "");
	close(fd);
}

/*
 * A lock that no process has, for so long, or (0) until the process that is returned
 * is killed: its descriptor is under way in a socket, as a killed process's is in the kernel.
 */
static pid_t hide_lock(int fd, unsigned int ms)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { .head = { .cmsg_len = CMSG_LEN(sizeof(int)),
				.cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS } };
	char byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1,
			      .msg_control = control.space,
			      .msg_controllen = sizeof(control.space) };
	pid_t pid;
	int s[2];

	memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
	assert_int_equal(sendmsg(s[0], &msg, 0), 1);
	close(fd);
	pid = fork();
	if (!pid) {
		if (ms)
			usleep(ms * 1000);
		else
			pause();
		_exit(0);
	}
	close(s[0]);
	close(s[1]);
	return pid;
}

static void a_lock_that_a_killed_process_left_is_waited_for(void **state)
{
	int a = reopen(O_RDWR), b = reopen(O_RDWR);
	struct error err;
	pid_t pid;

	(void)state;
	assert_int_equal(lock_take(a, path, LOCK_WRITER, 0, NULL), 0);
	hide_lock(a, 200);
	assert_int_equal(lock_take(b, path, LOCK_WRITER, 0, &err), 0);
	wait(NULL);
	a = b;
	b = reopen(O_RDWR);
	pid = hide_lock(a, 0);
	assert_int_equal(lock_take(b, path, LOCK_READER, 0, &err), -EBUSY);
	assert_non_null(strstr(err.text, "in use: another process, or another host"));
	kill(pid, SIGKILL);
	wait(NULL);
	assert_string_equal(bytes_held(), "");
	close(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reader_and_writer_hold_the_bytes_of_the_table),
		cmocka_unit_test(parent_and_coalesce_hold_the_bytes_of_the_table),
		cmocka_unit_test(children_at_the_ends),
		cmocka_unit_test(a_child_is_known_by_its_file_and_its_uuid),
		cmocka_unit_test(a_coalesce_is_beside_those_who_read_below_its_child),
		cmocka_unit_test(closing_another_descriptor_keeps_the_lock),
		cmocka_unit_test(readers_share_and_a_writer_is_alone),
		cmocka_unit_test(foreign_permissions_are_respected),
		cmocka_unit_test(a_lock_that_a_killed_process_left_is_waited_for),
		cmocka_unit_test(a_descriptor_that_cannot_be_locked_is_an_error),
	};

	return cmocka_run_group_tests_name("lock", tests, make_file, remove_file);
}
