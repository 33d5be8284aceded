/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Connections of the control socket. Each has one request at a time:
 *
 *   READING -> recv -> RUNNING -> answer -> (socket full: WRITING) -> READING
 *
 * Nothing here waits: a guest's I/O is on the same thread. When all places are
 * taken, the client that has been waited for longest makes room.
 */
#include "control/control.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "control/proto.h"
#include "control/takeover.h"

#define MAX_CLIENTS	32u
#define RETRY_NS	1000000000u

struct control_server {
	struct server *server;
	struct owners owners;
	struct takeover takeover;
	struct leave leave;
	struct sockaddr_un address;
	ino_t inode;			/* of the name */
	int fd;
	struct io_watch watch;
	struct io_timer retry;		/* accept again after EMFILE */
	struct list clients;		/* the longest idle first */
	unsigned int nr_clients;
	char message[CONTROL_MAX_MESSAGE];
};

enum client_state { READING, RUNNING, WRITING };

struct client {
	struct list link;
	struct control_server *control;	/* NULL: it was closed meanwhile */
	struct control_call call;
	struct io_watch watch;
	int fd;
	enum client_state state;
	bool last;			/* close when the answer is sent */
	char *answer;			/* WRITING: what is not sent yet */
};

static struct engine *engine_of(struct control_server *control)
{
	return server_engine(control->server);
}

static void client_close(struct client *client)
{
	int pids[] = { getpid(), client->call.heir };

	if (client->call.making >= 0)
		server_snapshot_settle(client->call.server, client->call.making);
	if (client->control) {
		if (client->control->leave.left_by == &client->call) {
			log_warn("what was left for tapdisk %d is taken back",
				 client->call.heir);
			client->control->leave.left_by = NULL;
			takeover_begin(&client->control->takeover, pids, 2);
		}
		engine_unwatch(engine_of(client->control), &client->watch);
		list_del(&client->link);
		client->control->nr_clients--;
	}
	close(client->fd);
	free(client->answer);
	free(client);
}

static void client_wait(struct client *client, enum client_state state)
{
	struct control_server *control = client->control;

	client->state = state;
	client->watch.events = state == WRITING ? POLLOUT : POLLIN;
	list_del(&client->link);
	list_add_tail(&client->link, &control->clients);
	if (engine_watch(engine_of(control), &client->watch))
		client_close(client);
}

/* Sends what is in answer; a client that does not read is waited for. */
static void client_send(struct client *client)
{
	ssize_t n = send(client->fd, client->answer, strlen(client->answer),
			 MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		client_wait(client, WRITING);
		return;
	}
	free(client->answer);
	client->answer = NULL;
	/* n < 0: the client has gone away. */
	if (n < 0 || client->last)
		client_close(client);
	else
		client_wait(client, READING);
}

static char *encode(json_t *reply)
{
	char *encoded = reply ? json_dumps(reply, JSON_COMPACT) : NULL;

	json_decref(reply);
	return encoded;
}

static void client_answer(struct control_call *call, json_t *reply, bool last)
{
	struct client *client = container_of(call, struct client, call);

	client->last = last;
	client->answer = encode(reply);
	if (client->answer && strlen(client->answer) > CONTROL_MAX_MESSAGE) {
		free(client->answer);
		client->answer = encode(control_failure(-EMSGSIZE,
				"the answer is too long for a control message"));
	}
	if (client->control && client->answer)
		client_send(client);
	else
		client_close(client);
}

static void client_ready(struct io_watch *watch, short revents)
{
	struct client *client = container_of(watch, struct client, watch);
	struct control_server *control = client->control;
	ssize_t n;

	(void)revents;
	engine_unwatch(engine_of(control), watch);
	if (client->state == WRITING) {
		client_send(client);
		return;
	}
	n = recv(client->fd, control->message, sizeof(control->message),
		 MSG_DONTWAIT | MSG_TRUNC);
	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		client_wait(client, READING);
		return;
	}
	if (n <= 0) {
		client_close(client);
		return;
	}
	client->state = RUNNING;
	if ((size_t)n > sizeof(control->message))
		client_answer(&client->call,
			      control_failure(-EMSGSIZE, "the control message is too long"),
			      true);
	else
		control_dispatch(&client->call, control->message, (size_t)n);
}

/* Accepting */

/* The directory's mode keeps others out; this is for when it was changed. */
static bool peer_allowed(int fd)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len))
		return false;
	return peer.uid == 0 || peer.uid == geteuid();
}

/* False if every client waits for a verb of its own. */
static bool make_room(struct control_server *control)
{
	list_for_each(pos, &control->clients) {
		struct client *client = container_of(pos, struct client, link);

		if (client->state != RUNNING && client->call.making < 0 &&
		    control->leave.left_by != &client->call) {
			client_close(client);
			return true;
		}
	}
	return false;
}

static void reject(int fd, int rc, const char *why)
{
	char *message = encode(control_failure(rc, why));

	if (message)
		(void)send(fd, message, strlen(message),
			   MSG_DONTWAIT | MSG_NOSIGNAL);
	free(message);
	close(fd);
}

static void add_client(struct control_server *control, int fd)
{
	struct client *client = calloc(1, sizeof(*client));

	if (!client) {
		close(fd);
		return;
	}
	client->control = control;
	client->call.server = control->server;
	client->call.owners = &control->owners;
	client->call.making = -1;
	client->call.takeover = &control->takeover;
	client->call.leave = &control->leave;
	client->call.answer = client_answer;
	client->fd = fd;
	client->watch.fd = fd;
	client->watch.ready = client_ready;
	list_init(&client->link);
	control->nr_clients++;
	client_wait(client, READING);
}

static void accept_again(struct io_timer *timer)
{
	struct control_server *control =
		container_of(timer, struct control_server, retry);

	if (engine_watch(engine_of(control), &control->watch))
		engine_timer_set(engine_of(control), timer, now_ns() + RETRY_NS);
}

static void accept_ready(struct io_watch *watch, short revents)
{
	struct control_server *control =
		container_of(watch, struct control_server, watch);
	int fd;

	(void)revents;
	fd = accept4(control->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0) {
		if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
			return;
		/* Out of descriptors: looking again at once would spin. */
		log_warn("cannot accept a control connection err=%d", errno);
		make_room(control);
		engine_unwatch(engine_of(control), watch);
		engine_timer_set(engine_of(control), &control->retry,
				 now_ns() + RETRY_NS);
		return;
	}
	if (!peer_allowed(fd))
		reject(fd, -EPERM, "only root and tapdisk's own user may control it");
	else if (control->nr_clients == MAX_CLIENTS && !make_room(control))
		reject(fd, -EBUSY, "too many control connections wait for an answer");
	else
		add_client(control, fd);
}

/* Opening and closing */

static int make_dir(const char *dir, struct error *err)
{
	struct stat st;

	if (mkdir(dir, 0700) && errno != EEXIST)
		return error_set(err, -errno, "%s: %s", dir, strerror(errno));
	if (lstat(dir, &st))
		return error_set(err, -errno, "%s: %s", dir, strerror(errno));
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid())
		return error_set(err, -EPERM, "%s: must be a directory of user "
				 "%u; remove it", dir, (unsigned int)geteuid());
	if ((st.st_mode & 0777) != 0700 && chmod(dir, 0700))
		return error_set(err, -errno, "%s: %s", dir, strerror(errno));
	return 0;
}

/*
 * Who waits for the name may connect as soon as it is there. So the socket has
 * another one until it listens.
 */
static int listen_at(struct control_server *control, struct error *err)
{
	const char *path = control->address.sun_path;
	struct sockaddr_un early = { .sun_family = AF_UNIX };
	struct stat st;
	int rc;

	rc = control_early_path(early.sun_path, sizeof(early.sun_path),
				getpid(), err);
	if (rc)
		return rc;
	control->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC |
			     SOCK_NONBLOCK, 0);
	if (control->fd < 0)
		return error_set(err, -errno, "control socket: %s",
				 strerror(errno));
	/* The names carry our pid, so what has them is a dead process's. */
	if (unlink(early.sun_path) && errno != ENOENT)
		return error_set(err, -errno, "%s: %s", early.sun_path,
				 strerror(errno));
	if (fchmod(control->fd, 0600) ||
	    bind(control->fd, (struct sockaddr *)&early, sizeof(early)))
		return error_set(err, -errno, "%s: %s", early.sun_path,
				 strerror(errno));
	if (!listen(control->fd, MAX_CLIENTS) && !lstat(early.sun_path, &st) &&
	    !rename(early.sun_path, path)) {
		control->inode = st.st_ino;
		return 0;
	}
	rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
	unlink(early.sun_path);
	return rc;
}

int control_server_open(struct control_server **control, struct server *server,
			struct error *err)
{
	struct control_server *c = calloc(1, sizeof(*c));
	int rc;

	if (!c)
		return error_set(err, -ENOMEM, "control socket: out of memory");
	c->server = server;
	c->fd = -1;
	owners_open(&c->owners, server);
	takeover_open(&c->takeover, server, &c->owners);
	leave_open(&c->leave, server, &c->owners, &c->takeover);
	list_init(&c->clients);
	c->address.sun_family = AF_UNIX;
	rc = control_socket_path(c->address.sun_path,
				 sizeof(c->address.sun_path), getpid(), err);
	if (!rc)
		rc = make_dir(control_dir(), err);
	if (!rc)
		rc = listen_at(c, err);
	if (!rc) {
		c->watch.fd = c->fd;
		c->watch.events = POLLIN;
		c->watch.ready = accept_ready;
		c->retry.expired = accept_again;
		rc = engine_watch(engine_of(c), &c->watch);
		if (rc)
			error_set(err, rc, "control socket: too many watches");
	}
	if (rc) {
		if (c->fd >= 0)
			close(c->fd);
		free(c);
		return rc;
	}
	*control = c;
	return 0;
}

void control_server_close(struct control_server *control)
{
	struct stat st;

	list_for_each_safe(pos, next, &control->clients) {
		struct client *client = container_of(pos, struct client, link);

		if (client->state != RUNNING) {
			client_close(client);
			continue;
		}
		/* The verb's callback closes it. */
		list_del(&client->link);
		client->control = NULL;
		client->call.owners = NULL;
	}
	owners_close(&control->owners);
	takeover_close(&control->takeover);
	leave_close(&control->leave);
	engine_timer_cancel(engine_of(control), &control->retry);
	engine_unwatch(engine_of(control), &control->watch);
	/* Who takes over from us may have the name already. */
	if (!lstat(control->address.sun_path, &st) &&
	    st.st_ino == control->inode)
		unlink(control->address.sun_path);
	control_unlink_all();
	close(control->fd);
	free(control);
}

int control_create(struct control_server *control, int minor, int pid,
		   struct error *err)
{
	return owners_create(&control->owners, minor, pid, err);
}

void control_take_over(struct control_server *control, const int *pids,
		       unsigned int nr, void (*done)(void *priv), void *priv)
{
	control->takeover.done = done;
	control->takeover.priv = priv;
	takeover_begin(&control->takeover, pids, nr);
}
