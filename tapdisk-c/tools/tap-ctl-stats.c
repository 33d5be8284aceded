/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * stats: what a VBD has done, from its statistics page; tapdisk is asked only
 * where it has none.
 */
#include "tools/tap-ctl.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/attribute.h"
#include "common/stats.h"
#include "control/client.h"
#include "control/stats.h"

#define DESCRIBE_TRIES	1000

/* The strings after the first one, up to the empty one. */
static json_t *chain_json(const struct stats_page *copy)
{
	const char *end = copy->text + sizeof(copy->text);
	const char *s = copy->text + strnlen(copy->text, sizeof(copy->text)) + 1;
	json_t *chain = json_array();

	for (; s < end && *s && memchr(s, 0, (size_t)(end - s));
	     s += strlen(s) + 1) {
		json_t *path = json_string(s);

		json_array_append_new(chain, path ? path : json_string("?"));
	}
	return chain;
}

static int from_page(const struct stats_page *page, json_t **vbd,
		     struct error *err)
{
	static struct stats_page copy;
	int tries = 0;

	while (!stats_describe(page, &copy)) {
		if (++tries == DESCRIBE_TRIES)
			return error_set(err, -EAGAIN, "minor %d: its tapdisk died while it changed the statistics page",
					 page->minor);
		usleep(1000);
	}
	copy.text[sizeof(copy.text) - 1] = 0;
	*vbd = json_pack("{s:i, s:i, s:o, s:b, s:I, s:I, s:I}",
			 "minor", page->minor, "state", (int)page->state,
			 "args", copy.open ? json_string(copy.text) : json_null(),
			 "readonly", copy.readonly != 0,
			 "sectors", (json_int_t)copy.sectors,
			 "sector_size", (json_int_t)copy.sector_size,
			 "depth", (json_int_t)copy.depth);
	if (!*vbd)
		return error_set(err, -ENOMEM, "out of memory");
	json_object_set_new(*vbd, "chain", chain_json(&copy));
	json_object_update_new(*vbd, control_stats(page));
	return 0;
}

static int from_tapdisk(const struct options *opt, json_t **vbd,
			struct error *err)
{
	json_t *request = json_pack("{s:s, s:i}", "op", "stats", "minor",
				    opt->minor);
	json_t *reply;
	int rc = control_call(opt->pid, request, &reply, TAP_CTL_TIMEOUT_MS,
			      err);

	json_decref(request);
	if (rc)
		return rc;
	*vbd = json_incref(json_object_get(reply, "vbd"));
	json_decref(reply);
	return 0;
}

/* What the kernel has done without tapdisk. */
static const char *const kernel_counters[] = { "reads", "writes", "failed" };

/* NULL: the driver has no such minor, or counts no such thing. */
static json_t *kernel_stats(int minor)
{
	json_t *kernel = json_object();

	for (size_t i = 0; i < sizeof(kernel_counters) / sizeof(kernel_counters[0]); i++) {
		char path[96];
		uint64_t n;

		snprintf(path, sizeof(path),
			 "/sys/class/blktap2/blktap%d/counters/direct_%s", minor,
			 kernel_counters[i]);
		if (attribute_number(path, &n)) {
			json_decref(kernel);
			return NULL;
		}
		json_object_set_new(kernel, kernel_counters[i],
				    json_integer((json_int_t)n));
	}
	return kernel;
}

/* VBD and STATS of proto.h */
static int get(const struct options *opt, json_t **vbd, struct error *err)
{
	const struct stats_page *page;
	int rc;

	/* What a dead one has left is of no use. */
	if ((kill(opt->pid, 0) && errno == ESRCH) ||
	    stats_page_map(&page, opt->pid, opt->minor, NULL))
		return from_tapdisk(opt, vbd, err);
	rc = from_page(page, vbd, err);
	stats_page_unmap(page);
	return rc;
}

static long long number(const json_t *op, const char *key)
{
	return json_integer_value(json_object_get(op, key));
}

static double us(long long ns)
{
	return (double)ns / 1000;
}

static void print_table(const json_t *all)
{
	const char *type = json_string_value(json_object_get(all, "type"));
	const char *path = json_string_value(json_object_get(all, "path"));
	const char *transport = json_string_value(json_object_get(all, "transport"));
	const json_t *kernel = json_object_get(all, "kernel");

	printf("%s%s%s%s%s: %lld in flight, %lld waiting, %lld merged\n",
	       type ? type : "no image", type ? ":" : "", path ? path : "",
	       transport ? " by " : "", transport ? transport : "",
	       number(all, "inflight"), number(all, "waiting"),
	       number(all, "merged"));
	printf("%-8s %12s %16s %8s %8s %10s %10s %10s %10s\n", "", "requests",
	       "bytes", "errors", "retries", "mean us", "p50 us", "p99 us",
	       "max us");
	for (unsigned int i = 0; i < STATS_OPS; i++) {
		const json_t *op = json_object_get(all, control_stats_ops[i]);
		long long n = number(op, "requests");

		printf("%-8s %12lld %16lld %8lld %8lld %10.1f %10.1f %10.1f %10.1f\n",
		       control_stats_ops[i], n, number(op, "bytes"),
		       number(op, "errors"), number(op, "retries"),
		       us(n ? number(op, "total_ns") / n : 0),
		       us(number(op, "p50_ns")), us(number(op, "p99_ns")),
		       us(number(op, "max_ns")));
	}
	if (kernel)
		printf("by the kernel: %lld reads, %lld writes; %lld failed and came to tapdisk\n",
		       number(kernel, "reads"), number(kernel, "writes"),
		       number(kernel, "failed"));
}

int cmd_stats(const struct options *opt, struct error *err)
{
	static const char *const more[] = { "chain", "inflight", "waiting",
					    "merged" };
	json_t *vbd, *out, *kernel;
	int rc = get(opt, &vbd, err);

	if (rc)
		return rc;
	out = vbd_output(opt->pid, vbd);
	for (size_t i = 0; i < sizeof(more) / sizeof(more[0]); i++)
		json_object_set(out, more[i], json_object_get(vbd, more[i]));
	for (size_t i = 0; i < STATS_OPS; i++)
		json_object_set(out, control_stats_ops[i],
				json_object_get(vbd, control_stats_ops[i]));
	kernel = kernel_stats(opt->minor);
	if (kernel)
		json_object_set_new(out, "kernel", kernel);
	/* XenServer's prints JSON, which scripts read. */
	if (opt->json || !isatty(STDOUT_FILENO)) {
		json_dumpf(out, stdout, JSON_INDENT(2));
		putchar('\n');
	} else {
		print_table(out);
	}
	json_decref(out);
	json_decref(vbd);
	return 0;
}
