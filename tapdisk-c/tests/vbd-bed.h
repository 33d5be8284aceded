/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A VBD for tests whose image fails, fills up or does not answer. Image,
 * transport and clock are played here: image_parse() gives the image below, and
 * clock_gettime() is ahead by what the test has let pass. Include it in one
 * file of a program.
 */
#ifndef XENBLK_VBD_BED_H
#define XENBLK_VBD_BED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/rundir.h"
#include "server.h"
#include "tests/real.h"
#include "vbd.h"

#define MINOR		3
#define SECTORS		64u
#define SLOTS		32u
#define SECOND		1000000000ull
#define MS		1000000ull

/* The clock */

static uint64_t passed_ns;

int clock_gettime(clockid_t clock, struct timespec *ts)
{
	int rc = real_clock_gettime(clock, ts);
	uint64_t ns = (uint64_t)ts->tv_nsec + passed_ns;

	ts->tv_sec += (time_t)(ns / SECOND);
	ts->tv_nsec = (long)(ns % SECOND);
	return rc;
}

/* The image: a disk in memory */

static struct {
	struct image image;
	uint64_t sectors;		/* of the next one that is opened */
	bool remote, remote_leaf, local_file;
	uint32_t sector_size;		/* 0: 512 */
	unsigned int can;
	int open_err, close_err;
	unsigned int open;
	int read_err, write_err, flush_err;	/* 0: done */
	bool flush_once;		/* the next one fails, as of a kernel, that tells once */
	bool stuck;			/* requests stay where they are */
	bool busy;			/* the image does something that no request waits for */
	struct list queue;		/* image_request.link */
	struct io_timer timer;
	uint64_t delay_ns;		/* 0: answered in the next round */
	unsigned int writes, flushes;	/* asked for */
	uint8_t data[2 * SECTORS][SECTOR_SIZE];
} disk;

static struct {
	struct server *server;
	struct config cfg;
	struct vbd *vbd;
	char dir[64];
} bed;

static inline int disk_answer(const struct image_request *req)
{
	void *at = disk.data[req->sector];
	size_t len = (size_t)req->count * SECTOR_SIZE;

	switch (req->op) {
	case IMAGE_READ:
		if (!disk.read_err)
			memcpy(req->buf, at, len);
		return disk.read_err;
	case IMAGE_WRITE:
		disk.writes++;
		if (!disk.write_err)
			memcpy(at, req->buf, len);
		return disk.write_err;
	case IMAGE_FLUSH:
		disk.flushes++;
		if (!disk.flush_once)
			return disk.flush_err;
		disk.flush_once = false;
		return -EIO;
	case IMAGE_DISCARD:
		assert_true(disk.image.info.can & IMAGE_CAN_DISCARD);
		return disk.write_err;
	case IMAGE_ZERO:
	case IMAGE_STATUS:
		break;
	}
	return -EOPNOTSUPP;
}

static inline void disk_expired(struct io_timer *timer)
{
	struct list batch, *item;

	(void)timer;
	if (disk.stuck)
		return;
	list_init(&batch);
	list_splice(&disk.queue, &batch);
	while ((item = list_pop(&batch))) {
		struct image_request *req =
			container_of(item, struct image_request, link);

		req->done(req, disk_answer(req));
	}
}

static inline void disk_submit(struct image *image, struct image_request *req)
{
	struct engine *engine = image->engine;

	assert_int_equal(disk.open, 1);
	list_add_tail(&req->link, &disk.queue);
	if (!disk.timer.armed)
		engine_timer_set(engine, &disk.timer,
				 engine_now(engine) + disk.delay_ns);
}

static inline int disk_open(struct image **image, const struct image_open_args *args,
		     struct error *err)
{
	if (disk.open_err)
		return error_set(err, disk.open_err, "%s: is away", args->path);
	disk.open++;
	disk.image.engine = args->engine;
	disk.image.readonly = args->readonly;
	disk.image.info = (struct image_info){
		.sectors = disk.sectors, .depth = 1,
		.sector_size = disk.sector_size ? disk.sector_size : 512,
		.remote = disk.remote, .remote_leaf = disk.remote_leaf,
		.local_file = disk.local_file,
		.can = disk.can,
	};
	*image = &disk.image;
	return 0;
}

static inline int disk_close(struct image *image, struct error *err)
{
	(void)image;
	assert_true(list_empty(&disk.queue));
	disk.open--;
	return disk.close_err ? error_set(err, disk.close_err, "final sync") : 0;
}

static inline bool disk_busy(const struct image *image)
{
	(void)image;
	return disk.busy;
}

static const struct image_driver disk_driver = {
	.type = "fake", .open = disk_open, .close = disk_close,
	.submit = disk_submit, .busy = disk_busy,
};

int image_parse(const char *spec, const struct image_driver **driver,
		const char **path, struct error *err)
{
	(void)err;
	*driver = &disk_driver;
	*path = spec;
	disk.image.driver = &disk_driver;
	return 0;
}

/* The transport */

static struct {
	struct transport transport;
	struct vbd_request slots[SLOTS];
	uint8_t buf[SLOTS][SECTOR_SIZE];
	bool busy[SLOTS];
	int result[SLOTS];
	unsigned int answered;
	bool running, load;
	uint64_t sectors;
	int release_err;
	int ready_err;			/* 0: its start is done */
} guest;

static inline int guest_start(struct transport *t, const struct image_info *info,
		       bool readonly, struct error *err)
{
	(void)t;
	(void)readonly;
	(void)err;
	guest.running = true;
	guest.sectors = info->sectors;
	return 0;
}

static inline int guest_ready(struct transport *t, struct error *err)
{
	(void)t;
	if (!guest.ready_err || guest.ready_err == -EINPROGRESS)
		return guest.ready_err;
	return error_set(err, guest.ready_err, "no gendisk");
}

static inline int guest_stop(struct transport *t, bool force, struct error *err)
{
	(void)t;
	(void)force;
	(void)err;
	guest.running = false;
	return 0;
}

static inline int guest_reset(struct transport *t, struct error *err)
{
	(void)t;
	(void)err;
	return 0;
}

static inline void guest_hold(struct transport *t)
{
	(void)t;
	guest.running = false;
}

static inline int guest_release(struct transport *t, const struct image_info *info,
			 bool readonly, struct error *err)
{
	if (guest.release_err)
		return error_set(err, guest.release_err, "not released");
	return guest_start(t, info, readonly, err);
}

static inline void guest_done(struct vbd_request *req, int err)
{
	size_t slot = (size_t)(req - guest.slots);

	assert_true(guest.busy[slot]);
	guest.busy[slot] = false;
	guest.result[slot] = err;
	guest.answered++;
}

static inline void ask(unsigned int slot, enum image_op op, uint64_t sector)
{
	struct vbd_request *req = &guest.slots[slot];

	assert_false(guest.busy[slot]);
	guest.busy[slot] = true;
	req->image.op = op;
	req->image.sector = sector;
	req->image.count = op == IMAGE_FLUSH ? 0 : 1;
	req->image.buf = guest.buf[slot];
	req->done = guest_done;
	vbd_submit(bed.vbd, req);
}

static inline bool guest_round(struct transport *t)
{
	(void)t;
	for (unsigned int i = 0; guest.load && guest.running && i < SLOTS; i++)
		if (!guest.busy[i])
			ask(i, i % 3 ? IMAGE_WRITE : IMAGE_READ, i);
	return false;
}

static inline void guest_close(struct transport *t)
{
	(void)t;
}

static const struct transport_ops guest_ops = {
	.name = "fake", .start = guest_start, .ready = guest_ready,
	.stop = guest_stop,
	.reset = guest_reset, .hold = guest_hold, .release = guest_release,
	.round = guest_round, .close = guest_close,
};

/* The bed */

static inline void step(void)
{
	assert_int_equal(engine_run(server_engine(bed.server), 1), 0);
	vbd_round(bed.vbd);
}

static inline void steps(unsigned int n)
{
	while (n--)
		step();
}

static inline void pass(uint64_t ns)
{
	passed_ns += ns;
	steps(4);
}

static inline unsigned int state(void)
{
	return vbd_state(bed.vbd);
}

static inline struct stats_page stats(void)
{
	const struct stats_page *page;
	struct stats_page copy;

	assert_int_equal(stats_page_map(&page, getpid(), MINOR, NULL), 0);
	copy = *page;
	stats_page_unmap(page);
	return copy;
}

static inline bool marked(void)
{
	char path[128];

	assert_int_equal(run_path(path, sizeof(path), "nospace.%d", MINOR), 0);
	return !access(path, F_OK);
}

static int verb_rc;
static unsigned int verbs_done;
static char verb_text[1024];

static inline void verb_done(void *priv, int rc, const struct error *err)
{
	(void)priv;
	verb_rc = rc;
	verbs_done++;
	snprintf(verb_text, sizeof(verb_text), "%s", rc ? err->text : "");
}

static inline int verb_wait(void)
{
	for (int i = 0; i < 1000 && !verbs_done; i++)
		step();
	assert_int_equal(verbs_done, 1);
	verbs_done = 0;
	return verb_rc;
}

static inline void settle(const char *key, const char *value)
{
	static struct retry_policy policy;

	if (!key)
		policy = retry_defaults;
	else
		assert_int_equal(retry_set(&policy, key, value, NULL), 0);
	vbd_set_retry(bed.vbd, &policy);
}

static inline int begin(void **priv)
{
	(void)priv;
	memset(&disk, 0, sizeof(disk));
	memset(&guest, 0, sizeof(guest));
	list_init(&disk.queue);
	disk.timer.expired = disk_expired;
	disk.sectors = SECTORS;
	disk.can = IMAGE_CAN_DISCARD;
	strcpy(bed.dir, "/tmp/test-vbd-XXXXXX");
	assert_non_null(mkdtemp(bed.dir));
	setenv("XENBLK_CONTROL_DIR", bed.dir, 1);
	assert_int_equal(config_load(&bed.cfg, "/nonexistent", NULL), 0);
	strcpy(bed.cfg.engine, "posix");
	assert_int_equal(server_open(&bed.server, &bed.cfg, NULL), 0);
	assert_int_equal(vbd_create(&bed.vbd, bed.server, MINOR, NULL), 0);
	guest.transport.ops = &guest_ops;
	assert_int_equal(vbd_add_transport(bed.vbd, &guest.transport, NULL), 0);
	settle(NULL, NULL);
	return vbd_open(bed.vbd, "fake:/disk", false, NULL);
}

static inline int end(void **priv)
{
	(void)priv;
	guest.load = false;
	disk.stuck = false;
	disk.open_err = 0;
	if (vbd_state(bed.vbd) != VBD_CLOSED) {
		vbd_close(bed.vbd, true, 0, verb_done, NULL);
		engine_timer_set(server_engine(bed.server), &disk.timer, 0);
		verb_wait();
	}
	for (unsigned int i = 0; i < SLOTS; i++)
		assert_false(guest.busy[i]);
	assert_int_equal(vbd_detach(bed.vbd, NULL), 0);
	server_close(bed.server);
	config_dispose(&bed.cfg);
	/* Nothing is left in it. */
	return rmdir(bed.dir);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)

#endif
