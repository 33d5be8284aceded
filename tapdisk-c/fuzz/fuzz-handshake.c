/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The input is what an NBD client sends for its handshake, after a byte of what the
 * export is like and one of how it comes in pieces. The answer is the same in
 * whatever pieces it comes.
 */
#include <stdlib.h>
#include <string.h>

#include "common/nbd-proto.h"
#include "fuzz/fuzz.h"
#include "transport/nbd-handshake.h"

#define PREFIX		2u
#define MAX_ANSWERS	4096u

struct talk {
	struct nbd_handshake hs;
	enum nbd_step step;
	size_t used;
	size_t len;
	uint8_t answers[MAX_ANSWERS];
};

/* in: all that has come, of which no byte but the first len may be looked at. */
static void take(struct talk *t, const uint8_t *in, size_t len)
{
	uint8_t answer[NBD_ANSWER_MAX];
	size_t used, n;
	uint8_t *copy;

	while (t->step == NBD_STEP_ANSWER || t->step == NBD_STEP_MORE) {
		/* Of its own size, so that a look past the end is noticed. */
		copy = malloc(len - t->used ? len - t->used : 1);
		fuzz_assert(copy);
		memcpy(copy, in + t->used, len - t->used);
		used = n = 0;
		t->step = nbd_handshake_step(&t->hs, copy, len - t->used, &used,
					     answer, &n);
		free(copy);
		fuzz_assert(used <= len - t->used && n <= sizeof(answer));
		if (t->step == NBD_STEP_MORE) {
			fuzz_assert(!n);
			/* It holds a step always, its caller believes. */
			fuzz_assert(len - t->used < NBD_OPTION_MAX + 16);
			t->used += used;
			return;
		}
		fuzz_assert(used || t->step == NBD_STEP_END || n);
		t->used += used;
		if (n > MAX_ANSWERS - t->len)
			n = MAX_ANSWERS - t->len;
		memcpy(t->answers + t->len, answer, n);
		t->len += n;
	}
}

static void begin(struct talk *t, uint8_t like)
{
	const struct nbd_export export = {
		.bytes = 1u << 20, .min_block = like & 1 ? 512 : 4096,
		.max_block = 32u << 20,
		.flags = like & 2 ? NBD_FLAG_HAS_FLAGS :
				    NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY,
		.status = like & 4,
	};

	t->used = 0;
	t->step = NBD_STEP_MORE;
	t->len = nbd_handshake_begin(&t->hs, &export, t->answers);
	fuzz_assert(t->len && t->len <= NBD_ANSWER_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct talk whole, parts;
	size_t piece, len;

	if (size < PREFIX)
		return 0;
	begin(&whole, data[0]);
	begin(&parts, data[0]);
	piece = data[1] + 1u;
	data += PREFIX;
	size -= PREFIX;
	take(&whole, data, size);
	for (len = piece < size ? piece : size; ; len += piece) {
		if (len > size)
			len = size;
		take(&parts, data, len);
		if (len == size || (parts.step != NBD_STEP_MORE))
			break;
	}
	fuzz_assert(whole.step == parts.step && whole.used == parts.used);
	fuzz_assert(whole.len == parts.len &&
		    !memcmp(whole.answers, parts.answers, whole.len));
	fuzz_assert(whole.hs.structured == parts.hs.structured &&
		    whole.hs.allocation == parts.hs.allocation);
	return 0;
}
