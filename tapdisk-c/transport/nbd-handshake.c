/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/nbd-handshake.h"

#include <string.h>

#include "common/bytes.h"
#include "common/nbd-proto.h"

#define OPTION_HEAD	16u
#define PREFERRED_BLOCK	4096u
#define TRAILER_ZEROES	124u

static const char base_allocation[] = "base:allocation";

/* What is left of an option's data while it is taken apart. */
struct cursor {
	const uint8_t *p;
	size_t left;
};

struct answer {
	uint8_t *p;
	size_t len;
};

static bool take(struct cursor *c, size_t n, const uint8_t **p)
{
	if (n > c->left)
		return false;
	*p = c->p;
	c->p += n;
	c->left -= n;
	return true;
}

static bool take_u16(struct cursor *c, uint16_t *v)
{
	const uint8_t *p;

	if (!take(c, 2, &p))
		return false;
	*v = get_be16(p);
	return true;
}

static bool take_u32(struct cursor *c, uint32_t *v)
{
	const uint8_t *p;

	if (!take(c, 4, &p))
		return false;
	*v = get_be32(p);
	return true;
}

static bool take_string(struct cursor *c, const uint8_t **p, uint32_t *len)
{
	return take_u32(c, len) && *len <= NBD_MAX_NAME && take(c, *len, p);
}

static void reply(struct answer *a, uint32_t option, uint32_t type,
		  const void *data, uint32_t len)
{
	uint8_t *p = a->p + a->len;

	put_be64(p, NBD_REPLY_MAGIC);
	put_be32(p + 8, option);
	put_be32(p + 12, type);
	put_be32(p + 16, len);
	if (len)
		memcpy(p + 20, data, len);
	a->len += 20 + len;
}

size_t nbd_handshake_begin(struct nbd_handshake *hs,
			   const struct nbd_export *export, uint8_t *answer)
{
	*hs = (struct nbd_handshake) { .export = *export };
	put_be64(answer, NBD_MAGIC);
	put_be64(answer + 8, NBD_OPTION_MAGIC);
	put_be16(answer + 16, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
	return 18;
}

/* One fragment only can be promised to who can tell fragments. */
static uint16_t flags_of(const struct nbd_handshake *hs)
{
	return (uint16_t)(hs->export.flags |
			  (hs->structured ? NBD_FLAG_SEND_DF : 0));
}

static enum nbd_step export_name(struct nbd_handshake *hs, uint32_t len,
				 struct answer *a)
{
	if (len > NBD_MAX_NAME)
		return NBD_STEP_END;
	put_be64(a->p, hs->export.bytes);
	put_be16(a->p + 8, flags_of(hs));
	a->len = 10;
	if (!hs->no_zeroes) {
		memset(a->p + a->len, 0, TRAILER_ZEROES);
		a->len += TRAILER_ZEROES;
	}
	return NBD_STEP_READY;
}

/* NBD_OPT_INFO and NBD_OPT_GO: a name, then which informations are wanted. */
static bool info(const struct nbd_handshake *hs, struct cursor c,
		 struct answer *a)
{
	uint8_t data[14];
	uint16_t nr, type;
	const uint8_t *name;
	uint32_t len;

	if (!take_string(&c, &name, &len) || !take_u16(&c, &nr) ||
	    c.left != 2u * nr)
		return false;
	while (nr--)
		if (!take_u16(&c, &type))
			return false;
	put_be16(data, NBD_INFO_EXPORT);
	put_be64(data + 2, hs->export.bytes);
	put_be16(data + 10, flags_of(hs));
	reply(a, hs->option, NBD_REP_INFO, data, 12);
	/* Asked for or not: what does not keep to it is refused. */
	put_be16(data, NBD_INFO_BLOCK_SIZE);
	put_be32(data + 2, hs->export.min_block);
	put_be32(data + 6, PREFERRED_BLOCK);
	put_be32(data + 10, hs->export.max_block);
	reply(a, hs->option, NBD_REP_INFO, data, 14);
	return true;
}

/* A query is a context's name, or "base:" in a list, which means all in it. */
static bool matches(const uint8_t *query, uint32_t len, bool list)
{
	size_t whole = sizeof(base_allocation) - 1;

	if (list && len == 5)
		return !memcmp(query, base_allocation, 5);
	return len == whole && !memcmp(query, base_allocation, whole);
}

static bool meta_context(struct nbd_handshake *hs, struct cursor c,
			 struct answer *a)
{
	bool list = hs->option == NBD_OPT_LIST_META_CONTEXT;
	uint8_t data[4 + sizeof(base_allocation)];
	const uint8_t *p;
	uint32_t len, nr;
	bool found;

	if (!list)
		hs->allocation = false;
	if (!hs->structured || !take_string(&c, &p, &len) || !take_u32(&c, &nr))
		return false;
	found = list && !nr;
	while (nr--) {
		if (!take_string(&c, &p, &len))
			return false;
		found |= matches(p, len, list);
	}
	if (c.left)
		return false;
	if (!found || !hs->export.status)
		return true;
	put_be32(data, list ? 0 : NBD_CONTEXT_ALLOCATION);
	memcpy(data + 4, base_allocation, sizeof(base_allocation) - 1);
	reply(a, hs->option, NBD_REP_META_CONTEXT, data,
	      4 + sizeof(base_allocation) - 1);
	if (!list)
		hs->allocation = true;
	return true;
}

/* The one export, which has no name. */
static bool list_exports(const struct nbd_handshake *hs, struct cursor c,
			 struct answer *a)
{
	static const uint8_t no_name[4];

	if (c.left)
		return false;
	reply(a, hs->option, NBD_REP_SERVER, no_name, sizeof(no_name));
	return true;
}

static enum nbd_step option(struct nbd_handshake *hs, struct cursor c,
			    struct answer *a)
{
	bool ok;

	switch (hs->option) {
	case NBD_OPT_EXPORT_NAME:
		return export_name(hs, (uint32_t)c.left, a);
	case NBD_OPT_ABORT:
		reply(a, hs->option, NBD_REP_ACK, NULL, 0);
		return NBD_STEP_END;
	case NBD_OPT_LIST:
		ok = list_exports(hs, c, a);
		break;
	case NBD_OPT_INFO:
	case NBD_OPT_GO:
		ok = info(hs, c, a);
		break;
	case NBD_OPT_STRUCTURED_REPLY:
		ok = !c.left;
		hs->structured |= ok;
		break;
	case NBD_OPT_LIST_META_CONTEXT:
	case NBD_OPT_SET_META_CONTEXT:
		ok = meta_context(hs, c, a);
		break;
	default:
		reply(a, hs->option, NBD_REP_ERR_UNSUP, NULL, 0);
		return NBD_STEP_ANSWER;
	}
	reply(a, hs->option, ok ? NBD_REP_ACK : NBD_REP_ERR_INVALID, NULL, 0);
	return ok && hs->option == NBD_OPT_GO ? NBD_STEP_READY :
						NBD_STEP_ANSWER;
}

static enum nbd_step client_flags(struct nbd_handshake *hs, const uint8_t *in)
{
	uint32_t flags = get_be32(in);

	if (flags & ~(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES))
		return NBD_STEP_END;
	hs->no_zeroes = flags & NBD_NO_ZEROES;
	hs->phase = NBD_OPTIONS;
	return NBD_STEP_ANSWER;
}

static enum nbd_step skip(struct nbd_handshake *hs, size_t len, size_t *used,
			  struct answer *a)
{
	*used = len < hs->skip ? len : hs->skip;
	hs->skip -= (uint32_t)*used;
	if (hs->skip)
		return *used ? NBD_STEP_ANSWER : NBD_STEP_MORE;
	hs->phase = NBD_OPTIONS;
	reply(a, hs->option, NBD_REP_ERR_TOO_BIG, NULL, 0);
	return NBD_STEP_ANSWER;
}

enum nbd_step nbd_handshake_step(struct nbd_handshake *hs, const uint8_t *in,
				 size_t len, size_t *used, uint8_t *answer,
				 size_t *answered)
{
	struct answer a = { .p = answer };
	enum nbd_step step = NBD_STEP_MORE;
	uint32_t option_len;

	*used = 0;
	*answered = 0;
	if (hs->phase == NBD_CLIENT_FLAGS) {
		if (len < 4)
			return NBD_STEP_MORE;
		*used = 4;
		return client_flags(hs, in);
	}
	if (hs->phase == NBD_OPTIONS) {
		if (len >= 8 && get_be64(in) != NBD_OPTION_MAGIC)
			return NBD_STEP_END;
		if (len < OPTION_HEAD)
			return NBD_STEP_MORE;
		hs->option = get_be32(in + 8);
		option_len = get_be32(in + 12);
		if (option_len > NBD_OPTION_MAX) {
			/* This one has no error reply. */
			if (hs->option == NBD_OPT_EXPORT_NAME)
				return NBD_STEP_END;
			*used = OPTION_HEAD;
			hs->skip = option_len;
			hs->phase = NBD_SKIP;
			return NBD_STEP_ANSWER;
		}
		if (len - OPTION_HEAD < option_len)
			return NBD_STEP_MORE;
		*used = OPTION_HEAD + option_len;
		step = option(hs, (struct cursor) { in + OPTION_HEAD,
						    option_len }, &a);
	} else {
		step = skip(hs, len, used, &a);
	}
	*answered = a.len;
	return step;
}
