/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Fuzz targets: each file fuzz-*.c but fuzz-main.c is one, with libFuzzer's entry
 * point. `make fuzz CC=clang` links them with libFuzzer; `make check` links each with
 * fuzz-main.c, which runs the inputs of corpus/ once.
 *
 * An image as input:
 *
 *   flags u8 | gap u24, big-endian, of 4 KiB | the file's first bytes
 *
 * The file goes on with so many zeros and, by FUZZ_TAIL, a copy of its first
 * sector. By the other flags checksums are made right, so that what lies behind
 * them is reached.
 */
#ifndef XENBLK_FUZZ_H
#define XENBLK_FUZZ_H

#include <stddef.h>
#include <stdint.h>

#define FUZZ_FOOTER	1u	/* the checksum of the footer at the start */
#define FUZZ_HEADER	2u	/* of the header, where the footer says it is */
#define FUZZ_BATMAP	4u	/* of the batmap */
#define FUZZ_TAIL	8u	/* a footer at the end */

#define FUZZ_PREFIX	4u	/* bytes before those of the file */
#define FUZZ_MAX_GAP	4096u	/* 16 MiB */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/*
 * Makes the file of an input. False if the input is too short to be one. The
 * uuid of the footer is copied to uuid (16 bytes) if that is not NULL.
 */
int fuzz_write_image(int fd, const uint8_t *data, size_t size, uint8_t *uuid);
/* The same with the parent's uuid and name (UTF-16, ASCII only) put in the header. */
int fuzz_write_child(int fd, const uint8_t *data, size_t size,
		     const uint8_t *parent_uuid, const char *parent_name);

/* Ends the program, with what is wrong. */
#define fuzz_assert(cond) \
	do { if (!(cond)) __builtin_trap(); } while (0)

struct vhd_chain;
/* Checks and reads a chain that has been opened; answers need not be good. */
void fuzz_use_chain(const struct vhd_chain *chain);

#endif
