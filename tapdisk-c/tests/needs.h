/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Tests that can't run everywhere. Who runs them says what a machine lacks, in
 * $XENBLK_TESTS_LACK (words); what is not said must be there. cross.mk has the
 * words, and why.
 */
#ifndef XENBLK_NEEDS_H
#define XENBLK_NEEDS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static inline bool lacks(const char *what)
{
	const char *words = getenv("XENBLK_TESTS_LACK");
	size_t len = strlen(what);

	for (; words && *words; words += strspn(words, " ")) {
		size_t n = strcspn(words, " ");

		if (n == len && !memcmp(words, what, n))
			return true;
		words += n;
	}
	return false;
}

/* In a test. */
static inline void needs(const char *what)
{
	if (!lacks(what))
		return;
	print_message("no %s here\n", what);
	skip();
}

#endif
