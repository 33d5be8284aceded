/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Runs a fuzz target without libFuzzer: each input of the directories once, then
 * inputs made from them by chance.
 *
 *   fuzz-TARGET [-n EXECUTIONS] [-s SEED] [-o FILE] DIRECTORY...
 *
 * What ends the program is left in FILE (TARGET.input beside the program);
 * fuzz-TARGET FILE runs it again.
 */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "fuzz/fuzz.h"

#define INPUT_BYTES	(1u << 20)
#define MUTANT_BYTES	8192u		/* larger ones are not changed */
#define MAX_CHANGES	6u

struct input {
	uint8_t *data;
	size_t len;
};

static struct input *inputs;
static size_t nr_inputs;
static uint64_t rng;

/* What is being run, for the report of its death. */
static const uint8_t *running;
static size_t running_len;
static char report[PATH_MAX + 16];

/* Of the sanitizers, where the program is built with them. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

/* Whatever state the program is in: system calls only, past a target's files. */
static void save(void)
{
	static const char text[] = "\nthe input is left in ";
	long fd;

	if (!running)
		return;
	fd = syscall(SYS_openat, AT_FDCWD, report, O_WRONLY | O_CREAT | O_TRUNC,
		     0600);
	if (fd < 0 || syscall(SYS_write, fd, running, running_len) < 0)
		return;
	if (syscall(SYS_write, 2, text, sizeof(text) - 1) < 0 ||
	    syscall(SYS_write, 2, report, strlen(report)) < 0 ||
	    syscall(SYS_write, 2, "\n", 1ul) < 0)
		return;
}

static void died(int sig)
{
	save();
	signal(sig, SIG_DFL);
	raise(sig);
}

static void hung(int sig)
{
	(void)sig;
	save();
	_exit(1);
}

static void run(const uint8_t *data, size_t len)
{
	/* Of its own size, so that a read past its end is noticed. */
	uint8_t *copy = malloc(len ? len : 1);

	if (!copy)
		exit(1);
	memcpy(copy, data, len);
	running = copy;
	running_len = len;
	alarm(30);
	LLVMFuzzerTestOneInput(copy, len);
	running = NULL;
	free(copy);
}

static int add_file(const char *path)
{
	static uint8_t buf[INPUT_BYTES];
	FILE *file = fopen(path, "re");
	struct input *in;

	if (!file) {
		perror(path);
		return -1;
	}
	inputs = realloc(inputs, (nr_inputs + 1) * sizeof(*inputs));
	if (!inputs)
		exit(1);
	in = &inputs[nr_inputs++];
	in->len = fread(buf, 1, sizeof(buf), file);
	in->data = malloc(in->len + 1);
	if (!in->data)
		exit(1);
	memcpy(in->data, buf, in->len);
	fclose(file);
	return 0;
}

static int no_dots(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

/* In the order of the names, so that a seed means the same everywhere. */
static int add(const char *path)
{
	char name[PATH_MAX];
	struct dirent **entry;
	int n, rc = 0;

	n = scandir(path, &entry, no_dots, alphasort);
	if (n < 0)
		return add_file(path);
	for (int i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "%s/%s", path, entry[i]->d_name);
		if (!rc)
			rc = add_file(name);
		free(entry[i]);
	}
	free(entry);
	return rc;
}

static uint64_t random_u64(void)
{
	rng ^= rng >> 12;
	rng ^= rng << 25;
	rng ^= rng >> 27;
	return rng * 2685821657736338717u;
}

static size_t below(size_t n)
{
	return n ? (size_t)(random_u64() >> 20) % n : 0;
}

/* One change to the len bytes of buf, which has room for MUTANT_BYTES. */
static size_t change(uint8_t *buf, size_t len)
{
	static const uint32_t numbers[] = {
		0, 1, 2, 8, 511, 512, 513, 4096, 0x7fffffff, 0x80000000,
		0xfffffffe, 0xffffffff,
	};
	const struct input *other;
	size_t at = below(len), from, n;
	uint32_t number;

	switch (below(len ? 8 : 1)) {
	case 0:
		/* Longer, by what is there or by nothing. */
		n = below(64);
		if (n > MUTANT_BYTES - len)
			n = MUTANT_BYTES - len;
		memset(buf + len, (int)below(256), n);
		return len + n;
	case 1:
		buf[at] ^= (uint8_t)(1u << below(8));
		break;
	case 2:
		buf[at] = (uint8_t)below(256);
		break;
	case 3:
		number = numbers[below(sizeof(numbers) / sizeof(numbers[0]))];
		for (n = 0; n < 4 && at + n < len; n++)
			buf[at + n] = (uint8_t)(number >> (24 - 8 * n));
		break;
	case 4:
		buf[at] = (uint8_t)(buf[at] + (below(2) ? 1 : -1));
		break;
	case 5:
		return len > 1 ? len - 1 - below(len / 8) : len;
	case 6:
		from = below(len);
		n = below(len - (from > at ? from : at));
		memmove(buf + at, buf + from, n);
		break;
	case 7:
		other = &inputs[below(nr_inputs)];
		n = below(other->len < len - at ? other->len : len - at);
		memcpy(buf + at, other->data + below(other->len - n), n);
		break;
	}
	return len;
}

static void run_changed(void)
{
	const struct input *in = &inputs[below(nr_inputs)];
	static uint8_t buf[MUTANT_BYTES];
	size_t len = in->len;

	if (len > MUTANT_BYTES)
		return;
	memcpy(buf, in->data, len);
	for (size_t n = 1 + below(MAX_CHANGES); n; n--)
		len = change(buf, len);
	run(buf, len);
}

static int usage(const char *name)
{
	fprintf(stderr, "usage: %s [-n EXECUTIONS] [-s SEED] [-o FILE] "
		"DIRECTORY|FILE...\n", name);
	return 2;
}

int main(int argc, char **argv)
{
	/* The sanitizers leave the first ones to us. */
	static const int signals[] = { SIGABRT, SIGILL, SIGTRAP, SIGSEGV,
				       SIGBUS, SIGFPE };
	size_t nr_signals = sizeof(signals) / sizeof(signals[0]);
	unsigned long changed = 0;
	uint64_t seed = (uint64_t)time(NULL);
	int opt;

	snprintf(report, sizeof(report), "%s.input", argv[0]);
	while ((opt = getopt(argc, argv, "n:s:o:")) >= 0) {
		switch (opt) {
		case 'n':
			changed = strtoul(optarg, NULL, 10);
			break;
		case 's':
			seed = strtoull(optarg, NULL, 10);
			break;
		case 'o':
			snprintf(report, sizeof(report), "%s", optarg);
			break;
		default:
			return usage(argv[0]);
		}
	}
	if (optind == argc)
		return usage(argv[0]);
	for (int i = optind; i < argc; i++)
		if (add(argv[i]))
			return 1;
	if (!nr_inputs) {
		fprintf(stderr, "%s: no inputs\n", argv[optind]);
		return 1;
	}
	printf("seed %llu\n", (unsigned long long)seed);
	fflush(stdout);
	if (__sanitizer_set_death_callback) {
		__sanitizer_set_death_callback(save);
		nr_signals = 3;
	}
	for (size_t i = 0; i < nr_signals; i++)
		signal(signals[i], died);
	signal(SIGALRM, hung);
	for (size_t i = 0; i < nr_inputs; i++)
		run(inputs[i].data, inputs[i].len);
	rng = seed * 0x9e3779b97f4a7c15u | 1;
	for (unsigned long i = 0; i < changed; i++)
		run_changed();
	alarm(0);
	for (size_t i = 0; i < nr_inputs; i++)
		free(inputs[i].data);
	free(inputs);
	printf("[  PASSED  ] %zu inputs, %lu changed ones\n", nr_inputs, changed);
	return 0;
}
