/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A load that knows what it has written:
 *
 *   load DEVICE MODEL SECONDS SEED [STRETCHES]
 *   load check DEVICE MODEL
 *
 * The first writes pieces of a disk, 4 to 64 KiB, from THREADS threads, by direct I/O,
 * and reads them back between, until SECONDS are over (0: until SIGTERM); then it reads
 * all of them, keeps in MODEL what each holds, and says so. While SIGUSR1 was the last
 * signal of the two, not SIGUSR2, an eighth of the writes go to stretches of the disk where
 * nothing was before; STRETCHES (1) are used from the start. An error or a piece that is not as written ends it with
 * status 1. The second holds a disk against a MODEL.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <linux/fs.h>
#include <unistd.h>

#define THREADS	8
/* A stretch has this many pieces: those of one are rewritten, a new one is a new block. */
#define STRETCH	(2u << 20)
#define USED	16u
#define PART	(STRETCH / USED)
/* A piece has up to half of its part of the stretch, at the beginning or at the end: in time all of a block is written. */
#define PAGE	4096u
#define PAGES	(PART / PAGE / 2)
#define PIECE	(PAGES * PAGE)
#define WORDS	(PIECE / sizeof(uint64_t))

struct thread {
	pthread_t id;
	unsigned int number;
	uint64_t state;
	uint64_t *buf;
	uint64_t writes, fresh, reads;
};

static int disk;
static uint64_t pieces;			/* of the disk that are used at all: USED in each stretch */
static uint64_t stretches, next_stretch = 1;
static uint64_t *model;			/* by piece: what it holds, 0: nothing yet */
static volatile sig_atomic_t over, allocating = 1;

static uint64_t next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static uint64_t mixed(uint64_t piece, uint64_t value)
{
	uint64_t state = piece * 1000003u ^ value;

	return next(&state);
}

/* How many bytes a piece has that holds a value, and where. */
static size_t length(uint64_t piece, uint64_t value)
{
	return (1 + mixed(piece, value) % PAGES) * PAGE;
}

static off_t place(uint64_t piece, uint64_t value)
{
	bool at_end = mixed(piece, value) / PAGES % 2;

	return (off_t)(piece / USED * STRETCH + piece % USED * PART + (at_end ? PART - length(piece, value) : 0));
}

static void fill(uint64_t *buf, uint64_t piece, uint64_t value)
{
	uint64_t state = mixed(piece, value);

	buf[0] = value;
	buf[1] = piece;
	for (size_t i = 2; i < length(piece, value) / sizeof(*buf); i++)
		buf[i] = next(&state);
}

static _Noreturn void lost(const char *what, uint64_t piece, uint64_t value)
{
	printf("LOST: %s piece=%" PRIu64 " offset=%" PRId64 " value=%" PRIu64 ": %s\n",
	       what, piece, (int64_t)place(piece, value), value, strerror(errno));
	fflush(stdout);
	_exit(1);
}

static void check(uint64_t *buf, uint64_t *want, uint64_t piece, uint64_t value)
{
	size_t size = length(piece, value);
	ssize_t n = pread(disk, buf, size, place(piece, value));

	if (n < 0 || (size_t)n != size)
		lost("read failed", piece, value);
	errno = 0;
	fill(want, piece, value);
	if (memcmp(buf, want, size)) {
		printf("is piece=%" PRIu64 " value=%" PRIu64 "\n", buf[1], buf[0]);
		lost("not what was written", piece, value);
	}
}

static uint64_t *page(size_t pages)
{
	void *p;

	if (posix_memalign(&p, 4096, pages * PIECE))
		exit(2);
	return p;
}

static void *run(void *arg)
{
	struct thread *t = arg;
	uint64_t *want = t->buf + WORDS, op = 0, piece, stretch, limit, value;
	size_t size;

	while (!over) {
		uint64_t r = next(&t->state);

		limit = __atomic_load_n(&next_stretch, __ATOMIC_RELAXED);
		if (limit > stretches)
			limit = stretches;
		stretch = r / 16 % limit;
		if (allocating && r % 8 == 0 && limit < stretches) {
			stretch = __atomic_fetch_add(&next_stretch, 1, __ATOMIC_RELAXED);
			if (stretch >= stretches)
				continue;
			t->fresh++;
		}
		/* the pieces of a stretch are the threads', two for each */
		piece = stretch * USED + t->number * 2 + r / 2 % 2;
		if (++op % 64 == 0 && fdatasync(disk))
			lost("sync failed", piece, 0);
		if (op % 8 == 0 && model[piece]) {
			check(t->buf, want, piece, model[piece]);
			t->reads++;
			continue;
		}
		value = op * THREADS + t->number + 1;
		fill(t->buf, piece, value);
		size = length(piece, value);
		if (pwrite(disk, t->buf, size, place(piece, value)) != (ssize_t)size)
			lost("write failed", piece, value);
		model[piece] = value;
		t->writes++;
	}
	return NULL;
}

static void signalled(int number)
{
	if (number == SIGTERM || number == SIGALRM)
		over = 1;
	else
		allocating = number == SIGUSR1;
}

static void open_disk(const char *path)
{
	uint64_t bytes;

	disk = open(path, O_RDWR | O_DIRECT);
	if (disk < 0)
		disk = open(path, O_RDONLY | O_DIRECT);
	if (disk < 0 || ioctl(disk, BLKGETSIZE64, &bytes)) {
		perror(path);
		exit(2);
	}
	stretches = bytes / STRETCH;
	pieces = stretches * USED;
	model = calloc(pieces, sizeof(*model));
	if (!model || !stretches)
		exit(2);
}

static uint64_t check_all(void)
{
	uint64_t *buf = page(2), n = 0;

	for (uint64_t piece = 0; piece < pieces; piece++) {
		if (!model[piece])
			continue;
		check(buf, buf + WORDS, piece, model[piece]);
		n++;
	}
	return n;
}

int main(int argc, char **argv)
{
	static struct thread threads[THREADS];
	uint64_t writes = 0, fresh = 0, reads = 0, n;
	struct sigaction act = { .sa_handler = signalled, .sa_flags = SA_RESTART };
	FILE *f;

	if (argc == 4 && !strcmp(argv[1], "check")) {
		open_disk(argv[2]);
		f = fopen(argv[3], "r");
		if (!f || fread(model, sizeof(*model), pieces, f) != pieces)
			return 2;
		printf("good pieces=%" PRIu64 "\n", check_all());
		return 0;
	}
	if (argc != 5 && argc != 6)
		return 2;
	open_disk(argv[1]);
	if (argc == 6)
		next_stretch = strtoull(argv[5], NULL, 10);
	if (!next_stretch || next_stretch > stretches)
		return 2;
	sigaction(SIGTERM, &act, NULL);
	sigaction(SIGALRM, &act, NULL);
	sigaction(SIGUSR1, &act, NULL);
	sigaction(SIGUSR2, &act, NULL);
	for (unsigned int i = 0; i < THREADS; i++) {
		threads[i].number = i;
		threads[i].state = strtoull(argv[4], NULL, 10) * THREADS + i;
		threads[i].buf = page(2);
		if (pthread_create(&threads[i].id, NULL, run, &threads[i]))
			return 2;
	}
	puts("begun");
	fflush(stdout);
	alarm((unsigned int)atoi(argv[3]));
	for (unsigned int i = 0; i < THREADS; i++) {
		pthread_join(threads[i].id, NULL);
		writes += threads[i].writes;
		fresh += threads[i].fresh;
		reads += threads[i].reads;
	}
	if (fsync(disk))
		lost("sync failed", 0, 0);
	n = check_all();
	f = fopen(argv[2], "w");
	if (!f || fwrite(model, sizeof(*model), pieces, f) != pieces || fclose(f))
		return 2;
	printf("good pieces=%" PRIu64 " writes=%" PRIu64 " fresh=%" PRIu64 " reads=%" PRIu64 "\n",
	       n, writes, fresh, reads);
	return 0;
}
