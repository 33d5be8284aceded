/* SPDX-License-Identifier: LGPL-2.1-only */
/* From a control message to a verb of server.h and back to its answer. */
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <blktap.h>

#include "common/diskfile.h"
#include "common/log.h"
#include "control/proto.h"
#include "control/stats.h"

/* A VBD with the longest path is 5 KiB: list then fits CONTROL_MAX_MESSAGE. */
#define LIST_BYTES (CONTROL_MAX_MESSAGE / 2)

/* What is not UTF-8 can't be in JSON: its bytes outside ASCII become "?". */
static json_t *text(const char *s)
{
	char copy[1024];
	json_t *string;

	if (!s)
		return json_null();
	string = json_string(s);
	if (string)
		return string;
	snprintf(copy, sizeof(copy), "%s", s);
	for (char *p = copy; *p; p++)
		if (*p & 0x80)
			*p = '?';
	return json_string(copy);
}

json_t *control_failure(int rc, const char *message)
{
	return json_pack("{s:b, s:i, s:o}", "ok", 0, "errno", -rc, "message",
			 text(message));
}

static void answer_rc(struct control_call *call, int rc,
		      const struct error *err)
{
	json_t *reply = rc ? control_failure(rc, err->text) :
			     json_pack("{s:b}", "ok", 1);

	if (rc && err->holder)
		json_object_set_new(reply, "holder", json_integer(err->holder));
	call->answer(call, reply, false);
}

static void verb_done(void *priv, int rc, const struct error *err)
{
	answer_rc(priv, rc, err);
}

static void not_understood(struct control_call *call, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

static void not_understood(struct control_call *call, const char *fmt, ...)
{
	char message[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(message, sizeof(message), fmt, ap);
	va_end(ap);
	call->answer(call, control_failure(-EINVAL, message), true);
}

/* Of what keep says, bytes */
#define KEPT_FOR_MAX 1024

/* How long a pause or a close may take if the request does not say. */
#define TIMEOUT_S 30

/* The settings of an open, in the order of their fields */
static const char *const retry_keys[] = {
	"retry_errors", "retry_interval", "retry_for", "retry_then", "no_space",
};

#define NR_RETRY (sizeof(retry_keys) / sizeof(retry_keys[0]))

/* The fields of a request, decoded */
struct request {
	json_int_t minor;
	json_int_t first;
	json_int_t owner;		/* 0: none */
	json_int_t heir;
	const char *args;		/* lives as long as the message */
	bool readonly;
	bool inactive;
	bool suspended;
	bool force;
	const char *child, *parent, *decision;
	const char *kept_for;
	json_int_t timeout;		/* seconds */
	const char *retry[NR_RETRY];	/* NULL: as configured */
};

static bool has_control(const char *text)
{
	for (const unsigned char *p = (const void *)text; p && *p; p++)
		if (*p < 0x20 || *p == 0x7f)
			return true;
	return false;
}

/* args end up in lines that scripts parse, and in the log. */
static int check_args(const char *args, struct error *err)
{
	if (!has_control(args))
		return 0;
	return error_set(err, -EINVAL, "the image's path holds a control character; rename it");
}

static json_t *view_json(const struct vbd_view *view)
{
	return json_pack("{s:i, s:i, s:o, s:o, s:b, s:I, s:I, s:I}",
			 "minor", view->minor,
			 "state", (int)view->state,
			 "args", text(view->args),
			 "for", text(view->kept_for),
			 "readonly", view->readonly,
			 "sectors", (json_int_t)view->sectors,
			 "sector_size", (json_int_t)view->sector_size,
			 "depth", (json_int_t)view->depth);
}

static json_t *chain_json(const struct vbd_view *view)
{
	json_t *chain = json_array();
	const char *path;

	for (unsigned int i = 0; view->chain_path &&
	     (path = view->chain_path(view, i)); i++)
		json_array_append_new(chain, text(path));
	return chain;
}

static void do_ping(struct control_call *call, const struct request *req)
{
	(void)req;
	call->answer(call, json_pack("{s:b, s:i, s:s}", "ok", 1, "pid",
				     (int)getpid(), "version", XENBLK_VERSION),
		     false);
}

static void do_list(struct control_call *call, const struct request *req)
{
	json_t *vbds = json_array(), *reply;
	unsigned int i = (unsigned int)req->first;
	struct vbd_view view;
	size_t bytes = 0;

	while (bytes < LIST_BYTES && server_vbd(call->server, i, &view)) {
		json_array_append_new(vbds, view_json(&view));
		bytes += 200 + (view.args ? 2 * strlen(view.args) : 0) +
			 (view.kept_for ? 2 * strlen(view.kept_for) : 0);
		i++;
	}
	reply = json_pack("{s:b, s:o}", "ok", 1, "vbds", vbds);
	if (server_vbd(call->server, i, &view))
		json_object_set_new(reply, "next", json_integer(i));
	call->answer(call, reply, false);
}

static bool find_view(struct server *server, int minor, struct vbd_view *view)
{
	unsigned int i = 0;

	do {
		if (!server_vbd(server, i++, view))
			return false;
	} while (view->minor != minor);
	return true;
}

static void do_stats(struct control_call *call, const struct request *req)
{
	struct vbd_view view;
	struct error err;
	json_t *vbd;

	if (!find_view(call->server, (int)req->minor, &view)) {
		error_set(&err, -ENODEV, "minor %lld is not attached "
			  "to this tapdisk", (long long)req->minor);
		answer_rc(call, -ENODEV, &err);
		return;
	}
	vbd = view_json(&view);
	json_object_set_new(vbd, "chain", chain_json(&view));
	json_object_update_new(vbd, control_stats(view.stats));
	call->answer(call, json_pack("{s:b, s:o}", "ok", 1, "vbd", vbd), false);
}

static void do_attach(struct control_call *call, const struct request *req)
{
	struct error err;

	answer_rc(call, server_attach(call->server, (int)req->minor, &err),
		  &err);
}

static void do_detach(struct control_call *call, const struct request *req)
{
	struct server *server = call->server;
	struct error err;
	int rc = server_detach(server, (int)req->minor, &err);

	if (!rc)
		owners_detached(call->owners, (int)req->minor);
	answer_rc(call, rc, &err);
	if (!rc)
		server_stop_if_unused(server);
}

static int set_retry(struct control_call *call, const struct request *req,
		     struct error *err)
{
	struct retry_policy policy = server_config(call->server)->retry;
	int rc = 0;

	for (size_t i = 0; i < NR_RETRY && !rc; i++)
		if (req->retry[i])
			rc = retry_set(&policy, retry_keys[i], req->retry[i],
				       err);
	if (!rc)
		rc = server_set_retry(call->server, (int)req->minor, &policy,
				      err);
	return rc;
}

/* What an open would change of a disk that is open already stays as it is. */
static int check_closed(struct control_call *call, int minor,
			struct error *err)
{
	struct vbd_view view;

	for (unsigned int i = 0; server_vbd(call->server, i, &view); i++)
		if (view.minor == minor && view.args)
			return error_set(err, -EBUSY,
					 "minor %d: already has %s open", minor,
					 view.args);
	return 0;
}

static void open_done(void *priv, int rc, const struct error *err)
{
	struct control_call *call = priv;

	if (rc && call->owners)
		owners_forget(call->owners, call->minor);
	else if (call->owners)
		owners_created(call->owners, call->minor);
	answer_rc(call, rc, err);
}

static void do_open(struct control_call *call, const struct request *req)
{
	const struct server_open open = {
		.args = req->args,
		.readonly = req->readonly,
		.inactive = req->inactive || req->suspended,
		.suspended = req->suspended,
	};
	struct error err;
	int rc = check_args(req->args, &err);

	if (!rc)
		rc = check_closed(call, (int)req->minor, &err);
	if (!rc)
		rc = set_retry(call, req, &err);
	if (!rc && req->owner)
		rc = owners_add(call->owners, (int)req->minor, (int)req->owner,
				&err);
	if (rc) {
		answer_rc(call, rc, &err);
		return;
	}
	call->minor = (int)req->minor;
	server_set_owner(call->server, (int)req->minor, (int)req->owner);
	server_open_image(call->server, (int)req->minor, &open, open_done, call);
}

static void do_keep(struct control_call *call, const struct request *req)
{
	struct error err;
	int rc;

	if (!owners_has(call->owners, (int)req->minor))
		rc = error_set(&err, -ESRCH, "minor %lld has no owner, or lost "
			       "it", (long long)req->minor);
	else
		rc = server_keep(call->server, (int)req->minor, req->kept_for,
				 &err);
	if (!rc)
		owners_forget(call->owners, (int)req->minor);
	answer_rc(call, rc, &err);
}

static unsigned int timeout_ms(const struct request *req)
{
	return (unsigned int)(req->timeout ? req->timeout : TIMEOUT_S) * 1000;
}

/* Whoever closes it is in charge of it. */
static void close_done(void *priv, int rc, const struct error *err)
{
	struct control_call *call = priv;

	if (!rc && call->owners)
		owners_forget(call->owners, call->minor);
	answer_rc(call, rc, err);
}

static void do_close(struct control_call *call, const struct request *req)
{
	call->minor = (int)req->minor;
	server_close_image(call->server, (int)req->minor, req->force,
			   timeout_ms(req), close_done, call);
}

static void do_pause(struct control_call *call, const struct request *req)
{
	server_pause(call->server, (int)req->minor, timeout_ms(req), verb_done,
		     call);
}

static void snapshot_done(void *priv, int rc, const struct error *err)
{
	struct control_call *call = priv;
	struct vbd_view view;

	if (rc || !find_view(call->server, call->minor, &view))
		answer_rc(call, rc, err);
	else
		call->answer(call, json_pack("{s:b, s:I}", "ok", 1, "stall_us",
					     (json_int_t)view.stall_ns / 1000),
			     false);
}

static void making_done(void *priv, int rc, const struct error *err)
{
	struct control_call *call = priv;

	if (rc)
		call->making = -1;
	answer_rc(call, rc, err);
}

static void snapshot(struct control_call *call, const struct request *req)
{
	server_done done = req->decision ? making_done : snapshot_done;

	call->minor = (int)req->minor;
	if (req->decision)
		call->making = (int)req->minor;
	server_snapshot(call->server, (int)req->minor, req->child, req->parent,
			req->decision, timeout_ms(req), done, call);
}

static void do_snapshot(struct control_call *call, const struct request *req)
{
	struct error err;
	int rc = check_args(req->child, &err);

	if (!rc)
		rc = check_args(req->parent, &err);
	if (!rc && call->making >= 0)
		rc = error_set(&err, -EBUSY, "this connection makes a snapshot of minor %d",
			       call->making);
	if (rc)
		answer_rc(call, rc, &err);
	else
		snapshot(call, req);
}

/* hold, switch and take are for the connection that began it. */
static int check_making(const struct control_call *call,
			const struct request *req, struct error *err)
{
	if (call->making == (int)req->minor)
		return 0;
	return error_set(err, -EINVAL, "minor %lld: this connection has begun no snapshot of it",
			 (long long)req->minor);
}

static void do_hold(struct control_call *call, const struct request *req)
{
	struct error err;
	int rc = check_making(call, req, &err);

	if (rc)
		answer_rc(call, rc, &err);
	else
		server_snapshot_hold(call->server, call->making, making_done,
				     call);
}

static void do_switch(struct control_call *call, const struct request *req)
{
	struct error err;
	int rc = check_making(call, req, &err);

	if (!rc)
		rc = server_snapshot_switch(call->server, call->making, &err);
	answer_rc(call, rc, &err);
}

static void do_take(struct control_call *call, const struct request *req)
{
	struct error err;
	int rc = check_making(call, req, &err);

	if (!rc) {
		rc = server_snapshot_take(call->server, call->making, &err);
		call->making = -1;
	}
	snapshot_done(call, rc, &err);
}

static void do_unpause(struct control_call *call, const struct request *req)
{
	struct error err;
	int rc = check_args(req->args, &err);

	if (!rc)
		rc = server_unpause(call->server, (int)req->minor, req->args,
				    &err);
	answer_rc(call, rc, &err);
}

static void yielded(void *priv, int rc, const struct error *err)
{
	struct control_call *call = priv;

	if (!rc)
		call->leave->left_by = call;
	answer_rc(call, rc, err);
}

static void do_yield(struct control_call *call, const struct request *req)
{
	struct vbd_view view;
	struct error err;
	int rc;

	if (call->leave->left_by) {
		answer_rc(call, error_set(&err, -EALREADY, "its disks are left already"),
			  &err);
		return;
	}
	/* This connection's end would begin what ends with the process. */
	if (!server_vbd(call->server, 0, &view)) {
		answer_rc(call, error_set(&err, -ENODEV, "tapdisk %d has no disks",
					  (int)getpid()), &err);
		return;
	}
	/* Those that the heir would not find. */
	rc = server_note_all(call->server, &err);
	if (rc) {
		answer_rc(call, rc, &err);
		return;
	}
	call->heir = (int)req->heir;
	call->leave->notes = true;
	leave_begin(call->leave, timeout_ms(req), yielded, call);
}

/* The connection of the tool has ended, or it has its answer: nobody takes them back. */
static void do_leave(struct control_call *call, const struct request *req)
{
	struct server *server = call->server;
	struct error err = { .code = 0 };
	struct vbd_view view;
	int rc = 0;

	(void)req;
	if (call->leave->left_by != call)
		rc = error_set(&err, -EINVAL, "its disks are not left to another tapdisk");
	else if (server_vbd(server, 0, &view))
		rc = error_set(&err, -EBUSY, "tapdisk %d has disks",
			       (int)getpid());
	else
		call->leave->left_by = NULL;
	/* The call ends here if nobody is there to hear it. */
	answer_rc(call, rc, &err);
	if (!rc)
		server_stop(server);
}

/* What can't be had goes back to where it came from, as a whole. */
static void gave_back(void *priv, int rc, const struct error *err)
{
	struct control_call *call = priv;
	struct error why = call->takeover->err;

	if (rc)
		log_error("cannot give back what was taken over: %s", err->text);
	else
		diskfile_give(getpid(), call->heir);
	answer_rc(call, call->takeover->rc, &why);
}

static void do_succeed(struct control_call *call, const struct request *req)
{
	struct error err = { .code = 0 };
	struct vbd_view view;
	int rc = 0;

	call->heir = (int)req->heir;
	if (server_vbd(call->server, 0, &view))
		rc = error_set(&err, -EBUSY, "tapdisk %d has disks of its own",
			       (int)getpid());
	if (rc) {
		answer_rc(call, rc, &err);
		return;
	}
	if (takeover_now(call->takeover, call->heir, &err)) {
		call->leave->notes = false;
		leave_begin(call->leave, timeout_ms(req), gave_back, call);
		return;
	}
	/* Another has upgraded that one meanwhile, and has its name. */
	if (!server_vbd(call->server, 0, &view))
		rc = error_set(&err, -ENODEV, "tapdisk %d has left no disks; see `tap-ctl list`",
			       call->heir);
	else
		owners_created(call->owners, -1);
	answer_rc(call, rc, &err);
}

/* Decoding: what a verb does not list is refused, so nothing is ignored. */

enum field {
	MINOR		= 1,
	ARGS		= 2,
	READONLY	= 4,
	FORCE		= 8,
	FIRST		= 16,
	OWNER		= 32,
	TIMEOUT		= 64,
	CHILD		= 128,
	PARENT		= 256,
	DECISION	= 512,
	HEIR		= 1024,
	KEPT_FOR	= 2048,
	INACTIVE	= 4096,
	SUSPENDED	= 8192,
	RETRY		= 16384,	/* the first of NR_RETRY bits */
	/* No field: not while the disks are being left, for the next tapdisk would not know of it. */
	SETTLED		= RETRY << NR_RETRY,
};

#define ALL_RETRY (RETRY * ((1u << NR_RETRY) - 1))

static const struct verb {
	const char *op;
	unsigned int required, optional;
	void (*run)(struct control_call *call, const struct request *req);
} verbs[] = {
	{ "ping", 0, 0, do_ping },
	{ "list", 0, FIRST, do_list },
	{ "attach", MINOR, SETTLED, do_attach },
	{ "detach", MINOR, 0, do_detach },
	{ "open", MINOR | ARGS, READONLY | INACTIVE | SUSPENDED | OWNER | ALL_RETRY | SETTLED, do_open },
	{ "keep", MINOR, KEPT_FOR, do_keep },
	{ "close", MINOR, FORCE | TIMEOUT, do_close },
	{ "pause", MINOR, TIMEOUT | SETTLED, do_pause },
	{ "unpause", MINOR, ARGS | SETTLED, do_unpause },
	{ "snapshot", MINOR | CHILD | PARENT, TIMEOUT | DECISION | SETTLED, do_snapshot },
	{ "hold", MINOR, 0, do_hold },
	{ "switch", MINOR, 0, do_switch },
	{ "take", MINOR, 0, do_take },
	{ "stats", MINOR, 0, do_stats },
	{ "yield", HEIR, TIMEOUT, do_yield },
	{ "succeed", HEIR, 0, do_succeed },
	{ "leave", 0, 0, do_leave },
};

static const struct {
	const char *key;
	unsigned int field;
} fields[] = {
	{ "minor", MINOR },
	{ "args", ARGS },
	{ "readonly", READONLY },
	{ "inactive", INACTIVE },
	{ "suspended", SUSPENDED },
	{ "force", FORCE },
	{ "first", FIRST },
	{ "owner", OWNER },
	{ "heir", HEIR },
	{ "timeout", TIMEOUT },
	{ "child", CHILD },
	{ "parent", PARENT },
	{ "decision", DECISION },
	{ "for", KEPT_FOR },
	{ "retry_errors", RETRY },
	{ "retry_interval", RETRY << 1 },
	{ "retry_for", RETRY << 2 },
	{ "retry_then", RETRY << 3 },
	{ "no_space", RETRY << 4 },
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static bool integer(const json_t *value, json_int_t below, json_int_t *to)
{
	if (!json_is_integer(value))
		return false;
	*to = json_integer_value(value);
	return *to >= 0 && *to < below;
}

static bool set_field(struct request *req, unsigned int field,
		      const json_t *value)
{
	if (field >= RETRY) {
		unsigned int i = (unsigned int)__builtin_ctz(field / RETRY);

		req->retry[i] = json_string_value(value);
		return req->retry[i];
	}
	switch (field) {
	case MINOR:
		return integer(value, BLKTAP_MAX_MINORS, &req->minor);
	case FIRST:
		return integer(value, BLKTAP_MAX_MINORS, &req->first);
	case OWNER:
		return integer(value, (json_int_t)INT_MAX + 1, &req->owner) &&
		       req->owner;
	case HEIR:
		return integer(value, (json_int_t)INT_MAX + 1, &req->heir) &&
		       req->heir;
	case TIMEOUT:
		return integer(value, INT_MAX / 1000, &req->timeout) &&
		       req->timeout;
	case CHILD:
		req->child = json_string_value(value);
		return req->child && *req->child == '/';
	case PARENT:
		req->parent = json_string_value(value);
		return req->parent && *req->parent == '/';
	case DECISION:
		req->decision = json_string_value(value);
		return req->decision && *req->decision == '/';
	case KEPT_FOR:
		req->kept_for = json_string_value(value);
		return req->kept_for && *req->kept_for &&
		       strlen(req->kept_for) <= KEPT_FOR_MAX &&
		       !has_control(req->kept_for);
	case ARGS:
		req->args = json_string_value(value);
		return req->args;
	case READONLY:
		req->readonly = json_is_true(value);
		return json_is_boolean(value);
	case INACTIVE:
		req->inactive = json_is_true(value);
		return json_is_boolean(value);
	case SUSPENDED:
		req->suspended = json_is_true(value);
		return json_is_boolean(value);
	case FORCE:
		req->force = json_is_true(value);
		return json_is_boolean(value);
	default:
		return false;
	}
}

static const struct verb *find_verb(const char *op)
{
	for (size_t i = 0; op && i < COUNT(verbs); i++)
		if (!strcmp(verbs[i].op, op))
			return &verbs[i];
	return NULL;
}

static void run_object(struct control_call *call, json_t *root)
{
	const char *op = json_string_value(json_object_get(root, "op"));
	const struct verb *verb = find_verb(op);
	struct request req = { .args = NULL };
	unsigned int seen = 0;
	struct error err;
	const char *key;
	json_t *value;

	if (!verb) {
		not_understood(call, "no operation %s", op ? op : "is named");
		return;
	}
	json_object_foreach(root, key, value) {
		size_t i = 0;

		if (!strcmp(key, "op"))
			continue;
		while (i < COUNT(fields) && strcmp(fields[i].key, key))
			i++;
		if (i == COUNT(fields) ||
		    !((verb->required | verb->optional) & fields[i].field)) {
			not_understood(call, "%s: has no field %s", op, key);
			return;
		}
		if (!set_field(&req, fields[i].field, value)) {
			not_understood(call, "%s: %s: wrong type or out of range",
				       op, key);
			return;
		}
		seen |= fields[i].field;
	}
	for (size_t i = 0; i < COUNT(fields); i++) {
		if (verb->required & ~seen & fields[i].field) {
			not_understood(call, "%s: %s is missing", op,
				       fields[i].key);
			return;
		}
	}
	if (verb->optional & SETTLED &&
	    (server_is_leaving(call->server) || call->leave->left_by))
		answer_rc(call, error_set(&err, -EAGAIN, "minor %lld: an upgrade is under way; try again when it is done",
					  (long long)req.minor), &err);
	else
		verb->run(call, &req);
}

void control_dispatch(struct control_call *call, const char *msg, size_t len)
{
	json_error_t error;
	json_t *root = json_loadb(msg, len, JSON_REJECT_DUPLICATES, &error);

	if (json_is_object(root))
		run_object(call, root);
	else
		not_understood(call, "not a JSON object: %s",
			       root ? "another type" : error.text);
	json_decref(root);
}
