/* SPDX-License-Identifier: LGPL-2.1-only */
/* What the files of the io_uring engine share. */
#ifndef XENBLK_URING_INTERNAL_H
#define XENBLK_URING_INTERNAL_H

#include <liburing.h>
#include <sys/socket.h>

#include "io/engine-internal.h"

#define MAX_SQ_ENTRIES	512u

/*
 * user_data: an io_req's address, whose low bits are 0, or a tag in the low
 * bits; a watch is named by slot and generation since the caller's memory may
 * be gone when its event arrives.
 */
#define TAG_MASK	3u
#define TAG_WATCH	1u
#define TAG_IGNORED	2u
#define SLOT_SHIFT	2

_Static_assert(_Alignof(struct io_req) > TAG_MASK, "an address has no tag");

#define URING_BUFFERS	512u

enum uring_table { TABLE_UNTRIED, TABLE_THERE, TABLE_REFUSED };

struct uring_engine {
	struct engine engine;
	struct io_uring ring;
	bool tells_taskrun;		/* the ring says when completions wait in the kernel */
	uint64_t memory_bytes;		/* that may still be transferred before the next wait */
	enum uring_table buffers;
	bool buffer_used[URING_BUFFERS];
	struct msghdr msg[MAX_SQ_ENTRIES];	/* of the entry in the same place: the kernel copies it when it takes the entry */
};

static inline struct uring_engine *to_uring(struct engine *engine)
{
	return container_of(engine, struct uring_engine, engine);
}

/* uring-register.c: of engine_ops */
uint8_t uring_file_add(struct engine *engine, int fd);
uint16_t uring_buffer_add(struct engine *engine, void *base, size_t len);
void uring_buffer_remove(struct engine *engine, uint16_t buffer);
uint16_t uring_creds_add(struct engine *engine);
void uring_creds_remove(struct engine *engine, uint16_t creds);

#endif
