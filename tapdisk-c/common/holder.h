/* SPDX-License-Identifier: LGPL-2.1-only */
/* Who on this host holds a lock on an image. For messages: it may have changed. */
#ifndef XENBLK_HOLDER_H
#define XENBLK_HOLDER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/*
 * The pid of another process that holds an OFD lock on byte at of the file of fd, and
 * the name of its program; 0 if there is none to be seen: it is on another host, or
 * another user's. Looks through /proc as proc(5) describes it.
 */
int holder_find(int fd, off_t at, char *name, size_t size);

/* Whether any process of this host, this one too, holds such a lock. */
bool holder_lives(int fd, off_t at);

#endif
