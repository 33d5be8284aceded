/* SPDX-License-Identifier: LGPL-2.1-only */
#include "control/owner.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "transport/minor.h"

#define RETRY_NS 1000000000u

struct owner {
	struct list link;
	struct owners *owners;		/* NULL: closed while the image was */
	bool creator;
	bool ended;
	bool closing;
	int minor;
	int pid;
	int pidfd;
	struct io_watch watch;		/* of pidfd, until it has ended */
	struct io_timer timer;		/* the next step of the end */
};

static struct engine *engine_of(const struct owner *owner)
{
	return server_engine(owner->owners->server);
}

static void owner_free(struct owner *owner)
{
	engine_unwatch(engine_of(owner), &owner->watch);
	engine_timer_cancel(engine_of(owner), &owner->timer);
	list_del(&owner->link);
	if (owner->pidfd >= 0)
		close(owner->pidfd);
	free(owner);
}

static void step_in(struct owner *owner, uint64_t ns)
{
	engine_timer_set(engine_of(owner), &owner->timer, now_ns() + ns);
}

/* Chronological: the owner ends, the image is closed, the minor is freed. */

static void undo(struct owner *owner)
{
	if (owner->minor >= 0)
		log_warn("process %d ended before it kept its disk: removing it minor=%d",
			 owner->pid, owner->minor);
	owner->ended = true;
	step_in(owner, 0);
}

static void owner_ended(struct io_watch *watch, short revents)
{
	struct owner *owner = container_of(watch, struct owner, watch);

	(void)revents;
	engine_unwatch(engine_of(owner), watch);
	undo(owner);
}

/*
 * In a round of the server, which a detach would disturb: only notes what is
 * next. An error: another verb is under way.
 */
static void image_closed(void *priv, int rc, const struct error *err)
{
	struct owner *owner = priv;

	(void)err;
	owner->closing = false;
	if (owner->owners) {
		step_in(owner, rc ? RETRY_NS : 0);
		return;
	}
	if (owner->pidfd >= 0)
		close(owner->pidfd);
	free(owner);
}

static void owner_step(struct io_timer *timer)
{
	struct owner *owner = container_of(timer, struct owner, timer);
	struct server *server = owner->owners->server;
	struct error err;
	int rc;

	/* An upgrade that was killed while its disks are given back: then there are none. */
	if (owner->minor < 0 && server_is_leaving(server)) {
		step_in(owner, RETRY_NS);
		return;
	}
	rc = server_detach(server, owner->minor, &err);
	if (rc == -EBUSY) {
		owner->closing = true;
		server_close_image(server, owner->minor, true, 0, image_closed,
				   owner);
		return;
	}
	/* Who creates a disk may end before it is attached. */
	if (rc == -ENODEV && owner->creator)
		rc = 0;
	if (!rc && owner->minor >= 0)
		rc = minor_free(owner->minor, &err);
	if (rc)
		log_error("a disk that nobody kept: %s", err.text);
	owner_free(owner);
	server_stop_if_unused(server);
}

void owners_open(struct owners *owners, struct server *server)
{
	owners->server = server;
	list_init(&owners->list);
}

void owners_close(struct owners *owners)
{
	list_for_each_safe(pos, next, &owners->list) {
		struct owner *owner = container_of(pos, struct owner, link);

		if (!owner->closing) {
			owner_free(owner);
			continue;
		}
		/* image_closed() frees it */
		list_del(&owner->link);
		owner->owners = NULL;
	}
}

static struct owner *owner_new(struct owners *owners, int minor, int pid)
{
	struct owner *owner = calloc(1, sizeof(*owner));

	if (!owner)
		return NULL;
	owner->owners = owners;
	owner->minor = minor;
	owner->pid = pid;
	owner->timer.expired = owner_step;
	owner->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	return owner;
}

static int owner_watch(struct owner *owner, struct error *err)
{
	int rc;

	owner->watch.fd = owner->pidfd;
	owner->watch.events = POLLIN;
	owner->watch.ready = owner_ended;
	rc = engine_watch(engine_of(owner), &owner->watch);
	if (rc) {
		error_set(err, rc, "owner %d: cannot be watched: %s",
			  owner->pid, strerror(-rc));
		close(owner->pidfd);
		free(owner);
		return rc;
	}
	list_add_tail(&owner->link, &owner->owners->list);
	return 0;
}

int owners_add(struct owners *owners, int minor, int pid, struct error *err)
{
	struct owner *owner = owner_new(owners, minor, pid);
	int rc;

	if (!owner)
		return error_set(err, -ENOMEM, "minor %d: out of memory", minor);
	if (owner->pidfd < 0) {
		rc = error_set(err, -errno, "owner %d: %s", pid,
			       strerror(errno));
		free(owner);
		return rc;
	}
	return owner_watch(owner, err);
}

/* One that may have ended before we could look. */
static int add_any(struct owners *owners, int minor, int pid, bool creator,
		   struct error *err)
{
	struct owner *owner = owner_new(owners, minor, pid);
	int rc;

	if (!owner)
		return error_set(err, -ENOMEM, "minor %d: out of memory", minor);
	owner->creator = creator;
	if (owner->pidfd >= 0)
		return owner_watch(owner, err);
	if (errno != ESRCH) {
		rc = error_set(err, -errno, "owner %d: %s", pid,
			       strerror(errno));
		free(owner);
		return rc;
	}
	list_add_tail(&owner->link, &owners->list);
	undo(owner);
	return 0;
}

int owners_inherit(struct owners *owners, int minor, int pid,
		   struct error *err)
{
	return add_any(owners, minor, pid, false, err);
}

int owners_create(struct owners *owners, int minor, int pid,
		  struct error *err)
{
	return add_any(owners, minor, pid, true, err);
}

static struct owner *find(struct owners *owners, int minor, bool creator)
{
	list_for_each(pos, &owners->list) {
		struct owner *owner = container_of(pos, struct owner, link);

		if (owner->minor == minor && owner->creator == creator &&
		    !owner->closing)
			return owner;
	}
	return NULL;
}

void owners_created(struct owners *owners, int minor)
{
	struct owner *owner = find(owners, minor, true);

	if (owner && !owner->ended)
		owner_free(owner);
}

bool owners_has(struct owners *owners, int minor)
{
	return find(owners, minor, false);
}

bool owners_forget(struct owners *owners, int minor)
{
	struct owner *owner = find(owners, minor, false);

	if (owner)
		owner_free(owner);
	return owner;
}

void owners_detached(struct owners *owners, int minor)
{
	struct owner *owner = find(owners, minor, true);

	if (owner)
		owner_free(owner);
	owners_forget(owners, minor);
}
