// SPDX-License-Identifier: LGPL-2.1-only
/* Runs of bits; bit 0 is the most significant of byte 0. */
#include "vhd/vhd-internal.h"

static bool get_bit(const uint8_t *map, uint32_t i)
{
	return map[i >> 3] & (0x80u >> (i & 7));
}

uint32_t vhd_bitmap_run(const uint8_t *map, uint32_t from, uint32_t limit,
			bool *set)
{
	uint32_t i = from;
	uint8_t whole;

	if (from >= limit) {
		*set = false;
		return 0;
	}
	*set = get_bit(map, from);
	whole = *set ? 0xff : 0;
	while (i < limit) {
		if (!(i & 7) && limit - i >= 8 && map[i >> 3] == whole) {
			i += 8;
			continue;
		}
		if (get_bit(map, i) != *set)
			break;
		i++;
	}
	return i - from;
}

bool vhd_bitmap_set(uint8_t *map, uint32_t from, uint32_t count)
{
	bool changed = false;
	uint32_t i = from;

	while (count) {
		uint32_t in_byte = 8 - (i & 7);
		uint8_t mask = (uint8_t)(0xffu >> (i & 7));

		if (in_byte > count) {
			mask &= (uint8_t)(0xffu << (in_byte - count));
			in_byte = count;
		}
		if ((map[i >> 3] & mask) != mask)
			changed = true;
		map[i >> 3] |= mask;
		i += in_byte;
		count -= in_byte;
	}
	return changed;
}

bool vhd_bitmap_full(const uint8_t *map, uint32_t bits)
{
	bool set;

	return !bits || (vhd_bitmap_run(map, 0, bits, &set) == bits && set);
}
