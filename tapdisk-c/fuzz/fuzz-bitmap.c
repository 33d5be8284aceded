/* SPDX-License-Identifier: LGPL-2.1-only */
/* The input is from u16 | count u16 | a bitmap; each bit is looked at by itself, too. */
#include <stdlib.h>
#include <string.h>

#include "fuzz/fuzz.h"
#include "vhd/vhd-internal.h"

#define PREFIX 4u

static bool bit(const uint8_t *map, uint32_t i)
{
	return map[i / 8] >> (7 - i % 8) & 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint32_t bits, from, count, run = 0;
	uint8_t *map, *after;
	bool set, changed = false;

	if (size <= PREFIX || size > PREFIX + 256)
		return 0;
	bits = (uint32_t)(size - PREFIX) * 8;
	from = get_be16(data) % bits;
	count = get_be16(data + 2) % (bits - from + 1);
	map = malloc(bits / 8);
	after = malloc(bits / 8);
	fuzz_assert(map && after);
	memcpy(map, data + PREFIX, bits / 8);
	memcpy(after, map, bits / 8);

	while (run < count && bit(map, from + run) == bit(map, from))
		run++;
	fuzz_assert(vhd_bitmap_run(map, from, from + count, &set) == run);
	fuzz_assert(!count || set == bit(map, from));
	for (run = 0; run < bits && bit(map, run); run++)
		;
	fuzz_assert(vhd_bitmap_full(map, from) == (run >= from));
	for (uint32_t i = from; i < from + count; i++) {
		changed |= !bit(map, i);
		map[i / 8] |= (uint8_t)(0x80u >> i % 8);
	}
	fuzz_assert(vhd_bitmap_set(after, from, count) == changed);
	fuzz_assert(!memcmp(map, after, bits / 8));
	free(map);
	free(after);
	return 0;
}
