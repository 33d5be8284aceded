/* SPDX-License-Identifier: LGPL-2.1-only */
/* Parent names: UTF-16, locators as bytes, relative paths. */
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "vhd/vhd-internal.h"

static void utf16_goes_both_ways(void **state)
{
	static const char *const texts[] = {
		"", "a", "\xc3\xa4\xc3\x9f", "\xe6\x97\xa5\xe6\x9c\xac",
		"\xf0\x9d\x84\x9e.vhd", "\xef\xbf\xbf", "\xf4\x8f\xbf\xbf",
	};
	uint8_t raw[64];
	char back[64];
	size_t n;

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		for (int big = 0; big < 2; big++) {
			assert_int_equal(vhd_utf16_encode(raw, sizeof(raw), &n,
							  texts[i], big), 0);
			assert_int_equal(vhd_utf16_decode(back, sizeof(back),
							  raw, n, big), 0);
			assert_string_equal(back, texts[i]);
		}
	}
	assert_int_equal(vhd_utf16_encode(raw, 4, &n, "\xf0\x9d\x84\x9e", true),
			 0);
	assert_memory_equal(raw, "\xd8\x34\xdd\x1e", 4);
}

static void bad_utf8_is_refused(void **state)
{
	static const char *const texts[] = {
		"\x80", "\xc3", "\xc0\xaf", "\xe0\x80\xaf", "\xed\xa0\x80",
		"\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "a\xff",
	};
	uint8_t raw[64];
	size_t n;

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		assert_int_equal(vhd_utf16_encode(raw, sizeof(raw), &n,
						  texts[i], false), -EILSEQ);
}

static void bad_utf16_is_refused(void **state)
{
	char out[64];

	(void)state;
	/* Half a pair at the end, halves in the wrong order, a low half alone. */
	assert_int_equal(vhd_utf16_decode(out, 64, (const uint8_t *)
		"\xd8\x34", 2, true), -EILSEQ);
	assert_int_equal(vhd_utf16_decode(out, 64, (const uint8_t *)
		"\xd8\x34\0a", 4, true), -EILSEQ);
	assert_int_equal(vhd_utf16_decode(out, 64, (const uint8_t *)
		"\xdd\x1e", 2, true), -EILSEQ);
	/* Half a unit is no unit. */
	assert_int_equal(vhd_utf16_decode(out, 64, (const uint8_t *)
		"\0a\0", 3, true), 0);
	assert_string_equal(out, "a");
}

static void buffers_are_not_overrun(void **state)
{
	uint8_t raw[8];
	char out[8];
	size_t n;

	(void)state;
	assert_int_equal(vhd_utf16_encode(raw, 6, &n, "abcd", false),
			 -ENAMETOOLONG);
	assert_int_equal(vhd_utf16_encode(raw, 8, &n, "abcd", false), 0);
	assert_int_equal(vhd_utf16_decode(out, 4, raw, n, false),
			 -ENAMETOOLONG);
	assert_int_equal(vhd_utf16_decode(out, 5, raw, n, false), 0);
	assert_int_equal(vhd_utf16_decode(out, 0, raw, 0, false),
			 -ENAMETOOLONG);
	assert_int_equal(vhd_locator_encode(raw, 8, &n, VHD_LOC_MACX, "ab"),
			 -ENAMETOOLONG);
}

static void locators_are_as_xenserver_writes_them(void **state)
{
	uint8_t raw[64];
	size_t n;

	(void)state;
	assert_int_equal(vhd_locator_encode(raw, 64, &n, VHD_LOC_MACX,
					    "./a b.vhd"), 0);
	assert_int_equal(n, 16);
	assert_memory_equal(raw, "file://./a b.vhd", 16);
	assert_int_equal(vhd_locator_encode(raw, 64, &n, VHD_LOC_W2RU,
					    "./a.vhd"), 0);
	assert_int_equal(n, 14);
	assert_memory_equal(raw, ".\0\\\0a\0.\0v\0h\0d\0", 14);
	assert_int_equal(vhd_locator_encode(raw, 64, &n, VHD_LOC_W2KU,
					    "../b/a"), 0);
	assert_int_equal(n, 16);
	assert_memory_equal(raw, ".\0\\\0.\0.\0\\\0b\0\\\0a\0", 16);
	assert_int_equal(vhd_locator_encode(raw, 64, &n, VHD_LOC_MACX,
					    "./50%"), 0);
	assert_memory_equal(raw, "file://./50%25", n);
	assert_int_equal(vhd_locator_encode(raw, 64, &n, VHD_LOC_W2RU,
					    "./a\\b"), -EILSEQ);
}

static void make_dir(const char *top, const char *name)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", top, name);
	assert_int_equal(mkdir(path, 0700), 0);
}

static void relative_paths(void **state)
{
	static const char *const dirs[] = { "a", "a/b", "ab", "a/b/c" };
	static const struct { const char *dir, *path, *want; } cases[] = {
		{ "a", "a/x", "./x" },
		{ "a/b", "a/x", "../x" },
		{ "a", "a/b/x", "./b/x" },
		{ "a", "ab/x", "../ab/x" },
		{ "ab", "a/x", "../a/x" },
		{ "a/b/c", "ab/x", "../../../ab/x" },
		{ "ab", "a/b/c/x", "../a/b/c/x" },
	};
	char top[] = "/tmp/xenblk-names-XXXXXX", dir[PATH_MAX], path[PATH_MAX];
	char *relative;

	(void)state;
	assert_non_null(mkdtemp(top));
	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++)
		make_dir(top, dirs[i]);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		snprintf(dir, sizeof(dir), "%s/%s", top, cases[i].dir);
		snprintf(path, sizeof(path), "%s/%s", top, cases[i].path);
		relative = vhd_relative_path(dir, path);
		assert_string_equal(relative, cases[i].want);
		free(relative);
	}
	relative = vhd_relative_path("/", "/tmp/x");
	assert_string_equal(relative, "./tmp/x");
	free(relative);
	relative = vhd_relative_path("/usr/lib", "/x");
	assert_string_equal(relative, "../../x");
	free(relative);
	for (size_t i = sizeof(dirs) / sizeof(dirs[0]); i--;) {
		snprintf(path, sizeof(path), "%s/%s", top, dirs[i]);
		rmdir(path);
	}
	assert_int_equal(rmdir(top), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(utf16_goes_both_ways),
		cmocka_unit_test(bad_utf8_is_refused),
		cmocka_unit_test(bad_utf16_is_refused),
		cmocka_unit_test(buffers_are_not_overrun),
		cmocka_unit_test(locators_are_as_xenserver_writes_them),
		cmocka_unit_test(relative_paths),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
