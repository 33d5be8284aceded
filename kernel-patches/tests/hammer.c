// SPDX-License-Identifier: GPL-2.0-only
/*
 * Calls blktap.ko from many processes at once, at random: servers that come
 * and go in every way, users of the disks, a controller that allocates and
 * frees under them, readers and writers of sysfs.
 *
 *   hammer SECONDS SEED
 *
 * Uses minors 0 and 1. Exit status 0 and "quiet" when everything could be freed
 * at the end and no process is stuck. The kernel's log has the rest.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "blktap.h"
#include "roles.h"

#define MINORS		2u
#define ENTRIES		8u
#define MAX_IO		65536u
#define SECTORS		65536u
#define STUCK_SECONDS	60

static int free_minor(int control, unsigned int minor, unsigned int flags)
{
	struct blktap_free arg = {
		.size = sizeof(arg), .minor = (int)minor, .flags = flags,
	};

	return ioctl(control, BLKTAP_IOC_FREE, &arg) < 0 ? -errno : 0;
}

static void controller(void)
{
	struct blktap_alloc arg;
	int control = open_control();

	for (;;) {
		arg = (struct blktap_alloc) {
			.size = sizeof(arg), .version = BLKTAP_ABI_VERSION,
			.minor = (int)any(MINORS),
		};
		if (chance(70))
			ioctl(control, BLKTAP_IOC_ALLOC, &arg);
		else
			free_minor(control, any(MINORS),
				   chance(30) ? BLKTAP_FREE_FORCE : 0);
		usleep(any(10000));
	}
}

/* What is done with a device that has lost its server. */
static void set_expiry(void)
{
	const char *value = chance(50) ? "1" : "0";
	int fd = open_node(chance(50) ? "/sys/class/blktap2/blktap%u/fail" :
			   "/sys/class/blktap2/blktap%u/dead_timeout",
			   any(MINORS), O_WRONLY);

	if (fd < 0)
		return;
	if (write(fd, value, 1) < 0)
		usleep(1);
	close(fd);
}

/* Reads what the minor says of itself, and changes the disk's scheduler. */
static void observer(void)
{
	static const char *const files[] = {
		"/sys/class/blktap2/blktap%u/state",
		"/sys/class/blktap2/blktap%u/task",
		"/sys/class/blktap2/blktap%u/counters/submitted",
		"/sys/block/tapdev%u/inflight",
	};
	static const char *const schedulers[] = { "none", "mq-deadline" };
	const char *scheduler;
	char text[64];
	int fd;

	for (;;) {
		fd = open_node(files[any(4)], any(MINORS), O_RDONLY);
		if (fd >= 0 && read(fd, text, sizeof(text)) >= 0)
			close(fd);
		if (chance(10)) {
			fd = open_node("/sys/block/tapdev%u-queue/queue/scheduler",
				       any(MINORS), O_WRONLY);
			scheduler = schedulers[any(2)];
			if (fd >= 0 &&
			    write(fd, scheduler, strlen(scheduler)) != 0)
				close(fd);
		}
		if (chance(10))
			set_expiry();
		usleep(any(3000));
	}
}

/* Errors are what the others cause: the disk goes, or its server fails it. */
static void user(void)
{
	uint8_t *data = aligned_alloc(4096, MAX_IO * 2);
	unsigned int round;
	ssize_t done = 0;
	size_t len;
	off_t at;
	int fd;

	if (!data)
		err(1, "buffer");
	memset(data, 0x5a, MAX_IO * 2);
	for (;;) {
		fd = open_node(BLKTAP_DEVICE_PATH, any(MINORS),
			       O_RDWR | (chance(50) ? O_DIRECT : 0));
		if (fd < 0) {
			usleep(500);
			continue;
		}
		for (round = any(20); round && done >= 0; round--) {
			at = (off_t)any(SECTORS / 8) * 4096;
			len = (any(2 * MAX_IO / 4096) + 1) * 4096;
			done = chance(50) ? pread(fd, data, len, at) :
					    pwrite(fd, data, len, at);
			if (chance(10) && fsync(fd) < 0)
				break;
		}
		done = 0;
		close(fd);
	}
}

struct server {
	int fd;
	uint8_t *buf;
	struct blktap_ring *ring;
	struct blktap_sqe *sqes;
	struct blktap_cqe *cqes;
	size_t ring_bytes;
};

static struct blktap_device_params params(void)
{
	return (struct blktap_device_params) {
		.size = sizeof(struct blktap_device_params),
		.flags = BLKTAP_DEV_FLUSH, .sectors = SECTORS,
		.logical_block_size = 512, .physical_block_size = 4096,
	};
}

/* The controller may free a minor whoever has it; all else is an error. */
static bool server_gone(struct server *s, const char *what)
{
	if (errno != ENODEV)
		err(1, "%s", what);
	if (s->ring)
		munmap(s->ring, s->ring_bytes);
	close(s->fd);
	return false;
}

/* False if the ring was taken, or went. */
static bool server_start(struct server *s, unsigned int minor)
{
	struct blktap_setup setup = {
		.size = sizeof(setup), .version = BLKTAP_ABI_VERSION,
		.features = BLKTAP_F_COPY, .nr_queues = 1, .entries = ENTRIES,
		.max_io_bytes = MAX_IO, .buf_addr = (uintptr_t)s->buf,
		.buf_len = ENTRIES * MAX_IO,
	};
	struct blktap_device_params p = params();
	uint8_t *mem;

	s->ring = NULL;
	s->fd = open_node(BLKTAP_RING_PATH, minor, O_RDWR);
	if (s->fd < 0)
		return false;
	if (ioctl(s->fd, BLKTAP_IOC_SETUP, &setup) < 0)
		return server_gone(s, "SETUP");
	s->ring_bytes = setup.ring_bytes;
	mem = mmap(NULL, s->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
		   s->fd, 0);
	if (mem == MAP_FAILED)
		err(1, "ring");
	s->ring = (void *)mem;
	s->sqes = (void *)(mem + setup.sq_off);
	s->cqes = (void *)(mem + setup.cq_off);
	if (ioctl(s->fd, BLKTAP_IOC_CREATE_DEVICE, &p) < 0 &&
	    ioctl(s->fd, BLKTAP_IOC_RESUME_DEVICE, &p) < 0)
		return server_gone(s, "CREATE_DEVICE and RESUME_DEVICE");
	return true;
}

/* Answers one request, or doesn't. Returns the completions posted. */
static unsigned int answer(struct server *s, const struct blktap_sqe *e)
{
	struct blktap_cqe cqe = { .id = e->id, .tag = e->tag };
	uint32_t tail = s->ring->cq_tail;
	unsigned int i, dice = any(100);

	if (dice < 5)
		return 0;
	if (dice < 15)
		cqe.code = BLKTAP_CQE_REQUEUE;
	else if (dice < 20)
		cqe.result = -(int)any(5000);
	else if (dice < 25)
		for (i = 0; i < sizeof(cqe); i++)
			((uint8_t *)&cqe)[i] = (uint8_t)any(256);
	s->cqes[tail & (ENTRIES - 1)] = cqe;
	__atomic_store_n(&s->ring->cq_tail, tail + 1, __ATOMIC_RELEASE);
	return 1;
}

/* False when the device or the ring is of no more use. */
static bool serve_once(struct server *s)
{
	struct blktap_enter arg = { .size = sizeof(arg) };
	struct pollfd pfd = { .fd = s->fd, .events = POLLIN };
	struct blktap_sqe e;
	unsigned int posted = 0;
	uint32_t head = s->ring->sq_head;

	poll(&pfd, 1, (int)any(4));
	arg.flags = chance(10) ? BLKTAP_ENTER_NOFETCH : 0;
	if (ioctl(s->fd, BLKTAP_IOC_ENTER, &arg) < 0)
		return false;
	while (posted < ENTRIES && head !=
	       __atomic_load_n(&s->ring->sq_tail, __ATOMIC_ACQUIRE)) {
		e = s->sqes[head++ & (ENTRIES - 1)];
		posted += answer(s, &e);
	}
	__atomic_store_n(&s->ring->sq_head, head, __ATOMIC_RELEASE);
	return true;
}

static void server(void)
{
	struct blktap_remove rm = { .size = sizeof(rm) };
	struct blktap_device_params p = params();
	struct server s = { .fd = -1 };
	unsigned int rounds;

	s.buf = mmap(NULL, ENTRIES * MAX_IO, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (s.buf == MAP_FAILED)
		err(1, "buffer");
	for (;;) {
		if (!server_start(&s, any(MINORS))) {
			usleep(500);
			continue;
		}
		for (rounds = any(60); rounds && serve_once(&s); rounds--)
			if (chance(2)) {
				p.flags ^= BLKTAP_DEV_RDONLY;
				ioctl(s.fd, BLKTAP_IOC_SET_DEVICE, &p);
			}
		p.flags &= ~BLKTAP_DEV_RDONLY;
		ioctl(s.fd, BLKTAP_IOC_SET_DEVICE, &p);
		if (chance(5)) {
			s.ring->sq_head += any(1000);
			serve_once(&s);
		}
		if (chance(5)) {
			mprotect(s.buf, ENTRIES * MAX_IO, PROT_NONE);
			serve_once(&s);
			mprotect(s.buf, ENTRIES * MAX_IO, PROT_READ | PROT_WRITE);
		}
		rm.flags = chance(50) ? BLKTAP_REMOVE_FORCE : 0;
		if (chance(50))
			ioctl(s.fd, BLKTAP_IOC_REMOVE_DEVICE, &rm);
		if (chance(25))
			_exit(0);
		munmap(s.ring, s.ring_bytes);
		close(s.fd);
	}
}

static void (*const roles[])(void) = {
	server, server, server, user, user, user, controller, observer,
};
#define NR_ROLES (sizeof(roles) / sizeof(roles[0]))

/* Frees all minors, whoever had them. Returns 0, or 1 if one stays. */
static int free_all(void)
{
	time_t deadline = now() + STUCK_SECONDS;
	int control = open_control();
	unsigned int minor;

	for (minor = 0; minor < MINORS; minor++)
		while (free_minor(control, minor, 0) != -ENODEV) {
			if (now() > deadline) {
				printf("minor %u cannot be freed\n", minor);
				return 1;
			}
			usleep(10000);
		}
	return 0;
}

static int stop_all(const pid_t *pids)
{
	unsigned int i;
	int ret;

	for (i = 0; i < NR_ROLES; i++)
		kill(pids[i], SIGKILL);
	/* whoever waits for a disk gets its error now */
	ret = free_all();
	if (reap(pids, NR_ROLES, STUCK_SECONDS))
		return 1;
	/* the controller may have made one with its last breath */
	ret |= free_all();
	return ret;
}

int main(int argc, char **argv)
{
	pid_t pids[NR_ROLES], pid;
	unsigned int i, next;
	int status, failed = 0;
	time_t end;

	if (argc != 3) {
		fprintf(stderr, "usage: hammer SECONDS SEED\n");
		return 2;
	}
	end = now() + atoi(argv[1]);
	next = (unsigned int)strtoul(argv[2], NULL, 0);
	for (i = 0; i < NR_ROLES; i++)
		pids[i] = start(roles[i], next++);
	while (now() < end && !failed) {
		pid = waitpid(-1, &status, WNOHANG);
		for (i = 0; pid > 0 && i < NR_ROLES; i++) {
			if (pids[i] != pid)
				continue;
			failed |= status;
			pids[i] = start(roles[i], next++);
		}
		usleep(10000);
	}
	failed |= stop_all(pids);
	puts(failed ? "failed" : "quiet");
	return failed ? 1 : 0;
}
