/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * What becomes of a ublk device that there is when a disk is opened, and of one
 * whose image has grown. The control device is played here; the kernel's part of it
 * is tests/vm/test_ublk.py's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "tests/real.h"
#include "transport/ublk-internal.h"

#define MINOR	7
#define SECTORS	1000u

/* The clock */

static uint64_t passed_ns;

int clock_gettime(clockid_t clock, struct timespec *ts)
{
	int rc = real_clock_gettime(clock, ts);
	uint64_t ns = (uint64_t)ts->tv_nsec + passed_ns;

	ts->tv_sec += (time_t)(ns / 1000000000u);
	ts->tv_nsec = (long)(ns % 1000000000u);
	return rc;
}

/* The control device */

static struct {
	int info_err;
	struct ublk_info info;
	struct ublk_params params;
	int recovery_err, resize_err;
	unsigned int calls[32];		/* by number */
	uint64_t resized;
	bool open;
} control;

static struct {
	struct engine *engine;
	struct transport *transport;
} bed;

int ublk_device_open(struct ublk_device *device, int minor, struct error *err)
{
	(void)err;
	*device = (struct ublk_device){ .minor = minor, .control = -1, .file = -1 };
	device->ring.ring_fd = eventfd(0, EFD_CLOEXEC);
	control.open = true;
	return 0;
}

void ublk_device_close(struct ublk_device *device)
{
	if (control.open)
		close(device->ring.ring_fd);
	control.open = false;
}

int ublk_device_call(struct ublk_device *device, uint32_t op, void *addr,
		     uint16_t len, uint64_t data)
{
	assert_int_equal(device->minor, MINOR);
	assert_int_equal(_IOC_TYPE(op), 'u');
	assert_int_equal(_IOC_SIZE(op), 32);
	control.calls[_IOC_NR(op)]++;
	switch (_IOC_NR(op)) {
	case UBLK_GET_PARAMS:
		assert_int_equal(len, sizeof(control.params));
		memcpy(addr, &control.params, len);
		return 0;
	case UBLK_START_RECOVERY:
		return control.recovery_err;
	case UBLK_UPDATE_SIZE:
		control.resized = data;
		return control.resize_err;
	case UBLK_ADD:
		return -ENOSPC;
	case UBLK_DELETE_ASYNC:
		return 0;
	default:
		fail_msg("command %u", (unsigned int)_IOC_NR(op));
		return 0;
	}
}

int ublk_device_begin(struct ublk_device *device, uint32_t op, uint64_t data)
{
	(void)device;
	(void)data;
	fail_msg("command %u", (unsigned int)_IOC_NR(op));
	return 0;
}

int ublk_device_begin_write(struct ublk_device *device, const char *path,
			    const char *text)
{
	(void)device;
	(void)text;
	fail_msg("%s", path);
	return 0;
}

bool ublk_device_ended(struct ublk_device *device, int *result)
{
	(void)device;
	(void)result;
	return false;
}

int ublk_device_info(struct ublk_device *device, struct ublk_info *info,
		     struct error *err)
{
	(void)device;
	if (control.info_err)
		return error_set(err, control.info_err, "minor %d: the info",
				 MINOR);
	*info = control.info;
	return 0;
}

/* The bed */

static const struct image_info image = {
	.sectors = SECTORS, .sector_size = 512, .depth = 1,
};

static int begin(void **priv)
{
	struct ublk *ublk;

	(void)priv;
	memset(&control, 0, sizeof(control));
	control.info = (struct ublk_info){
		.nr_queues = 1, .depth = UBLK_ENTRIES, .state = UBLK_S_QUIESCED,
		.device = MINOR, .server_flags = UBLK_TAPDISK,
	};
	control.params = ublk_params_of(&image, false);
	assert_int_equal(engine_open(&bed.engine, "posix", 8, NULL), 0);
	ublk = calloc(1, sizeof(*ublk));
	ublk->engine = bed.engine;
	ublk->minor = MINOR;
	ublk->queue = -1;
	list_init(&ublk->plug.link);
	list_init(&ublk->waiting);
	ublk_life_init(ublk);
	bed.transport = &ublk->transport;
	return 0;
}

static int end(void **priv)
{
	struct ublk *ublk = ublk_of(bed.transport);

	(void)priv;
	assert_int_equal(ublk_reset(bed.transport, NULL), 0);
	assert_false(control.open);
	free(ublk);
	engine_close(bed.engine);
	return 0;
}

static void refused(int rc, const char *says)
{
	struct error err;

	assert_int_equal(ublk_start(bed.transport, &image, false, &err), rc);
	if (!strstr(err.text, says))
		fail_msg("%s", err.text);
	assert_false(control.open);
	/* With the requests that it holds it stays as it is. */
	assert_int_equal(control.calls[UBLK_START_RECOVERY], 0);
	assert_int_equal(control.calls[UBLK_DELETE_ASYNC], 0);
}

static void what_cannot_be_served_is_not_taken_over(void **priv)
{
	(void)priv;
	control.info_err = -EEXIST;
	refused(-EEXIST, "the info");
	control.info_err = 0;
	control.info.depth = UBLK_ENTRIES + 1;
	refused(-ERANGE, "1 queues of 65 requests");
	control.info.depth = 0;
	refused(-ERANGE, "1 queues of 0 requests");
	control.info.depth = UBLK_ENTRIES;
	control.info.nr_queues = 2;
	refused(-ERANGE, "2 queues");
	control.info.nr_queues = 1;
	control.params.basic.sectors = SECTORS + 1;
	refused(-EINVAL, "can't shrink");
}

static int ready_after(uint64_t ns, struct error *err)
{
	passed_ns += ns;
	for (int i = 0; i < 3; i++)
		assert_int_equal(engine_run(bed.engine, 0), 0);
	return ublk_ready(bed.transport, err);
}

static void a_device_that_the_dead_still_have_is_waited_for(void **priv)
{
	struct error err;

	(void)priv;
	control.recovery_err = -EBUSY;
	assert_int_equal(ublk_start(bed.transport, &image, false, &err), 0);
	for (int i = 0; i < 10; i++)
		assert_int_equal(ready_after(1000000000u, &err), -EINPROGRESS);
	assert_true(control.calls[UBLK_START_RECOVERY] >= 10);
	assert_int_equal(ready_after(20000000000u, &err), -EBUSY);
	assert_non_null(strstr(err.text, "not yet let go"));
	/* It holds somebody's requests: a close of this disk does not remove it. */
	assert_int_equal(ublk_stop(bed.transport, true, &err), 0);
	assert_int_equal(control.calls[UBLK_STOP], 0);
	assert_int_equal(ublk_reset(bed.transport, &err), 0);
	assert_int_equal(control.calls[UBLK_DELETE_ASYNC], 0);
}

/* Its guest waits, and nobody else would ever look again. */
static void a_guests_device_is_waited_for_until_it_can_be_had(void **priv)
{
	struct error err;

	(void)priv;
	bed.transport->adopted = true;
	control.recovery_err = -EBUSY;
	assert_int_equal(ublk_start(bed.transport, &image, false, &err), 0);
	for (int i = 0; i < 10; i++)
		assert_int_equal(ready_after(15000000000u, &err), -EINPROGRESS);
	control.recovery_err = -ENOENT;
	assert_int_equal(ready_after(1000000000u, &err), -ENOENT);
}

/* It has nobody's requests, and is in the way. */
static void a_device_that_was_never_started_is_removed(void **priv)
{
	struct error err;

	(void)priv;
	control.info.state = UBLK_S_DEAD;
	assert_int_equal(ublk_start(bed.transport, &image, false, &err), 0);
	assert_int_equal(control.calls[UBLK_DELETE_ASYNC], 1);
	control.info_err = -ENODEV;
	assert_int_equal(ready_after(100000000u, &err), -ENOSPC);
	assert_int_equal(control.calls[UBLK_ADD], 1);
	assert_non_null(strstr(err.text, "No space left"));
}

static void a_device_grows_where_the_kernel_can(void **priv)
{
	struct ublk *ublk = ublk_of(bed.transport);
	struct image_info info = image;
	struct error err;

	(void)priv;
	ublk->sectors = SECTORS;
	ublk->features = UBLK_F_USER_RECOVERY | UBLK_F_UPDATE_SIZE;
	assert_int_equal(ublk_grow(ublk, &info, &err), 0);
	assert_int_equal(control.calls[UBLK_UPDATE_SIZE], 0);
	info.sectors = 2 * SECTORS;
	control.resize_err = -EINVAL;
	ublk->device.minor = MINOR;
	assert_int_equal(ublk_grow(ublk, &info, &err), -EINVAL);
	control.resize_err = 0;
	assert_int_equal(ublk_grow(ublk, &info, &err), 0);
	assert_int_equal(control.resized, 2 * SECTORS);
	assert_int_equal(control.calls[UBLK_UPDATE_SIZE], 2);
	assert_int_equal(ublk_grow(ublk, &info, &err), 0);
	assert_int_equal(control.calls[UBLK_UPDATE_SIZE], 2);

	ublk->features = UBLK_F_USER_RECOVERY;
	info.sectors++;
	assert_int_equal(ublk_grow(ublk, &info, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "has 1024512 bytes, the device 1024000"));
	assert_int_equal(control.calls[UBLK_UPDATE_SIZE], 2);

	/* Nobody is there to give it its old size back. */
	bed.transport->unasked = true;
	assert_int_equal(ublk_grow(ublk, &info, &err), 0);
	bed.transport->unasked = false;
	assert_int_equal(ublk_grow(ublk, &info, &err), 0);
	info.sectors++;
	assert_int_equal(ublk_grow(ublk, &info, &err), -EOPNOTSUPP);
	assert_int_equal(control.calls[UBLK_UPDATE_SIZE], 2);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(what_cannot_be_served_is_not_taken_over),
		TEST(a_device_that_the_dead_still_have_is_waited_for),
		TEST(a_guests_device_is_waited_for_until_it_can_be_had),
		TEST(a_device_that_was_never_started_is_removed),
		TEST(a_device_grows_where_the_kernel_can),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
