/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * tap-ctl: makes and unmakes disks and steers tapdisk. Verbs, options and
 * output are those that Xen's block-tap scripts and XenServer's tools use.
 */
#include "tools/tap-ctl.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <blktap.h>

#include "control/control.h"

/* Long options only: these are no letters. In the order of retry_keys. */
#define RETRY "\001:\002:\003:\004:\005:"

const char *const retry_keys[TAP_CTL_RETRY] = {
	"retry_errors", "retry_interval", "retry_for", "retry_then", "no_space",
};

/*
 * options: the letters the verb takes; needs: those it can't do without;
 * refused: XenServer's letters that change what is done, so they are not
 * ignored.
 */
static const struct verb {
	const char *name;
	const char *options;
	const char *needs;
	const char *refused;
	int (*run)(const struct options *opt, struct error *err);
	const char *usage;
} verbs[] = {
	{ "list", "p:m:t:f:j", "", "", cmd_list,
	  "[-p PID] [-m MINOR] [-t TYPE] [-f FILE] [--json]" },
	{ "allocate", "x:", "", "", cmd_allocate, "[--transport=LIST]" },
	{ "free", "m:f", "m", "", cmd_free, "-m MINOR [-f]" },
	{ "fail", "m:", "m", "", cmd_fail, "-m MINOR" },
	{ "spawn", "", "", "", cmd_spawn, "" },
	{ "attach", "p:m:", "pm", "", cmd_attach, "-p PID -m MINOR" },
	{ "open", "p:m:a:Riu" RETRY, "pma", "e:r2:sDC:t:E", cmd_open,
	  "-p PID -m MINOR -a TYPE:PATH [-R] [--inactive | --suspended] [ERRORS]" },
	{ "close", "p:m:ft:", "pm", "", cmd_close,
	  "-p PID -m MINOR [-f] [-t SECONDS]" },
	{ "detach", "p:m:", "pm", "", cmd_detach, "-p PID -m MINOR" },
	{ "create", "a:Riuo:w:x:" RETRY, "a", "d:e:r2:sDC:t:", cmd_create,
	  "-a TYPE:PATH [-R] [--inactive | --suspended] [--owner=PID] [--wait=SECONDS] [--transport=LIST] [ERRORS]" },
	{ "probe", "a:R", "a", "", cmd_probe, "-a TYPE:PATH [-R]" },
	{ "keep", "p:m:F:", "pm", "", cmd_keep, "-p PID -m MINOR [--for=TEXT]" },
	{ "destroy", "p:m:ft:", "pm", "", cmd_destroy,
	  "-p PID -m MINOR [-f] [-t SECONDS]" },
	{ "pause", "p:m:t:", "pm", "", cmd_pause,
	  "-p PID -m MINOR [-t SECONDS]" },
	{ "unpause", "p:m:a:", "pm", "2:c:", cmd_unpause,
	  "-p PID -m MINOR [-a TYPE:PATH]" },
	{ "snapshot", "p:m:n:t:B:", "pmn", "", cmd_snapshot,
	  "-p PID -m MINOR -n PARENT [--also=PID:MINOR:PARENT]... [-t SECONDS]" },
	{ "upgrade", "p:m:At:", "", "", cmd_upgrade,
	  "-p PID | -m MINOR | --all [-t SECONDS]" },
	{ "restart", "m:", "m", "", cmd_restart, "-m MINOR" },
	{ "stats", "p:m:j", "pm", "", cmd_stats, "-p PID -m MINOR [--json]" },
	{ "check", "x:", "", "", cmd_check, "[--transport=LIST]" },
};

#define NR_VERBS (sizeof(verbs) / sizeof(verbs[0]))

static const char *meaning(int letter)
{
	switch (letter) {
	case 'd':
		return "naming the device (it is /dev/xen/blktap-2/tapdevN)";
	case 'e':
		return "sharing the parents of another minor";
	case 'r':
		return "caching reads in the leaf";
	case '2':
		return "a secondary image";
	case 's':
		return "failing over to a secondary image";
	case 'D':
		return "serving an image through the page cache";
	case 'C':
	case 'c':
		return "a log of changed blocks";
	case 't':
		return "a time limit for requests";
	default:
		return "encryption";
	}
}

void complain(const char *text)
{
	fputs("tap-ctl: ", stderr);
	for (; *text; text++)
		fputc(iscntrl((unsigned char)*text) ? '?' : *text, stderr);
	fputc('\n', stderr);
}

static void usage(FILE *f)
{
	fputs("usage: tap-ctl VERB [OPTION]...\n", f);
	for (size_t i = 0; i < NR_VERBS; i++)
		fprintf(f, "  tap-ctl %s%s%s\n", verbs[i].name,
			*verbs[i].usage ? " " : "", verbs[i].usage);
}

static void verb_usage(FILE *f, const struct verb *verb)
{
	fprintf(f, "usage: tap-ctl %s%s%s\n", verb->name,
		*verb->usage ? " " : "", verb->usage);
}

static bool parse_int(const char *text, int low, int high, int *value)
{
	char *end;
	long n;

	errno = 0;
	n = strtol(text, &end, 10);
	if (errno || end == text || *end || !isdigit((unsigned char)*text) ||
	    n < low || n > high)
		return false;
	*value = (int)n;
	return true;
}

static bool set_option(struct options *opt, const struct verb *verb, int c)
{
	if (c >= 1 && c <= TAP_CTL_RETRY) {
		opt->retry[c - 1] = optarg;
		return true;
	}
	switch (c) {
	case 'p':
		return parse_int(optarg, 1, INT_MAX, &opt->pid);
	case 'm':
		return parse_int(optarg, 0, BLKTAP_MAX_MINORS - 1, &opt->minor);
	case 't':
		if (verb->run == cmd_list) {
			opt->type = optarg;
			return true;
		}
		/* fall through */
	case 'w':
		if (!parse_int(optarg, 1, INT_MAX / 1000, &opt->timeout_ms))
			return false;
		opt->timeout_ms *= 1000;
		return true;
	case 'o':
		return parse_int(optarg, 1, INT_MAX, &opt->owner);
	case 'f':
		if (verb->run == cmd_list)
			opt->file = optarg;
		else
			opt->force = true;
		return true;
	case 'n':
		opt->name = optarg;
		return *optarg;
	case 'B':
		if (opt->nr_also == TAP_CTL_ALSO)
			return false;
		opt->also[opt->nr_also++] = optarg;
		return true;
	case 'a':
		opt->args = optarg;
		return true;
	case 'F':
		opt->kept_for = optarg;
		return true;
	case 'x':
		opt->transport = optarg;
		return true;
	case 'R':
		opt->readonly = true;
		return true;
	case 'i':
		opt->inactive = true;
		return true;
	case 'u':
		opt->suspended = true;
		return true;
	case 'A':
		opt->all = true;
		return true;
	case 'j':
		opt->json = true;
		return true;
	default:
		return false;
	}
}

static bool given(const struct options *opt, char letter)
{
	switch (letter) {
	case 'p':
		return opt->pid >= 0;
	case 'm':
		return opt->minor >= 0;
	case 'n':
		return opt->name;
	default:
		return opt->args;
	}
}

static const struct option long_options[] = {
	{ "json", no_argument, NULL, 'j' },
	{ "all", no_argument, NULL, 'A' },
	{ "for", required_argument, NULL, 'F' },
	{ "inactive", no_argument, NULL, 'i' },
	{ "suspended", no_argument, NULL, 'u' },
	{ "owner", required_argument, NULL, 'o' },
	{ "wait", required_argument, NULL, 'w' },
	{ "also", required_argument, NULL, 'B' },
	{ "transport", required_argument, NULL, 'x' },
	{ "retry-errors", required_argument, NULL, 1 },
	{ "retry-interval", required_argument, NULL, 2 },
	{ "retry-for", required_argument, NULL, 3 },
	{ "retry-then", required_argument, NULL, 4 },
	{ "no-space", required_argument, NULL, 5 },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

/* As the user writes it: one that has no letter there has a name. */
static void name_option(const struct verb *verb, int c, char name[32])
{
	snprintf(name, 32, "-%c", c);
	for (const struct option *o = long_options; o->name; o++)
		if (o->val == c && (c <= TAP_CTL_RETRY || strstr(verb->usage, o->name)))
			snprintf(name, 32, "--%s", o->name);
}

static int usage_error(const struct verb *verb, const char *what, int c)
{
	char text[256], name[32];

	name_option(verb, c, name);
	snprintf(text, sizeof(text), "%s: %s: %s", verb->name, name, what);
	complain(text);
	verb_usage(stderr, verb);
	return EXIT_USAGE;
}

/* -1: run the verb; else the exit status. */
static int parse(const struct verb *verb, int argc, char **argv,
		 struct options *opt)
{
	char letters[64], text[256];
	int c;

	snprintf(letters, sizeof(letters), ":%s%sh", verb->options,
		 verb->refused);
	while ((c = getopt_long(argc, argv, letters, long_options, NULL)) != -1) {
		if (c == 'h') {
			verb_usage(stdout, verb);
			return EXIT_SUCCESS;
		}
		if (c == ':')
			return usage_error(verb, "its value is missing", optopt);
		if (c != '?' && strchr(verb->refused, c)) {
			snprintf(text, sizeof(text), "%s is not implemented",
				 meaning(c));
			return usage_error(verb, text, c);
		}
		if (c == '?' || !strchr(verb->options, c)) {
			snprintf(text, sizeof(text), "%s: unknown option %s",
				 verb->name, argv[optind - 1]);
			complain(text);
			verb_usage(stderr, verb);
			return EXIT_USAGE;
		}
		if (!set_option(opt, verb, c)) {
			snprintf(text, sizeof(text), "'%.128s': out of range or no number",
				 optarg);
			return usage_error(verb, text, c);
		}
	}
	if (optind != argc) {
		snprintf(text, sizeof(text), "%s: unexpected argument %s",
			 verb->name, argv[optind]);
		complain(text);
		verb_usage(stderr, verb);
		return EXIT_USAGE;
	}
	for (const char *p = verb->needs; *p; p++)
		if (!given(opt, *p))
			return usage_error(verb, "is required", *p);
	if (verb->run == cmd_upgrade &&
	    (opt->pid >= 0) + (opt->minor >= 0) + opt->all != 1) {
		complain("upgrade: -p PID, -m MINOR or --all is required, and one of them");
		verb_usage(stderr, verb);
		return EXIT_USAGE;
	}
	return -1;
}

/* Descriptors 0 to 2 are open from here on, so nothing else becomes one of them. */
static void open_standard_descriptors(void)
{
	int fd;

	do {
		fd = open("/dev/null", O_RDWR);
	} while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
}

int main(int argc, char **argv)
{
	struct options opt = {
		.pid = -1,
		.minor = -1,
		.owner = -1,
		.timeout_ms = TAP_CTL_TIMEOUT_MS,
	};
	const struct verb *verb = NULL;
	struct error err = { .code = 0 };
	int rc;

	open_standard_descriptors();
	/* Whoever ignores it hands that down, and no child's status could be had. */
	signal(SIGCHLD, SIG_DFL);
	if (argc >= 2 && (!strcmp(argv[1], "-h") || !strcmp(argv[1], "--help") ||
			  !strcmp(argv[1], "help"))) {
		usage(stdout);
		return EXIT_SUCCESS;
	}
	if (argc >= 2 && !strcmp(argv[1], "--version")) {
		puts("tap-ctl " XENBLK_VERSION);
		return EXIT_SUCCESS;
	}
	for (size_t i = 0; argc >= 2 && i < NR_VERBS; i++)
		if (!strcmp(verbs[i].name, argv[1]))
			verb = &verbs[i];
	if (!verb) {
		if (argc >= 2) {
			error_set(&err, -EINVAL, "unknown verb %s", argv[1]);
			complain(err.text);
		}
		usage(stderr);
		return EXIT_USAGE;
	}
	rc = parse(verb, argc - 1, argv + 1, &opt);
	if (rc >= 0)
		return rc;

	/* One that has died may have an heir. */
	if (opt.pid >= 0)
		opt.pid = control_heir(opt.pid);
	/* A reader that has gone is an error to handle, not the end. */
	signal(SIGPIPE, SIG_IGN);
	rc = verb->run(&opt, &err);
	if ((fflush(stdout) || ferror(stdout)) && !rc)
		rc = error_set(&err, -EIO, "cannot write the output");
	if (rc)
		complain(err.text);
	return rc ? EXIT_FAILURE : EXIT_SUCCESS;
}
