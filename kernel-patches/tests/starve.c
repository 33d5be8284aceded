// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes the first, the second, and so on, of the allocations and copies that
 * an ioctl of blktap.ko needs fail, until none is left to fail: each time it
 * says so or does without, and all can be done again.
 *
 *   starve MINOR FILE
 *
 * Needs a kernel with FAILSLAB and its kin, set up to fail what may wait
 * (tests/kernels). FILE is a file on a disk, of at least 1 MiB. Prints a line for each
 * ioctl, with how many failures it has had.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "blktap.h"

#define ENTRIES		8u
#define MAX_IO		65536u
#define SECTORS		2048u
#define MOST		3000u
#define NR_EXTENTS	16u

static int minor, control, ring = -1, nth, file;
static uint8_t *buf;

/* What is left of a number from before may hit this very call. */
static void fail(unsigned int n)
{
	char text[16];
	int tries, len = snprintf(text, sizeof(text), "%u", n);

	for (tries = 0; pwrite(nth, text, (size_t)len, 0) != len; tries++)
		if (tries == 10)
			err(1, "fail-nth");
}

/* Whether one was made to fail since fail(). */
static bool failed(void)
{
	char text[16] = "";
	ssize_t len = pread(nth, text, sizeof(text) - 1, 0);

	fail(0);
	/* that it was this one says that it was none before */
	return len > 0 && atoi(text) == 0;
}

static int do_alloc(void)
{
	struct blktap_alloc arg = {
		.size = sizeof(arg), .version = BLKTAP_ABI_VERSION, .minor = minor,
	};

	return ioctl(control, BLKTAP_IOC_ALLOC, &arg);
}

static int do_free(void)
{
	struct blktap_free arg = { .size = sizeof(arg), .minor = minor };

	return ioctl(control, BLKTAP_IOC_FREE, &arg);
}

static int do_open(void)
{
	char path[64];

	snprintf(path, sizeof(path), BLKTAP_RING_PATH, minor);
	return ring = open(path, O_RDWR | O_CLOEXEC);
}

static int do_setup(void)
{
	struct blktap_setup arg = {
		.size = sizeof(arg), .version = BLKTAP_ABI_VERSION,
		.features = BLKTAP_F_COPY | BLKTAP_F_REMAP, .nr_queues = 1,
		.entries = ENTRIES, .max_io_bytes = MAX_IO,
		.buf_addr = (uintptr_t)buf, .buf_len = ENTRIES * MAX_IO,
	};

	return ioctl(ring, BLKTAP_IOC_SETUP, &arg);
}

static int do_device(unsigned long cmd)
{
	struct blktap_device_params arg = {
		.size = sizeof(arg), .flags = BLKTAP_DEV_FLUSH, .sectors = SECTORS,
		.logical_block_size = 512, .physical_block_size = 4096,
	};

	return ioctl(ring, cmd, &arg);
}

static int do_create(void)
{
	return do_device(BLKTAP_IOC_CREATE_DEVICE);
}

static int do_resume(void)
{
	return do_device(BLKTAP_IOC_RESUME_DEVICE);
}

static int do_remove(void)
{
	struct blktap_remove arg = { .size = sizeof(arg), .flags = BLKTAP_REMOVE_FORCE };

	return ioctl(ring, BLKTAP_IOC_REMOVE_DEVICE, &arg);
}

static int do_enter(void)
{
	struct blktap_enter arg = { .size = sizeof(arg) };

	return ioctl(ring, BLKTAP_IOC_ENTER, &arg);
}

static int do_add_file(void)
{
	struct blktap_file arg = { .size = sizeof(arg), .number = 1, .fd = file };

	return ioctl(ring, BLKTAP_IOC_ADD_FILE, &arg);
}

/* Some may have been added before the one that failed. */
static int do_add_extents(void)
{
	struct blktap_extent e[NR_EXTENTS];
	struct blktap_withdraw none = { .size = sizeof(none), .nr_sectors = UINT64_MAX };
	struct blktap_extents arg = {
		.size = sizeof(arg), .nr = NR_EXTENTS, .addr = (uintptr_t)e,
	};
	int rc, error;

	for (uint32_t i = 0; i < NR_EXTENTS; i++)
		e[i] = (struct blktap_extent) {
			.sector = i * 16, .nr_sectors = 16, .offset = i * 8192,
			.file = 1,
		};
	rc = ioctl(ring, BLKTAP_IOC_ADD_EXTENTS, &arg);
	error = errno;
	if (rc)
		ioctl(ring, BLKTAP_IOC_WITHDRAW, &none);
	errno = error;
	return rc;
}

static int do_withdraw(void)
{
	struct blktap_withdraw arg = {
		.size = sizeof(arg), .flags = BLKTAP_WITHDRAW_WAIT,
		.sector = 20, .nr_sectors = 4,
	};

	return ioctl(ring, BLKTAP_IOC_WITHDRAW, &arg);
}

/* undo: what a call that failed may leave, as the header says, is set right. */
static void starve(const char *name, int (*call)(void), void (*undo)(void))
{
	unsigned int n, errors = 0;
	int rc, error;
	bool hit;

	for (n = 1; n < MOST; n++) {
		fail(n);
		rc = call();
		error = errno;
		hit = failed();
		if (rc < 0 && !hit)
			errx(1, "%s: %s, with nothing made to fail", name, strerror(error));
		if (rc >= 0 && !hit)
			break;
		errors += rc < 0;
		if (rc < 0 && error != ENOMEM && error != EFAULT && error != ENOSPC)
			printf("%s: failure %u: %s\n", name, n, strerror(error));
		if (undo)
			undo();
		else if (rc >= 0)
			break;
	}
	printf("%s: %u failures, %u errors\n", name, n - 1, errors);
	fflush(stdout);
}

static void undo_alloc(void)
{
	do_free();
}

static void undo_open(void)
{
	if (ring >= 0)
		close(ring);
}

static void undo_setup(void)
{
	close(ring);
	if (do_open() < 0)
		err(1, "ring");
}

static void undo_create(void)
{
	do_remove();
}

static void undo_add_file(void)
{
	struct blktap_unfile arg = { .size = sizeof(arg), .number = 1 };

	ioctl(ring, BLKTAP_IOC_REMOVE_FILE, &arg);
}

static void undo_add_extents(void)
{
	struct blktap_withdraw none = { .size = sizeof(none), .nr_sectors = UINT64_MAX };

	ioctl(ring, BLKTAP_IOC_WITHDRAW, &none);
}

static void undo_withdraw(void)
{
	undo_add_extents();
	do_add_extents();
}

/* The ring's end, then another server: what needs memory must not be lost. */
static void another_server(void)
{
	close(ring);
	if (do_open() < 0 || do_setup() < 0)
		err(1, "SETUP");
	starve("RESUME_DEVICE", do_resume, NULL);
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: starve MINOR FILE\n");
		return 2;
	}
	minor = atoi(argv[1]);
	file = open(argv[2], O_RDONLY | O_DIRECT | O_CLOEXEC);
	buf = mmap(NULL, ENTRIES * MAX_IO, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (file < 0 || buf == MAP_FAILED)
		err(1, "%s", argv[2]);
	control = open(BLKTAP_CONTROL_PATH, O_RDWR | O_CLOEXEC);
	nth = open("/proc/self/fail-nth", O_RDWR | O_CLOEXEC);
	if (control < 0 || nth < 0)
		err(1, "%s", control < 0 ? BLKTAP_CONTROL_PATH : "/proc/self/fail-nth");
	starve("ALLOC", do_alloc, undo_alloc);
	starve("open", do_open, undo_open);
	starve("SETUP", do_setup, undo_setup);
	starve("CREATE_DEVICE", do_create, undo_create);
	starve("ENTER", do_enter, NULL);
	starve("ADD_FILE", do_add_file, undo_add_file);
	starve("ADD_EXTENTS", do_add_extents, undo_add_extents);
	starve("WITHDRAW", do_withdraw, undo_withdraw);
	another_server();
	starve("REMOVE_DEVICE", do_remove, NULL);
	close(ring);
	starve("FREE", do_free, NULL);
	puts("done");
	return 0;
}
