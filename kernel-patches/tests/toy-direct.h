/* SPDX-License-Identifier: GPL-2.0-only */
/* The toy server's files and extents. */
#ifndef TOY_DIRECT_H
#define TOY_DIRECT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define TOY_FILE	3	/* the number the file has */
#define TOY_EXTENT	4096u	/* sectors */

/*
 * Registers the file at path under that number, for writing too if write, and then gives it
 * the flags then, if not 0. Ends the process on an error, as all here do.
 */
void toy_add_file(int ring_fd, const char *path, uint32_t number, bool write, int then);

/* Sectors of the disk, up to sectors; the first is at that offset in the file, in bytes. */
void toy_add_extents(int ring_fd, uint64_t sectors, uint64_t offset, bool write);

/* Moves so many bytes within a file, and leaves a hole. */
void toy_move(int fd, off_t from, off_t to, off_t bytes);

/* All of them, and waits until they are drained. */
void toy_withdraw(int ring_fd);

/* What must be refused, each thing alone; prints one line for each: its name and the error. */
void toy_bad_extents(int ring_fd, const char *path, uint64_t sectors);

#endif
