/* SPDX-License-Identifier: LGPL-2.1-only */
/* The NBD handshake as proto.md has it, and what a hostile client may send. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "transport/nbd-handshake.h"
#include "common/nbd-proto.h"

#define SIZE	(3ull << 40)
#define FLAGS	(NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH)

static const struct nbd_export export = {
	.bytes = SIZE, .min_block = 512, .max_block = 32u << 20,
	.flags = FLAGS, .status = true,
};

/* A client's side: what it sends, and what it was answered. */
struct talk {
	struct nbd_handshake hs;
	uint8_t in[NBD_OPTION_MAX + 4096];
	size_t len;
	uint8_t out[16384];
	size_t out_len;
	enum nbd_step step;
};

static struct talk *talk_begin(bool no_zeroes)
{
	struct talk *t = calloc(1, sizeof(*t));
	uint8_t answer[NBD_ANSWER_MAX];

	assert_int_equal(nbd_handshake_begin(&t->hs, &export, answer), 18);
	assert_memory_equal(answer, "NBDMAGICIHAVEOPT\0\3", 18);
	put_be32(t->in, no_zeroes ? 3 : 1);
	t->len = 4;
	return t;
}

static void put_option(struct talk *t, uint32_t option, const void *data, uint32_t len)
{
	put_be64(t->in + t->len, NBD_OPTION_MAGIC);
	put_be32(t->in + t->len + 8, option);
	put_be32(t->in + t->len + 12, len);
	if (len)
		memcpy(t->in + t->len + 16, data, len);
	t->len += 16 + len;
}

/* In an allocation of exactly what is there, so that a read past it is seen. */
static enum nbd_step step(struct talk *t, const uint8_t *in, size_t len, size_t *used)
{
	uint8_t *exact = malloc(len ? len : 1), *answer = malloc(NBD_ANSWER_MAX);
	size_t answered;
	enum nbd_step s;

	memcpy(exact, in, len);
	s = nbd_handshake_step(&t->hs, exact, len, used, answer, &answered);
	assert_true(*used <= len);
	assert_true(answered <= NBD_ANSWER_MAX);
	assert_true(t->out_len + answered <= sizeof(t->out));
	memcpy(t->out + t->out_len, answer, answered);
	t->out_len += answered;
	free(exact);
	free(answer);
	return s;
}

static void run(struct talk *t)
{
	size_t at = 0, used;

	do {
		t->step = step(t, t->in + at, t->len - at, &used);
		at += used;
	} while (t->step == NBD_STEP_ANSWER);
}

/* The next reply in out, from *at on. */
static uint32_t reply_type(const struct talk *t, size_t *at, uint32_t option,
			   const uint8_t **data, uint32_t *len)
{
	const uint8_t *p = t->out + *at;

	assert_true(*at + 20 <= t->out_len);
	assert_true(get_be64(p) == NBD_REPLY_MAGIC);
	assert_int_equal(get_be32(p + 8), option);
	*len = get_be32(p + 16);
	assert_true(*at + 20 + *len <= t->out_len);
	*data = p + 20;
	*at += 20 + *len;
	return get_be32(p + 12);
}

static void expect(const struct talk *t, size_t *at, uint32_t option, uint32_t type)
{
	const uint8_t *data;
	uint32_t len;

	assert_int_equal(reply_type(t, at, option, &data, &len), type);
}

static void export_name_answers_size_and_flags(void **state)
{
	(void)state;
	for (int no_zeroes = 0; no_zeroes < 2; no_zeroes++) {
		struct talk *t = talk_begin(no_zeroes);

		put_option(t, NBD_OPT_EXPORT_NAME, "any", 3);
		run(t);
		assert_int_equal(t->step, NBD_STEP_READY);
		assert_int_equal(t->out_len, no_zeroes ? 10 : 134);
		assert_true(get_be64(t->out) == SIZE);
		assert_int_equal(get_be16(t->out + 8), FLAGS);
		free(t);
	}
}

static void go_tells_all_and_is_the_end(void **state)
{
	struct talk *t = talk_begin(true);
	const uint8_t *data;
	uint32_t len;
	size_t at = 0;

	(void)state;
	put_option(t, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	put_option(t, NBD_OPT_SET_META_CONTEXT, "\0\0\0\0\0\0\0\2\0\0\0\3x:y\0\0\0\17base:allocation", 34);
	put_option(t, NBD_OPT_GO, "\0\0\0\1e\0\1\0\3", 9);
	run(t);
	assert_int_equal(t->step, NBD_STEP_READY);
	assert_true(t->hs.structured);
	assert_true(t->hs.allocation);
	expect(t, &at, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
	assert_int_equal(reply_type(t, &at, NBD_OPT_SET_META_CONTEXT, &data, &len), NBD_REP_META_CONTEXT);
	assert_int_equal(len, 19);
	assert_int_equal(get_be32(data), NBD_CONTEXT_ALLOCATION);
	assert_memory_equal(data + 4, "base:allocation", 15);
	expect(t, &at, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
	assert_int_equal(reply_type(t, &at, NBD_OPT_GO, &data, &len), NBD_REP_INFO);
	assert_int_equal(len, 12);
	assert_int_equal(get_be16(data), NBD_INFO_EXPORT);
	assert_true(get_be64(data + 2) == SIZE);
	assert_int_equal(get_be16(data + 10), FLAGS | NBD_FLAG_SEND_DF);
	assert_int_equal(reply_type(t, &at, NBD_OPT_GO, &data, &len), NBD_REP_INFO);
	assert_int_equal(len, 14);
	assert_int_equal(get_be16(data), NBD_INFO_BLOCK_SIZE);
	assert_int_equal(get_be32(data + 2), 512);
	assert_int_equal(get_be32(data + 6), 4096);
	assert_int_equal(get_be32(data + 10), 32 << 20);
	expect(t, &at, NBD_OPT_GO, NBD_REP_ACK);
	assert_int_equal(at, t->out_len);
	free(t);
}

static void other_options_are_answered_and_the_talk_goes_on(void **state)
{
	static const uint8_t tls[1] = { 0 };
	struct talk *t = talk_begin(true);
	const uint8_t *data;
	uint32_t len;
	size_t at = 0;

	(void)state;
	put_option(t, 5, NULL, 0);			/* STARTTLS */
	put_option(t, 99, tls, 1);
	put_option(t, NBD_OPT_LIST, NULL, 0);
	put_option(t, NBD_OPT_LIST, tls, 1);
	put_option(t, NBD_OPT_SET_META_CONTEXT, "\0\0\0\0\0\0\0\0", 8);	/* before STRUCTURED_REPLY */
	put_option(t, NBD_OPT_STRUCTURED_REPLY, tls, 1);
	put_option(t, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	put_option(t, NBD_OPT_LIST_META_CONTEXT, "\0\0\0\0\0\0\0\0", 8);
	put_option(t, NBD_OPT_INFO, "\0\0\0\0\0\0", 6);
	put_option(t, NBD_OPT_ABORT, NULL, 0);
	run(t);
	assert_int_equal(t->step, NBD_STEP_END);
	expect(t, &at, 5, NBD_REP_ERR_UNSUP);
	expect(t, &at, 99, NBD_REP_ERR_UNSUP);
	assert_int_equal(reply_type(t, &at, NBD_OPT_LIST, &data, &len), NBD_REP_SERVER);
	assert_int_equal(len, 4);
	assert_int_equal(get_be32(data), 0);
	expect(t, &at, NBD_OPT_LIST, NBD_REP_ACK);
	expect(t, &at, NBD_OPT_LIST, NBD_REP_ERR_INVALID);
	expect(t, &at, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID);
	expect(t, &at, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID);
	expect(t, &at, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
	expect(t, &at, NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT);
	expect(t, &at, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ACK);
	expect(t, &at, NBD_OPT_INFO, NBD_REP_INFO);
	expect(t, &at, NBD_OPT_INFO, NBD_REP_INFO);
	expect(t, &at, NBD_OPT_INFO, NBD_REP_ACK);
	expect(t, &at, NBD_OPT_ABORT, NBD_REP_ACK);
	assert_int_equal(at, t->out_len);
	free(t);
}

/* Lengths that say more than the option holds: XenServer's tapdisk died of the third. */
static void lengths_that_lie_are_invalid(void **state)
{
	static const struct {
		uint32_t option, len;
		const char *data;
	} bad[] = {
		{ NBD_OPT_GO, 0, "" },
		{ NBD_OPT_GO, 6, "\377\377\377\377\0\0" },
		{ NBD_OPT_SET_META_CONTEXT, 8, "\177\377\377\377\0\0\0\0" },
		{ NBD_OPT_SET_META_CONTEXT, 8, "\0\0\0\0\377\377\377\377" },
		{ NBD_OPT_SET_META_CONTEXT, 12, "\0\0\0\0\0\0\0\1\0\0\0\1" },
		{ NBD_OPT_SET_META_CONTEXT, 9, "\0\0\0\0\0\0\0\0x" },
		{ NBD_OPT_INFO, 8, "\0\0\0\0\0\2\0\3" },
		{ NBD_OPT_INFO, 5, "\0\0\0\0\0" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct talk *t = talk_begin(true);
		size_t at = 0;

		put_option(t, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
		put_option(t, bad[i].option, bad[i].data, bad[i].len);
		run(t);
		assert_int_equal(t->step, NBD_STEP_MORE);
		expect(t, &at, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
		expect(t, &at, bad[i].option, NBD_REP_ERR_INVALID);
		assert_int_equal(at, t->out_len);
		assert_false(t->hs.allocation);
		free(t);
	}
}

static void what_is_no_handshake_ends_it(void **state)
{
	struct talk *t = talk_begin(true);
	size_t used;

	(void)state;
	put_be32(t->in, 4);				/* an unknown flag */
	run(t);
	assert_int_equal(t->step, NBD_STEP_END);
	free(t);

	t = talk_begin(true);
	memcpy(t->in + 4, "GET / HTTP/1.1\r\n", 16);
	t->len = 20;
	run(t);
	assert_int_equal(t->step, NBD_STEP_END);
	free(t);

	t = talk_begin(true);
	put_option(t, NBD_OPT_EXPORT_NAME, NULL, 0);
	put_be32(t->in + t->len - 4, NBD_MAX_NAME + 1);
	t->len += NBD_MAX_NAME + 1;
	run(t);
	assert_int_equal(t->step, NBD_STEP_END);
	free(t);

	t = talk_begin(true);
	put_option(t, NBD_OPT_EXPORT_NAME, NULL, 0);
	put_be32(t->in + t->len - 4, UINT32_MAX);
	run(t);
	assert_int_equal(t->step, NBD_STEP_END);
	free(t);

	/* Every prefix of a whole talk only wants more. */
	t = talk_begin(true);
	put_option(t, NBD_OPT_GO, "\0\0\0\1e\0\1\0\3", 9);
	assert_int_equal(step(t, t->in, 4, &used), NBD_STEP_ANSWER);
	for (size_t len = 0; len < t->len - 4; len++) {
		assert_int_equal(step(t, t->in + 4, len, &used), NBD_STEP_MORE);
		assert_int_equal(used, 0);
	}
	assert_int_equal(step(t, t->in + 4, t->len - 4, &used), NBD_STEP_READY);
	free(t);
}

static void an_option_too_long_is_passed_over(void **state)
{
	struct talk *t = talk_begin(true);
	uint32_t left = 1u << 20;
	size_t at = 0, used;

	(void)state;
	put_option(t, NBD_OPT_GO, NULL, 0);
	put_be32(t->in + t->len - 4, left);
	run(t);
	assert_int_equal(t->step, NBD_STEP_MORE);
	while (left) {
		uint32_t n = left < 60000 ? left : 60000;

		assert_int_equal(step(t, t->in, n, &used), NBD_STEP_ANSWER);
		assert_int_equal(used, n);
		left -= n;
	}
	expect(t, &at, NBD_OPT_GO, NBD_REP_ERR_TOO_BIG);
	t->len = 0;
	put_option(t, NBD_OPT_GO, "\0\0\0\0\0\0", 6);
	run(t);
	assert_int_equal(t->step, NBD_STEP_READY);
	free(t);
}

/* Well-formed options with random insides: never a read or write out of bounds. */
static void random_options_do_no_harm(void **state)
{
	static const uint32_t options[] = { 1, 2, 3, 6, 7, 8, 9, 10, 11 };
	unsigned int seed = (unsigned int)time(NULL);

	(void)state;
	print_message("seed %u\n", seed);
	srandom(seed);
	for (int i = 0; i < 20000; i++) {
		struct talk *t = talk_begin(random() & 1);
		uint8_t data[64];

		put_option(t, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
		for (int k = 0; k < 4; k++) {
			uint32_t len = (uint32_t)random() % sizeof(data);

			for (uint32_t n = 0; n < len; n++)
				data[n] = random() % 4 ? 0 : (uint8_t)random();
			put_option(t, options[random() % 9], data, len);
		}
		run(t);
		free(t);
	}
}

static void requests_and_replies_are_as_on_the_wire(void **state)
{
	static const uint8_t wire[] = {
		0x25, 0x60, 0x95, 0x13, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8,
		0, 0, 1, 0, 0, 0, 2, 0, 0xff, 0xff, 0xfe, 0,
	};
	struct nbd_request req;
	uint8_t p[NBD_HEAD_MAX];

	(void)state;
	assert_true(nbd_get_request(&req, wire));
	assert_int_equal(req.flags, NBD_CMD_FLAG_FUA);
	assert_int_equal(req.type, NBD_CMD_WRITE_ZEROES);
	assert_true(req.cookie == 0x0102030405060708);
	assert_true(req.offset == 0x10000000200);
	assert_true(req.length == 0xfffffe00);
	memcpy(p, wire, 28);
	p[0] = 0x26;
	assert_false(nbd_get_request(&req, p));

	assert_int_equal(nbd_put_simple(p, 0x0102030405060708, -22), 16);
	assert_memory_equal(p, "\x67\x44\x66\x98\0\0\0\x16\1\2\3\4\5\6\7\10", 16);
	assert_int_equal(nbd_put_data(p, false, 1, 0x200, 0x1000), 28);
	assert_memory_equal(p, "\x66\x8e\x33\xef\0\0\0\1\0\0\0\0\0\0\0\1\0\0\x10\x08\0\0\0\0\0\0\2\0", 28);
	assert_int_equal(nbd_put_error(p, true, 1, -28), 26);
	assert_memory_equal(p, "\x66\x8e\x33\xef\0\1\x80\1\0\0\0\0\0\0\0\1\0\0\0\6\0\0\0\x1c\0\0", 26);
	assert_int_equal(nbd_put_error_at(p, true, 1, -5, 7), 34);
	assert_memory_equal(p + 20, "\0\0\0\5\0\0\0\0\0\0\0\0\0\7", 14);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(export_name_answers_size_and_flags),
		cmocka_unit_test(go_tells_all_and_is_the_end),
		cmocka_unit_test(other_options_are_answered_and_the_talk_goes_on),
		cmocka_unit_test(lengths_that_lie_are_invalid),
		cmocka_unit_test(what_is_no_handshake_ends_it),
		cmocka_unit_test(an_option_too_long_is_passed_over),
		cmocka_unit_test(random_options_do_no_harm),
		cmocka_unit_test(requests_and_replies_are_as_on_the_wire),
	};

	return cmocka_run_group_tests_name("nbd-handshake", tests, NULL, NULL);
}
