/* SPDX-License-Identifier: LGPL-2.1-only */
/* Messages to the kernel's nbd client, read back as the kernel reads them, and its answers. */
#include <errno.h>
#include <linux/genetlink.h>
#include <linux/nbd.h>
#include <linux/nbd-netlink.h>
#include <linux/netlink.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "transport/nbd-netlink.h"

static const struct nbd_link link_7 = { .index = 1031, .backend = "xenblk-tapdev7" };

/* The attribute of that type in attrs[len], and its length; NULL: there is none. */
static const uint8_t *attr(const uint8_t *attrs, size_t len, uint16_t type,
			   size_t *n)
{
	const uint8_t *found = NULL;

	while (len) {
		struct nlattr a;
		size_t whole;

		assert_true(len >= sizeof(a));
		memcpy(&a, attrs, sizeof(a));
		assert_true(a.nla_len >= sizeof(a));
		whole = (a.nla_len + 3u) & ~3u;
		assert_true(whole <= len);
		if ((a.nla_type & NLA_TYPE_MASK) == type) {
			assert_null(found);
			found = attrs + sizeof(a);
			*n = a.nla_len - sizeof(a);
		}
		attrs += whole;
		len -= whole;
	}
	return found;
}

/* The attributes of a message, which is for family 0x1234. */
static const uint8_t *attrs_of(uint8_t *msg, size_t len, uint8_t cmd, size_t *n)
{
	struct genlmsghdr g;
	struct nlmsghdr h;

	assert_true(len <= NBD_NETLINK_MAX);
	nbd_link_address(msg, 0x1234, 9);
	memcpy(&h, msg, sizeof(h));
	memcpy(&g, msg + sizeof(h), sizeof(g));
	assert_int_equal(h.nlmsg_len, len);
	assert_int_equal(h.nlmsg_type, 0x1234);
	assert_int_equal(h.nlmsg_seq, 9);
	assert_int_equal(h.nlmsg_flags, NLM_F_REQUEST | NLM_F_ACK);
	assert_int_equal(g.cmd, cmd);
	*n = len - sizeof(h) - sizeof(g);
	return msg + sizeof(h) + sizeof(g);
}

static uint64_t number(const uint8_t *attrs, size_t len, uint16_t type)
{
	const uint8_t *data;
	uint64_t wide;
	uint32_t narrow;
	size_t n = 0;

	data = attr(attrs, len, type, &n);
	if (!data)
		return UINT64_MAX;
	if (n == sizeof(wide)) {
		memcpy(&wide, data, sizeof(wide));
		return wide;
	}
	assert_int_equal(n, sizeof(narrow));
	memcpy(&narrow, data, sizeof(narrow));
	return narrow;
}

static void names_the_device(const uint8_t *attrs, size_t len)
{
	const uint8_t *data;
	size_t n = 0;

	assert_int_equal(number(attrs, len, NBD_ATTR_INDEX), 1031);
	data = attr(attrs, len, NBD_ATTR_BACKEND_IDENTIFIER, &n);
	assert_non_null(data);
	assert_int_equal(n, sizeof("xenblk-tapdev7"));
	assert_string_equal((const char *)data, "xenblk-tapdev7");
}

static void has_socket(const uint8_t *attrs, size_t len, uint64_t fd)
{
	size_t n = 0, m = 0;
	const uint8_t *sockets = attr(attrs, len, NBD_ATTR_SOCKETS, &n), *item;

	assert_non_null(sockets);
	item = attr(sockets, n, NBD_SOCK_ITEM, &m);
	assert_non_null(item);
	assert_int_equal(number(item, m, NBD_SOCK_FD), fd);
}

static void connect_says_all_of_the_disk(void **state)
{
	const struct nbd_link_disk disk = {
		.bytes = 5ull << 40, .block_bytes = 4096, .flags = 0x16d,
		.hold_s = 315360000,
	};
	uint8_t msg[NBD_NETLINK_MAX];
	const uint8_t *attrs;
	size_t n;

	(void)state;
	attrs = attrs_of(msg, nbd_link_put_connect(msg, &link_7, &disk, 12),
			 NBD_CMD_CONNECT, &n);
	names_the_device(attrs, n);
	has_socket(attrs, n, 12);
	assert_int_equal(number(attrs, n, NBD_ATTR_SIZE_BYTES), 5ull << 40);
	assert_int_equal(number(attrs, n, NBD_ATTR_BLOCK_SIZE_BYTES), 4096);
	assert_int_equal(number(attrs, n, NBD_ATTR_SERVER_FLAGS), 0x16d);
	assert_int_equal(number(attrs, n, NBD_ATTR_CLIENT_FLAGS),
			 NBD_CFLAG_DESTROY_ON_DISCONNECT);
	assert_int_equal(number(attrs, n, NBD_ATTR_DEAD_CONN_TIMEOUT), 315360000);
	/* With one the kernel would end a connection whose server is slow. */
	assert_int_equal(number(attrs, n, NBD_ATTR_TIMEOUT), UINT64_MAX);
}

static void a_new_connection_changes_nothing_else(void **state)
{
	uint8_t msg[NBD_NETLINK_MAX];
	const uint8_t *attrs;
	size_t n;

	(void)state;
	attrs = attrs_of(msg, nbd_link_put_reconnect(msg, &link_7, 3),
			 NBD_CMD_RECONFIGURE, &n);
	names_the_device(attrs, n);
	has_socket(attrs, n, 3);
	for (uint16_t type = NBD_ATTR_SIZE_BYTES; type <= NBD_ATTR_MAX; type++)
		if (type != NBD_ATTR_SOCKETS &&
		    type != NBD_ATTR_BACKEND_IDENTIFIER)
			assert_null(attr(attrs, n, type, &(size_t){ 0 }));
}

static void size_end_and_disconnect(void **state)
{
	uint8_t msg[NBD_NETLINK_MAX];
	const uint8_t *attrs;
	size_t n;

	(void)state;
	attrs = attrs_of(msg, nbd_link_put_resize(msg, &link_7, 1 << 20, 512),
			 NBD_CMD_RECONFIGURE, &n);
	names_the_device(attrs, n);
	assert_int_equal(number(attrs, n, NBD_ATTR_SIZE_BYTES), 1 << 20);
	assert_int_equal(number(attrs, n, NBD_ATTR_BLOCK_SIZE_BYTES), 512);
	assert_int_equal(number(attrs, n, NBD_ATTR_CLIENT_FLAGS), UINT64_MAX);
	attrs = attrs_of(msg, nbd_link_put_end_on_close(msg, &link_7, true),
			 NBD_CMD_RECONFIGURE, &n);
	names_the_device(attrs, n);
	assert_int_equal(number(attrs, n, NBD_ATTR_CLIENT_FLAGS),
			 NBD_CFLAG_DESTROY_ON_DISCONNECT |
			 NBD_CFLAG_DISCONNECT_ON_CLOSE);
	attrs = attrs_of(msg, nbd_link_put_end_on_close(msg, &link_7, false),
			 NBD_CMD_RECONFIGURE, &n);
	assert_int_equal(number(attrs, n, NBD_ATTR_CLIENT_FLAGS),
			 NBD_CFLAG_DESTROY_ON_DISCONNECT);
	attrs = attrs_of(msg, nbd_link_put_disconnect(msg, &link_7),
			 NBD_CMD_DISCONNECT, &n);
	assert_int_equal(number(attrs, n, NBD_ATTR_INDEX), 1031);
}

/* An answer to seq, -errno rc; its length. */
static size_t put_answer(uint8_t *to, uint32_t seq, int rc)
{
	const struct nlmsghdr h = {
		.nlmsg_len = sizeof(h) + sizeof(struct nlmsgerr),
		.nlmsg_type = NLMSG_ERROR, .nlmsg_seq = seq,
	};
	const struct nlmsgerr e = { .error = rc };

	memcpy(to, &h, sizeof(h));
	memcpy(to + sizeof(h), &e, sizeof(e));
	return h.nlmsg_len;
}

/* The controller's message that names a family's number. */
static size_t put_family(uint8_t *to, uint32_t seq, uint16_t family)
{
	uint8_t msg[NBD_NETLINK_MAX] = { 0 };
	const struct nlattr other = { .nla_len = 7, .nla_type = CTRL_ATTR_FAMILY_NAME };
	const struct nlattr id = { .nla_len = 6, .nla_type = CTRL_ATTR_FAMILY_ID };
	const size_t head = sizeof(struct nlmsghdr) + sizeof(struct genlmsghdr);
	const struct nlmsghdr h = {
		.nlmsg_len = (uint32_t)head + 16, .nlmsg_type = GENL_ID_CTRL,
		.nlmsg_seq = seq,
	};

	memcpy(msg, &h, sizeof(h));
	memcpy(msg + head, &other, sizeof(other));
	memcpy(msg + head + 8, &id, sizeof(id));
	memcpy(msg + head + 12, &family, sizeof(family));
	memcpy(to, msg, h.nlmsg_len);
	return h.nlmsg_len;
}

static void answers_are_told_apart(void **state)
{
	uint8_t msg[1024];
	uint16_t family = 0;
	size_t n;
	int rc = 1;

	(void)state;
	n = put_family(msg, 4, 0x77);
	assert_int_equal(nbd_link_get(msg, n, 4, &rc, &family), 0);
	assert_int_equal(family, 0x77);
	n += put_answer(msg + n, 5, -EBUSY);
	assert_int_equal(nbd_link_get(msg, n, 4, &rc, &family), 0);
	n += put_answer(msg + n, 4, 0);
	assert_int_equal(nbd_link_get(msg, n, 4, &rc, &family), 1);
	assert_int_equal(rc, 0);
	assert_int_equal(nbd_link_get(msg, n, 5, &rc, NULL), 1);
	assert_int_equal(rc, -EBUSY);
	assert_int_equal(nbd_link_get(msg, put_answer(msg, 1, 5), 1, &rc, NULL),
			 -EPROTO);
	assert_int_equal(nbd_link_get(msg, 7, 1, &rc, NULL), -EPROTO);
	assert_int_equal(nbd_link_get(msg, 0, 1, &rc, NULL), 0);
}

/* Of any length and with any bits changed: nothing outside is read (the sanitizer looks). */
static void damaged_answers_do_no_harm(void **state)
{
	unsigned int seed = (unsigned int)time(NULL);
	int rc;

	(void)state;
	print_message("seed %u\n", seed);
	srand(seed);
	for (int i = 0; i < 20000; i++) {
		uint8_t whole[256];
		size_t n = put_family(whole, 1, 2);
		uint16_t family = 0;
		uint8_t *msg;

		n += put_answer(whole + n, 1, 0);
		for (int k = rand() % 4; k >= 0; k--)
			whole[(size_t)rand() % n] ^= (uint8_t)(1 << rand() % 8);
		n = (size_t)rand() % (n + 1);
		msg = malloc(n ? n : 1);
		assert_non_null(msg);
		memcpy(msg, whole, n);
		nbd_link_get(msg, n, 1, &rc, &family);
		free(msg);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(connect_says_all_of_the_disk),
		cmocka_unit_test(a_new_connection_changes_nothing_else),
		cmocka_unit_test(size_end_and_disconnect),
		cmocka_unit_test(answers_are_told_apart),
		cmocka_unit_test(damaged_answers_do_no_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
