// SPDX-License-Identifier: GPL-2.0-only
/*
 * A hostile server of one disk, under load: while threads answer its requests,
 * others write at random over every field of its rings and call its ioctls
 * with arguments made at random; it registers files of every kind, changes
 * their flags behind the driver's back, serves from memory that comes and goes,
 * and dies in the midst of it, again and again.
 *
 *   storm MINOR FILE SECONDS SEED
 *
 * FILE, at least 64 MiB on a disk, is written over. Other minors are not touched, so
 * that a test can hold another disk to its data meanwhile. Exit status 0 and "quiet"
 * when the minor could be freed at the end and no process is stuck; the kernel's
 * log has the rest.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "blktap.h"
#include "roles.h"

#define ENTRIES		16u
#define MAX_IO		65536u
#define BUFFER		(ENTRIES * MAX_IO)
#define SECTORS		65536u
#define STUCK_SECONDS	120
#define USERS		2
#define NR(array)	(sizeof(array) / sizeof((array)[0]))

static int minor;
static const char *file;
static uint64_t any64(void)
{
	return (uint64_t)rand_r(&seed) << 42 ^ (uint64_t)rand_r(&seed) << 21 ^ (uint64_t)rand_r(&seed);
}

/* Numbers at which something ends, and others. */
static uint64_t odd_number(void)
{
	static const uint64_t edges[] = {
		0, 1, 2, 7, 8, 63, 64, 255, 256, 511, 512, 4095, 4096, SECTORS - 1,
		SECTORS, INT32_MAX, 1ull << 31, UINT32_MAX, 1ull << 32, 1ull << 54,
		INT64_MAX, INT64_MAX - 511, 1ull << 63, UINT64_MAX,
	};

	return chance(70) ? edges[any(NR(edges))] : any64() >> any(64);
}

struct server {
	int fd;
	uint8_t *buf, *mem;
	struct blktap_ring *ring;
	struct blktap_sqe *sqes;
	struct blktap_cqe *cqes;
	size_t ring_bytes;
	unsigned int seed;
};

/* Memory for requests' data: plain, or what no server should take. */
static uint8_t *a_buffer(void)
{
	int fd = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;
	void *mem;

	if (chance(10)) {
		fd = open(file, O_RDWR | O_CLOEXEC);
		flags = MAP_SHARED;
	}
	if (fd < 0)
		flags = MAP_PRIVATE | MAP_ANONYMOUS;
	mem = mmap(NULL, BUFFER, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (mem == MAP_FAILED)
		err(1, "buffer");
	if (fd >= 0)
		close(fd);
	return mem;
}

/* False if the ring is not to be had. */
static bool server_start(struct server *s)
{
	struct blktap_device_params p = {
		.size = sizeof(p), .flags = BLKTAP_DEV_FLUSH | BLKTAP_DEV_ZEROES,
		.sectors = SECTORS, .logical_block_size = 512,
		.physical_block_size = 4096,
	};
	struct blktap_setup setup = {
		.size = sizeof(setup), .version = BLKTAP_ABI_VERSION,
		.features = BLKTAP_F_COPY | BLKTAP_F_REMAP, .nr_queues = 1,
		.entries = ENTRIES, .max_io_bytes = MAX_IO, .buf_len = BUFFER,
	};

	s->fd = open_node(BLKTAP_RING_PATH, (unsigned int)minor, O_RDWR);
	if (s->fd < 0)
		return false;
	s->buf = a_buffer();
	setup.buf_addr = (uintptr_t)s->buf;
	if (ioctl(s->fd, BLKTAP_IOC_SETUP, &setup) < 0) {
		/* what a disk has to fill in */
		setup.buf_addr = (uintptr_t)mmap(s->buf, BUFFER, PROT_READ | PROT_WRITE,
						 MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (ioctl(s->fd, BLKTAP_IOC_SETUP, &setup) < 0)
			err(1, "SETUP");
	}
	s->ring_bytes = setup.ring_bytes;
	s->mem = mmap(NULL, s->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
	if (s->mem == MAP_FAILED)
		err(1, "ring");
	s->ring = (void *)s->mem;
	s->sqes = (void *)(s->mem + setup.sq_off);
	s->cqes = (void *)(s->mem + setup.cq_off);
	if (ioctl(s->fd, BLKTAP_IOC_CREATE_DEVICE, &p) < 0 &&
	    ioctl(s->fd, BLKTAP_IOC_RESUME_DEVICE, &p) < 0)
		err(1, "CREATE_DEVICE and RESUME_DEVICE");
	return true;
}

/* A completion of what waits, as it should be or with some field changed. */
static struct blktap_cqe a_completion(const struct blktap_sqe *e)
{
	struct blktap_cqe cqe = { .id = e->id, .tag = e->tag };

	if (chance(30)) {
		cqe.code = BLKTAP_CQE_REMAP;
		cqe.file = any(5);
		cqe.offset = (uint64_t)any(SECTORS) << BLKTAP_SECTOR_SHIFT;
	}
	if (chance(80))
		return cqe;
	switch (any(9)) {
	case 0:
		cqe.id = chance(50) ? cqe.id + any(9) - 4 : odd_number();
		break;
	case 1:
		cqe.tag = (uint16_t)(chance(50) ? any(ENTRIES) : odd_number());
		break;
	case 2:
		cqe.code = (uint8_t)any(5);
		break;
	case 3:
		cqe.result = (int32_t)odd_number();
		break;
	case 4:
		cqe.result = -(int32_t)any(140);
		break;
	case 5:
		cqe.offset = odd_number();
		break;
	case 6:
		cqe.file = (uint32_t)odd_number();
		break;
	case 7:
		cqe.code = BLKTAP_CQE_REQUEUE;
		break;
	default:
		cqe.reserved2[any(4)] = odd_number();
	}
	return cqe;
}

/* The ring's counters may be nonsense at any moment: another thread writes them. */
static void *serve(void *arg)
{
	struct server *s = arg;
	struct blktap_enter enter;
	struct pollfd pfd = { .fd = s->fd, .events = POLLIN };
	uint32_t head, n;

	seed = s->seed + 1;
	for (;;) {
		poll(&pfd, 1, 2);
		enter = (struct blktap_enter) {
			.size = sizeof(enter),
			.flags = chance(5) ? BLKTAP_ENTER_NOFETCH : 0,
		};
		if (ioctl(s->fd, BLKTAP_IOC_ENTER, &enter) < 0)
			usleep(100);
		head = __atomic_load_n(&s->ring->sq_head, __ATOMIC_RELAXED);
		n = __atomic_load_n(&s->ring->sq_tail, __ATOMIC_ACQUIRE) - head;
		for (n %= ENTRIES + 1; n; n--, head++) {
			struct blktap_sqe e = s->sqes[head % ENTRIES];
			uint32_t tail = s->ring->cq_tail, again = chance(5) ? 2 : 1;

			for (; again; again--)
				s->cqes[tail++ % ENTRIES] = a_completion(&e);
			__atomic_store_n(&s->ring->cq_tail, tail, __ATOMIC_RELEASE);
		}
		__atomic_store_n(&s->ring->sq_head, head, __ATOMIC_RELEASE);
	}
	return NULL;
}

/* Every word of the rings, then the counters right again so that the disk goes on. */
static void *scribble(void *arg)
{
	struct server *s = arg;
	volatile uint64_t *words = (volatile void *)s->mem;
	volatile uint32_t *counters = (volatile void *)s->mem;
	struct blktap_ring was;

	seed = s->seed + 2;
	for (;;) {
		usleep(any(3000));
		was = *s->ring;
		switch (any(4)) {
		case 0:
			counters[any(5)] = (uint32_t)odd_number();
			break;
		case 1:
			counters[any(4)] += any(2 * ENTRIES);
			break;
		case 2:
			words[any((unsigned int)(s->ring_bytes / 8))] = odd_number();
			break;
		default:
			s->cqes[any(ENTRIES)] = a_completion(&s->sqes[any(ENTRIES)]);
		}
		if (chance(70)) {
			usleep(any(200));
			s->ring->sq_head = was.sq_head;
			s->ring->cq_tail = was.cq_tail;
		}
	}
	return NULL;
}

static int a_file(void)
{
	int p[2];

	switch (any(14)) {
	case 0:
	case 1:
		return open(file, O_RDONLY | O_DIRECT | O_CLOEXEC);
	case 2:
		return open(file, O_RDWR | O_CLOEXEC);
	case 3:
		if (pipe(p) < 0)
			return -1;
		close(p[1]);
		return p[0];
	case 4:
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, p) < 0)
			return -1;
		close(p[1]);
		return p[0];
	case 5:
		return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	case 6:
		return open_node(BLKTAP_RING_PATH, (unsigned int)minor, O_RDWR);
	default:
		return open(file, O_RDWR | O_DIRECT | O_CLOEXEC);
	}
}

/* What was registered with O_DIRECT may lose it, and get O_APPEND. */
static void add_a_file(int ring)
{
	struct blktap_file arg = {
		.size = sizeof(arg), .number = any(6), .flags = any(2),
	};

	arg.fd = a_file();
	ioctl(ring, BLKTAP_IOC_ADD_FILE, &arg);
	if (arg.fd >= 0 && chance(20))
		fcntl(arg.fd, F_SETFL, chance(50) ? O_APPEND : 0);
	if (arg.fd >= 0)
		close(arg.fd);
}

static void add_extents(int ring)
{
	struct blktap_extent e[8];
	struct blktap_extents arg = {
		.size = sizeof(arg), .nr = any(NR(e) + 1), .addr = (uintptr_t)e,
	};

	for (size_t i = 0; i < NR(e); i++)
		e[i] = (struct blktap_extent) {
			.sector = chance(95) ? any(SECTORS) : odd_number(),
			.nr_sectors = chance(95) ? any(4096) : (uint32_t)odd_number(),
			.offset = chance(95) ? (uint64_t)any(SECTORS) << 9 : odd_number(),
			.file = (uint16_t)any(6), .flags = (uint16_t)any(2),
		};
	ioctl(ring, BLKTAP_IOC_ADD_EXTENTS, &arg);
}

static void withdraw(int ring)
{
	struct blktap_withdraw arg = {
		.size = sizeof(arg), .flags = chance(30) ? BLKTAP_WITHDRAW_WAIT : 0,
		.sector = any(SECTORS), .nr_sectors = chance(90) ? any(4096) : odd_number(),
	};

	ioctl(ring, BLKTAP_IOC_WITHDRAW, &arg);
}

/* Anything at all; but what would end or stop the disk at once is left to others. */
static void any_ioctl(int ring, uint8_t *nowhere)
{
	static const unsigned int numbers[] = {
		0x50, 0x51, 0x52, 0x54, 0x55, 0x60, 0x61, 0x62, 0x63, 0x53, 0x40, 0x41, 0x99,
	};
	union {
		uint64_t word[16];
		uint32_t size;
	} arg;

	for (size_t i = 0; i < NR(arg.word); i++)
		arg.word[i] = odd_number();
	arg.size = chance(90) ? any(72) : (uint32_t)odd_number();
	ioctl(ring, _IOC((unsigned int)any(4), 't', numbers[any(NR(numbers))], any(64)),
	      chance(90) ? (void *)&arg : nowhere + any(4096));
}

static void *call(void *arg)
{
	struct server *s = arg;
	struct blktap_unfile gone = { .size = sizeof(gone) };
	uint8_t *nowhere = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	seed = s->seed + 3;
	if (nowhere == MAP_FAILED || munmap(nowhere + 4096, 4096) < 0)
		err(1, "mmap");
	for (;;) {
		switch (any(6)) {
		case 0:
			add_a_file(s->fd);
			break;
		case 1:
		case 2:
			add_extents(s->fd);
			break;
		case 3:
			withdraw(s->fd);
			break;
		case 4:
			gone.number = any(7);
			if (chance(30))
				ioctl(s->fd, BLKTAP_IOC_REMOVE_FILE, &gone);
			break;
		default:
			any_ioctl(s->fd, nowhere);
		}
		if (chance(3)) {
			mprotect(s->buf, BUFFER, PROT_NONE);
			usleep(any(2000));
			mprotect(s->buf, BUFFER, PROT_READ | PROT_WRITE);
		}
		usleep(any(500));
	}
	return NULL;
}

/* One life: ends by itself or is killed from outside, by SIGKILL in any call. */
static void server(void)
{
	static void *(*const threads[])(void *) = { serve, serve, scribble, call, call };
	struct blktap_remove rm = { .size = sizeof(rm), .flags = BLKTAP_REMOVE_FORCE };
	struct server s = { .seed = seed };
	pthread_t thread;

	while (!server_start(&s))
		usleep(500);
	for (size_t i = 0; i < NR(threads); i++) {
		s.seed += 7;
		if (pthread_create(&thread, NULL, threads[i], &s))
			errx(1, "pthread_create");
		usleep(1000);
	}
	usleep(any(400000));
	if (chance(30))
		ioctl(s.fd, BLKTAP_IOC_REMOVE_DEVICE, &rm);
	if (chance(30))
		close(s.fd);
	kill(getpid(), SIGKILL);
}

static void user(void)
{
	uint8_t *data = aligned_alloc(4096, 2 * MAX_IO);
	int fd = -1, n;
	size_t len;
	off_t at;

	if (!data)
		err(1, "buffer");
	memset(data, 0x5a, 2 * MAX_IO);
	for (;;) {
		if (fd >= 0)
			close(fd);
		fd = open_node(BLKTAP_DEVICE_PATH, (unsigned int)minor,
			       O_RDWR | (chance(50) ? O_DIRECT : 0));
		if (fd < 0)
			usleep(500);
		for (n = fd < 0 ? 0 : (int)any(30); n; n--) {
			at = (off_t)any(SECTORS) * 512;
			len = (any(2 * MAX_IO / 512) + 1) * 512;
			if ((chance(50) ? pread(fd, data, len, at) :
					  pwrite(fd, data, len, at)) < 0 && errno != EINVAL)
				break;
			if (chance(5) && fsync(fd) < 0)
				break;
		}
	}
}

static int free_minor(int control)
{
	struct blktap_free arg = { .size = sizeof(arg), .minor = minor };
	time_t deadline = now() + STUCK_SECONDS;

	while (ioctl(control, BLKTAP_IOC_FREE, &arg) < 0 && errno != ENODEV) {
		if (now() > deadline) {
			printf("minor %d cannot be freed: %s\n", minor, strerror(errno));
			return 1;
		}
		usleep(10000);
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct blktap_alloc alloc = { .size = sizeof(alloc), .version = BLKTAP_ABI_VERSION };
	pid_t pids[1 + USERS];
	unsigned int lives = 0;
	int control, failed = 0;
	time_t end;

	if (argc != 5) {
		fprintf(stderr, "usage: storm MINOR FILE SECONDS SEED\n");
		return 2;
	}
	minor = atoi(argv[1]);
	file = argv[2];
	end = now() + atoi(argv[3]);
	seed = (unsigned int)strtoul(argv[4], NULL, 0);
	control = open_control();
	alloc.minor = minor;
	if (ioctl(control, BLKTAP_IOC_ALLOC, &alloc) < 0)
		err(1, "ALLOC %d", minor);
	for (size_t i = 1; i < NR(pids); i++)
		pids[i] = start(user, seed + (unsigned int)i);
	while (now() < end && !failed) {
		pids[0] = start(server, any(1u << 30));
		if (chance(50)) {
			usleep(any(500000));
			kill(pids[0], SIGKILL);
		}
		failed = reap(pids, 1, STUCK_SECONDS);
		lives++;
		/* now and then who has the disk open loses it */
		if (chance(10)) {
			failed |= free_minor(control);
			failed |= ioctl(control, BLKTAP_IOC_ALLOC, &alloc) < 0;
		}
	}
	for (size_t i = 0; i < NR(pids); i++)
		kill(pids[i], SIGKILL);
	failed |= free_minor(control);
	failed |= reap(pids + 1, USERS, STUCK_SECONDS);
	printf("%u servers\n%s\n", lives, failed ? "failed" : "quiet");
	return failed ? 1 : 0;
}
