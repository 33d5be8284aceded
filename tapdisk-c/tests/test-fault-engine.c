/* SPDX-License-Identifier: LGPL-2.1-only */
/* What the engines for the tests do: io/fault.c by its rules, io/record.c in its log. */
#include <sys/stat.h>

#include "common/clock.h"
#include "tests/engine-bed.h"

#define MS	1000000u

struct fixture {
	const char *inner;
	struct engine *engine;
	char dir[PATH_MAX];
	int fd;				/* "file", 64 KiB of 'a' */
};

struct request {
	struct io_req io;
	struct iovec iov[2];
	char buf[8192];
	int err;
	unsigned int done;
};

static void done(struct io_req *io, int err)
{
	struct request *req = container_of(io, struct request, io);

	req->err = err;
	req->done++;
}

static void path_in(const struct fixture *f, char *path, const char *name)
{
	assert_true(snprintf(path, PATH_MAX, "%s/%s", f->dir, name) < PATH_MAX);
}

/* In one step, as tests do it while tapdisk runs; NULL removes them. */
static void rules(const struct fixture *f, const char *text)
{
	char path[PATH_MAX], new[PATH_MAX];
	FILE *file;

	path_in(f, path, "rules");
	path_in(f, new, "rules.new");
	if (!text) {
		unlink(path);
		return;
	}
	file = fopen(new, "w");
	assert_non_null(file);
	assert_true(fputs(text, file) >= 0);
	assert_int_equal(fclose(file), 0);
	assert_int_equal(rename(new, path), 0);
}

static void open_engine(struct fixture *f, const char *prefix, const char *file)
{
	char name[2 * PATH_MAX];

	snprintf(name, sizeof(name), "%s:%s/%s:%s", prefix, f->dir, file, f->inner);
	f->engine = open_or_fail(name, DEPTH);
}

/* *state is the inner engine's name at first. */
static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	char path[PATH_MAX], data[65536];
	ssize_t n;

	f->inner = *state;
	n = readlink("/proc/self/exe", f->dir, sizeof(f->dir) - 16);
	assert_true(n > 0);
	strcpy(f->dir + n, ".XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	path_in(f, path, "file");
	f->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	memset(data, 'a', sizeof(data));
	assert_int_equal(write(f->fd, data, sizeof(data)), sizeof(data));
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	static const char *const names[] = {
		"file", "rules", "rules.hits", "log",
	};
	struct fixture *f = *state;
	char path[PATH_MAX];

	engine_close(f->engine);
	close(f->fd);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		path_in(f, path, names[i]);
		unlink(path);
	}
	rmdir(f->dir);
	free(f);
	return 0;
}

static void start(struct fixture *f, struct request *req, enum io_op op,
		  uint64_t offset)
{
	memset(req, 0, sizeof(*req));
	memset(req->buf, 'w', sizeof(req->buf));
	/* Two pieces, so that what is short ends in either. */
	req->iov[0] = (struct iovec){ req->buf, 1024 };
	req->iov[1] = (struct iovec){ req->buf + 1024, sizeof(req->buf) - 1024 };
	req->io = (struct io_req){
		.op = op, .fd = f->fd, .offset = offset, .iov = req->iov,
		.iovcnt = 2, .done = done,
	};
	engine_queue(f->engine, &req->io);
}

static void wait_for(struct fixture *f, struct request *req)
{
	while (!req->done)
		assert_int_equal(engine_run(f->engine, 5000), 0);
	assert_int_equal(req->done, 1);
}

static int run(struct fixture *f, struct request *req, enum io_op op,
	       uint64_t offset)
{
	start(f, req, op, offset);
	wait_for(f, req);
	return req->err;
}

/* How many of the file's bytes from offset on have been written. */
static size_t written(struct fixture *f, uint64_t offset)
{
	char data[65536];
	size_t n = 0;
	ssize_t got = pread(f->fd, data, sizeof(data), (off_t)offset);

	assert_true(got >= 0);
	while (n < (size_t)got && data[n] == 'w')
		n++;
	return n;
}

static unsigned int hits(struct fixture *f)
{
	char path[PATH_MAX];
	unsigned int n = 0;
	FILE *file;
	int c;

	path_in(f, path, "rules.hits");
	file = fopen(path, "r");
	assert_non_null(file);
	while ((c = getc(file)) != EOF)
		n += c == '\n';
	fclose(file);
	return n;
}

static void test_no_rules_no_faults(void **state)
{
	struct fixture *f = *state;
	struct request req;

	open_engine(f, "fault", "rules");
	assert_int_equal(run(f, &req, IO_WRITE, 0), 0);
	assert_int_equal(written(f, 0), sizeof(req.buf));
	assert_int_equal(run(f, &req, IO_SYNC, 0), 0);
	assert_int_equal(hits(f), 0);
}

static void test_the_nth_fails_and_nothing_is_done(void **state)
{
	struct fixture *f = *state;
	struct request req;

	rules(f, "# two go\nwrite after=2 times=1 errno=EIO\n");
	open_engine(f, "fault", "rules");
	for (uint64_t i = 0; i < 4; i++) {
		assert_int_equal(run(f, &req, IO_WRITE, i * 8192),
				 i == 2 ? -EIO : 0);
		assert_int_equal(run(f, &req, IO_SYNC, 0), 0);
	}
	assert_int_equal(written(f, 0), 2 * 8192);
	assert_int_equal(written(f, 3 * 8192), 8192);
	assert_int_equal(hits(f), 1);
}

static void test_rules_pick_operation_place_and_file(void **state)
{
	struct fixture *f = *state;
	struct request req;

	rules(f, "read+sync errno=ENOSPC\n"
		 "write from=16384 to=24576 errno=EIO\n"
		 "write file=other* errno=ESTALE\n"
		 "write file=fi?e from=32768 errno=117\n");
	open_engine(f, "fault", "rules");
	assert_int_equal(run(f, &req, IO_READ, 0), -ENOSPC);
	assert_int_equal(run(f, &req, IO_SYNC, 0), -ENOSPC);
	assert_int_equal(run(f, &req, IO_WRITE, 8192), 0);
	assert_int_equal(run(f, &req, IO_WRITE, 8193), -EIO);
	assert_int_equal(run(f, &req, IO_WRITE, 24575), -EIO);
	assert_int_equal(run(f, &req, IO_WRITE, 24576), 0);
	assert_int_equal(run(f, &req, IO_WRITE, 24577), -117);
	assert_int_equal(run(f, &req, IO_WRITE, 0), 0);
}

static void test_short_transfers_are_resumed(void **state)
{
	struct fixture *f = *state;
	struct request req;

	rules(f, "any short=512\n");
	open_engine(f, "fault", "rules");
	assert_int_equal(run(f, &req, IO_WRITE, 4096), 0);
	assert_int_equal(written(f, 4096), 8192);
	assert_int_equal(hits(f), 16);
	rules(f, "read times=1 short=3000\n");
	assert_int_equal(run(f, &req, IO_READ, 0), 0);
	assert_int_equal(req.buf[4095], 'a');
	assert_int_equal(req.buf[4096], 'w');
	assert_int_equal(req.buf[8191], 'w');
	rules(f, "write short=0\n");
	assert_int_equal(run(f, &req, IO_WRITE, 4096), -EIO);
	rules(f, "read short=0\n");
	assert_int_equal(run(f, &req, IO_READ, 4096), -ENODATA);
}

static void test_a_failed_write_may_have_reached_the_file(void **state)
{
	struct fixture *f = *state;
	struct request req;

	rules(f, "write to=1 errno=EIO reached\nwrite from=1 errno=EIO short=1536\n");
	open_engine(f, "fault", "rules");
	assert_int_equal(run(f, &req, IO_WRITE, 0), -EIO);
	assert_int_equal(written(f, 0), 8192);
	assert_int_equal(run(f, &req, IO_WRITE, 16384), -EIO);
	assert_int_equal(written(f, 16384), 1536);
}

static void test_interrupted_transfers_are_tried_again(void **state)
{
	struct fixture *f = *state;
	struct request req;

	rules(f, "any times=3 errno=EINTR\n");
	open_engine(f, "fault", "rules");
	assert_int_equal(run(f, &req, IO_WRITE, 0), 0);
	assert_int_equal(written(f, 0), 8192);
	assert_int_equal(hits(f), 3);
}

static void test_a_delay_delays_one_alone(void **state)
{
	struct fixture *f = *state;
	struct request slow, failing, quick;
	uint64_t begin = now_ns();

	rules(f, "write to=1 delay=1200\nwrite from=16384 errno=EIO delay=400\n");
	open_engine(f, "fault", "rules");
	start(f, &slow, IO_WRITE, 0);
	start(f, &failing, IO_WRITE, 16384);
	assert_int_equal(run(f, &quick, IO_WRITE, 8192), 0);
	assert_int_equal(slow.done + failing.done, 0);
	wait_for(f, &failing);
	assert_int_equal(failing.err, -EIO);
	assert_int_equal(slow.done, 0);
	assert_true(now_ns() - begin >= 400 * MS);
	wait_for(f, &slow);
	assert_int_equal(slow.err, 0);
	assert_true(now_ns() - begin >= 1200 * MS);
	assert_int_equal(written(f, 0), 2 * 8192);
}

static void test_what_is_stuck_goes_on_when_the_rules_have_gone(void **state)
{
	struct fixture *f = *state;
	struct request stuck, req;

	rules(f, "write stuck\n");
	open_engine(f, "fault", "rules");
	start(f, &stuck, IO_WRITE, 0);
	assert_int_equal(run(f, &req, IO_READ, 0), 0);
	assert_int_equal(engine_run(f->engine, 30), 0);
	assert_int_equal(stuck.done, 0);
	assert_int_equal(engine_inflight(f->engine), 1);
	rules(f, NULL);
	wait_for(f, &stuck);
	assert_int_equal(stuck.err, 0);
	assert_int_equal(written(f, 0), 8192);
	assert_int_equal(run(f, &req, IO_WRITE, 8192), 0);
}

static void test_chance_follows_its_seed(void **state)
{
	struct fixture *f = *state;
	char seen[3][65];
	struct request req;

	open_engine(f, "fault", "rules");
	for (unsigned int round = 0; round < 3; round++) {
		rules(f, NULL);
		assert_int_equal(run(f, &req, IO_READ, 0), 0);
		rules(f, round < 2 ? "read chance=40 seed=7 errno=EIO\n" :
				     "read chance=40 seed=8 errno=EIO\n");
		for (unsigned int i = 0; i < 64; i++)
			seen[round][i] = run(f, &req, IO_READ, 0) ? 'x' : '.';
		seen[round][64] = 0;
		assert_non_null(strchr(seen[round], 'x'));
		assert_non_null(strchr(seen[round], '.'));
	}
	assert_string_equal(seen[0], seen[1]);
	assert_string_not_equal(seen[0], seen[2]);
}

static void test_more_than_the_depth_may_be_held(void **state)
{
	struct fixture *f = *state;
	static struct request req[3 * DEPTH];

	rules(f, "write delay=5\nwrite errno=EIO\n");
	open_engine(f, "fault", "rules");
	for (size_t i = 0; i < 3 * DEPTH; i++)
		start(f, &req[i], IO_WRITE, 0);
	for (size_t i = 0; i < 3 * DEPTH; i++)
		wait_for(f, &req[i]);
	assert_int_equal(hits(f), 3 * DEPTH);
}

static void refused(struct fixture *f, const char *prefix, const char *rest,
		    const char *why)
{
	struct engine *engine;
	char name[2 * PATH_MAX];
	struct error err;

	snprintf(name, sizeof(name), "%s:%s%s", prefix, f->dir, rest);
	assert_int_not_equal(engine_open(&engine, name, DEPTH, &err), 0);
	if (!strstr(err.text, why))
		fail_msg("%s does not say %s", err.text, why);
}

static void test_bad_rules_and_names_are_refused(void **state)
{
	static const struct {
		const char *rules, *why;
	} bad[] = {
		{ "write\n", "line 1: nothing happens" },
		{ "\nwrites errno=EIO\n", "line 2: writes: must be read, write" },
		{ "any errno=EFOO\n", "errno=EFOO: must be" },
		{ "any errno=0\n", "errno=0: must be" },
		{ "any after=x errno=EIO\n", "after=x: must be a number" },
		{ "any after=-1 errno=EIO\n", "after=-1: must be a number" },
		{ "any chance=101 errno=EIO\n", "chance=101: is no word" },
		{ "any never errno=EIO\n", "never: is no word" },
		{ "any file= errno=EIO\n", "file=: must have" },
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		rules(f, bad[i].rules);
		refused(f, "fault", "/rules:uring", bad[i].why);
	}
	rules(f, NULL);
	refused(f, "fault", "/rules:other", "must be uring or posix");
	refused(f, "fault", "", "must be fault:PATH:ENGINE");
	refused(f, "fault", "/none/rules:uring", "rules.hits: No such file");
	refused(f, "record", "/none/log:uring", "log: No such file");
}

static void test_bad_rules_at_run_time_are_no_rules(void **state)
{
	struct fixture *f = *state;
	struct request req;

	rules(f, "any errno=EIO\n");
	open_engine(f, "fault", "rules");
	assert_int_equal(run(f, &req, IO_READ, 0), -EIO);
	rules(f, "any errno=EFOO\n");
	assert_int_equal(run(f, &req, IO_READ, 0), 0);
}

/* The kinds of the log's records as letters, a DONE with its result. */
static void read_log(struct fixture *f, char *text, size_t size)
{
	static const char letters[] = "?FWPZSDT";
	char path[PATH_MAX], magic[16];
	struct {
		uint32_t kind, file;
		uint64_t number, offset, length;
		int64_t result;
	} r;
	size_t n = 0;
	FILE *file;

	path_in(f, path, "log");
	file = fopen(path, "r");
	assert_non_null(file);
	assert_int_equal(fread(magic, 1, 16, file), 16);
	assert_memory_equal(magic, "xenblk-record-1\n", 16);
	while (fread(&r, sizeof(r), 1, file) == 1) {
		assert_true(r.kind < sizeof(letters) - 1);
		n += (size_t)snprintf(text + n, size - n, "%c%llu",
				      letters[r.kind],
				      (unsigned long long)r.number);
		if (r.kind == 6)
			n += (size_t)snprintf(text + n, size - n, "=%lld",
					      (long long)r.result);
		n += (size_t)snprintf(text + n, size - n, " ");
		if (r.kind == 1 || r.kind == 2)
			assert_int_equal(fseek(file, (long)r.length, SEEK_CUR), 0);
	}
	fclose(file);
}

static void test_the_log_has_starts_and_ends(void **state)
{
	struct fixture *f = *state;
	struct request req;
	char text[512];

	open_engine(f, "record", "log");
	assert_int_equal(run(f, &req, IO_WRITE, 0), 0);
	assert_int_equal(run(f, &req, IO_READ, 0), 0);
	assert_int_equal(run(f, &req, IO_SYNC, 0), 0);
	assert_int_equal(ftruncate(f->fd, 4096), 0);
	assert_int_equal(run(f, &req, IO_WRITE, 4096), 0);
	read_log(f, text, sizeof(text));
	assert_string_equal(text, "F0 W0 D0=8192 S1 D1=0 T0 W2 D2=8192 ");
}

static void test_faults_around_the_log_reach_it_only_if_done(void **state)
{
	struct fixture *f = *state;
	struct request req;
	char text[512], name[3 * PATH_MAX];
	struct error err;

	rules(f, "write to=1 errno=EIO\n"
		 "write times=1 short=4096\n");
	snprintf(name, sizeof(name), "fault:%s/rules:record:%s/log:%s", f->dir,
		 f->dir, f->inner);
	assert_int_equal(engine_open(&f->engine, name, DEPTH, &err), 0);
	assert_int_equal(run(f, &req, IO_WRITE, 0), -EIO);
	assert_int_equal(run(f, &req, IO_WRITE, 8192), 0);
	read_log(f, text, sizeof(text));
	assert_string_equal(text, "F0 W0 D0=4096 W1 D1=4096 ");
}

/*
 * Writes of odd sectors to a file with blocks of 4096 bytes, four at once that
 * meet in blocks: an error of one leaves the sectors of all others as they should be.
 */
static void test_faults_of_unaligned_writes_touch_no_neighbour(void **state)
{
	enum { SECTORS = 128, AT_ONCE = 4, LEN = 3 };
	struct fixture *f = *state;
	uint32_t now[SECTORS], maybe[SECTORS], seed = (uint32_t)now_ns();
	static struct request req[AT_ONCE];
	uint32_t tag = 0, data[SECTORS * 128];
	unsigned int failed = 0;

	print_message("seed %u\n", seed);
	srand(seed);
	memset(data, 0, sizeof(data));
	memset(now, 0, sizeof(now));
	memset(maybe, 0, sizeof(maybe));
	assert_int_equal(pwrite(f->fd, data, sizeof(data), 0), sizeof(data));
	rules(f, "read chance=5 seed=1 errno=EIO\n"
		 "write chance=5 seed=2 errno=EIO short=512\n"
		 "write chance=5 seed=3 errno=EIO reached\n"
		 "read+write chance=10 seed=4 short=1024\n"
		 "any chance=10 seed=5 delay=1\n");
	open_engine(f, "fault", "rules");
	engine_file_add(f->engine, f->fd, 4096);

	for (unsigned int round = 0; round < 200; round++) {
		unsigned int first = (unsigned int)rand() % (SECTORS - AT_ONCE * LEN);

		for (unsigned int i = 0; i < AT_ONCE; i++) {
			struct request *r = &req[i];
			uint32_t *words = (uint32_t *)(void *)r->buf;

			memset(r, 0, sizeof(*r));
			tag++;
			for (unsigned int j = 0; j < LEN; j++) {
				maybe[first + i * LEN + j] = tag;
				for (unsigned int k = 0; k < 128; k++)
					words[j * 128 + k] = tag;
			}
			r->iov[0] = (struct iovec){ r->buf, LEN * 512 };
			r->io = (struct io_req){
				.op = IO_WRITE, .fd = f->fd, .iov = r->iov,
				.offset = (first + i * LEN) * 512,
				.iovcnt = 1, .done = done,
			};
			engine_queue(f->engine, &r->io);
		}
		for (unsigned int i = 0; i < AT_ONCE; i++) {
			wait_for(f, &req[i]);
			failed += req[i].err != 0;
			for (unsigned int j = 0; !req[i].err && j < LEN; j++)
				now[first + i * LEN + j] = maybe[first + i * LEN + j];
		}
		assert_int_equal(pread(f->fd, data, sizeof(data), 0), sizeof(data));
		for (unsigned int i = 0; i < SECTORS; i++) {
			if (data[i * 128] != now[i] && data[i * 128] != maybe[i])
				fail_msg("round %u: sector %u is %u, not %u or %u",
					 round, i, data[i * 128], now[i], maybe[i]);
			now[i] = data[i * 128];
			maybe[i] = now[i];
			for (unsigned int k = 1; k < 128; k++)
				assert_int_equal(data[i * 128 + k], now[i]);
		}
	}
	assert_true(failed > 20);
	engine_file_remove(f->engine, f->fd);
}

#define T(test) BOTH(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_no_rules_no_faults),
		T(test_the_nth_fails_and_nothing_is_done),
		T(test_rules_pick_operation_place_and_file),
		T(test_short_transfers_are_resumed),
		T(test_a_failed_write_may_have_reached_the_file),
		T(test_interrupted_transfers_are_tried_again),
		T(test_a_delay_delays_one_alone),
		T(test_what_is_stuck_goes_on_when_the_rules_have_gone),
		T(test_chance_follows_its_seed),
		T(test_more_than_the_depth_may_be_held),
		T(test_bad_rules_and_names_are_refused),
		T(test_bad_rules_at_run_time_are_no_rules),
		T(test_faults_of_unaligned_writes_touch_no_neighbour),
		T(test_the_log_has_starts_and_ends),
		T(test_faults_around_the_log_reach_it_only_if_done),
	};

	return RUN_ALL(tests);
}
