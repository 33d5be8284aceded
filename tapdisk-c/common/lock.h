/* SPDX-License-Identifier: LGPL-2.1-only */
/* The image lock: docs/architecture.md, "Image lock". */
#ifndef XENBLK_LOCK_H
#define XENBLK_LOCK_H

#include <stdbool.h>

#include "common/error.h"

enum lock_mode { LOCK_READER, LOCK_WRITER };

/*
 * Takes the image lock on fd's open file description; it is released by
 * closing the last descriptor of it. fd must be open for reading, and for
 * writing if mode is LOCK_WRITER. -EBUSY, with a message that names path and
 * what the other holder does, if somebody else's lock conflicts; nothing is
 * then held. Waits up to a second for a lock that no living process of this
 * host has. A file system without locks (-ENOLCK, -EOPNOTSUPP) is an error.
 */
int lock_take(int fd, const char *path, enum lock_mode mode,
	      struct error *err);

/*
 * A writer's lock becomes a reader's: the image is a parent from now on. Never
 * fails for another's lock.
 */
int lock_to_reader(int fd);

#endif
