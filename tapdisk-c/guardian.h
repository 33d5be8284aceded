/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The guardian of a tapdisk: a process beside it that holds no image and waits
 * for its end. If that comes without a word before, by a signal or a crash,
 * it starts the program again, which takes over all disks that the dead one had
 * (common/diskfile.h). After GUARDIAN_DEATHS within GUARDIAN_PERIOD_S it gives
 * up, says so, and the disks wait. One that can't start, and says so by the
 * status GUARDIAN_NOT_STARTED, is no death: that may pass, and is tried for ever.
 *
 * After an upgrade that failed the tapdisk from which the dead one had its disks
 * takes them back: it has GUARDIAN_BACK_S for that, then another one is started.
 *
 * A tapdisk needs no guardian to go on; if it loses it, it starts another.
 */
#ifndef XENBLK_GUARDIAN_H
#define XENBLK_GUARDIAN_H

#include "io/engine.h"

#define GUARDIAN_DEATHS		5u
#define GUARDIAN_PERIOD_S	60
/* Between two tries, at most. */
#define GUARDIAN_WAIT_S		30u
#define GUARDIAN_BACK_S		30u
/* sysexits.h: EX_TEMPFAIL */
#define GUARDIAN_NOT_STARTED	75
/* Processes whose disks one successor may have to take over. */
#define GUARDIAN_WARDS		64u

struct guardian {
	int fd;				/* -1: none */
	int child;			/* it, if we started it, else 0 */
	char *const *argv;
	struct engine *engine;
	struct io_watch watch;
	struct io_timer timer;
};

/*
 * Starts one for this process, before it has anything that a child should not
 * have, and before the engine. It starts argv again.
 */
int guardian_start(struct guardian *g, char *const *argv);
/* Is the guardian of ward, which is at fd. */
_Noreturn void guardian_run(int fd, int ward, char *const *argv);
/* The one that started us is at fd. */
void guardian_adopt(struct guardian *g, char *const *argv, int fd);
/* From now on its end is noticed. */
void guardian_watch(struct guardian *g, struct engine *engine);
void guardian_unwatch(struct guardian *g);
/* All disks of those before us are ours. */
void guardian_taken(void *g);
/* We are told to end: from now on no other one is started, however we end. */
void guardian_dismiss(struct guardian *g);
/* We end in order: it ends too, and is gone afterwards. */
void guardian_release(struct guardian *g);

#endif
