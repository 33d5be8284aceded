/* SPDX-License-Identifier: LGPL-2.1-only */
/* probe: would create succeed? Opens the image here, without a device. */
#include "tools/tap-ctl.h"

#include <errno.h>
#include <stdio.h>

#include "common/config.h"
#include "drivers/image.h"

int cmd_probe(const struct options *opt, struct error *err)
{
	struct image_open_args args = {
		.readonly	= opt->readonly,
		.max_requests	= 1,
	};
	const struct image_driver *driver;
	struct engine *engine = NULL;
	struct config cfg;
	struct image *image;
	int rc;

	rc = config_load(&cfg, NULL, err);
	if (!rc)
		rc = image_parse(opt->args, &driver, &args.path, err);
	if (!rc)
		rc = engine_open(&engine, "posix", 1, err);
	if (rc)
		goto out;
	args.config = &cfg;
	args.engine = engine;
	rc = driver->open(&image, &args, err);
	if (!rc)
		rc = driver->close(image, err);
	else if (rc == -EBUSY)
		/* 0: on another host, or not to be found */
		printf("holder=%d\n", err->holder);
out:
	if (engine)
		engine_close(engine);
	config_dispose(&cfg);
	return rc;
}
