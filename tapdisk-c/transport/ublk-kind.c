/* SPDX-License-Identifier: LGPL-2.1-only */
/* What tap-ctl does with ublk: gendisk.h. */
#include <blktap.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/config.h"
#include "transport/gendisk.h"
#include "transport/openers.h"
#include "transport/ublk-control.h"

#define NO_MINOR (-1)

/* Wrapped or not, an engine's own name is at the end. */
static int check_engine(struct error *err)
{
	static const char posix[] = "posix";
	struct config cfg;
	int rc = config_load(&cfg, NULL, err);
	size_t n;

	if (rc)
		return rc;
	n = strlen(cfg.engine);
	if (n >= sizeof(posix) - 1 &&
	    !strcmp(cfg.engine + n - (sizeof(posix) - 1), posix))
		rc = error_set(err, -EOPNOTSUPP, "ublk needs the engine uring, posix is configured");
	config_dispose(&cfg);
	return rc;
}

static int kind_check(struct error *err)
{
	const uint64_t needs = UBLK_F_USER_RECOVERY | UBLK_F_REISSUE |
			       UBLK_F_IOCTL_ENCODE;
	struct ublk_device device;
	uint64_t features = 0;
	struct error e;
	int rc = check_engine(err);

	if (rc)
		return rc;
	if (access(UBLK_CONTROL_PATH, F_OK) &&
	    module_load("ublk_drv", NULL, &e))
		return error_set(err, -ENODEV, "this kernel has no ublk (%s); Debian 13's has it, Debian 12's has not",
				 e.text);
	rc = ublk_device_open(&device, NO_MINOR, err);
	if (!rc) {
		rc = ublk_device_call(&device,
				      UBLK_CONTROL_READ(UBLK_GET_FEATURES),
				      &features, sizeof(features), 0);
		if (rc)
			error_set(err, rc, "this kernel's ublk does not tell what it can: %s; Linux 6.9 has one that does",
				  strerror(-rc));
	}
	ublk_device_close(&device);
	if (!rc && ~features & needs)
		rc = error_set(err, -EOPNOTSUPP, "this kernel's ublk keeps no requests for another tapdisk (features %#llx); Linux 6.9 has one that does",
			       (unsigned long long)features);
	return rc;
}

static int kind_vacate(int minor, struct error *err)
{
	char name[32], device[64];

	snprintf(name, sizeof(name), UBLK_DISK_NAME, minor);
	snprintf(device, sizeof(device), BLKTAP_DEVICE_PATH, minor);
	return openers_check(name, device, err);
}

static int kind_remove(int minor, struct error *err)
{
	struct ublk_device device;
	struct ublk_info info;
	int rc = ublk_device_open(&device, minor, err);

	if (!rc)
		rc = ublk_device_info(&device, &info, err);
	/* It is gone with the module, or was never there, or is not ours. */
	if (rc == -ENODEV || rc == -EEXIST) {
		rc = 0;
		goto out;
	}
	if (rc)
		goto out;
	rc = ublk_device_call(&device, UBLK_CONTROL_WRITE(UBLK_STOP), NULL, 0, 0);
	if (!rc)
		rc = ublk_device_call(&device,
				      UBLK_CONTROL_READ(UBLK_DELETE_ASYNC),
				      NULL, 0, 0);
	if (rc)
		error_set(err, rc, "minor %d: ublk does not remove its device: %s",
			  minor, strerror(-rc));
out:
	ublk_device_close(&device);
	return rc;
}

static bool kind_taken(int minor)
{
	struct ublk_device device;
	struct ublk_info info;
	bool taken = !ublk_device_open(&device, minor, NULL) &&
		     ublk_device_info(&device, &info, NULL) != -ENODEV;

	ublk_device_close(&device);
	return taken;
}

const struct gendisk_kind ublk_gendisk = {
	.name	= "ublk",
	.check	= kind_check,
	.vacate	= kind_vacate,
	.remove	= kind_remove,
	.taken	= kind_taken,
};
