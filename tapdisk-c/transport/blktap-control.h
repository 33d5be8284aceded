/* SPDX-License-Identifier: LGPL-2.1-only */
/* Minors of the blktap driver, by its control device. Never opens a ring. */
#ifndef XENBLK_BLKTAP_CONTROL_H
#define XENBLK_BLKTAP_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

/* The driver's minors, one a directory or link blktap<N>. */
#define BLKTAP_SYSFS_CLASS "/sys/class/blktap2"

/* *minor: the one that is wanted (-EBUSY if it is taken), or -1. */
int blktap_allocate(int *minor, struct error *err);
/* -EBUSY: a tapdisk has the ring. flags: blktap_free.flags. */
int blktap_free(int minor, unsigned int flags, struct error *err);
/* Attributes of a minor, sysfs-class-blktap2: id (0: there is none), and those that take a number. */
uint64_t blktap_id(int minor);
int blktap_set(int minor, const char *name, unsigned int value);
/* 0 if there is no such attribute. */
uint64_t blktap_get(int minor, const char *name);
/* The driver is there, loaded if need be, and has this interface. */
int blktap_check(struct error *err);

bool blktap_has(int minor);

#endif
