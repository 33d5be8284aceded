// SPDX-License-Identifier: LGPL-2.1-only
/* vhd-util: make, look at, change and check VHD images. */
#include "tools/vhd-util.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"

#define LOOK_TRIES 5
#define RECENT_SECONDS 2
#define MAX_VERB 16
#define MAX_TYPOS 2

static const struct vhd_util_command *const commands[] = {
	&vhd_util_create, &vhd_util_snapshot, &vhd_util_query,
	&vhd_util_read, &vhd_util_check, &vhd_util_repair,
	&vhd_util_coalesce, &vhd_util_copy, &vhd_util_convert,
	&vhd_util_resize, &vhd_util_set, &vhd_util_modify, &vhd_util_fill,
	&vhd_util_revert, &vhd_util_key, &vhd_util_scan, &vhd_util_map,
	&vhd_util_compare,
};

#define NR_COMMANDS (sizeof(commands) / sizeof(commands[0]))

/* What the command was called with, for the message. */
static int nr_args;
static char **args;

static bool is_given(char letter)
{
	for (int i = 1; i < nr_args && args[i]; i++)
		if (args[i][0] == '-' && strchr(args[i] + 1, letter))
			return true;
	return false;
}

/* An option that the usage has outside of brackets, and the command line has not; 0: none. */
static char missing(const struct vhd_util_command *self)
{
	int depth = 0;

	for (const char *p = self->usage; *p && *p != '\n'; p++) {
		depth += *p == '[' || *p == '(';
		depth -= *p == ']' || *p == ')';
		if (!depth && *p == '-' && (p == self->usage || p[-1] == ' ') &&
		    isalnum((unsigned char)p[1]) && p[2] == ' ' && !is_given(p[1]))
			return p[1];
	}
	return 0;
}

int vhd_util_usage(const struct vhd_util_command *self, int opt)
{
	FILE *out = opt == 'h' ? stdout : stderr;

	if (!opt && optind < nr_args)
		fprintf(out, "vhd-util %s: unexpected argument '%s'\n",
			self->name, args[optind]);
	else if (!opt && missing(self))
		fprintf(out, "vhd-util %s: -%c is missing\n", self->name,
			missing(self));
	else if (!opt)
		fprintf(out,
			"vhd-util %s: options exclude each other, or one needs another\n",
			self->name);
	fprintf(out, "usage: vhd-util %s %s\n", self->name, self->usage);
	if (out == stderr)
		fprintf(out, "The manual is vhd-util(8).\n");
	return opt == 'h' ? EXIT_OK : EXIT_USAGE;
}

int vhd_util_failed(const struct error *err)
{
	fflush(stdout);
	fprintf(stderr, "vhd-util: %s\n", vhd_util_plain(err->text));
	/* What XenServer's storage manager tells apart, by errno as its vhd-util does. */
	return err->code == -EIO ? EIO : err->code == -ENOSPC ? ENOSPC :
								 EXIT_FAILED;
}

const char *vhd_util_plain(const char *text)
{
	static char copies[4][PATH_MAX];
	static unsigned int next;
	char *copy = copies[next++ % 4];

	snprintf(copy, PATH_MAX, "%s", text);
	for (char *p = copy; *p; p++)
		if (iscntrl((unsigned char)*p))
			*p = '?';
	return copy;
}

const char *vhd_util_type(enum vhd_type type)
{
	switch (type) {
	case VHD_FIXED:
		return "fixed";
	case VHD_DYNAMIC:
		return "dynamic";
	case VHD_DIFF:
	default:
		return "differencing";
	}
}

bool vhd_util_number(const char *text, int opt, uint64_t max, uint64_t *n)
{
	char *end;

	errno = 0;
	*n = strtoull(text, &end, 10);
	if (*text >= '0' && *text <= '9' && !*end && !errno && *n <= max)
		return true;
	fprintf(stderr,
		"vhd-util: option -%c: '%s' is not a number from 0 to %llu\n",
		opt, text, (unsigned long long)max);
	return false;
}

bool vhd_util_megabytes(const char *text, int opt, uint64_t *bytes)
{
	if (*text && strspn(text, "0123456789") != strlen(text)) {
		fprintf(stderr, "vhd-util: option -%c: '%s' is not a whole number of MiB; 10 GiB is 10240\n",
			opt, text);
		return false;
	}
	if (!vhd_util_number(text, opt, UINT64_MAX >> 20, bytes))
		return false;
	*bytes <<= 20;
	return true;
}

/*
 * Whether to look again at an image that seemed corrupt: only if somebody
 * may be writing it, since a file can be made that takes long to judge.
 */
static bool again(const char *path, int rc, int tries)
{
	struct stat st;

	if (rc != -EUCLEAN || tries >= LOOK_TRIES || stat(path, &st) ||
	    time(NULL) - st.st_mtime > RECENT_SECONDS)
		return false;
	usleep(10000);
	return true;
}

int vhd_util_look(struct vhd_image **image, const char *path,
		  struct error *err)
{
	int rc, tries = 0;

	do
		rc = vhd_open(image, path, VHD_OPEN_NOLOCK, err);
	while (again(path, rc, ++tries));
	return rc;
}

int vhd_util_look_chain(struct vhd_chain **chain, const char *path,
			const struct config *cfg, struct error *err)
{
	int rc, tries = 0;

	do
		rc = vhd_chain_open(chain, path, cfg, VHD_OPEN_NOLOCK, err);
	while (again(path, rc, ++tries));
	return rc;
}

static int help(FILE *out)
{
	fprintf(out, "usage: vhd-util COMMAND [OPTIONS]\nCOMMAND := {");
	for (size_t i = 0; i < NR_COMMANDS; i++)
		fprintf(out, "%s %s", i ? " |" : "", commands[i]->name);
	fprintf(out, " }\n");
	return out == stdout ? EXIT_OK : EXIT_USAGE;
}

/* How many letters must be put in, left out or changed; MAX_VERB at the most. */
static unsigned int distance(const char *a, const char *b)
{
	unsigned int row[MAX_VERB + 1], up, left;

	if (strlen(a) > MAX_VERB || strlen(b) > MAX_VERB)
		return MAX_VERB;
	for (unsigned int j = 0; j <= strlen(b); j++)
		row[j] = j;
	for (unsigned int i = 1; i <= strlen(a); i++) {
		left = row[0];
		row[0] = i;
		for (unsigned int j = 1; j <= strlen(b); j++) {
			up = row[j];
			left += a[i - 1] != b[j - 1];
			if (up + 1 < left)
				left = up + 1;
			if (row[j - 1] + 1 < left)
				left = row[j - 1] + 1;
			row[j] = left;
			left = up;
		}
	}
	return row[strlen(b)];
}

static int unknown(const char *verb)
{
	const char *near = NULL;
	unsigned int best = MAX_TYPOS + 1, d;

	for (size_t i = 0; i < NR_COMMANDS; i++) {
		d = distance(verb, commands[i]->name);
		if (d < best) {
			best = d;
			near = commands[i]->name;
		}
	}
	if (near) {
		fprintf(stderr,
			"vhd-util: unknown command '%s'; did you mean '%s'?\n",
			verb, near);
		return EXIT_USAGE;
	}
	fprintf(stderr, "vhd-util: unknown command '%s'\n", verb);
	return help(stderr);
}

int main(int argc, char **argv)
{
	char name[32];
	const struct vhd_util_command *command = NULL;
	int n = 0, status;

	/* What only says how it went is no matter of a tool's stderr. */
	log_open("vhd-util", false, LOG_LEVEL_WARN);
	if (argc < 2)
		return help(stderr);
	if (!strcmp(argv[1], "-h") || !strcmp(argv[1], "--help") ||
	    !strcmp(argv[1], "help"))
		return help(stdout);
	if (!strcmp(argv[1], "--version")) {
		printf("vhd-util %s\n", XENBLK_VERSION);
		return EXIT_OK;
	}
	for (size_t i = 0; i < NR_COMMANDS && !command; i++)
		if (!strcmp(argv[1], commands[i]->name))
			command = commands[i];
	if (!command)
		return unknown(argv[1]);
	/* XenServer's storage manager passes --debug everywhere. */
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--help"))
			return vhd_util_usage(command, 'h');
		if (strcmp(argv[i], "--debug"))
			argv[++n] = argv[i];
	}
	argv[n + 1] = NULL;
	/* What getopt's messages begin with. */
	snprintf(name, sizeof(name), "vhd-util %s", command->name);
	argv[1] = name;
	nr_args = n;
	args = argv + 1;
	status = command->run(command, n, argv + 1);
	if (fflush(stdout) || ferror(stdout)) {
		fprintf(stderr, "vhd-util: standard output: %s\n",
			strerror(errno));
		return status ? status : EXIT_FAILED;
	}
	return status;
}
