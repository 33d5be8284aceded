/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/blktap.h"

#include <blktap.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/log.h"
#include "transport/blktap-direct.h"

struct slot {
	struct vbd_request req;
	struct blktap *tap;
	uint64_t id;
	uint32_t flags;			/* BLKTAP_RQ_* */
};

struct blktap {
	struct transport transport;
	struct vbd *vbd;
	struct engine *engine;
	int minor;
	uint64_t features;		/* that are asked for */
	int fd;
	struct io_watch watch;
	bool fetching;
	bool kick;			/* completions to hand over, or requests to take */

	/* While set up. */
	struct blktap_ring *ring;
	size_t ring_bytes;
	struct blktap_sqe *sq;
	struct blktap_cqe *cq;
	uint32_t entries;
	uint32_t cq_tail;
	uint8_t *buf;
	size_t buf_bytes;
	struct blktap_direct direct;
	struct slot slots[BLKTAP_ENTRIES];
};

static const struct transport_ops blktap_ops;

static struct blktap *blktap_of(struct transport *transport)
{
	return container_of(transport, struct blktap, transport);
}

static void ring_ready(struct io_watch *watch, short revents)
{
	struct blktap *tap = container_of(watch, struct blktap, watch);

	/* At rest nothing else is asked for. */
	if (revents & POLLOUT && !tap->fetching) {
		tap->direct.draining = false;
		engine_unwatch(tap->engine, &tap->watch);
		return;
	}
	tap->kick = true;
}

static int watch_on(struct blktap *tap, short events, struct error *err)
{
	int rc;

	engine_unwatch(tap->engine, &tap->watch);
	tap->watch.fd = tap->fd;
	tap->watch.events = events;
	tap->watch.ready = ring_ready;
	rc = engine_watch(tap->engine, &tap->watch);
	if (rc)
		return error_set(err, rc, "minor %d: cannot wait for requests: %s",
				 tap->minor, strerror(-rc));
	return 0;
}

static int ring_open(struct blktap *tap, struct error *err)
{
	char path[64];
	int rc;

	snprintf(path, sizeof(path), BLKTAP_RING_PATH, tap->minor);
	tap->fd = open(path, O_RDWR | O_CLOEXEC);
	if (tap->fd >= 0)
		return 0;
	rc = -errno;
	if (rc == -EBUSY)
		return error_set(err, rc,
				 "minor %d is served by another tapdisk; see tap-ctl list",
				 tap->minor);
	return error_set(err, rc, "%s: %s", path, strerror(-rc));
}

int blktap_open(struct transport **transport, struct vbd *vbd,
		struct engine *engine, int minor, bool kernel_io,
		struct error *err)
{
	struct blktap *t = calloc(1, sizeof(*t));
	int rc;

	if (!t)
		return error_set(err, -ENOMEM, "minor %d: out of memory", minor);
	t->transport.ops = &blktap_ops;
	t->transport.unseen = true;
	list_init(&t->transport.link);
	t->vbd = vbd;
	t->engine = engine;
	t->minor = minor;
	t->features = BLKTAP_F_COPY | (kernel_io ? BLKTAP_F_REMAP : 0);
	direct_init(&t->direct, minor);
	rc = ring_open(t, err);
	if (rc) {
		free(t);
		return rc;
	}
	*transport = &t->transport;
	return 0;
}

static void blktap_hold(struct transport *transport)
{
	struct blktap *tap = blktap_of(transport);

	tap->fetching = false;
	engine_unwatch(tap->engine, &tap->watch);
	direct_rest(&tap->direct);
	/* Without the watch it would never be known: the ring's end drains, too. */
	if (tap->direct.draining && watch_on(tap, POLLOUT, NULL))
		tap->direct.draining = false;
}

static bool blktap_busy(const struct transport *transport)
{
	return container_of_const(transport, struct blktap, transport)->direct.draining;
}

static void ring_unmap(struct blktap *tap)
{
	blktap_hold(&tap->transport);
	engine_unwatch(tap->engine, &tap->watch);
	direct_off(&tap->direct);
	tap->kick = false;
	if (tap->ring)
		munmap(tap->ring, tap->ring_bytes);
	if (tap->buf)
		munmap(tap->buf, tap->buf_bytes);
	tap->ring = NULL;
	tap->buf = NULL;
}

static void blktap_close(struct transport *transport)
{
	struct blktap *tap = blktap_of(transport);

	ring_unmap(tap);
	if (tap->fd >= 0)
		close(tap->fd);
	free(tap);
}

static int blktap_reset(struct transport *transport, struct error *err)
{
	struct blktap *tap = blktap_of(transport);

	ring_unmap(tap);
	if (tap->fd >= 0)
		close(tap->fd);
	return ring_open(tap, err);
}

/* -ERANGE: the device has other limits, which are now in setup. */
static int ring_setup(struct blktap *tap, struct blktap_setup *setup,
		      struct error *err)
{
	int rc = 0;
	void *p;

	tap->buf_bytes = (size_t)setup->entries * setup->max_io_bytes;
	p = mmap(NULL, tap->buf_bytes, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return error_set(err, -errno, "minor %d: no memory for %zu bytes of buffers",
				 tap->minor, tap->buf_bytes);
	setup->buf_addr = (uint64_t)(uintptr_t)p;
	setup->buf_len = tap->buf_bytes;
	if (ioctl(tap->fd, BLKTAP_IOC_SETUP, setup) < 0)
		rc = -errno;
	if (!rc) {
		tap->buf = p;
		return 0;
	}
	munmap(p, tap->buf_bytes);
	return error_set(err, rc, "minor %d: the blktap driver refuses SETUP of ABI version %d: %s",
			 tap->minor, BLKTAP_ABI_VERSION, strerror(-rc));
}

static int ring_map(struct blktap *tap, struct error *err)
{
	struct blktap_setup setup = {
		.size		= sizeof(setup),
		.version	= BLKTAP_ABI_VERSION,
		.features	= tap->features,
		.nr_queues	= 1,
		.entries	= BLKTAP_ENTRIES,
		.max_io_bytes	= BLKTAP_MAX_IO_BYTES,
	};
	void *p;
	int rc;

	rc = ring_setup(tap, &setup, err);
	/* A tapdisk with other limits made the device that is taken over. */
	if (rc == -ERANGE && setup.entries > BLKTAP_ENTRIES)
		return error_set(err, rc, "minor %d: its device was made for %u requests at once, this tapdisk serves %u; open it with the version that made it",
				 tap->minor, setup.entries, BLKTAP_ENTRIES);
	if (rc == -ERANGE)
		rc = ring_setup(tap, &setup, err);
	if (rc)
		return rc;
	if (!(setup.features & BLKTAP_F_COPY) || setup.entries > BLKTAP_ENTRIES)
		return error_set(err, -EPROTO, "minor %d: the blktap driver granted features %#llx and %u entries",
				 tap->minor, (unsigned long long)setup.features,
				 setup.entries);
	tap->ring_bytes = (size_t)setup.ring_bytes;
	p = mmap(NULL, tap->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
		 tap->fd, 0);
	if (p == MAP_FAILED)
		return error_set(err, -errno, "minor %d: cannot map the ring: %s",
				 tap->minor, strerror(errno));
	tap->ring = p;
	tap->entries = setup.entries;
	tap->sq = (void *)((uint8_t *)p + setup.sq_off);
	tap->cq = (void *)((uint8_t *)p + setup.cq_off);
	tap->cq_tail = tap->ring->cq_tail;
	if (setup.features & BLKTAP_F_REMAP)
		direct_on(&tap->direct, tap->fd);
	return 0;
}

/* What one discard may cover: 1 GiB. */
#define DISCARD_MAX_SECTORS (1u << 21)

/*
 * all: offers what the image can't do too, for a device that there is must not
 * lose what it has, and ignores what it has not. A discard or zeroing
 * that the image can't do is refused, and the kernel writes instead.
 */
static struct blktap_device_params device_params(const struct image_info *info,
						 bool readonly, bool all)
{
	struct blktap_device_params params = {
		.size			= sizeof(struct blktap_device_params),
		.flags			= BLKTAP_DEV_FLUSH | BLKTAP_DEV_FUA |
					  (readonly ? BLKTAP_DEV_RDONLY : 0),
		.sectors		= info->sectors,
		.logical_block_size	= info->sector_size,
		.physical_block_size	= 4096,
		.discard_granularity	= 4096,
		.discard_max		= DISCARD_MAX_SECTORS,
	};

	if (all || info->can & IMAGE_CAN_DISCARD)
		params.flags |= BLKTAP_DEV_DISCARD;
	if (all || info->can & IMAGE_CAN_ZERO)
		params.flags |= BLKTAP_DEV_ZEROES;
	return params;
}

static void fetch_on(struct blktap *tap)
{
	direct_start(&tap->direct, vbd_image(tap->vbd));
	tap->fetching = true;
	tap->kick = true;
}

static int blktap_start(struct transport *transport,
			const struct image_info *info, bool readonly,
			struct error *err)
{
	struct blktap *tap = blktap_of(transport);
	struct blktap_device_params params = device_params(info, readonly,
							   false);
	int rc = 0;

	/* The last blktap_reset() may have failed. */
	if (tap->fd < 0)
		rc = ring_open(tap, err);
	if (rc)
		return rc;
	rc = ring_map(tap, err);
	if (!rc)
		rc = watch_on(tap, POLLIN, err);
	if (rc)
		goto out;
	if (ioctl(tap->fd, BLKTAP_IOC_CREATE_DEVICE, &params) < 0)
		rc = -errno;
	if (rc == -EEXIST) {
		rc = 0;
		params = device_params(info, readonly, true);
		if (ioctl(tap->fd, BLKTAP_IOC_RESUME_DEVICE, &params) < 0)
			rc = -errno;
	}
	if (rc) {
		error_set(err, rc, "minor %d: cannot make the gendisk: %s",
			  tap->minor, strerror(-rc));
		goto out;
	}
	fetch_on(tap);
	return 0;
out:
	/* A ring that was set up can't be set up again. */
	blktap_reset(transport, NULL);
	return rc;
}

static int blktap_stop(struct transport *transport, bool force,
		       struct error *err)
{
	struct blktap *tap = blktap_of(transport);
	struct blktap_remove remove = {
		.size	= sizeof(remove),
		.flags	= force ? BLKTAP_REMOVE_FORCE : 0,
	};
	int rc;

	if (ioctl(tap->fd, BLKTAP_IOC_REMOVE_DEVICE, &remove) < 0) {
		rc = -errno;
		if (rc == -EBUSY)
			return error_set(err, rc,
					 BLKTAP_DEVICE_PATH " is in use: detach it from the guest or unmount it first",
					 tap->minor);
		/* Removed by `tap-ctl free -f`. */
		if (rc != -ENODEV)
			return error_set(err, rc, "minor %d: cannot remove the gendisk: %s",
					 tap->minor, strerror(-rc));
	}
	blktap_hold(transport);
	return 0;
}

static int blktap_release(struct transport *transport,
			  const struct image_info *info, bool readonly,
			  struct error *err)
{
	struct blktap *tap = blktap_of(transport);
	struct blktap_device_params params = device_params(info, readonly,
							   true);
	int rc = watch_on(tap, POLLIN, err);

	/* What drained before may run still: the next hold asks again, or waits for its end. */
	if (rc)
		return rc;
	if (ioctl(tap->fd, BLKTAP_IOC_SET_DEVICE, &params) < 0) {
		rc = error_set(err, -errno, "minor %d: the gendisk does not take the new size: %s",
			       tap->minor, strerror(errno));
		blktap_hold(transport);
		return rc;
	}
	fetch_on(tap);
	return 0;
}

static void request_done(struct vbd_request *req, int err)
{
	struct slot *slot = container_of(req, struct slot, req);
	struct blktap *tap = slot->tap;
	struct blktap_cqe *cqe = &tap->cq[tap->cq_tail & (tap->entries - 1)];

	memset(cqe, 0, sizeof(*cqe));
	cqe->id = slot->id;
	cqe->tag = (uint16_t)(slot - tap->slots);
	cqe->code = BLKTAP_CQE_DONE;
	cqe->result = err;
	tap->cq_tail++;
	tap->kick = true;
	/* With FUA it comes here whatever the kernel knows. */
	if (!err && !slot->flags && !req->fua &&
	    (req->op == IMAGE_READ || req->op == IMAGE_WRITE))
		direct_learn(&tap->direct, req->image.sector, req->image.count,
			     req->op == IMAGE_WRITE);
}

/* The kernel's entries are trusted to be well-formed, not to fit our limits. */
static void take(struct blktap *tap, const struct blktap_sqe *sqe)
{
	uint64_t len = (uint64_t)sqe->nr_sectors << SECTOR_SHIFT;
	struct image_request *image;
	struct slot *slot;

	if (sqe->tag >= tap->entries) {
		log_error("blktap: request out of bounds minor=%d tag=%u",
			  tap->minor, sqe->tag);
		return;
	}
	slot = &tap->slots[sqe->tag];
	slot->tap = tap;
	slot->id = sqe->id;
	slot->flags = sqe->flags & (BLKTAP_RQ_DIRECT_FAILED | BLKTAP_RQ_UNFIT);
	if (sqe->flags & BLKTAP_RQ_DIRECT_FAILED)
		direct_refuse(&tap->direct, sqe->sector, sqe->nr_sectors);
	if (sqe->buf_offset > tap->buf_bytes ||
	    (sqe->op <= BLKTAP_OP_WRITE &&
	     len > tap->buf_bytes - sqe->buf_offset)) {
		log_error("blktap: data out of bounds minor=%d tag=%u",
			  tap->minor, sqe->tag);
		request_done(&slot->req, -EIO);
		return;
	}
	image = &slot->req.image;
	image->sector = sqe->sector;
	image->count = sqe->nr_sectors;
	image->buf = tap->buf + sqe->buf_offset;
	slot->req.from = &tap->transport;
	slot->req.done = request_done;
	slot->req.fua = sqe->flags & BLKTAP_RQ_FUA;
	switch (sqe->op) {
	case BLKTAP_OP_READ:
		image->op = IMAGE_READ;
		break;
	case BLKTAP_OP_WRITE:
		image->op = IMAGE_WRITE;
		break;
	case BLKTAP_OP_FLUSH:
		image->op = IMAGE_FLUSH;
		image->count = 0;
		slot->req.fua = false;
		break;
	case BLKTAP_OP_DISCARD:
		image->op = IMAGE_DISCARD;
		break;
	case BLKTAP_OP_WRITE_ZEROES:
		image->op = IMAGE_ZERO;
		image->keep_space = sqe->flags & BLKTAP_RQ_NOUNMAP;
		break;
	default:
		request_done(&slot->req, -EOPNOTSUPP);
		return;
	}
	vbd_submit(tap->vbd, &slot->req);
}

static bool blktap_round(struct transport *transport)
{
	struct blktap *tap = blktap_of(transport);
	struct blktap_enter enter = { .size = sizeof(enter) };
	uint32_t head, tail;

	if (!tap->kick || !tap->ring)
		return false;
	tap->kick = false;
	__atomic_store_n(&tap->ring->cq_tail, tap->cq_tail, __ATOMIC_RELEASE);
	direct_push(&tap->direct);
	if (!tap->fetching)
		enter.flags = BLKTAP_ENTER_NOFETCH;
	if (ioctl(tap->fd, BLKTAP_IOC_ENTER, &enter) < 0) {
		/* What the kernel has not taken is offered to it again. */
		if (errno == EINTR) {
			tap->kick = true;
			return true;
		}
		/* A removed device takes no answers: nobody waits for them. */
		if (errno != ENODEV)
			log_error("blktap: ENTER failed minor=%d err=%d",
				  tap->minor, errno);
		blktap_hold(transport);
		return false;
	}
	head = tap->ring->sq_head;
	tail = __atomic_load_n(&tap->ring->sq_tail, __ATOMIC_ACQUIRE);
	for (; head != tail; head++)
		take(tap, &tap->sq[head & (tap->entries - 1)]);
	__atomic_store_n(&tap->ring->sq_head, head, __ATOMIC_RELEASE);
	return tap->kick;
}

static const struct transport_ops blktap_ops = {
	.name		= "blktap",
	.start		= blktap_start,
	.stop		= blktap_stop,
	.reset		= blktap_reset,
	.hold		= blktap_hold,
	.release	= blktap_release,
	.busy		= blktap_busy,
	.round		= blktap_round,
	.close		= blktap_close,
};
