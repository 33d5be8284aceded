/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Added files and registered buffers, holes and zeros, and files in memory: on both
 * engines, with and without what only saves time.
 */
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "io/engine-internal.h"
#include "tests/engine-bed.h"

static int run_buffer(struct engine_fixture *f, enum io_op op, int fd, uint64_t offset,
		      void *base, size_t len, uint16_t buffer)
{
	struct one one = {
		.req = { .op = op, .fd = fd, .offset = offset, .len = len,
			 .buffer = buffer, .iov = &one.iov, .iovcnt = 1,
			 .done = one_done },
		.iov = { base, len },
	};

	return run_alone(f->engine, &one);
}

/* Lengths are 64-bit, wherever a size_t may be 32. */
static void a_hole_may_have_4_gib(void **state)
{
	struct engine_fixture *f = *state;
	uint8_t data[PAGE];
	struct one one = {
		.req = { .op = IO_PUNCH, .fd = f->fd, .len = 4ull << 30,
			 .done = one_done },
	};

	memset(data, 'x', sizeof(data));
	assert_int_equal(run_one(f->engine, IO_WRITE, f->fd, 0, data, PAGE), 0);
	assert_int_equal(run_alone(f->engine, &one), 0);
	assert_int_equal(run_one(f->engine, IO_READ, f->fd, 0, data, PAGE), 0);
	assert_int_equal(data[0] | data[PAGE - 1], 0);
}

static void holes_and_zeros_read_as_zeros_and_keep_the_size(void **state)
{
	struct engine_fixture *f = *state;
	uint8_t data[8 * PAGE], back[8 * PAGE];
	struct stat before, after;
	int rc;

	memset(data, 'x', sizeof(data));
	assert_int_equal(run_one(f->engine, IO_WRITE, f->fd, 0, data, sizeof(data)), 0);
	assert_int_equal(run_one(f->engine, IO_SYNC, f->fd, 0, NULL, 0), 0);
	assert_int_equal(fstat(f->fd, &before), 0);
	assert_int_equal(run_one(f->engine, IO_PUNCH, f->fd, PAGE, NULL, 2 * PAGE), 0);
	memset(data + PAGE, 0, 2 * PAGE);
	assert_int_equal(run_one(f->engine, IO_PUNCH, f->fd, 7 * PAGE, NULL, 100 * PAGE), 0);
	memset(data + 7 * PAGE, 0, PAGE);
	assert_int_equal(fstat(f->fd, &after), 0);
	assert_int_equal(after.st_size, before.st_size);
	assert_true(after.st_blocks < before.st_blocks);
	rc = run_one(f->engine, IO_ZERO, f->fd, 4 * PAGE, NULL, PAGE);
	/* Not every file system has it, but each says so. */
	if (!rc)
		memset(data + 4 * PAGE, 0, PAGE);
	else
		assert_int_equal(rc, -EOPNOTSUPP);
	assert_int_equal(run_one(f->engine, IO_READ, f->fd, 0, back, sizeof(back)), 0);
	assert_memory_equal(back, data, sizeof(data));

	assert_int_equal(run_one(f->engine, IO_PUNCH, f->fd, 0, NULL, 0), 0);
	assert_int_equal(run_one(f->engine, IO_PUNCH, f->fd, INT64_MAX, NULL, 1), -EINVAL);
	assert_int_equal(run_one(f->engine, IO_PUNCH, -1, 0, NULL, PAGE), -EBADF);
}

/*
 * Closing an image releases its lock: no other reference may be left, but that of
 * a kernel thread which served the sync, and which goes as the engine runs on.
 */
static void a_removed_file_is_the_callers_alone(void **state)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };
	struct engine_fixture *f = *state;
	char path[64], buf[16] = "hello";
	unsigned int tries;
	int other, fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", f->fd);
	other = open(path, O_RDWR | O_CLOEXEC);
	assert_true(other >= 0);
	for (unsigned int round = 0; round < 50; round++) {
		fd = open(path, O_RDWR | O_CLOEXEC);
		assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
		engine_file_add(f->engine, fd, 0);
		assert_int_equal(run_one(f->engine, IO_WRITE, fd, 0, buf, sizeof(buf)), 0);
		assert_int_equal(run_one(f->engine, IO_SYNC, fd, 0, NULL, 0), 0);
		assert_int_equal(run_one(f->engine, IO_READ, fd, 0, buf, sizeof(buf)), 0);
		assert_int_equal(fcntl(other, F_OFD_SETLK, &lock), -1);
		engine_file_remove(f->engine, fd);
		close(fd);
		for (tries = 0; fcntl(other, F_OFD_SETLK, &lock); tries++) {
			assert_true(tries < 1000);
			assert_int_equal(engine_run(f->engine, 0), 0);
			usleep(100);
		}
		lock.l_type = F_UNLCK;
		assert_int_equal(fcntl(other, F_OFD_SETLK, &lock), 0);
		lock.l_type = F_WRLCK;
	}
	close(other);
}

/* The same while another file's request does not come back. */
static void a_request_that_hangs_holds_no_removed_file(void **state)
{
	struct engine_fixture *f = *state;
	struct one hung = { .iov = { NULL, 1 } };
	char byte = 'x', got;
	int p[2], q[2];

	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	assert_int_equal(pipe2(q, O_CLOEXEC), 0);
	engine_file_add(f->engine, p[0], 0);
	engine_file_add(f->engine, q[0], 0);
	hung.iov.iov_base = &got;
	hung.req = (struct io_req){ .op = IO_READ, .fd = p[0],
				    .iov = &hung.iov, .iovcnt = 1,
				    .done = one_done };
	/* A pipe has no offsets: only io_uring reads it, and waits. */
	if (!strcmp(engine_name(f->engine), "uring"))
		engine_queue(f->engine, &hung.req);
	assert_int_equal(engine_run(f->engine, 0), 0);
	engine_file_remove(f->engine, q[0]);
	close(q[0]);
	signal(SIGPIPE, SIG_IGN);
	assert_int_equal(write(q[1], &byte, 1), -1);
	assert_int_equal(errno, EPIPE);
	assert_int_equal(write(p[1], &byte, 1), 1);
	run_until_idle(f->engine);
	engine_file_remove(f->engine, p[0]);
	close(p[0]);
	close(p[1]);
	close(q[1]);
}

static void a_descriptors_next_file_is_not_taken_for_its_last(void **state)
{
	struct engine_fixture *f = *state;
	int fd = scratch_file(0), other = scratch_file(0), again;
	char buf[8];

	assert_int_equal(pwrite(other, "other", 6, 0), 6);
	engine_file_add(f->engine, fd, 0);
	assert_int_equal(run_one(f->engine, IO_WRITE, fd, 0, (char[]){ "first" }, 6), 0);
	engine_file_remove(f->engine, fd);
	assert_int_equal(dup3(other, fd, O_CLOEXEC), fd);
	assert_int_equal(run_one(f->engine, IO_READ, fd, 0, buf, 6), 0);
	assert_string_equal(buf, "other");
	again = fd;
	engine_file_add(f->engine, again, 0);
	assert_int_equal(run_one(f->engine, IO_READ, again, 0, buf, 6), 0);
	assert_string_equal(buf, "other");
	engine_file_remove(f->engine, again);
	engine_file_remove(f->engine, again);
	engine_file_remove(f->engine, -1);
	close(fd);
	close(other);
}

static void registered_memory_is_read_into_and_written_from(void **state)
{
	struct engine_fixture *f = *state;
	int fd = scratch_file(O_DIRECT);
	char *base = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint16_t buffer = engine_buffer_add(f->engine, base, 64 * PAGE);

	engine_file_add(f->engine, fd, 0);
	memset(base, 'a', 4 * PAGE);
	memset(base + 4 * PAGE, 'b', 4 * PAGE);
	assert_int_equal(run_buffer(f, IO_WRITE, fd, 0, base, 8 * PAGE, buffer), 0);
	assert_int_equal(run_buffer(f, IO_READ, fd, 3 * PAGE, base + 60 * PAGE,
				    2 * PAGE, buffer), 0);
	assert_int_equal(base[60 * PAGE], 'a');
	assert_int_equal(base[61 * PAGE - 1], 'a');
	assert_int_equal(base[61 * PAGE], 'b');
	/* Beyond the end of the file: resumed, and the end is seen. */
	assert_int_equal(run_buffer(f, IO_READ, fd, 6 * PAGE, base, 8 * PAGE,
				    buffer), -ENODATA);
	engine_buffer_remove(f->engine, buffer);
	engine_file_remove(f->engine, fd);
	munmap(base, 64 * PAGE);
	close(fd);
}

static void buffer_numbers_are_used_again(void **state)
{
	struct engine_fixture *f = *state;
	char *base = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_int_equal(engine_buffer_add(f->engine, NULL, 0), 0);
	for (unsigned int i = 0; i < 2000; i++)
		engine_buffer_remove(f->engine, engine_buffer_add(f->engine,
								  base, PAGE));
	/* More than there is room for: 0, and no harm. */
	for (unsigned int i = 0; i < 600; i++)
		engine_buffer_add(f->engine, base, PAGE);
	assert_int_equal(engine_buffer_add(f->engine, base, PAGE), 0);
	assert_int_equal(run_one(f->engine, IO_WRITE, f->fd, 0, base, PAGE), 0);
	munmap(base, PAGE);
}

static void files_beyond_the_table_are_served_too(void **state)
{
	struct engine_fixture *f = *state;
	struct rlimit limit;
	int fd, high;
	char c = 'x';

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	high = (int)limit.rlim_cur - 1;
	fd = dup3(f->fd, high, O_CLOEXEC);
	assert_int_equal(fd, high);
	engine_file_add(f->engine, fd, 0);
	assert_int_equal(run_one(f->engine, IO_WRITE, fd, 0, &c, 1), 0);
	engine_file_remove(f->engine, fd);
	close(fd);
}

struct chain {
	struct one one;
	struct engine_fixture *f;
	unsigned int left;
};

static void next_of_chain(struct io_req *req, int err)
{
	struct chain *c = container_of(container_of(req, struct one, req),
				       struct chain, one);

	assert_int_equal(err, 0);
	if (c->left--)
		engine_queue(c->f->engine, req);
}

static void saw(struct io_watch *w, short revents)
{
	assert_true(revents);
	*(bool *)w->priv = true;
}

/* What is done at once on a tmpfs must not keep the loop from all else. */
static void files_in_memory_do_the_same_and_stall_nothing(void **state)
{
	struct engine_fixture *f = *state;
	int fd = memfd_create("test", MFD_CLOEXEC), p[2];
	size_t big = 1 << 20;
	char *buf = malloc(big), *back = malloc(big);
	struct chain c = { .f = f, .left = 100000 };
	struct io_watch w = { .events = POLLIN, .ready = saw };
	bool seen = false;

	engine_file_add(f->engine, fd, 0);
	memset(buf, 'm', big);
	assert_int_equal(run_one(f->engine, IO_WRITE, fd, 100, buf, big), 0);
	assert_int_equal(run_one(f->engine, IO_WRITE, fd, 0, buf, 100), 0);
	assert_int_equal(run_one(f->engine, IO_READ, fd, 100, back, 4096), 0);
	assert_memory_equal(buf, back, 4096);
	assert_int_equal(run_one(f->engine, IO_READ, fd, 100, back, big), 0);
	assert_memory_equal(buf, back, big);
	assert_int_equal(run_one(f->engine, IO_READ, fd, big, back, 200), -ENODATA);
	assert_int_equal(run_one(f->engine, IO_PUNCH, fd, 0, NULL, 50), 0);
	assert_int_equal(run_one(f->engine, IO_SYNC, fd, 0, NULL, 0), 0);
	assert_int_equal(run_one(f->engine, IO_READ, fd, 0, back, 100), 0);
	assert_int_equal(back[49], 0);
	assert_int_equal(back[50], 'm');

	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	w.fd = p[0];
	w.priv = &seen;
	assert_int_equal(engine_watch(f->engine, &w), 0);
	c.one.iov = (struct iovec){ back, 100 };
	c.one.req = (struct io_req){ .op = IO_READ, .fd = fd,
				     .iov = &c.one.iov, .iovcnt = 1,
				     .done = next_of_chain };
	engine_queue(f->engine, &c.one.req);
	assert_int_equal(engine_run(f->engine, -1), 0);
	assert_int_equal(write(p[1], "x", 1), 1);
	for (unsigned int i = 0; i < 100 && !seen; i++)
		assert_int_equal(engine_run(f->engine, -1), 0);
	assert_true(seen);
	c.left = 0;
	run_until_idle(f->engine);
	engine_unwatch(f->engine, &w);
	engine_file_remove(f->engine, fd);
	free(back);
	free(buf);
	close(p[0]);
	close(p[1]);
	close(fd);
}

/* A disk's I/O waits, and its pages are not to be lent, though /dev is a tmpfs. */
static void a_device_is_not_in_memory_though_its_name_is(void **state)
{
	struct engine_fixture *f = *state;
	int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	struct statfs fs;

	assert_int_equal(fstatfs(fd, &fs), 0);
	assert_int_equal((uint32_t)fs.f_type, TMPFS_MAGIC);
	engine_file_add(f->engine, fd, 0);
	assert_int_equal(engine_file(f->engine, fd), 0);
	engine_file_remove(f->engine, fd);
	close(fd);
}

/*
 * A transfer that is done at once may end short, at the end of the file or
 * where space ends, and a merged one in parts: nothing else would end the wait.
 */
static void what_ends_short_in_memory_goes_on_at_once(void **state)
{
	struct engine_fixture *f = *state;
	int fd = memfd_create("test", MFD_CLOEXEC);
	static uint8_t back[4 * PAGE], data[PAGE + 100];
	struct io_stream stream = { 0 };
	struct one one[2];

	memset(data, 'm', sizeof(data));
	assert_int_equal(write(fd, data, sizeof(data)), sizeof(data));
	engine_file_add(f->engine, fd, 0);
	for (unsigned int nr = 1; nr <= 2; nr++) {
		for (unsigned int i = 0; i < nr; i++) {
			one[i] = (struct one){
				.req = { .op = IO_READ, .fd = fd,
					 .offset = i * PAGE,
					 .stream = &stream,
					 .iov = &one[i].iov, .iovcnt = 1,
					 .done = one_done },
				.iov = { back + i * 2 * PAGE,
					 nr == 1 ? 2 * PAGE : PAGE },
			};
			engine_queue(f->engine, &one[i].req);
		}
		/* One that waits for nothing returns with nothing done. */
		while (engine_inflight(f->engine)) {
			unsigned int before = engine_inflight(f->engine);

			assert_int_equal(engine_run(f->engine, 2000), 0);
			assert_true(engine_inflight(f->engine) < before);
		}
		assert_int_equal(one[0].err, nr == 1 ? -ENODATA : 0);
		assert_int_equal(one[nr - 1].err, -ENODATA);
		assert_memory_equal(back, data, PAGE);
		memset(back, 0, sizeof(back));
	}
	engine_file_remove(f->engine, fd);
	close(fd);
}

/* Its 16 bytes and its number reach the file's driver; /dev/null takes all, and most files none. */
static void a_command_is_answered_by_the_driver_of_its_file(void **state)
{
	struct engine_fixture *f = *state;
	bool uring = !strcmp(engine_name(f->engine), "uring");
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	uint16_t creds = engine_creds_add(f->engine);
	uint8_t bytes[16] = { 1 };
	struct one one = {
		.req = { .op = IO_COMMAND, .fd = fd, .offset = 0xc0107521,
			 .buffer = creds, .iov = &one.iov, .iovcnt = 1,
			 .done = one_done },
		.iov = { bytes, sizeof(bytes) },
	};

	assert_true(fd >= 0);
	assert_int_equal(!creds, !uring);
	assert_int_equal(run_alone(f->engine, &one), uring ? 0 : -EOPNOTSUPP);
	one.calls = 0;
	one.req.fd = f->fd;
	assert_int_equal(run_alone(f->engine, &one), -EOPNOTSUPP);
	engine_creds_remove(f->engine, creds);
	one.calls = 0;
	one.req.fd = fd;
	assert_int_equal(run_alone(f->engine, &one), uring ? -EINVAL : -EOPNOTSUPP);
	close(fd);
}

#define T(name) BOTH(name, engine_setup, engine_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(a_hole_may_have_4_gib),
		T(holes_and_zeros_read_as_zeros_and_keep_the_size),
		T(a_removed_file_is_the_callers_alone),
		T(a_request_that_hangs_holds_no_removed_file),
		T(a_descriptors_next_file_is_not_taken_for_its_last),
		T(registered_memory_is_read_into_and_written_from),
		T(buffer_numbers_are_used_again),
		T(files_beyond_the_table_are_served_too),
		T(files_in_memory_do_the_same_and_stall_nothing),
		T(a_device_is_not_in_memory_though_its_name_is),
		T(what_ends_short_in_memory_goes_on_at_once),
		T(a_command_is_answered_by_the_driver_of_its_file),
	};

	return RUN_ALL(tests);
}
