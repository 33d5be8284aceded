/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/nbd-gather.h"

#define EPOCH_NS	10000000u
#define PROBE_EPOCHS	16u	/* between two looks for the depth */
#define PROBE_REQUESTS	40u
#define PROBE_FIRST	4u	/* whether there is any */
#define PROBE_MAX_NS	1000000u

/* Rarer requests are not worth it, shorter sleeps neither. */
#define SLOW_NS		50000u
#define GATHER_MIN_NS	10000u
#define GATHER_MAX_NS	100000u

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void epoch_end(struct nbd_gather *g, uint64_t now)
{
	uint64_t ns = now - g->epoch_ns;
	unsigned int peak = g->peak;

	if (ns < EPOCH_NS)
		return;
	g->interval_ns = g->requests ? ns / g->requests : UINT64_MAX;
	/* A client that has changed is found out within some epochs. */
	g->depth -= (g->depth + 15) / 16;
	if (peak > g->depth + 1) {
		/* There may be more still. */
		g->probe = true;
		g->depth = peak;
	} else if (peak > g->depth) {
		g->depth = peak;
	}
	if (peak <= 1)
		g->depth = 1;
	g->epoch_ns = now;
	g->requests = 0;
	g->peak = 0;
	if (g->epochs++ % PROBE_EPOCHS == 0)
		g->probe = true;
}

void nbd_gather_count(struct nbd_gather *g, uint64_t now, unsigned int came,
		      unsigned int before)
{
	g->requests += came;
	if (before + came > g->peak)
		g->peak = before + came;
	epoch_end(g, now);
}

uint64_t nbd_gather_ns(struct nbd_gather *g, unsigned int waiting)
{
	unsigned int part = g->depth / 4;
	uint64_t ns;

	if (!g->interval_ns || g->interval_ns > SLOW_NS)
		return 0;
	if (g->probe && !waiting) {
		g->probe = false;
		return min_u64(g->interval_ns * (g->depth > 1 ? PROBE_REQUESTS :
						 PROBE_FIRST), PROBE_MAX_NS);
	}
	if (waiting >= part)
		return 0;
	ns = min_u64(g->interval_ns * (part - waiting), GATHER_MAX_NS);
	return ns < GATHER_MIN_NS ? 0 : ns;
}
