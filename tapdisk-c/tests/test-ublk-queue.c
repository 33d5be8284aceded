/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Requests of a ublk device from its slots to the VBD and back, and what becomes
 * of them when the disk is held, removed or fails to start. The kernel, the
 * engine and the VBD are played here.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "transport/gendisk.h"
#include "transport/ublk-internal.h"
#include "transport/ublk.h"

#define MINOR	7
#define SECTORS	1000u

/* The kernel: slots that it has, and what it was told */

static struct {
	struct ublk_info info;
	int info_err, publish_err;
	struct io_req *slot[UBLK_ENTRIES];	/* with the kernel, by tag */
	unsigned int nr_slots;
	uint32_t last_op[UBLK_ENTRIES];
	int32_t result[UBLK_ENTRIES];
	unsigned int refuse;			/* so many commands get -ENOMEM */
	int memory;				/* of the descriptors */
	struct ublk_desc *desc;
	unsigned int begun;			/* command of the control device, or 0 */
	bool ended;
	int end_result;
	int recovery_err;
	unsigned int calls[32];
	unsigned int writes;			/* to sysfs */
	bool published;
	uint16_t creds;				/* that slots of a new device come with */
} kernel;

int open(const char *path, int flags, ...)
{
	(void)flags;
	assert_string_equal(path, "/dev/ublkc7");
	return dup(kernel.memory);
}

int ublk_device_open(struct ublk_device *device, int minor, struct error *err)
{
	(void)err;
	*device = (struct ublk_device){ .minor = minor, .control = -1, .file = -1 };
	return 0;
}

void ublk_device_close(struct ublk_device *device)
{
	(void)device;
}

int ublk_device_call(struct ublk_device *device, uint32_t op, void *addr,
		     uint16_t len, uint64_t data)
{
	struct image_info info = { .sectors = SECTORS, .sector_size = 512 };
	struct ublk_params params = ublk_params_of(&info, false);

	(void)device;
	(void)data;
	kernel.calls[_IOC_NR(op)]++;
	if (_IOC_NR(op) == UBLK_GET_PARAMS)
		memcpy(addr, &params, len);
	return _IOC_NR(op) == UBLK_START_RECOVERY ? kernel.recovery_err : 0;
}

int ublk_device_begin(struct ublk_device *device, uint32_t op, uint64_t data)
{
	(void)device;
	(void)data;
	assert_int_equal(kernel.begun, 0);
	kernel.begun = _IOC_NR(op);
	return 0;
}

int ublk_device_begin_write(struct ublk_device *device, const char *path,
			    const char *text)
{
	(void)device;
	(void)text;
	assert_non_null(strstr(path, "/sys/block/ublkb7/queue/"));
	kernel.writes++;
	kernel.begun = UINT32_MAX;
	return 0;
}

bool ublk_device_ended(struct ublk_device *device, int *result)
{
	(void)device;
	if (!kernel.ended)
		return false;
	kernel.ended = false;
	kernel.begun = 0;
	*result = kernel.end_result;
	return true;
}

int ublk_device_info(struct ublk_device *device, struct ublk_info *info,
		     struct error *err)
{
	(void)device;
	*info = kernel.info;
	return kernel.info_err ? error_set(err, kernel.info_err, "info") : 0;
}

int gendisk_publish(int minor, const char *name, struct error *err)
{
	assert_int_equal(minor, MINOR);
	assert_string_equal(name, "ublkb7");
	if (kernel.publish_err)
		return error_set(err, kernel.publish_err, "no name");
	kernel.published = true;
	return 0;
}

void gendisk_unpublish(int minor)
{
	(void)minor;
	kernel.published = false;
}

/* The engine */

static struct {
	struct io_watch *watch;
	struct io_plug *plug;
	struct io_timer *timer;
	struct list queued;
} engine;

const char *engine_name(const struct engine *e)
{
	(void)e;
	return "uring";
}

uint64_t engine_now(struct engine *e)
{
	(void)e;
	return 1;
}

uint16_t engine_creds_add(struct engine *e)
{
	(void)e;
	return 5;
}

void engine_creds_remove(struct engine *e, uint16_t creds)
{
	(void)e;
	(void)creds;
}

int engine_watch(struct engine *e, struct io_watch *watch)
{
	(void)e;
	engine.watch = watch;
	return 0;
}

void engine_unwatch(struct engine *e, struct io_watch *watch)
{
	(void)e;
	(void)watch;
	engine.watch = NULL;
}

void engine_timer_set(struct engine *e, struct io_timer *timer, uint64_t ns)
{
	(void)e;
	assert_true(ns > engine_now(NULL));
	timer->armed = true;
	engine.timer = timer;
}

void engine_timer_cancel(struct engine *e, struct io_timer *timer)
{
	(void)e;
	if (timer->armed)
		engine.timer = NULL;
	timer->armed = false;
}

static void timer_expires(void)
{
	struct io_timer *timer = engine.timer;

	assert_non_null(timer);
	engine.timer = NULL;
	timer->armed = false;
	timer->expired(timer);
}

void engine_plug(struct engine *e, struct io_plug *plug)
{
	(void)e;
	engine.plug = plug;
}

void engine_plug_cancel(struct engine *e, struct io_plug *plug)
{
	(void)e;
	(void)plug;
	engine.plug = NULL;
}

void engine_queue(struct engine *e, struct io_req *req)
{
	(void)e;
	assert_int_equal(req->op, IO_COMMAND);
	list_add_tail(&req->link, &engine.queued);
}

/* What was queued goes to the kernel. */
static void submit(void)
{
	struct list *item;

	if (engine.plug) {
		struct io_plug *plug = engine.plug;

		engine.plug = NULL;
		plug->unplug(plug);
	}
	while ((item = list_pop(&engine.queued))) {
		struct io_req *req = container_of(item, struct io_req, link);
		struct ublk_io cmd;

		memcpy(&cmd, req->iov->iov_base, sizeof(cmd));
		if (kernel.refuse) {
			kernel.refuse--;
			req->done(req, -ENOMEM);
			continue;
		}
		assert_in_range(cmd.tag, 0, UBLK_ENTRIES - 1);
		assert_null(kernel.slot[cmd.tag]);
		assert_true(cmd.addr && cmd.addr % 4096 == 0);
		kernel.slot[cmd.tag] = req;
		kernel.nr_slots++;
		kernel.last_op[cmd.tag] = _IOC_NR(req->offset);
		kernel.result[cmd.tag] = cmd.result;
		/* Only these say who serves. */
		assert_int_equal(req->buffer, _IOC_NR(req->offset) == UBLK_FETCH ?
					      kernel.creds : 0);
	}
}

static void give_back(unsigned int tag, int err)
{
	struct io_req *req = kernel.slot[tag];

	assert_non_null(req);
	kernel.slot[tag] = NULL;
	kernel.nr_slots--;
	req->done(req, err);
}

static void ask(unsigned int tag, uint32_t op_flags, uint64_t sector, uint32_t n)
{
	kernel.desc[tag] = (struct ublk_desc){
		.op_flags = op_flags, .sectors = n, .sector = sector,
	};
	give_back(tag, 0);
}

/* What was begun ends. */
static void end_begun(unsigned int expected, int result)
{
	assert_int_equal(kernel.begun, expected);
	kernel.ended = true;
	kernel.end_result = result;
	engine.watch->ready(engine.watch, POLLIN);
}

/* The VBD */

static bool image_open;

struct image *vbd_image(struct vbd *vbd)
{
	static uint8_t an_image;

	(void)vbd;
	return image_open ? (struct image *)(void *)&an_image : NULL;
}

static struct vbd_request *submitted[UBLK_ENTRIES];
static unsigned int nr_submitted;

void vbd_submit(struct vbd *vbd, struct vbd_request *req)
{
	(void)vbd;
	req->op = req->image.op;
	submitted[nr_submitted++] = req;
}

static void answer(unsigned int i, int err)
{
	submitted[i]->done(submitted[i], err);
	submit();
}

/* The bed */

static struct transport *t;
static const struct image_info image = { .sectors = SECTORS, .sector_size = 512, .depth = 1 };

static int begin(void **priv)
{
	(void)priv;
	memset(&kernel, 0, sizeof(kernel));
	memset(&engine, 0, sizeof(engine));
	list_init(&engine.queued);
	nr_submitted = 0;
	kernel.memory = memfd_create("queue", MFD_CLOEXEC);
	assert_int_equal(ftruncate(kernel.memory, 65536), 0);
	kernel.desc = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED,
			   kernel.memory, 0);
	assert_true(kernel.desc != MAP_FAILED);
	kernel.info_err = -ENODEV;
	image_open = true;
	return ublk_open(&t, NULL, NULL, MINOR, NULL);
}

static int end(void **priv)
{
	(void)priv;
	assert_int_equal(kernel.nr_slots, 0);
	assert_null(engine.timer);
	assert_int_equal(t->ops->reset(t, NULL), 0);
	t->ops->close(t);
	munmap(kernel.desc, 65536);
	close(kernel.memory);
	return 0;
}

static void a_quiesced_device(void)
{
	kernel.info_err = 0;
	kernel.info = (struct ublk_info){
		.nr_queues = 1, .depth = UBLK_ENTRIES, .state = UBLK_S_QUIESCED,
		.server_flags = UBLK_TAPDISK,
		.flags = UBLK_F_USER_RECOVERY | UBLK_F_REISSUE,
	};
}

static void settle(unsigned int op)
{
	end_begun(op, 0);
	while (kernel.begun == UINT32_MAX)
		end_begun(UINT32_MAX, 0);
}

static void start_live(void)
{
	struct error err;

	kernel.creds = 5;
	assert_int_equal(t->ops->start(t, &image, false, &err), 0);
	assert_int_equal(t->ops->ready(t, &err), -EINPROGRESS);
	submit();
	assert_int_equal(kernel.nr_slots, UBLK_ENTRIES);
	settle(UBLK_START);
	assert_int_equal(t->ops->ready(t, &err), 0);
	assert_true(kernel.published);
	assert_int_equal(kernel.writes, 2);
}

static void stop(void)
{
	assert_int_equal(t->ops->stop(t, true, NULL), 0);
	assert_true(t->ops->busy(t));
	submit();
	end_begun(UBLK_STOP, 0);
	for (unsigned int i = 0; i < UBLK_ENTRIES; i++)
		if (kernel.slot[i])
			give_back(i, -ENODEV);
	assert_false(t->ops->busy(t));
	assert_false(kernel.published);
}

static void each_request_is_answered_once_in_its_slot(void **priv)
{
	(void)priv;
	start_live();
	ask(3, UBLK_OP_WRITE, 8, 8);
	ask(9, UBLK_OP_READ, 0, 512);
	ask(63, UBLK_OP_FLUSH, 0, 0);
	assert_int_equal(nr_submitted, 3);
	assert_ptr_not_equal(submitted[0]->image.buf, submitted[1]->image.buf);
	assert_int_equal(submitted[1]->image.count, 512);
	answer(1, 0);
	assert_int_equal(kernel.result[9], 512 * 512);
	answer(0, -ENOSPC);
	assert_int_equal(kernel.result[3], -ENOSPC);
	answer(2, 0);
	assert_int_equal(kernel.result[63], 0);
	assert_int_equal(kernel.last_op[63], UBLK_COMMIT_AND_FETCH);
	assert_int_equal(kernel.nr_slots, UBLK_ENTRIES);
	stop();
}

static void what_makes_no_sense_is_answered_at_once(void **priv)
{
	(void)priv;
	start_live();
	ask(0, 77, 0, 1);
	ask(1, UBLK_OP_WRITE, 0, 513);
	submit();
	assert_int_equal(nr_submitted, 0);
	assert_int_equal(kernel.result[0], -EOPNOTSUPP);
	assert_int_equal(kernel.result[1], -EIO);
	stop();
}

/* A commit that io_uring had no memory for is not lost, nor is its result. */
static void a_command_that_was_not_taken_goes_again(void **priv)
{
	(void)priv;
	start_live();
	ask(0, UBLK_OP_WRITE, 0, 8);
	kernel.refuse = 3;
	answer(0, 0);
	assert_int_equal(kernel.refuse, 0);
	assert_int_equal(kernel.result[0], 4096);
	assert_int_equal(kernel.nr_slots, UBLK_ENTRIES);
	stop();
}

static void what_comes_while_held_waits_for_the_release(void **priv)
{
	(void)priv;
	start_live();
	ask(0, UBLK_OP_WRITE, 0, 8);
	t->ops->hold(t);
	ask(1, UBLK_OP_WRITE, 8, 8);
	ask(2, UBLK_OP_READ, 16, 8);
	submit();
	/* What was there before goes on. */
	assert_int_equal(nr_submitted, 1);
	answer(0, 0);
	assert_int_equal(t->ops->release(t, &image, false, NULL), 0);
	/* The image that it is for is not open before the next round. */
	assert_int_equal(nr_submitted, 1);
	submit();
	assert_int_equal(nr_submitted, 3);
	/* Held again before the round: they still wait. */
	answer(1, 0);
	t->ops->hold(t);
	ask(1, UBLK_OP_READ, 0, 8);
	assert_int_equal(t->ops->release(t, &image, false, NULL), 0);
	t->ops->hold(t);
	submit();
	assert_int_equal(nr_submitted, 3);
	answer(2, 0);
	assert_int_equal(t->ops->release(t, &image, false, NULL), 0);
	submit();
	answer(3, 0);
	stop();
}

static void a_removal_fails_what_waits_and_waits_for_what_is_served(void **priv)
{
	(void)priv;
	start_live();
	ask(0, UBLK_OP_WRITE, 0, 8);
	t->ops->hold(t);
	ask(1, UBLK_OP_WRITE, 8, 8);
	assert_int_equal(t->ops->stop(t, true, NULL), 0);
	submit();
	assert_int_equal(kernel.result[1], -EIO);
	/* One that the kernel had sent just before. */
	ask(2, UBLK_OP_READ, 8, 8);
	submit();
	assert_int_equal(kernel.result[2], -EIO);
	assert_int_equal(nr_submitted, 1);
	assert_true(t->ops->busy(t));
	answer(0, 0);
	end_begun(UBLK_STOP, 0);
	/* The slots' memory is the kernel's until it has given back all. */
	assert_true(t->ops->busy(t));
	for (unsigned int i = 0; i < UBLK_ENTRIES; i++)
		give_back(i, -ENODEV);
	assert_false(t->ops->busy(t));
	assert_int_equal(t->ops->reset(t, NULL), 0);
	assert_int_equal(kernel.calls[UBLK_DELETE_ASYNC], 1);
}

static void the_disk_of_a_guest_goes_on_without_its_name(void **priv)
{
	struct error err;

	(void)priv;
	a_quiesced_device();
	kernel.publish_err = -EROFS;
	assert_int_equal(t->ops->start(t, &image, false, &err), 0);
	submit();
	settle(UBLK_END_RECOVERY);
	assert_int_equal(t->ops->ready(t, &err), 0);
	ask(0, UBLK_OP_READ, 0, 8);
	answer(0, 0);
	assert_int_equal(kernel.result[0], 4096);
	stop();
}

static void a_take_over_that_fails_removes_nothing(void **priv)
{
	struct error err;

	(void)priv;
	a_quiesced_device();
	assert_int_equal(t->ops->start(t, &image, false, &err), 0);
	submit();
	end_begun(UBLK_END_RECOVERY, -EBUSY);
	assert_int_equal(t->ops->ready(t, &err), -EBUSY);
	assert_int_equal(t->ops->stop(t, true, &err), 0);
	assert_int_equal(kernel.begun, 0);
	/* The kernel has the slots: the memory stays until it is given back. */
	assert_true(t->ops->busy(t));
	for (unsigned int i = 0; i < UBLK_ENTRIES; i++)
		give_back(i, -ENODEV);
	assert_false(t->ops->busy(t));
	assert_int_equal(t->ops->reset(t, &err), 0);
	assert_int_equal(kernel.calls[UBLK_DELETE_ASYNC], 0);
}

/* Nobody has requests in it yet. */
static void a_device_that_does_not_start_is_removed(void **priv)
{
	struct error err;

	(void)priv;
	kernel.creds = 5;
	assert_int_equal(t->ops->start(t, &image, false, &err), 0);
	submit();
	end_begun(UBLK_START, -EINVAL);
	assert_int_equal(t->ops->ready(t, &err), -EINVAL);
	assert_non_null(strstr(err.text, "does not start"));
	stop();
	assert_int_equal(t->ops->reset(t, &err), 0);
	assert_int_equal(kernel.calls[UBLK_DELETE_ASYNC], 1);
	/* The next one is another try. */
	start_live();
	stop();
}

/* udev's read of a new gendisk waits for the image, and the kernel's setting of a queue for the read. */
static void a_queue_is_not_set_up_while_nothing_is_answered(void **priv)
{
	struct error err;

	(void)priv;
	image_open = false;
	kernel.creds = 5;
	assert_int_equal(t->ops->start(t, &image, false, &err), 0);
	submit();
	settle(UBLK_START);
	assert_int_equal(t->ops->ready(t, &err), 0);
	assert_true(kernel.published);
	assert_int_equal(kernel.writes, 0);
	stop();
}

static void the_first_request_may_come_while_the_queue_is_set_up(void **priv)
{
	int memory = kernel.memory, fds[2];
	struct error err;

	(void)priv;
	assert_int_equal(pipe(fds), 0);
	kernel.memory = fds[0];
	kernel.creds = 5;
	assert_int_equal(t->ops->start(t, &image, false, &err), 0);
	submit();
	close(fds[0]);
	close(fds[1]);
	kernel.memory = memory;
	end_begun(UBLK_START, 0);
	assert_int_equal(kernel.begun, UINT32_MAX);
	ask(0, UBLK_OP_READ, 0, 8);
	assert_true(dup2(memory, ublk_of(t)->queue) >= 0);
	timer_expires();
	submit();
	assert_int_equal(nr_submitted, 1);
	answer(0, 0);
	settle(UINT32_MAX);
	assert_int_equal(t->ops->ready(t, &err), 0);
	stop();
}

static void requests_wait_until_the_queue_can_be_mapped(void **priv)
{
	int memory = kernel.memory, fds[2];

	(void)priv;
	/* Nobody can map one. */
	assert_int_equal(pipe(fds), 0);
	kernel.memory = fds[0];
	start_live();
	close(fds[0]);
	close(fds[1]);
	kernel.memory = memory;
	ask(0, UBLK_OP_WRITE, 0, 8);
	ask(1, UBLK_OP_WRITE, 8, 8);
	assert_int_equal(nr_submitted, 0);
	timer_expires();
	submit();
	assert_int_equal(nr_submitted, 0);
	/* What can be mapped is put in its place. */
	assert_true(dup2(memory, ublk_of(t)->queue) >= 0);
	timer_expires();
	submit();
	assert_int_equal(nr_submitted, 2);
	answer(0, 0);
	answer(1, 0);
	stop();
}

/* As by an upgrade whose new tapdisk can't open the image. */
static void leave_and_take_back(void)
{
	struct transport *old = t;

	t->ops->hold(t);
	t->ops->close(t);
	assert_int_equal(kernel.calls[UBLK_DELETE_ASYNC], 0);
	assert_int_equal(kernel.begun, 0);
	assert_int_equal(ublk_open(&t, NULL, NULL, MINOR, NULL), 0);
	assert_ptr_equal(t, old);
}

static void what_was_left_and_not_taken_goes_on(void **priv)
{
	struct error err;

	(void)priv;
	start_live();
	kernel.info_err = 0;
	kernel.info.state = UBLK_S_LIVE;
	kernel.info.pid = getpid();
	/* All slots have a request that waits, and the kernel has none. */
	t->ops->hold(t);
	for (unsigned int i = 0; i < UBLK_ENTRIES; i++)
		ask(i, UBLK_OP_READ, 8 * i, 8);
	leave_and_take_back();
	assert_int_equal(t->ops->start(t, &image, true, &err), -EROFS);
	submit();
	assert_int_equal(nr_submitted, 0);
	assert_int_equal(t->ops->start(t, &image, false, &err), 0);
	assert_int_equal(t->ops->ready(t, &err), 0);
	submit();
	assert_int_equal(nr_submitted, UBLK_ENTRIES);
	for (unsigned int i = 0; i < UBLK_ENTRIES; i++)
		answer(i, 0);
	/* What the VBD has, which goes with it, is not forgotten: it was waiting for space. */
	nr_submitted = 0;
	ask(5, UBLK_OP_WRITE, 8, 8);
	assert_int_equal(nr_submitted, 1);
	leave_and_take_back();
	assert_int_equal(t->ops->start(t, &image, false, &err), 0);
	submit();
	assert_int_equal(nr_submitted, 2);
	assert_int_equal(submitted[1]->image.op, IMAGE_WRITE);
	answer(1, 0);
	/* Again, and another process was faster. */
	leave_and_take_back();
	kernel.info.pid = getpid() + 1;
	assert_int_equal(t->ops->start(t, &image, false, &err), -EBUSY);
	kernel.info.pid = getpid();
	assert_int_equal(t->ops->start(t, &image, false, &err), 0);
	stop();
}

/* One that is not held is, and its name is no obstacle after a close and an open. */
static void what_is_left_asks_nobody(void **priv)
{
	struct error err;

	(void)priv;
	start_live();
	stop();
	assert_int_equal(t->ops->reset(t, &err), 0);
	kernel.calls[UBLK_DELETE_ASYNC] = 0;
	kernel.writes = 0;
	start_live();
	kernel.info_err = 0;
	kernel.info.state = UBLK_S_LIVE;
	kernel.info.pid = getpid();
	t->ops->close(t);
	ask(0, UBLK_OP_READ, 0, 8);
	submit();
	assert_int_equal(nr_submitted, 0);
	assert_int_equal(ublk_open(&t, NULL, NULL, MINOR, NULL), 0);
	assert_int_equal(ublk_of(t)->phase, UBLK_LIVE);
	assert_int_equal(t->ops->start(t, &image, false, &err), 0);
	submit();
	assert_int_equal(nr_submitted, 1);
	answer(0, 0);
	stop();
}

/* By force, while it was left to another one: the minor's next disk is not that. */
static void what_was_left_and_removed_is_not_taken_back(void **priv)
{
	struct transport *next;

	(void)priv;
	start_live();
	t->ops->hold(t);
	t->ops->close(t);
	for (unsigned int i = 0; i < UBLK_ENTRIES; i++)
		give_back(i, -ENODEV);
	assert_int_equal(ublk_open(&next, NULL, NULL, MINOR, NULL), 0);
	assert_int_equal(ublk_of(next)->phase, UBLK_NONE);
	assert_int_equal(kernel.calls[UBLK_DELETE_ASYNC], 0);
	t = next;
}

/* As a pause, a snapshot and an upgrade do. */
static void a_device_that_is_waited_for_is_held_and_released(void **priv)
{
	struct image_info grown = image;
	struct error err;

	(void)priv;
	a_quiesced_device();
	kernel.recovery_err = -EBUSY;
	assert_int_equal(t->ops->start(t, &image, false, &err), 0);
	t->ops->hold(t);
	timer_expires();
	grown.sectors++;
	assert_int_equal(t->ops->release(t, &grown, false, &err), 0);
	assert_int_equal(kernel.calls[UBLK_UPDATE_SIZE], 0);
	timer_expires();
	assert_int_equal(kernel.calls[UBLK_START_RECOVERY], 3);
	assert_int_equal(t->ops->ready(t, &err), -EINPROGRESS);
	assert_int_equal(t->ops->stop(t, true, &err), 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(each_request_is_answered_once_in_its_slot),
		TEST(what_makes_no_sense_is_answered_at_once),
		TEST(a_command_that_was_not_taken_goes_again),
		TEST(what_comes_while_held_waits_for_the_release),
		TEST(a_removal_fails_what_waits_and_waits_for_what_is_served),
		TEST(the_disk_of_a_guest_goes_on_without_its_name),
		TEST(a_take_over_that_fails_removes_nothing),
		TEST(a_device_that_does_not_start_is_removed),
		TEST(a_queue_is_not_set_up_while_nothing_is_answered),
		TEST(the_first_request_may_come_while_the_queue_is_set_up),
		TEST(requests_wait_until_the_queue_can_be_mapped),
		TEST(a_device_that_is_waited_for_is_held_and_released),
		TEST(what_was_left_and_not_taken_goes_on),
		TEST(what_is_left_asks_nobody),
		TEST(what_was_left_and_removed_is_not_taken_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
