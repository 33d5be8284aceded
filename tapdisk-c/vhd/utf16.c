// SPDX-License-Identifier: LGPL-2.1-only
/*
 * UTF-16 as in parent names and locators, to and from UTF-8. Not iconv: its
 * UTF-16 is a loadable module, which an initramfs or a chroot may lack.
 */
#include <errno.h>
#include <string.h>

#include "vhd/vhd-internal.h"

static uint32_t get_unit(const uint8_t *p, bool big_endian)
{
	return big_endian ? get_be16(p) : (uint32_t)(p[1] << 8 | p[0]);
}

static void put_unit(uint8_t *p, uint32_t unit, bool big_endian)
{
	p[big_endian ? 0 : 1] = (uint8_t)(unit >> 8);
	p[big_endian ? 1 : 0] = (uint8_t)unit;
}

static size_t put_utf8(char out[4], uint32_t c)
{
	if (c < 0x80) {
		out[0] = (char)c;
		return 1;
	}
	if (c < 0x800) {
		out[0] = (char)(0xc0 | c >> 6);
		out[1] = (char)(0x80 | (c & 0x3f));
		return 2;
	}
	if (c < 0x10000) {
		out[0] = (char)(0xe0 | c >> 12);
		out[1] = (char)(0x80 | (c >> 6 & 0x3f));
		out[2] = (char)(0x80 | (c & 0x3f));
		return 3;
	}
	out[0] = (char)(0xf0 | c >> 18);
	out[1] = (char)(0x80 | (c >> 12 & 0x3f));
	out[2] = (char)(0x80 | (c >> 6 & 0x3f));
	out[3] = (char)(0x80 | (c & 0x3f));
	return 4;
}

int vhd_utf16_decode(char *out, size_t out_size, const uint8_t *in,
		     size_t in_bytes, bool big_endian)
{
	size_t used = 0, n;
	uint32_t c, low;
	char utf8[4];

	for (size_t i = 0; i + 2 <= in_bytes; i += 2) {
		c = get_unit(in + i, big_endian);
		if (!c)
			break;
		if (c >= 0xdc00 && c < 0xe000)
			return -EILSEQ;
		if (c >= 0xd800 && c < 0xdc00) {
			i += 2;
			if (i + 2 > in_bytes)
				return -EILSEQ;
			low = get_unit(in + i, big_endian);
			if (low < 0xdc00 || low >= 0xe000)
				return -EILSEQ;
			c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
		}
		n = put_utf8(utf8, c);
		if (used + n >= out_size)
			return -ENAMETOOLONG;
		memcpy(out + used, utf8, n);
		used += n;
	}
	if (used >= out_size)
		return -ENAMETOOLONG;
	out[used] = '\0';
	return 0;
}

/* The length of the character at s, or 0 if it isn't well-formed UTF-8. */
static size_t get_utf8(const char *s, uint32_t *c)
{
	static const uint32_t least[5] = { 0, 0, 0x80, 0x800, 0x10000 };
	uint8_t first = (uint8_t)*s;
	size_t n;

	if (first < 0x80) {
		*c = first;
		return 1;
	}
	if (first >= 0xc0 && first < 0xe0) {
		n = 2;
		*c = first & 0x1fu;
	} else if (first >= 0xe0 && first < 0xf0) {
		n = 3;
		*c = first & 0x0fu;
	} else if (first >= 0xf0 && first < 0xf8) {
		n = 4;
		*c = first & 0x07u;
	} else {
		return 0;
	}
	for (size_t i = 1; i < n; i++) {
		uint8_t b = (uint8_t)s[i];

		if ((b & 0xc0) != 0x80)
			return 0;
		*c = *c << 6 | (b & 0x3fu);
	}
	if (*c < least[n] || *c > 0x10ffff || (*c >= 0xd800 && *c < 0xe000))
		return 0;
	return n;
}

int vhd_utf16_encode(uint8_t *out, size_t out_size, size_t *out_bytes,
		     const char *in, bool big_endian)
{
	size_t used = 0, n;
	uint32_t c;

	while (*in) {
		n = get_utf8(in, &c);
		if (!n)
			return -EILSEQ;
		in += n;
		if (used + (c < 0x10000 ? 2u : 4u) > out_size)
			return -ENAMETOOLONG;
		if (c < 0x10000) {
			put_unit(out + used, c, big_endian);
			used += 2;
		} else {
			c -= 0x10000;
			put_unit(out + used, 0xd800 + (c >> 10), big_endian);
			put_unit(out + used + 2, 0xdc00 + (c & 0x3ff),
				 big_endian);
			used += 4;
		}
	}
	*out_bytes = used;
	return 0;
}
