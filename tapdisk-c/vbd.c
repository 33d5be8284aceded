/* SPDX-License-Identifier: LGPL-2.1-only */
#include "vbd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "transport/blktap.h"

/*
 * Answers that need no I/O make new room in the ring at once: so many rounds
 * are worth it before I/O that was queued meanwhile is submitted.
 */
#define ROUNDS_MAX 4

enum drain { DRAIN_NONE, DRAIN_PAUSE, DRAIN_CLOSE };

struct vbd {
	struct server *server;
	int minor;			/* -1: none */
	struct list transports;		/* the one that may refuse to stop is first */
	struct io_stream stream;
	struct image *image;		/* NULL while closed or paused */
	char *args;			/* NULL while closed */
	bool readonly;
	struct image_info info;		/* as last opened */
	unsigned int inflight;
	enum drain drain;
	server_done drained;
	void *drained_priv;
	struct vbd_stats stats;
};

#define for_each_transport(t, vbd) \
	list_for_each(pos_##t, &(vbd)->transports) \
		for (struct transport *t = container_of(pos_##t, \
							struct transport, link); \
		     t; t = NULL)

static struct vbd *vbd_new(struct server *server, int minor)
{
	struct vbd *vbd = calloc(1, sizeof(*vbd));

	if (!vbd)
		return NULL;
	vbd->server = server;
	vbd->minor = minor;
	list_init(&vbd->transports);
	return vbd;
}

int vbd_create(struct vbd **vbd, struct server *server, int minor,
	       struct error *err)
{
	*vbd = vbd_new(server, minor);
	return *vbd ? 0 : error_set(err, -ENOMEM, "out of memory");
}

int vbd_attach(struct vbd **vbd, struct server *server, int minor,
	       struct error *err)
{
	struct transport *tap;
	struct vbd *v;
	int rc;

	v = vbd_new(server, minor);
	if (!v)
		return error_set(err, -ENOMEM, "minor %d: out of memory", minor);
	rc = blktap_open(&tap, v, server_engine(server), minor, err);
	if (rc) {
		free(v);
		return rc;
	}
	list_add_tail(&tap->link, &v->transports);
	*vbd = v;
	return 0;
}

int vbd_detach(struct vbd *vbd, struct error *err)
{
	struct list *item;

	if (vbd->args)
		return error_set(err, -EBUSY,
				 "minor %d: %s is open; close it first",
				 vbd->minor, vbd->args);
	while ((item = list_pop(&vbd->transports))) {
		struct transport *t = container_of(item, struct transport, link);

		t->ops->close(t);
	}
	free(vbd);
	return 0;
}

int vbd_add_transport(struct vbd *vbd, struct transport *transport,
		      struct error *err)
{
	int rc = 0;

	if (vbd->args && (!vbd->image || vbd->drain != DRAIN_NONE))
		return error_set(err, -EBUSY, "minor %d: is paused", vbd->minor);
	if (vbd->args)
		rc = transport->ops->start(transport, &vbd->info, vbd->readonly,
					   err);
	if (!rc)
		list_add_tail(&transport->link, &vbd->transports);
	return rc;
}

static int image_open(struct vbd *vbd, const char *args, bool readonly,
		      struct error *err)
{
	struct image_open_args open_args = {
		.engine		= server_engine(vbd->server),
		.stream		= &vbd->stream,
		.config		= server_config(vbd->server),
		.readonly	= readonly,
		.max_requests	= BLKTAP_ENTRIES,
	};
	const struct image_driver *driver;
	int rc;

	rc = image_parse(args, &driver, &open_args.path, err);
	if (!rc)
		rc = driver->open(&vbd->image, &open_args, err);
	if (rc) {
		vbd->image = NULL;
		return rc;
	}
	vbd->info = vbd->image->info;
	return 0;
}

static int image_close(struct vbd *vbd, struct error *err)
{
	struct image *image = vbd->image;
	int rc;

	vbd->image = NULL;
	rc = image->driver->close(image, err);
	if (rc)
		log_error("image not closed cleanly minor=%d path=%s err=%d",
			  vbd->minor, vbd->args, -rc);
	return rc;
}

/* All or none. */
static int start_all(struct vbd *vbd, struct error *err)
{
	for_each_transport(t, vbd) {
		int rc = t->ops->start(t, &vbd->info, vbd->readonly, err);

		if (!rc)
			continue;
		for_each_transport(u, vbd) {
			if (u == t)
				break;
			u->ops->stop(u, true, NULL);
			u->ops->reset(u, NULL);
		}
		return rc;
	}
	return 0;
}

static void hold_all(struct vbd *vbd)
{
	for_each_transport(t, vbd)
		t->ops->hold(t);
}

static int release_all(struct vbd *vbd, struct error *err)
{
	for_each_transport(t, vbd) {
		int rc = t->ops->release(t, &vbd->info, vbd->readonly, err);

		if (rc) {
			hold_all(vbd);
			return rc;
		}
	}
	return 0;
}

static int stop_all(struct vbd *vbd, bool force, struct error *err)
{
	for_each_transport(t, vbd) {
		int rc = t->ops->stop(t, force, err);

		if (rc)
			return rc;
	}
	return 0;
}

/* Goes on after an error, which is returned. */
static int reset_all(struct vbd *vbd, struct error *err)
{
	struct error e;
	int rc = 0;

	for_each_transport(t, vbd) {
		int r = t->ops->reset(t, &e);

		if (r && !rc) {
			rc = r;
			*err = e;
		}
	}
	return rc;
}

int vbd_open(struct vbd *vbd, const char *args, bool readonly,
	     struct error *err)
{
	char *copy;
	int rc;

	if (vbd->args)
		return error_set(err, -EBUSY, "minor %d: already has %s open",
				 vbd->minor, vbd->args);
	copy = strdup(args);
	if (!copy)
		return error_set(err, -ENOMEM, "%s: out of memory", args);
	rc = image_open(vbd, copy, readonly, err);
	if (rc) {
		free(copy);
		return rc;
	}
	vbd->args = copy;
	vbd->readonly = readonly;
	memset(&vbd->stats, 0, sizeof(vbd->stats));
	rc = start_all(vbd, err);
	if (rc) {
		image_close(vbd, NULL);
		free(vbd->args);
		vbd->args = NULL;
		return rc;
	}
	log_info("opened minor=%d path=%s chain=%u engine=%s%s", vbd->minor,
		 args, vbd->info.depth, engine_name(server_engine(vbd->server)),
		 readonly ? " readonly" : "");
	return 0;
}

/* True if the verb can't go on; done has then been called. */
static bool refuse(struct vbd *vbd, const char *verb, server_done done,
		   void *priv)
{
	struct error err;
	int rc;

	if (!vbd->args)
		rc = error_set(&err, -ENODEV, "minor %d: no image is open; nothing to %s",
			       vbd->minor, verb);
	else if (vbd->drain != DRAIN_NONE)
		rc = error_set(&err, -EBUSY, "minor %d: a %s is under way",
			       vbd->minor,
			       vbd->drain == DRAIN_PAUSE ? "pause" : "close");
	else
		return false;
	done(priv, rc, &err);
	return true;
}

static void drain_begin(struct vbd *vbd, enum drain drain, server_done done,
			void *priv)
{
	vbd->drain = drain;
	vbd->drained = done;
	vbd->drained_priv = priv;
}

void vbd_close(struct vbd *vbd, bool force, server_done done, void *priv)
{
	struct error err;
	int rc;

	if (refuse(vbd, "close", done, priv))
		return;
	rc = stop_all(vbd, force, &err);
	if (rc)
		done(priv, rc, &err);
	else
		drain_begin(vbd, DRAIN_CLOSE, done, priv);
}

void vbd_pause(struct vbd *vbd, server_done done, void *priv)
{
	if (refuse(vbd, "pause", done, priv))
		return;
	if (vbd->image)
		hold_all(vbd);
	drain_begin(vbd, DRAIN_PAUSE, done, priv);
}

int vbd_unpause(struct vbd *vbd, const char *args, struct error *err)
{
	struct image_info info = vbd->info;
	char *copy;
	int rc;

	if (!vbd->args || vbd->image || vbd->drain != DRAIN_NONE)
		return error_set(err, -EINVAL, "minor %d: is not paused",
				 vbd->minor);
	copy = strdup(args ? args : vbd->args);
	if (!copy)
		return error_set(err, -ENOMEM, "minor %d: out of memory",
				 vbd->minor);
	rc = image_open(vbd, copy, vbd->readonly, err);
	if (rc) {
		free(copy);
		return rc;
	}
	rc = release_all(vbd, err);
	if (rc) {
		image_close(vbd, NULL);
		vbd->info = info;
		free(copy);
		return rc;
	}
	free(vbd->args);
	vbd->args = copy;
	log_info("unpaused minor=%d path=%s chain=%u", vbd->minor, copy,
		 vbd->info.depth);
	return 0;
}

static void drain_finish(struct vbd *vbd)
{
	server_done done = vbd->drained;
	enum drain drain = vbd->drain;
	struct error err;
	int rc = 0;

	if (vbd->image)
		rc = image_close(vbd, &err);
	if (drain == DRAIN_CLOSE) {
		struct error reset;
		int r = reset_all(vbd, &reset);

		if (r && !rc) {
			rc = r;
			err = reset;
		}
		free(vbd->args);
		vbd->args = NULL;
	}
	vbd->drain = DRAIN_NONE;
	log_info("%s minor=%d", drain == DRAIN_CLOSE ? "closed" : "paused",
		 vbd->minor);
	done(vbd->drained_priv, rc, &err);
}

static bool round_all(struct vbd *vbd)
{
	bool more = false;

	for_each_transport(t, vbd)
		more |= t->ops->round(t);
	return more;
}

bool vbd_round(struct vbd *vbd)
{
	bool more = true;

	for (int i = 0; more && i < ROUNDS_MAX; i++)
		more = round_all(vbd);
	if (!more && vbd->drain != DRAIN_NONE && !vbd->inflight)
		drain_finish(vbd);
	return more;
}

bool vbd_idle(const struct vbd *vbd)
{
	return !vbd->image && vbd->drain == DRAIN_NONE;
}

bool vbd_draining(const struct vbd *vbd)
{
	return vbd->drain != DRAIN_NONE;
}

static struct vbd_counters *counters_of(struct vbd_stats *stats,
					enum image_op op)
{
	switch (op) {
	case IMAGE_READ:
		return &stats->read;
	case IMAGE_WRITE:
		return &stats->write;
	case IMAGE_FLUSH:
		return &stats->flush;
	case IMAGE_DISCARD:
	case IMAGE_ZERO:
		return &stats->discard;
	case IMAGE_STATUS:
		break;
	}
	return &stats->status;
}

static void account(struct vbd *vbd, const struct vbd_request *req, int err)
{
	struct vbd_counters *c = counters_of(&vbd->stats, req->op);
	uint64_t ns = now_ns() - req->arrived_ns;

	c->requests++;
	c->sectors += req->image.count;
	c->errors += err != 0;
	c->total_ns += ns;
	if (ns > c->max_ns)
		c->max_ns = ns;
}

static void finish(struct vbd_request *req, int err)
{
	struct vbd *vbd = req->vbd;

	account(vbd, req, err);
	if (err)
		log_error("request failed minor=%d op=%d sector=%llu count=%u err=%d",
			  vbd->minor, (int)req->op,
			  (unsigned long long)req->image.sector,
			  req->image.count, -err);
	vbd->inflight--;
	req->done(req, err);
}

static void image_done(struct image_request *image, int err)
{
	struct vbd_request *req =
		container_of(image, struct vbd_request, image);

	if (err || !req->fua || image->op == IMAGE_FLUSH) {
		finish(req, err);
		return;
	}
	/* What is done is durable when a flush that begins now is. */
	req->fua = false;
	image->op = IMAGE_FLUSH;
	req->vbd->image->driver->submit(req->vbd->image, image);
}

/* 0 if the image can be asked. */
static int refuse_request(const struct vbd *vbd,
			  const struct image_request *image)
{
	static const unsigned int needs[] = {
		[IMAGE_DISCARD]	= IMAGE_CAN_DISCARD,
		[IMAGE_ZERO]	= IMAGE_CAN_ZERO,
		[IMAGE_STATUS]	= IMAGE_CAN_STATUS,
	};

	if (image->op == IMAGE_FLUSH)
		return 0;
	if (!image->count || image->sector > vbd->info.sectors ||
	    image->count > vbd->info.sectors - image->sector)
		return -EIO;
	if (image->op == IMAGE_READ || image->op == IMAGE_STATUS ||
	    !vbd->readonly)
		return needs[image->op] & ~vbd->info.can ? -EOPNOTSUPP : 0;
	return -EPERM;
}

void vbd_submit(struct vbd *vbd, struct vbd_request *req)
{
	struct image_request *image = &req->image;
	int rc = refuse_request(vbd, image);

	req->vbd = vbd;
	req->op = image->op;
	req->arrived_ns = now_ns();
	vbd->inflight++;
	image->done = image_done;
	if (rc)
		finish(req, rc);
	else
		vbd->image->driver->submit(vbd->image, image);
}

int vbd_minor(const struct vbd *vbd)
{
	return vbd->minor;
}

static const char *view_chain_path(const struct vbd_view *view, unsigned int i)
{
	const struct image *image = view->vbd->image;

	if (!image || !image->driver->chain_path)
		return NULL;
	return image->driver->chain_path(image, i);
}

void vbd_fill_view(const struct vbd *vbd, struct vbd_view *view)
{
	*view = (struct vbd_view) {
		.minor		= vbd->minor,
		.args		= vbd->args,
		.readonly	= vbd->readonly,
		.sectors	= vbd->info.sectors,
		.sector_size	= vbd->info.sector_size,
		.depth		= vbd->info.depth,
		.stats		= vbd->stats,
		.chain_path	= view_chain_path,
		.vbd		= vbd,
	};
	view->stats.inflight = vbd->inflight;
	view->stats.merged = vbd->stream.merged;
	if (!vbd->args)
		view->state = VBD_CLOSED;
	else if (vbd->drain != DRAIN_NONE)
		view->state = VBD_PAUSE_REQUESTED;
	else if (!vbd->image)
		view->state = VBD_PAUSED;
}
