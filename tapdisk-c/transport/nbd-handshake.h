/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The NBD handshake, fixed newstyle, from bytes to bytes: no socket in it. Any
 * name is the one export's. What a client asks that there is not gets an error
 * reply; what can't be parsed ends the connection.
 */
#ifndef XENBLK_NBD_HANDSHAKE_H
#define XENBLK_NBD_HANDSHAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* An answer is never longer. */
#define NBD_ANSWER_MAX	512u

/* Longer options are passed over with an error, which takes no memory. */
#define NBD_OPTION_MAX	65536u

struct nbd_export {
	uint64_t bytes;
	uint32_t min_block;
	uint32_t max_block;
	uint16_t flags;			/* NBD_FLAG_* */
	bool status;			/* base:allocation is to be had */
};

#define NBD_CONTEXT_ALLOCATION	1u	/* the id of base:allocation */

enum nbd_phase { NBD_CLIENT_FLAGS, NBD_OPTIONS, NBD_SKIP };

struct nbd_handshake {
	struct nbd_export export;
	enum nbd_phase phase;
	uint32_t skip;			/* bytes of an option to pass over */
	uint32_t option;
	bool no_zeroes;

	/* The result. */
	bool structured;
	bool allocation;		/* base:allocation was agreed on */
};

enum nbd_step {
	NBD_STEP_MORE,			/* the input holds no whole step yet */
	NBD_STEP_ANSWER,		/* send the answer (may be empty) and go on */
	NBD_STEP_READY,			/* send the answer, then come requests */
	NBD_STEP_END,			/* send the answer, then close */
};

/* The greeting; returns its length, at most NBD_ANSWER_MAX. */
size_t nbd_handshake_begin(struct nbd_handshake *hs,
			   const struct nbd_export *export, uint8_t *answer);

/*
 * One step with the len bytes at in. *used is how many it took, *answered how
 * many are in answer, which has room for NBD_ANSWER_MAX. Input of
 * NBD_OPTION_MAX and 16 bytes holds a step always.
 */
enum nbd_step nbd_handshake_step(struct nbd_handshake *hs, const uint8_t *in,
				 size_t len, size_t *used, uint8_t *answer,
				 size_t *answered);

#endif
