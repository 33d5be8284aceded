/* SPDX-License-Identifier: LGPL-2.1-only */
/* What ublk says and is told: descriptors, parameters, results. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "transport/ublk-desc.h"

#define MAX_SECTORS (UBLK_MAX_IO_BYTES >> SECTOR_SHIFT)

static int decode(uint32_t op_flags, uint32_t sectors, uint64_t sector,
		  struct image_request *image, bool *fua)
{
	const struct ublk_desc desc = {
		.op_flags = op_flags, .sectors = sectors, .sector = sector,
		.addr = UINT64_MAX,
	};

	memset(image, 0xff, sizeof(*image));
	return ublk_decode(&desc, image, fua);
}

static void each_operation_is_the_images(void **state)
{
	static const struct {
		uint32_t op_flags;
		enum image_op op;
		bool fua, keep_space;
	} cases[] = {
		{ 0, IMAGE_READ, false, false },
		{ 1, IMAGE_WRITE, false, false },
		{ 1 | 1u << 13, IMAGE_WRITE, true, false },
		{ 3, IMAGE_DISCARD, false, false },
		{ 5, IMAGE_ZERO, false, false },
		{ 5 | 1u << 15, IMAGE_ZERO, false, true },
		{ 5 | 1u << 13 | 1u << 15, IMAGE_ZERO, true, true },
		/* what else the kernel says of a request changes nothing */
		{ 1 | 0x1f00u | 1u << 16 | 0xff000000u, IMAGE_WRITE, false, false },
	};
	struct image_request image;
	bool fua;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(decode(cases[i].op_flags, 8, 1ull << 40, &image, &fua), 0);
		assert_int_equal(image.op, cases[i].op);
		assert_int_equal(fua, cases[i].fua);
		assert_int_equal(image.keep_space, cases[i].keep_space);
		assert_int_equal(image.sector, 1ull << 40);
		assert_int_equal(image.count, 8);
	}
}

static void a_flush_has_no_sectors(void **state)
{
	struct image_request image;
	bool fua;

	(void)state;
	assert_int_equal(decode(2, 77, 5, &image, &fua), 0);
	assert_int_equal(image.op, IMAGE_FLUSH);
	assert_int_equal(image.count, 0);
	assert_false(fua);
}

static void what_is_more_than_a_buffer_holds_is_refused(void **state)
{
	struct image_request image;
	bool fua;

	(void)state;
	for (uint32_t op = 0; op <= 1; op++) {
		assert_int_equal(decode(op, MAX_SECTORS, 0, &image, &fua), 0);
		assert_int_equal(decode(op, MAX_SECTORS + 1, 0, &image, &fua), -EIO);
		assert_int_equal(decode(op, UINT32_MAX, 0, &image, &fua), -EIO);
	}
	/* no buffer is touched by these */
	assert_int_equal(decode(3, UINT32_MAX, UINT64_MAX, &image, &fua), 0);
	assert_int_equal(decode(5, UINT32_MAX, UINT64_MAX, &image, &fua), 0);
}

static void unknown_operations_are_refused(void **state)
{
	struct image_request image;
	bool fua;

	(void)state;
	for (uint32_t op = 0; op <= 0xff; op++) {
		bool known = op <= 5 && op != 4;

		assert_int_equal(decode(op, 1, 0, &image, &fua), known ? 0 : -EOPNOTSUPP);
	}
}

/* No bounds of ours are left out, whatever the words are. */
static void random_words_stay_inside_the_buffers(void **state)
{
	uint64_t seed = (uint64_t)time(NULL), x = seed | 1;
	struct image_request image;
	unsigned int transfers = 0;
	bool fua;

	(void)state;
	print_message("seed %llu\n", (unsigned long long)seed);
	for (int i = 0; i < 200000; i++) {
		uint32_t words[2];

		for (int w = 0; w < 2; w++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			words[w] = (uint32_t)(x >> 16);
		}
		words[0] &= i % 2 ? ~0u : 0xffffff01u;
		words[1] >>= i % 32;
		if (decode(words[0], words[1], x, &image, &fua))
			continue;
		if (image.op != IMAGE_READ && image.op != IMAGE_WRITE)
			continue;
		transfers++;
		assert_in_range(image.count, 0, MAX_SECTORS);
	}
	assert_true(transfers > 1000);
}

static void results_are_bytes_of_transfers_or_errors(void **state)
{
	struct image_request image = { .count = MAX_SECTORS };

	(void)state;
	assert_int_equal(ublk_result(&image, IMAGE_READ, 0), UBLK_MAX_IO_BYTES);
	assert_int_equal(ublk_result(&image, IMAGE_WRITE, 0), UBLK_MAX_IO_BYTES);
	assert_int_equal(ublk_result(&image, IMAGE_WRITE, -ENOSPC), -ENOSPC);
	image.count = UINT32_MAX;
	assert_int_equal(ublk_result(&image, IMAGE_DISCARD, 0), 0);
	assert_int_equal(ublk_result(&image, IMAGE_ZERO, -EOPNOTSUPP), -EOPNOTSUPP);
	assert_int_equal(ublk_result(&image, IMAGE_FLUSH, 0), 0);
}

static struct image_info info_of(uint64_t sectors, uint32_t sector_size)
{
	return (struct image_info){
		.sectors = sectors, .sector_size = sector_size, .depth = 1,
		.can = IMAGE_CAN_DISCARD | IMAGE_CAN_ZERO,
	};
}

static void a_device_is_what_its_image_can(void **state)
{
	struct image_info info = info_of(12345, 512);
	struct ublk_params params = ublk_params_of(&info, false);

	(void)state;
	assert_int_equal(params.len, sizeof(params));
	assert_int_equal(params.basic.sectors, 12345);
	assert_int_equal(params.basic.logical_shift, 9);
	assert_int_equal(params.basic.physical_shift, 12);
	assert_int_equal(params.basic.max_sectors, MAX_SECTORS);
	assert_int_equal(params.basic.attrs, UBLK_ATTR_CACHE | UBLK_ATTR_FUA);
	assert_int_equal(params.discard.granularity, 4096);
	assert_int_equal(params.discard.max_segments, 1);
	assert_true(params.discard.max_sectors && params.discard.max_zeroes_sectors);

	info = info_of(8, 4096);
	info.can = 0;
	params = ublk_params_of(&info, true);
	assert_int_equal(params.basic.logical_shift, 12);
	assert_true(params.basic.attrs & UBLK_ATTR_READ_ONLY);
	assert_int_equal(params.discard.max_sectors, 0);
	assert_int_equal(params.discard.max_zeroes_sectors, 0);
	/* the kernel wants it all the same */
	assert_int_equal(params.discard.granularity, 4096);
}

static void refused(const struct ublk_params *params, struct image_info info,
		    bool readonly, int rc, const char *says)
{
	struct error err;

	assert_int_equal(ublk_params_fit(params, &info, readonly, 7, &err), rc);
	assert_non_null(strstr(err.text, "minor 7: "));
	if (!strstr(err.text, says))
		fail_msg("%s", err.text);
}

static void a_device_is_taken_over_for_what_fits_it(void **state)
{
	const struct image_info info = info_of(1000, 512), larger = info_of(2000, 512);
	const struct ublk_params made = ublk_params_of(&info, false);
	struct ublk_params params;

	(void)state;
	assert_int_equal(ublk_params_fit(&made, &info, false, 7, NULL), 0);
	assert_int_equal(ublk_params_fit(&made, &larger, false, 7, NULL), 0);
	params = ublk_params_of(&info, true);
	assert_int_equal(ublk_params_fit(&params, &info, true, 7, NULL), 0);
	assert_int_equal(ublk_params_fit(&params, &info, false, 7, NULL), 0);

	refused(&made, info_of(999, 512), false, -EINVAL, "can't shrink");
	refused(&made, info_of(1000, 4096), false, -EINVAL, "sectors of 512 bytes");
	/* its guest's writes would fail one by one */
	refused(&made, info, true, -EROFS, "made for writing");
	params = made;
	params.basic.max_sectors = MAX_SECTORS * 4;
	refused(&params, info, false, -ERANGE, "requests of 1024 KiB");
	params = made;
	params.basic.logical_shift = 64;
	refused(&params, info, false, -EPROTO, "block size");
	params = made;
	params.types = 0;
	refused(&params, info, false, -EPROTO, "block size");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_operation_is_the_images),
		cmocka_unit_test(a_flush_has_no_sectors),
		cmocka_unit_test(what_is_more_than_a_buffer_holds_is_refused),
		cmocka_unit_test(unknown_operations_are_refused),
		cmocka_unit_test(random_words_stay_inside_the_buffers),
		cmocka_unit_test(results_are_bytes_of_transfers_or_errors),
		cmocka_unit_test(a_device_is_what_its_image_can),
		cmocka_unit_test(a_device_is_taken_over_for_what_fits_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
