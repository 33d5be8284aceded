/* SPDX-License-Identifier: LGPL-2.1-only */
/* allocate, free, check: verbs that need no tapdisk. */
#include "tools/tap-ctl.h"

#include <stdio.h>

#include <blktap.h>

#include "common/config.h"
#include "common/diskfile.h"
#include "transport/minor.h"

/* The caller disposes of cfg in either case. */
static int load_config(struct config *cfg, const struct options *opt,
		       struct error *err)
{
	int rc = config_load(cfg, NULL, err);

	if (!rc && opt->transport)
		rc = config_set_transport(cfg, opt->transport, err);
	return rc;
}

int allocate(const struct options *opt, int *minor, struct error *err)
{
	struct config cfg;
	int rc = load_config(&cfg, opt, err);

	if (!rc)
		rc = minor_allocate(cfg.transport, minor, err);
	config_dispose(&cfg);
	return rc;
}

int cmd_allocate(const struct options *opt, struct error *err)
{
	int minor, rc;

	rc = allocate(opt, &minor, err);
	if (!rc)
		printf(BLKTAP_DEVICE_PATH "\n", minor);
	return rc;
}

int cmd_free(const struct options *opt, struct error *err)
{
	int rc;

	/*
	 * First: nobody takes it over once its tapdisk gets -ENODEV. Of others than the
	 * driver's a minor that is served is not freed.
	 */
	if (opt->force && minor_kind(opt->minor) == &blktap_gendisk)
		diskfile_forget(opt->minor, 0);
	rc = opt->force ? minor_free_now(opt->minor, err) :
			  minor_free(opt->minor, err);

	if (!rc)
		diskfile_forget(opt->minor, 0);
	return rc;
}

int cmd_fail(const struct options *opt, struct error *err)
{
	return minor_fail(opt->minor, err);
}

int cmd_check(const struct options *opt, struct error *err)
{
	struct config cfg;
	int rc = load_config(&cfg, opt, err);

	if (!rc)
		rc = minor_check(cfg.transport, err);
	config_dispose(&cfg);
	return rc;
}
