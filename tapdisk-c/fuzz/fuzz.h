/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Fuzz targets: each file fuzz-*.c but fuzz-main.c is one, with libFuzzer's entry
 * point. `make fuzz CC=clang MODE=fuzz` links them with libFuzzer; `make check`
 * links each with fuzz-main.c, which runs the inputs of corpus/ and some changed
 * ones.
 *
 * An image as input:
 *
 *   flags u8 | gap u24, big-endian, of 4 KiB | the file's first bytes
 *
 * The file goes on with so many zeros and, by FUZZ_TAIL, a copy of its first
 * sector. By the other flags checksums are made right, so that what lies behind
 * them is reached.
 *
 * A chain as input:
 *
 *   flags u8 | size of the first image u24, big-endian | image | the rest
 *
 * By FUZZ_LINK the image's header names the next file. The rest is one more image,
 * or by FUZZ_DEEPER a chain, or by FUZZ_RAW a raw file.
 */
#ifndef XENBLK_FUZZ_H
#define XENBLK_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FUZZ_FOOTER	1u	/* the checksum of the footer at the start */
#define FUZZ_HEADER	2u	/* of the header, where the footer says it is */
#define FUZZ_BATMAP	4u	/* of the batmap */
#define FUZZ_TAIL	8u	/* a footer at the end */

#define FUZZ_LINK	1u
#define FUZZ_DEEPER	2u
#define FUZZ_RAW	4u

#define FUZZ_PREFIX	4u	/* bytes before those of the file, or the chain */
#define FUZZ_MAX_GAP	4096u	/* 16 MiB */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Ends the program, and says what did not hold. */
#define fuzz_assert(cond) \
	do { if (!(cond)) fuzz_fail(__FILE__, __LINE__, #cond); } while (0)
_Noreturn void fuzz_fail(const char *file, int line, const char *cond);

/* input.c: from an input to files in memory. False if it is too short to be one. */
bool fuzz_make_image(unsigned int file, const uint8_t *data, size_t size);
/* The leaf is file 0. */
bool fuzz_make_chain(const uint8_t *data, size_t size);

struct vhd_chain;
struct vhd_image;
/* use.c: what the data path relies on without looking again. */
void fuzz_check_image(const struct vhd_image *image);
/*
 * Checks and reads a chain that has been opened, and holds what is read against a
 * reading of one sector at a time.
 */
void fuzz_use_chain(const struct vhd_chain *chain);
/* Such a reading. */
void fuzz_read_sector(const struct vhd_chain *chain, uint64_t sector,
		      uint8_t *buf);

struct config;
/* Of no file: the defaults. */
const struct config *fuzz_config(void);

#endif
