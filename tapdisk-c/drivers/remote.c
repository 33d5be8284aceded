/* SPDX-License-Identifier: LGPL-2.1-only */
#include <sys/stat.h>
#include <sys/vfs.h>

#include "drivers/image.h"

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

bool image_file_is_local(int fd)
{
	struct stat st;

	return !fstat(fd, &st) && S_ISREG(st.st_mode) && !image_file_is_remote(fd);
}
