/* SPDX-License-Identifier: LGPL-2.1-only */
/* Large tables of zeros that cost nothing where they are not touched. */
#ifndef XENBLK_PAGES_H
#define XENBLK_PAGES_H

#include <stddef.h>

/* len bytes (0 counts as 1) of zeros, page-aligned; NULL if there is no memory. */
void *pages_alloc(size_t len);
/* p may be NULL; len as it was asked for. */
void pages_free(void *p, size_t len);

#endif
