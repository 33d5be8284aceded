/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The NBD transport on a VBD in memory that answers when and as the test says;
 * the client is a socket of the same thread. Included by one file of a program.
 */
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "common/bytes.h"
#include "common/clock.h"
#include "tests/engine-bed.h"
#include "transport/nbd-internal.h"
#include "transport/nbd.h"

#define MIB		(1u << 20)
#define DISK		(40u * MIB)
#define PATIENCE	20000000000u	/* ns */

/* The VBD */

struct vbd {
	uint8_t *disk;
	struct vbd_request *held[1024];
	unsigned int nr_held;
	bool hold;			/* answer when answer_held() is called */
	uint64_t bad_sector;		/* a transfer that touches it is -EIO */
	unsigned int flushes, fuas;
	unsigned int losses;		/* flushes of others that failed */
	int lend_fd;			/* reads are lent from it if it is not -1 */
	struct engine *lend_engine;
	unsigned int lent;
	unsigned int dropped;		/* so often was it to drop what is unwanted */
};

static struct vbd vbd;

static void answer_one(struct vbd_request *req)
{
	struct image_request *i = &req->image;
	size_t at = (size_t)i->sector * SECTOR_SIZE, len = (size_t)i->count * SECTOR_SIZE;
	int err = 0;

	if (i->count && i->sector <= vbd.bad_sector && vbd.bad_sector < i->sector + i->count)
		err = -EIO;
	else if (i->op == IMAGE_READ && vbd.lend_fd >= 0 && i->lend &&
		 (i->lent = engine_lend(vbd.lend_engine, vbd.lend_fd, at, len, &i->lender)))
		vbd.lent++;
	else if (i->op == IMAGE_READ)
		memcpy(i->buf, vbd.disk + at, len);
	else if (i->op == IMAGE_WRITE)
		memcpy(vbd.disk + at, i->buf, len);
	else if (i->op == IMAGE_ZERO || i->op == IMAGE_DISCARD)
		memset(vbd.disk + at, i->op == IMAGE_ZERO && i->keep_space ? 0xee : 0, len);
	else if (i->op == IMAGE_FLUSH)
		vbd.flushes++;
	if (i->op == IMAGE_STATUS && !err) {
		/* Odd MiB are holes. */
		uint32_t per = MIB / SECTOR_SIZE, left = i->count;
		uint64_t s = i->sector;

		while (left && i->nr_extents < i->max_extents) {
			uint32_t n = per - (uint32_t)(s % per);
			bool odd = s / per % 2;

			n = n < left ? n : left;
			i->extents[i->nr_extents++] = (struct image_extent) { n, odd, odd };
			s += n;
			left -= n;
		}
	}
	vbd.fuas += req->fua && i->op != IMAGE_FLUSH;
	req->done(req, err);
}

void vbd_submit(struct vbd *v, struct vbd_request *req)
{
	assert_ptr_equal(v, &vbd);
	assert_int_equal((uintptr_t)req->image.buf % IMAGE_ALIGN, 0);
	req->op = req->image.op;
	if (!v->hold) {
		answer_one(req);
		return;
	}
	assert_true(v->nr_held < 1024);
	v->held[v->nr_held++] = req;
}

/* Those that wait for the storage; here all are with it. */
void vbd_drop_unwanted(struct vbd *v)
{
	v->dropped++;
}

unsigned int vbd_losses(const struct vbd *v)
{
	return v->losses;
}

int vbd_minor(const struct vbd *v)
{
	(void)v;
	return 5;
}

/* The fixture */

struct fixture {
	struct engine *engine;
	struct transport *nbd;
	char dir[32], path[64];
	struct image_info info;
};

static void turn(struct fixture *f)
{
	assert_int_equal(engine_run(f->engine, 1), 0);
	while (f->nbd->ops->round(f->nbd))
		assert_int_equal(engine_run(f->engine, 0), 0);
}

static inline void answer_first(void)
{
	struct vbd_request *req = vbd.held[0];

	memmove(vbd.held, vbd.held + 1, --vbd.nr_held * sizeof(vbd.held[0]));
	answer_one(req);
}

static void answer_held(bool backwards)
{
	while (vbd.nr_held)
		if (backwards)
			answer_one(vbd.held[--vbd.nr_held]);
		else
			answer_first();
}

static void start(struct fixture *f, bool readonly)
{
	struct error err;

	if (f->nbd->ops->start(f->nbd, &f->info, readonly, &err))
		fail_msg("%s", err.text);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct error err;

	f->engine = open_or_fail(*state, 64);
	strcpy(f->dir, "/tmp/test-nbd-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/s", f->dir);
	vbd = (struct vbd) { .disk = calloc(1, DISK), .bad_sector = UINT64_MAX, .lend_fd = -1 };
	for (size_t i = 0; i < DISK; i += 8)
		put_be64(vbd.disk + i, i * 0x9e3779b97f4a7c15ull);
	f->info = (struct image_info) { .sectors = DISK / SECTOR_SIZE, .sector_size = 512, .depth = 1,
		.can = IMAGE_CAN_DISCARD | IMAGE_CAN_ZERO | IMAGE_CAN_STATUS };
	if (nbd_open(&f->nbd, &vbd, f->engine, f->path, true, &err))
		fail_msg("%s", err.text);
	start(f, false);
	*state = f;
	return 0;
}

/* The order that a VBD keeps to; nothing may be left in the engine. */
static int teardown(void **state)
{
	struct fixture *f = *state;
	struct stat st;

	f->nbd->ops->stop(f->nbd, true, NULL);
	vbd.hold = false;
	answer_held(false);
	for (int i = 0; i < 100 && engine_inflight(f->engine); i++)
		turn(f);
	turn(f);
	assert_int_equal(engine_inflight(f->engine), 0);
	assert_int_equal(stat(f->path, &st), -1);
	f->nbd->ops->reset(f->nbd, NULL);
	f->nbd->ops->close(f->nbd);
	engine_close(f->engine);
	rmdir(f->dir);
	free(vbd.disk);
	free(f);
	return 0;
}

/* The client */

static int client_open(struct fixture *f)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	strcpy(a.sun_path, f->path);
	assert_int_equal(connect(fd, (void *)&a, sizeof(a)), 0);
	return fd;
}

static void put(struct fixture *f, int fd, const void *data, size_t len)
{
	const uint8_t *p = data;
	uint64_t end = now_ns() + PATIENCE;

	while (len) {
		ssize_t n = send(fd, p, len, MSG_NOSIGNAL);

		assert_true(n > 0 || errno == EAGAIN);
		p += n > 0 ? n : 0;
		len -= n > 0 ? (size_t)n : 0;
		assert_true(now_ns() < end);
		if (n < 0)
			turn(f);
	}
}

/* Bytes got before the server has nothing more to do, or closed (then *closed). */
static size_t get_some(struct fixture *f, int fd, void *to, size_t len, bool *closed)
{
	size_t at = 0;

	*closed = false;
	for (int idle = 0; idle < 10 && at < len;) {
		ssize_t n = recv(fd, (uint8_t *)to + at, len - at, 0);

		if (!n || (n < 0 && errno == ECONNRESET)) {
			*closed = true;
			break;
		}
		at += n > 0 ? (size_t)n : 0;
		idle = n > 0 ? 0 : idle + 1;
		if (n < 0)
			turn(f);
	}
	return at;
}

static void get(struct fixture *f, int fd, void *to, size_t len)
{
	bool closed;

	assert_int_equal(get_some(f, fd, to, len, &closed), len);
}

static void expect_closed(struct fixture *f, int fd)
{
	uint8_t byte;
	bool closed;

	assert_int_equal(get_some(f, fd, &byte, 1, &closed), 0);
	assert_true(closed);
	close(fd);
}

static inline void expect_silence(struct fixture *f, int fd)
{
	uint8_t byte;
	bool closed;

	assert_int_equal(get_some(f, fd, &byte, 1, &closed), 0);
	assert_false(closed);
}

static int serve_simple(struct fixture *f)
{
	static const uint8_t in[] = "\0\0\0\3IHAVEOPT\0\0\0\1\0\0\0";
	uint8_t out[28];
	int fd = client_open(f);

	put(f, fd, in, 20);
	get(f, fd, out, sizeof(out));
	assert_true(get_be64(out + 18) == DISK);
	return fd;
}

static int serve_structured(struct fixture *f)
{
	static const uint8_t in[] = "\0\0\0\3IHAVEOPT\0\0\0\10\0\0\0\0IHAVEOPT\0\0\0\12\0\0\0\33"
		"\0\0\0\0\0\0\0\1\0\0\0\17base:allocationIHAVEOPT\0\0\0\1\0\0\0";
	uint8_t out[18 + 20 + 39 + 20 + 10];
	int fd = client_open(f);

	put(f, fd, in, sizeof(in));
	get(f, fd, out, sizeof(out));
	assert_true(get_be64(out + sizeof(out) - 10) == DISK);
	return fd;
}

static void ask(struct fixture *f, int fd, unsigned int flags, unsigned int type, uint64_t cookie,
		uint64_t offset, uint32_t len)
{
	uint8_t p[28];

	put_be32(p, 0x25609513);
	put_be16(p + 4, (uint16_t)flags);
	put_be16(p + 6, (uint16_t)type);
	put_be64(p + 8, cookie);
	put_be64(p + 16, offset);
	put_be32(p + 24, len);
	put(f, fd, p, sizeof(p));
}

/* A simple reply; its error. */
static int simple(struct fixture *f, int fd, uint64_t cookie)
{
	uint8_t p[16];

	get(f, fd, p, sizeof(p));
	assert_int_equal(get_be32(p), 0x67446698);
	assert_true(get_be64(p + 8) == cookie);
	return (int)get_be32(p + 4);
}

struct chunk {
	bool last;
	unsigned int type;
	uint64_t cookie;
	uint32_t len;
	uint8_t data[300 << 10];
};

static struct chunk chunk;

static void get_chunk(struct fixture *f, int fd)
{
	uint8_t p[20];

	get(f, fd, p, sizeof(p));
	assert_int_equal(get_be32(p), 0x668e33ef);
	chunk.last = get_be16(p + 4) & 1;
	chunk.type = get_be16(p + 6);
	chunk.cookie = get_be64(p + 8);
	chunk.len = get_be32(p + 16);
	assert_true(chunk.len <= sizeof(chunk.data));
	get(f, fd, chunk.data, chunk.len);
}

/* The error of a structured reply without data. */
static inline int structured(struct fixture *f, int fd, uint64_t cookie)
{
	get_chunk(f, fd);
	assert_true(chunk.last);
	assert_true(chunk.cookie == cookie);
	if (chunk.type == NBD_CHUNK_NONE)
		return 0;
	assert_true(chunk.type == NBD_CHUNK_ERROR || chunk.type == NBD_CHUNK_ERROR_OFFSET);
	return (int)get_be32(chunk.data);
}
