// SPDX-License-Identifier: GPL-2.0-only
/*
 * The input is what a server says: a byte that chooses, and the structs.
 *
 *   0 setup | 1 max_io_bytes, params | 2 max_io_bytes, params, params |
 *   3 edges u8, sectors, extent | 4 entries u16, features u8, held tags u8, then completions |
 *   5 head, tail, entries
 *
 * What is accepted is all that the driver's other files rely on; a request ends once.
 */
#include <string.h>

#include "kernel.h"
#include "proto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PAGE	4096u

/* Takes n bytes, with zeros for those that are missing. */
static void take(const uint8_t **data, size_t *size, void *to, size_t n)
{
	size_t have = n < *size ? n : *size;

	memset(to, 0, n);
	memcpy(to, *data, have);
	*data += have;
	*size -= have;
}

static bool two_to_some(u64 v)
{
	return __builtin_popcountll(v) == 1;
}

static void setup(const uint8_t *data, size_t size)
{
	struct blktap_setup s;
	struct blktap_layout l;
	u64 granted, end;

	take(&data, &size, &s, sizeof(s));
	granted = blktap_grant(s.features);
	fuzz_assert(!(granted & ~s.features));
	fuzz_assert(!granted || granted & BLKTAP_F_COPY);
	if (blktap_check_setup(&s, PAGE))
		return;
	fuzz_assert(s.nr_queues == 1);
	fuzz_assert(two_to_some(s.entries) && s.entries <= BLKTAP_MAX_ENTRIES);
	fuzz_assert(s.max_io_bytes && s.max_io_bytes <= BLKTAP_MAX_IO_BYTES &&
		    s.max_io_bytes % BLKTAP_IO_UNIT == 0);
	/* the data of the last tag is in the buffer */
	fuzz_assert((u64)s.entries * s.max_io_bytes <= s.buf_len);
	fuzz_assert(!__builtin_add_overflow(s.buf_addr, s.buf_len, &end));
	fuzz_assert(s.buf_addr && s.buf_addr % PAGE == 0);
	blktap_ring_layout(s.entries, &l);
	fuzz_assert(l.sq_off >= sizeof(struct blktap_ring) && l.sq_off % 8 == 0);
	fuzz_assert(l.cq_off >= l.sq_off + s.entries * sizeof(struct blktap_sqe) &&
		    l.cq_off % 8 == 0);
	fuzz_assert(l.bytes == l.cq_off + s.entries * sizeof(struct blktap_cqe));
	fuzz_assert(l.bytes <= 64u * PAGE);
}

static bool params(const struct blktap_device_params *p, u32 max_io_bytes)
{
	if (blktap_check_params(p, max_io_bytes))
		return false;
	fuzz_assert(two_to_some(p->logical_block_size) &&
		    p->logical_block_size >= 512 && p->logical_block_size <= PAGE);
	fuzz_assert(two_to_some(p->physical_block_size) &&
		    p->physical_block_size >= p->logical_block_size);
	/* the block layer counts bytes in a loff_t */
	fuzz_assert(p->sectors && p->sectors <= INT64_MAX >> SECTOR_SHIFT);
	fuzz_assert((p->sectors << SECTOR_SHIFT) % p->logical_block_size == 0);
	fuzz_assert(max_io_bytes >= p->logical_block_size);
	fuzz_assert(!(p->flags & BLKTAP_DEV_FUA) || p->flags & BLKTAP_DEV_FLUSH);
	fuzz_assert(p->flags < 1u << 5);
	if (p->flags & BLKTAP_DEV_DISCARD)
		fuzz_assert(two_to_some(p->discard_granularity) && p->discard_max &&
			    (u64)p->discard_max << SECTOR_SHIFT >= p->discard_granularity);
	return true;
}

static void change(const uint8_t *data, size_t size)
{
	struct blktap_device_params old, new;
	u32 max_io_bytes;

	take(&data, &size, &max_io_bytes, sizeof(max_io_bytes));
	take(&data, &size, &old, sizeof(old));
	take(&data, &size, &new, sizeof(new));
	if (!params(&old, max_io_bytes) || !params(&new, max_io_bytes) ||
	    blktap_check_change(&old, &new, false))
		return;
	fuzz_assert(!blktap_check_change(&old, &new, true));
	fuzz_assert(new.sectors >= old.sectors);
	fuzz_assert(new.logical_block_size == old.logical_block_size &&
		    new.physical_block_size == old.physical_block_size);
	fuzz_assert(!(old.flags & ~new.flags));
	fuzz_assert(!((old.flags ^ new.flags) & BLKTAP_DEV_RDONLY));
}

static void extent(const uint8_t *data, size_t size)
{
	struct blktap_extent e;
	u64 sectors, end;
	u8 edges;

	take(&data, &size, &edges, sizeof(edges));
	take(&data, &size, &sectors, sizeof(sectors));
	take(&data, &size, &e, sizeof(e));
	/* where things end, and next to it */
	if (edges & 1)
		e.sector = sectors - e.nr_sectors + (edges >> 5) - 4u;
	if (edges & 2)
		e.offset = (1ull << 63) - ((u64)e.nr_sectors << SECTOR_SHIFT) +
			   ((u64)(edges >> 5) << SECTOR_SHIFT) - (4u << SECTOR_SHIFT);
	if (blktap_check_extent(&e, sectors))
		return;
	fuzz_assert(e.nr_sectors && e.file < BLKTAP_MAX_FILES);
	fuzz_assert(!__builtin_add_overflow(e.sector, e.nr_sectors, &end) && end <= sectors);
	fuzz_assert(!__builtin_add_overflow(e.offset, (u64)e.nr_sectors << SECTOR_SHIFT, &end) &&
		    end <= INT64_MAX && e.offset % 512 == 0);
	fuzz_assert(e.flags <= BLKTAP_EXTENT_WRITE);
}

/* As enter.c does it: what is accepted is no longer held. */
static void completions(const uint8_t *data, size_t size)
{
	u64 held[BLKTAP_MAX_ENTRIES] = { 0 };
	enum blktap_refusal why;
	struct blktap_cqe cqe;
	u16 entries;
	u8 features, n;

	take(&data, &size, &entries, sizeof(entries));
	take(&data, &size, &features, 1);
	take(&data, &size, &n, 1);
	entries = (u16)(1u << entries % 9);
	for (u32 i = 0; i < n && i < entries; i++)
		held[i] = i + 1;
	while (size >= sizeof(cqe)) {
		take(&data, &size, &cqe, sizeof(cqe));
		why = blktap_check_cqe(&cqe, held, entries, features);
		fuzz_assert(strcmp(blktap_refusal_text(why), "unknown"));
		if (why != BLKTAP_CQE_GOOD)
			continue;
		fuzz_assert(cqe.tag < entries && held[cqe.tag] && held[cqe.tag] == cqe.id);
		fuzz_assert(cqe.result <= 0 && cqe.result >= -4095);
		fuzz_assert(cqe.code <= BLKTAP_CQE_REQUEUE);
		fuzz_assert(cqe.code == BLKTAP_CQE_DONE || !cqe.result);
		if (cqe.code == BLKTAP_CQE_REMAP)
			fuzz_assert(features & BLKTAP_F_REMAP && cqe.file < BLKTAP_MAX_FILES &&
				    cqe.offset % 512 == 0 &&
				    cqe.offset <= INT64_MAX - BLKTAP_MAX_IO_BYTES);
		else
			fuzz_assert(!cqe.file && !cqe.offset);
		held[cqe.tag] = 0;
		fuzz_assert(blktap_check_cqe(&cqe, held, entries, features) ==
			    BLKTAP_CQE_NOT_HELD);
	}
}

static void used(const uint8_t *data, size_t size)
{
	u32 head, tail, entries;
	int n;

	take(&data, &size, &head, sizeof(head));
	take(&data, &size, &tail, sizeof(tail));
	take(&data, &size, &entries, sizeof(entries));
	entries = 1u << entries % 9;
	n = blktap_ring_used(head, tail, entries);
	fuzz_assert(n >= 0 ? (u32)n <= entries && head + (u32)n == tail :
			     n == -EPROTO && tail - head > entries);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct blktap_device_params p;
	u32 max_io_bytes;

	if (!size)
		return 0;
	size--;
	switch (*data++ % 6) {
	case 0:
		setup(data, size);
		break;
	case 1:
		take(&data, &size, &max_io_bytes, sizeof(max_io_bytes));
		take(&data, &size, &p, sizeof(p));
		params(&p, max_io_bytes);
		break;
	case 2:
		change(data, size);
		break;
	case 3:
		extent(data, size);
		break;
	case 4:
		completions(data, size);
		break;
	default:
		used(data, size);
	}
	return 0;
}
