/* SPDX-License-Identifier: LGPL-2.1-only */
#ifndef XENBLK_PROCESS_H
#define XENBLK_PROCESS_H

#include <stdbool.h>

/* The process is gone, or a zombie. */
bool process_ended(int pid);

#endif
