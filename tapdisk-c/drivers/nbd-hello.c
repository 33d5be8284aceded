/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The client's side of the NBD handshake, fixed newstyle: structured replies and
 * base:allocation if the server has them, then GO, or EXPORT_NAME where that is
 * not known. Exactly the bytes of one message are received at a time, and
 * each is answered by an option of at most some KiB, which a fresh socket takes
 * at once. Every length is the server's word and is checked.
 */
#include <errno.h>
#include <string.h>

#include "common/bytes.h"
#include "drivers/nbd.h"

#define ALLOCATION	"base:allocation"
#define TEXT_MAX	200		/* of a server's message */
#define MIN_BLOCK_MAX	4096u		/* the largest logical block size that guests take */

static int protocol(struct error *err, const char *what)
{
	return error_set(err, -EPROTO, "is no NBD server, or a broken one: %s",
			 what);
}

void nbd_hello_start(struct nbd_hello *h, const struct nbd_address *address)
{
	*h = (struct nbd_hello) {
		.address	= address,
		.want		= NBD_GREETING_BYTES,
		.info		= {
			.min_block	= SECTOR_SIZE,
			.max_block	= NBD_MAX_BLOCK,
		},
	};
}

static int say(int fd, const uint8_t *p, size_t len, struct error *err)
{
	ssize_t n = send(fd, p, len, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0)
		return error_set(err, -errno, "%s", strerror(errno));
	return (size_t)n == len ? 0 :
	       error_set(err, -EPROTO, "takes nothing in the handshake");
}

/* Sends an option whose data begins with the export's name, and expects its reply. */
static int ask(struct nbd_hello *h, int fd, enum nbd_option option,
	       bool length, const uint8_t *tail, uint32_t tail_len,
	       struct error *err)
{
	uint8_t p[NBD_OPTION_HEAD + 4 + NBD_MAX_NAME + 64];
	uint32_t name = (uint32_t)strlen(h->address->export);
	size_t n = nbd_put_option(p, option,
				  name + tail_len + (length ? 4 : 0));

	if (length) {
		put_be32(p + n, name);
		n += 4;
	}
	memcpy(p + n, h->address->export, name);
	n += name;
	if (tail_len)
		memcpy(p + n, tail, tail_len);
	h->have = 0;
	h->want = NBD_OPTION_REPLY_HEAD;
	return say(fd, p, n + tail_len, err);
}

static int ask_structured(struct nbd_hello *h, int fd, struct error *err)
{
	uint8_t p[NBD_OPTION_HEAD];

	h->step = NBD_HELLO_STRUCTURED;
	h->have = 0;
	h->want = NBD_OPTION_REPLY_HEAD;
	return say(fd, p, nbd_put_option(p, NBD_OPT_STRUCTURED_REPLY, 0), err);
}

static int ask_context(struct nbd_hello *h, int fd, struct error *err)
{
	uint8_t tail[8 + sizeof(ALLOCATION) - 1];

	h->step = NBD_HELLO_CONTEXT;
	put_be32(tail, 1);
	put_be32(tail + 4, sizeof(ALLOCATION) - 1);
	memcpy(tail + 8, ALLOCATION, sizeof(ALLOCATION) - 1);
	return ask(h, fd, NBD_OPT_SET_META_CONTEXT, true, tail, sizeof(tail),
		   err);
}

static int ask_go(struct nbd_hello *h, int fd, struct error *err)
{
	uint8_t tail[4];

	h->step = NBD_HELLO_GO;
	put_be16(tail, 1);
	put_be16(tail + 2, NBD_INFO_BLOCK_SIZE);
	return ask(h, fd, NBD_OPT_GO, true, tail, sizeof(tail), err);
}

static int ask_export(struct nbd_hello *h, int fd, struct error *err)
{
	int rc = ask(h, fd, NBD_OPT_EXPORT_NAME, false, NULL, 0, err);

	h->step = NBD_HELLO_EXPORT_NAME;
	h->want = 10 + (h->no_zeroes ? 0 : 124);
	return rc;
}

static int greeting(struct nbd_hello *h, int fd, struct error *err)
{
	uint16_t flags = get_be16(h->buf + 16);
	uint8_t p[4];
	int rc;

	if (get_be64(h->buf) != NBD_MAGIC)
		return protocol(err, "its first bytes are others");
	if (get_be64(h->buf + 8) != NBD_OPTION_MAGIC ||
	    !(flags & NBD_FIXED_NEWSTYLE))
		return error_set(err, -EPROTO,
				 "speaks an old form of NBD; fixed newstyle is needed");
	h->no_zeroes = flags & NBD_NO_ZEROES;
	put_be32(p, NBD_FIXED_NEWSTYLE | (flags & NBD_NO_ZEROES));
	rc = say(fd, p, sizeof(p), err);
	return rc ? rc : ask_structured(h, fd, err);
}

/* The server's words, as far as they are fit to print. */
static int refused(const struct nbd_hello *h, uint32_t type, uint32_t len,
		   struct error *err)
{
	const uint8_t *p = h->buf + NBD_OPTION_REPLY_HEAD;
	char text[TEXT_MAX + 1];
	size_t n = 0;

	for (uint32_t i = 0; i < len && n < TEXT_MAX; i++)
		text[n++] = p[i] < ' ' || p[i] > '~' ? '?' : (char)p[i];
	text[n] = 0;
	if (type == NBD_REP_ERR_TLS_REQD)
		return error_set(err, -EPROTO,
				 "wants TLS, which tapdisk does not speak");
	if (type == NBD_REP_ERR_UNKNOWN)
		return error_set(err, -ENOENT, "has no export \"%s\"%s%s",
				 h->address->export, n ? ": " : "", text);
	return error_set(err, -EPROTO, "refuses export \"%s\": %s",
			 h->address->export, n ? text : "it doesn't say why");
}

static int take_export(struct nbd_hello *h, const uint8_t *p)
{
	h->info.bytes = get_be64(p);
	h->info.flags = get_be16(p + 8);
	h->has_export = true;
	return 0;
}

static int take_info(struct nbd_hello *h, const uint8_t *p, uint32_t len,
		     struct error *err)
{
	uint16_t type = len < 2 ? UINT16_MAX : get_be16(p);

	if (len < 2 || (type == NBD_INFO_EXPORT && len != 12) ||
	    (type == NBD_INFO_BLOCK_SIZE && len != 14))
		return protocol(err, "information of a wrong length");
	if (type == NBD_INFO_EXPORT)
		return take_export(h, p + 2);
	if (type == NBD_INFO_BLOCK_SIZE) {
		h->info.min_block = get_be32(p + 2);
		h->info.max_block = get_be32(p + 10);
	}
	return 0;
}

/* An option's reply of len bytes is in buf, behind its head. */
static int reply(struct nbd_hello *h, int fd, uint32_t len, struct error *err)
{
	static const enum nbd_option asked[] = {
		[NBD_HELLO_STRUCTURED]	= NBD_OPT_STRUCTURED_REPLY,
		[NBD_HELLO_CONTEXT]	= NBD_OPT_SET_META_CONTEXT,
		[NBD_HELLO_GO]		= NBD_OPT_GO,
	};
	const uint8_t *p = h->buf + NBD_OPTION_REPLY_HEAD;
	uint32_t type = get_be32(h->buf + 12);
	bool ack = type == NBD_REP_ACK, no = NBD_REP_IS_ERR(type);

	if (get_be64(h->buf) != NBD_REPLY_MAGIC ||
	    get_be32(h->buf + 8) != asked[h->step])
		return protocol(err, "no reply to what it was asked");
	if (++h->replies > NBD_HELLO_REPLIES)
		return protocol(err, "its replies don't end");
	h->have = 0;
	h->want = NBD_OPTION_REPLY_HEAD;
	switch (h->step) {
	case NBD_HELLO_STRUCTURED:
		if (!ack && !no)
			return protocol(err, "a reply of a wrong type");
		h->info.structured = ack;
		return ack ? ask_context(h, fd, err) : ask_go(h, fd, err);
	case NBD_HELLO_CONTEXT:
		if (ack || no)
			return ask_go(h, fd, err);
		if (type != NBD_REP_META_CONTEXT ||
		    len != 4 + sizeof(ALLOCATION) - 1 ||
		    memcmp(p + 4, ALLOCATION, len - 4))
			return protocol(err, "a context that it was not asked for");
		h->info.context = get_be32(p);
		h->info.status = true;
		return 0;
	case NBD_HELLO_GO:
		if (type == NBD_REP_INFO)
			return take_info(h, p, len, err);
		if (type == NBD_REP_ERR_UNSUP)
			return ask_export(h, fd, err);
		if (no)
			return refused(h, type, len, err);
		if (!ack || !h->has_export)
			return protocol(err, "an export without a size");
		h->step = NBD_HELLO_DONE;
		return 0;
	case NBD_HELLO_GREETING:
	case NBD_HELLO_EXPORT_NAME:
	case NBD_HELLO_DONE:
		break;
	}
	return protocol(err, "a reply at the wrong time");
}

/* want bytes are there. */
static int message(struct nbd_hello *h, int fd, struct error *err)
{
	uint32_t len;

	if (h->step == NBD_HELLO_GREETING)
		return greeting(h, fd, err);
	if (h->step == NBD_HELLO_EXPORT_NAME) {
		h->step = NBD_HELLO_DONE;
		return take_export(h, h->buf);
	}
	len = get_be32(h->buf + 16);
	if (len > NBD_HELLO_DATA)
		return protocol(err, "a reply to an option is too long");
	if (h->have < NBD_OPTION_REPLY_HEAD + len) {
		h->want = NBD_OPTION_REPLY_HEAD + len;
		return 0;
	}
	return reply(h, fd, len, err);
}

/* What the server says of the export is fit for a disk. */
static int check(struct nbd_info *info, struct error *err)
{
	uint32_t sector = info->min_block > SECTOR_SIZE ? info->min_block :
			  SECTOR_SIZE;

	if (!info->min_block || (info->min_block & (info->min_block - 1)) ||
	    info->min_block > MIN_BLOCK_MAX)
		return error_set(err, -EINVAL,
				 "minimum block size %u: must be a power of two, at most %u",
				 info->min_block, MIN_BLOCK_MAX);
	if (info->max_block < sector)
		return error_set(err, -EINVAL,
				 "maximum block size %u: must be at least %u",
				 info->max_block, sector);
	if (!info->bytes || info->bytes % sector || info->bytes > INT64_MAX)
		return error_set(err, -EINVAL,
				 "size %llu: must be a positive multiple of %u; change it at the server",
				 (unsigned long long)info->bytes, sector);
	if (info->max_block > NBD_MAX_BLOCK)
		info->max_block = NBD_MAX_BLOCK;
	info->max_block -= info->max_block % sector;
	info->min_block = sector;
	if (!(info->flags & NBD_FLAG_HAS_FLAGS))
		info->flags = 0;
	return 0;
}

int nbd_hello_progress(struct nbd_hello *h, int fd, struct error *err)
{
	while (h->step != NBD_HELLO_DONE) {
		int rc;
		ssize_t n = recv(fd, h->buf + h->have, h->want - h->have,
				 MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return -EAGAIN;
		if (n < 0)
			return error_set(err, -errno, "%s", strerror(errno));
		if (!n)
			return error_set(err, -ECONNRESET,
					 "ends the connection in the handshake");
		h->have += (uint32_t)n;
		if (h->have < h->want)
			continue;
		rc = message(h, fd, err);
		if (rc)
			return rc;
	}
	return check(&h->info, err);
}
