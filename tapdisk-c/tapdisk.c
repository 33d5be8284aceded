/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * tapdisk: serves VBDs that tap-ctl attaches and opens over the control socket;
 * or one image by NBD.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/config.h"
#include "common/log.h"
#include "serve.h"
#include "standalone.h"

#define GRACE_MAX_S 86400u

enum { OPT_NBD = 256, OPT_RUN, OPT_GRACE, OPT_OURS };

static void usage(FILE *f)
{
	fputs("usage: tapdisk [--foreground] [--debug]\n"
	      "       tapdisk --nbd=SOCKET [--read-only] TYPE:PATH\n"
	      "       tapdisk --run 'COMMAND $uri' [--read-only] TYPE:PATH\n"
	      "Serves block devices; tap-ctl spawn starts it and tap-ctl open gives it images.\n"
	      "With --nbd or --run it serves one image, without Xen and without tap-ctl.\n"
	      "      --nbd=SOCKET  serve TYPE:PATH by NBD on this unix socket until SIGTERM or SIGINT\n"
	      "      --run=COMMAND serve it as long as the shell's COMMAND runs, which finds it by\n"
	      "                    $uri or $unixsocket, and end with its status\n"
	      "      --grace=SECONDS\n"
	      "                    what COMMAND has from SIGTERM, which it gets if tapdisk is to end\n"
	      "                    first, to SIGKILL (10)\n"
	      "      --succeed=PID take over the disks that this tapdisk had, and has died with\n"
	      "  -r, --read-only   let nobody write\n"
	      "  -f, --foreground  log to stderr\n"
	      "  -d, --debug       log more\n"
	      "  -V, --version     print the version\n", f);
}

static int parse_seconds(const char *text, unsigned int *seconds)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || value > GRACE_MAX_S)
		return -EINVAL;
	*seconds = (unsigned int)value;
	return 0;
}

/* Its messages are for who called it: no lines about what goes well. */
static int serve_alone(const struct standalone *standalone, enum log_level level)
{
	struct config cfg;
	struct error err;
	int status = EXIT_FAILURE;

	log_open("tapdisk", false,
		 level == LOG_LEVEL_DEBUG ? level : LOG_LEVEL_WARN);
	if (config_load(&cfg, NULL, &err))
		fprintf(stderr, "tapdisk: %s\n", err.text);
	else
		status = standalone_run(standalone, &cfg);
	config_dispose(&cfg);
	return status;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "foreground", no_argument, NULL, 'f' },
		{ "debug", no_argument, NULL, 'd' },
		{ "nbd", required_argument, NULL, OPT_NBD },
		{ "run", required_argument, NULL, OPT_RUN },
		{ "grace", required_argument, NULL, OPT_GRACE },
		{ "guardian", required_argument, NULL, OPT_OURS },
		{ "guards", required_argument, NULL, OPT_OURS },
		{ "creates", required_argument, NULL, OPT_OURS },
		{ "succeed", required_argument, NULL, OPT_OURS },
		{ "read-only", no_argument, NULL, 'r' },
		{ "version", no_argument, NULL, 'V' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	struct standalone standalone = { .grace_s = STANDALONE_GRACE_S };
	struct serve serve = { .level = LOG_LEVEL_INFO, .guardian = -1 };
	bool grace = false, alone;
	int c, rc, option = 0;

	while ((c = getopt_long(argc, argv, "fdrVh", options, &option)) != -1) {
		switch (c) {
		case 'f':
			serve.foreground = true;
			break;
		case 'd':
			serve.level = LOG_LEVEL_DEBUG;
			break;
		case 'r':
			standalone.readonly = true;
			break;
		case OPT_NBD:
			standalone.socket = optarg;
			break;
		case OPT_RUN:
			standalone.command = optarg;
			break;
		case OPT_GRACE:
			grace = true;
			if (parse_seconds(optarg, &standalone.grace_s)) {
				fprintf(stderr, "tapdisk: --grace=%s: must be a number of seconds, at most %u\n",
					optarg, GRACE_MAX_S);
				return 2;
			}
			break;
		case OPT_OURS:
			serve_option(&serve, options[option].name, optarg, &rc);
			if (!rc)
				break;
			fprintf(stderr, "tapdisk: --%s=%s: must be a number, or some with commas between\n",
				options[option].name, optarg);
			return 2;
		case 'V':
			puts("tapdisk " XENBLK_VERSION);
			return 0;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	}
	alone = standalone.socket || standalone.command;
	if (argc - optind != alone || (standalone.readonly && !alone) ||
	    (grace && !standalone.command)) {
		usage(stderr);
		return 2;
	}
	standalone.spec = argv[optind];
	if (alone)
		return serve_alone(&standalone, serve.level);

	return serve_run(&serve, argv[0]);
}
