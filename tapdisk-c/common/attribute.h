/* SPDX-License-Identifier: LGPL-2.1-only */
/* Files of sysfs and procfs that hold one line. All return 0 or -errno. */
#ifndef XENBLK_ATTRIBUTE_H
#define XENBLK_ATTRIBUTE_H

#include <stddef.h>
#include <stdint.h>

/* The first line, as much of it as fits, without its newline. -ENODATA: the file is empty. */
int attribute_line(const char *path, char *text, size_t size);
/* -EPROTO: is no number. */
int attribute_number(const char *path, uint64_t *number);
int attribute_set(const char *path, uint64_t number);

#endif
