// SPDX-License-Identifier: GPL-2.0-only
/* COPY mode: the data of requests, to and from the server's buffer. */
#include <linux/bio.h>
#include <linux/blk-mq.h>
#include <linux/sched/signal.h>
#include <linux/uio.h>

#include "blktap_internal.h"

/*
 * By single pages and through an iov_iter: a bvec may span pages that are not
 * of one compound page, and may lie in a slab object (XFS does that), where
 * copy_to_user() would run into hardened usercopy.
 */
static int blktap_copy(struct blktap *tap, struct request *rq,
		       unsigned int direction)
{
	u8 __user *buf = tap->buf + (u64)rq->tag * tap->max_io_bytes;
	struct req_iterator it;
	struct iov_iter iter;
	struct bio_vec bv;
	size_t done;

	iov_iter_ubuf(&iter, direction, buf, blk_rq_bytes(rq));
	rq_for_each_segment(bv, rq, it) {
		if (direction == READ)
			done = copy_page_to_iter(bv.bv_page, bv.bv_offset,
						 bv.bv_len, &iter);
		else
			done = copy_page_from_iter(bv.bv_page, bv.bv_offset,
						   bv.bv_len, &iter);
		if (done != bv.bv_len)
			return fatal_signal_pending(current) ? -EINTR : -EFAULT;
	}
	return 0;
}

/* The directions are an iov_iter's: READ fills it, WRITE empties it. */
int blktap_copy_to_server(struct blktap *tap, struct request *rq)
{
	return blktap_copy(tap, rq, READ);
}

int blktap_copy_from_server(struct blktap *tap, struct request *rq)
{
	return blktap_copy(tap, rq, WRITE);
}
