/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/nbd-netlink.h"

#include <assert.h>
#include <errno.h>
#include <linux/genetlink.h>
#include <linux/nbd.h>
#include <linux/nbd-netlink.h>
#include <linux/netlink.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define RECEIVE_BYTES 8192

#define ATTR_HEAD ((uint32_t)sizeof(struct nlattr))
#define ALIGNED(len) (((uint32_t)(len) + 3u) & ~3u)

struct message {
	uint8_t *bytes;
	uint32_t len;
};

/* Messages */

static void put(struct message *m, const void *data, uint32_t len)
{
	assert(m->len + ALIGNED(len) <= NBD_NETLINK_MAX);
	memcpy(m->bytes + m->len, data, len);
	memset(m->bytes + m->len + len, 0, ALIGNED(len) - len);
	m->len += ALIGNED(len);
}

static struct message begin(uint8_t *bytes, uint8_t cmd)
{
	struct message m = { .bytes = bytes };

	put(&m, &(struct nlmsghdr) {
		.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK,
	}, sizeof(struct nlmsghdr));
	put(&m, &(struct genlmsghdr) { .cmd = cmd, .version = 1 },
	    sizeof(struct genlmsghdr));
	return m;
}

static size_t end(struct message *m)
{
	memcpy(m->bytes + offsetof(struct nlmsghdr, nlmsg_len), &m->len,
	       sizeof(m->len));
	return m->len;
}

static void put_attr(struct message *m, uint16_t type, const void *data,
		     size_t len)
{
	put(m, &(struct nlattr) {
		.nla_len = (uint16_t)(ATTR_HEAD + len), .nla_type = type,
	}, sizeof(struct nlattr));
	put(m, data, (uint32_t)len);
}

static void put_u32(struct message *m, uint16_t type, uint32_t value)
{
	put_attr(m, type, &value, sizeof(value));
}

static void put_u64(struct message *m, uint16_t type, uint64_t value)
{
	put_attr(m, type, &value, sizeof(value));
}

static void put_link(struct message *m, const struct nbd_link *link)
{
	put_u32(m, NBD_ATTR_INDEX, link->index);
	put_attr(m, NBD_ATTR_BACKEND_IDENTIFIER, link->backend,
		 strlen(link->backend) + 1);
}

/* A list of items of one attribute each. */
static void put_socket(struct message *m, int sock)
{
	const struct nlattr sockets = {
		.nla_len = 3 * ATTR_HEAD + sizeof(uint32_t),
		.nla_type = NBD_ATTR_SOCKETS | NLA_F_NESTED,
	};
	const struct nlattr item = {
		.nla_len = 2 * ATTR_HEAD + sizeof(uint32_t),
		.nla_type = NBD_SOCK_ITEM | NLA_F_NESTED,
	};

	put(m, &sockets, sizeof(sockets));
	put(m, &item, sizeof(item));
	put_u32(m, NBD_SOCK_FD, (uint32_t)sock);
}

void nbd_link_address(uint8_t *msg, uint16_t family, uint32_t seq)
{
	struct nlmsghdr h;

	memcpy(&h, msg, sizeof(h));
	h.nlmsg_type = family;
	h.nlmsg_seq = seq;
	memcpy(msg, &h, sizeof(h));
}

size_t nbd_link_put_family(uint8_t *msg, uint32_t seq)
{
	struct message m = begin(msg, CTRL_CMD_GETFAMILY);

	put_attr(&m, CTRL_ATTR_FAMILY_NAME, NBD_GENL_FAMILY_NAME,
		 sizeof(NBD_GENL_FAMILY_NAME));
	nbd_link_address(msg, GENL_ID_CTRL, seq);
	return end(&m);
}

size_t nbd_link_put_connect(uint8_t *msg, const struct nbd_link *link,
			    const struct nbd_link_disk *disk, int sock)
{
	struct message m = begin(msg, NBD_CMD_CONNECT);

	put_link(&m, link);
	put_u64(&m, NBD_ATTR_SIZE_BYTES, disk->bytes);
	put_u64(&m, NBD_ATTR_BLOCK_SIZE_BYTES, disk->block_bytes);
	put_u64(&m, NBD_ATTR_SERVER_FLAGS, disk->flags);
	put_u64(&m, NBD_ATTR_CLIENT_FLAGS, NBD_CFLAG_DESTROY_ON_DISCONNECT);
	put_u64(&m, NBD_ATTR_DEAD_CONN_TIMEOUT, disk->hold_s);
	put_socket(&m, sock);
	return end(&m);
}

size_t nbd_link_put_reconnect(uint8_t *msg, const struct nbd_link *link,
			      int sock)
{
	struct message m = begin(msg, NBD_CMD_RECONFIGURE);

	put_link(&m, link);
	put_socket(&m, sock);
	return end(&m);
}

size_t nbd_link_put_resize(uint8_t *msg, const struct nbd_link *link,
			   uint64_t bytes, uint32_t block_bytes)
{
	struct message m = begin(msg, NBD_CMD_RECONFIGURE);

	put_link(&m, link);
	put_u64(&m, NBD_ATTR_SIZE_BYTES, bytes);
	put_u64(&m, NBD_ATTR_BLOCK_SIZE_BYTES, block_bytes);
	return end(&m);
}

size_t nbd_link_put_end_on_close(uint8_t *msg, const struct nbd_link *link,
				 bool yes)
{
	struct message m = begin(msg, NBD_CMD_RECONFIGURE);

	put_link(&m, link);
	put_u64(&m, NBD_ATTR_CLIENT_FLAGS, NBD_CFLAG_DESTROY_ON_DISCONNECT |
		(yes ? NBD_CFLAG_DISCONNECT_ON_CLOSE : 0u));
	return end(&m);
}

size_t nbd_link_put_disconnect(uint8_t *msg, const struct nbd_link *link)
{
	struct message m = begin(msg, NBD_CMD_DISCONNECT);

	put_u32(&m, NBD_ATTR_INDEX, link->index);
	return end(&m);
}

/* attrs: of a message of the controller. */
static void get_family(const uint8_t *attrs, size_t len, uint16_t *family)
{
	struct nlattr attr;

	while (len >= ATTR_HEAD) {
		size_t whole;

		memcpy(&attr, attrs, sizeof(attr));
		if (attr.nla_len < ATTR_HEAD || attr.nla_len > len)
			return;
		if ((attr.nla_type & NLA_TYPE_MASK) == CTRL_ATTR_FAMILY_ID &&
		    attr.nla_len == ATTR_HEAD + sizeof(*family))
			memcpy(family, attrs + ATTR_HEAD, sizeof(*family));
		whole = ALIGNED(attr.nla_len);
		if (whole > len)
			return;
		attrs += whole;
		len -= whole;
	}
}

int nbd_link_get(const uint8_t *msg, size_t len, uint32_t seq, int *rc,
		 uint16_t *family)
{
	const size_t head = NLMSG_HDRLEN, genl = head + GENL_HDRLEN;
	struct nlmsghdr h;

	while (len >= head) {
		size_t whole;

		memcpy(&h, msg, sizeof(h));
		if (h.nlmsg_len < head || h.nlmsg_len > len)
			return -EPROTO;
		if (h.nlmsg_seq == seq && h.nlmsg_type == NLMSG_ERROR) {
			if (h.nlmsg_len < head + sizeof(*rc))
				return -EPROTO;
			memcpy(rc, msg + head, sizeof(*rc));
			return *rc > 0 ? -EPROTO : 1;
		}
		if (h.nlmsg_seq == seq && h.nlmsg_type == GENL_ID_CTRL &&
		    h.nlmsg_len >= genl && family)
			get_family(msg + genl, h.nlmsg_len - genl, family);
		whole = ALIGNED(h.nlmsg_len);
		if (whole >= len)
			return 0;
		msg += whole;
		len -= whole;
	}
	return len ? -EPROTO : 0;
}

/* The socket */

/* Sends a request and waits for its answer: 0 or -errno. */
static int call(int fd, const uint8_t *msg, size_t len, uint32_t seq,
		uint16_t *family)
{
	const struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	uint8_t answer[RECEIVE_BYTES];
	int rc = 0, got;
	ssize_t n;

	do {
		n = sendto(fd, msg, len, 0, (const void *)&kernel, sizeof(kernel));
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	do {
		struct sockaddr_nl from;
		socklen_t size = sizeof(from);

		n = recvfrom(fd, answer, sizeof(answer), MSG_TRUNC,
			     (void *)&from, &size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if ((size_t)n > sizeof(answer))
			return -EMSGSIZE;
		if (from.nl_pid)
			continue;
		got = nbd_link_get(answer, (size_t)n, seq, &rc, family);
		if (got < 0)
			return got;
		if (got)
			return rc;
	} while (1);
}

enum { SEQ_FAMILY = 1, SEQ_CALL };

/* A socket and the number of the client's family. */
static int link_open(int *fd, uint16_t *family)
{
	uint8_t msg[NBD_NETLINK_MAX];
	int rc;

	*fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
	if (*fd < 0)
		return -errno;
	*family = 0;
	rc = call(*fd, msg, nbd_link_put_family(msg, SEQ_FAMILY), SEQ_FAMILY,
		  family);
	if (!rc && !*family)
		rc = -EPROTO;
	if (rc)
		close(*fd);
	return rc;
}

/* Addresses and sends it. */
static int run(const struct nbd_link *link, const char *what, uint8_t *msg,
	       size_t len, struct error *err)
{
	uint16_t family;
	int fd, rc;

	rc = link_open(&fd, &family);
	if (rc == -ENOENT)
		return error_set(err, rc, "the kernel has no nbd client; `modprobe nbd`");
	if (!rc) {
		nbd_link_address(msg, family, SEQ_CALL);
		rc = call(fd, msg, len, SEQ_CALL, NULL);
		close(fd);
	}
	if (rc)
		return error_set(err, rc, "/dev/nbd%u: the kernel's nbd client can't %s it: %s",
				 link->index, what, strerror(-rc));
	return 0;
}

int nbd_link_connect(const struct nbd_link *link,
		     const struct nbd_link_disk *disk, int sock,
		     struct error *err)
{
	uint8_t msg[NBD_NETLINK_MAX];

	return run(link, "connect", msg,
		   nbd_link_put_connect(msg, link, disk, sock), err);
}

int nbd_link_reconnect(const struct nbd_link *link, int sock,
		       struct error *err)
{
	uint8_t msg[NBD_NETLINK_MAX];

	return run(link, "reconnect", msg,
		   nbd_link_put_reconnect(msg, link, sock), err);
}

int nbd_link_resize(const struct nbd_link *link, uint64_t bytes,
		    uint32_t block_bytes, struct error *err)
{
	uint8_t msg[NBD_NETLINK_MAX];

	return run(link, "resize", msg,
		   nbd_link_put_resize(msg, link, bytes, block_bytes), err);
}

int nbd_link_end_on_close(const struct nbd_link *link, bool yes,
			  struct error *err)
{
	uint8_t msg[NBD_NETLINK_MAX];

	return run(link, "change", msg,
		   nbd_link_put_end_on_close(msg, link, yes), err);
}

int nbd_link_disconnect(const struct nbd_link *link, struct error *err)
{
	uint8_t msg[NBD_NETLINK_MAX];

	return run(link, "disconnect", msg,
		   nbd_link_put_disconnect(msg, link), err);
}
