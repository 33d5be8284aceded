/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A VBD whose image fails, fills up or does not answer. Image, transport and
 * clock are played by this file: image_parse() gives the image below, and
 * clock_gettime() is ahead by what the test has let pass.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/rundir.h"
#include "server.h"
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
	int rc = (int)syscall(SYS_clock_gettime, clock, ts);
	uint64_t ns = (uint64_t)ts->tv_nsec + passed_ns;

	ts->tv_sec += (time_t)(ns / SECOND);
	ts->tv_nsec = (long)(ns % SECOND);
	return rc;
}

/* The image: a disk in memory */

static struct {
	struct image image;
	uint64_t sectors;		/* of the next one that is opened */
	bool remote;
	int open_err, close_err;
	unsigned int open;
	int read_err, write_err, flush_err;	/* 0: done */
	bool stuck;			/* requests stay where they are */
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

static int disk_answer(const struct image_request *req)
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
		return disk.flush_err;
	case IMAGE_DISCARD:
	case IMAGE_ZERO:
	case IMAGE_STATUS:
		break;
	}
	return -EOPNOTSUPP;
}

static void disk_expired(struct io_timer *timer)
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

static void disk_submit(struct image *image, struct image_request *req)
{
	struct engine *engine = image->engine;

	assert_int_equal(disk.open, 1);
	list_add_tail(&req->link, &disk.queue);
	if (!disk.timer.armed)
		engine_timer_set(engine, &disk.timer,
				 engine_now(engine) + disk.delay_ns);
}

static int disk_open(struct image **image, const struct image_open_args *args,
		     struct error *err)
{
	if (disk.open_err)
		return error_set(err, disk.open_err, "%s: is away", args->path);
	disk.open++;
	disk.image.engine = args->engine;
	disk.image.readonly = args->readonly;
	disk.image.info = (struct image_info){
		.sectors = disk.sectors, .sector_size = 512, .depth = 1,
		.remote = disk.remote,
	};
	*image = &disk.image;
	return 0;
}

static int disk_close(struct image *image, struct error *err)
{
	(void)image;
	assert_true(list_empty(&disk.queue));
	disk.open--;
	return disk.close_err ? error_set(err, disk.close_err, "final sync") : 0;
}

static const struct image_driver disk_driver = {
	.type = "fake", .open = disk_open, .close = disk_close,
	.submit = disk_submit,
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
} guest;

static int guest_start(struct transport *t, const struct image_info *info,
		       bool readonly, struct error *err)
{
	(void)t;
	(void)readonly;
	(void)err;
	guest.running = true;
	guest.sectors = info->sectors;
	return 0;
}

static int guest_stop(struct transport *t, bool force, struct error *err)
{
	(void)t;
	(void)force;
	(void)err;
	guest.running = false;
	return 0;
}

static int guest_reset(struct transport *t, struct error *err)
{
	(void)t;
	(void)err;
	return 0;
}

static void guest_hold(struct transport *t)
{
	(void)t;
	guest.running = false;
}

static int guest_release(struct transport *t, const struct image_info *info,
			 bool readonly, struct error *err)
{
	if (guest.release_err)
		return error_set(err, guest.release_err, "not released");
	return guest_start(t, info, readonly, err);
}

static void guest_done(struct vbd_request *req, int err)
{
	size_t slot = (size_t)(req - guest.slots);

	assert_true(guest.busy[slot]);
	guest.busy[slot] = false;
	guest.result[slot] = err;
	guest.answered++;
}

static void ask(unsigned int slot, enum image_op op, uint64_t sector)
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

static bool guest_round(struct transport *t)
{
	(void)t;
	for (unsigned int i = 0; guest.load && guest.running && i < SLOTS; i++)
		if (!guest.busy[i])
			ask(i, i % 3 ? IMAGE_WRITE : IMAGE_READ, i);
	return false;
}

static void guest_close(struct transport *t)
{
	(void)t;
}

static const struct transport_ops guest_ops = {
	.name = "fake", .start = guest_start, .stop = guest_stop,
	.reset = guest_reset, .hold = guest_hold, .release = guest_release,
	.round = guest_round, .close = guest_close,
};

/* The bed */

static void step(void)
{
	assert_int_equal(engine_run(server_engine(bed.server), 1), 0);
	vbd_round(bed.vbd);
}

static void steps(unsigned int n)
{
	while (n--)
		step();
}

static void pass(uint64_t ns)
{
	passed_ns += ns;
	steps(4);
}

static unsigned int state(void)
{
	return vbd_state(bed.vbd);
}

static struct stats_page stats(void)
{
	const struct stats_page *page;
	struct stats_page copy;

	assert_int_equal(stats_page_map(&page, getpid(), MINOR, NULL), 0);
	copy = *page;
	stats_page_unmap(page);
	return copy;
}

static bool marked(void)
{
	char path[128];

	assert_int_equal(run_path(path, sizeof(path), "nospace.%d", MINOR), 0);
	return !access(path, F_OK);
}

static int verb_rc;
static unsigned int verbs_done;
static char verb_text[1024];

static void verb_done(void *priv, int rc, const struct error *err)
{
	(void)priv;
	verb_rc = rc;
	verbs_done++;
	snprintf(verb_text, sizeof(verb_text), "%s", rc ? err->text : "");
}

static int verb_wait(void)
{
	for (int i = 0; i < 1000 && !verbs_done; i++)
		step();
	assert_int_equal(verbs_done, 1);
	verbs_done = 0;
	return verb_rc;
}

static void settle(const char *key, const char *value)
{
	static struct retry_policy policy;

	if (!key)
		policy = retry_defaults;
	else
		assert_int_equal(retry_set(&policy, key, value, NULL), 0);
	vbd_set_retry(bed.vbd, &policy);
}

static int begin(void **priv)
{
	(void)priv;
	memset(&disk, 0, sizeof(disk));
	memset(&guest, 0, sizeof(guest));
	list_init(&disk.queue);
	disk.timer.expired = disk_expired;
	disk.sectors = SECTORS;
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

static int end(void **priv)
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

/* Retries */

static void an_error_that_passes_is_time_to_the_guest(void **priv)
{
	(void)priv;
	memset(guest.buf[0], 'x', SECTOR_SIZE);
	disk.write_err = -ETIMEDOUT;
	ask(0, IMAGE_WRITE, 5);
	steps(3);
	assert_true(guest.busy[0]);
	assert_int_equal(state(), VBD_WAITING);
	for (int i = 0; i < 100; i++)
		pass(SECOND);
	assert_true(guest.busy[0]);
	assert_int_equal(disk.writes, 101);
	disk.write_err = 0;
	pass(SECOND);
	assert_false(guest.busy[0]);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(disk.data[5][100], 'x');
	assert_int_equal(state(), 0);
	assert_int_equal(stats().op[IMAGE_WRITE].retries, 101);
	assert_int_equal(stats().op[IMAGE_WRITE].errors, 0);
	assert_true(stats().op[IMAGE_WRITE].max_ns > 100 * SECOND);
}

static void others_go_on_while_one_waits(void **priv)
{
	(void)priv;
	disk.write_err = -EAGAIN;
	ask(0, IMAGE_WRITE, 5);
	steps(3);
	ask(1, IMAGE_READ, 6);
	ask(2, IMAGE_FLUSH, 0);
	steps(3);
	assert_true(guest.busy[0]);
	assert_false(guest.busy[1] || guest.busy[2]);
	assert_int_equal(stats().waiting, 1);
	assert_int_equal(stats().inflight, 1);
}

static void an_error_that_stays_is_the_guests_in_the_end(void **priv)
{
	(void)priv;
	settle("retry_for", "60");
	settle("retry_interval", "10");
	disk.read_err = -ESTALE;
	ask(0, IMAGE_READ, 5);
	steps(3);
	for (int i = 0; i < 5; i++)
		pass(10 * SECOND);
	assert_true(guest.busy[0]);
	pass(10 * SECOND);
	assert_int_equal(guest.result[0], -ESTALE);
	assert_int_equal(guest.answered, 1);
	assert_int_equal(state(), 0);
}

/* The time that it waited for space, or paused, is not the storage's. */
static void each_outage_has_its_own_time(void **priv)
{
	(void)priv;
	settle("retry_for", "60");
	disk.write_err = -ENOSPC;
	ask(0, IMAGE_WRITE, 5);
	steps(3);
	pass(100 * SECOND);
	disk.write_err = -ESTALE;
	pass(5 * SECOND);
	assert_int_equal(state(), VBD_WAITING);
	pass(50 * SECOND);
	assert_true(guest.busy[0]);
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	pass(100 * SECOND);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	steps(3);
	pass(50 * SECOND);
	assert_true(guest.busy[0]);
	pass(20 * SECOND);
	assert_int_equal(guest.result[0], -ESTALE);
	assert_int_equal(guest.answered, 1);
}

static void after_that_it_may_wait_to_be_told(void **priv)
{
	(void)priv;
	settle("retry_for", "2");
	settle("retry_then", "pause");
	disk.read_err = -ENOLINK;
	ask(0, IMAGE_READ, 5);
	steps(3);
	pass(SECOND);
	pass(SECOND);
	disk.read_err = 0;
	for (int i = 0; i < 20; i++)
		pass(SECOND);
	assert_true(guest.busy[0]);
	assert_int_equal(state(), VBD_WAITING);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	steps(3);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(guest.answered, 1);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), -EINVAL);
}

/* What the guest gets of a read, or a flush, that fails once. */
static int one_failure(enum image_op op, int err)
{
	disk.read_err = disk.flush_err = err;
	ask(0, op, 0);
	steps(3);
	disk.read_err = disk.flush_err = 0;
	if (guest.busy[0])
		pass(SECOND);
	assert_false(guest.busy[0]);
	return guest.result[0];
}

static void which_errors_are_tried_again(void **priv)
{
	(void)priv;
	assert_int_equal(one_failure(IMAGE_READ, -EIO), -EIO);
	assert_int_equal(one_failure(IMAGE_FLUSH, -EIO), -EIO);
	assert_int_equal(one_failure(IMAGE_READ, -EHOSTUNREACH), 0);
	settle("retry_errors", "all");
	assert_int_equal(one_failure(IMAGE_READ, -EIO), 0);
	/* The next flush would succeed without the data of this one. */
	assert_int_equal(one_failure(IMAGE_FLUSH, -EIO), -EIO);
	assert_int_equal(one_failure(IMAGE_FLUSH, -ETIMEDOUT), 0);
	settle("retry_errors", "none");
	assert_int_equal(one_failure(IMAGE_READ, -ETIMEDOUT), -ETIMEDOUT);
}

static void an_io_error_of_a_server_may_pass(void **priv)
{
	(void)priv;
	disk.remote = true;
	vbd_pause(bed.vbd, 0, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	assert_int_equal(one_failure(IMAGE_READ, -EIO), 0);
	assert_int_equal(one_failure(IMAGE_FLUSH, -EIO), 0);
}

static void the_flush_of_a_fua_write_is_tried_alone(void **priv)
{
	(void)priv;
	guest.slots[0].fua = true;
	disk.flush_err = -EBUSY;
	ask(0, IMAGE_WRITE, 1);
	steps(3);
	assert_true(guest.busy[0]);
	disk.flush_err = 0;
	pass(SECOND);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(disk.writes, 1);
	assert_int_equal(disk.flushes, 2);
}

/* Space */

static void writes_wait_for_space_and_say_so(void **priv)
{
	(void)priv;
	settle("retry_for", "0");
	disk.write_err = -ENOSPC;
	ask(0, IMAGE_WRITE, 1);
	ask(1, IMAGE_READ, 2);
	steps(3);
	assert_true(guest.busy[0]);
	assert_false(guest.busy[1]);
	assert_int_equal(state(), VBD_NO_SPACE);
	assert_true(marked());
	disk.write_err = -EDQUOT;
	for (int i = 0; i < 1000; i++)
		pass(3 * SECOND);
	assert_true(guest.busy[0] && marked());
	disk.write_err = 0;
	pass(3 * SECOND);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(state(), 0);
	assert_false(marked());
}

static void unpause_looks_for_space_at_once(void **priv)
{
	(void)priv;
	disk.write_err = -ENOSPC;
	ask(0, IMAGE_WRITE, 1);
	steps(3);
	disk.write_err = 0;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	steps(3);
	assert_false(guest.busy[0]);
	assert_false(marked());
}

static void a_lack_of_space_may_be_an_error(void **priv)
{
	(void)priv;
	settle("no_space", "fail");
	disk.write_err = -ENOSPC;
	ask(0, IMAGE_WRITE, 1);
	steps(3);
	assert_int_equal(guest.result[0], -ENOSPC);
	assert_false(guest.busy[0] || marked());
	/* Not even if all errors are tried again. */
	settle("retry_errors", "all");
	ask(0, IMAGE_WRITE, 1);
	steps(3);
	assert_false(guest.busy[0]);
}

/* Pause and close */

static void what_waits_does_not_hold_up_a_pause(void **priv)
{
	(void)priv;
	disk.write_err = -ENOSPC;
	ask(0, IMAGE_WRITE, 1);
	steps(3);
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(state(), VBD_PAUSED | VBD_NO_SPACE);
	assert_int_equal(disk.open, 0);
	pass(10 * SECOND);
	assert_true(guest.busy[0]);
	/* The new leaf lies where there is space. */
	disk.write_err = 0;
	assert_int_equal(vbd_unpause(bed.vbd, "fake:/new", NULL), 0);
	steps(3);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(state(), 0);
	assert_false(marked());
}

static void a_close_answers_what_waits(void **priv)
{
	(void)priv;
	disk.write_err = -ENOSPC;
	ask(0, IMAGE_WRITE, 1);
	steps(3);
	vbd_close(bed.vbd, true, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(guest.result[0], -ENOSPC);
	assert_false(guest.busy[0] || marked());
}

static void a_pause_that_takes_too_long_is_called_off(void **priv)
{
	(void)priv;
	disk.stuck = true;
	ask(0, IMAGE_WRITE, 1);
	vbd_pause(bed.vbd, 5000, verb_done, NULL);
	assert_false(guest.running);
	pass(4 * SECOND);
	assert_int_equal(verbs_done, 0);
	pass(SECOND);
	assert_int_equal(verb_wait(), -ETIMEDOUT);
	assert_non_null(strstr(verb_text, "1 requests did not come back from fake:/disk in 5 s"));
	assert_true(guest.running);
	assert_int_equal(state(), 0);
	ask(1, IMAGE_READ, 2);
	disk.stuck = false;
	engine_timer_set(server_engine(bed.server), &disk.timer, 0);
	steps(3);
	assert_false(guest.busy[0] || guest.busy[1]);
	vbd_pause(bed.vbd, 5000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	pass(10 * SECOND);
	assert_int_equal(state(), VBD_PAUSED);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
}

static void a_flush_that_takes_too_long_calls_off_a_pause(void **priv)
{
	(void)priv;
	disk.stuck = true;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	steps(3);
	pass(SECOND);
	assert_int_equal(verb_wait(), -ETIMEDOUT);
	assert_non_null(strstr(verb_text, "a flush of fake:/disk"));
	/* It is still there. */
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	steps(3);
	assert_int_equal(verbs_done, 0);
	disk.stuck = false;
	engine_timer_set(server_engine(bed.server), &disk.timer, 0);
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(disk.open, 0);
}

/* What was written since is not in it. */
static void the_flush_of_a_pause_that_was_called_off_is_not_the_next_ones(void **priv)
{
	(void)priv;
	disk.stuck = true;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	steps(3);
	pass(SECOND);
	assert_int_equal(verb_wait(), -ETIMEDOUT);
	ask(0, IMAGE_WRITE, 1);
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	disk.stuck = false;
	engine_timer_set(server_engine(bed.server), &disk.timer, 0);
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(disk.flushes, 2);
}

static void a_pause_that_cannot_be_called_off_is_ended_by_unpause(void **priv)
{
	(void)priv;
	disk.stuck = true;
	guest.release_err = -EINVAL;
	ask(0, IMAGE_WRITE, 1);
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	pass(SECOND);
	assert_int_equal(verb_wait(), -ETIMEDOUT);
	assert_int_equal(state(), VBD_PAUSE_REQUESTED);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), -EINVAL);
	guest.release_err = 0;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	assert_int_equal(state(), 0);
	assert_true(guest.running);
}

static void a_close_that_takes_too_long_says_so_and_goes_on(void **priv)
{
	(void)priv;
	disk.stuck = true;
	ask(0, IMAGE_WRITE, 1);
	vbd_close(bed.vbd, true, 1000, verb_done, NULL);
	pass(SECOND);
	assert_int_equal(verb_wait(), -ETIMEDOUT);
	vbd_close(bed.vbd, true, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), -EBUSY);
	disk.stuck = false;
	engine_timer_set(server_engine(bed.server), &disk.timer, 0);
	steps(5);
	assert_int_equal(state(), VBD_CLOSED);
	assert_int_equal(verbs_done, 0);
}

static void pauses_end_under_a_load_that_never_stops(void **priv)
{
	(void)priv;
	srandom(1);
	guest.load = true;
	for (int i = 0; i < 100; i++) {
		unsigned int before = guest.answered;

		disk.delay_ns = (uint64_t)random() % MS;
		disk.write_err = random() % 4 ? 0 : -ENOSPC;
		steps((unsigned int)random() % 8);
		vbd_pause(bed.vbd, 5000, verb_done, NULL);
		assert_int_equal(verb_wait(), 0);
		assert_int_equal(disk.open, 0);
		before = guest.answered;
		steps(2);
		assert_int_equal(guest.answered, before);
		disk.write_err = 0;
		assert_int_equal(vbd_unpause(bed.vbd, i % 2 ? "fake:/a" : NULL,
					     NULL), 0);
	}
	guest.load = false;
	pass(10 * SECOND);
	assert_int_equal(stats().inflight, 0);
	assert_int_equal(state(), 0);
}

static void a_new_leaf_may_be_larger_but_not_smaller(void **priv)
{
	struct error err;

	(void)priv;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	disk.sectors = SECTORS - 1;
	assert_int_equal(vbd_unpause(bed.vbd, "fake:/small", &err), -EINVAL);
	assert_non_null(strstr(err.text, "fake:/small: its disk has 32256 bytes, that of minor 3 has 32768"));
	assert_int_equal(disk.open, 0);
	assert_int_equal(state(), VBD_PAUSED);
	disk.open_err = -ENOENT;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, &err), -ENOENT);
	assert_int_equal(state(), VBD_PAUSED);
	disk.open_err = 0;
	disk.sectors = 2 * SECTORS;
	assert_int_equal(vbd_unpause(bed.vbd, "fake:/large", &err), 0);
	assert_int_equal(guest.sectors, 2 * SECTORS);
	ask(0, IMAGE_READ, 2 * SECTORS - 1);
	steps(3);
	assert_int_equal(guest.result[0], 0);
	assert_string_equal(stats().text, "fake:/large");
	assert_int_equal(stats().sectors, 2 * SECTORS);
}

/* The guest's own flush would succeed, and what it should cover may be lost. */
static void a_flush_of_ours_that_fails_is_the_guests_next_one(void **priv)
{
	(void)priv;
	disk.flush_err = -EIO;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), -EIO);
	disk.flush_err = 0;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	ask(0, IMAGE_WRITE, 0);
	ask(1, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], 0);
	assert_int_equal(guest.result[1], -EIO);
	ask(1, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[1], 0);
}

/* Were they tried again, they would succeed: what was lost is not told twice. */
static void flushes_that_wait_get_the_error_of_ours(void **priv)
{
	(void)priv;
	disk.remote = true;
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	disk.flush_err = -EIO;
	ask(0, IMAGE_FLUSH, 0);
	guest.slots[1].fua = true;
	ask(1, IMAGE_WRITE, 3);
	steps(3);
	disk.write_err = -ETIMEDOUT;
	ask(2, IMAGE_WRITE, 4);
	steps(3);
	assert_true(guest.busy[0] && guest.busy[1]);
	vbd_pause(bed.vbd, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), -EIO);
	disk.flush_err = disk.write_err = 0;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, NULL), 0);
	steps(3);
	assert_int_equal(guest.result[0], -EIO);
	assert_int_equal(guest.result[1], -EIO);
	assert_int_equal(guest.result[2], 0);
	assert_int_equal(state(), 0);
	/* It has been told. */
	ask(0, IMAGE_FLUSH, 0);
	steps(3);
	assert_int_equal(guest.result[0], 0);
}

/* Statistics */

static void durations_are_counted_to_a_fifth(void **priv)
{
	struct stats_op op = { .max_ns = UINT64_MAX };

	(void)priv;
	for (uint64_t ns = 1; ns < 1ull << 40; ns = ns * 9 / 8 + 1) {
		unsigned int b = stats_bucket(ns);

		assert_true(ns < stats_bucket_end(b));
		assert_true(!b || ns >= stats_bucket_end(b - 1));
		assert_true(stats_bucket_end(b) - 1 <= ns + ns / 4);
	}
	assert_int_equal(stats_bucket(UINT64_MAX), STATS_BUCKETS - 1);
	assert_int_equal(stats_percentile(&op, 50), 0);
	op.latency[stats_bucket(1000)] = 99;
	op.latency[stats_bucket(1000000)] = 1;
	assert_in_range(stats_percentile(&op, 50), 1000, 1250);
	assert_in_range(stats_percentile(&op, 98), 1000, 1250);
	assert_in_range(stats_percentile(&op, 99), 1000000, 1250000);
}

static void the_page_is_read_without_a_word(void **priv)
{
	struct stats_page page;

	(void)priv;
	ask(0, IMAGE_WRITE, 0);
	ask(1, IMAGE_READ, 0);
	steps(3);
	page = stats();
	assert_int_equal(page.pid, getpid());
	assert_int_equal(page.op[IMAGE_WRITE].requests, 1);
	assert_int_equal(page.op[IMAGE_READ].sectors, 1);
	assert_string_equal(page.text, "fake:/disk");
	vbd_close(bed.vbd, true, 1000, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	page = stats();
	assert_int_equal(page.state, VBD_CLOSED);
	assert_int_equal(page.open, 0);
}

/* A directory that can't be written, or one that is full. */
static void without_the_page_a_disk_works_all_the_same(void **priv)
{
	struct vbd *other;

	(void)priv;
	setenv("XENBLK_CONTROL_DIR", "/proc/nowhere", 1);
	assert_int_equal(vbd_create(&other, bed.server, MINOR + 1, NULL), 0);
	setenv("XENBLK_CONTROL_DIR", bed.dir, 1);
	assert_int_equal(vbd_detach(other, NULL), 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(an_error_that_passes_is_time_to_the_guest),
		TEST(others_go_on_while_one_waits),
		TEST(an_error_that_stays_is_the_guests_in_the_end),
		TEST(each_outage_has_its_own_time),
		TEST(after_that_it_may_wait_to_be_told),
		TEST(which_errors_are_tried_again),
		TEST(an_io_error_of_a_server_may_pass),
		TEST(the_flush_of_a_fua_write_is_tried_alone),
		TEST(writes_wait_for_space_and_say_so),
		TEST(unpause_looks_for_space_at_once),
		TEST(a_lack_of_space_may_be_an_error),
		TEST(what_waits_does_not_hold_up_a_pause),
		TEST(a_close_answers_what_waits),
		TEST(a_pause_that_takes_too_long_is_called_off),
		TEST(a_flush_that_takes_too_long_calls_off_a_pause),
		TEST(the_flush_of_a_pause_that_was_called_off_is_not_the_next_ones),
		TEST(a_pause_that_cannot_be_called_off_is_ended_by_unpause),
		TEST(a_close_that_takes_too_long_says_so_and_goes_on),
		TEST(pauses_end_under_a_load_that_never_stops),
		TEST(a_new_leaf_may_be_larger_but_not_smaller),
		TEST(a_flush_of_ours_that_fails_is_the_guests_next_one),
		TEST(flushes_that_wait_get_the_error_of_ours),
		TEST(durations_are_counted_to_a_fifth),
		TEST(the_page_is_read_without_a_word),
		TEST(without_the_page_a_disk_works_all_the_same),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
