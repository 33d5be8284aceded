/* SPDX-License-Identifier: LGPL-2.1-only */
/* The image lock: docs/architecture.md, "Image lock". */
#ifndef XENBLK_LOCK_H
#define XENBLK_LOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "common/error.h"

enum lock_mode {
	LOCK_READER,		/* reads the image for itself */
	LOCK_WRITER,		/* the only one */
	LOCK_PARENT,		/* reads it as the parent of one child, and only what that lacks */
	LOCK_COALESCE,		/* writes what that child has; only its LOCK_PARENTs are beside it */
	LOCK_GROW,		/* adds what no child sees; all LOCK_PARENTs are beside it */
};

/* What a child is known by in its parent's lock. */
uint64_t lock_child(const struct stat *st, const uint8_t uuid[16]);

/*
 * Takes the image lock on fd's open file description; it is released by
 * closing the last descriptor of it. fd must be open for reading, and for
 * writing if mode is another than LOCK_READER and LOCK_PARENT. child: for LOCK_PARENT and
 * LOCK_COALESCE. -EBUSY, with a message that names path and what the other holder
 * does, if somebody else's lock conflicts; nothing is then held. Waits up to a
 * second for a lock that no living process of this host has, or only tap-ctl. A file system without
 * locks (-ENOLCK, -EOPNOTSUPP) is an error.
 */
int lock_take(int fd, const char *path, enum lock_mode mode, uint64_t child,
	      struct error *err);

/* Nobody has it with another mode than LOCK_PARENT. Takes nothing, and does not wait. */
bool lock_is_free(int fd);

/* Whether another one has the file with LOCK_COALESCE or LOCK_GROW now. */
bool lock_is_moving(int fd);

/*
 * A writer's lock becomes that of the parent of child. Never fails for another's
 * lock, and at no moment is there none.
 */
int lock_to_parent(int fd, uint64_t child);

#endif
