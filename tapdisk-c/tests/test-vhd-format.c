/* SPDX-License-Identifier: LGPL-2.1-only */
/* Footers and headers as bytes, and what the decoders refuse. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "vhd/vhd-internal.h"

static struct vhd_footer a_footer(void)
{
	struct vhd_footer f = {
		.features = 2, .version = VHD_VERSION_1_0, .data_offset = 512,
		.timestamp = 0x01020304, .creator = "tap",
		.creator_version = VHD_TAP_VERSION(1, 3), .creator_os = 7,
		.original_size = 5ull << 40, .current_size = 6ull << 40,
		.geometry = 0x11223344, .type = VHD_DIFF, .saved = 1,
		.hidden = 1,
	};

	memset(f.uuid, 0xab, sizeof(f.uuid));
	return f;
}

static struct vhd_header a_header(void)
{
	struct vhd_header h = {
		.table_offset = 1536, .version = VHD_VERSION_1_0,
		.max_bat_size = 77, .block_size = VHD_DEFAULT_BLOCK,
		.parent_timestamp = 0x0a0b0c0d,
		.parent_name = "gr\xc3\xb6\xc3\x9f" "e \xf0\x9d\x84\x9e.vhd",
	};

	memset(h.parent_uuid, 0xcd, sizeof(h.parent_uuid));
	for (unsigned int i = 0; i < VHD_NR_LOCATORS; i++)
		h.locator[i] = (struct vhd_locator){
			VHD_LOC_W2RU + i, 512 * i, 100 + i, 1ull << (33 + i) };
	return h;
}

static void footer_comes_back_as_it_went(void **state)
{
	struct vhd_footer f = a_footer(), back;
	uint8_t raw[VHD_FOOTER_BYTES];

	(void)state;
	vhd_footer_encode(raw, &f);
	assert_int_equal(vhd_footer_decode(&back, raw, "x", "y", NULL), 0);
	assert_memory_equal(&f, &back, sizeof(f));
}

static void footer_has_the_fields_where_the_specification_says(void **state)
{
	struct vhd_footer f = a_footer();
	uint8_t raw[VHD_FOOTER_BYTES];

	(void)state;
	vhd_footer_encode(raw, &f);
	assert_memory_equal(raw, "conectix\0\0\0\2\0\1\0\0", 16);
	assert_memory_equal(raw + 24, "\1\2\3\4tap\0\0\1\0\3", 12);
	assert_int_equal(get_be64(raw + 40), f.original_size);
	assert_int_equal(get_be64(raw + 48), f.current_size);
	assert_memory_equal(raw + 56, "\x11\x22\x33\x44\0\0\0\4", 8);
	assert_int_equal(raw[68], 0xab);
	assert_int_equal(raw[84] + raw[85], 2);
}

static void any_bit_of_a_footer_that_changes_is_noticed(void **state)
{
	struct vhd_footer f = a_footer(), back;
	uint8_t raw[VHD_FOOTER_BYTES];

	(void)state;
	f.hidden = 0;	/* its checksum has an exception, tested below */
	vhd_footer_encode(raw, &f);
	for (unsigned int i = 0; i < VHD_FOOTER_BYTES * 8; i++) {
		raw[i / 8] ^= (uint8_t)(1u << i % 8);
		assert_int_equal(vhd_footer_decode(&back, raw, "x", "y", NULL),
				 -EUCLEAN);
		raw[i / 8] ^= (uint8_t)(1u << i % 8);
	}
}

static void hidden_without_checksum_is_for_old_xenserver_only(void **state)
{
	static const struct { uint32_t version; bool accepted; } cases[] = {
		{ VHD_TAP_VERSION(1, 1), true }, { VHD_TAP_VERSION(1, 2), false },
		{ VHD_TAP_VERSION(1, 3), false },
	};
	struct vhd_footer f = a_footer(), back;
	uint8_t raw[VHD_FOOTER_BYTES];

	(void)state;
	f.hidden = 0;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		f.creator_version = cases[i].version;
		vhd_footer_encode(raw, &f);
		raw[85] = 1;
		assert_int_equal(!vhd_footer_decode(&back, raw, "x", "y", NULL),
				 cases[i].accepted);
	}
}

static void footer_faults_are_named(void **state)
{
	static const struct {
		const char *word;
		int rc;
		size_t offset, len;
		uint64_t value;
	} faults[] = {
		{ "version", -ENOTSUP, 12, 4, 0x00020000 },
		{ "disk type", -ENOTSUP, 60, 4, 5 },
		{ "current size", -EUCLEAN, 48, 8, 0 },
		{ "current size", -EUCLEAN, 48, 8, 513 },
		{ "creator version", -ENOTSUP, 32, 4, 1 },
	};
	struct vhd_footer f = a_footer(), back;
	uint8_t raw[VHD_FOOTER_BYTES];
	struct error err;

	(void)state;
	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
		vhd_footer_encode(raw, &f);
		if (faults[i].len == 8)
			put_be64(raw + faults[i].offset, faults[i].value);
		else
			put_be32(raw + faults[i].offset,
				 (uint32_t)faults[i].value);
		put_be32(raw + 64, vhd_checksum(raw, VHD_FOOTER_BYTES, 64));
		assert_int_equal(vhd_footer_decode(&back, raw, "/a", "footer",
						   &err), faults[i].rc);
		assert_non_null(strstr(err.text, faults[i].word));
		assert_non_null(strstr(err.text, "/a: footer: "));
	}
}

static void header_comes_back_as_it_went(void **state)
{
	struct vhd_header h = a_header(), back;
	uint8_t raw[VHD_HEADER_BYTES];

	(void)state;
	vhd_header_encode(raw, &h);
	assert_int_equal(vhd_header_decode(&back, raw, "x", NULL), 0);
	assert_memory_equal(&h, &back, sizeof(h));
	assert_memory_equal(raw + 64, "\0g\0r\0\xf6\0\xdf", 8);
}

static void any_bit_of_a_header_that_changes_is_noticed(void **state)
{
	struct vhd_header h = a_header(), back;
	uint8_t raw[VHD_HEADER_BYTES];

	(void)state;
	vhd_header_encode(raw, &h);
	for (unsigned int i = 0; i < VHD_HEADER_BYTES * 8; i++) {
		raw[i / 8] ^= (uint8_t)(1u << i % 8);
		assert_int_equal(vhd_header_decode(&back, raw, "x", NULL),
				 -EUCLEAN);
		raw[i / 8] ^= (uint8_t)(1u << i % 8);
	}
}

static void header_faults_are_named(void **state)
{
	struct vhd_header h, back;
	uint8_t raw[VHD_HEADER_BYTES];
	struct error err;

	(void)state;
	for (uint64_t size = 1; size <= UINT32_MAX; size <<= 1) {
		bool good = size >= 4096 && size <= 256u << 20;

		h = a_header();
		h.block_size = (uint32_t)size;
		vhd_header_encode(raw, &h);
		assert_int_equal(!vhd_header_decode(&back, raw, "/a", &err),
				 good);
		h.block_size = (uint32_t)size | 3;
		vhd_header_encode(raw, &h);
		assert_int_equal(vhd_header_decode(&back, raw, "/a", &err),
				 -EUCLEAN);
		assert_non_null(strstr(err.text, "/a: header: block size"));
	}
	h = a_header();
	h.table_offset = 1537;
	vhd_header_encode(raw, &h);
	assert_int_equal(vhd_header_decode(&back, raw, "/a", &err), -EUCLEAN);
	assert_non_null(strstr(err.text, "table offset"));
	h = a_header();
	h.max_bat_size = VHD_MAX_BAT + 1;
	vhd_header_encode(raw, &h);
	assert_int_equal(vhd_header_decode(&back, raw, "/a", &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "max BAT size"));
}

static void geometry_is_the_specifications(void **state)
{
	/* The first three by its algorithm by hand, the last saturates. */
	static const struct { uint64_t size; uint32_t chs; } cases[] = {
		{ 20ull << 20, 602u << 16 | 4 << 8 | 17 },
		{ 1ull << 30, 2080u << 16 | 16 << 8 | 63 },
		{ 100ull << 30, 51400u << 16 | 16 << 8 | 255 },
		{ 2040ull << 30, 65535u << 16 | 16 << 8 | 255 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_int_equal(vhd_geometry(cases[i].size), cases[i].chs);
}

static void timestamps_are_clamped(void **state)
{
	(void)state;
	assert_int_equal(vhd_timestamp(946684800), 0);
	assert_int_equal(vhd_timestamp(946684801), 1);
	assert_int_equal(vhd_timestamp(0), 0);
	assert_int_equal(vhd_timestamp(1ll << 40), UINT32_MAX);
}

/* Metadata may lie anywhere in the file, wherever a size_t or a long may have 32 bits. */
static void offsets_are_64_bit(void **state)
{
	const uint64_t at = (5ull << 30) + VHD_SECTOR;
	uint8_t data[VHD_SECTOR], back[VHD_SECTOR];
	int fd = memfd_create("format", MFD_CLOEXEC);

	(void)state;
	memset(data, 0x5a, sizeof(data));
	assert_int_equal(vhd_write_at(fd, data, sizeof(data), at), 0);
	assert_int_equal(pread(fd, back, sizeof(back), (off_t)at), sizeof(back));
	assert_memory_equal(back, data, sizeof(data));
	memset(back, 0, sizeof(back));
	assert_int_equal(vhd_read_at(fd, back, sizeof(back), at), 0);
	assert_memory_equal(back, data, sizeof(data));
	assert_int_equal(vhd_read_at(fd, back, sizeof(back), at - (4ull << 30)), 0);
	assert_int_equal(back[0] | back[VHD_SECTOR - 1], 0);
	close(fd);
}

static void bat_is_big_endian(void **state)
{
	const uint32_t bat[] = { 0, 1, 0x01020304, VHD_BAT_UNUSED };
	uint32_t back[4];
	uint8_t raw[16];

	(void)state;
	vhd_bat_encode(raw, bat, 4);
	assert_memory_equal(raw, "\0\0\0\0\0\0\0\1\1\2\3\4\xff\xff\xff\xff", 16);
	vhd_bat_decode(back, raw, 4);
	assert_memory_equal(bat, back, sizeof(bat));
}

static void new_blocks_have_their_data_at_4_kib(void **state)
{
	struct vhd_image image = { .bitmap_sectors = 1, .spb = 4096 };

	(void)state;
	image.header.block_size = VHD_DEFAULT_BLOCK;
	for (uint64_t end = 512; end < 20000; end += 512) {
		uint64_t at = vhd_alloc_offset(&image, end);

		assert_true(at >= end && at - end < 4096);
		assert_int_equal((at + 512) % 4096, 0);
	}
	/* The last sector that 32 bits address, but for the one that means unused. */
	assert_int_equal(vhd_alloc_offset(&image, UINT32_MAX * 512ull + 1),
			 UINT64_MAX);
	assert_int_equal(vhd_alloc_offset(&image, UINT64_MAX - 100),
			 UINT64_MAX);
	image.is_blk = true;
	image.file_size = 4096 + VHD_DEFAULT_BLOCK + 512;
	assert_int_equal(vhd_alloc_offset(&image, 2048), 3584);
	assert_int_equal(vhd_alloc_offset(&image, 4096), UINT64_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(footer_comes_back_as_it_went),
		cmocka_unit_test(footer_has_the_fields_where_the_specification_says),
		cmocka_unit_test(any_bit_of_a_footer_that_changes_is_noticed),
		cmocka_unit_test(hidden_without_checksum_is_for_old_xenserver_only),
		cmocka_unit_test(footer_faults_are_named),
		cmocka_unit_test(header_comes_back_as_it_went),
		cmocka_unit_test(any_bit_of_a_header_that_changes_is_noticed),
		cmocka_unit_test(header_faults_are_named),
		cmocka_unit_test(geometry_is_the_specifications),
		cmocka_unit_test(timestamps_are_clamped),
		cmocka_unit_test(offsets_are_64_bit),
		cmocka_unit_test(bat_is_big_endian),
		cmocka_unit_test(new_blocks_have_their_data_at_4_kib),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
