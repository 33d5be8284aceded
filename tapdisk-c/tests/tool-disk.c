/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Drives an image driver over an I/O engine, without a device: for the tests.
 *
 *   tool-disk [--engine NAME] [--readonly] [--requests N] TYPE:PATH
 *
 * Reads commands from standard input, a line each. All but the last two are started at
 * once, as many as given, until "go" waits for all of them and prints a line for each in
 * the order given:
 *   w SECTOR COUNT SEED   every sector gets its number and SEED,
 *                         little-endian                              -> ok | err ERRNO
 *   r SECTOR COUNT        -> the seeds found, "0" for a zero sector, "?" if it holds
 *                            anything else | err ERRNO
 *   f                     flush                                      -> ok | err ERRNO
 *   z SECTOR COUNT        zero; Z: and keep the space                -> ok | err ERRNO
 *   d SECTOR COUNT        discard                                    -> ok | err ERRNO
 *   s SECTOR COUNT        status -> COUNT:FLAGS of each extent, FLAGS being "data" or of
 *                         "hole" and "zero" joined by "+" | err ERRNO
 * What the image says it can't do is answered EOPNOTSUPP, as a VBD does.
 *   crash                 exits at once, as if killed
 * The end of input closes the image. The first line printed is "SECTORS DEPTH SECTOR-SIZE".
 */
#include <endian.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "drivers/image.h"

#define MAX_REQUESTS 1024
#define MAX_SECTORS  4096u	/* of a read or a write */
#define MAX_EXTENTS  64u

struct slot {
	struct image_request req;
	struct image_extent extents[MAX_EXTENTS];
	uint64_t seed;
	int err;
	bool finished;
};

static struct slot slots[MAX_REQUESTS];
static unsigned int nr, waiting;

static void done(struct image_request *req, int err)
{
	struct slot *slot = container_of(req, struct slot, req);

	if (slot->finished)
		abort();
	slot->finished = true;
	slot->err = err;
	waiting--;
}

static void fill(uint8_t *buf, uint64_t sector, uint32_t count, uint64_t seed)
{
	for (uint32_t i = 0; i < count; i++) {
		uint64_t words[SECTOR_SIZE / 8];

		for (size_t j = 0; j < SECTOR_SIZE / 8; j += 2) {
			words[j] = htole64(sector + i);
			words[j + 1] = htole64(seed);
		}
		memcpy(buf + (size_t)i * SECTOR_SIZE, words, SECTOR_SIZE);
	}
}

static void show_extents(const struct image_request *req)
{
	static const char *const flags[] = { "data", "hole", "zero", "hole+zero" };
	uint64_t sum = 0;

	if (!req->nr_extents || req->nr_extents > req->max_extents)
		abort();
	for (unsigned int i = 0; i < req->nr_extents; i++) {
		const struct image_extent *e = &req->extents[i];

		if (!e->count)
			abort();
		sum += e->count;
		printf("%s%" PRIu32 ":%s", i ? " " : "", e->count,
		       flags[e->hole + 2 * e->zero]);
	}
	if (sum > req->count)
		abort();
	putchar('\n');
}

static void show(const struct slot *slot)
{
	if (slot->err) {
		printf("err %d\n", -slot->err);
		return;
	}
	if (slot->req.op == IMAGE_STATUS) {
		show_extents(&slot->req);
		return;
	}
	if (slot->req.op != IMAGE_READ) {
		puts("ok");
		return;
	}
	for (uint32_t i = 0; i < slot->req.count; i++) {
		static const uint8_t zero[SECTOR_SIZE];
		const uint8_t *p = slot->req.buf + (size_t)i * SECTOR_SIZE;
		uint8_t want[SECTOR_SIZE];
		uint64_t seed;

		memcpy(&seed, p + 8, sizeof(seed));
		seed = le64toh(seed);
		fill(want, slot->req.sector + i, 1, seed);
		if (!memcmp(p, zero, SECTOR_SIZE))
			printf("%s0", i ? " " : "");
		else if (!memcmp(p, want, SECTOR_SIZE))
			printf("%s%" PRIu64, i ? " " : "", seed);
		else
			printf("%s?", i ? " " : "");
	}
	putchar('\n');
}

static bool can(const struct image *image, enum image_op op)
{
	static const unsigned int needs[] = {
		[IMAGE_DISCARD]	= IMAGE_CAN_DISCARD,
		[IMAGE_ZERO]	= IMAGE_CAN_ZERO,
		[IMAGE_STATUS]	= IMAGE_CAN_STATUS,
	};

	return op <= IMAGE_FLUSH || !(needs[op] & ~image->info.can);
}

static int start(struct image *image, enum image_op op, uint64_t sector,
		 uint32_t count, uint64_t seed)
{
	bool moves = op == IMAGE_READ || op == IMAGE_WRITE;
	struct slot *slot = &slots[nr];

	if (nr == MAX_REQUESTS || (moves && count > MAX_SECTORS))
		return -E2BIG;
	nr++;
	waiting++;
	if (!slot->req.buf) {
		slot->req.buf = aligned_alloc(IMAGE_ALIGN,
					      MAX_SECTORS * SECTOR_SIZE);
		if (!slot->req.buf)
			return -ENOMEM;
	}
	slot->finished = false;
	slot->req.op = op;
	slot->req.sector = sector;
	slot->req.count = count;
	slot->req.keep_space = seed;	/* of IMAGE_ZERO */
	slot->req.extents = slot->extents;
	slot->req.max_extents = MAX_EXTENTS;
	slot->req.done = done;
	if (op == IMAGE_WRITE)
		fill(slot->req.buf, sector, count, seed);
	else if (op == IMAGE_READ)
		memset(slot->req.buf, 0xa5, (size_t)count * SECTOR_SIZE);
	if (can(image, op))
		image->driver->submit(image, &slot->req);
	else
		done(&slot->req, -EOPNOTSUPP);
	return 0;
}

static int go(struct image *image)
{
	while (waiting) {
		int rc = engine_run(image->engine, -1);

		if (rc)
			return rc;
	}
	for (unsigned int i = 0; i < nr; i++)
		show(&slots[i]);
	nr = 0;
	fflush(stdout);
	return 0;
}

static int command(struct image *image, const char *line)
{
	static const struct {
		char name;
		enum image_op op;
		int numbers;
		uint64_t seed;
	} commands[] = {
		{ 'w', IMAGE_WRITE, 3, 0 },
		{ 'r', IMAGE_READ, 2, 0 },
		{ 'f', IMAGE_FLUSH, 0, 0 },
		{ 'z', IMAGE_ZERO, 2, 0 },
		{ 'Z', IMAGE_ZERO, 2, 1 },
		{ 'd', IMAGE_DISCARD, 2, 0 },
		{ 's', IMAGE_STATUS, 2, 0 },
	};
	uint64_t sector = 0, seed = 0;
	uint32_t count = 0;
	int n = sscanf(line + 1, "%" SCNu64 " %" SCNu32 " %" SCNu64, &sector,
		       &count, &seed);

	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (commands[i].name == line[0] &&
		    commands[i].numbers == (n < 0 ? 0 : n))
			return start(image, commands[i].op, sector, count,
				     line[0] == 'w' ? seed : commands[i].seed);
	return -EINVAL;
}

static int serve(struct image *image)
{
	char line[256];
	int rc = 0;

	printf("%" PRIu64 " %u %" PRIu32 "\n", image->info.sectors, image->info.depth,
	       image->info.sector_size);
	fflush(stdout);
	while (!rc && fgets(line, sizeof(line), stdin)) {
		if (!strcmp(line, "go\n"))
			rc = go(image);
		else if (!strcmp(line, "crash\n"))
			_exit(9);
		else
			rc = command(image, line);
		fflush(stdout);
	}
	return rc;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "engine", required_argument, NULL, 'e' },
		{ "readonly", no_argument, NULL, 'r' },
		{ "requests", required_argument, NULL, 'n' },
		{ NULL, 0, NULL, 0 },
	};
	static struct io_stream stream;
	struct image_open_args args = {
		.stream = &stream, .max_requests = 64,
	};
	const struct image_driver *driver;
	const char *engine_name = "uring";
	struct image *image = NULL;
	struct config cfg;
	struct error err;
	int c, rc;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'e':
			engine_name = optarg;
			break;
		case 'r':
			args.readonly = true;
			break;
		case 'n':
			args.max_requests = (unsigned int)atoi(optarg);
			break;
		default:
			return 2;
		}
	}
	if (optind != argc - 1)
		return 2;
	signal(SIGXFSZ, SIG_IGN);
	rc = config_load(&cfg, NULL, &err);
	if (!rc)
		rc = engine_open(&args.engine, engine_name, 64, &err);
	if (!rc)
		rc = image_parse(argv[optind], &driver, &args.path, &err);
	args.config = &cfg;
	if (!rc)
		rc = driver->open(&image, &args, &err);
	if (rc) {
		fprintf(stderr, "tool-disk: %s\n", err.text);
		goto out;
	}
	rc = serve(image);
	if (rc)
		fprintf(stderr, "tool-disk: %s\n", strerror(-rc));
	while (image_busy(image) && !engine_run(args.engine, -1))
		;
	if (image->driver->close(image, &err)) {
		fprintf(stderr, "tool-disk: %s\n", err.text);
		rc = -EIO;
	}
out:
	if (args.engine)
		engine_close(args.engine);
	config_dispose(&cfg);
	for (unsigned int i = 0; i < MAX_REQUESTS; i++)
		free(slots[i].req.buf);
	return rc ? 1 : 0;
}
