/* SPDX-License-Identifier: LGPL-2.1-only */
#include "drivers/image.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"

static const struct image_driver *const drivers[] = {
	&raw_driver,
	&vhd_driver,
	&nbd_driver,
	&ram_driver,
	&null_driver,
	&log_driver,
};

static bool is(const char *type, const char *text, size_t len)
{
	return type && strlen(type) == len && !memcmp(type, text, len);
}

int image_parse(const char *spec, const struct image_driver **driver,
		const char **path, struct error *err)
{
	const char *colon = strchr(spec, ':');
	size_t len;

	if (!colon)
		return error_set(err, -EINVAL,
				 "%s: no image type named; write TYPE:PATH, for example vhd:%s",
				 spec, spec);
	len = (size_t)(colon - spec);
	for (size_t i = 0; i < sizeof(drivers) / sizeof(drivers[0]); i++) {
		const struct image_driver *d = drivers[i];

		if (!is(d->type, spec, len) && !is(d->alias, spec, len))
			continue;
		if (!d->check && colon[1] != '/')
			return error_set(err, -EINVAL,
					 "%s: the path is not absolute", spec);
		*driver = d;
		*path = colon + 1;
		return d->check ? d->check(spec, colon + 1, err) : 0;
	}
	return error_set(err, -EINVAL,
			 "%s: unknown image type \"%.*s\"; known are aio (or raw), vhd, nbd, ram, null and log",
			 spec, (int)len, spec);
}

int image_absolute(const char *spec, char *to, size_t size, struct error *err)
{
	const char *colon = strchr(spec, ':');
	char cwd[PATH_MAX];
	int n;

	if (colon && colon[1] && colon[1] != '/' &&
	    (!strncmp(spec, "vhd:", 4) || !strncmp(spec, "aio:", 4) ||
	     !strncmp(spec, "raw:", 4))) {
		if (!getcwd(cwd, sizeof(cwd)))
			return error_set(err, -errno, "%s: cannot tell the current directory: %s",
					 spec, strerror(errno));
		n = snprintf(to, size, "%.*s%s/%s", (int)(colon + 1 - spec),
			     spec, cwd, colon + 1);
	} else {
		n = snprintf(to, size, "%s", spec);
	}
	if (n < 0 || (size_t)n >= size)
		return error_set(err, -ENAMETOOLONG, "%s: the path is too long",
				 spec);
	return 0;
}

/* Bytes; false if it is no size or more than 63 bits hold. */
static bool parse_size(const char *text, uint64_t *size)
{
	static const char units[] = "KMGT";
	const char *unit;
	uint64_t n = 0;

	if (*text < '0' || *text > '9')
		return false;
	for (; *text >= '0' && *text <= '9'; text++)
		if (!mul_u64(n, 10, &n) ||
		    !add_u64(n, (uint64_t)(*text - '0'), &n))
			return false;
	if (*text) {
		unit = strchr(units, *text);
		if (!unit || text[1] ||
		    !mul_u64(n, UINT64_C(1) << (10 * (unit - units + 1)), &n))
			return false;
	}
	*size = n;
	return n <= INT64_MAX;
}

int image_check_size(const char *spec, const char *text, struct error *err)
{
	uint64_t size;

	if (!parse_size(text, &size))
		return error_set(err, -EINVAL,
				 "%s: size \"%s\": must be a number of bytes, or one with K, M, G or T behind it",
				 spec, text);
	if (!size || size % SECTOR_SIZE)
		return error_set(err, -EINVAL,
				 "%s: size \"%s\": must be a positive multiple of %u bytes",
				 spec, text, SECTOR_SIZE);
	return 0;
}

uint64_t image_size(const char *text)
{
	uint64_t size;

	return parse_size(text, &size) ? size >> SECTOR_SHIFT : 0;
}
