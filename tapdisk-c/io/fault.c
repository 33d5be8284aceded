/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * fault:RULES:ENGINE, for the tests: lets I/O fail, be late, fall short or not
 * come back, by the rules in the file RULES (fault-rules.h). The file is looked at
 * before each transfer, so that a test switches faults on and off by replacing
 * or removing it, while tapdisk runs; counts begin anew then. Each transfer that a rule
 * applies to is a line in RULES.hits: "OPERATION OFFSET BYTES FILE".
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "io/fault-rules.h"
#include "io/wrap.h"

/* How soon a stuck request sees that the rules have changed. */
#define STUCK_POLL_NS 5000000

enum state {
	FREE,
	LATE,		/* goes on when due */
	STUCK,		/* goes on, without a fault, when the rules have changed */
	OVER,		/* has its result */
	IN_KERNEL,	/* as far as it is to go */
};

/* A transfer that a rule applies to. */
struct held {
	enum state state;
	struct io_req *req;
	uint64_t due_ns;
	unsigned int generation;	/* of the rules */
	int err;			/* positive: the result, whatever was transferred */
	int result;			/* OVER */
	bool go;			/* is handed to the kernel */
	bool is_short;
	uint64_t shorten;		/* bytes */

	/* IN_KERNEL: what was cut off the request's iov. */
	bool cut;
	int iovcnt, cut_at;
	size_t cut_len;
};

struct fault_wrap {
	struct engine_wrap wrap;
	struct fault_rules rules;
	int hits;			/* the file */
	unsigned int nr_held;
	unsigned int depth;
	struct held held[];
};

static struct fault_wrap *to_fault(struct engine_wrap *wrap)
{
	return container_of(wrap, struct fault_wrap, wrap);
}

static void fault_close(struct engine_wrap *wrap)
{
	struct fault_wrap *f = to_fault(wrap);

	if (f->hits >= 0)
		close(f->hits);
	free(f);
}

static int fault_open(struct engine_wrap **wrap, const char *path,
		      unsigned int depth, struct error *err)
{
	char hits[sizeof(((struct fault_rules *)0)->path) + 8];
	struct fault_wrap *f;
	int rc;

	f = calloc(1, sizeof(*f) + depth * sizeof(f->held[0]));
	if (!f)
		return error_set(err, -ENOMEM, "I/O engine fault: out of memory");
	f->depth = depth;
	snprintf(f->rules.path, sizeof(f->rules.path), "%s", path);
	snprintf(hits, sizeof(hits), "%s.hits", f->rules.path);
	f->hits = open(hits, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	if (f->hits < 0)
		rc = error_set(err, -errno, "%s: %s", hits, strerror(errno));
	else
		rc = fault_rules_reload(&f->rules, err);
	if (rc) {
		fault_close(&f->wrap);
		return rc;
	}
	*wrap = &f->wrap;
	return 0;
}

static void reload(struct fault_wrap *f)
{
	struct error err;

	if (fault_rules_reload(&f->rules, &err))
		log_error("%s", err.text);
}

static void note_hit(struct fault_wrap *f, const struct io_req *req)
{
	char link[32], path[PATH_MAX], line[PATH_MAX + 80];
	ssize_t n;
	int len;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", req->fd);
	n = readlink(link, path, sizeof(path) - 1);
	path[n < 0 ? 0 : n] = 0;
	len = snprintf(line, sizeof(line), "%s %" PRIu64 " %" PRIu64 " %s\n",
		       fault_op_name(req->op), fault_offset(req),
		       fault_length(req), path);
	if (write(f->hits, line, (size_t)len) != len)
		log_error("%s.hits: cannot be written", f->rules.path);
}

static struct held *held_get(struct fault_wrap *f)
{
	for (unsigned int i = 0; i < f->depth; i++)
		if (f->held[i].state == FREE)
			return &f->held[i];
	return NULL;
}

static void held_put(struct fault_wrap *f, struct held *h)
{
	h->state = FREE;
	f->nr_held--;
}

/* Cuts the request to its first bytes, at least one. */
static void cut(struct held *h)
{
	struct io_req *req = h->req;
	uint64_t left = h->shorten;
	int i = 0;

	h->iovcnt = req->iovcnt;
	while (i < req->iovcnt && req->iov[i].iov_len < left)
		left -= req->iov[i++].iov_len;
	if (i == req->iovcnt)
		return;
	h->cut = true;
	h->cut_at = i;
	h->cut_len = req->iov[i].iov_len;
	req->iov[i].iov_len = (size_t)left;
	req->iovcnt = i + 1;
}

static void uncut(struct held *h)
{
	if (!h->cut)
		return;
	h->req->iov[h->cut_at].iov_len = h->cut_len;
	h->req->iovcnt = h->iovcnt;
	h->cut = false;
}

/* Its time has come. */
static void act(struct fault_wrap *f, struct held *h)
{
	bool cuts = h->is_short &&
		    (h->req->op == IO_READ || h->req->op == IO_WRITE);

	if (!h->go || (cuts && !h->shorten)) {
		h->result = -h->err;
		h->state = OVER;
		return;
	}
	if (cuts)
		cut(h);
	h->state = IN_KERNEL;
	if (!wrap_submit_inner(&f->wrap, h->req)) {
		uncut(h);
		h->state = LATE;
		h->due_ns = 0;
	}
}

static bool fault_submit(struct engine_wrap *wrap, struct io_req *req)
{
	struct fault_wrap *f = to_fault(wrap);
	const struct fault_rule *rule;
	struct held *h;

	reload(f);
	if (!f->rules.nr)
		return wrap_submit_inner(wrap, req);
	h = held_get(f);
	if (!h)
		return false;
	rule = fault_rules_match(&f->rules, req);
	if (!rule)
		return wrap_submit_inner(wrap, req);
	note_hit(f, req);
	f->nr_held++;
	*h = (struct held){
		.req		= req,
		.generation	= f->rules.generation,
		.err		= rule->err,
		.go		= !rule->err || rule->reached || rule->is_short,
		.is_short	= rule->is_short,
		.shorten	= rule->shorten,
	};
	if (rule->stuck) {
		h->state = STUCK;
	} else if (rule->delay_ns) {
		h->state = LATE;
		h->due_ns = now_ns() + rule->delay_ns;
	} else {
		act(f, h);
	}
	return true;
}

static int fault_finish(struct engine_wrap *wrap, struct io_req *req, int result)
{
	struct fault_wrap *f = to_fault(wrap);
	unsigned int seen = 0;

	for (unsigned int i = 0; seen < f->nr_held; i++) {
		struct held *h = &f->held[i];

		seen += h->state != FREE;
		if (h->state != IN_KERNEL || h->req != req)
			continue;
		uncut(h);
		if (h->err)
			result = -h->err;
		held_put(f, h);
		break;
	}
	return result;
}

static void release(struct fault_wrap *f, struct held *h)
{
	*h = (struct held){ .req = h->req, .go = true };
	act(f, h);
}

static int64_t sooner(int64_t timeout_ns, uint64_t ns)
{
	return timeout_ns < 0 || (uint64_t)timeout_ns > ns ? (int64_t)ns :
							     timeout_ns;
}

static int64_t fault_before_wait(struct engine_wrap *wrap, int64_t timeout_ns)
{
	struct fault_wrap *f = to_fault(wrap);
	unsigned int nr = f->nr_held;
	uint64_t now;

	if (!nr)
		return timeout_ns;
	reload(f);
	now = now_ns();
	for (unsigned int i = 0; nr; i++) {
		struct held *h = &f->held[i];

		if (h->state == FREE)
			continue;
		nr--;
		if (h->state == STUCK && h->generation != f->rules.generation)
			release(f, h);
		else if (h->state == LATE && h->due_ns <= now)
			act(f, h);
		if (h->state == STUCK) {
			timeout_ns = sooner(timeout_ns, STUCK_POLL_NS);
		} else if (h->state == LATE) {
			timeout_ns = sooner(timeout_ns, h->due_ns > now ?
					    h->due_ns - now : 0);
		} else if (h->state == OVER) {
			held_put(f, h);
			wrap_finish_held(wrap, h->req, h->result);
			timeout_ns = 0;
		}
	}
	return timeout_ns;
}

const struct engine_wrap_ops fault_wrap_ops = {
	.prefix		= "fault",
	.open		= fault_open,
	.close		= fault_close,
	.submit		= fault_submit,
	.finish		= fault_finish,
	.before_wait	= fault_before_wait,
};
