/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * One line per event: stderr in the foreground, else syslog (daemon). A
 * message ends in the fields that apply: vbd= minor= path= err=.
 */
#ifndef XENBLK_LOG_H
#define XENBLK_LOG_H

#include <stdbool.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

void log_open(const char *program, bool use_syslog, enum log_level max);
/* Before descriptors are moved and closed, whichever they are; and after that. */
void log_close(void);
void log_reopen(void);
void log_msg(enum log_level level, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

#define log_error(...)	log_msg(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...)	log_msg(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...)	log_msg(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)	log_msg(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
