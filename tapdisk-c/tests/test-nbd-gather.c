/* SPDX-License-Identifier: LGPL-2.1-only */
/* Gathering against a client and a server in simulated time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "transport/nbd-gather.h"

#define US	1000u
#define SECOND	1000000000ull

struct result {
	double requests;		/* answered in the simulated second */
	double rounds;
};

/*
 * The client takes client_ns for each request and has at most depth under way;
 * the server takes server_ns for a round and 1 us for each request in it.
 */
static struct result simulate(unsigned int depth, unsigned int client_ns, unsigned int server_ns, bool gathers)
{
	uint64_t now = SECOND, end = 2 * SECOND, next = now;
	struct nbd_gather g = { .epoch_ns = 0 };
	unsigned int under_way = 0, here = 0;
	struct result r = { 0, 0 };
	uint64_t gather = 0;

	while (now < end) {
		uint64_t until = now + gather;
		unsigned int n;

		/* What the client sends while the server sleeps: at least one. */
		while ((next <= until || !here) && under_way < depth) {
			if (next > now && !gather)
				now = next;
			until = until > now ? until : now;
			here++;
			under_way++;
			next += client_ns;
			if (!gather && next > now)
				break;
		}
		now = until > next - client_ns || gather ? until : next - client_ns;
		n = here;
		here = 0;
		if (n)
			nbd_gather_count(&g, now, n, 0);
		now += server_ns + n * US;
		/* Meanwhile it goes on sending. */
		while (next <= now && under_way < depth) {
			here++;
			under_way++;
			next += client_ns;
		}
		under_way -= n;
		/* A client that was blocked begins again when it is answered. */
		if (next < now)
			next = now + client_ns;
		r.requests += n;
		r.rounds++;
		gather = gathers ? nbd_gather_ns(&g, 0) : 0;
	}
	return r;
}

static void a_client_of_depth_1_loses_a_thousandth(void **state)
{
	(void)state;
	for (unsigned int c = 2; c < 60; c += 5) {
		struct nbd_gather g = { .epoch_ns = 0 };
		uint64_t slept = 0;

		for (uint64_t now = SECOND; now < 2 * SECOND; now += c * US) {
			nbd_gather_count(&g, now, 1, 0);
			slept += nbd_gather_ns(&g, 0);
		}
		assert_true(slept < SECOND / 500);
	}
}

static void shallow_clients_lose_little(void **state)
{
	(void)state;
	for (unsigned int depth = 2; depth <= 8; depth *= 2) {
		for (unsigned int c = 5; c <= 40; c += 5) {
			struct result without = simulate(depth, c * US, 5 * US, false);
			struct result with = simulate(depth, c * US, 5 * US, true);

			if (with.requests < 0.9 * without.requests)
				fail_msg("depth %u client %u us: %.0f requests, %.0f without", depth, c,
					 with.requests, without.requests);
		}
	}
}

static void a_deep_client_loses_nothing_and_wakes_the_server_less(void **state)
{
	(void)state;
	for (unsigned int c = 10; c <= 40; c += 10) {
		struct result without = simulate(32, c * US, 5 * US, false);
		struct result with = simulate(32, c * US, 5 * US, true);

		print_message("client %u us: %.1f requests a round, %.1f without\n", c,
			      with.requests / with.rounds, without.requests / without.rounds);
		assert_true(with.requests >= 0.97 * without.requests);
		assert_true(with.requests / with.rounds >= 2.4);
	}
}

/* One that was deep and is so no more is found out within half a second. */
static void a_client_that_becomes_shallow_is_found_out(void **state)
{
	struct nbd_gather g = { .epoch_ns = 0 };
	uint64_t now = SECOND;

	(void)state;
	for (; now < 2 * SECOND; now += 200 * US) {
		nbd_gather_count(&g, now, 10, 22);
		nbd_gather_ns(&g, 0);
	}
	assert_true(nbd_gather_ns(&g, 0) > 0);
	for (; now < 2 * SECOND + SECOND / 2; now += 20 * US)
		nbd_gather_count(&g, now, 1, 0);
	g.probe = false;
	assert_true(nbd_gather_ns(&g, 0) == 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_client_of_depth_1_loses_a_thousandth),
		cmocka_unit_test(shallow_clients_lose_little),
		cmocka_unit_test(a_deep_client_loses_nothing_and_wakes_the_server_less),
		cmocka_unit_test(a_client_that_becomes_shallow_is_found_out),
	};

	return cmocka_run_group_tests_name("nbd-gather", tests, NULL, NULL);
}
