/* SPDX-License-Identifier: LGPL-2.1-only */
#include "drivers/image.h"

#include <errno.h>
#include <string.h>
#include <sys/vfs.h>

static const struct image_driver *const drivers[] = {
	&raw_driver,
	&vhd_driver,
};

/* linux/magic.h has not all of them. */
bool image_file_is_remote(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs))
		return false;
	switch ((uint32_t)fs.f_type) {
	case 0x00006969u:	/* NFS */
	case 0x0000517bu:	/* SMB */
	case 0xff534d42u:	/* CIFS */
	case 0xfe534d42u:	/* SMB2 */
	case 0x00c36400u:	/* Ceph */
	case 0x01021997u:	/* 9p */
	case 0x5346414fu:	/* AFS */
	case 0x0bd00bd0u:	/* Lustre */
	case 0x19830326u:	/* BeeGFS */
	case 0x47504653u:	/* GPFS */
		return true;
	default:
		return false;
	}
}

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
