/* SPDX-License-Identifier: LGPL-2.1-only */
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <xenstore.h>

#include "vbd.h"

static const char *path_of(const char *fmt, va_list ap)
	__attribute__((format(printf, 1, 0)));

/* Valid until the next call. */
static const char *path_of(const char *fmt, va_list ap)
{
	static char path[XENSTORE_ABS_PATH_MAX + 1];

	vsnprintf(path, sizeof(path), fmt, ap);
	return path;
}

char *store_read(struct xs_handle *xs, const char *fmt, ...)
{
	unsigned int len;
	char *value;
	va_list ap;

	va_start(ap, fmt);
	value = xs_read(xs, XBT_NULL, path_of(fmt, ap), &len);
	va_end(ap);
	return value;
}

char **store_list(struct xs_handle *xs, unsigned int *nr, const char *fmt, ...)
{
	char **names;
	va_list ap;

	va_start(ap, fmt);
	names = xs_directory(xs, XBT_NULL, path_of(fmt, ap), nr);
	va_end(ap);
	if (!names)
		*nr = 0;
	return names;
}

int store_for_each(const struct vbd *vbd, const char *kind,
		   int (*see)(const struct vbd *vbd, const char *node,
			      void *priv, struct error *err),
		   void *priv, struct error *err)
{
	unsigned int nr_domids, nr_devids;
	char **domids = store_list(vbd->xs, &nr_domids, "%s/%s", vbd->backends, kind);
	int rc = 0;

	for (unsigned int i = 0; i < nr_domids && !rc; i++) {
		char **devids = store_list(vbd->xs, &nr_devids, "%s/%s/%s",
					   vbd->backends, kind, domids[i]);

		for (unsigned int k = 0; k < nr_devids && !rc; k++) {
			char node[XENSTORE_ABS_PATH_MAX + 1];

			snprintf(node, sizeof(node), "%s/%s/%s/%s", vbd->backends,
				 kind, domids[i], devids[k]);
			rc = see(vbd, node, priv, err);
		}
		free(devids);
	}
	free(domids);
	return rc;
}

int store_open(struct vbd *vbd, struct error *err)
{
	vbd->xs = xs_open(0);
	if (!vbd->xs)
		return error_set(err, errno ? -errno : -EIO,
				 "xenstore can't be opened: %s; see that xenstored runs",
				 strerror(errno));
	return 0;
}

int node_domid(const char *node)
{
	/* .../DOMID/DEVID */
	const char *devid = strrchr(node, '/');
	const char *domid = devid ? memrchr(node, '/', (size_t)(devid - node)) : NULL;

	return domid ? atoi(domid + 1) : -1;
}

static char *key(const struct vbd *vbd, const char *name)
{
	char *value = store_read(vbd->xs, "%s/%s", vbd->path, name);

	return value ? value : strdup("");
}

int store_number(struct xs_handle *xs, const char *node, const char *name)
{
	char *value = store_read(xs, "%s/%s", node, name);
	long n = -1;
	char *end;

	if (value && isdigit((unsigned char)*value)) {
		errno = 0;
		n = strtol(value, &end, 10);
		if (errno || *end || n > 0x7fffffff)
			n = -1;
	}
	free(value);
	return (int)n;
}

void store_load(struct vbd *vbd)
{
	vbd->params = key(vbd, "params");
	vbd->mode = key(vbd, "mode");
	vbd->state = key(vbd, "state");
	vbd->pid = store_number(vbd->xs, vbd->path, "tapdisk-pid");
	vbd->minor = store_number(vbd->xs, vbd->path, "tapdisk-minor");
	if (vbd->pid <= 0)
		vbd->minor = -1;
}

struct pair {
	const char *key, *value;
};

static bool write_pairs(const struct vbd *vbd, xs_transaction_t t,
			const struct pair *pairs, size_t nr)
{
	char path[XENSTORE_ABS_PATH_MAX + 1];

	for (size_t i = 0; i < nr; i++) {
		snprintf(path, sizeof(path), "%s/%s", vbd->path, pairs[i].key);
		if (!xs_write(vbd->xs, t, path, pairs[i].value,
			      (unsigned int)strlen(pairs[i].value)))
			return false;
	}
	return true;
}

/* wanted: NULL for any. A node that went meanwhile would come back as a part of one, which nobody removes. */
static bool is_in_state(const struct vbd *vbd, xs_transaction_t t,
			const char *wanted)
{
	char path[XENSTORE_ABS_PATH_MAX + 1];
	unsigned int len;
	bool good;
	char *state;

	snprintf(path, sizeof(path), "%s/state", vbd->path);
	state = xs_read(vbd->xs, t, path, &len);
	good = state && (!wanted || !strcmp(state, wanted));
	free(state);
	return good;
}

/* In their order, all or none, if the node is in that state. */
static int store_write(const struct vbd *vbd, const char *state,
		       const struct pair *pairs, size_t nr, struct error *err)
{
	xs_transaction_t t;
	bool good;

	do {
		t = xs_transaction_start(vbd->xs);
		if (t == XBT_NULL)
			break;
		if (!is_in_state(vbd, t, state)) {
			xs_transaction_end(vbd->xs, t, true);
			return error_set(err, -ENODEV, "%s: the device was removed meanwhile",
					 vbd->path);
		}
		good = write_pairs(vbd, t, pairs, nr);
		if (xs_transaction_end(vbd->xs, t, !good) && good)
			return 0;
	} while (good && errno == EAGAIN);
	return error_set(err, errno ? -errno : -EIO, "%s: can't be written: %s",
			 vbd->path, strerror(errno));
}

int store_connect(const struct vbd *vbd, struct error *err)
{
	char pid[16], minor[16], device[32];
	const struct pair pairs[] = {
		{ "tapdisk-pid", pid },
		{ "tapdisk-minor", minor },
		{ "physical-device-path", vbd->device },
		{ "physical-device", device },
		{ "hotplug-status", "connected" },
	};
	struct stat st;

	if (stat(vbd->device, &st) || (!S_ISBLK(st.st_mode) && !S_ISCHR(st.st_mode)))
		return error_set(err, -ENODEV, "%s: there is no %s", vbd->params,
				 vbd->device);
	snprintf(pid, sizeof(pid), "%d", vbd->pid);
	snprintf(minor, sizeof(minor), "%d", vbd->minor);
	snprintf(device, sizeof(device), "%x:%x", major(st.st_rdev),
		 minor(st.st_rdev));
	return store_write(vbd, "2", pairs, sizeof(pairs) / sizeof(pairs[0]),
			   err);
}

bool ends_with(const char *text, const char *end)
{
	size_t a = strlen(text), b = strlen(end);

	return a >= b && !strcmp(text + a - b, end);
}

enum arrival store_arrival(const struct vbd *vbd)
{
	char ours[64], *name, *type;
	enum arrival arrival = ARRIVAL;
	int domid = node_domid(vbd->path), guest;
	bool arrives;

	/* The domain of a device model comes with its guest. */
	snprintf(ours, sizeof(ours), "/local/domain/%d", domid);
	guest = store_number(vbd->xs, ours, "target");
	if (guest > 0)
		domid = guest;
	name = store_read(vbd->xs, "/local/domain/%d/name", domid);
	/* tools/xl/xl_vmcontrol.c */
	arrives = name && ends_with(name, "--incoming");
	free(name);
	if (!arrives)
		return ARRIVAL_NONE;
	type = store_read(vbd->xs, "/libxl/%d/type", domid);
	if (type && !strcmp(type, "hvm"))
		arrival = ARRIVAL_HVM;
	free(type);
	return arrival;
}

int store_connected(const struct vbd *vbd, struct error *err)
{
	const struct pair pair = { "hotplug-status", "connected" };

	return store_write(vbd, NULL, &pair, 1, err);
}

void store_fail(const struct vbd *vbd, const char *status, const char *why)
{
	const struct pair pairs[] = {
		{ "hotplug-error", why },
		{ "hotplug-status", status },
	};

	if (vbd->xs)
		store_write(vbd, NULL, pairs, 2, NULL);
}

/* All or none: who is killed here leaves what another remove can find. */
static void forget(const struct vbd *vbd, size_t nr)
{
	static const char *const keys[] = { "tapdisk-pid", "tapdisk-minor", "physical-device", "physical-device-path" };
	char path[XENSTORE_ABS_PATH_MAX + 1];
	xs_transaction_t t;

	do {
		t = xs_transaction_start(vbd->xs);
		if (t == XBT_NULL)
			return;
		for (size_t i = 0; i < nr; i++) {
			snprintf(path, sizeof(path), "%s/%s", vbd->path, keys[i]);
			xs_rm(vbd->xs, t, path);
		}
	} while (!xs_transaction_end(vbd->xs, t, false) && errno == EAGAIN);
}

void store_forget(const struct vbd *vbd)
{
	forget(vbd, 2);
}

void store_undo(const struct vbd *vbd)
{
	forget(vbd, 4);
}
