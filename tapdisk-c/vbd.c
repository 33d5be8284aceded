/* SPDX-License-Identifier: LGPL-2.1-only */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "transport/blktap.h"
#include "transport/minor.h"
#include "transport/open.h"
#include "vbd-internal.h"

/*
 * Answers that need no I/O make new room in the ring at once: so many rounds
 * are worth it before I/O that was queued meanwhile is submitted.
 */
#define ROUNDS_MAX 4

static struct vbd *vbd_new(struct server *server, int minor)
{
	struct vbd *vbd = calloc(1, sizeof(*vbd));

	if (!vbd)
		return NULL;
	vbd->stats = stats_page_new(minor);
	if (!vbd->stats) {
		free(vbd);
		return NULL;
	}
	vbd->server = server;
	vbd->engine = server_engine(server);
	vbd->minor = minor;
	vbd->claim = -1;
	list_init(&vbd->transports);
	vbd_retry_init(vbd);
	vbd_drain_init(vbd);
	vbd_inactive_init(vbd);
	vbd_note_init(vbd);
	vbd_stats_describe(vbd);
	return vbd;
}

/* No transport is left. */
static void vbd_free(struct vbd *vbd)
{
	if (vbd->claim >= 0)
		close(vbd->claim);
	vbd_inactive_end(vbd);
	vbd_note_destroy(vbd);
	vbd_retry_destroy(vbd);
	stats_page_free(vbd->stats);
	free(vbd->args);
	free(vbd->kept_for);
	free(vbd);
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
	const struct gendisk_kind *kind;
	struct transport *t;
	struct vbd *v;
	int rc;

	v = vbd_new(server, minor);
	if (!v)
		return error_set(err, -ENOMEM, "minor %d: out of memory", minor);
	rc = minor_claim(minor, &kind, &v->claim, err);
	if (!rc)
		rc = transport_open(kind, &t, v, v->engine, minor, err);
	if (rc) {
		vbd_free(v);
		return rc;
	}
	vbd_unmark_no_space(v);
	list_add_tail(&t->link, &v->transports);
	v->note.id = minor_id(minor);
	if (server_config(server)->dead_timeout_s)
		minor_set_dead_timeout(minor, server_config(server)->dead_timeout_s);
	*vbd = v;
	return 0;
}

static void close_transports(struct vbd *vbd)
{
	struct list *item;

	while ((item = list_pop(&vbd->transports))) {
		struct transport *t = container_of(item, struct transport, link);

		t->ops->close(t);
	}
}

int vbd_may_leave(struct vbd *vbd, struct error *err)
{
	for_each_transport(t, vbd) {
		int rc = t->ops->may_leave ? t->ops->may_leave(t, err) : 0;

		if (rc)
			return rc;
	}
	return 0;
}

bool vbd_leave(struct vbd *vbd)
{
	bool left = true;

	for_each_transport(t, vbd)
		left &= !t->ops->leave || t->ops->leave(t);
	return left;
}

int vbd_detach(struct vbd *vbd, struct error *err)
{
	if (vbd->args)
		return error_set(err, -EBUSY,
				 "minor %d: %s is open; close it first",
				 vbd->minor, vbd->args);
	close_transports(vbd);
	vbd_free(vbd);
	return 0;
}

void vbd_abandon(struct vbd *vbd)
{
	if (vbd->image || vbd->drain != DRAIN_NONE) {
		stats_page_hide(vbd->stats);
		return;
	}
	close_transports(vbd);
	vbd_free(vbd);
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

struct image_open_args vbd_image_args(struct vbd *vbd, const char *path,
				      bool readonly)
{
	return (struct image_open_args) {
		.engine		= vbd->engine,
		.stream		= &vbd->stream,
		.config		= server_config(vbd->server),
		.path		= path,
		.readonly	= readonly,
		.max_requests	= BLKTAP_ENTRIES,
	};
}

int vbd_image_open(struct vbd *vbd, const char *args, bool readonly,
		   struct error *err)
{
	struct image_open_args open_args = vbd_image_args(vbd, args, readonly);
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

int vbd_image_close(struct vbd *vbd, struct error *err)
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

static bool is_first(const struct vbd *vbd, const struct transport *from)
{
	return !from || vbd->transports.next == &from->link;
}

static void set_lost(struct vbd *vbd, int err)
{
	if (vbd->lost == err)
		return;
	vbd->lost = err;
	/* The kernel does not tell the next tapdisk either. */
	if (vbd->args)
		vbd_note(vbd);
}

static struct transport *first(const struct vbd *vbd)
{
	return container_of(vbd->transports.next, struct transport, link);
}

static bool may_have_written(const struct transport *t)
{
	return t->unseen || t->wrote;
}

static bool first_wrote(const struct vbd *vbd)
{
	return !list_empty(&vbd->transports) && may_have_written(first(vbd));
}

unsigned int vbd_losses(const struct vbd *vbd)
{
	return vbd->losses;
}

bool vbd_has_lost(const struct vbd *vbd)
{
	return vbd->lost;
}

void vbd_lose(struct vbd *vbd, int err, const struct transport *except)
{
	vbd->losses++;
	for_each_transport(t, vbd)
		if (t != except && may_have_written(t))
			t->lost = err;
	if (!except || (!is_first(vbd, except) && first_wrote(vbd)))
		set_lost(vbd, err);
}

int vbd_lost(const struct vbd *vbd, const struct transport *from)
{
	if (!is_first(vbd, from) && (from->lost || first_wrote(vbd)))
		return from->lost;
	return vbd->lost;
}

void vbd_told(struct vbd *vbd, struct transport *from)
{
	if (!is_first(vbd, from))
		from->lost = 0;
	if (is_first(vbd, from) || !first_wrote(vbd))
		set_lost(vbd, 0);
}

int vbd_adopt(struct vbd *vbd, const struct diskfile *file, struct error *err)
{
	if (vbd->args)
		return error_set(err, -EBUSY, "minor %d: already has %s open",
				 vbd->minor, vbd->args);
	vbd->args = strdup(file->args);
	if (file->kept_for)
		vbd->kept_for = strdup(file->kept_for);
	if (!vbd->args || (file->kept_for && !vbd->kept_for))
		return error_set(err, -ENOMEM, "minor %d: out of memory",
				 vbd->minor);
	vbd->readonly = file->readonly;
	vbd->retry = file->retry;
	vbd->lost = file->lost ? -EIO : 0;
	/* What was written before, and was lost, may be a client's that comes back. */
	for_each_transport(t, vbd) {
		t->lost = vbd->lost;
		t->wrote = t != first(vbd);
		t->adopted = true;
	}
	vbd->info.sectors = file->sectors;
	vbd->info.sector_size = file->sector_size;
	vbd->adopted = true;
	vbd->reopen = !file->paused;
	vbd->note = *file;
	vbd->note.given_up = false;
	diskfile_add_former(&vbd->note, file->pid);
	/* For the driver there is no tapdisk before the disk goes on. */
	if (file->paused && minor_dead_timeout(vbd->minor))
		vbd->note.dead_timeout_s = minor_dead_timeout(vbd->minor);
	if (vbd->note.dead_timeout_s)
		minor_set_dead_timeout(vbd->minor, 0);
	vbd_note(vbd);
	vbd_stats_open(vbd);
	return 0;
}

void vbd_restore_dead_timeout(struct vbd *vbd)
{
	/* Who has set one meanwhile meant that. */
	if (vbd->note.dead_timeout_s && !minor_dead_timeout(vbd->minor))
		minor_set_dead_timeout(vbd->minor, vbd->note.dead_timeout_s);
	vbd->note.dead_timeout_s = 0;
}

int vbd_start_all(struct vbd *vbd, struct error *err)
{
	int rc = vbd->adopted ? start_all(vbd, err) : vbd_release_all(vbd, err);

	if (rc)
		return rc;
	vbd_restore_dead_timeout(vbd);
	vbd->adopted = vbd->reopen = false;
	return 0;
}

void vbd_hold_all(struct vbd *vbd)
{
	for_each_transport(t, vbd)
		t->ops->hold(t);
}

int vbd_release_all(struct vbd *vbd, struct error *err)
{
	for_each_transport(t, vbd) {
		int rc = t->ops->release(t, &vbd->info, vbd->readonly, err);

		if (rc) {
			vbd_hold_all(vbd);
			return rc;
		}
	}
	return 0;
}

void vbd_set_retry(struct vbd *vbd, const struct retry_policy *policy)
{
	vbd->retry = *policy;
}

/* What the disk's tapdisk that is gone has noted, and nobody has been told. */
static int lost_before(const struct vbd *vbd)
{
	struct diskfile file;
	int lost;

	if (vbd->minor < 0 || !server_keeps_files(vbd->server) ||
	    diskfile_read(&file, vbd->minor))
		return 0;
	lost = file.lost && file.id == vbd->note.id && diskfile_is_left(&file);
	diskfile_dispose(&file);
	return lost ? -EIO : 0;
}

/* With the image that is open, or without: then requests wait. Takes args. */
static int begin(struct vbd *vbd, char *args, bool readonly, struct error *err)
{
	int rc;

	vbd->args = args;
	vbd->readonly = readonly;
	vbd->lost = lost_before(vbd);
	vbd->note.signed_it = false;
	for_each_transport(t, vbd) {
		t->lost = vbd->lost;
		t->wrote = false;
	}
	rc = start_all(vbd, err);
	if (rc) {
		if (vbd->image)
			vbd_image_close(vbd, NULL);
		free(vbd->args);
		vbd->args = NULL;
		return rc;
	}
	vbd->reopen = !vbd->image;
	if (vbd->image)
		vbd_writer_sign(vbd, args);
	vbd_note(vbd);
	vbd_stats_open(vbd);
	return 0;
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
	rc = vbd_image_open(vbd, copy, readonly, err);
	if (rc) {
		free(copy);
		return rc;
	}
	rc = begin(vbd, copy, readonly, err);
	if (rc)
		return rc;
	log_info("opened minor=%d path=%s chain=%u engine=%s%s", vbd->minor,
		 args, vbd->info.depth, engine_name(server_engine(vbd->server)),
		 readonly ? " readonly" : "");
	return 0;
}

int vbd_open_held(struct vbd *vbd, const char *args, bool readonly,
		  struct error *err)
{
	char *copy = strdup(args);

	if (!copy)
		return error_set(err, -ENOMEM, "%s: out of memory", args);
	return begin(vbd, copy, readonly, err);
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
	/* Before a close the transport's answers must have gone out. */
	if (vbd->drain != DRAIN_NONE && (vbd->drain != DRAIN_CLOSE || !more))
		vbd_drain_step(vbd);
	vbd_stats_publish(vbd);
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

void vbd_finish(struct vbd_request *req, int err)
{
	struct vbd *vbd = req->vbd;

	if (req->failed_ns)
		vbd_retry_over(vbd, req, err);
	vbd_account(vbd, req, err);
	if (err)
		log_error("request failed minor=%d op=%d sector=%llu count=%u err=%d",
			  vbd->minor, (int)req->op,
			  (unsigned long long)req->image.sector,
			  req->image.count, -err);
	vbd->inflight--;
	req->done(req, err);
}

/* Who is told by this flush. */
static struct transport *teller(const struct vbd_request *req)
{
	return req->from ? req->from : first(req->vbd);
}

static void image_done(struct image_request *image, int err)
{
	struct vbd_request *req =
		container_of(image, struct vbd_request, image);

	if (err) {
		if (vbd_retry(req->vbd, req, err))
			return;
		/* What it lost may be what other requests wrote, and other users. */
		if (image->op == IMAGE_FLUSH &&
		    !vbd_may_pass(req->vbd, IMAGE_FLUSH, err))
			vbd_lose(req->vbd, err,
				 req->fua || req->unwanted ? NULL : teller(req));
		vbd_finish(req, err);
		return;
	}
	if (image->op == IMAGE_FLUSH && req->losses != req->vbd->losses) {
		/* Another one's, under way as well, took the error of what this was for. */
		if (!req->fua && !req->unwanted)
			vbd_told(req->vbd, req->from);
		vbd_finish(req, -EIO);
		return;
	}
	if (!req->fua || image->op == IMAGE_FLUSH) {
		vbd_finish(req, 0);
		return;
	}
	/* What is done is durable when a flush that begins now is. */
	image->op = IMAGE_FLUSH;
	if (req->failed_ns)
		vbd_retry_over(req->vbd, req, 0);
	vbd_submit_image(req->vbd, req);
}

static bool image_can(const struct vbd *vbd, enum image_op op)
{
	static const unsigned int needs[] = {
		[IMAGE_DISCARD]	= IMAGE_CAN_DISCARD,
		[IMAGE_ZERO]	= IMAGE_CAN_ZERO,
		[IMAGE_STATUS]	= IMAGE_CAN_STATUS,
	};

	return !(needs[op] & ~vbd->info.can);
}

void vbd_submit_image(struct vbd *vbd, struct vbd_request *req)
{
	struct image_request *image = &req->image;

	/* It may have come when another image was open. */
	if (image_can(vbd, image->op))
		vbd->image->driver->submit(vbd->image, image);
	else
		vbd_finish(req, -EOPNOTSUPP);
}

/* 0 if the image can be asked. */
static int refuse_request(struct vbd *vbd, const struct vbd_request *req)
{
	const struct image_request *image = &req->image;

	/* That of a write tells of the write. */
	if (image->op == IMAGE_FLUSH && req->fua)
		return 0;
	if (image->op == IMAGE_FLUSH) {
		int lost = vbd_lost(vbd, req->from);

		vbd_told(vbd, req->from);
		return lost ? -EIO : 0;
	}
	if (!image->count || image->sector > vbd->info.sectors ||
	    image->count > vbd->info.sectors - image->sector)
		return -EIO;
	if (image->op == IMAGE_READ || image->op == IMAGE_STATUS ||
	    !vbd->readonly)
		return image_can(vbd, image->op) ? 0 : -EOPNOTSUPP;
	return -EPERM;
}

void vbd_submit(struct vbd *vbd, struct vbd_request *req)
{
	struct image_request *image = &req->image;
	int rc = refuse_request(vbd, req);

	req->vbd = vbd;
	req->op = image->op;
	req->arrived_ns = engine_now(vbd->engine);
	req->failed_ns = 0;
	req->losses = vbd->losses;
	req->unwanted = false;
	vbd->inflight++;
	if (image->op == IMAGE_WRITE || image->op == IMAGE_DISCARD ||
	    image->op == IMAGE_ZERO)
		teller(req)->wrote = true;
	image->done = image_done;
	if (rc)
		vbd_finish(req, rc);
	else if (vbd->image)
		vbd->image->driver->submit(vbd->image, image);
	else if (vbd_read_first(vbd, image))
		vbd_finish(req, 0);
	else
		vbd_retry_hold(vbd, req);
}

struct image *vbd_image(struct vbd *vbd)
{
	return vbd->image;
}

const struct config *vbd_config(const struct vbd *vbd)
{
	return server_config(vbd->server);
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

unsigned int vbd_state(const struct vbd *vbd)
{
	unsigned int state = vbd->nr_failed[LACK_STORAGE] ? VBD_WAITING : 0;

	if (vbd->nr_failed[LACK_SPACE])
		state |= VBD_NO_SPACE;
	if (!vbd->args)
		state |= VBD_CLOSED;
	else if ((vbd->drain != DRAIN_NONE && vbd->drain != DRAIN_OPEN) ||
		 vbd->held)
		state |= VBD_PAUSE_REQUESTED;
	else if (!vbd->image)
		state |= vbd->reopen ? VBD_REOPENING : VBD_PAUSED;
	return state;
}

void vbd_fill_view(const struct vbd *vbd, struct vbd_view *view)
{
	*view = (struct vbd_view) {
		.minor		= vbd->minor,
		.state		= vbd_state(vbd),
		.args		= vbd->args,
		.kept_for	= vbd->kept_for,
		.readonly	= vbd->readonly,
		.inactive	= vbd->inactive_timer.armed,
		.draining	= vbd_draining(vbd),
		.sectors	= vbd->info.sectors,
		.sector_size	= vbd->info.sector_size,
		.depth		= vbd->info.depth,
		.stall_ns	= vbd->stall_ns,
		.stats		= vbd->stats,
		.chain_path	= view_chain_path,
		.vbd		= vbd,
	};
}
