// SPDX-License-Identifier: LGPL-2.1-only
/* Runs of bits; bit 0 is the most significant of byte 0. */
#include <string.h>

#include "vhd/vhd-internal.h"

static bool get_bit(const uint8_t *map, uint32_t i)
{
	return map[i >> 3] & (0x80u >> (i & 7));
}

uint32_t vhd_bitmap_run(const uint8_t *map, uint32_t from, uint32_t limit,
			bool *set)
{
	uint32_t i = from;
	uint8_t same, other;
	uint64_t word, all;

	*set = from < limit && get_bit(map, from);
	same = *set ? 0xff : 0;
	all = *set ? UINT64_MAX : 0;
	while (i < limit) {
		if (!(i & 7) && limit - i >= 64) {
			memcpy(&word, map + (i >> 3), sizeof(word));
			if (word == all) {
				i += 64;
				continue;
			}
		}
		/* The bits of this byte, from i on, that end the run. */
		other = (map[i >> 3] ^ same) & (uint8_t)(0xffu >> (i & 7));
		if (other) {
			i = (i & ~7u) + (uint32_t)__builtin_clz(other) - 24;
			break;
		}
		i = (i | 7) + 1;
	}
	return (i < limit ? i : limit) - from;
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

bool vhd_bitmap_any(const uint8_t *map, uint32_t from, uint32_t to)
{
	bool set;

	return from < to &&
	       (vhd_bitmap_run(map, from, to, &set) < to - from || set);
}

bool vhd_bitmap_full(const uint8_t *map, uint32_t bits)
{
	bool set;

	return !bits || (vhd_bitmap_run(map, 0, bits, &set) == bits && set);
}
