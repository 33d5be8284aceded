/* SPDX-License-Identifier: LGPL-2.1-only */
/* A statistics page as JSON, for tapdisk's answer and for tap-ctl. */
#ifndef XENBLK_CONTROL_STATS_H
#define XENBLK_CONTROL_STATS_H

#include <jansson.h>

#include "common/stats.h"

/*
 * inflight, waiting, merged, and for each of read, write, flush, discard, zero,
 * status: requests, sectors, bytes, errors, retries, total_ns, max_ns, p50_ns,
 * p99_ns and latency, an array of [ns, requests] for the buckets that have any:
 * so many took less than ns, and not less than the bucket before.
 */
json_t *control_stats(const struct stats_page *page);

extern const char *const control_stats_ops[STATS_OPS];

#endif
