/* SPDX-License-Identifier: LGPL-2.1-only */
/* Synchronous I/O on a file, whole or not at all. */
#ifndef XENBLK_FILE_H
#define XENBLK_FILE_H

#include <stddef.h>
#include <stdint.h>

/* 0, or -errno; -ENODATA if the file ends before offset + len. */
int file_read_all(int fd, void *buf, size_t len, uint64_t offset);
int file_write_all(int fd, const void *buf, size_t len, uint64_t offset);

/*
 * The alignment in bytes that direct I/O on fd, opened with O_DIRECT, must keep
 * to: 512 or 4096, as the kernel says, or else by reading. block is 512 if that fails for
 * another reason, which is returned. May change the file's offset.
 */
int file_direct_block(int fd, uint32_t *block);

#endif
