/* SPDX-License-Identifier: LGPL-2.1-only */
#include "common/pages.h"

#include <sys/mman.h>

/* calloc() clears, and so touches, what it has on its own free lists. */
void *pages_alloc(size_t len)
{
	void *p = mmap(NULL, len ? len : 1, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	/* Or a byte that is touched costs 2 MiB. */
	madvise(p, len ? len : 1, MADV_NOHUGEPAGE);
	return p;
}

void pages_free(void *p, size_t len)
{
	if (p)
		munmap(p, len ? len : 1);
}
