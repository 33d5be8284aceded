/* SPDX-License-Identifier: LGPL-2.1-only */
/* Bitmap runs against a bit-by-bit model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "vhd/vhd.h"

#define BITS 200u

static bool model_bit(const uint8_t *map, uint32_t i)
{
	return (map[i / 8] >> (7 - i % 8)) & 1;
}

static unsigned int seed_random(void)
{
	const char *text = getenv("XENBLK_SEED");
	unsigned int seed = text ? (unsigned int)strtoul(text, NULL, 10) :
				   (unsigned int)time(NULL);

	printf("XENBLK_SEED=%u\n", seed);
	srandom(seed);
	return seed;
}

/* Long runs of both values, so that whole bytes are met. */
static void random_map(uint8_t map[BITS / 8])
{
	memset(map, 0, BITS / 8);
	for (uint32_t i = 0; i < BITS;) {
		uint32_t most = random() % 8 ? 40 : 300;
		uint32_t n = 1 + (uint32_t)random() % most;
		bool set = random() & 1;

		for (; n && i < BITS; n--, i++)
			if (set)
				map[i / 8] |= (uint8_t)(0x80 >> i % 8);
	}
}

static void runs_are_those_of_the_model(void **state)
{
	uint8_t map[BITS / 8];

	(void)state;
	seed_random();
	for (int round = 0; round < 200; round++) {
		random_map(map);
		for (uint32_t from = 0; from < BITS; from++) {
			uint32_t limit = from + 1 +
					 (uint32_t)random() % (BITS - from);
			uint32_t n = 0;
			bool set;

			while (from + n < limit &&
			       model_bit(map, from + n) == model_bit(map, from))
				n++;
			assert_int_equal(vhd_bitmap_run(map, from, limit, &set),
					 n);
			assert_int_equal(set, model_bit(map, from));
		}
	}
}

static void setting_is_that_of_the_model(void **state)
{
	uint8_t map[BITS / 8], want[BITS / 8];

	(void)state;
	for (int round = 0; round < 5000; round++) {
		uint32_t from = (uint32_t)random() % BITS;
		uint32_t count = (uint32_t)random() % (BITS - from + 1);
		bool changes = false;

		random_map(map);
		memcpy(want, map, sizeof(map));
		for (uint32_t i = from; i < from + count; i++) {
			changes |= !model_bit(want, i);
			want[i / 8] |= (uint8_t)(0x80 >> i % 8);
		}
		assert_int_equal(vhd_bitmap_set(map, from, count), changes);
		assert_memory_equal(map, want, sizeof(map));
	}
}

static void full_means_every_bit_up_to_the_limit(void **state)
{
	uint8_t map[BITS / 8];

	(void)state;
	for (uint32_t bits = 1; bits <= BITS; bits++) {
		memset(map, 0, sizeof(map));
		vhd_bitmap_set(map, 0, bits);
		assert_true(vhd_bitmap_full(map, bits));
		for (uint32_t i = 0; i < bits; i++) {
			map[i / 8] ^= (uint8_t)(0x80 >> i % 8);
			assert_false(vhd_bitmap_full(map, bits));
			map[i / 8] ^= (uint8_t)(0x80 >> i % 8);
		}
	}
}

static void bit_0_is_the_most_significant_of_byte_0(void **state)
{
	uint8_t map[2] = { 0 };

	(void)state;
	assert_true(vhd_bitmap_set(map, 0, 1));
	assert_true(vhd_bitmap_set(map, 15, 1));
	assert_int_equal(map[0], 0x80);
	assert_int_equal(map[1], 0x01);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(runs_are_those_of_the_model),
		cmocka_unit_test(setting_is_that_of_the_model),
		cmocka_unit_test(full_means_every_bit_up_to_the_limit),
		cmocka_unit_test(bit_0_is_the_most_significant_of_byte_0),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
