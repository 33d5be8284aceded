/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A client of a block device, for machines without fio: reads or writes at
 * random places by Linux AIO and O_DIRECT, so many at a time, for a time or a number of
 * requests.
 *
 *   aioload DEVICE read|write BYTES DEPTH MILLISECONDS IOS SEED SPAN
 *
 * The first SPAN bytes of the device; ends at the first of MILLISECONDS and IOS
 * (0: no limit). What has ended is answered by as many new requests in one
 * system call. Prints requests and nanoseconds.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAX_DEPTH 256

static struct iocb iocbs[MAX_DEPTH];
static uint64_t state;

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Knuth's MMIX generator; its upper bits are good enough. */
static uint64_t any(uint64_t below)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (state >> 33) % below;
}

static void submit(aio_context_t aio, struct iocb **list, long nr)
{
	long done = 0, ret;

	while (done < nr) {
		ret = syscall(SYS_io_submit, aio, nr - done, list + done);
		if (ret <= 0)
			err(1, "io_submit");
		done += ret;
	}
}

static void prepare(int fd, uint16_t op, uint64_t bytes, unsigned int depth)
{
	void *buf;

	for (unsigned int i = 0; i < depth; i++) {
		if (posix_memalign(&buf, 4096, bytes))
			errx(1, "no memory");
		memset(buf, (int)i + 1, bytes);
		iocbs[i] = (struct iocb) {
			.aio_data = i,
			.aio_lio_opcode = op,
			.aio_fildes = (uint32_t)fd,
			.aio_buf = (uintptr_t)buf,
			.aio_nbytes = bytes,
		};
	}
}

static uint64_t load(uint64_t bytes, unsigned int depth, uint64_t end,
		     uint64_t ios, uint64_t span)
{
	static struct io_event events[MAX_DEPTH];
	static struct iocb *list[MAX_DEPTH];
	uint64_t begun = 0, done = 0;
	aio_context_t aio = 0;
	long nr = depth, ret;

	if (syscall(SYS_io_setup, depth, &aio))
		err(1, "io_setup");
	for (long i = 0; i < nr; i++)
		list[i] = &iocbs[i];
	for (;;) {
		if (now() >= end)
			nr = 0;
		if (ios && begun + (uint64_t)nr > ios)
			nr = (long)(ios - begun);
		for (long i = 0; i < nr; i++)
			list[i]->aio_offset = (int64_t)(any(span / bytes) * bytes);
		submit(aio, list, nr);
		begun += (uint64_t)nr;
		if (done == begun)
			return done;
		nr = syscall(SYS_io_getevents, aio, 1, depth, events, NULL);
		if (nr < 1)
			err(1, "io_getevents");
		for (ret = 0; ret < nr; ret++) {
			if (events[ret].res != (int64_t)bytes)
				errx(1, "a request ended with %lld", (long long)events[ret].res);
			list[ret] = &iocbs[events[ret].data];
		}
		done += (uint64_t)nr;
	}
}

int main(int argc, char **argv)
{
	uint64_t bytes, ms, ios, span, start, done;
	unsigned int depth;
	int fd, write;

	if (argc != 9)
		errx(2, "usage: aioload DEVICE read|write BYTES DEPTH MILLISECONDS IOS SEED SPAN");
	write = !strcmp(argv[2], "write");
	bytes = strtoull(argv[3], NULL, 0);
	depth = (unsigned int)strtoul(argv[4], NULL, 0);
	ms = strtoull(argv[5], NULL, 0);
	ios = strtoull(argv[6], NULL, 0);
	state = strtoull(argv[7], NULL, 0);
	span = strtoull(argv[8], NULL, 0);
	if (!bytes || bytes % 512 || !depth || depth > MAX_DEPTH || span < bytes)
		errx(2, "BYTES, DEPTH (1 to %d) or SPAN makes no sense", MAX_DEPTH);
	fd = open(argv[1], (write ? O_RDWR : O_RDONLY) | O_DIRECT);
	if (fd < 0)
		err(1, "%s", argv[1]);
	prepare(fd, write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD, bytes, depth);
	start = now();
	done = load(bytes, depth, ms ? start + ms * 1000000u : UINT64_MAX, ios, span);
	printf("%llu %llu\n", (unsigned long long)done,
	       (unsigned long long)(now() - start));
	return 0;
}
