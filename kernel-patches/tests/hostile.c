// SPDX-License-Identifier: GPL-2.0-only
/*
 * Calls blktap.ko in every wrong way there is, one at a time, and holds it to
 * the errors that blktap.h gives.
 *
 *   hostile MINOR FILE
 *
 * Allocates and frees MINOR; FILE is a file on a disk, of at least 1 MiB, which
 * is not written to. Prints a line for each call that had another end, and at
 * last "N calls, M wrong". Exit status 0 if none was wrong.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blktap.h"

#define PAGE		4096u
#define ENTRIES		8u
#define MAX_IO		4096u
#define SECTORS		2048u
#define KERNEL_ADDRESS	0xffff888000000000ull
#define FILE_NUMBER	3

static unsigned int calls, wrong;
static const char *state = "";

static int call(int fd, unsigned long cmd, const void *arg)
{
	return ioctl(fd, cmd, arg) < 0 ? -errno : 0;
}

/* want: 0 or an errno. */
static void expect(const char *what, int want, int rc)
{
	calls++;
	if (rc == -want)
		return;
	wrong++;
	printf("%s: %s: %s, not %s\n", state, what, strerror(-rc), strerror(want));
}

static void expect_n(const char *what, const char *how, int want, int rc)
{
	char text[96];

	snprintf(text, sizeof(text), "%s, %s", what, how);
	expect(text, want, rc);
}

static void *pages(unsigned int n, int prot)
{
	void *p = mmap(NULL, (size_t)n * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		err(1, "mmap");
	return p;
}

static int open_ring(unsigned int minor)
{
	char path[64];

	snprintf(path, sizeof(path), BLKTAP_RING_PATH, (int)minor);
	return open(path, O_RDWR | O_CLOEXEC);
}

/* Every ioctl: its size now, the least that is taken, what it writes back, its flags. */
static const struct request {
	const char *name;
	unsigned long cmd;
	uint32_t size, least;
	bool control;
	int flags_at;		/* offset of flags whose upper bits nobody knows, or -1 */
	int reserved_at;	/* offset of what must be zero, or -1 */
} requests[] = {
#define R(name, type, least, control, flags, reserved)			\
	{ #name, BLKTAP_IOC_##name, sizeof(struct type), least, control, flags, reserved }
	R(ALLOC, blktap_alloc, 16, true, offsetof(struct blktap_alloc, flags), -1),
	R(FREE, blktap_free, 16, true, offsetof(struct blktap_free, flags),
	  offsetof(struct blktap_free, reserved)),
	R(SETUP, blktap_setup, 64, false, -1, -1),
	R(CREATE_DEVICE, blktap_device_params, 40, false, -1, -1),
	R(RESUME_DEVICE, blktap_device_params, 40, false, -1, -1),
	R(SET_DEVICE, blktap_device_params, 40, false, -1, -1),
	R(REMOVE_DEVICE, blktap_remove, 8, false, offsetof(struct blktap_remove, flags), -1),
	R(ENTER, blktap_enter, 24, false, offsetof(struct blktap_enter, flags), -1),
	R(ADD_FILE, blktap_file, 16, false, offsetof(struct blktap_file, flags), -1),
	R(REMOVE_FILE, blktap_unfile, 8, false, -1, -1),
	R(ADD_EXTENTS, blktap_extents, 24, false, -1, offsetof(struct blktap_extents, reserved)),
	R(WITHDRAW, blktap_withdraw, 32, false, offsetof(struct blktap_withdraw, flags),
	  offsetof(struct blktap_withdraw, reserved)),
#undef R
};

#define NR(array)	(sizeof(array) / sizeof((array)[0]))

/* What is wrong with the argument as such is said in any state. */
static void bad_argument(const struct request *r, int fd)
{
	uint8_t *two = pages(2, PROT_READ | PROT_WRITE);
	uint8_t *arg = two, *edge = two + PAGE - 4;
	uint32_t version = BLKTAP_ABI_VERSION;

#define SIZED(n) (memset(two, 0, 2 * PAGE), *(uint32_t *)(void *)arg = (n))
	expect_n(r->name, "null", EFAULT, call(fd, r->cmd, NULL));
	expect_n(r->name, "address 8", EFAULT, call(fd, r->cmd, (void *)8));
	expect_n(r->name, "the kernel's address", EFAULT,
		 call(fd, r->cmd, (void *)(uintptr_t)KERNEL_ADDRESS));
	expect_n(r->name, "the last address", EFAULT, call(fd, r->cmd, (void *)(UINTPTR_MAX - 3)));
	SIZED(0);
	expect_n(r->name, "size 0", EINVAL, call(fd, r->cmd, arg));
	SIZED(r->least - 1);
	expect_n(r->name, "too short", EINVAL, call(fd, r->cmd, arg));
	SIZED(PAGE + 1);
	expect_n(r->name, "longer than a page", EINVAL, call(fd, r->cmd, arg));
	SIZED(UINT32_MAX);
	expect_n(r->name, "longest", EINVAL, call(fd, r->cmd, arg));
	SIZED(r->size + 8);
	arg[r->size + 7] = 1;
	expect_n(r->name, "more than the driver knows", E2BIG, call(fd, r->cmd, arg));
	SIZED(PAGE);
	arg[PAGE - 1] = 1;
	expect_n(r->name, "a page of it", E2BIG, call(fd, r->cmd, arg));
	if (r->flags_at >= 0) {
		SIZED(r->size);
		memset(arg + r->flags_at, 0x80, 4);
		if (!strcmp(r->name, "ALLOC"))
			memcpy(arg + offsetof(struct blktap_alloc, version), &version, 4);
		expect_n(r->name, "flags", EINVAL, call(fd, r->cmd, arg));
	}
	if (r->reserved_at >= 0) {
		SIZED(r->size);
		arg[r->reserved_at] = 1;
		expect_n(r->name, "reserved", EINVAL, call(fd, r->cmd, arg));
	}
	/* only its size can be read */
	SIZED(0);
	if (mprotect(two + PAGE, PAGE, PROT_NONE) < 0)
		err(1, "mprotect");
	*(uint32_t *)(void *)edge = r->size;
	expect_n(r->name, "over the edge of memory", EFAULT, call(fd, r->cmd, edge));
#undef SIZED
	munmap(two, (size_t)2 * PAGE);
}

static void bad_arguments(int control, int ring)
{
	for (size_t i = 0; i < NR(requests); i++)
		bad_argument(&requests[i], requests[i].control ? control : ring);
}

static void not_an_ioctl(int control, int ring)
{
	struct blktap_enter arg = { .size = sizeof(arg) };

	for (unsigned int nr = 0; nr < 256; nr++) {
		if (nr != 0x40 && nr != 0x41)
			expect("unknown number, control", ENOTTY, call(control, _IOC(3u, 't', nr, 24), &arg));
		if ((nr < 0x50 || nr > 0x55) && (nr < 0x60 || nr > 0x63))
			expect("unknown number, ring", ENOTTY, call(ring, _IOC(3u, 't', nr, 24), &arg));
	}
	expect("another type", ENOTTY, call(ring, _IOC(3u, 'u', 0x54, 24), &arg));
	expect("another type", ENOTTY, call(control, _IOC(3u, 'u', 0x40, 16), &arg));
	expect("read", EINVAL, read(ring, &arg, sizeof(arg)) < 0 ? -errno : 0);
	expect("write", EINVAL, write(ring, &arg, sizeof(arg)) < 0 ? -errno : 0);
	expect("read", EINVAL, read(control, &arg, sizeof(arg)) < 0 ? -errno : 0);
}

static struct blktap_setup good_setup(void *buf)
{
	return (struct blktap_setup) {
		.size = sizeof(struct blktap_setup), .version = BLKTAP_ABI_VERSION,
		.features = BLKTAP_F_COPY | BLKTAP_F_REMAP, .nr_queues = 1,
		.entries = ENTRIES, .max_io_bytes = MAX_IO,
		.buf_addr = (uintptr_t)buf, .buf_len = (uint64_t)ENTRIES * MAX_IO,
	};
}

static struct blktap_device_params good_params(void)
{
	return (struct blktap_device_params) {
		.size = sizeof(struct blktap_device_params),
		.flags = BLKTAP_DEV_FLUSH, .sectors = SECTORS,
		.logical_block_size = 512, .physical_block_size = 4096,
		.discard_granularity = 4096, .discard_max = 1024,
	};
}

/* A good SETUP with one thing changed. */
#define SETUP(what, want, change)					\
	do {								\
		struct blktap_setup s = good_setup(buf);		\
									\
		change;							\
		expect_n("SETUP", what, want, call(ring, BLKTAP_IOC_SETUP, &s)); \
	} while (0)

static void bad_setups(int ring, void *buf)
{
	SETUP("version", EPROTONOSUPPORT, s.version = BLKTAP_ABI_VERSION + 1);
	SETUP("version 0", EPROTONOSUPPORT, s.version = 0);
	SETUP("no features", EOPNOTSUPP, s.features = 0);
	SETUP("no copying", EOPNOTSUPP, s.features = BLKTAP_F_REMAP);
	SETUP("unknown features", EOPNOTSUPP, s.features = ~(BLKTAP_F_COPY | BLKTAP_F_REMAP));
	SETUP("no queue", EINVAL, s.nr_queues = 0);
	SETUP("no entries", EINVAL, s.entries = 0);
	SETUP("entries no power of two", EINVAL, s.entries = 7);
	SETUP("too many entries", EINVAL, s.entries = 512);
	SETUP("most entries", EINVAL, s.entries = 0x80000000u);
	SETUP("no bytes", EINVAL, s.max_io_bytes = 0);
	SETUP("odd bytes", EINVAL, s.max_io_bytes = 4097);
	SETUP("too many bytes", EINVAL, s.max_io_bytes = 2u << 20);
	SETUP("reserved", EINVAL, s.reserved = 1);
	SETUP("no buffer", EINVAL, s.buf_addr = 0);
	SETUP("odd buffer", EINVAL, s.buf_addr += 8);
	SETUP("short buffer", EINVAL, s.buf_len -= 1);
	SETUP("wrapping buffer", EINVAL, s.buf_len = UINT64_MAX);
	SETUP("the kernel's buffer", EINVAL, s.buf_addr = KERNEL_ADDRESS);
}

/* Its pages would have to be read from a disk, maybe from the one that is served. */
static void bad_buffer(int ring, const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	uint8_t *buf = pages(ENTRIES, PROT_READ | PROT_WRITE);

	if (fd < 0)
		err(1, "%s", path);
	if (mmap(buf + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		err(1, "mmap");
	SETUP("a buffer with a file in it", EINVAL, (void)0);
	if (mmap(buf + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) == MAP_FAILED)
		err(1, "mmap");
	SETUP("a buffer with a private file in it", EINVAL, (void)0);
	munmap(buf, (size_t)ENTRIES * PAGE);
	close(fd);
}

#define PARAMS(cmd, what, want, change)					\
	do {								\
		struct blktap_device_params p = good_params();		\
									\
		change;							\
		expect_n(#cmd, what, want, call(ring, BLKTAP_IOC_##cmd, &p)); \
	} while (0)

static void bad_devices(int ring)
{
	PARAMS(CREATE_DEVICE, "flags", EINVAL, p.flags |= 1u << 5);
	PARAMS(CREATE_DEVICE, "FUA without a cache", EINVAL, p.flags = BLKTAP_DEV_FUA);
	PARAMS(CREATE_DEVICE, "no sectors", EINVAL, p.sectors = 0);
	PARAMS(CREATE_DEVICE, "too many sectors", EINVAL, p.sectors = 1ull << 54);
	PARAMS(CREATE_DEVICE, "most sectors", EINVAL, p.sectors = UINT64_MAX);
	PARAMS(CREATE_DEVICE, "part of a block", EINVAL,
	       (p.logical_block_size = 4096, p.sectors = 9));
	PARAMS(CREATE_DEVICE, "block of 0", EINVAL, p.logical_block_size = 0);
	PARAMS(CREATE_DEVICE, "block of 256", EINVAL, p.logical_block_size = 256);
	PARAMS(CREATE_DEVICE, "block of 1000", EINVAL, p.logical_block_size = 1000);
	PARAMS(CREATE_DEVICE, "block of 8192", EINVAL,
	       p.logical_block_size = p.physical_block_size = 8192);
	PARAMS(CREATE_DEVICE, "physical below logical", EINVAL,
	       (p.logical_block_size = 4096, p.physical_block_size = 512));
	PARAMS(CREATE_DEVICE, "physical of 3", EINVAL, p.physical_block_size = 3 * 512);
	PARAMS(CREATE_DEVICE, "largest physical", EINVAL, p.physical_block_size = 1u << 31);
	PARAMS(CREATE_DEVICE, "odd io_min", EINVAL, p.io_min = 100);
	PARAMS(CREATE_DEVICE, "odd io_opt", EINVAL, p.io_opt = 100);
	PARAMS(CREATE_DEVICE, "no granularity", EINVAL,
	       (p.flags |= BLKTAP_DEV_DISCARD, p.discard_granularity = 0));
	PARAMS(CREATE_DEVICE, "odd granularity", EINVAL,
	       (p.flags |= BLKTAP_DEV_DISCARD, p.discard_granularity = 3 * 512));
	PARAMS(CREATE_DEVICE, "discards below the granularity", EINVAL,
	       (p.flags |= BLKTAP_DEV_DISCARD, p.discard_max = 7));
}

/* The order of calls: none has more than its error. */
static void out_of_order(int ring, int setup, int others, int enter, int files, int extents)
{
	struct blktap_device_params p = good_params();
	struct blktap_enter e = { .size = sizeof(e) };
	struct blktap_remove rm = { .size = sizeof(rm) };
	struct blktap_unfile none = { .size = sizeof(none), .number = 9 };
	struct blktap_extents x = { .size = sizeof(x), .nr = 0 };
	struct blktap_setup s;
	void *buf = pages(ENTRIES, PROT_READ | PROT_WRITE);

	if (setup) {
		s = good_setup(buf);
		expect("SETUP", setup, call(ring, BLKTAP_IOC_SETUP, &s));
	}
	expect("RESUME_DEVICE", others, call(ring, BLKTAP_IOC_RESUME_DEVICE, &p));
	if (enter) {
		expect("SET_DEVICE", others, call(ring, BLKTAP_IOC_SET_DEVICE, &p));
		expect("ENTER", enter, call(ring, BLKTAP_IOC_ENTER, &e));
		expect("REMOVE_DEVICE", ENODEV, call(ring, BLKTAP_IOC_REMOVE_DEVICE, &rm));
	} else {
		expect("CREATE_DEVICE", EEXIST, call(ring, BLKTAP_IOC_CREATE_DEVICE, &p));
	}
	expect("REMOVE_FILE", files, call(ring, BLKTAP_IOC_REMOVE_FILE, &none));
	expect("ADD_EXTENTS", extents, call(ring, BLKTAP_IOC_ADD_EXTENTS, &x));
	munmap(buf, (size_t)ENTRIES * PAGE);
}

static int map_ring(int ring, size_t bytes, int prot, int flags, off_t at)
{
	void *p = mmap(NULL, bytes, prot, flags, ring, at);

	if (p == MAP_FAILED)
		return -errno;
	munmap(p, bytes);
	return 0;
}

static void bad_maps(int ring, size_t bytes)
{
	expect("private mapping", EINVAL, map_ring(ring, bytes, PROT_READ, MAP_PRIVATE, 0));
	expect("mapping too long", EINVAL, map_ring(ring, bytes + PAGE, PROT_READ, MAP_SHARED, 0));
	expect("mapping behind", EINVAL, map_ring(ring, bytes, PROT_READ, MAP_SHARED, PAGE));
	expect("mapping far behind", EINVAL,
	       map_ring(ring, PAGE, PROT_READ, MAP_SHARED, (off_t)1 << 50));
	expect("mapping", 0, map_ring(ring, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, 0));
}

static void bad_file(int ring, const char *what, int fd, uint32_t flags, int want)
{
	struct blktap_file arg = {
		.size = sizeof(arg), .fd = fd, .number = FILE_NUMBER, .flags = flags,
	};

	expect_n("ADD_FILE", what, want, call(ring, BLKTAP_IOC_ADD_FILE, &arg));
	if (fd >= 0)
		close(fd);
}

static int open_temporary(void)
{
	char path[] = "/dev/shm/hostile-XXXXXX";
	int fd = mkstemp(path);

	if (fd < 0)
		err(1, "%s", path);
	unlink(path);
	return fd;
}

static void bad_files(int ring, int control, unsigned int minor, const char *path)
{
	char device[64];
	int p[2];

	snprintf(device, sizeof(device), BLKTAP_DEVICE_PATH, (int)minor);
	bad_file(ring, "no fd", -1, 0, EBADF);
	bad_file(ring, "largest fd", INT32_MAX, 0, EBADF);
	if (pipe(p) < 0)
		err(1, "pipe");
	bad_file(ring, "pipe", p[0], 0, EINVAL);
	bad_file(ring, "pipe to write", p[1], BLKTAP_FILE_WRITE, EINVAL);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, p) < 0)
		err(1, "socketpair");
	bad_file(ring, "socket", p[0], BLKTAP_FILE_WRITE, EINVAL);
	close(p[1]);
	bad_file(ring, "epoll", epoll_create1(0), 0, EINVAL);
	bad_file(ring, "eventfd", eventfd(0, 0), 0, EINVAL);
	bad_file(ring, "memfd", (int)syscall(SYS_memfd_create, "m", 0), BLKTAP_FILE_WRITE, EINVAL);
	bad_file(ring, "in memory", open_temporary(), BLKTAP_FILE_WRITE, EINVAL);
	bad_file(ring, "the ring", dup(ring), 0, EINVAL);
	bad_file(ring, "control", dup(control), 0, EINVAL);
	bad_file(ring, "directory", open("/", O_RDONLY | O_DIRECTORY), 0, EINVAL);
	bad_file(ring, "a path alone", open(path, O_PATH), 0, EBADF);
	bad_file(ring, "zeros", open("/dev/zero", O_RDWR), BLKTAP_FILE_WRITE, EINVAL);
	bad_file(ring, "of proc", open("/proc/self/maps", O_RDONLY), 0, EINVAL);
	bad_file(ring, "of sysfs", open("/sys/kernel/uevent_seqnum", O_RDONLY), 0, EINVAL);
	bad_file(ring, "buffered", open(path, O_RDWR), 0, EINVAL);
	bad_file(ring, "appending", open(path, O_RDWR | O_DIRECT | O_APPEND), 0, EINVAL);
	bad_file(ring, "write-only", open(path, O_WRONLY | O_DIRECT), 0, EBADF);
	bad_file(ring, "read-only to write", open(path, O_RDONLY | O_DIRECT), BLKTAP_FILE_WRITE, EBADF);
	bad_file(ring, "the tap's own disk", open(device, O_RDWR | O_DIRECT), 0, EINVAL);
	bad_file(ring, "the tap's own disk to write", open(device, O_RDWR | O_DIRECT),
		 BLKTAP_FILE_WRITE, EINVAL);
	bad_file(ring, "a good one", open(path, O_RDONLY | O_DIRECT), 0, 0);
	bad_file(ring, "a number that is taken", open(path, O_RDONLY | O_DIRECT), 0, EEXIST);
}

/* A good list of one extent with one thing changed. */
#define EXTENTS(what, want, change)					\
	do {								\
		struct blktap_extent e = {				\
			.sector = 8, .offset = 4096, .nr_sectors = 8,	\
			.file = FILE_NUMBER,				\
		};							\
		struct blktap_extents x = {				\
			.size = sizeof(x), .nr = 1, .addr = (uintptr_t)&e, \
		};							\
									\
		change;							\
		expect_n("ADD_EXTENTS", what, want, call(ring, BLKTAP_IOC_ADD_EXTENTS, &x)); \
	} while (0)

static void bad_extents(int ring)
{
	EXTENTS("null", EFAULT, x.addr = 0);
	EXTENTS("the kernel's", EFAULT, x.addr = KERNEL_ADDRESS);
	EXTENTS("too many", EINVAL, x.nr = BLKTAP_EXTENT_BATCH + 1);
	EXTENTS("most", EINVAL, x.nr = UINT32_MAX);
	EXTENTS("none", 0, x.nr = 0);
	EXTENTS("to write in a file to read", EBADF, e.flags = BLKTAP_EXTENT_WRITE);
	EXTENTS("flags", EINVAL, e.flags = 0x8000);
	EXTENTS("no sectors", EINVAL, e.nr_sectors = 0);
	EXTENTS("most sectors", EINVAL, e.nr_sectors = UINT32_MAX);
	EXTENTS("behind the disk", EINVAL, e.sector = SECTORS);
	EXTENTS("over its end", EINVAL, e.sector = SECTORS - 1);
	EXTENTS("wrapping", EINVAL, e.sector = UINT64_MAX);
	EXTENTS("file number", EINVAL, e.file = BLKTAP_MAX_FILES);
	EXTENTS("no such file", ENOENT, e.file = 0);
	EXTENTS("odd offset", EINVAL, e.offset = 1);
	EXTENTS("offset of half a loff_t", EINVAL, e.offset = 1ull << 63);
	EXTENTS("offset that ends behind a loff_t", EINVAL, e.offset = INT64_MAX - 511);
	EXTENTS("most offset", EINVAL, e.offset = UINT64_MAX & ~511ull);
	EXTENTS("a good one", 0, (void)0);
	EXTENTS("the same again", EEXIST, (void)0);
	EXTENTS("over its end", EEXIST, e.sector = 15);
	EXTENTS("over its start", EEXIST, e.sector = 1);
	EXTENTS("around it", EEXIST, (e.sector = 0, e.nr_sectors = 100));
}

/* What is written back can't be: the call has been made, and says so. */
static void nowhere_to_write(int control, int ring, unsigned int minor)
{
	union {
		struct blktap_alloc alloc;
		struct blktap_enter enter;
		struct blktap_extents extents;
		struct blktap_withdraw withdraw;
	} *arg = pages(1, PROT_READ | PROT_WRITE);

#define READ_ONLY(fd, cmd, member, ...)					\
	do {								\
		mprotect(arg, PAGE, PROT_READ | PROT_WRITE);		\
		memset(arg, 0, sizeof(*arg));				\
		arg->member = (__typeof__(arg->member)) { .size = sizeof(arg->member), __VA_ARGS__ }; \
		mprotect(arg, PAGE, PROT_READ);				\
		expect_n(#cmd, "read-only", EFAULT, call(fd, BLKTAP_IOC_##cmd, arg)); \
	} while (0)
	READ_ONLY(control, ALLOC, alloc, .version = BLKTAP_ABI_VERSION, .minor = (int)minor + 1);
	READ_ONLY(control, ALLOC, alloc, .version = 1, .minor = (int)minor + 1);
	READ_ONLY(ring, ENTER, enter, .flags = 0);
	READ_ONLY(ring, ADD_EXTENTS, extents, .nr = 0);
	READ_ONLY(ring, WITHDRAW, withdraw, .nr_sectors = 1);
#undef READ_ONLY
	munmap(arg, PAGE);
}

/* In a child that has given up CAP_SYS_ADMIN. */
static void without_capability(unsigned int minor)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];
	int status, bad = 0;
	pid_t pid = fork();

	if (pid == 0) {
		if (syscall(SYS_capget, &head, data) < 0)
			_exit(99);
		data[CAP_SYS_ADMIN / 32].effective &= ~(1u << (CAP_SYS_ADMIN % 32));
		if (syscall(SYS_capset, &head, data) < 0)
			_exit(99);
		bad += open(BLKTAP_CONTROL_PATH, O_RDWR) >= 0 || errno != EPERM;
		bad += open(BLKTAP_CONTROL_PATH, O_RDONLY) >= 0 || errno != EPERM;
		bad += open_ring(minor) >= 0 || errno != EPERM;
		_exit(bad);
	}
	waitpid(pid, &status, 0);
	expect("without CAP_SYS_ADMIN", 0, -WEXITSTATUS(status));
}

static void bad_minors(int control)
{
	static const int minors[] = { -1, -2, 4096, INT32_MAX, INT32_MIN };
	struct blktap_free f = { .size = sizeof(f) };
	struct blktap_alloc a = { .size = sizeof(a), .version = BLKTAP_ABI_VERSION };

	for (size_t i = 0; i < NR(minors); i++) {
		f.minor = minors[i];
		expect("FREE, minor out of range", ENODEV, call(control, BLKTAP_IOC_FREE, &f));
		a.minor = minors[i];
		if (a.minor != -1)
			expect("ALLOC, minor out of range", EINVAL, call(control, BLKTAP_IOC_ALLOC, &a));
	}
	a.version = BLKTAP_ABI_VERSION - 1;
	expect("ALLOC, version", EPROTONOSUPPORT, call(control, BLKTAP_IOC_ALLOC, &a));
}

/* A caller that is newer than the driver, and has nothing new to say. */
static void longer_than_known(int ring)
{
	struct {
		struct blktap_enter enter;
		uint64_t more[8];
	} arg = { .enter.size = sizeof(arg) };

	expect("ENTER, longer", 0, call(ring, BLKTAP_IOC_ENTER, &arg));
	expect("ENTER, another code", 0, call(ring, _IOC(0u, 't', 0x54, 0), &arg));
}

static void with_device(int control, int ring, unsigned int minor, const char *path)
{
	struct blktap_device_params good = good_params();
	struct blktap_remove rm = { .size = sizeof(rm) };

	state = "device";
	expect("CREATE_DEVICE", 0, call(ring, BLKTAP_IOC_CREATE_DEVICE, &good));
	bad_arguments(control, ring);
	out_of_order(ring, EBUSY, EINVAL, 0, ENOENT, 0);
	PARAMS(SET_DEVICE, "smaller", EINVAL, p.sectors = SECTORS / 2);
	PARAMS(SET_DEVICE, "other blocks", EINVAL, p.logical_block_size = 4096);
	PARAMS(SET_DEVICE, "no cache", EINVAL, p.flags = 0);
	longer_than_known(ring);
	bad_files(ring, control, minor, path);
	bad_extents(ring);
	nowhere_to_write(control, ring, minor);
	/* udev may have it open for a moment */
	while (call(ring, BLKTAP_IOC_REMOVE_DEVICE, &rm) == -EBUSY)
		usleep(10000);
	expect("REMOVE_DEVICE again", ENODEV, call(ring, BLKTAP_IOC_REMOVE_DEVICE, &rm));
}

static int take_minor(int control, unsigned int minor)
{
	struct blktap_alloc a = {
		.size = sizeof(a), .version = BLKTAP_ABI_VERSION, .minor = (int)minor,
	};
	int ring;

	expect("ALLOC", 0, call(control, BLKTAP_IOC_ALLOC, &a));
	expect("ALLOC again", EBUSY, call(control, BLKTAP_IOC_ALLOC, &a));
	ring = open_ring(minor);
	if (ring < 0)
		err(1, BLKTAP_RING_PATH, (int)minor);
	expect("a second open", EBUSY, open_ring(minor) < 0 ? -errno : 0);
	return ring;
}

int main(int argc, char **argv)
{
	void *buf = pages(ENTRIES, PROT_READ | PROT_WRITE);
	struct blktap_free f = { .size = sizeof(f) };
	struct blktap_setup s = good_setup(buf);
	int control, ring;

	if (argc != 3) {
		fprintf(stderr, "usage: hostile MINOR FILE\n");
		return 2;
	}
	f.minor = atoi(argv[1]);
	control = open(BLKTAP_CONTROL_PATH, O_RDWR | O_CLOEXEC);
	if (control < 0)
		err(1, "%s", BLKTAP_CONTROL_PATH);
	state = "new";
	bad_minors(control);
	ring = take_minor(control, (unsigned int)f.minor);
	without_capability((unsigned int)f.minor);
	expect("FREE of what is open", EBUSY, call(control, BLKTAP_IOC_FREE, &f));
	not_an_ioctl(control, ring);
	bad_arguments(control, ring);
	expect("mapping", EINVAL, map_ring(ring, PAGE, PROT_READ, MAP_SHARED, 0));
	out_of_order(ring, 0, EINVAL, ENODEV, EINVAL, EINVAL);
	bad_setups(ring, buf);
	bad_buffer(ring, argv[2]);
	expect("SETUP", 0, call(ring, BLKTAP_IOC_SETUP, &s));
	state = "set up";
	out_of_order(ring, EBUSY, ENODEV, ENODEV, ENOENT, ENODEV);
	bad_arguments(control, ring);
	bad_devices(ring);
	bad_maps(ring, s.ring_bytes);
	with_device(control, ring, (unsigned int)f.minor, argv[2]);
	close(ring);
	expect("FREE", 0, call(control, BLKTAP_IOC_FREE, &f));
	expect("FREE again", ENODEV, call(control, BLKTAP_IOC_FREE, &f));
	printf("%u calls, %u wrong\n", calls, wrong);
	return wrong != 0;
}
