// SPDX-License-Identifier: GPL-2.0-only
/* What the driver accepts from a server and what it refuses. */
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "proto.h"

#define PAGE	4096u
#define ENTRIES	8u

static void used_entries_are_counted_across_the_wrap(void **state)
{
	(void)state;
	assert_int_equal(blktap_ring_used(5, 5, ENTRIES), 0);
	assert_int_equal(blktap_ring_used(5, 13, ENTRIES), 8);
	assert_int_equal(blktap_ring_used(UINT32_MAX - 2, 3, ENTRIES), 6);
}

static void an_index_beyond_the_ring_is_refused(void **state)
{
	(void)state;
	assert_int_equal(blktap_ring_used(5, 14, ENTRIES), -EPROTO);
	assert_int_equal(blktap_ring_used(5, 4, ENTRIES), -EPROTO);
	assert_int_equal(blktap_ring_used(0, 0x80000000u, ENTRIES), -EPROTO);
	assert_int_equal(blktap_ring_used(1, 0, BLKTAP_MAX_ENTRIES), -EPROTO);
}

static void the_parts_of_a_ring_do_not_overlap(void **state)
{
	struct blktap_layout l;
	uint32_t n;

	(void)state;
	for (n = 1; n <= BLKTAP_MAX_ENTRIES; n *= 2) {
		blktap_ring_layout(n, &l);
		assert_true(l.sq_off >= sizeof(struct blktap_ring));
		assert_true(l.cq_off >= l.sq_off + n * sizeof(struct blktap_sqe));
		assert_true(l.bytes >= l.cq_off + n * sizeof(struct blktap_cqe));
		assert_int_equal(l.sq_off % 64, 0);
		assert_int_equal(l.cq_off % 64, 0);
	}
}

static void remap_is_granted_beside_copy_alone(void **state)
{
	(void)state;
	assert_int_equal(blktap_grant(BLKTAP_F_COPY), BLKTAP_F_COPY);
	assert_int_equal(blktap_grant(BLKTAP_F_REMAP), 0);
	assert_int_equal(blktap_grant(~0ull), BLKTAP_F_COPY | BLKTAP_F_REMAP);
}

static struct blktap_setup good_setup(void)
{
	return (struct blktap_setup) {
		.size = sizeof(struct blktap_setup), .version = BLKTAP_ABI_VERSION,
		.features = BLKTAP_F_COPY, .nr_queues = 4, .entries = 256,
		.max_io_bytes = 1u << 20, .buf_addr = 16 * PAGE,
		.buf_len = 256ull << 20,
	};
}

static void a_setup_gets_one_queue(void **state)
{
	struct blktap_setup s = good_setup();

	(void)state;
	assert_int_equal(blktap_check_setup(&s, PAGE), 0);
	assert_int_equal(s.nr_queues, 1);
	assert_int_equal(s.entries, 256);
}

#define REFUSED_SETUP(field, value)					\
	do {								\
		struct blktap_setup s_ = good_setup();			\
		s_.field = (value);					\
		if (blktap_check_setup(&s_, PAGE) != -EINVAL)		\
			fail_msg("setup accepted with " #field " = " #value); \
	} while (0)

static void a_setup_out_of_range_is_refused(void **state)
{
	(void)state;
	REFUSED_SETUP(nr_queues, 0);
	REFUSED_SETUP(entries, 0);
	REFUSED_SETUP(entries, 3);
	REFUSED_SETUP(entries, 512);
	REFUSED_SETUP(entries, UINT32_MAX);
	REFUSED_SETUP(max_io_bytes, 0);
	REFUSED_SETUP(max_io_bytes, 4095);
	REFUSED_SETUP(max_io_bytes, (1u << 20) + 4096);
	REFUSED_SETUP(reserved, 1);
	REFUSED_SETUP(buf_addr, 0);
	REFUSED_SETUP(buf_addr, 16 * PAGE + 512);
	REFUSED_SETUP(buf_len, (256ull << 20) - 1);
	REFUSED_SETUP(buf_len, 0);
	REFUSED_SETUP(buf_len, UINT64_MAX - PAGE);
}

static struct blktap_device_params good_params(void)
{
	return (struct blktap_device_params) {
		.size = sizeof(struct blktap_device_params),
		.flags = BLKTAP_DEV_FLUSH | BLKTAP_DEV_FUA | BLKTAP_DEV_DISCARD,
		.sectors = 1ull << 32, .logical_block_size = 512,
		.physical_block_size = 4096, .io_min = 4096,
		.io_opt = 2u << 20, .discard_granularity = 4096,
		.discard_max = 1u << 20,
	};
}

static void good_parameters_are_accepted(void **state)
{
	struct blktap_device_params p = good_params();

	(void)state;
	assert_int_equal(blktap_check_params(&p, 1u << 20), 0);
	p = (struct blktap_device_params) {
		.sectors = 8, .logical_block_size = 4096,
		.physical_block_size = 4096,
	};
	assert_int_equal(blktap_check_params(&p, 4096), 0);
}

#define REFUSED_PARAMS(field, value)					\
	do {								\
		struct blktap_device_params p_ = good_params();		\
		p_.field = (value);					\
		if (blktap_check_params(&p_, 1u << 20) != -EINVAL)	\
			fail_msg("params accepted with " #field " = " #value); \
	} while (0)

static void parameters_out_of_range_are_refused(void **state)
{
	struct blktap_device_params p;

	(void)state;
	REFUSED_PARAMS(flags, 1u << 5);
	REFUSED_PARAMS(flags, BLKTAP_DEV_FUA);
	REFUSED_PARAMS(sectors, 0);
	REFUSED_PARAMS(sectors, 1ull << 54);
	REFUSED_PARAMS(sectors, UINT64_MAX);
	REFUSED_PARAMS(logical_block_size, 0);
	REFUSED_PARAMS(logical_block_size, 256);
	REFUSED_PARAMS(logical_block_size, 1536);
	REFUSED_PARAMS(logical_block_size, 8192);
	REFUSED_PARAMS(physical_block_size, 0);
	REFUSED_PARAMS(physical_block_size, 256);
	REFUSED_PARAMS(physical_block_size, 2u << 20);
	REFUSED_PARAMS(io_min, 100);
	REFUSED_PARAMS(io_opt, 513);
	REFUSED_PARAMS(discard_granularity, 0);
	REFUSED_PARAMS(discard_granularity, 4095);
	REFUSED_PARAMS(discard_max, 0);
	REFUSED_PARAMS(discard_max, 7);
	p = good_params();
	p.physical_block_size = 1u << 20;
	p.discard_max = (1u << 11) - 1;
	assert_int_equal(blktap_check_params(&p, 1u << 20), -EINVAL);
	p.discard_max++;
	assert_int_equal(blktap_check_params(&p, 1u << 20), 0);
}

static void sectors_are_whole_logical_blocks(void **state)
{
	struct blktap_device_params p = good_params();

	(void)state;
	p.logical_block_size = 4096;
	p.sectors = 12;
	assert_int_equal(blktap_check_params(&p, 1u << 20), -EINVAL);
}

static void a_device_may_grow_but_lose_nothing(void **state)
{
	struct blktap_device_params old = good_params(), new = good_params();

	(void)state;
	assert_int_equal(blktap_check_change(&old, &new, false), 0);
	new.sectors++;
	new.flags |= BLKTAP_DEV_ZEROES;
	assert_int_equal(blktap_check_change(&old, &new, false), 0);
	new.sectors = old.sectors - 1;
	assert_int_equal(blktap_check_change(&old, &new, false), -EINVAL);
	new = old;
	new.flags &= ~BLKTAP_DEV_FLUSH;
	assert_int_equal(blktap_check_change(&old, &new, true), -EINVAL);
	new = old;
	new.logical_block_size = 4096;
	assert_int_equal(blktap_check_change(&old, &new, true), -EINVAL);
	new = old;
	new.physical_block_size = 512;
	assert_int_equal(blktap_check_change(&old, &new, true), -EINVAL);
}

static void rdonly_changes_only_where_it_may(void **state)
{
	struct blktap_device_params old = good_params(), new = good_params();

	(void)state;
	new.flags |= BLKTAP_DEV_RDONLY;
	assert_int_equal(blktap_check_change(&old, &new, true), 0);
	assert_int_equal(blktap_check_change(&old, &new, false), -EINVAL);
	assert_int_equal(blktap_check_change(&new, &old, true), 0);
	assert_int_equal(blktap_check_change(&new, &old, false), -EINVAL);
}

/* Tag 3 is held under id 77, tag 4 under 78. */
static const __u64 held[ENTRIES] = { [3] = 77, [4] = 78 };

static enum blktap_refusal judge(const struct blktap_cqe *cqe)
{
	return blktap_check_cqe(cqe, held, ENTRIES,
				BLKTAP_F_COPY | BLKTAP_F_REMAP);
}

static void an_answer_to_a_held_request_is_good(void **state)
{
	struct blktap_cqe c = { .id = 77, .tag = 3 };

	(void)state;
	assert_int_equal(judge(&c), BLKTAP_CQE_GOOD);
	c.result = -EIO;
	assert_int_equal(judge(&c), BLKTAP_CQE_GOOD);
	c.result = -4095;
	assert_int_equal(judge(&c), BLKTAP_CQE_GOOD);
	c.result = 0;
	c.code = BLKTAP_CQE_REQUEUE;
	assert_int_equal(judge(&c), BLKTAP_CQE_GOOD);
	c.code = BLKTAP_CQE_REMAP;
	c.file = BLKTAP_MAX_FILES - 1;
	c.offset = 512;
	assert_int_equal(judge(&c), BLKTAP_CQE_GOOD);
	c.offset = (1ull << 63) - BLKTAP_MAX_IO_BYTES - 512;
	assert_int_equal(judge(&c), BLKTAP_CQE_GOOD);
}

static void a_place_is_refused_of_a_server_that_has_no_files(void **state)
{
	struct blktap_cqe c = { .id = 77, .tag = 3, .code = BLKTAP_CQE_REMAP };

	(void)state;
	assert_int_equal(blktap_check_cqe(&c, held, ENTRIES, BLKTAP_F_COPY),
			 BLKTAP_CQE_BAD_CODE);
}

#define EXTENT_IS(expected, ...)					\
	do {								\
		struct blktap_extent e_ = {				\
			.sector = 8, .offset = 512, .nr_sectors = 92,	\
			.file = BLKTAP_MAX_FILES - 1,			\
			.flags = BLKTAP_EXTENT_WRITE,			\
		};							\
		__VA_ARGS__						\
		assert_int_equal(blktap_check_extent(&e_, 100), expected); \
	} while (0)

static void an_extent_lies_on_the_disk_and_in_a_file(void **state)
{
	(void)state;
	EXTENT_IS(0,);
	EXTENT_IS(0, e_.offset = INT64_MAX - 511 - 92 * 512;);
	EXTENT_IS(-EINVAL, e_.offset = INT64_MAX - 511 - 91 * 512;);
	EXTENT_IS(-EINVAL, e_.offset = UINT64_MAX - 511;);
	EXTENT_IS(-EINVAL, e_.offset = 513;);
	EXTENT_IS(-EINVAL, e_.nr_sectors = 0;);
	EXTENT_IS(-EINVAL, e_.nr_sectors = 93;);
	EXTENT_IS(-EINVAL, e_.nr_sectors = UINT32_MAX;);
	EXTENT_IS(-EINVAL, e_.sector = 100;);
	EXTENT_IS(-EINVAL, e_.sector = UINT64_MAX;);
	EXTENT_IS(-EINVAL, e_.file = BLKTAP_MAX_FILES;);
	EXTENT_IS(-EINVAL, e_.flags = 2;);
}

#define JUDGED(expected, ...)						\
	do {								\
		struct blktap_cqe c_ = { .id = 77, .tag = 3 };		\
		__VA_ARGS__						\
		assert_int_equal(judge(&c_), expected);			\
	} while (0)

static void a_wrong_answer_is_refused_with_its_reason(void **state)
{
	unsigned int i;

	(void)state;
	JUDGED(BLKTAP_CQE_BAD_TAG, c_.tag = ENTRIES;);
	JUDGED(BLKTAP_CQE_BAD_TAG, c_.tag = UINT16_MAX;);
	JUDGED(BLKTAP_CQE_NOT_HELD, c_.tag = 2;);
	/* an id of 0 must not match a free tag */
	JUDGED(BLKTAP_CQE_NOT_HELD, c_.tag = 2; c_.id = 0;);
	JUDGED(BLKTAP_CQE_BAD_ID, c_.tag = 4;);
	JUDGED(BLKTAP_CQE_BAD_ID, c_.id = 0;);
	JUDGED(BLKTAP_CQE_BAD_CODE, c_.code = BLKTAP_CQE_REQUEUE + 1;);
	JUDGED(BLKTAP_CQE_BAD_CODE, c_.code = 255;);
	JUDGED(BLKTAP_CQE_BAD_RESULT, c_.result = 1;);
	JUDGED(BLKTAP_CQE_BAD_RESULT, c_.result = INT32_MAX;);
	JUDGED(BLKTAP_CQE_BAD_RESULT, c_.result = -4096;);
	JUDGED(BLKTAP_CQE_BAD_RESULT, c_.result = INT32_MIN;);
	JUDGED(BLKTAP_CQE_BAD_RESULT, c_.code = BLKTAP_CQE_REQUEUE; c_.result = -5;);
	JUDGED(BLKTAP_CQE_BAD_RESULT, c_.code = BLKTAP_CQE_REMAP; c_.result = -5;);
	JUDGED(BLKTAP_CQE_BAD_PLACE, c_.file = 1;);
	JUDGED(BLKTAP_CQE_BAD_PLACE, c_.offset = 512;);
	JUDGED(BLKTAP_CQE_BAD_PLACE, c_.code = BLKTAP_CQE_REMAP; c_.file = BLKTAP_MAX_FILES;);
	JUDGED(BLKTAP_CQE_BAD_PLACE, c_.code = BLKTAP_CQE_REMAP; c_.offset = 511;);
	JUDGED(BLKTAP_CQE_BAD_PLACE, c_.code = BLKTAP_CQE_REMAP; c_.offset = (1ull << 63) - 512;);
	JUDGED(BLKTAP_CQE_BAD_RESERVED, c_.reserved0 = 1;);
	JUDGED(BLKTAP_CQE_BAD_RESERVED, c_.reserved1 = 1;);
	for (i = 0; i < 4; i++)
		JUDGED(BLKTAP_CQE_BAD_RESERVED, c_.reserved2[i] = 1ull << 63;);
}

static void every_refusal_has_its_own_text(void **state)
{
	int a, b;

	(void)state;
	for (a = BLKTAP_CQE_GOOD; a <= BLKTAP_CQE_BAD_RESERVED; a++)
		for (b = a + 1; b <= BLKTAP_CQE_BAD_RESERVED + 1; b++)
			assert_string_not_equal(blktap_refusal_text((enum blktap_refusal)a),
						blktap_refusal_text((enum blktap_refusal)b));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(used_entries_are_counted_across_the_wrap),
		cmocka_unit_test(an_index_beyond_the_ring_is_refused),
		cmocka_unit_test(the_parts_of_a_ring_do_not_overlap),
		cmocka_unit_test(remap_is_granted_beside_copy_alone),
		cmocka_unit_test(a_setup_gets_one_queue),
		cmocka_unit_test(a_setup_out_of_range_is_refused),
		cmocka_unit_test(good_parameters_are_accepted),
		cmocka_unit_test(parameters_out_of_range_are_refused),
		cmocka_unit_test(sectors_are_whole_logical_blocks),
		cmocka_unit_test(a_device_may_grow_but_lose_nothing),
		cmocka_unit_test(rdonly_changes_only_where_it_may),
		cmocka_unit_test(an_answer_to_a_held_request_is_good),
		cmocka_unit_test(a_place_is_refused_of_a_server_that_has_no_files),
		cmocka_unit_test(an_extent_lies_on_the_disk_and_in_a_file),
		cmocka_unit_test(a_wrong_answer_is_refused_with_its_reason),
		cmocka_unit_test(every_refusal_has_its_own_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
