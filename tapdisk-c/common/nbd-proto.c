/* SPDX-License-Identifier: LGPL-2.1-only */
#include "common/nbd-proto.h"

#include <errno.h>

#include "common/bytes.h"

#define REQUEST_MAGIC		0x25609513u
#define SIMPLE_MAGIC		0x67446698u
#define STRUCTURED_MAGIC	0x668e33efu

#define CHUNK_DONE		1u

bool nbd_get_request(struct nbd_request *req, const uint8_t *p)
{
	req->flags = get_be16(p + 4);
	req->type = get_be16(p + 6);
	req->cookie = get_be64(p + 8);
	req->offset = get_be64(p + 16);
	req->length = get_be32(p + 24);
	return get_be32(p) == REQUEST_MAGIC;
}

size_t nbd_put_simple(uint8_t *p, uint64_t cookie, int err)
{
	put_be32(p, SIMPLE_MAGIC);
	put_be32(p + 4, nbd_errno(err));
	put_be64(p + 8, cookie);
	return 16;
}

size_t nbd_put_chunk(uint8_t *p, unsigned int type, bool last, uint64_t cookie,
		     uint32_t length)
{
	put_be32(p, STRUCTURED_MAGIC);
	put_be16(p + 4, last ? CHUNK_DONE : 0);
	put_be16(p + 6, (uint16_t)type);
	put_be64(p + 8, cookie);
	put_be32(p + 16, length);
	return 20;
}

size_t nbd_put_data(uint8_t *p, bool last, uint64_t cookie, uint64_t offset,
		    uint32_t len)
{
	size_t n = nbd_put_chunk(p, NBD_CHUNK_OFFSET_DATA, last, cookie,
				 8 + len);

	put_be64(p + n, offset);
	return n + 8;
}

/* Without a message: the number says all there is. */
size_t nbd_put_error(uint8_t *p, bool last, uint64_t cookie, int err)
{
	size_t n = nbd_put_chunk(p, NBD_CHUNK_ERROR, last, cookie, 6);

	put_be32(p + n, nbd_errno(err));
	put_be16(p + n + 4, 0);
	return n + 6;
}

size_t nbd_put_error_at(uint8_t *p, bool last, uint64_t cookie, int err,
			uint64_t offset)
{
	size_t n = nbd_put_chunk(p, NBD_CHUNK_ERROR_OFFSET, last, cookie, 14);

	put_be32(p + n, nbd_errno(err));
	put_be16(p + n + 4, 0);
	put_be64(p + n + 6, offset);
	return n + 14;
}

uint32_t nbd_errno(int err)
{
	switch (-err) {
	case 0:
		return 0;
	case EPERM:
	case EACCES:
	case EROFS:
		return 1;
	case ENOMEM:
		return 12;
	case EINVAL:
		return 22;
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return 28;
	case EOVERFLOW:
		return 75;
	case EOPNOTSUPP:
		return 95;
	case ESHUTDOWN:
		return 108;
	default:
		return 5;
	}
}

void nbd_put_request(uint8_t *p, const struct nbd_request *req)
{
	put_be32(p, REQUEST_MAGIC);
	put_be16(p + 4, req->flags);
	put_be16(p + 6, req->type);
	put_be64(p + 8, req->cookie);
	put_be64(p + 16, req->offset);
	put_be32(p + 24, req->length);
}

size_t nbd_put_option(uint8_t *p, enum nbd_option option, uint32_t len)
{
	put_be64(p, NBD_OPTION_MAGIC);
	put_be32(p + 8, (uint32_t)option);
	put_be32(p + 12, len);
	return NBD_OPTION_HEAD;
}

size_t nbd_reply_bytes(const uint8_t *p)
{
	switch (get_be32(p)) {
	case SIMPLE_MAGIC:
		return NBD_SIMPLE_BYTES;
	case STRUCTURED_MAGIC:
		return NBD_CHUNK_BYTES_HEAD;
	default:
		return 0;
	}
}

void nbd_get_reply(struct nbd_reply *reply, const uint8_t *p)
{
	*reply = (struct nbd_reply) {
		.chunk	= get_be32(p) == STRUCTURED_MAGIC,
		.cookie	= get_be64(p + 8),
	};
	if (reply->chunk) {
		reply->last = get_be16(p + 4) & CHUNK_DONE;
		reply->type = get_be16(p + 6);
		reply->length = get_be32(p + 16);
	} else {
		reply->last = true;
		reply->err = nbd_wire_error(get_be32(p + 4));
	}
}

int nbd_wire_error(uint32_t number)
{
	switch (number) {
	case 0:
		return 0;
	case 1:
		return -EPERM;
	case 12:
		return -ENOMEM;
	case 22:
		return -EINVAL;
	case 28:
		return -ENOSPC;
	case 75:
		return -EOVERFLOW;
	case 95:
		return -EOPNOTSUPP;
	case 108:
		return -ESHUTDOWN;
	default:
		return -EIO;
	}
}
