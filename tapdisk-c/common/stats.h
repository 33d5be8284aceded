/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The statistics page of a VBD: a file that tapdisk maps and writes, and that
 * anyone who may open it maps and reads, without a word to tapdisk. Version
 * 1, host byte order, every counter 8 bytes and aligned. There is one writer
 * and no lock: two counters of one reading may be an instant apart.
 * Durations are nanoseconds of CLOCK_MONOTONIC, from the arrival of a request
 * to its answer, waiting included.
 */
#ifndef XENBLK_STATS_H
#define XENBLK_STATS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

#define STATS_MAGIC	0x746174736b6c6278ull	/* "xblkstat" in memory, little-endian */
#define STATS_VERSION	1u

/* Of struct stats_page.op, in the order of enum image_op. */
#define STATS_OPS	6u

/*
 * A duration below 4 ns has a bucket of its own; above, each power of two has
 * four. The last one takes all from half an hour on.
 */
#define STATS_BUCKETS	160u

#define STATS_TEXT	8192u

struct stats_op {
	uint64_t requests;		/* answered */
	uint64_t sectors;		/* of 512 bytes */
	uint64_t errors;		/* of the requests */
	uint64_t retries;		/* submitted once more after an error */
	uint64_t total_ns;
	uint64_t max_ns;
	uint64_t latency[STATS_BUCKETS];
};

struct stats_page {
	uint64_t magic;
	uint32_t version;
	uint32_t bytes;			/* of the page */
	int32_t pid;
	int32_t minor;

	uint32_t sequence;		/* odd while what follows, up to text, is changed */
	uint32_t open;			/* 0: no image is, and text is empty */
	uint32_t readonly;
	uint32_t sector_size;
	uint32_t depth;			/* images in the chain */
	uint32_t reserved;
	uint64_t sectors;
	/*
	 * TYPE:PATH, then the paths of the chain, leaf first, each with its
	 * NUL and an empty one at the end. Paths for which there is no room are
	 * left out: depth says how many there are.
	 */
	char text[STATS_TEXT];

	uint32_t state;			/* enum vbd_state */
	uint32_t inflight;		/* requests not answered */
	uint32_t waiting;		/* of them those that wait for the storage or for space */
	uint32_t reserved2;
	uint64_t merged;		/* I/Os that went along with a neighbour's */
	struct stats_op op[STATS_OPS];
};

static inline unsigned int stats_bucket(uint64_t ns)
{
	unsigned int log;

	if (ns < 4)
		return (unsigned int)ns;
	log = 63u - (unsigned int)__builtin_clzll(ns);
	if (log > 40)
		return STATS_BUCKETS - 1;
	log = (log - 1) * 4 + ((unsigned int)(ns >> (log - 2)) & 3);
	return log < STATS_BUCKETS ? log : STATS_BUCKETS - 1;
}

/* The first duration that is past the bucket. */
static inline uint64_t stats_bucket_end(unsigned int bucket)
{
	if (bucket < 4)
		return bucket + 1ull;
	return (uint64_t)(4 + (bucket & 3) + 1) << (bucket / 4 - 1);
}

/* The duration that so many of 100 requests did not exceed, to a fifth; 0: none. */
uint64_t stats_percentile(const struct stats_op *op, double percent);

/*
 * A page for a VBD, in the file stats<pid>.<minor> of the run directory. Never
 * fails but for memory (NULL): where the file can't be made, or minor is
 * negative, nobody else sees the page.
 */
struct stats_page *stats_page_new(int minor);
void stats_page_free(struct stats_page *page);
/* Removes the file alone. */
void stats_page_hide(const struct stats_page *page);

/*
 * The page of another process, read-only: -ENOENT if it has none, -EPROTO if it
 * is of another release.
 */
int stats_page_map(const struct stats_page **page, int pid, int minor,
		   struct error *err);
void stats_page_unmap(const struct stats_page *page);

/* Before and after the description is changed; for the writer. */
void stats_change_begin(struct stats_page *page);
void stats_change_end(struct stats_page *page);
/* A copy of the description that is of one moment; false: it is being changed. */
bool stats_describe(const struct stats_page *page, struct stats_page *copy);

#endif
