/* SPDX-License-Identifier: LGPL-2.1-only */
#include "drivers/image.h"

#include <errno.h>
#include <string.h>

static const struct image_driver *const drivers[] = {
	&raw_driver,
	&vhd_driver,
};

int image_parse(const char *spec, const struct image_driver **driver,
		const char **path, struct error *err)
{
	const char *colon = strchr(spec, ':');
	size_t len;

	if (!colon)
		return error_set(err, -EINVAL,
				 "%s: no driver named; write TYPE:PATH, for example vhd:%s",
				 spec, spec);
	len = (size_t)(colon - spec);
	for (size_t i = 0; i < sizeof(drivers) / sizeof(drivers[0]); i++) {
		if (strlen(drivers[i]->type) != len ||
		    memcmp(drivers[i]->type, spec, len))
			continue;
		if (colon[1] != '/')
			return error_set(err, -EINVAL,
					 "%s: the path is not absolute", spec);
		*driver = drivers[i];
		*path = colon + 1;
		return 0;
	}
	return error_set(err, -EINVAL,
			 "%s: unknown driver \"%.*s\"; known are aio and vhd",
			 spec, (int)len, spec);
}
