/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A disk that two domains have: a guest, and the domain that its device model runs
 * in (libxl: tools/libs/light/libxl_dm.c). Both have the gendisk of one tapdisk,
 * which ends with the last of them. Who joins and who leaves take turns by a lock of
 * the minor. Only the other domain's nodes are read, however many disks there are.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/control.h"
#include "vbd.h"

/* The guest of our domain, or its device model's domain. 0: there is none. */
static int other_domid(const struct vbd *vbd)
{
	char ours[64];
	int domid;

	snprintf(ours, sizeof(ours), "/local/domain/%d", node_domid(vbd->path));
	domid = store_number(vbd->xs, ours, "target");
	if (domid <= 0)
		domid = store_number(vbd->xs, ours, "image/device-model-domid");
	return domid > 0 ? domid : 0;
}

static int lock_minor(int minor, struct error *err)
{
	char name[32];

	snprintf(name, sizeof(name), "xenblk-minor-%d", minor);
	return lock_named(name, err);
}

/* The first of the other domain's nodes that fits; true if there is one. */
static bool find(const struct vbd *vbd,
		 bool (*fits)(const struct vbd *vbd, const char *node),
		 char *node, size_t size)
{
	int domid = other_domid(vbd);
	bool found = false;
	unsigned int nr;
	char **devids;

	if (!domid)
		return false;
	devids = store_list(vbd->xs, &nr, "%s/vbd/%d", vbd->backends, domid);
	for (unsigned int i = 0; i < nr && !found; i++) {
		snprintf(node, size, "%s/vbd/%d/%s", vbd->backends, domid,
			 devids[i]);
		found = fits(vbd, node);
	}
	free(devids);
	return found;
}

static bool may_join(const struct vbd *vbd, const char *node)
{
	char *params = store_read(vbd->xs, "%s/params", node);
	char *mode = store_read(vbd->xs, "%s/mode", node);
	bool may = store_number(vbd->xs, node, "tapdisk-pid") > 0 && params &&
		   mode && !strcmp(params, vbd->params) &&
		   (strchr(mode, 'w') || !strchr(vbd->mode, 'w'));

	free(params);
	free(mode);
	return may;
}

bool twin_join(struct vbd *vbd)
{
	char node[256], *device = NULL;
	int pid = -1, minor = -1;
	bool joined = false;

	if (find(vbd, may_join, node, sizeof(node))) {
		pid = store_number(vbd->xs, node, "tapdisk-pid");
		minor = store_number(vbd->xs, node, "tapdisk-minor");
		device = store_read(vbd->xs, "%s/physical-device-path", node);
	}
	if (pid > 0 && minor >= 0 && device && strlen(device) < sizeof(vbd->device) &&
	    !lock_minor(minor, NULL)) {
		vbd->pid = pid;
		vbd->minor = minor;
		strcpy(vbd->device, device);
		/* The other one may have left before the lock was ours. */
		joined = tapctl_serves(vbd);
		if (!joined)
			unlock_last();
	}
	if (!joined)
		vbd->pid = vbd->minor = -1;
	free(device);
	return joined;
}

static bool has_minor(const struct vbd *vbd, const char *node)
{
	return store_number(vbd->xs, node, "tapdisk-minor") == vbd->minor &&
	       control_heir(store_number(vbd->xs, node, "tapdisk-pid")) == control_heir(vbd->pid);
}

int twin_stays(const struct vbd *vbd, bool *stays, struct error *err)
{
	char node[256];
	int rc = lock_minor(vbd->minor, err);

	*stays = !rc && find(vbd, has_minor, node, sizeof(node));
	return rc;
}
