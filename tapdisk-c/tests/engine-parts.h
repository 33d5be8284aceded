/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * What the engines that stand in for io/engine.c in one program alone have in
 * common: lists of timers and plugs, nothing to lend. To be included once, after
 * struct engine, which has lists timers and plugs.
 */
#ifndef XENBLK_ENGINE_PARTS_H
#define XENBLK_ENGINE_PARTS_H

#include "io/engine.h"

void engine_file_remove(struct engine *e, int fd)
{
	(void)e;
	(void)fd;
}

const void *engine_lend(struct engine *e, int fd, uint64_t offset, size_t len,
			struct io_map **lender)
{
	(void)e;
	(void)fd;
	(void)offset;
	(void)len;
	(void)lender;
	return NULL;
}

/* A timer may expire at the next step already: no deadline is far. */
void engine_timer_set(struct engine *e, struct io_timer *timer,
		      uint64_t deadline_ns)
{
	if (timer->armed)
		list_del(&timer->link);
	timer->deadline_ns = deadline_ns;
	timer->armed = true;
	list_add_tail(&timer->link, &e->timers);
}

void engine_plug(struct engine *e, struct io_plug *plug)
{
	if (plug->armed)
		return;
	plug->armed = true;
	list_add_tail(&plug->link, &e->plugs);
}

#endif
