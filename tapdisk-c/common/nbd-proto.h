/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The NBD protocol's bytes: numbers, requests and replies as they are on the
 * wire, big-endian. Nothing else touches them. Source:
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 */
#ifndef XENBLK_NBD_PROTO_H
#define XENBLK_NBD_PROTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Handshake */
#define NBD_MAGIC		0x4e42444d41474943ull	/* NBDMAGIC */
#define NBD_OPTION_MAGIC	0x49484156454f5054ull	/* IHAVEOPT */
#define NBD_REPLY_MAGIC		0x0003e889045565a9ull

#define NBD_FIXED_NEWSTYLE	1u	/* both sides' flags */
#define NBD_NO_ZEROES		2u

#define NBD_MAX_NAME		4096u

enum nbd_option {
	NBD_OPT_EXPORT_NAME		= 1,
	NBD_OPT_ABORT			= 2,
	NBD_OPT_LIST			= 3,
	NBD_OPT_INFO			= 6,
	NBD_OPT_GO			= 7,
	NBD_OPT_STRUCTURED_REPLY	= 8,
	NBD_OPT_LIST_META_CONTEXT	= 9,
	NBD_OPT_SET_META_CONTEXT	= 10,
};

#define NBD_REP_ACK		1u
#define NBD_REP_SERVER		2u
#define NBD_REP_INFO		3u
#define NBD_REP_META_CONTEXT	4u
#define NBD_REP_ERR_UNSUP	0x80000001u
#define NBD_REP_ERR_INVALID	0x80000003u
#define NBD_REP_ERR_TLS_REQD	0x80000005u
#define NBD_REP_ERR_UNKNOWN	0x80000006u
#define NBD_REP_ERR_TOO_BIG	0x80000009u
#define NBD_REP_IS_ERR(type)	((type) >> 31)

#define NBD_INFO_EXPORT		0u
#define NBD_INFO_BLOCK_SIZE	3u

/* Of an export */
#define NBD_FLAG_HAS_FLAGS		0x001u
#define NBD_FLAG_READ_ONLY		0x002u
#define NBD_FLAG_SEND_FLUSH		0x004u
#define NBD_FLAG_SEND_FUA		0x008u
#define NBD_FLAG_SEND_TRIM		0x020u
#define NBD_FLAG_SEND_WRITE_ZEROES	0x040u
#define NBD_FLAG_SEND_DF		0x080u
#define NBD_FLAG_CAN_MULTI_CONN		0x100u

/* Requests */
#define NBD_REQUEST_BYTES	28u

enum nbd_type {
	NBD_CMD_READ		= 0,
	NBD_CMD_WRITE		= 1,
	NBD_CMD_DISC		= 2,
	NBD_CMD_FLUSH		= 3,
	NBD_CMD_TRIM		= 4,
	NBD_CMD_WRITE_ZEROES	= 6,
	NBD_CMD_BLOCK_STATUS	= 7,
};

#define NBD_CMD_FLAG_FUA	1u
#define NBD_CMD_FLAG_NO_HOLE	2u
#define NBD_CMD_FLAG_DF		4u
#define NBD_CMD_FLAG_REQ_ONE	8u

struct nbd_request {
	uint16_t flags;
	uint16_t type;
	uint64_t cookie;
	uint64_t offset;		/* bytes */
	uint32_t length;		/* bytes */
};

/* False if these NBD_REQUEST_BYTES are no request. */
bool nbd_get_request(struct nbd_request *req, const uint8_t *p);

/* Replies */
#define NBD_HEAD_MAX		36u	/* of what the functions below write */

#define NBD_CHUNK_NONE		0u
#define NBD_CHUNK_OFFSET_DATA	1u
#define NBD_CHUNK_OFFSET_HOLE	2u
#define NBD_CHUNK_BLOCK_STATUS	5u
#define NBD_CHUNK_IS_ERROR	0x8000u
#define NBD_CHUNK_ERROR		0x8001u
#define NBD_CHUNK_ERROR_OFFSET	0x8002u

#define NBD_STATE_HOLE		1u
#define NBD_STATE_ZERO		2u
#define NBD_EXTENT_BYTES	8u

/* Each returns the bytes written. err is 0 or -errno. */
size_t nbd_put_simple(uint8_t *p, uint64_t cookie, int err);
/* length is that of the payload that follows. */
size_t nbd_put_chunk(uint8_t *p, unsigned int type, bool last, uint64_t cookie,
		     uint32_t length);
/* The head of a chunk of data; len bytes of data follow. */
size_t nbd_put_data(uint8_t *p, bool last, uint64_t cookie, uint64_t offset,
		    uint32_t len);
size_t nbd_put_error(uint8_t *p, bool last, uint64_t cookie, int err);
size_t nbd_put_error_at(uint8_t *p, bool last, uint64_t cookie, int err,
			uint64_t offset);

/* The number on the wire for -errno: NBD knows a few. */
uint32_t nbd_errno(int err);

/* The client's side */

#define NBD_GREETING_BYTES	18u	/* magic, option magic, flags */
#define NBD_OPTION_HEAD		16u	/* magic, option, length of what follows */
#define NBD_OPTION_REPLY_HEAD	20u	/* magic, option, type, length of what follows */

void nbd_put_request(uint8_t *p, const struct nbd_request *req);
/* The head of an option; len bytes follow. */
size_t nbd_put_option(uint8_t *p, enum nbd_option option, uint32_t len);

#define NBD_SIMPLE_BYTES	16u
#define NBD_CHUNK_BYTES_HEAD	20u

struct nbd_reply {
	bool chunk;			/* of a structured reply */
	bool last;			/* nothing else answers the request */
	uint16_t type;			/* chunk: NBD_CHUNK_* */
	uint64_t cookie;
	int err;			/* simple: 0 or -errno */
	uint32_t length;		/* chunk: bytes that follow */
};

/* Bytes of the head that starts with these four; 0: it is no reply. */
size_t nbd_reply_bytes(const uint8_t *p);
/* p holds as many. */
void nbd_get_reply(struct nbd_reply *reply, const uint8_t *p);

/* -errno for a number on the wire; one that NBD doesn't know is -EIO. */
int nbd_wire_error(uint32_t number);

#endif
