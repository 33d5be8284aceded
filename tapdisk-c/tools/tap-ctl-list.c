/* SPDX-License-Identifier: LGPL-2.1-only */
/* list: every tapdisk and its VBDs, and the minors that no tapdisk has. */
#include "tools/tap-ctl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <blktap.h>

#include "common/diskfile.h"
#include "control/client.h"
#include "server.h"
#include "transport/minor.h"

#define LIST_TIMEOUT_MS	5000

int tapdisk_vbds(int pid, int timeout_ms, json_t **vbds, struct error *err)
{
	json_int_t first = 0;
	json_t *next, *reply;
	int rc;

	*vbds = json_array();
	do {
		json_t *request = json_pack("{s:s, s:I}", "op", "list", "first",
					    first);

		rc = control_call(pid, request, &reply, timeout_ms, err);
		json_decref(request);
		if (rc) {
			json_decref(*vbds);
			*vbds = NULL;
			return rc;
		}
		json_array_extend(*vbds, json_object_get(reply, "vbds"));
		next = json_object_get(reply, "next");
		first = json_integer_value(next);
		json_decref(reply);
	} while (next);
	return 0;
}

/* The parts of TYPE:PATH, as new values; null where there are none. */
static void split_args(const json_t *args, json_t **type, json_t **path)
{
	const char *text = json_string_value(args);
	const char *colon = text ? strchr(text, ':') : NULL;

	*type = colon ? json_stringn(text, (size_t)(colon - text)) : json_null();
	*path = colon ? json_string(colon + 1) : json_null();
}

static json_t *number_or_null(int n)
{
	return n < 0 ? json_null() : json_integer(n);
}

/* What its requests wait for. */
static json_t *waits_for(json_int_t state)
{
	if (state & VBD_NO_SPACE)
		return json_string("space");
	if (state & VBD_REOPENING)
		return json_string("image");
	if (state & VBD_GIVEN_UP)
		return json_string("tapdisk");
	return state & VBD_WAITING ? json_string("storage") : json_null();
}

/* Of a minor, null if there is none. */
static json_t *transport(const json_t *minor)
{
	const struct gendisk_kind *kind = json_is_integer(minor) ?
		minor_kind((int)json_integer_value(minor)) : NULL;

	return kind ? json_string(kind->name) : json_null();
}

json_t *vbd_output(int pid, const json_t *vbd)
{
	/* What is known of an image, while there is one. */
	const json_t *open = json_is_string(json_object_get(vbd, "args")) ?
		vbd : NULL;
	const json_t *sectors = json_object_get(open, "sectors");
	json_t *type, *path;

	split_args(json_object_get(vbd, "args"), &type, &path);
	return json_pack("{s:o, s:O?, s:O?, s:o, s:o, s:O?, s:O?, s:o, s:O?, s:O?, s:o, s:o}",
			 "pid", number_or_null(pid),
			 "minor", json_object_get(vbd, "minor"),
			 "state", json_object_get(vbd, "state"),
			 "type", type, "path", path,
			 "for", json_object_get(vbd, "for"),
			 "readonly", json_object_get(open, "readonly"),
			 "size", !open ? json_null() :
			 json_integer(json_integer_value(sectors) << BLKTAP_SECTOR_SHIFT),
			 "sector_size", json_object_get(open, "sector_size"),
			 "depth", json_object_get(open, "depth"),
			 "transport", transport(json_object_get(vbd, "minor")),
			 "waits_for", waits_for(json_integer_value(
				json_object_get(vbd, "state"))));
}

/* Gathering: an array of what vbd_output() makes */

static void add_tapdisk(json_t *rows, int pid, const json_t *vbds)
{
	json_t *vbd;
	size_t i;

	if (!json_array_size(vbds))
		json_array_append_new(rows, vbd_output(pid, NULL));
	json_array_foreach(vbds, i, vbd)
		json_array_append_new(rows, vbd_output(pid, vbd));
}

/* What a disk's file knows of its VBD. */
static json_t *kept(const struct diskfile *file)
{
	return json_pack("{s:i, s:s, s:b, s:I, s:I, s:s*}",
			 "minor", file->minor, "args", file->args,
			 "readonly", file->readonly,
			 "sectors", (json_int_t)file->sectors,
			 "sector_size", (json_int_t)file->sector_size,
			 "for", file->kept_for);
}

/* The disks of a tapdisk that doesn't answer, by their files. */
struct silent {
	json_t *rows;
	int pid;
	bool seen;
};

static void add_silent_disk(struct diskfile *file, void *priv)
{
	struct silent *silent = priv;
	json_t *vbd;

	if (file->pid != silent->pid || diskfile_is_left(file))
		return;
	silent->seen = true;
	vbd = kept(file);
	json_array_append_new(silent->rows, vbd_output(file->pid, vbd));
	json_decref(vbd);
}

static void add_silent(json_t *rows, int pid)
{
	struct silent silent = { .rows = rows, .pid = pid };

	diskfile_for_each(add_silent_disk, &silent);
	if (!silent.seen)
		add_tapdisk(rows, pid, NULL);
}

static int gather_all(json_t *rows, struct error *err)
{
	struct error one;
	size_t n;
	int *pids;
	int rc = control_pids(&pids, &n, err);

	for (size_t i = 0; !rc && i < n; i++) {
		json_t *vbds;
		int r = tapdisk_vbds(pids[i], LIST_TIMEOUT_MS, &vbds, &one);

		/* Another process has the pid now, or it has just ended. */
		if (r == -ESRCH)
			continue;
		/* One that hangs must not hide the others. */
		if (r) {
			complain(one.text);
			add_silent(rows, pids[i]);
			continue;
		}
		add_tapdisk(rows, pids[i], vbds);
		json_decref(vbds);
	}
	free(pids);
	return rc;
}

static bool has_minor(const json_t *rows, int minor)
{
	const json_t *row;
	size_t i;

	json_array_foreach(rows, i, row) {
		const json_t *value = json_object_get(row, "minor");

		if (json_is_integer(value) && json_integer_value(value) == minor)
			return true;
	}
	return false;
}

/* What is known of a minor that no tapdisk has. */
static json_t *unserved(int minor)
{
	struct diskfile file;
	json_t *vbd;

	if (diskfile_read(&file, minor))
		return json_pack("{s:i}", "minor", minor);
	if (file.given_up) {
		vbd = kept(&file);
		json_object_set_new(vbd, "state", json_integer(VBD_GIVEN_UP));
	} else {
		vbd = json_pack("{s:i, s:s*}", "minor", minor,
				"for", file.kept_for);
	}
	diskfile_dispose(&file);
	return vbd;
}

static void add_unattached(json_t *rows, const bool *allocated)
{
	for (int minor = 0; minor < BLKTAP_MAX_MINORS; minor++) {
		json_t *vbd;

		if (!allocated[minor] || has_minor(rows, minor))
			continue;
		/* Freed while the tapdisks were asked? */
		if (!minor_kind(minor))
			continue;
		vbd = unserved(minor);
		json_array_append_new(rows, vbd_output(-1, vbd));
		json_decref(vbd);
	}
}

/* Printing */

static bool is_text(const json_t *row, const char *key, const char *wanted)
{
	const char *text = json_string_value(json_object_get(row, key));

	return !wanted || (text && !strcmp(text, wanted));
}

static bool is_wanted(const json_t *row, const struct options *opt)
{
	const json_t *minor = json_object_get(row, "minor");

	if (opt->minor >= 0 && (!json_is_integer(minor) ||
				json_integer_value(minor) != opt->minor))
		return false;
	return is_text(row, "type", opt->type) && is_text(row, "path", opt->file);
}

static const char *number(const json_t *row, const char *key, const char *fmt,
			  char *buf, size_t size)
{
	const json_t *value = json_object_get(row, key);

	snprintf(buf, size, "-");
	if (json_is_integer(value)) {
		int n = (int)json_integer_value(value);

		if (*fmt == '#')
			snprintf(buf, size, "%#x", (unsigned int)n);
		else
			snprintf(buf, size, "%d", n);
	}
	return buf;
}

static const char *string(const json_t *row, const char *key)
{
	const char *text = json_string_value(json_object_get(row, key));

	return text ? text : "-";
}

/* Both forms are XenServer's; scripts parse the second. */
static void print_row(const json_t *row, bool tty)
{
	char pid[16], minor[16], state[16];
	const char *sep = "";

	number(row, "pid", "", pid, sizeof(pid));
	number(row, "minor", "", minor, sizeof(minor));
	number(row, "state", "#", state, sizeof(state));
	if (tty) {
		printf("%8s %4s %4s %10s %s\n", pid, minor, state,
		       string(row, "type"), string(row, "path"));
		return;
	}
	if (*pid != '-') {
		printf("pid=%s", pid);
		sep = " ";
	}
	if (*minor != '-') {
		printf("%sminor=%s", sep, minor);
		sep = " ";
	}
	if (*state != '-')
		printf("%sstate=%s", sep, state);
	if (json_is_string(json_object_get(row, "path")))
		printf(" args=%s:%s", string(row, "type"), string(row, "path"));
	putchar('\n');
}

int cmd_list(const struct options *opt, struct error *err)
{
	static bool allocated[BLKTAP_MAX_MINORS];
	json_t *rows = json_array(), *wanted = json_array(), *row;
	json_t *vbds = NULL;
	size_t i;
	int rc;

	if (opt->pid >= 0) {
		rc = tapdisk_vbds(opt->pid, LIST_TIMEOUT_MS, &vbds, err);
		if (!rc)
			add_tapdisk(rows, opt->pid, vbds);
	} else {
		/* First: a minor that is attached meanwhile is then seen. */
		minors_given(allocated);
		rc = gather_all(rows, err);
		if (!rc)
			add_unattached(rows, allocated);
	}
	json_array_foreach(rows, i, row)
		if (!rc && is_wanted(row, opt))
			json_array_append(wanted, row);

	if (!rc && opt->json) {
		json_dumpf(wanted, stdout, JSON_INDENT(2));
		putchar('\n');
	} else {
		json_array_foreach(wanted, i, row)
			print_row(row, isatty(STDOUT_FILENO));
	}
	json_decref(vbds);
	json_decref(wanted);
	json_decref(rows);
	return rc;
}
