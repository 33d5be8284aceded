/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Looks at many images in one process, and does to them what vhd-util does: for tests that
 * make thousands of states of an image (tests/soak). Nothing is synced.
 *
 * Commands on standard input, a line each, words without spaces, "-" for none:
 *   make PATH SECTORS BLOCK_SIZE BATMAP SPARE PARENT RAW
 *                           an empty image as vhd_create() makes it, but of any block size
 *                           and with room for SPARE more blocks; BLOCK_SIZE 0: fixed
 *   check PATH              with all bitmaps; "ok" is followed by the first warning
 *   repair PATH
 *   read TYPE:PATH          "ok N" is followed by N times 4 bytes, little-endian, the seed of
 *                           each sector as tool-disk writes it; 0: zeros, all ones: anything else
 *   write TYPE:PATH SECTOR COUNT SEED      and closes it
 *   zero TYPE:PATH SECTOR COUNT
 *   coalesce PATH
 *   resize PATH BYTES
 *   fill PATH
 *   modify PATH PARENT RAW
 *   hide PATH VALUE
 *   create PATH BYTES FIXED
 *   snapshot PATH PARENT RAW
 *   convert SPEC SPEC
 * The answer is a line: "ok ...", or "err ERRNO MESSAGE".
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "drivers/image.h"
#include "jobs/job.h"
#include "vhd/check.h"
#include "vhd/vhd-internal.h"

#define MAX_WORDS 8
#define BUF_BYTES (1u << 20)

static struct config cfg;
static struct engine *engine;
static struct io_stream stream;
static uint8_t *buf;
static bool ended;
static int result;

/* In place of the C library's. What is lost here is made again. */
int fsync(int fd)
{
	(void)fd;
	return 0;
}

int fdatasync(int fd)
{
	(void)fd;
	return 0;
}

static uint64_t number(const char *word)
{
	return strtoull(word, NULL, 10);
}

/* make */

static int set_parent(struct vhd_header *header, uint8_t *locators,
		      uint64_t at, size_t *used, char **w, struct error *err)
{
	char *dir = vhd_dir_of_name(w[1]);
	struct vhd_image *parent;
	int rc;

	rc = dir ? vhd_locators_encode(header, locators, at, used, w[1], dir,
				       w[6], err) : -ENOMEM;
	free(dir);
	if (rc || number(w[7]))
		return rc;
	rc = vhd_open(&parent, w[6], VHD_OPEN_NOLOCK, err);
	if (rc)
		return rc;
	uuid_copy(header->parent_uuid, parent->footer.uuid);
	vhd_close(parent);
	return 0;
}

static int make(char **w, struct error *err)
{
	uint64_t size = number(w[2]) * SECTOR_SIZE, at = 0, map = 0;
	uint32_t block_size = (uint32_t)number(w[3]);
	bool batmap = number(w[4]), diff = strcmp(w[6], "-");
	static uint8_t locators[VHD_LOCATORS_MAX];
	uint8_t raw[VHD_HEADER_BYTES], ones[VHD_SECTOR];
	struct vhd_footer footer = {
		.features = 2, .version = VHD_VERSION_1_0,
		.data_offset = block_size ? VHD_FOOTER_BYTES : UINT64_MAX,
		.original_size = size, .current_size = size,
		.creator_version = VHD_TAP_VERSION(1, 3),
		.geometry = vhd_geometry(size),
		.type = !block_size ? VHD_FIXED : diff ? VHD_DIFF : VHD_DYNAMIC,
	};
	struct vhd_header header = {
		.table_offset = VHD_FOOTER_BYTES + VHD_HEADER_BYTES,
		.version = VHD_VERSION_1_0, .block_size = block_size,
	};
	size_t used = 0;
	int fd = open(w[1], O_RDWR | O_CREAT | O_EXCL, 0600), rc = 0;

	if (fd < 0)
		return error_set(err, -errno, "%s: %s", w[1], strerror(errno));
	memcpy(footer.creator, batmap ? "tap" : "vpc ", 4);
	uuid_generate(footer.uuid);
	memset(ones, 0xff, sizeof(ones));
	if (!block_size) {
		at = size;
		goto footers;
	}
	header.max_bat_size = (uint32_t)((size + block_size - 1) / block_size +
					 number(w[5]));
	at = header.table_offset;
	for (uint32_t i = 0; i < header.max_bat_size && !rc;
	     i += VHD_SECTOR / 4, at += VHD_SECTOR)
		rc = vhd_write_at(fd, ones, sizeof(ones), at);
	if (batmap) {
		uint32_t n = header.max_bat_size / 8 / VHD_SECTOR + 1;

		vhd_batmap_header_init(raw, at + VHD_SECTOR, n);
		map = at;
		at += (1 + n) * VHD_SECTOR;
		if (!rc)
			rc = vhd_write_at(fd, raw, VHD_SECTOR, map);
	}
	if (diff && !rc)
		rc = set_parent(&header, locators, at, &used, w, err);
	if (!rc)
		rc = vhd_write_at(fd, locators, used, at);
	at += used;
	vhd_header_encode(raw, &header);
	if (!rc)
		rc = vhd_write_at(fd, raw, sizeof(raw), VHD_FOOTER_BYTES);
footers:
	vhd_footer_encode(raw, &footer);
	if (!rc && block_size)
		rc = vhd_write_at(fd, raw, VHD_FOOTER_BYTES, 0);
	if (!rc)
		rc = vhd_write_at(fd, raw, VHD_FOOTER_BYTES, at);
	close(fd);
	return rc && !err->text[0] ? vhd_fail(w[1], rc, "writing", err) : rc;
}

/* Images through their drivers */

static int image_open(struct image **image, const char *spec, bool readonly,
		      struct error *err)
{
	struct image_open_args args = {
		.engine = engine, .stream = &stream, .config = &cfg,
		.readonly = readonly, .max_requests = 4, .buffered = true,
		.any_sector = true,
	};
	const struct image_driver *driver;
	int rc = image_parse(spec, &driver, &args.path, err);

	return rc ? rc : driver->open(image, &args, err);
}

static void request_done(struct image_request *req, int err)
{
	(void)req;
	ended = true;
	result = err;
}

static int submit(struct image *image, enum image_op op, uint64_t sector,
		  uint32_t count, const char *spec, struct error *err)
{
	static struct image_request req;

	ended = false;
	req = (struct image_request){
		.op = op, .sector = sector, .count = count, .buf = buf,
		.done = request_done,
	};
	image->driver->submit(image, &req);
	while (!ended)
		if (engine_run(engine, -1))
			abort();
	return result ? vhd_fail(spec, result, "sector", err) : 0;
}

static int image_close(struct image *image, struct error *err)
{
	while (image_busy(image) && !engine_run(engine, -1))
		;
	return image->driver->close(image, err);
}

static uint32_t seed_of(const uint8_t *p, uint64_t sector)
{
	uint64_t words[SECTOR_SIZE / 8];
	bool zeros = true, ours;

	memcpy(words, p, sizeof(words));
	ours = words[0] == sector && words[1] && words[1] < UINT32_MAX;
	for (size_t i = 0; i < SECTOR_SIZE / 8; i++) {
		zeros = zeros && !words[i];
		ours = ours && words[i] == words[i % 2];
	}
	return zeros ? 0 : ours ? (uint32_t)words[1] : UINT32_MAX;
}

static int read_all(char **w, struct error *err)
{
	uint32_t *seeds = NULL, n;
	struct error other;
	struct image *image;
	uint64_t sectors;
	int rc = image_open(&image, w[1], true, err);

	if (rc)
		return rc;
	sectors = image->info.sectors;
	seeds = malloc((size_t)sectors * sizeof(*seeds) + 1);
	for (uint64_t at = 0; at < sectors && !rc; at += n) {
		n = BUF_BYTES / SECTOR_SIZE;
		if (n > sectors - at)
			n = (uint32_t)(sectors - at);
		rc = submit(image, IMAGE_READ, at, n, w[1], err);
		for (uint32_t i = 0; i < n; i++)
			seeds[at + i] = seed_of(buf + (size_t)i * SECTOR_SIZE,
						at + i);
	}
	image_close(image, &other);
	if (!rc) {
		printf("ok %llu\n", (unsigned long long)sectors);
		fwrite(seeds, sizeof(*seeds), (size_t)sectors, stdout);
	}
	free(seeds);
	return rc;
}

static int change(char **w, struct error *err)
{
	bool writes = !strcmp(w[0], "write");
	uint32_t count = (uint32_t)number(w[3]);
	struct error other = { 0 };
	struct image *image;
	int rc = image_open(&image, w[1], false, err), closed;

	if (rc)
		return rc;
	for (uint32_t i = 0; writes && i < count; i++) {
		uint64_t words[2] = { number(w[2]) + i, number(w[4]) };

		for (size_t j = 0; j < SECTOR_SIZE; j += sizeof(words))
			memcpy(buf + (size_t)i * SECTOR_SIZE + j, words,
			       sizeof(words));
	}
	rc = submit(image, writes ? IMAGE_WRITE : IMAGE_ZERO, number(w[2]),
		    count, w[1], err);
	closed = image_close(image, &other);
	if (!rc && closed) {
		*err = other;
		rc = closed;
	}
	return rc;
}

/* Files */

static int check(char **w, struct error *err)
{
	const struct vhd_check_options options = {
		.bitmaps = true, .ignore_timestamps = true,
	};
	struct vhd_check_result r = { .nr_warnings = 0 };
	struct vhd_image *image;
	int rc = vhd_open(&image, w[1], 0, err);

	if (rc)
		return rc;
	rc = vhd_check(image, &options, &r, err);
	if (!rc)
		printf("ok %s\n", r.nr_warnings ? r.warning[0] : "");
	vhd_check_result_dispose(&r);
	vhd_close(image);
	return rc;
}

static int repair(char **w, struct error *err)
{
	struct vhd_image *image;
	int rc = vhd_open(&image, w[1], VHD_OPEN_WRITE | VHD_OPEN_REPAIR, err);

	if (rc)
		return rc;
	rc = vhd_write_trailer(image, err);
	vhd_close(image);
	return rc;
}

static int hide(char **w, struct error *err)
{
	struct vhd_image *image;
	int rc = vhd_open(&image, w[1], VHD_OPEN_WRITE, err);

	if (rc)
		return rc;
	image->footer.hidden = (uint8_t)number(w[2]);
	rc = image->footer.type == VHD_FIXED ?
		vhd_write_fixed_footer(image, err) :
		vhd_write_trailer(image, err);
	vhd_close(image);
	return rc;
}

static int coalesce(char **w, struct error *err)
{
	static const struct job_watch watch;

	return job_coalesce(w[1], &cfg, &watch, err);
}

static int convert(char **w, struct error *err)
{
	static const struct job_watch watch;

	return job_convert(w[1], w[2], &cfg, &watch, err);
}

static int resize(char **w, struct error *err)
{
	const struct vhd_resize_args args = {
		.path = w[1], .size = number(w[2]), .drop_data = true,
	};

	return vhd_resize(&args, &cfg, err);
}

static int fill(char **w, struct error *err)
{
	return vhd_fill(w[1], &cfg, NULL, err);
}

static int modify(char **w, struct error *err)
{
	const struct vhd_parent_args args = {
		.path = w[1], .parent = w[2], .raw = number(w[3]),
	};

	return vhd_set_parent(&args, &cfg, err);
}

static int create(char **w, struct error *err)
{
	const struct vhd_create_args args = {
		.path = w[1], .size = number(w[2]), .fixed = number(w[3]),
	};

	return vhd_create(&args, &cfg, err);
}

static int snapshot(char **w, struct error *err)
{
	const struct vhd_create_args args = {
		.path = w[1], .parent = w[2], .parent_raw = number(w[3]),
	};

	return vhd_create(&args, &cfg, err);
}

static const struct {
	const char *name;
	int words;
	int (*run)(char **words, struct error *err);
	bool answers;
} commands[] = {
	{ "make", 8, make, false },
	{ "check", 2, check, true },
	{ "repair", 2, repair, false },
	{ "read", 2, read_all, true },
	{ "write", 5, change, false },
	{ "zero", 4, change, false },
	{ "coalesce", 2, coalesce, false },
	{ "convert", 3, convert, false },
	{ "resize", 3, resize, false },
	{ "fill", 2, fill, false },
	{ "modify", 4, modify, false },
	{ "hide", 3, hide, false },
	{ "create", 4, create, false },
	{ "snapshot", 4, snapshot, false },
};

static int command(char *line)
{
	char *words[MAX_WORDS + 1], *state = NULL;
	struct error err = { 0 };
	int n = 0, rc;

	for (char *w = strtok_r(line, " \n", &state); w && n <= MAX_WORDS;
	     w = strtok_r(NULL, " \n", &state))
		words[n++] = w;
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (!n || strcmp(commands[i].name, words[0]) ||
		    commands[i].words != n)
			continue;
		rc = commands[i].run(words, &err);
		if (rc)
			printf("err %d %s\n", -rc, err.text);
		else if (!commands[i].answers)
			puts("ok");
		fflush(stdout);
		return 0;
	}
	return -EINVAL;
}

int main(void)
{
	struct error err = { 0 };
	char line[16384];
	int rc = config_load(&cfg, NULL, &err);

	if (!rc)
		rc = engine_open(&engine, cfg.engine, 64, &err);
	buf = aligned_alloc(IMAGE_ALIGN, BUF_BYTES);
	if (rc || !buf) {
		fprintf(stderr, "tool-state: %s\n", err.text);
		return EXIT_FAILURE;
	}
	while (!rc && fgets(line, sizeof(line), stdin))
		rc = command(line);
	engine_close(engine);
	config_dispose(&cfg);
	free(buf);
	return rc ? EXIT_FAILURE : EXIT_SUCCESS;
}
