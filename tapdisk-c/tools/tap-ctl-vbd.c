/* SPDX-License-Identifier: LGPL-2.1-only */
/* Verbs that one tapdisk runs: attach, open, close, detach, pause, unpause. */
#include "tools/tap-ctl.h"

#include <errno.h>
#include <time.h>

#include "control/client.h"
#include "transport/minor.h"

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

/* text: the field's value, or NULL: without it. */
static int call_with(const char *op, const struct options *opt, const char *field,
		     const char *text, struct error *err)
{
	return call(opt->pid, json_pack("{s:s, s:i, s:s*}", "op", op, "minor",
					opt->minor, field, text),
		    NULL, TAP_CTL_TIMEOUT_MS, err);
}

int vbd_open(int pid, int minor, const struct options *opt, int owner,
	     int timeout_ms, struct error *err)
{
	json_t *request = json_pack("{s:s, s:i, s:s, s:b}", "op", "open",
				    "minor", minor, "args", opt->args,
				    "readonly", opt->readonly);

	if (request && opt->inactive)
		json_object_set_new(request, "inactive", json_true());
	if (request && opt->suspended)
		json_object_set_new(request, "suspended", json_true());
	if (request && owner >= 0)
		json_object_set_new(request, "owner", json_integer(owner));
	for (size_t i = 0; request && i < TAP_CTL_RETRY; i++)
		if (opt->retry[i])
			json_object_set_new(request, retry_keys[i],
					    json_string(opt->retry[i]));
	return call(pid, request, NULL, timeout_ms, err);
}

int vbd_close(int pid, int minor, bool force, int timeout_ms,
	      struct error *err)
{
	const struct timespec wait = { .tv_nsec = BUSY_WAIT_NS };
	const struct gendisk_kind *kind = force ? NULL : minor_kind(minor);
	int rc;

	for (int i = 0; i < BUSY_TRIES; i++) {
		rc = kind && kind->vacate ? kind->vacate(minor, err) : 0;
		if (!rc)
			rc = call(pid, json_pack("{s:s, s:i, s:b, s:i}", "op",
						 "close", "minor", minor,
						 "force", force, "timeout",
						 timeout_ms / 1000),
				  NULL, timeout_ms + TAP_CTL_GRACE_MS, err);
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

int vbd_keep(const struct options *opt, struct error *err)
{
	return call_with("keep", opt, "for", opt->kept_for, err);
}

int cmd_open(const struct options *opt, struct error *err)
{
	return vbd_open(opt->pid, opt->minor, opt, -1, TAP_CTL_TIMEOUT_MS, err);
}

int cmd_close(const struct options *opt, struct error *err)
{
	return vbd_close(opt->pid, opt->minor, opt->force, opt->timeout_ms, err);
}

/* With a tapdisk that is not there any more nobody would come: that is told at once. */
static int unless_it_is_dead(int rc)
{
	return rc == -ESRCH ? -ENOENT : rc;
}

static int vbd_pause(const struct options *opt, struct error *err)
{
	int rc = call(opt->pid, json_pack("{s:s, s:i, s:i}", "op", "pause",
						"minor", opt->minor, "timeout",
						opt->timeout_ms / 1000),
		      NULL, opt->timeout_ms + TAP_CTL_GRACE_MS, err);

	return unless_it_is_dead(rc);
}

static int vbd_unpause(const struct options *opt, struct error *err)
{
	return unless_it_is_dead(call_with("unpause", opt, "args", opt->args, err));
}

int cmd_pause(const struct options *opt, struct error *err)
{
	return once_it_is_there(vbd_pause, opt, false, err);
}

int cmd_unpause(const struct options *opt, struct error *err)
{
	return once_it_is_there(vbd_unpause, opt, false, err);
}
