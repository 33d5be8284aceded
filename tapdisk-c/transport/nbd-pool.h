/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The memory of an export's connections: one mapping, made when the first
 * client comes, with a part for each connection that nobody else can use up:
 *
 *   part:  [ connection ][ receive buffer ][ data: NBD_CHUNKS x NBD_CHUNK_BYTES ]
 *
 * Data buffers are 4 KiB to NBD_CHUNK_BYTES, each a power of two, the lowest
 * free place first, so that little is touched by who needs little. A chunk is
 * registered with the engine when it is first used. Nothing here allocates.
 */
#ifndef XENBLK_NBD_POOL_H
#define XENBLK_NBD_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/engine.h"

#define NBD_MAX_CLIENTS	16u

#define NBD_PAGE	4096u
#define NBD_CHUNK_BYTES	(64u * NBD_PAGE)
#define NBD_CHUNKS	8u

#define NBD_RX_BYTES	(128u << 10)
#define NBD_CONN_BYTES	(256u << 10)
#define NBD_PART_BYTES	(NBD_CONN_BYTES + NBD_RX_BYTES + NBD_CHUNKS * NBD_CHUNK_BYTES)

struct nbd_pool {
	struct engine *engine;
	uint8_t *base;			/* NULL: not mapped */
	uint32_t used;			/* a bit for each part */
};

/* A part's data buffers. */
struct nbd_buffers {
	struct engine *engine;
	uint8_t *base;
	uint64_t free[NBD_CHUNKS];	/* a bit for each page */
	uint16_t number[NBD_CHUNKS];	/* the engine's, 0: none */
	bool touched[NBD_CHUNKS];
};

/* A part, its content undefined, or NULL if all are taken or there is no memory. */
void *nbd_pool_take(struct nbd_pool *pool);
/* The part's data must have been released. */
void nbd_pool_give(struct nbd_pool *pool, void *part);
void nbd_pool_close(struct nbd_pool *pool);

static inline uint8_t *nbd_part_rx(void *part)
{
	return (uint8_t *)part + NBD_CONN_BYTES;
}

void nbd_buffers_init(struct nbd_buffers *b, struct engine *engine, void *part);
/* At least len bytes (1 to NBD_CHUNK_BYTES); NULL if there is no room now. */
uint8_t *nbd_buffer_take(struct nbd_buffers *b, uint32_t len, uint16_t *number);
void nbd_buffer_give(struct nbd_buffers *b, const uint8_t *buf, uint32_t len);
/* Gives the memory of the chunks that are not in use back to the system. */
void nbd_buffers_release(struct nbd_buffers *b);

#endif
