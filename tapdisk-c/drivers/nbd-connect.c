/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Connections to the NBD server. The first is waited for, in open(). When one is
 * lost, others are tried while commands wait:
 *
 *   UP -> LOST -> DOWN -> CONNECTING -> GREETING -> UP
 *                  ^ timer |               |
 *                  +-------+---------------+
 *
 * Names are looked up once, in open(): looking up may block.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/clock.h"
#include "common/log.h"
#include "drivers/nbd.h"

#define NSEC_PER_SEC	UINT64_C(1000000000)
#define NSEC_PER_MSEC	UINT64_C(1000000)
#define DELAY_FIRST	(50 * NSEC_PER_MSEC)
#define DELAY_MAX	(2 * NSEC_PER_SEC)

/* A host that is gone without a word is found out after 25 s, drivers/nbd.h. */
#define KEEP_IDLE	10
#define KEEP_INTERVAL	5
#define KEEP_COUNT	3
#define TIMEOUT_MS	25000

int nbd_resolve(struct nbd_image *nbd, struct error *err)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
	const struct nbd_address *a = &nbd->address;
	struct addrinfo *list;
	int rc;

	if (a->socket[0]) {
		struct sockaddr_un *un = (void *)&nbd->addr[0];

		un->sun_family = AF_UNIX;
		memcpy(un->sun_path, a->socket, sizeof(un->sun_path));
		nbd->addr_len[0] = sizeof(*un);
		nbd->nr_addrs = 1;
		return 0;
	}
	rc = getaddrinfo(a->host, a->port, &hints, &list);
	if (rc)
		return error_set(err, -EHOSTUNREACH, "%s: host: %s", nbd->name,
				 gai_strerror(rc));
	for (struct addrinfo *i = list; i; i = i->ai_next) {
		if (nbd->nr_addrs == NBD_MAX_ADDRS)
			break;
		memcpy(&nbd->addr[nbd->nr_addrs], i->ai_addr, i->ai_addrlen);
		nbd->addr_len[nbd->nr_addrs++] = i->ai_addrlen;
	}
	freeaddrinfo(list);
	return 0;
}

static void set_option(int fd, int level, int name, int value)
{
	/* Each only makes a connection better. */
	(void)setsockopt(fd, level, name, &value, sizeof(value));
}

/* To the next address. 0: connected, or will be when fd takes output. */
static int begin(struct nbd_image *nbd)
{
	const struct sockaddr_storage *addr;
	unsigned int i = nbd->next_addr++ % nbd->nr_addrs;

	addr = &nbd->addr[i];
	nbd->fd = socket(addr->ss_family,
			 SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (nbd->fd < 0)
		return -errno;
	if (addr->ss_family != AF_UNIX) {
		set_option(nbd->fd, IPPROTO_TCP, TCP_NODELAY, 1);
		set_option(nbd->fd, SOL_SOCKET, SO_KEEPALIVE, 1);
		set_option(nbd->fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEP_IDLE);
		set_option(nbd->fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEP_INTERVAL);
		set_option(nbd->fd, IPPROTO_TCP, TCP_KEEPCNT, KEEP_COUNT);
		set_option(nbd->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, TIMEOUT_MS);
	}
	if (connect(nbd->fd, (const struct sockaddr *)addr, nbd->addr_len[i]) < 0 &&
	    errno != EINPROGRESS)
		return -errno;
	return 0;
}

static int connect_result(int fd)
{
	socklen_t len = sizeof(int);
	int result;

	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &result, &len) < 0)
		return -errno;
	return -result;
}

static void drop(struct nbd_image *nbd)
{
	if (nbd->fd >= 0)
		close(nbd->fd);
	nbd->fd = -1;
}

/* The export may have changed since the last connection; the disk may not. */
static int check(struct nbd_image *nbd, struct error *err)
{
	const struct nbd_info *now = &nbd->hello.info;
	const struct image_info *was = &nbd->image.info;

	if (!nbd->image.readonly && now->flags & NBD_FLAG_READ_ONLY)
		return error_set(err, -EROFS,
				 "the export is read-only; open it read-only (-R)");
	if (was->sectors && now->bytes >> SECTOR_SHIFT < was->sectors)
		return error_set(err, -EIO,
				 "size %llu: the export is smaller than the disk, which has %llu bytes",
				 (unsigned long long)now->bytes,
				 (unsigned long long)(was->sectors << SECTOR_SHIFT));
	if (was->sectors && now->min_block > was->sector_size)
		return error_set(err, -EIO,
				 "minimum block size %u: the disk's sectors have %u bytes",
				 now->min_block, was->sector_size);
	return 0;
}

static int wait_for(int fd, short events, uint64_t until_ns)
{
	struct pollfd p = { .fd = fd, .events = events };

	for (;;) {
		uint64_t now = now_ns();
		int n;

		if (now >= until_ns)
			return -ETIMEDOUT;
		n = poll(&p, 1, (int)((until_ns - now) / NSEC_PER_MSEC) + 1);
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
	}
}

static int try_address(struct nbd_image *nbd, uint64_t until_ns,
		       struct error *err)
{
	int rc = begin(nbd);

	if (!rc)
		rc = wait_for(nbd->fd, POLLOUT, until_ns);
	if (!rc)
		rc = connect_result(nbd->fd);
	if (rc)
		return error_set(err, rc, "%s: no connection to the NBD server: %s",
				 nbd->name, strerror(-rc));
	nbd_hello_start(&nbd->hello, &nbd->address);
	while ((rc = nbd_hello_progress(&nbd->hello, nbd->fd, err)) == -EAGAIN) {
		rc = wait_for(nbd->fd, POLLIN, until_ns);
		if (rc) {
			error_set(err, rc, "does not answer in the handshake");
			break;
		}
	}
	if (!rc)
		rc = check(nbd, err);
	return rc ? error_prefix(err, "%s", nbd->name) : 0;
}

static void up(struct nbd_image *nbd)
{
	nbd->info = nbd->hello.info;
	nbd->rx_state = NBD_RX_HEAD;
	nbd->rx_from = 0;
	nbd->rx_to = 0;
	nbd->state = NBD_UP;
}

/* All len bytes, waited for. */
static int receive_all(int fd, uint8_t *p, size_t len, uint64_t until_ns)
{
	while (len) {
		ssize_t n = recv(fd, p, len, MSG_DONTWAIT);

		if (n > 0) {
			p += n;
			len -= (size_t)n;
		} else if (!n) {
			return -ECONNRESET;
		} else if (errno == EAGAIN) {
			int rc = wait_for(fd, POLLIN, until_ns);

			if (rc)
				return rc;
		} else if (errno != EINTR) {
			return -errno;
		}
	}
	return 0;
}

int nbd_flush_now(struct nbd_image *nbd)
{
	const struct nbd_request flush = { .type = NBD_CMD_FLUSH };
	uint64_t until = now_ns() + NBD_CONNECT_SECONDS * NSEC_PER_SEC;
	uint8_t p[NBD_REQUEST_BYTES];
	struct nbd_reply reply;
	int rc;

	if (nbd->state != NBD_UP || !(nbd->info.flags & NBD_FLAG_SEND_FLUSH))
		return nbd->state == NBD_UP ? 0 : -ENOTCONN;
	nbd_put_request(p, &flush);
	if (send(nbd->fd, p, sizeof(p), MSG_DONTWAIT | MSG_NOSIGNAL) !=
	    (ssize_t)sizeof(p))
		return -ECONNRESET;
	rc = receive_all(nbd->fd, p, NBD_SIMPLE_BYTES, until);
	if (rc)
		return rc;
	if (!nbd_reply_bytes(p))
		return -EPROTO;
	if (nbd_reply_bytes(p) > NBD_SIMPLE_BYTES)
		rc = receive_all(nbd->fd, p + NBD_SIMPLE_BYTES,
				 NBD_CHUNK_BYTES_HEAD - NBD_SIMPLE_BYTES, until);
	if (rc)
		return rc;
	nbd_get_reply(&reply, p);
	if (reply.cookie || !reply.last)
		return -EPROTO;
	if (!reply.chunk)
		return reply.err;
	if (reply.type == NBD_CHUNK_NONE)
		return 0;
	rc = receive_all(nbd->fd, p, 4, until);
	if (!rc)
		rc = nbd_wire_error(get_be32(p));
	return rc ? rc : -EIO;
}

/* Made again */

/*
 * There is no connection, and no try is under way. Not tried again from here: a
 * server that ends each connection at once would recurse. If nothing waits
 * any more, that is found out when the timer ends.
 */
static void down(struct nbd_image *nbd, const char *why)
{
	uint64_t now = now_ns();

	nbd->state = NBD_DOWN;
	if (now >= nbd->give_up_ns) {
		log_error("NBD server is gone, requests fail path=%s: %s",
			  nbd->name, why);
		nbd_fail_all(nbd, -ENOTCONN);
	}
	engine_timer_set(nbd->image.engine, &nbd->timer, now + nbd->delay_ns);
	nbd->delay_ns *= 2;
	if (nbd->delay_ns > DELAY_MAX)
		nbd->delay_ns = DELAY_MAX;
}

static void fail(struct nbd_image *nbd, const char *why)
{
	engine_unwatch(nbd->image.engine, &nbd->watch);
	drop(nbd);
	down(nbd, why);
}

static void greet(struct nbd_image *nbd)
{
	struct error err;
	int rc = nbd_hello_progress(&nbd->hello, nbd->fd, &err);

	if (rc == -EAGAIN)
		return;
	if (!rc)
		rc = check(nbd, &err);
	if (rc) {
		fail(nbd, err.text);
		return;
	}
	engine_unwatch(nbd->image.engine, &nbd->watch);
	engine_timer_cancel(nbd->image.engine, &nbd->timer);
	log_info("NBD server is back path=%s", nbd->name);
	up(nbd);
	nbd_send(nbd);
}

static void watch(struct nbd_image *nbd, short events)
{
	engine_unwatch(nbd->image.engine, &nbd->watch);
	nbd->watch.fd = nbd->fd;
	nbd->watch.events = events;
	if (engine_watch(nbd->image.engine, &nbd->watch))
		fail(nbd, "too many descriptors are watched");
}

static void ready(struct io_watch *w, short revents)
{
	struct nbd_image *nbd = container_of(w, struct nbd_image, watch);
	int rc;

	(void)revents;
	if (nbd->state == NBD_GREETING) {
		greet(nbd);
		return;
	}
	rc = connect_result(nbd->fd);
	if (rc) {
		fail(nbd, strerror(-rc));
		return;
	}
	nbd->state = NBD_GREETING;
	nbd_hello_start(&nbd->hello, &nbd->address);
	watch(nbd, POLLIN);
}

static void try_again(struct nbd_image *nbd)
{
	int rc = begin(nbd);

	if (rc) {
		fail(nbd, strerror(-rc));
		return;
	}
	nbd->state = NBD_CONNECTING;
	engine_timer_set(nbd->image.engine, &nbd->timer,
			 now_ns() + NBD_CONNECT_SECONDS * NSEC_PER_SEC);
	watch(nbd, POLLOUT);
}

static void expired(struct io_timer *t)
{
	struct nbd_image *nbd = container_of(t, struct nbd_image, timer);

	if (nbd->state != NBD_DOWN)
		fail(nbd, "no answer");
	else if (!list_empty(&nbd->queued))
		try_again(nbd);
}

int nbd_connect(struct nbd_image *nbd, struct error *err)
{
	uint64_t until = now_ns() + NBD_CONNECT_SECONDS * NSEC_PER_SEC;
	int rc = -EHOSTUNREACH;

	nbd->watch.ready = ready;
	nbd->timer.expired = expired;
	nbd->answered = true;
	for (unsigned int i = 0; rc && i < nbd->nr_addrs; i++) {
		rc = try_address(nbd, until, err);
		if (rc)
			drop(nbd);
	}
	if (!rc)
		up(nbd);
	return rc;
}

void nbd_want(struct nbd_image *nbd)
{
	if (nbd->state == NBD_DOWN && !nbd->timer.armed)
		engine_timer_set(nbd->image.engine, &nbd->timer, now_ns());
}

void nbd_lose(struct nbd_image *nbd, const char *why)
{
	if (nbd->state != NBD_UP)
		return;
	log_warn("NBD connection lost path=%s: %s", nbd->name, why);
	nbd->state = NBD_LOST;
	/* A connection that answered nothing was no better than none. */
	if (nbd->answered) {
		nbd->give_up_ns = now_ns() + nbd->address.reconnect * NSEC_PER_SEC;
		nbd->delay_ns = DELAY_FIRST;
	}
	nbd->answered = false;
	shutdown(nbd->fd, SHUT_RDWR);
	nbd_lost(nbd);
}

void nbd_lost(struct nbd_image *nbd)
{
	if (nbd->send_busy || nbd->recv_busy)
		return;
	drop(nbd);
	nbd_requeue(nbd);
	down(nbd, "each connection is lost");
}

void nbd_disconnect(struct nbd_image *nbd)
{
	const struct nbd_request bye = { .type = NBD_CMD_DISC };
	uint8_t p[NBD_REQUEST_BYTES];

	engine_timer_cancel(nbd->image.engine, &nbd->timer);
	engine_unwatch(nbd->image.engine, &nbd->watch);
	if (nbd->state == NBD_UP) {
		nbd_put_request(p, &bye);
		/* The server takes the end of the connection for the same. */
		(void)!send(nbd->fd, p, sizeof(p), MSG_DONTWAIT | MSG_NOSIGNAL);
	}
	drop(nbd);
}
