/* SPDX-License-Identifier: LGPL-2.1-only */
/* The metadata of an image as text. */
#ifndef XENBLK_VHD_DUMP_H
#define XENBLK_VHD_DUMP_H

#include <stdbool.h>
#include <stdio.h>

#include "common/error.h"

/* Prints what is there, sound or not; hex: numbers in base 16. Takes no lock. */
int vhd_dump_headers(FILE *out, const char *path, bool hex, struct error *err);

#endif
