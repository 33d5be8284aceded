/* SPDX-License-Identifier: LGPL-2.1-only */
#ifndef XENBLK_PROCESS_H
#define XENBLK_PROCESS_H

#include <stdbool.h>
#include <stdint.h>

/* The process is gone, or a zombie. */
bool process_ended(int pid);

/* When it began, in ticks since boot, by which it is told from another one with its number; 0: there is none. */
uint64_t process_born(int pid);

#endif
