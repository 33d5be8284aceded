/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A disk that two domains have: a guest, and the domain that its device model runs
 * in, whose `target` is the guest. Both have the gendisk of one tapdisk, which ends
 * with the last of them. Who joins and who leaves take turns by a lock of the minor.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/control.h"
#include "vbd.h"

static bool is_target(const struct vbd *vbd, int domid, int of)
{
	char *target = store_read(vbd->xs, "/local/domain/%d/target", of);
	bool is = target && atoi(target) == domid;

	free(target);
	return is;
}

static int lock_minor(int minor, struct error *err)
{
	char name[32];

	snprintf(name, sizeof(name), "xenblk-minor-%d", minor);
	return lock_named(name, err);
}

static int number(const struct vbd *vbd, const char *node, const char *key)
{
	char *value = store_read(vbd->xs, "%s/%s", node, key);
	int n = value ? atoi(value) : -1;

	free(value);
	return n;
}

struct search {
	int holder;
	int pid, minor;			/* -1: not found */
	char *device;
};

static bool may_join(const struct vbd *vbd, const char *node)
{
	int ours = node_domid(vbd->path), theirs = node_domid(node);
	char *params = store_read(vbd->xs, "%s/params", node);
	char *mode = store_read(vbd->xs, "%s/mode", node);
	bool may = params && mode && !strcmp(params, vbd->params) &&
		   (strchr(mode, 'w') || !strchr(vbd->mode, 'w')) &&
		   (is_target(vbd, ours, theirs) || is_target(vbd, theirs, ours));

	free(params);
	free(mode);
	return may;
}

static int see_twin(const struct vbd *vbd, const char *node, void *priv,
		    struct error *err)
{
	struct search *search = priv;
	int pid = number(vbd, node, "tapdisk-pid");

	(void)err;
	if (search->minor >= 0 || pid <= 0 ||
	    control_heir(pid) != search->holder || !may_join(vbd, node))
		return 0;
	search->minor = number(vbd, node, "tapdisk-minor");
	search->pid = search->holder;
	search->device = store_read(vbd->xs, "%s/physical-device-path", node);
	return 0;
}

bool twin_join(struct vbd *vbd, int holder)
{
	struct search search = { .holder = holder, .pid = -1, .minor = -1 };
	bool joined = false;

	store_for_each(vbd, "vbd", see_twin, &search, NULL);
	if (search.minor >= 0 && search.device &&
	    strlen(search.device) < sizeof(vbd->device) &&
	    !lock_minor(search.minor, NULL)) {
		vbd->pid = search.pid;
		vbd->minor = search.minor;
		strcpy(vbd->device, search.device);
		/* The other one may have left before the lock was ours. */
		joined = tapctl_serves(vbd);
	}
	if (!joined)
		vbd->pid = vbd->minor = -1;
	free(search.device);
	return joined;
}

static int see_user(const struct vbd *vbd, const char *node, void *priv,
		    struct error *err)
{
	bool *shared = priv;

	(void)err;
	if (strcmp(node, vbd->path) &&
	    number(vbd, node, "tapdisk-minor") == vbd->minor &&
	    control_heir(number(vbd, node, "tapdisk-pid")) == control_heir(vbd->pid))
		*shared = true;
	return 0;
}

int twin_stays(const struct vbd *vbd, bool *stays, struct error *err)
{
	int rc = lock_minor(vbd->minor, err);

	*stays = false;
	return rc ? rc : store_for_each(vbd, "vbd", see_user, stays, err);
}
