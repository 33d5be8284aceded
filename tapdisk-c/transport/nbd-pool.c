/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/nbd-pool.h"

#include <string.h>
#include <sys/mman.h>

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

#define POOL_BYTES ((size_t)NBD_MAX_CLIENTS * NBD_PART_BYTES)

/* tapdisk's memory is locked; kernels before 5.18 keep such pages. */
static void forget(void *base, size_t len)
{
	if (madvise(base, len, MADV_DONTNEED_LOCKED) < 0)
		madvise(base, len, MADV_DONTNEED);
}

void *nbd_pool_take(struct nbd_pool *pool)
{
	unsigned int i = (unsigned int)__builtin_ctz(~pool->used);

	if (i >= NBD_MAX_CLIENTS)
		return NULL;
	if (!pool->base) {
		void *p = mmap(NULL, POOL_BYTES, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			       -1, 0);

		if (p == MAP_FAILED)
			return NULL;
		pool->base = p;
	}
	pool->used |= 1u << i;
	return pool->base + (size_t)i * NBD_PART_BYTES;
}

void nbd_pool_give(struct nbd_pool *pool, void *part)
{
	size_t at = (size_t)((uint8_t *)part - pool->base);

	forget(part, NBD_PART_BYTES);
	pool->used &= ~(1u << at / NBD_PART_BYTES);
}

void nbd_pool_close(struct nbd_pool *pool)
{
	if (pool->base)
		munmap(pool->base, POOL_BYTES);
	pool->base = NULL;
}

void nbd_buffers_init(struct nbd_buffers *b, struct engine *engine, void *part)
{
	memset(b, 0, sizeof(*b));
	b->engine = engine;
	b->base = nbd_part_rx(part) + NBD_RX_BYTES;
	memset(b->free, 0xff, sizeof(b->free));
}

/* log2 of the pages that hold len bytes. */
static unsigned int order_of(uint32_t len)
{
	uint32_t pages = (len + NBD_PAGE - 1) / NBD_PAGE;

	return pages > 1 ? 32u - (unsigned int)__builtin_clz(pages - 1) : 0;
}

static uint64_t pages_of(unsigned int order)
{
	return order == 6 ? UINT64_MAX : (1ull << (1u << order)) - 1;
}

/* Where 2^order free pages begin at a multiple of that. */
static uint64_t starts(uint64_t free, unsigned int order)
{
	static const uint64_t aligned[] = {
		0xffffffffffffffff, 0x5555555555555555, 0x1111111111111111,
		0x0101010101010101, 0x0001000100010001, 0x0000000100000001,
		0x0000000000000001,
	};

	for (unsigned int i = 0; i < order; i++)
		free &= free >> (1u << i);
	return free & aligned[order];
}

uint8_t *nbd_buffer_take(struct nbd_buffers *b, uint32_t len, uint16_t *number)
{
	unsigned int order = order_of(len);

	for (unsigned int i = 0; i < NBD_CHUNKS; i++) {
		uint8_t *chunk = b->base + (size_t)i * NBD_CHUNK_BYTES;
		uint64_t at = starts(b->free[i], order);
		unsigned int page;

		if (!at)
			continue;
		if (!b->touched[i]) {
			b->touched[i] = true;
			b->number[i] = engine_buffer_add(b->engine, chunk,
							 NBD_CHUNK_BYTES);
		}
		page = (unsigned int)__builtin_ctzll(at);
		b->free[i] &= ~(pages_of(order) << page);
		*number = b->number[i];
		return chunk + (size_t)page * NBD_PAGE;
	}
	return NULL;
}

void nbd_buffer_give(struct nbd_buffers *b, const uint8_t *buf, uint32_t len)
{
	size_t page = (size_t)(buf - b->base) / NBD_PAGE;

	b->free[page / 64] |= pages_of(order_of(len)) << page % 64;
}

void nbd_buffers_release(struct nbd_buffers *b)
{
	for (unsigned int i = 0; i < NBD_CHUNKS; i++) {
		if (!b->touched[i] || b->free[i] != UINT64_MAX)
			continue;
		if (b->number[i])
			engine_buffer_remove(b->engine, b->number[i]);
		b->number[i] = 0;
		b->touched[i] = false;
		forget(b->base + (size_t)i * NBD_CHUNK_BYTES, NBD_CHUNK_BYTES);
	}
}
