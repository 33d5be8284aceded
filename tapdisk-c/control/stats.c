/* SPDX-License-Identifier: LGPL-2.1-only */
#include "control/stats.h"

const char *const control_stats_ops[STATS_OPS] = {
	"read", "write", "flush", "discard", "zero", "status",
};

static json_t *latency(const struct stats_op *op)
{
	json_t *buckets = json_array();

	for (unsigned int i = 0; i < STATS_BUCKETS; i++)
		if (op->latency[i])
			json_array_append_new(buckets,
				json_pack("[I, I]",
					  (json_int_t)stats_bucket_end(i),
					  (json_int_t)op->latency[i]));
	return buckets;
}

json_t *control_stats(const struct stats_page *page)
{
	json_t *all = json_pack("{s:I, s:I, s:I}",
				"inflight", (json_int_t)page->inflight,
				"waiting", (json_int_t)page->waiting,
				"merged", (json_int_t)page->merged);

	for (unsigned int i = 0; i < STATS_OPS; i++) {
		const struct stats_op *op = &page->op[i];

		json_object_set_new(all, control_stats_ops[i],
			json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}",
				  "requests", (json_int_t)op->requests,
				  "sectors", (json_int_t)op->sectors,
				  "bytes", (json_int_t)(op->sectors * 512),
				  "errors", (json_int_t)op->errors,
				  "retries", (json_int_t)op->retries,
				  "total_ns", (json_int_t)op->total_ns,
				  "max_ns", (json_int_t)op->max_ns,
				  "p50_ns", (json_int_t)stats_percentile(op, 50),
				  "p99_ns", (json_int_t)stats_percentile(op, 99),
				  "latency", latency(op)));
	}
	return all;
}
