/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A guest's use of its disk, in one way for a seed: tests/lib/guestio.py says what the disk holds after it.
 *
 *   guestio DISK SEED WORKERS OPERATIONS
 *
 * Each worker has a part of the disk, and writes and reads there, past the page cache, 512 bytes to 1 MiB from places and
 * buffers at any multiple of 512, half of them of 4096. What it reads must be what it wrote. Then all is flushed.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECTOR		512u
#define MAX_SECTORS	2048u
#define PAGE		4096u

static const uint32_t lengths[] = { 1, 3, 8, 8, 15, 64, 88, 255, 512, MAX_SECTORS };

static uint64_t state;

/* Knuth's MMIX; the upper half. */
static uint32_t any(uint32_t below)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(state >> 32) % below;
}

/* As tests/lib/disk.py has it. */
static void fill(uint64_t *data, uint64_t sector, uint64_t tag)
{
	for (unsigned int i = 0; i < SECTOR / 8; i += 2) {
		data[i] = sector;
		data[i + 1] = tag;
	}
}

static void check(const uint8_t *data, uint64_t sector, uint64_t tag)
{
	uint64_t wanted[SECTOR / 8], found[2];

	fill(wanted, sector, tag);
	memcpy(found, data, sizeof(found));
	if (memcmp(wanted, data, SECTOR))
		errx(3, "sector %llu: %llx %llx, not tag %llx", (unsigned long long)sector,
		     (unsigned long long)found[0], (unsigned long long)found[1], (unsigned long long)tag);
}

static void work(int fd, uint64_t seed, uint64_t first, uint32_t sectors, uint32_t worker, uint32_t operations)
{
	uint64_t *tags = calloc(sectors, sizeof(*tags));
	uint8_t *room = aligned_alloc(PAGE, MAX_SECTORS * SECTOR + PAGE);

	if (!tags || !room)
		err(2, "memory");
	state = seed + worker;
	for (uint32_t n = 1; n <= operations; n++) {
		uint32_t count = lengths[any(sizeof(lengths) / sizeof(lengths[0]))];
		uint32_t at = any(sectors - count + 1);
		uint32_t skew = any(PAGE / SECTOR);
		uint64_t tag = seed << 32 | worker << 24 | n;
		bool write = any(2), aligned = any(2);
		uint8_t *data;
		ssize_t done;
		off_t where;

		if (aligned) {
			at -= at % (PAGE / SECTOR);
			skew = 0;
		}
		data = room + skew * SECTOR;
		where = (off_t)(first + at) * SECTOR;
		for (uint32_t i = 0; write && i < count; i++)
			fill((uint64_t *)(data + i * SECTOR), first + at + i, tag);
		done = write ? pwrite(fd, data, count * SECTOR, where) : pread(fd, data, count * SECTOR, where);
		if (done != (ssize_t)(count * SECTOR))
			err(2, "%s of %u sectors at %llu", write ? "write" : "read", count,
			    (unsigned long long)(first + at));
		for (uint32_t i = 0; i < count; i++) {
			if (write)
				tags[at + i] = tag;
			else if (tags[at + i])
				check(data + i * SECTOR, first + at + i, tags[at + i]);
		}
	}
	exit(0);
}

int main(int argc, char **argv)
{
	uint32_t workers, operations, part;
	int fd, status, worst = 0;
	uint64_t seed;

	if (argc != 5)
		errx(2, "DISK SEED WORKERS OPERATIONS");
	fd = open(argv[1], O_RDWR | O_DIRECT);
	if (fd < 0)
		err(2, "%s", argv[1]);
	seed = strtoull(argv[2], NULL, 10);
	workers = (uint32_t)strtoul(argv[3], NULL, 10);
	operations = (uint32_t)strtoul(argv[4], NULL, 10);
	part = (uint32_t)(lseek(fd, 0, SEEK_END) / SECTOR / workers);
	for (uint32_t i = 0; i < workers; i++)
		if (!fork())
			work(fd, seed, (uint64_t)part * i, part, i, operations);
	while (wait(&status) > 0)
		if (status)
			worst = WIFEXITED(status) ? WEXITSTATUS(status) : 4;
	if (fsync(fd))
		err(2, "flush");
	return worst;
}
