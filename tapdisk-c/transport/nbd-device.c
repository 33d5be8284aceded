/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/nbd-device.h"

#include <blktap.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "transport/nbd-gendisk.h"
#include "transport/nbd-internal.h"

/* Nobody but who takes it over or frees the minor ends the wait: ten years. */
#define HOLD_S		315360000ull
/* As our other gendisks: what one piece, and one discard, may cover. */
#define MAX_IO_KIB	(NBD_CHUNK_BYTES >> 10)
#define MAX_DISCARD	(1ull << 30)
/* A dead process's end of the connection is closed a moment after. */
#define TAKE_OVER_TRIES	500
#define TAKE_OVER_NS	20000000
/* Who looks at a new device is done with it in less. */
#define CONNECT_TRIES	250
#define AGAIN_NS	200000000u

struct nbd_device {
	struct nbd server;		/* its only client is the kernel */
	struct nbd_gendisk disk;
	int minor;
	bool made;			/* the gendisk is there, as far as we know */
	struct io_timer again;		/* the connection is lost: make another */
	struct io_timer grow;		/* another resize is under way: see then whether its size is right */
};

/*
 * In a thread of its own: the kernel waits for requests that this process
 * answers, and lets no other call of its kind through meanwhile.
 */
struct resize {
	struct nbd_gendisk disk;
	uint64_t bytes;
	uint32_t block_bytes;
};

static atomic_int resizing;

static struct nbd_device *device_of(struct transport *transport)
{
	return container_of(container_of(transport, struct nbd, transport),
			    struct nbd_device, server);
}

static int not_while_resizing(const struct nbd_device *dev, struct error *err)
{
	if (!atomic_load(&resizing))
		return 0;
	return error_set(err, -EBUSY, "minor %d: a disk of this tapdisk is being resized; try again when its requests are through",
			 dev->minor);
}

/* Connecting: each makes a pair of sockets, whose other end the kernel keeps. */

static bool hung_up(int fd)
{
	struct pollfd p = { .fd = fd };

	return poll(&p, 1, 0) > 0 && p.revents & POLLHUP;
}

/* disk: makes the gendisk; NULL: it is there. -EAGAIN: its last connection is not lost yet. */
static int connect_once(struct nbd_device *dev,
			const struct nbd_link_disk *disk, struct error *err)
{
	void *part = nbd_pool_take(&dev->server.pool);
	int fds[2], rc;

	if (!part)
		return error_set(err, -ENOMEM, "minor %d: no memory for its requests",
				 dev->minor);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds)) {
		rc = error_set(err, -errno, "minor %d: socketpair: %s",
			       dev->minor, strerror(errno));
		goto out;
	}
	nbd_conn_widen(fds[1]);
	rc = disk ? nbd_link_connect(&dev->disk.link, disk, fds[1], err) :
		    nbd_link_reconnect(&dev->disk.link, fds[1], err);
	close(fds[1]);
	if (!rc && hung_up(fds[0]))
		rc = error_set(err, -EAGAIN, "minor %d: its gendisk is still connected to another process",
			       dev->minor);
	if (rc) {
		close(fds[0]);
		goto out;
	}
	nbd_conn_open_ready(&dev->server, part, fds[0]);
	return 0;
out:
	nbd_pool_give(&dev->server.pool, part);
	return rc;
}

static int take_over(struct nbd_device *dev, struct error *err)
{
	const struct timespec pause = { .tv_nsec = TAKE_OVER_NS };
	int rc = -EAGAIN;

	for (int i = 0; rc == -EAGAIN && i < TAKE_OVER_TRIES; i++) {
		if (i)
			nanosleep(&pause, NULL);
		rc = connect_once(dev, NULL, err);
	}
	return rc;
}

static void *resize_run(void *priv)
{
	struct resize *resize = priv;
	struct error err;

	if (nbd_link_resize(&resize->disk.link, resize->bytes,
			    resize->block_bytes, &err))
		log_error("its new size of %llu bytes is not seen: %s",
			  (unsigned long long)resize->bytes, err.text);
	free(resize);
	atomic_fetch_sub(&resizing, 1);
	return NULL;
}

/* Signals are the main thread's. */
static int run_thread(void *(*run)(void *), void *priv)
{
	pthread_attr_t attr;
	sigset_t all, old;
	pthread_t thread;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	rc = -pthread_create(&thread, &attr, run, priv);
	pthread_attr_destroy(&attr);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return rc;
}

/*
 * Its requests are served again; what it is larger by shows a moment later. A resize that is under way waits for
 * requests, of this disk among others: what is wanted meanwhile comes after it.
 */
static int resize_if_grown(struct nbd_device *dev, uint64_t bytes,
			   uint32_t block_bytes, struct error *err)
{
	struct resize *resize;
	uint64_t sectors = 0;
	int rc;

	rc = nbd_gendisk_read(&dev->disk, "size", &sectors);
	if (rc)
		return error_set(err, rc, "minor %d: /sys/block/%s/size: %s",
				 dev->minor, dev->disk.name, strerror(-rc));
	if (sectors << SECTOR_SHIFT == bytes)
		return 0;
	if (atomic_load(&resizing)) {
		engine_timer_set(dev->server.engine, &dev->grow, now_ns() + AGAIN_NS);
		return 0;
	}
	resize = malloc(sizeof(*resize));
	if (!resize)
		return error_set(err, -ENOMEM, "minor %d: out of memory",
				 dev->minor);
	nbd_gendisk_of(&resize->disk, dev->minor);
	resize->bytes = bytes;
	resize->block_bytes = block_bytes;
	atomic_fetch_add(&resizing, 1);
	rc = run_thread(resize_run, resize);
	if (!rc)
		return 0;
	atomic_fetch_sub(&resizing, 1);
	free(resize);
	return error_set(err, rc, "minor %d: no thread to resize it: %s",
			 dev->minor, strerror(-rc));
}

static void grow_again(struct io_timer *timer)
{
	struct nbd_device *dev = container_of(timer, struct nbd_device, grow);
	const struct image_info *info = &dev->server.info;
	struct error err;

	/* What is held is looked at when it is released. */
	if (dev->made && !dev->server.held &&
	    resize_if_grown(dev, info->sectors << SECTOR_SHIFT,
			    info->sector_size, &err))
		log_error("%s", err.text);
}

static void cancel_timers(struct nbd_device *dev)
{
	engine_timer_cancel(dev->server.engine, &dev->again);
	engine_timer_cancel(dev->server.engine, &dev->grow);
}

/* Making the gendisk */

/*
 * The kernel refuses to connect a device that is open. udev, and others, open a
 * new one as soon as it shows, which is before its maker has it connected.
 */
static int connect_new(struct nbd_device *dev, const struct nbd_link_disk *disk,
		       struct error *err)
{
	const struct timespec pause = { .tv_nsec = TAKE_OVER_NS };
	int rc = connect_once(dev, disk, err);

	for (int i = 0; rc == -EBUSY && !nbd_gendisk_connected(&dev->disk) &&
	     i < CONNECT_TRIES; i++) {
		nanosleep(&pause, NULL);
		rc = connect_once(dev, disk, err);
	}
	return rc;
}

static int make(struct nbd_device *dev, struct error *err)
{
	const struct nbd *server = &dev->server;
	const struct nbd_link_disk disk = {
		.bytes		= server->info.sectors << SECTOR_SHIFT,
		.block_bytes	= server->info.sector_size,
		.flags		= (uint16_t)nbd_server_flags(server),
		.hold_s		= HOLD_S,
	};
	int rc = connect_new(dev, &disk, err);

	if (rc)
		return rc;
	dev->made = true;
	if (!nbd_gendisk_ours(&dev->disk))
		return error_set(err, -EOPNOTSUPP, "minor %d: the kernel keeps no backend of its nbd devices, which it does from Linux 5.14 on; use another transport",
				 dev->minor);
	return 0;
}

/* The gendisk of a dead tapdisk against what is open now. */
static int check_gendisk(const struct nbd_device *dev, struct error *err)
{
	const struct image_info *info = &dev->server.info;
	uint64_t sectors, block, ro;
	int rc;

	rc = nbd_gendisk_read(&dev->disk, "size", &sectors);
	if (!rc)
		rc = nbd_gendisk_read(&dev->disk, "queue/logical_block_size",
				      &block);
	if (!rc)
		rc = nbd_gendisk_read(&dev->disk, "ro", &ro);
	if (rc)
		return error_set(err, rc, "minor %d: /sys/block/%s: %s",
				 dev->minor, dev->disk.name, strerror(-rc));
	if (info->sectors < sectors)
		return error_set(err, -EINVAL, "minor %d: the image has %llu bytes, its gendisk %llu: a disk in use can't shrink; open what it had open",
				 dev->minor,
				 (unsigned long long)info->sectors << SECTOR_SHIFT,
				 (unsigned long long)sectors << SECTOR_SHIFT);
	if (info->sector_size > block)
		return error_set(err, -EINVAL, "minor %d: the image has sectors of %u bytes, its gendisk of %llu; open what it had open",
				 dev->minor, info->sector_size,
				 (unsigned long long)block);
	if (dev->server.readonly != (ro != 0))
		return error_set(err, -EINVAL, "minor %d: its gendisk is %s; open the image %s -R",
				 dev->minor, ro ? "read-only" : "for writing",
				 ro ? "with" : "without");
	return 0;
}

static int resume(struct nbd_device *dev, struct error *err)
{
	struct image_info *info = &dev->server.info;
	uint64_t block;
	int rc = check_gendisk(dev, err);

	if (rc)
		return rc;
	/* That of the device, which a smaller one does not change. */
	if (!nbd_gendisk_read(&dev->disk, "queue/logical_block_size", &block))
		info->sector_size = (uint32_t)block;
	rc = take_over(dev, err);
	if (rc)
		return rc;
	dev->made = true;
	/* Its growth comes when all disks are there that are taken over with it: none can be while one is being resized. */
	engine_timer_set(dev->server.engine, &dev->grow, now_ns());
	return 0;
}

/*
 * A request of one piece has its own result, and flush; and see nbd-device.h. Linux
 * 6.12 freezes the queue for each, so this waits for the requests in flight,
 * which are ours to answer: in a thread of its own.
 */
struct limits {
	struct nbd_gendisk disk;
	bool trim;
	int minor;
};

static int set_limit(const struct nbd_gendisk *disk, const char *name,
		     uint64_t value)
{
	uint64_t now;

	/* A disk that is taken over has it already. */
	if (!nbd_gendisk_read(disk, name, &now) && now == value)
		return 0;
	return nbd_gendisk_write(disk, name, value);
}

static void *limits_run(void *priv)
{
	struct limits *limits = priv;
	int rc = set_limit(&limits->disk, "queue/max_sectors_kb", MAX_IO_KIB);

	if (!rc)
		rc = set_limit(&limits->disk, "queue/io_timeout", NBD_RESEND_MS);
	if (!rc && limits->trim)
		rc = set_limit(&limits->disk, "queue/discard_max_bytes",
			       MAX_DISCARD);
	if (rc)
		log_warn("goes without limits of its requests minor=%d err=%d",
			 limits->minor, -rc);
	free(limits);
	return NULL;
}

static void set_limits(const struct nbd_device *dev)
{
	struct limits *limits = malloc(sizeof(*limits));
	int rc = -ENOMEM;

	if (limits) {
		nbd_gendisk_of(&limits->disk, dev->minor);
		limits->trim = nbd_server_flags(&dev->server) & NBD_FLAG_SEND_TRIM;
		limits->minor = dev->minor;
		rc = run_thread(limits_run, limits);
	}
	if (rc) {
		free(limits);
		log_warn("goes without limits of its requests minor=%d err=%d",
			 dev->minor, -rc);
	}
}

static int device_start(struct transport *transport,
			const struct image_info *info, bool readonly,
			struct error *err)
{
	struct nbd_device *dev = device_of(transport);
	bool ours = nbd_gendisk_ours(&dev->disk);
	int rc;

	rc = not_while_resizing(dev, err);
	if (rc)
		return rc;
	nbd_server_start(&dev->server, info, readonly);
	rc = ours ? resume(dev, err) : make(dev, err);
	if (!rc)
		rc = gendisk_publish(dev->minor, dev->disk.name, err);
	if (!rc) {
		set_limits(dev);
		return 0;
	}
	/* One that was there goes on waiting, for another try. */
	nbd_server_stop(&dev->server);
	if (dev->made && !ours)
		nbd_link_disconnect(&dev->disk.link, NULL);
	dev->made = false;
	return rc;
}

static int device_stop(struct transport *transport, bool force,
		       struct error *err)
{
	struct nbd_device *dev = device_of(transport);
	bool ours = nbd_gendisk_ours(&dev->disk);
	int rc;

	rc = not_while_resizing(dev, err);
	if (rc)
		/* What it waits for is failed then. */
		return force ? -EAGAIN : rc;
	/* tap-ctl has it disconnected before: transport/gendisk.h, vacate. */
	if (ours && !force)
		return error_set(err, -EBUSY, BLKTAP_DEVICE_PATH " is in use: detach it from the guest or unmount it first",
				 dev->minor);
	/* Our end first: the kernel may be waiting to send, and would wait for us. */
	nbd_server_stop(&dev->server);
	cancel_timers(dev);
	dev->made = false;
	if (ours)
		rc = nbd_link_disconnect(&dev->disk.link, err);
	if (!rc) {
		gendisk_unpublish(dev->minor);
		return 0;
	}
	/* The disk goes on, by another connection. */
	dev->made = true;
	dev->server.serving = true;
	engine_timer_set(dev->server.engine, &dev->again, now_ns() + AGAIN_NS);
	return rc;
}

static int device_reset(struct transport *transport, struct error *err)
{
	struct nbd_device *dev = device_of(transport);

	(void)err;
	cancel_timers(dev);
	dev->made = false;
	nbd_pool_close(&dev->server.pool);
	return 0;
}

static void device_hold(struct transport *transport)
{
	device_of(transport)->server.held = true;
}

static int device_release(struct transport *transport,
			  const struct image_info *info, bool readonly,
			  struct error *err)
{
	struct nbd_device *dev = device_of(transport);
	int rc = 0;

	nbd_server_release(&dev->server, info, readonly);
	if (dev->made && nbd_gendisk_ours(&dev->disk))
		rc = resize_if_grown(dev, info->sectors << SECTOR_SHIFT,
				     info->sector_size, err);
	return rc;
}

/* The connection was lost though nobody ended the gendisk: what was not answered comes again. */
static void connect_again(struct io_timer *timer)
{
	struct nbd_device *dev = container_of(timer, struct nbd_device, again);
	struct error err;
	int rc;

	if (!dev->made || !list_empty(&dev->server.conns))
		return;
	if (!nbd_gendisk_ours(&dev->disk)) {
		log_info("its gendisk is gone minor=%d", dev->minor);
		dev->made = false;
		return;
	}
	rc = not_while_resizing(dev, &err);
	if (!rc)
		rc = connect_once(dev, NULL, &err);
	if (!rc) {
		log_warn("the kernel's connection was lost and is made again minor=%d",
			 dev->minor);
		return;
	}
	if (rc != -EBUSY && rc != -EAGAIN)
		log_warn("%s", err.text);
	engine_timer_set(dev->server.engine, &dev->again, now_ns() + AGAIN_NS);
}

static void connection_gone(struct nbd *server)
{
	struct nbd_device *dev = container_of(server, struct nbd_device, server);

	if (dev->made && list_empty(&server->conns) && !dev->again.armed)
		engine_timer_set(server->engine, &dev->again,
				 now_ns() + AGAIN_NS);
}

static bool device_round(struct transport *transport)
{
	return nbd_server_round(&device_of(transport)->server);
}

/* The kernel lets nobody else connect while it waits for requests that only this connection can bring. */
static int device_may_leave(struct transport *transport, struct error *err)
{
	return not_while_resizing(device_of(transport), err);
}

/* The kernel keeps what was not answered for the next connection, which is the next process's. */
static bool device_leave(struct transport *transport)
{
	struct nbd_device *dev = device_of(transport);

	cancel_timers(dev);
	dev->made = false;
	return nbd_server_leave(&dev->server);
}

static void device_close(struct transport *transport)
{
	struct nbd_device *dev = device_of(transport);

	cancel_timers(dev);
	nbd_server_close(&dev->server);
	free(dev);
}

static const struct transport_ops device_ops = {
	.name		= "nbd device",
	.start		= device_start,
	.stop		= device_stop,
	.reset		= device_reset,
	.hold		= device_hold,
	.release	= device_release,
	.round		= device_round,
	.may_leave	= device_may_leave,
	.leave		= device_leave,
	.close		= device_close,
};

int nbd_device_open(struct transport **transport, struct vbd *vbd,
		    struct engine *engine, int minor, struct error *err)
{
	struct nbd_device *dev = calloc(1, sizeof(*dev));

	if (!dev)
		return error_set(err, -ENOMEM, "minor %d: out of memory", minor);
	nbd_server_init(&dev->server, vbd, engine);
	dev->server.transport.ops = &device_ops;
	dev->server.transport.unseen = true;
	list_init(&dev->server.transport.link);
	dev->server.gone = connection_gone;
	nbd_gendisk_of(&dev->disk, minor);
	dev->minor = minor;
	dev->again.expired = connect_again;
	dev->grow.expired = grow_again;
	*transport = &dev->server.transport;
	return 0;
}
