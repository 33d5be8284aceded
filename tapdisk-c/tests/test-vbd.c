/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A VBD from the ring to a raw image and back. The driver is played by open()
 * and ioctl() below, as kernel-patches/src/blktap.h says it behaves.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <blktap.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "server.h"
#include "tests/real.h"
#include "transport/blktap.h"
#include "vbd.h"

#define MINOR	 7
#define SECTORS	 128u
#define SQ_OFF	 64u
#define PATIENCE 10000000000u	/* ns */

/* The driver's side. */
static struct {
	int fd;				/* memory that stands for the ring */
	struct blktap_ring *ring;
	size_t bytes;
	struct blktap_setup setup;
	unsigned int entries;		/* of the device there is; 0: none */
	unsigned int interrupts;	/* ENTERs to fail with EINTR */
	int set_error, open_error;
	uint32_t logical_block_size;	/* as the device was made */
	uint32_t flags;			/* as it was made, or is now */
	bool big_sectors;		/* of the image's disk: 4096 bytes */
	bool live;

	struct blktap_sqe waiting[16];
	unsigned int nr_waiting;
	unsigned int answers[16];	/* by tag */
	int result[16];
} driver;

static struct {
	struct server *server;
	struct config cfg;
	struct vbd *vbd;
	char spec[PATH_MAX + 8];
} bed;

static void layout(struct blktap_setup *s)
{
	s->sq_off = SQ_OFF;
	s->cq_off = SQ_OFF + s->entries * (uint32_t)sizeof(struct blktap_sqe);
	s->ring_bytes = 4096 * 8;
	driver.setup = *s;
	driver.bytes = (size_t)s->ring_bytes;
	assert_int_equal(ftruncate(driver.fd, 0), 0);
	assert_int_equal(ftruncate(driver.fd, (off_t)driver.bytes), 0);
	driver.ring = mmap(NULL, driver.bytes, PROT_READ | PROT_WRITE,
			   MAP_SHARED, driver.fd, 0);
	assert_true(driver.ring != MAP_FAILED);
}

static int refuse(int err)
{
	errno = err;
	return -1;
}

static int setup(struct blktap_setup *s)
{
	if (driver.entries && s->entries != driver.entries) {
		s->entries = driver.entries;
		s->max_io_bytes = 64 << 10;
		return refuse(ERANGE);
	}
	assert_true(s->buf_len >= (uint64_t)s->entries * s->max_io_bytes);
	layout(s);
	return 0;
}

static int enter(struct blktap_enter *e)
{
	struct blktap_ring *r = driver.ring;
	uint32_t mask = driver.setup.entries - 1;
	struct blktap_sqe *sq = (void *)((char *)r + driver.setup.sq_off);
	struct blktap_cqe *cq = (void *)((char *)r + driver.setup.cq_off);

	if (!driver.live)
		return refuse(ENODEV);
	if (driver.interrupts) {
		driver.interrupts--;
		return refuse(EINTR);
	}
	for (; r->cq_head != r->cq_tail; r->cq_head++) {
		struct blktap_cqe *c = &cq[r->cq_head & mask];

		driver.answers[c->tag]++;
		driver.result[c->tag] = c->result;
	}
	for (unsigned int i = 0; !(e->flags & BLKTAP_ENTER_NOFETCH) &&
	     i < driver.nr_waiting; i++, e->submitted++)
		sq[r->sq_tail++ & mask] = driver.waiting[i];
	if (!(e->flags & BLKTAP_ENTER_NOFETCH))
		driver.nr_waiting = 0;
	return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
	void *arg;
	va_list ap;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	switch (request) {
	case BLKTAP_IOC_SETUP:
		return setup(arg);
	case BLKTAP_IOC_CREATE_DEVICE:
		if (driver.entries)
			return refuse(EEXIST);
		driver.live = true;
		driver.flags = ((struct blktap_device_params *)arg)->flags;
		driver.logical_block_size =
			((struct blktap_device_params *)arg)->logical_block_size;
		return 0;
	case BLKTAP_IOC_RESUME_DEVICE:
		driver.live = true;
		/* fall through */
	case BLKTAP_IOC_SET_DEVICE:
		if (driver.flags & ~((struct blktap_device_params *)arg)->flags)
			return refuse(EINVAL);
		return driver.set_error ? refuse(driver.set_error) : 0;
	case BLKTAP_IOC_REMOVE_DEVICE:
		driver.live = false;
		return 0;
	case BLKTAP_IOC_ENTER:
		return enter(arg);
	default:
		return (int)syscall(SYS_ioctl, fd, request, arg);
	}
}

/* open64: what open() is with 64-bit offsets. */
int fake_open(const char *path, int flags, ...) __asm__("open64");

int fake_open(const char *path, int flags, ...)
{
	mode_t mode = 0;
	va_list ap;

	va_start(ap, flags);
	if (flags & O_CREAT)
		mode = va_arg(ap, mode_t);
	va_end(ap);
	if (strncmp(path, "/dev/xen/blktap-2/blktap", 24))
		return real_open(path, flags, mode);
	return driver.open_error ? refuse(driver.open_error) : dup(driver.fd);
}

#ifdef STATX_DIOALIGN
int fake_statx(int dir, const char *path, int flags, unsigned int mask,
	       struct statx *st) __asm__("statx");

int fake_statx(int dir, const char *path, int flags, unsigned int mask,
	       struct statx *st)
{
	int rc = (int)syscall(SYS_statx, dir, path, flags, mask, st);

	if (!rc && driver.big_sectors && st->stx_mask & STATX_DIOALIGN)
		st->stx_dio_offset_align = 4096;
	return rc;
}
#endif

ssize_t fake_pread(int fd, void *buf, size_t len, off_t at) __asm__("pread64");

ssize_t fake_pread(int fd, void *buf, size_t len, off_t at)
{
	if (driver.big_sectors && (len % 4096 || at % 4096)) {
		errno = EINVAL;
		return -1;
	}
	return real_pread(fd, buf, len, at);
}

/* The guest's side. */

static void ask(uint16_t tag, uint8_t op, uint64_t sector, uint32_t count)
{
	driver.answers[tag] = 0;
	driver.waiting[driver.nr_waiting++] = (struct blktap_sqe){
		.id = 1000u + tag, .tag = tag, .op = op, .sector = sector,
		.nr_sectors = count,
		.buf_offset = (uint64_t)tag * driver.setup.max_io_bytes,
	};
}

static void step(void)
{
	assert_int_equal(engine_run(server_engine(bed.server), 1), 0);
	vbd_round(bed.vbd);
}

static int answer(uint16_t tag)
{
	uint64_t limit = now_ns() + PATIENCE;

	while (!driver.answers[tag] && now_ns() < limit)
		step();
	if (!driver.answers[tag])
		fail_msg("the request with tag %u is never answered", tag);
	for (int i = 0; i < 10; i++)
		step();
	assert_int_equal(driver.answers[tag], 1);
	return driver.result[tag];
}

static int verb_rc;
static unsigned int verbs_done;

static void verb_done(void *priv, int rc, const struct error *err)
{
	(void)priv;
	(void)err;
	verb_rc = rc;
	verbs_done++;
}

static int verb_wait(void)
{
	uint64_t limit = now_ns() + PATIENCE;

	while (!verbs_done && now_ns() < limit)
		step();
	assert_int_equal(verbs_done, 1);
	verbs_done = 0;
	return verb_rc;
}

static void open_image(void)
{
	struct error err;

	if (vbd_open(bed.vbd, bed.spec, false, &err))
		fail_msg("%s", err.text);
}

static int begin(void **state)
{
	ssize_t n;
	int fd;

	(void)state;
	memset(&driver, 0, sizeof(driver));
	memset(&bed, 0, sizeof(bed));
	driver.fd = memfd_create("ring", MFD_CLOEXEC);
	/* Beside the program: /tmp may be a tmpfs, which has no O_DIRECT on 6.1. */
	strcpy(bed.spec, "aio:");
	n = readlink("/proc/self/exe", bed.spec + 4, PATH_MAX - 32);
	assert_true(n > 0);
	strcpy(bed.spec + 4 + n, ".XXXXXX");
	fd = mkstemp(bed.spec + 4);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, SECTORS * 512), 0);
	close(fd);
	assert_int_equal(config_load(&bed.cfg, "/nonexistent", NULL), 0);
	strcpy(bed.cfg.engine, "posix");
	assert_int_equal(server_open(&bed.server, &bed.cfg, NULL), 0);
	return vbd_attach(&bed.vbd, bed.server, MINOR, NULL);
}

static int end(void **state)
{
	(void)state;
	if (vbd_detach(bed.vbd, NULL)) {
		vbd_close(bed.vbd, true, 0, verb_done, NULL);
		assert_int_equal(verb_wait(), 0);
		assert_int_equal(vbd_detach(bed.vbd, NULL), 0);
	}
	server_close(bed.server);
	config_dispose(&bed.cfg);
	unlink(bed.spec + 4);
	if (driver.ring)
		munmap(driver.ring, driver.bytes);
	close(driver.fd);
	return 0;
}

static void a_request_is_answered_once(void **state)
{
	(void)state;
	open_image();
	ask(0, BLKTAP_OP_WRITE, 0, 8);
	ask(1, BLKTAP_OP_READ, SECTORS - 1, 1);
	ask(2, BLKTAP_OP_FLUSH, 0, 0);
	ask(3, BLKTAP_OP_READ, SECTORS - 1, 2);
	ask(4, BLKTAP_OP_DISCARD, 0, 8);
	ask(5, BLKTAP_OP_WRITE_ZEROES, 8, 8);
	ask(6, 99, 0, 8);
	ask(7, BLKTAP_OP_WRITE, 0, 8);
	driver.waiting[7].flags = BLKTAP_RQ_FUA;
	assert_int_equal(answer(0), 0);
	assert_int_equal(answer(1), 0);
	assert_int_equal(answer(2), 0);
	assert_int_equal(answer(3), -EIO);
	assert_int_equal(answer(4), 0);
	assert_int_equal(answer(5), 0);
	assert_int_equal(answer(6), -EOPNOTSUPP);
	assert_int_equal(answer(7), 0);
}

static void data_out_of_the_buffer_is_an_error_and_no_silence(void **state)
{
	(void)state;
	open_image();
	ask(0, BLKTAP_OP_READ, 0, 8);
	driver.waiting[0].buf_offset = driver.setup.buf_len - 512;
	assert_int_equal(answer(0), -EIO);
}

static void an_interrupted_enter_is_repeated(void **state)
{
	(void)state;
	open_image();
	driver.interrupts = 3;
	ask(0, BLKTAP_OP_READ, 0, 8);
	assert_int_equal(answer(0), 0);
	driver.interrupts = 1;
	vbd_pause(bed.vbd, 0, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
}

static void the_limits_of_a_device_taken_over_are_kept(void **state)
{
	(void)state;
	driver.entries = 16;
	open_image();
	assert_int_equal(driver.setup.entries, 16);
	assert_int_equal(driver.setup.max_io_bytes, 64 << 10);
	ask(15, BLKTAP_OP_WRITE, 0, SECTORS);
	assert_int_equal(answer(15), 0);
}

static void a_device_with_too_many_requests_is_refused(void **state)
{
	struct error err;

	(void)state;
	driver.entries = 2 * BLKTAP_ENTRIES;
	assert_int_equal(vbd_open(bed.vbd, bed.spec, false, &err), -ERANGE);
	assert_non_null(strstr(err.text, "128 requests"));
}

static void a_watch_that_cannot_be_had_fails_the_open(void **state)
{
	static struct io_watch watches[ENGINE_MAX_WATCHES];
	struct engine *engine = server_engine(bed.server);
	struct error err;

	(void)state;
	for (unsigned int i = 0; i < ENGINE_MAX_WATCHES; i++) {
		watches[i].fd = driver.fd;
		assert_int_equal(engine_watch(engine, &watches[i]), 0);
	}
	assert_int_equal(vbd_open(bed.vbd, bed.spec, false, &err), -EMFILE);
	assert_false(driver.live);
	for (unsigned int i = 0; i < ENGINE_MAX_WATCHES; i++)
		engine_unwatch(engine, &watches[i]);
	open_image();
	ask(0, BLKTAP_OP_READ, 0, 8);
	assert_int_equal(answer(0), 0);
}

static void verbs_exclude_each_other_while_one_drains(void **state)
{
	struct error err;

	(void)state;
	open_image();
	for (uint16_t tag = 0; tag < 8; tag++)
		ask(tag, BLKTAP_OP_WRITE, tag * 8, 8);
	vbd_round(bed.vbd);		/* in flight: the engine has not run */
	vbd_pause(bed.vbd, 0, verb_done, NULL);
	vbd_round(bed.vbd);
	assert_int_equal(verbs_done, 0);
	vbd_close(bed.vbd, true, 0, verb_done, NULL);
	assert_int_equal(verbs_done, 1);
	assert_int_equal(verb_rc, -EBUSY);
	verbs_done = 0;
	assert_int_equal(vbd_unpause(bed.vbd, bed.spec, &err), -EINVAL);
	assert_int_equal(vbd_detach(bed.vbd, &err), -EBUSY);
	assert_int_equal(verb_wait(), 0);
	for (uint16_t tag = 0; tag < 8; tag++) {
		assert_int_equal(driver.answers[tag], 1);
		assert_int_equal(driver.result[tag], 0);
	}
}

static void an_unpause_calls_a_pause_off(void **state)
{
	struct error err;

	(void)state;
	open_image();
	verbs_done = 0;
	for (uint16_t tag = 0; tag < 8; tag++)
		ask(tag, BLKTAP_OP_WRITE, tag * 8, 8);
	vbd_round(bed.vbd);
	vbd_pause(bed.vbd, 0, verb_done, NULL);
	vbd_round(bed.vbd);
	assert_int_equal(verbs_done, 0);
	assert_int_equal(vbd_unpause(bed.vbd, NULL, &err), 0);
	assert_int_equal(verb_wait(), -ECANCELED);
	for (uint16_t tag = 0; tag < 8; tag++)
		assert_int_equal(answer(tag), 0);
	ask(9, BLKTAP_OP_READ, 0, 8);
	assert_int_equal(answer(9), 0);
}

static void a_pause_that_cannot_be_ended_goes_on(void **state)
{
	struct error err;

	(void)state;
	open_image();
	vbd_pause(bed.vbd, 0, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	ask(0, BLKTAP_OP_READ, 0, 8);
	assert_int_equal(vbd_unpause(bed.vbd, "aio:/nonexistent", &err),
			 -ENOENT);
	driver.set_error = EINVAL;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, &err), -EINVAL);
	for (int i = 0; i < 10; i++)
		step();
	assert_int_equal(driver.nr_waiting, 1);
	driver.set_error = 0;
	assert_int_equal(vbd_unpause(bed.vbd, NULL, &err), 0);
	assert_int_equal(answer(0), 0);
}

/* Another process had the ring for a moment. */
static void a_close_that_loses_the_ring_can_be_opened_again(void **state)
{
	struct error err;

	(void)state;
	open_image();
	driver.open_error = EBUSY;
	vbd_close(bed.vbd, false, 0, verb_done, NULL);
	assert_int_equal(verb_wait(), -EBUSY);
	assert_int_equal(vbd_open(bed.vbd, bed.spec, false, &err), -EBUSY);
	driver.open_error = 0;
	open_image();
	ask(0, BLKTAP_OP_READ, 0, 8);
	assert_int_equal(answer(0), 0);
}

static void a_file_on_big_sectors_has_them_too(void **state)
{
	(void)state;
	open_image();
	assert_int_equal(driver.logical_block_size, 512);
	vbd_close(bed.vbd, false, 0, verb_done, NULL);
	assert_int_equal(verb_wait(), 0);
	driver.big_sectors = true;
	open_image();
	assert_int_equal(driver.logical_block_size, 4096);
}

static int raw_flags = -1;

static void note_flags(struct image_request *req, int err)
{
	assert_int_equal(err, 0);
	raw_flags = fcntl(req->io.fd, F_GETFL);
}

/* With O_NONBLOCK io_uring may answer EAGAIN for ever, as over NFS. */
static void a_raw_image_is_open_for_waiting(void **state)
{
	struct image_open_args args = {
		.engine = server_engine(bed.server), .config = &bed.cfg,
		.path = bed.spec + 4, .max_requests = 1,
	};
	struct image_request req = { .op = IMAGE_READ, .count = 8,
				     .done = note_flags };
	struct image *image;

	(void)state;
	req.buf = aligned_alloc(IMAGE_ALIGN, IMAGE_ALIGN);
	assert_int_equal(raw_driver.open(&image, &args, NULL), 0);
	raw_driver.submit(image, &req);
	while (raw_flags < 0)
		assert_int_equal(engine_run(args.engine, -1), 0);
	assert_int_equal(raw_driver.close(image, NULL), 0);
	assert_false(raw_flags & O_NONBLOCK);
	assert_true(raw_flags & O_DIRECT);
	free(req.buf);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_request_is_answered_once),
		TEST(data_out_of_the_buffer_is_an_error_and_no_silence),
		TEST(an_interrupted_enter_is_repeated),
		TEST(the_limits_of_a_device_taken_over_are_kept),
		TEST(a_device_with_too_many_requests_is_refused),
		TEST(a_watch_that_cannot_be_had_fails_the_open),
		TEST(verbs_exclude_each_other_while_one_drains),
		TEST(an_unpause_calls_a_pause_off),
		TEST(a_pause_that_cannot_be_ended_goes_on),
		TEST(a_close_that_loses_the_ring_can_be_opened_again),
		TEST(a_file_on_big_sectors_has_them_too),
		TEST(a_raw_image_is_open_for_waiting),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
