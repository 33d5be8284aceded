/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * An error that a person reads: one line that names the file, the field and
 * the remedy. Functions that take a struct error * fill it exactly when they
 * return a negative value; the pointer may be NULL.
 */
#ifndef XENBLK_ERROR_H
#define XENBLK_ERROR_H

#include <stdbool.h>

struct error {
	int code;		/* -errno, 0 if none */
	int holder;		/* -EBUSY: the pid that has the image, 0 if not known */
	bool unanswered;	/* -ETIMEDOUT: of a tapdisk that has not answered, not what it says */
	char text[1024];	/* no newline */
};

/* Stores code and text, returns code (which is negative). */
int error_set(struct error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Puts "<prefix>: " before the text already there; returns err->code. */
int error_prefix(struct error *err, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* Puts more behind the text already there, cut where it is full; returns err->code. */
int error_append(struct error *err, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

#endif
