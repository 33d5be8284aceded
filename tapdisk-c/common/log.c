/* SPDX-License-Identifier: LGPL-2.1-only */
#include "common/log.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <syslog.h>
#include <unistd.h>

/* Of the process, as stderr and syslog are. */
static struct {
	const char *program;
	bool use_syslog;
	enum log_level max;
} log_to = { .program = "xenblk", .max = LOG_LEVEL_INFO };

static const struct {
	int priority;
	const char *name;
} levels[] = {
	[LOG_LEVEL_ERROR] = { LOG_ERR, "error" },
	[LOG_LEVEL_WARN] = { LOG_WARNING, "warning" },
	[LOG_LEVEL_INFO] = { LOG_INFO, "info" },
	[LOG_LEVEL_DEBUG] = { LOG_DEBUG, "debug" },
};

void log_open(const char *program, bool use_syslog, enum log_level max)
{
	log_to.program = program;
	log_to.use_syslog = use_syslog;
	log_to.max = max;
	if (use_syslog)
		openlog(program, LOG_PID | LOG_NDELAY, LOG_DAEMON);
}

void log_close(void)
{
	closelog();
}

void log_reopen(void)
{
	log_open(log_to.program, log_to.use_syslog, log_to.max);
}

void log_msg(enum log_level level, const char *fmt, ...)
{
	char line[2048];
	va_list ap;

	if (level > log_to.max)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);

	/* A path in the message must not be able to forge a second line. */
	for (char *p = line; *p; p++)
		if (iscntrl((unsigned char)*p))
			*p = '?';

	if (log_to.use_syslog)
		syslog(levels[level].priority, "%s", line);
	else
		fprintf(stderr, "%s[%d]: %s: %s\n", log_to.program,
			(int)getpid(), levels[level].name, line);
}
