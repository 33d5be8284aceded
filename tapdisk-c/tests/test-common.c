/* SPDX-License-Identifier: LGPL-2.1-only */
/* Lists, byte order and checked arithmetic, errors, the log. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "common/error.h"
#include "common/list.h"
#include "common/log.h"

struct item {
	char name;
	struct list link;
};

static const char *names(struct list *l)
{
	static char text[16];
	size_t n = 0;

	list_for_each(pos, l)
		text[n++] = container_of(pos, struct item, link)->name;
	text[n] = 0;
	return text;
}

static void list_keeps_its_order(void **state)
{
	struct item a = { .name = 'a' }, b = { .name = 'b' }, c = { .name = 'c' };
	struct list l, other;

	(void)state;
	list_init(&l);
	list_init(&other);
	assert_true(list_empty(&l));
	assert_null(list_pop(&l));
	list_add_tail(&b.link, &l);
	list_add_tail(&c.link, &l);
	list_add(&a.link, &l);
	assert_string_equal(names(&l), "abc");
	list_del(&b.link);
	list_del(&b.link);
	assert_string_equal(names(&l), "ac");
	list_add(&b.link, &other);
	list_splice(&l, &other);
	assert_true(list_empty(&l));
	assert_string_equal(names(&other), "bac");
	list_splice(&l, &other);
	assert_string_equal(names(&other), "bac");
	list_for_each_safe(pos, next, &other)
		list_del(pos);
	assert_true(list_empty(&other));
	list_add_tail(&c.link, &l);
	assert_ptr_equal(list_pop(&l), &c.link);
	assert_true(list_empty(&l));
}

static void fields_are_big_endian(void **state)
{
	static const uint8_t in[] = { 0xf1, 0xe2, 0xd3, 0xc4, 0xb5, 0xa6, 0x97, 0x88 };
	uint8_t out[8];

	(void)state;
	assert_int_equal(get_be16(in), 0xf1e2);
	assert_int_equal(get_be32(in), 0xf1e2d3c4);
	assert_true(get_be64(in) == 0xf1e2d3c4b5a69788);
	put_be64(out, 0xf1e2d3c4b5a69788);
	assert_memory_equal(out, in, 8);
	put_be16(out, 0x0102);
	put_be32(out + 2, 0x03040506);
	assert_memory_equal(out, "\1\2\3\4\5\6\x97\x88", 8);
}

static void arithmetic_says_when_it_overflows(void **state)
{
	uint64_t r;

	(void)state;
	assert_true(add_u64(UINT64_MAX - 1, 1, &r));
	assert_true(r == UINT64_MAX);
	assert_false(add_u64(UINT64_MAX, 1, &r));
	assert_true(mul_u64(1ull << 32, (1ull << 32) - 1, &r));
	assert_true(r == 0xffffffff00000000);
	assert_false(mul_u64(1ull << 32, 1ull << 32, &r));
	assert_int_equal(round_up_u64(0, 512), 0);
	assert_int_equal(round_up_u64(1, 512), 512);
	assert_int_equal(round_up_u64(512, 512), 512);
}

static void error_keeps_code_and_text(void **state)
{
	struct error err;
	char longer[3000];

	(void)state;
	assert_int_equal(error_set(&err, -EIO, "%s: %d", "a", 1), -EIO);
	assert_int_equal(error_prefix(&err, "line %d", 2), -EIO);
	assert_int_equal(err.code, -EIO);
	assert_string_equal(err.text, "line 2: a: 1");
	assert_int_equal(error_append(&err, "; %d", 3), -EIO);
	assert_string_equal(err.text, "line 2: a: 1; 3");
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = 0;
	error_set(&err, -EIO, "%s", longer);
	error_prefix(&err, "%s", longer);
	assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
	error_append(&err, "%s", longer);
	assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
	assert_int_equal(error_set(NULL, -ENOMEM, "x"), -ENOMEM);
	assert_true(error_prefix(NULL, "x") < 0);
	assert_true(error_append(NULL, "x") < 0);
}

static void log_writes_one_line_per_event(void **state)
{
	char text[4096] = "", expected[256];
	int fd = memfd_create("log", MFD_CLOEXEC), old = dup(STDERR_FILENO);

	(void)state;
	fflush(stderr);
	dup2(fd, STDERR_FILENO);
	log_open("prog", false, LOG_LEVEL_INFO);
	log_info("opened path=%s", "/x\nprog[1]: error: forged\x1b");
	log_debug("not to be seen");
	log_error("err=%d", 5);
	fflush(stderr);
	dup2(old, STDERR_FILENO);
	close(old);
	assert_true(pread(fd, text, sizeof(text) - 1, 0) > 0);
	close(fd);
	snprintf(expected, sizeof(expected),
		 "prog[%d]: info: opened path=/x?prog[1]: error: forged?\n"
		 "prog[%d]: error: err=5\n", (int)getpid(), (int)getpid());
	assert_string_equal(text, expected);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(list_keeps_its_order),
		cmocka_unit_test(fields_are_big_endian),
		cmocka_unit_test(arithmetic_says_when_it_overflows),
		cmocka_unit_test(error_keeps_code_and_text),
		cmocka_unit_test(log_writes_one_line_per_event),
	};

	return cmocka_run_group_tests_name("common", tests, NULL, NULL);
}
