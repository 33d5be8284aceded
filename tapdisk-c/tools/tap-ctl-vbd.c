/* SPDX-License-Identifier: LGPL-2.1-only */
/* Verbs that one tapdisk runs: attach, open, keep, close, detach, pause, unpause, stats. */
#include "tools/tap-ctl.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "control/client.h"

/* How long a device that is open may stay so: udev looks at it after a close. */
#define BUSY_TRIES	50
#define BUSY_WAIT_NS	100000000

/* Consumes the request. */
static int call(int pid, json_t *request, json_t **reply, int timeout_ms,
		struct error *err)
{
	int rc = control_call(pid, request, reply, timeout_ms, err);

	json_decref(request);
	return rc;
}

int vbd_call(const char *op, int pid, int minor, struct error *err)
{
	return call(pid, json_pack("{s:s, s:i}", "op", op, "minor", minor),
		    NULL, TAP_CTL_TIMEOUT_MS, err);
}

int vbd_open(int pid, int minor, const struct options *opt, int owner,
	     int timeout_ms, struct error *err)
{
	json_t *request = json_pack("{s:s, s:i, s:s, s:b}", "op", "open",
				    "minor", minor, "args", opt->args,
				    "readonly", opt->readonly);

	if (request && owner >= 0)
		json_object_set_new(request, "owner", json_integer(owner));
	return call(pid, request, NULL, timeout_ms, err);
}

int vbd_close(int pid, int minor, bool force, int timeout_ms,
	      struct error *err)
{
	const struct timespec wait = { .tv_nsec = BUSY_WAIT_NS };
	int rc;

	for (int i = 0; i < BUSY_TRIES; i++) {
		rc = call(pid, json_pack("{s:s, s:i, s:b}", "op", "close",
					 "minor", minor, "force", force),
			  NULL, timeout_ms, err);
		if (rc != -EBUSY)
			break;
		nanosleep(&wait, NULL);
	}
	return rc;
}

int cmd_attach(const struct options *opt, struct error *err)
{
	return vbd_call("attach", opt->pid, opt->minor, err);
}

int cmd_detach(const struct options *opt, struct error *err)
{
	return vbd_call("detach", opt->pid, opt->minor, err);
}

int cmd_keep(const struct options *opt, struct error *err)
{
	return vbd_call("keep", opt->pid, opt->minor, err);
}

int cmd_open(const struct options *opt, struct error *err)
{
	return vbd_open(opt->pid, opt->minor, opt, -1, TAP_CTL_TIMEOUT_MS, err);
}

int cmd_close(const struct options *opt, struct error *err)
{
	return vbd_close(opt->pid, opt->minor, opt->force, opt->timeout_ms, err);
}

int cmd_pause(const struct options *opt, struct error *err)
{
	return call(opt->pid, json_pack("{s:s, s:i}", "op", "pause", "minor",
					opt->minor),
		    NULL, opt->timeout_ms, err);
}

int cmd_unpause(const struct options *opt, struct error *err)
{
	json_t *request;

	if (!opt->args)
		return vbd_call("unpause", opt->pid, opt->minor, err);
	request = json_pack("{s:s, s:i, s:s}", "op", "unpause", "minor",
			    opt->minor, "args", opt->args);
	return call(opt->pid, request, NULL, TAP_CTL_TIMEOUT_MS, err);
}

int cmd_stats(const struct options *opt, struct error *err)
{
	static const char *const more[] = { "chain", "inflight", "merged",
					    "read", "write", "flush" };
	json_t *reply, *out;
	const json_t *vbd;
	int rc;

	rc = call(opt->pid, json_pack("{s:s, s:i}", "op", "stats", "minor",
				      opt->minor),
		  &reply, TAP_CTL_TIMEOUT_MS, err);
	if (rc)
		return rc;
	vbd = json_object_get(reply, "vbd");
	out = vbd_output(opt->pid, vbd);
	for (size_t i = 0; i < sizeof(more) / sizeof(more[0]); i++)
		json_object_set(out, more[i], json_object_get(vbd, more[i]));
	json_dumpf(out, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(out);
	json_decref(reply);
	return 0;
}
