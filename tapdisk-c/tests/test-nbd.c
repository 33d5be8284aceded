/* SPDX-License-Identifier: LGPL-2.1-only */
/* The NBD transport with both engines: what it answers, and what it survives. */
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "tests/nbd-bed.h"
#include "tests/real.h"

static uint8_t big[DISK];

static void reads_and_writes_of_any_length(void **state)
{
	static const uint32_t lens[] = { 512, 4096, 65536, 200 << 10, 256 << 10, (256 << 10) + 512, 5 * MIB, 32 * MIB };
	struct fixture *f = *state;
	int a = serve_simple(f), b = serve_structured(f);

	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		uint32_t len = lens[i], left = len;
		uint64_t at = (i + 1) * 1536;

		for (uint32_t k = 0; k < len; k += 8)
			put_be64(big + k, (k + i) * 0xc2b2ae3d27d4eb4full);
		ask(f, a, 0, NBD_CMD_WRITE, i, at, len);
		put(f, a, big, len);
		assert_int_equal(simple(f, a, i), 0);
		assert_memory_equal(vbd.disk + at, big, len);

		memset(big, 0, len);
		ask(f, a, 0, NBD_CMD_READ, i, at, len);
		assert_int_equal(simple(f, a, i), 0);
		get(f, a, big, len);
		assert_memory_equal(vbd.disk + at, big, len);

		ask(f, b, 0, NBD_CMD_READ, i, at, len);
		while (left) {
			get_chunk(f, b);
			assert_int_equal(chunk.type, NBD_CHUNK_OFFSET_DATA);
			assert_memory_equal(chunk.data + 8, vbd.disk + get_be64(chunk.data), chunk.len - 8);
			left -= chunk.len - 8;
			assert_int_equal(chunk.last, !left);
		}
	}
	close(a);
	close(b);
}

/* All at once, more than there is room for; each is answered once. */
static void any_depth(void **state)
{
	enum { N = 1000 };
	struct fixture *f = *state;
	static uint8_t in[N * (28 + 4096)], seen[N];
	int fd = serve_simple(f);
	size_t len = 0, at = 0;

	memset(seen, 0, sizeof(seen));
	for (uint32_t i = 0; i < N; i++) {
		uint8_t *p = in + len;

		memset(p, 0, 28);
		put_be32(p, 0x25609513);
		put_be16(p + 6, i % 2);
		put_be64(p + 8, i);
		put_be64(p + 16, (uint64_t)i * 4096);
		put_be32(p + 24, 4096);
		len += 28;
		if (i % 2) {
			memset(in + len, (int)i, 4096);
			len += 4096;
		}
	}
	vbd.hold = true;
	while (at < len) {
		ssize_t n = send(fd, in + at, len - at, MSG_NOSIGNAL);
		uint8_t p[16], data[4096];

		at += n > 0 ? (size_t)n : 0;
		turn(f);
		assert_true(vbd.nr_held <= NBD_PIECES);
		if (n > 0)
			continue;
		/* It takes no more: that is the bound. Let one after the other go. */
		answer_held(random() % 2);
		while (recv(fd, p, 16, 0) == 16) {
			uint64_t i = get_be64(p + 8);

			assert_true(i < N);
			seen[i]++;
			if (i % 2 == 0) {
				get(f, fd, data, 4096);
				assert_memory_equal(data, vbd.disk + i * 4096, 4096);
			}
			turn(f);
		}
	}
	for (;;) {
		uint8_t p[16], data[4096];
		bool closed;

		answer_held(false);
		if (get_some(f, fd, p, 16, &closed) < 16)
			break;
		seen[get_be64(p + 8)]++;
		if (get_be64(p + 8) % 2 == 0)
			get(f, fd, data, 4096);
	}
	for (uint32_t i = 0; i < N; i++) {
		assert_int_equal(seen[i], 1);
		if (i % 2)
			assert_int_equal(vbd.disk[(size_t)i * 4096 + 77], (uint8_t)i);
	}
	close(fd);
}

static void what_makes_no_sense_is_an_error_and_the_connection_goes_on(void **state)
{
	static const struct {
		unsigned int flags, type;
		uint64_t offset;
		uint32_t len;
		int err;
	} bad[] = {
		{ 0, NBD_CMD_READ, 0, 0, 22 },
		{ 0, NBD_CMD_READ, 100, 512, 22 },
		{ 0, NBD_CMD_READ, 0, 100, 22 },
		{ 0, NBD_CMD_READ, DISK, 512, 22 },
		{ 0, NBD_CMD_READ, UINT64_MAX - 511, 512, 22 },
		{ 0, NBD_CMD_READ, 0, 0xfffffe00, 22 },
		{ 0, NBD_CMD_READ, 0, 33 * MIB, 75 },
		{ NBD_CMD_FLAG_DF, NBD_CMD_READ, 0, MIB, 75 },
		{ 0x80, NBD_CMD_READ, 0, 512, 22 },
		{ 0, NBD_CMD_WRITE, DISK - 512, 1024, 28 },
		{ 0, NBD_CMD_WRITE, 1, 512, 22 },
		{ 0, NBD_CMD_WRITE, 0, 33 * MIB, 22 },
		{ 0, NBD_CMD_TRIM, DISK, 512, 28 },
		{ 0, NBD_CMD_WRITE_ZEROES, DISK - 512, 0xfffffe00, 28 },
		{ 0, NBD_CMD_BLOCK_STATUS, 0, 0, 22 },
		{ 0, 5, 0, 512, 22 },
		{ 0, 999, 0, 512, 22 },
	};
	struct fixture *f = *state;
	int fd = serve_structured(f);

	memset(big, 0x55, sizeof(big));
	for (uint64_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		ask(f, fd, bad[i].flags, bad[i].type, i, bad[i].offset, bad[i].len);
		if (bad[i].type == NBD_CMD_WRITE)
			put(f, fd, big, bad[i].len);
		assert_int_equal(structured(f, fd, i), bad[i].err);
	}
	assert_null(memmem(vbd.disk, DISK, big, 64));
	ask(f, fd, 0, NBD_CMD_FLUSH, 77, 0, 0);
	assert_int_equal(structured(f, fd, 77), 0);
	close(fd);
}

static void nothing_is_written_where_it_is_readonly(void **state)
{
	static const unsigned int types[] = { NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES };
	struct fixture *f = *state;
	uint8_t out[28];
	int fd;

	f->nbd->ops->stop(f->nbd, true, NULL);
	f->nbd->ops->reset(f->nbd, NULL);
	start(f, true);
	fd = client_open(f);
	put(f, fd, "\0\0\0\3IHAVEOPT\0\0\0\1\0\0\0\0", 20);
	get(f, fd, out, sizeof(out));
	assert_int_equal(get_be16(out + 26), NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_FLUSH |
			 NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN);
	memset(big, 0x55, 4096);
	for (size_t i = 0; i < 3; i++) {
		ask(f, fd, 0, types[i], i, 4096, 4096);
		if (types[i] == NBD_CMD_WRITE)
			put(f, fd, big, 4096);
		assert_int_equal(simple(f, fd, i), 1);
	}
	assert_true(get_be64(vbd.disk + 4096) == 4096 * 0x9e3779b97f4a7c15ull);
	close(fd);
}

static void trim_zero_fua_and_status(void **state)
{
	struct fixture *f = *state;
	int fd = serve_structured(f);

	ask(f, fd, 0, NBD_CMD_TRIM, 1, 0, MIB);
	assert_int_equal(structured(f, fd, 1), 0);
	assert_int_equal(vbd.disk[100], 0);
	ask(f, fd, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_WRITE_ZEROES, 2, MIB, 30 * MIB);
	assert_int_equal(structured(f, fd, 2), 0);
	assert_int_equal(vbd.disk[31 * MIB - 1], 0xee);
	assert_int_equal(vbd.fuas, 0);

	ask(f, fd, NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 3, 0, 4096);
	put(f, fd, big, 4096);
	assert_int_equal(structured(f, fd, 3), 0);
	assert_int_equal(vbd.fuas, 1);
	/* In pieces: one flush behind them. */
	ask(f, fd, NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 4, 0, MIB);
	put(f, fd, big, MIB);
	assert_int_equal(structured(f, fd, 4), 0);
	assert_int_equal(vbd.fuas, 1);
	assert_int_equal(vbd.flushes, 1);

	ask(f, fd, 0, NBD_CMD_BLOCK_STATUS, 5, MIB / 2, 3 * MIB);
	get_chunk(f, fd);
	assert_int_equal(chunk.type, NBD_CHUNK_BLOCK_STATUS);
	assert_true(chunk.last);
	assert_int_equal(chunk.len, 4 + 4 * 8);
	assert_int_equal(get_be32(chunk.data), NBD_CONTEXT_ALLOCATION);
	for (uint32_t i = 0; i < 4; i++) {
		assert_int_equal(get_be32(chunk.data + 4 + i * 8), i == 0 || i == 3 ? MIB / 2 : MIB);
		assert_int_equal(get_be32(chunk.data + 8 + i * 8), i % 2 ? 3 : 0);
	}
	ask(f, fd, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_BLOCK_STATUS, 6, MIB / 2, 3 * MIB);
	get_chunk(f, fd);
	assert_int_equal(chunk.len, 4 + 8);
	close(fd);
}

static void an_error_of_the_disk_reaches_the_client_without_data(void **state)
{
	struct fixture *f = *state;
	int a = serve_simple(f), b = serve_structured(f);
	uint32_t left = MIB;
	bool error = false;

	vbd.bad_sector = 600 * 1024 / 512;
	ask(f, a, 0, NBD_CMD_READ, 1, 600 * 1024, 4096);
	assert_int_equal(simple(f, a, 1), 5);
	ask(f, a, 0, NBD_CMD_WRITE, 2, 0, MIB);
	put(f, a, big, MIB);
	assert_int_equal(simple(f, a, 2), 5);
	/* At its first piece a long read can still fail. */
	ask(f, a, 0, NBD_CMD_READ, 3, 600 * 1024, MIB);
	assert_int_equal(simple(f, a, 3), 5);
	expect_silence(f, a);

	ask(f, b, 0, NBD_CMD_READ, 4, 0, MIB);
	do {
		get_chunk(f, b);
		if (chunk.type == NBD_CHUNK_ERROR_OFFSET) {
			assert_int_equal(get_be32(chunk.data), 5);
			assert_true(get_be64(chunk.data + 6) == 512 * 1024);
			error = true;
			left -= 256 << 10;
		} else {
			assert_int_equal(chunk.type, NBD_CHUNK_OFFSET_DATA);
			left -= chunk.len - 8;
		}
		assert_int_equal(chunk.last, !left);
	} while (left);
	assert_true(error);

	/* Later nothing but the end of the connection tells. */
	vbd.hold = true;
	ask(f, a, 0, NBD_CMD_READ, 5, 0, MIB);
	while (vbd.nr_held < 4)
		turn(f);
	answer_one(vbd.held[0]);
	assert_int_equal(simple(f, a, 5), 0);
	get(f, a, big, 256 << 10);
	vbd.nr_held = 3;
	memmove(vbd.held, vbd.held + 1, 3 * sizeof(vbd.held[0]));
	answer_held(true);
	expect_closed(f, a);
	close(b);
}

/* A simple reply in pieces stays in one piece on the wire, in order. */
static void nothing_comes_between_the_pieces_of_a_simple_reply(void **state)
{
	struct fixture *f = *state;
	int fd = serve_simple(f);

	vbd.hold = true;
	ask(f, fd, 0, NBD_CMD_READ, 1, 0, MIB);
	ask(f, fd, 0, NBD_CMD_READ, 2, 2 * MIB, MIB / 2);
	ask(f, fd, 0, NBD_CMD_READ, 3, 512, 512);
	for (int i = 0; i < 20; i++)
		turn(f);
	assert_int_equal(vbd.nr_held, 7);
	answer_one(vbd.held[0]);
	for (int i = 0; i < 5; i++)
		turn(f);
	vbd.held[0] = vbd.held[6];
	vbd.nr_held = 6;
	answer_held(true);
	assert_int_equal(simple(f, fd, 1), 0);
	get(f, fd, big, MIB);
	assert_memory_equal(big, vbd.disk, MIB);
	for (int i = 0; i < 2; i++) {
		uint8_t p[16];

		get(f, fd, p, 16);
		get(f, fd, big, get_be64(p + 8) == 2 ? MIB / 2 : 512);
		assert_memory_equal(big, vbd.disk + (get_be64(p + 8) == 2 ? 2 * MIB : 512), 512);
	}
	close(fd);
}

static void disconnect_waits_for_what_is_in_flight(void **state)
{
	struct fixture *f = *state;
	int fd = serve_simple(f);

	vbd.hold = true;
	ask(f, fd, 0, NBD_CMD_READ, 1, 0, 4096);
	ask(f, fd, 0, NBD_CMD_DISC, 2, 0, 0);
	expect_silence(f, fd);
	assert_int_equal(vbd.nr_held, 1);
	answer_held(false);
	assert_int_equal(simple(f, fd, 1), 0);
	get(f, fd, big, 4096);
	expect_closed(f, fd);
}

/* Its buffers are the VBD's until that answers, whatever becomes of the client. */
static void a_client_may_leave_in_the_middle(void **state)
{
	struct fixture *f = *state;

	vbd.hold = true;
	for (unsigned int i = 0; i < 6; i++) {
		int fds[8];

		for (int k = 0; k < 8; k++) {
			fds[k] = serve_simple(f);
			ask(f, fds[k], 0, NBD_CMD_READ, 1, 0, MIB);
			ask(f, fds[k], 0, NBD_CMD_WRITE, 2, MIB, MIB);
			put(f, fds[k], big, 600 * 1024);
		}
		for (int k = 0; k < 8; k++)
			close(fds[k]);
		turn(f);
		answer_held(true);
		turn(f);
	}
	answer_held(false);
	vbd.hold = false;
	close(serve_simple(f));
}

/* It may write to the same places: what it left behind comes first. */
static void a_client_that_is_back_waits_for_what_it_had_in_flight(void **state)
{
	struct fixture *f = *state;
	int other = serve_simple(f), fd = serve_simple(f);

	vbd.hold = true;
	/* More than there is room for, so that nothing is received any more. */
	for (uint64_t i = 0; i <= NBD_CHUNKS; i++) {
		ask(f, fd, 0, NBD_CMD_WRITE, i, 0, NBD_CHUNK_BYTES);
		put(f, fd, big, i < NBD_CHUNKS ? NBD_CHUNK_BYTES : 512);
	}
	expect_silence(f, fd);
	assert_int_equal(vbd.nr_held, NBD_CHUNKS);
	assert_false(vbd.held[0]->unwanted);
	close(fd);
	fd = serve_simple(f);
	for (unsigned int i = 0; i < NBD_CHUNKS; i++)
		assert_true(vbd.held[i]->unwanted);
	assert_int_equal(vbd.dropped, 1);

	ask(f, fd, 0, NBD_CMD_READ, 1, 0, 512);
	expect_silence(f, fd);
	assert_int_equal(vbd.nr_held, NBD_CHUNKS);
	/* Who was there before waits for nobody. */
	ask(f, other, 0, NBD_CMD_READ, 1, 0, 512);
	expect_silence(f, other);
	assert_int_equal(vbd.nr_held, NBD_CHUNKS + 1);
	answer_held(false);
	vbd.hold = false;
	assert_int_equal(simple(f, fd, 1), 0);
	get(f, fd, big, 512);
	close(fd);
	close(other);
}

static void no_request_ends_that_connection_alone(void **state)
{
	struct fixture *f = *state;
	int good = serve_simple(f), bad = serve_simple(f);

	put(f, bad, "this is not the magic number", 28);
	expect_closed(f, bad);
	ask(f, good, 0, NBD_CMD_FLUSH, 1, 0, 0);
	assert_int_equal(simple(f, good, 1), 0);
	close(good);
}

static void a_client_that_does_not_read_stalls_no_other(void **state)
{
	struct fixture *f = *state;
	int deaf[NBD_MAX_CLIENTS - 1], good;

	for (unsigned int i = 0; i < NBD_MAX_CLIENTS - 1; i++) {
		deaf[i] = serve_simple(f);
		for (uint64_t k = 0; k < 20; k++)
			ask(f, deaf[i], 0, NBD_CMD_READ, k, 0, 32 * MIB);
	}
	good = serve_simple(f);
	for (uint64_t i = 0; i < 50; i++) {
		ask(f, good, 0, NBD_CMD_READ, i, i * MIB / 2, MIB);
		assert_int_equal(simple(f, good, i), 0);
		get(f, good, big, MIB);
		assert_memory_equal(big, vbd.disk + i * MIB / 2, MIB);
	}
	for (unsigned int i = 0; i < NBD_MAX_CLIENTS - 1; i++)
		close(deaf[i]);
	close(good);
}

/* One more than the most waits, and is served when another has gone. */
static void a_client_too_many_waits(void **state)
{
	struct fixture *f = *state;
	int fds[NBD_MAX_CLIENTS], more;
	uint8_t greeting[18];

	for (unsigned int i = 0; i < NBD_MAX_CLIENTS; i++)
		fds[i] = serve_simple(f);
	more = client_open(f);
	expect_silence(f, more);
	close(fds[3]);
	fds[3] = more;
	get(f, more, greeting, 18);
	for (unsigned int i = 0; i < NBD_MAX_CLIENTS; i++)
		close(fds[i]);
}

static void while_held_requests_wait(void **state)
{
	struct fixture *f = *state;
	int fd = serve_simple(f);

	vbd.hold = true;
	ask(f, fd, 0, NBD_CMD_READ, 1, 0, 512);
	turn(f);
	f->nbd->ops->hold(f->nbd);
	ask(f, fd, 0, NBD_CMD_WRITE, 2, DISK, MIB);
	for (int i = 0; i < 10; i++)
		turn(f);
	assert_int_equal(vbd.nr_held, 1);
	answer_held(false);
	assert_int_equal(simple(f, fd, 1), 0);
	get(f, fd, big, 512);
	expect_silence(f, fd);
	assert_int_equal(vbd.nr_held, 0);

	/* The disk has grown meanwhile: what lay beyond its end does no more. */
	vbd.disk = realloc(vbd.disk, DISK + MIB);
	f->info.sectors += MIB / SECTOR_SIZE;
	assert_int_equal(f->nbd->ops->release(f->nbd, &f->info, false, NULL), 0);
	memset(big, 0x77, MIB);
	put(f, fd, big, MIB);
	for (int i = 0; i < 10; i++)
		turn(f);
	answer_held(false);
	assert_int_equal(simple(f, fd, 2), 0);
	assert_memory_equal(vbd.disk + DISK, big, MIB);
	close(fd);
}

/* What has come of its data so far ends with a piece, or in one. */
static void while_held_a_long_write_stops_in_the_middle(void **state)
{
	static const uint32_t parts[] = { 1, NBD_CHUNK_BYTES - 1, NBD_CHUNK_BYTES, NBD_CHUNK_BYTES + 1 };
	struct fixture *f = *state;
	int fd = serve_simple(f);

	for (unsigned int i = 0; i < 4; i++) {
		memset(big, 0x41 + (int)i, MIB);
		ask(f, fd, 0, NBD_CMD_WRITE, i, MIB, MIB);
		turn(f);
		f->nbd->ops->hold(f->nbd);
		put(f, fd, big, parts[i]);
		expect_silence(f, fd);
		assert_int_equal(f->nbd->ops->release(f->nbd, &f->info, false, NULL), 0);
		put(f, fd, big, MIB - parts[i]);
		assert_int_equal(simple(f, fd, i), 0);
		assert_memory_equal(vbd.disk + MIB, big, MIB);
	}
	close(fd);
}

/* Random requests on several connections, answered in random order, against a copy of the disk. */
static void random_requests_agree_with_a_model(void **state)
{
	enum { CLIENTS = 4, ROUNDS = 4000 };
	struct fixture *f = *state;
	unsigned int seed = (unsigned int)time(NULL);
	uint8_t *model = malloc(DISK);
	int fd[CLIENTS];

	print_message("seed %u\n", seed);
	srandom(seed);
	memcpy(model, vbd.disk, DISK);
	for (int i = 0; i < CLIENTS; i++)
		fd[i] = i % 2 ? serve_structured(f) : serve_simple(f);
	for (uint64_t round = 0; round < ROUNDS; round++) {
		uint32_t i = (uint32_t)random() % CLIENTS, left;
		uint32_t len = (1 + (uint32_t)random() % (random() % 20 ? 40 : 3000)) * 512;
		uint64_t at = (uint64_t)random() % ((DISK - len) / 512) * 512;

		if (random() % 2) {
			memset(big, (int)random(), len);
			memcpy(model + at, big, len);
			ask(f, fd[i], 0, NBD_CMD_WRITE, round, at, len);
			put(f, fd[i], big, len);
			assert_int_equal(i % 2 ? structured(f, fd[i], round) : simple(f, fd[i], round), 0);
			continue;
		}
		ask(f, fd[i], 0, NBD_CMD_READ, round, at, len);
		if (i % 2 == 0) {
			assert_int_equal(simple(f, fd[i], round), 0);
			get(f, fd[i], big, len);
			assert_memory_equal(big, model + at, len);
			continue;
		}
		for (left = len; left; left -= chunk.len - 8) {
			get_chunk(f, fd[i]);
			assert_int_equal(chunk.type, NBD_CHUNK_OFFSET_DATA);
			assert_memory_equal(chunk.data + 8, model + get_be64(chunk.data), chunk.len - 8);
		}
	}
	assert_memory_equal(model, vbd.disk, DISK);
	for (int i = 0; i < CLIENTS; i++)
		close(fd[i]);
	free(model);
}

/* In place of the C library's: what a client that waits for the name finds at that moment. */
static const char *awaited;
static bool too_early;

int listen(int fd, int backlog)
{
	too_early |= awaited && !access(awaited, F_OK);
	return (int)syscall(SYS_listen, fd, backlog);
}

/* In place of the C library's: memory for the connections can't be had. */
static bool no_memory;

void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	if (no_memory && len >= (size_t)NBD_MAX_CLIENTS * NBD_PART_BYTES) {
		errno = ENOMEM;
		return MAP_FAILED;
	}
	return real_mmap(addr, len, prot, flags, fd, offset);
}

static void a_transport_that_is_left_has_no_clients(void **state)
{
	struct fixture *f = *state;
	int fd = serve_simple(f), n = 0;

	turn(f);
	f->nbd->ops->hold(f->nbd);
	while (!f->nbd->ops->leave(f->nbd)) {
		assert_true(n++ < 10);
		turn(f);
	}
	assert_int_equal(recv(fd, &n, sizeof(n), 0), 0);
	f->nbd->ops->close(f->nbd);
	close(fd);
	for (int i = 0; i < 5; i++)
		assert_int_equal(engine_run(f->engine, 1), 0);
	assert_int_equal(nbd_open(&f->nbd, &vbd, f->engine, f->path, true, NULL), 0);
	start(f, false);
}

static void a_client_waits_until_there_is_memory(void **state)
{
	struct fixture *f = *state;
	uint64_t end = now_ns() + PATIENCE;
	struct pollfd p;

	f->nbd->ops->stop(f->nbd, true, NULL);
	f->nbd->ops->reset(f->nbd, NULL);
	start(f, false);
	no_memory = true;
	p = (struct pollfd) { .fd = client_open(f), .events = POLLIN };
	for (int i = 0; i < 10; i++)
		turn(f);
	no_memory = false;
	assert_int_equal(poll(&p, 1, 0), 0);
	/* The server speaks first, once it has accepted. */
	while (!poll(&p, 1, 0)) {
		assert_true(now_ns() < end);
		turn(f);
	}
	close(p.fd);
	close(serve_simple(f));
}

static void the_socket_takes_connections_as_soon_as_it_is_there(void **state)
{
	struct fixture *f = *state;
	struct stat st;

	f->nbd->ops->stop(f->nbd, true, NULL);
	awaited = f->path;
	too_early = false;
	start(f, false);
	awaited = NULL;
	assert_false(too_early);
	close(serve_simple(f));
	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	/* It has no other name any more. */
	assert_int_equal(st.st_nlink, 1);
}

static void another_file_in_the_sockets_place_stays(void **state)
{
	struct fixture *f = *state;
	struct stat st;

	assert_int_equal(unlink(f->path), 0);
	fclose(fopen(f->path, "w"));
	f->nbd->ops->stop(f->nbd, true, NULL);
	assert_int_equal(stat(f->path, &st), 0);
	assert_true(S_ISREG(st.st_mode));
	unlink(f->path);
	start(f, false);
}

static void a_path_without_room_is_refused(void **state)
{
	struct fixture *f = *state;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)] = "", pid[16], limit[64];
	struct transport *other;
	struct error err;
	size_t most;

	snprintf(pid, sizeof(pid), ".%d", (int)getpid());
	most = sizeof(path) - 1 - strlen(pid);
	memset(path, 'a', most);
	memcpy(path, f->dir, strlen(f->dir));
	path[strlen(f->dir)] = '/';
	assert_int_equal(nbd_open(&other, &vbd, f->engine, path, true, &err), 0);
	assert_int_equal(other->ops->start(other, &f->info, false, &err), 0);
	other->ops->stop(other, true, NULL);
	other->ops->close(other);
	path[most] = 'a';
	assert_int_equal(nbd_open(&other, &vbd, f->engine, path, true, &err), -ENAMETOOLONG);
	snprintf(limit, sizeof(limit), "longer than the %zu bytes", most);
	assert_non_null(strstr(err.text, limit));
}

static void the_socket_is_ours_alone_and_replaces_a_dead_ones(void **state)
{
	struct fixture *f = *state;
	struct transport *other;
	struct error err;
	struct stat st;
	FILE *file;

	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	/* Somebody listens there. */
	assert_int_equal(nbd_open(&other, &vbd, f->engine, f->path, true, &err), 0);
	assert_int_equal(other->ops->start(other, &f->info, false, &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, f->path));
	/* A file that is no socket stays. */
	f->nbd->ops->stop(f->nbd, true, NULL);
	file = fopen(f->path, "w");
	fclose(file);
	assert_int_equal(other->ops->start(other, &f->info, false, &err), -EEXIST);
	unlink(f->path);
	/* A socket that nobody listens at is replaced. */
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strcpy(a.sun_path, f->path);
	assert_int_equal(bind(fd, (void *)&a, sizeof(a)), 0);
	close(fd);
	/* And one that a process with our id left before it listened. */
	snprintf(a.sun_path, sizeof(a.sun_path), "%s.%d", f->path, (int)getpid());
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (void *)&a, sizeof(a)), 0);
	close(fd);
	assert_int_equal(other->ops->start(other, &f->info, false, &err), 0);
	other->ops->stop(other, true, NULL);
	other->ops->reset(other, NULL);
	other->ops->close(other);
	start(f, false);
}

#define T(name) BOTH(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(reads_and_writes_of_any_length),
		T(any_depth),
		T(what_makes_no_sense_is_an_error_and_the_connection_goes_on),
		T(nothing_is_written_where_it_is_readonly),
		T(trim_zero_fua_and_status),
		T(an_error_of_the_disk_reaches_the_client_without_data),
		T(nothing_comes_between_the_pieces_of_a_simple_reply),
		T(disconnect_waits_for_what_is_in_flight),
		T(a_client_may_leave_in_the_middle),
		T(a_client_that_is_back_waits_for_what_it_had_in_flight),
		T(no_request_ends_that_connection_alone),
		T(a_client_that_does_not_read_stalls_no_other),
		T(a_client_too_many_waits),
		T(a_transport_that_is_left_has_no_clients),
		T(a_client_waits_until_there_is_memory),
		T(while_held_requests_wait),
		T(while_held_a_long_write_stops_in_the_middle),
		T(random_requests_agree_with_a_model),
		T(the_socket_is_ours_alone_and_replaces_a_dead_ones),
		T(the_socket_takes_connections_as_soon_as_it_is_there),
		T(another_file_in_the_sockets_place_stays),
		T(a_path_without_room_is_refused),
	};

	return RUN_ALL(tests);
}
