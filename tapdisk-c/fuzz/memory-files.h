/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Files in memory for fuzz targets, so that an execution costs no system call: the
 * directory /fuzz with the files 0, 1, ... in it. memory-files.c stands in for what
 * vhd/ and drivers/ call of the C library; nothing else of the file system is there
 * for them, wherever the paths of an input lead.
 */
#ifndef XENBLK_MEMORY_FILES_H
#define XENBLK_MEMORY_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEMORY_DIR	"/fuzz"
#define MEMORY_FILES	4u
#define MEMORY_PAGE	4096u
/* Of a file; what needs more finds no space. */
#define MEMORY_PAGES	8192u

/* No file is left, none is open. */
void memory_reset(void);
/* Makes the file: len bytes of data, zeros up to size. */
void memory_file_set(unsigned int file, const void *data, size_t len,
		     uint64_t size);
void memory_file_put(unsigned int file, const void *data, size_t len,
		     uint64_t offset);
/* "/fuzz/0" */
const char *memory_path(unsigned int file);
/* A descriptor of the file. */
int memory_open(unsigned int file);
/* The bytes read as zeros from then on, and take no space. */
void memory_punch(int fd, uint64_t offset, uint64_t len);
/* The same as long as nothing is written to the file. */
uint64_t memory_file_sum(unsigned int file);
/* How many descriptors are open. */
unsigned int memory_nr_open(void);

#endif
