// SPDX-License-Identifier: GPL-2.0-only
/*
 * A single-threaded server for the tests of blktap.ko: serves a flat file.
 *
 *   toy-server alloc [MINOR]		prints the minor
 *   toy-server free MINOR
 *   toy-server serve MINOR FILE [OPTION=VALUE...]
 *
 * Options: resume=1, delay=MS (answers all it holds after that time), hold=1
 * (never answers), entries=N, maxio=BYTES, block=BYTES, ro=1, flush=0, fua=1,
 * zeroes=1, discard=1, ioopt=BYTES, evil=MODE (one wrong answer to the first
 * read, then as it should be), extents=1 (the kernel serves the disk from the file),
 * extents=2 (reads alone), remap=1 (answers reads and writes with their place in
 * the file), append=1 (takes O_DIRECT from the file, and gives it O_APPEND, when the
 * driver has it), place=PATH (the file for these, if not FILE), bad=1 (first prints how
 * wrong files and extents are refused). SIGUSR2 withdraws all extents, waits
 * until they are drained, and adds them again the next time; hop=1: the disk is half of the file, and its data moves to the
 * other half between. SIGTERM removes the device and exits (says "busy" and goes on
 * if it is open), SIGUSR1 does so by force, SIGHUP takes over the file's size.
 * Prints "ready" when the device is there. Exit status 1 and a line on stderr
 * on a failed call.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blktap.h"
#include "toy-direct.h"

struct options {
	bool resume, hold, ro, flush, fua, zeroes, discard, remap, bad, append, hop;
	unsigned int delay, entries, maxio, block, ioopt, extents;
	const char *evil, *place;
};

struct server {
	struct options opt;
	int ring_fd, file;
	uint8_t *buf;
	struct blktap_ring *ring;
	struct blktap_sqe *sqes;
	struct blktap_cqe *cqes;
	uint32_t entries;
	uint64_t sectors, offset;
	bool withdrawn;
};

static void say(const char *text)
{
	puts(text);
	fflush(stdout);
}

static int open_control(void)
{
	int fd = open(BLKTAP_CONTROL_PATH, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		err(1, "%s", BLKTAP_CONTROL_PATH);
	return fd;
}

static int do_alloc(int minor)
{
	struct blktap_alloc arg = {
		.size = sizeof(arg), .version = BLKTAP_ABI_VERSION, .minor = minor,
	};

	if (ioctl(open_control(), BLKTAP_IOC_ALLOC, &arg) < 0)
		err(1, "ALLOC %d", minor);
	printf("%d\n", arg.minor);
	return 0;
}

static int do_free(int minor)
{
	struct blktap_free arg = { .size = sizeof(arg), .minor = minor };

	if (ioctl(open_control(), BLKTAP_IOC_FREE, &arg) < 0)
		err(1, "FREE %d", minor);
	return 0;
}

static uint64_t file_sectors(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		err(1, "fstat");
	return (uint64_t)st.st_size >> BLKTAP_SECTOR_SHIFT;
}

static struct blktap_device_params params(const struct server *s)
{
	const struct options *o = &s->opt;

	return (struct blktap_device_params) {
		.size = sizeof(struct blktap_device_params),
		.flags = (o->ro ? BLKTAP_DEV_RDONLY : 0) |
			 (o->flush ? BLKTAP_DEV_FLUSH : 0) |
			 (o->fua ? BLKTAP_DEV_FUA : 0) |
			 (o->zeroes ? BLKTAP_DEV_ZEROES : 0) |
			 (o->discard ? BLKTAP_DEV_DISCARD : 0),
		.sectors = s->sectors,
		.logical_block_size = o->block,
		.physical_block_size = 4096,
		.io_opt = o->ioopt,
		.discard_granularity = o->discard ? 4096 : 0,
		.discard_max = o->discard ? 1u << 20 : 0,
	};
}

static void set_up(struct server *s, int minor)
{
	struct blktap_setup setup = {
		.size = sizeof(setup), .version = BLKTAP_ABI_VERSION,
		.features = BLKTAP_F_COPY | BLKTAP_F_REMAP, .nr_queues = 1,
		.entries = s->opt.entries, .max_io_bytes = s->opt.maxio,
	};
	struct blktap_device_params p = params(s);
	char path[64];
	uint8_t *mem;

	snprintf(path, sizeof(path), BLKTAP_RING_PATH, minor);
	s->ring_fd = open(path, O_RDWR | O_CLOEXEC);
	if (s->ring_fd < 0)
		err(1, "%s", path);
	setup.buf_len = (uint64_t)setup.entries * setup.max_io_bytes;
	s->buf = mmap(NULL, setup.buf_len, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (s->buf == MAP_FAILED)
		err(1, "buffer");
	setup.buf_addr = (uintptr_t)s->buf;
	if (ioctl(s->ring_fd, BLKTAP_IOC_SETUP, &setup) < 0)
		err(1, "SETUP (entries %u, max_io_bytes %u)", setup.entries,
		    setup.max_io_bytes);
	if (setup.features != (BLKTAP_F_COPY | BLKTAP_F_REMAP))
		errx(1, "SETUP granted features %llx", setup.features);
	mem = mmap(NULL, setup.ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
		   s->ring_fd, 0);
	if (mem == MAP_FAILED)
		err(1, "ring");
	s->ring = (void *)mem;
	s->sqes = (void *)(mem + setup.sq_off);
	s->cqes = (void *)(mem + setup.cq_off);
	s->entries = setup.entries;
	if (ioctl(s->ring_fd, s->opt.resume ? BLKTAP_IOC_RESUME_DEVICE :
		  BLKTAP_IOC_CREATE_DEVICE, &p) < 0)
		err(1, s->opt.resume ? "RESUME_DEVICE" : "CREATE_DEVICE");
	if (s->opt.remap || s->opt.extents || s->opt.bad)
		toy_add_file(s->ring_fd, s->opt.place, TOY_FILE, true, s->opt.append ? O_APPEND : 0);
	if (s->opt.bad)
		toy_bad_extents(s->ring_fd, s->opt.place, s->sectors);
	if (s->opt.extents)
		toy_add_extents(s->ring_fd, s->sectors, s->offset, s->opt.extents == 1);
}

static int enter(struct server *s, struct blktap_enter *arg)
{
	*arg = (struct blktap_enter) { .size = sizeof(*arg), .flags = arg->flags };
	return ioctl(s->ring_fd, BLKTAP_IOC_ENTER, arg) < 0 ? -errno : 0;
}

static void post(struct server *s, const struct blktap_cqe *cqe)
{
	uint32_t tail = s->ring->cq_tail;

	s->cqes[tail & (s->entries - 1)] = *cqe;
	__atomic_store_n(&s->ring->cq_tail, tail + 1, __ATOMIC_RELEASE);
}

static int do_io(struct server *s, const struct blktap_sqe *e)
{
	size_t len = (size_t)e->nr_sectors << BLKTAP_SECTOR_SHIFT;
	off_t pos = (off_t)(s->offset + (e->sector << BLKTAP_SECTOR_SHIFT));
	ssize_t done = (ssize_t)len;

	switch (e->op) {
	case BLKTAP_OP_READ:
		done = pread(s->file, s->buf + e->buf_offset, len, pos);
		break;
	case BLKTAP_OP_WRITE:
		done = pwrite(s->file, s->buf + e->buf_offset, len, pos);
		if ((e->flags & BLKTAP_RQ_FUA) && fdatasync(s->file) < 0)
			return -errno;
		break;
	case BLKTAP_OP_FLUSH:
		return fdatasync(s->file) < 0 ? -errno : 0;
	case BLKTAP_OP_DISCARD:
	case BLKTAP_OP_WRITE_ZEROES:
		return fallocate(s->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				 pos, (off_t)len) < 0 ? -errno : 0;
	default:
		return -EOPNOTSUPP;
	}
	if (done < 0)
		return -errno;
	return done == (ssize_t)len ? 0 : -EIO;
}

static void tell(const char *mode, int ret, const struct blktap_enter *arg)
{
	printf("evil %s ret=%d completed=%u refused=%u\n", mode, ret,
	       arg->completed, arg->refused);
	fflush(stdout);
}

/* ENTER from a child, whose memory is another. */
static int enter_in_child(struct server *s, struct blktap_enter *arg)
{
	pid_t pid = fork();
	int status;

	if (pid == 0)
		_exit(-enter(s, arg));
	waitpid(pid, &status, 0);
	return -WEXITSTATUS(status);
}

/* Which requests are answered wrongly. */
static uint8_t evil_op(const char *mode)
{
	return strcmp(mode, "remapwrite") ? BLKTAP_OP_READ : BLKTAP_OP_WRITE;
}

/* Answers e wrongly once; true if e has been answered for good. */
static bool be_evil(struct server *s, const struct blktap_sqe *e)
{
	const char *mode = s->opt.evil;
	struct blktap_cqe cqe = { .id = e->id, .tag = e->tag };
	struct blktap_enter arg = { .flags = BLKTAP_ENTER_NOFETCH };
	bool answered = false;
	int ret;

	s->opt.evil = NULL;
	if (!strcmp(mode, "id"))
		cqe.id += 1000;
	else if (!strcmp(mode, "zeroid"))
		cqe = (struct blktap_cqe) { .tag = (uint16_t)(s->entries - 1) };
	else if (!strcmp(mode, "tag"))
		cqe.tag = 0xffff;
	else if (!strcmp(mode, "othertag"))
		cqe.tag ^= 1;
	else if (!strcmp(mode, "code"))
		cqe.code = BLKTAP_CQE_REQUEUE + 1;
	else if (!strcmp(mode, "file"))
		cqe.file = 1;
	else if (!strcmp(mode, "remapfile"))
		cqe = (struct blktap_cqe) {
			.id = e->id, .tag = e->tag, .code = BLKTAP_CQE_REMAP,
			.file = BLKTAP_MAX_FILES,
		};
	else if (!strcmp(mode, "remapoffset"))
		cqe = (struct blktap_cqe) {
			.id = e->id, .tag = e->tag, .code = BLKTAP_CQE_REMAP,
			.offset = 511,
		};
	else if (!strcmp(mode, "remapnone"))
		cqe = (struct blktap_cqe) {
			.id = e->id, .tag = e->tag, .code = BLKTAP_CQE_REMAP,
			.file = 9,
		};
	else if (!strcmp(mode, "remapwrite")) {
		toy_add_file(s->ring_fd, s->opt.place, 4, false, 0);
		cqe = (struct blktap_cqe) {
			.id = e->id, .tag = e->tag, .code = BLKTAP_CQE_REMAP,
			.file = 4, .offset = 300u << 20,
		};
	} else if (!strcmp(mode, "positive"))
		cqe.result = 512;
	else if (!strcmp(mode, "toolow"))
		cqe.result = -4096;
	else if (!strcmp(mode, "reserved"))
		cqe.reserved2[3] = 1;
	else if (!strcmp(mode, "double")) {
		cqe.result = do_io(s, e);
		post(s, &cqe);
		answered = true;
	} else if (!strcmp(mode, "requeue")) {
		cqe.code = BLKTAP_CQE_REQUEUE;
		answered = true;
	} else if (!strcmp(mode, "error")) {
		cqe.result = -ENOSPC;
		answered = true;
	} else if (!strcmp(mode, "eremchg")) {
		cqe.result = -EREMCHG;
		answered = true;
	} else if (!strcmp(mode, "nobuffer")) {
		if (munmap(s->buf, (size_t)s->entries * s->opt.maxio) < 0)
			err(1, "munmap");
		answered = true;
	} else if (!strcmp(mode, "cqtail")) {
		s->ring->cq_tail += 0x80000000u;
		ret = enter(s, &arg);
		s->ring->cq_tail -= 0x80000000u;
		tell(mode, ret, &arg);
		return false;
	} else if (!strcmp(mode, "sqhead")) {
		s->ring->sq_head += 7;
		ret = enter(s, &arg);
		s->ring->sq_head -= 7;
		tell(mode, ret, &arg);
		return false;
	} else if (!strcmp(mode, "scribble")) {
		/* what the kernel keeps for itself it must not read back */
		s->ring->sq_tail += 1234;
		s->ring->cq_head += 4321;
		s->ring->entries = 0x10000;
		memset(s->sqes, 0xff, s->entries * sizeof(*s->sqes));
		ret = enter(s, &arg);
		s->ring->sq_tail -= 1234;
		tell(mode, ret, &arg);
		return false;
	} else if (!strcmp(mode, "child")) {
		tell(mode, enter_in_child(s, &arg), &arg);
		return false;
	} else {
		errx(1, "evil=%s: no such mode", mode);
	}
	post(s, &cqe);
	ret = enter(s, &arg);
	tell(mode, ret, &arg);
	return answered;
}

static void answer(struct server *s, const struct blktap_sqe *e)
{
	struct blktap_cqe cqe = { .id = e->id, .tag = e->tag };

	if (s->opt.remap && e->op <= BLKTAP_OP_WRITE &&
	    !(e->flags & BLKTAP_RQ_DIRECT_FAILED)) {
		cqe.code = BLKTAP_CQE_REMAP;
		cqe.file = TOY_FILE;
		cqe.offset = s->offset + (e->sector << BLKTAP_SECTOR_SHIFT);
	} else {
		cqe.result = do_io(s, e);
	}
	post(s, &cqe);
}

static void serve_ring(struct server *s)
{
	struct blktap_enter arg = { .flags = 0 };
	struct blktap_sqe e;
	uint32_t head;
	int ret;

	do {
		ret = enter(s, &arg);
		if (ret)
			errx(1, "ENTER: %s", strerror(-ret));
		if (arg.submitted && s->opt.delay)
			usleep(s->opt.delay * 1000);
		head = s->ring->sq_head;
		while (head != __atomic_load_n(&s->ring->sq_tail, __ATOMIC_ACQUIRE)) {
			e = s->sqes[head & (s->entries - 1)];
			__atomic_store_n(&s->ring->sq_head, ++head, __ATOMIC_RELEASE);
			if (s->opt.hold)
				continue;
			if (s->opt.evil && e.op == evil_op(s->opt.evil) && be_evil(s, &e))
				continue;
			answer(s, &e);
		}
	} while (arg.submitted && !s->opt.hold);
}

/* With hop, no data is any more where the extents had it. */
static void withdraw(struct server *s)
{
	uint64_t half = s->sectors << BLKTAP_SECTOR_SHIFT;
	uint64_t other = s->offset ? 0 : half;

	toy_withdraw(s->ring_fd);
	if (!s->opt.hop)
		return;
	toy_move(s->file, (off_t)s->offset, (off_t)other, (off_t)half);
	s->offset = other;
}

/* True when the device is gone. */
static bool on_signal(struct server *s, int signo)
{
	struct blktap_remove rm = { .size = sizeof(rm) };
	struct blktap_device_params p;

	if (signo == SIGHUP) {
		s->sectors = file_sectors(s->file);
		p = params(s);
		if (ioctl(s->ring_fd, BLKTAP_IOC_SET_DEVICE, &p) < 0)
			printf("SET_DEVICE: %s\n", strerror(errno));
		else
			say("resized");
		fflush(stdout);
		return false;
	}
	if (signo == SIGUSR2) {
		if (s->withdrawn)
			toy_add_extents(s->ring_fd, s->sectors, s->offset, s->opt.extents == 1);
		else
			withdraw(s);
		s->withdrawn = !s->withdrawn;
		say(s->withdrawn ? "withdrawn" : "added");
		return false;
	}
	rm.flags = signo == SIGUSR1 ? BLKTAP_REMOVE_FORCE : 0;
	if (ioctl(s->ring_fd, BLKTAP_IOC_REMOVE_DEVICE, &rm) == 0) {
		say("removed");
		return true;
	}
	if (errno != EBUSY)
		err(1, "REMOVE_DEVICE");
	say("busy");
	return false;
}

static int do_serve(int minor, const char *path, const struct options *opt)
{
	struct server s = { .opt = *opt };
	struct signalfd_siginfo info;
	struct pollfd fds[2];
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	s.file = open(path, O_RDWR | O_CLOEXEC);
	if (s.file < 0)
		err(1, "%s", path);
	s.sectors = file_sectors(s.file) / (s.opt.hop ? 2 : 1);
	if (!s.opt.place)
		s.opt.place = path;
	set_up(&s, minor);
	say("ready");

	fds[0] = (struct pollfd) { .fd = s.ring_fd, .events = POLLIN };
	fds[1] = (struct pollfd) {
		.fd = signalfd(-1, &set, SFD_CLOEXEC), .events = POLLIN,
	};
	for (;;) {
		if (poll(fds, 2, -1) < 0)
			err(1, "poll");
		if (fds[0].revents & POLLERR)
			errx(1, "poll says POLLERR");
		if (fds[0].revents & POLLIN)
			serve_ring(&s);
		if ((fds[1].revents & POLLIN) &&
		    read(fds[1].fd, &info, sizeof(info)) == sizeof(info) &&
		    on_signal(&s, (int)info.ssi_signo))
			return 0;
	}
}

static void parse_option(struct options *o, const char *arg)
{
	const char *eq = strchr(arg, '=');
	unsigned int v;
	size_t n;

	if (!eq)
		errx(2, "%s: expected OPTION=VALUE", arg);
	n = (size_t)(eq - arg);
	v = (unsigned int)strtoul(eq + 1, NULL, 0);
#define IS(name) (n == strlen(name) && !strncmp(arg, name, n))
	if (IS("resume"))
		o->resume = v;
	else if (IS("hold"))
		o->hold = v;
	else if (IS("ro"))
		o->ro = v;
	else if (IS("flush"))
		o->flush = v;
	else if (IS("fua"))
		o->fua = v;
	else if (IS("zeroes"))
		o->zeroes = v;
	else if (IS("discard"))
		o->discard = v;
	else if (IS("delay"))
		o->delay = v;
	else if (IS("entries"))
		o->entries = v;
	else if (IS("maxio"))
		o->maxio = v;
	else if (IS("block"))
		o->block = v;
	else if (IS("ioopt"))
		o->ioopt = v;
	else if (IS("extents"))
		o->extents = v;
	else if (IS("remap"))
		o->remap = v;
	else if (IS("bad"))
		o->bad = v;
	else if (IS("append"))
		o->append = v;
	else if (IS("hop"))
		o->hop = v;
	else if (IS("place"))
		o->place = eq + 1;
	else if (IS("evil"))
		o->evil = eq + 1;
	else
		errx(2, "%s: no such option", arg);
#undef IS
}

int main(int argc, char **argv)
{
	struct options opt = {
		.flush = true, .entries = 64, .maxio = 1u << 18, .block = 512,
	};
	int i;

	if (argc >= 2 && argc <= 3 && !strcmp(argv[1], "alloc"))
		return do_alloc(argc > 2 ? atoi(argv[2]) : -1);
	if (argc == 3 && !strcmp(argv[1], "free"))
		return do_free(atoi(argv[2]));
	if (argc >= 4 && !strcmp(argv[1], "serve")) {
		for (i = 4; i < argc; i++)
			parse_option(&opt, argv[i]);
		return do_serve(atoi(argv[2]), argv[3], &opt);
	}
	fprintf(stderr, "usage: toy-server alloc [MINOR] | free MINOR | serve MINOR FILE [OPTION=VALUE...]\n");
	return 2;
}
