/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * tapdisk: serves VBDs that tap-ctl attaches and opens over the control socket;
 * or one image by NBD.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/config.h"
#include "common/log.h"
#include "control/control.h"
#include "server.h"
#include "signals.h"
#include "standalone.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

#define GRACE_MAX_S 86400u

enum { OPT_NBD = 256, OPT_RUN, OPT_GRACE };

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
	      "  -r, --read-only   let nobody write\n"
	      "  -f, --foreground  log to stderr\n"
	      "  -d, --debug       log more\n"
	      "  -V, --version     print the version\n", f);
}

/*
 * The pages that this process needs to write a page may not wait for such a
 * write, and the guests' disks outlive other processes when memory is short.
 * Both need privilege and are worth going on without.
 */
static void protect(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	/*
	 * Only what has been touched: buffers that no request used cost
	 * nothing. Without privilege a limit would make later mappings fail.
	 */
	if (geteuid() == 0 && mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0)
		log_warn("cannot lock memory err=%d", errno);
	if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0)
		log_warn("cannot become an I/O flusher err=%d", errno);
	if (fd < 0 || write(fd, "-1000", 5) != 5)
		log_warn("cannot be exempted from the OOM killer err=%d", errno);
	if (fd >= 0)
		close(fd);
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
		{ "read-only", no_argument, NULL, 'r' },
		{ "version", no_argument, NULL, 'V' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	struct standalone standalone = { .grace_s = STANDALONE_GRACE_S };
	struct control_server *control = NULL;
	struct signals signals = { .server = NULL };
	enum log_level level = LOG_LEVEL_INFO;
	struct server *server = NULL;
	bool foreground = false, grace = false, alone;
	struct config cfg;
	struct error err;
	int c, rc;

	while ((c = getopt_long(argc, argv, "fdrVh", options, NULL)) != -1) {
		switch (c) {
		case 'f':
			foreground = true;
			break;
		case 'd':
			level = LOG_LEVEL_DEBUG;
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
		return serve_alone(&standalone, level);

	log_open("tapdisk", !foreground, level);
	rc = config_load(&cfg, NULL, &err);
	if (!rc)
		rc = server_open(&server, &cfg, &err);
	if (!rc)
		rc = signals_open(&signals, server, &err);
	if (!rc)
		server_export_in(server, control_dir());
	if (!rc)
		rc = control_server_open(&control, server, &err);
	if (rc) {
		log_error("cannot start: %s", err.text);
		fprintf(stderr, "tapdisk: %s\n", err.text);
		goto out;
	}
	protect();
	rc = server_run(server);
	if (rc)
		log_error("the I/O engine failed, guests' requests wait for the next tapdisk err=%d",
			  -rc);
out:
	if (control)
		control_server_close(control);
	if (server)
		server_close(server);
	config_dispose(&cfg);
	return rc ? EXIT_FAILURE : EXIT_SUCCESS;
}
