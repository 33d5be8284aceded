/* SPDX-License-Identifier: LGPL-2.1-only */
/* A file on tmpfs, and whether this process still has it mapped. Included by one file of a program. */
#ifndef XENBLK_LEND_BED_H
#define XENBLK_LEND_BED_H

#include <sys/mman.h>

#include "tests/engine-bed.h"

#define CHUNK (256u << 10)	/* what the kernel is asked for at once */

/* Named "lend-test", of size bytes that differ from each other by their place. */
static inline int memory_file(size_t size)
{
	int fd = memfd_create("lend-test", MFD_CLOEXEC);
	uint32_t *data = malloc(size);

	for (size_t i = 0; i < size / 4; i++)
		data[i] = (uint32_t)i * 2654435761u;
	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, data, size, 0), size);
	free(data);
	return fd;
}

static inline unsigned int mappings(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned int n = 0;
	char line[512];

	while (fgets(line, sizeof(line), maps))
		n += strstr(line, "lend-test") != NULL;
	fclose(maps);
	return n;
}

#endif
