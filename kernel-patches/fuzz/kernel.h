/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What extent.c and blktap_internal.h need of the kernel, for user space: one
 * thread, locks that only check their use, memory that runs out on demand. The
 * headers of fuzz/include lead here.
 */
#ifndef BLKTAP_FUZZ_KERNEL_H
#define BLKTAP_FUZZ_KERNEL_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>

#include <linux/types.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef unsigned int __poll_t;
typedef u8 blk_status_t;

#define __user
#define U64_MAX			UINT64_MAX
#define SECTOR_SHIFT		9
#define GFP_KERNEL		0
#define GFP_NOWAIT		0
#define __GFP_NOWARN		0
#define EPOLLIN			1u
#define EPOLLOUT		4u
#define EPOLLRDNORM		64u

#define container_of(ptr, type, member) \
	((type *)(void *)((char *)(ptr) - offsetof(type, member)))
#define max(a, b)		((a) > (b) ? (a) : (b))
#define READ_ONCE(x)		(*(volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, v)	(*(volatile __typeof__(x) *)&(x) = (v))
#define check_add_overflow(a, b, sum)	__builtin_add_overflow(a, b, sum)
#define cond_resched()		fuzz_may_sleep()

enum req_op { REQ_OP_READ };
struct list_head { struct list_head *next, *prev; };
struct kiocb { int unused; };
typedef int atomic_t;
struct bio_vec { int unused; };
struct bio { int unused; };
struct bio_list { int unused; };
struct device { int unused; };
struct cdev { int unused; };
struct mutex { int unused; };
struct blk_mq_tag_set { int unused; };
struct workqueue_struct;
struct work_struct { int unused; };
struct delayed_work { int unused; };
struct request;
struct request_queue;
struct gendisk;
struct block_device;
struct file;
struct class;
struct attribute_group;
struct file_operations;

typedef struct { bool held; } spinlock_t;
typedef struct { unsigned int woken; } wait_queue_head_t;

_Noreturn void fuzz_fail(const char *file, int line, const char *cond);
#define fuzz_assert(cond) \
	do { if (!(cond)) fuzz_fail(__FILE__, __LINE__, #cond); } while (0)

/* How many spinlocks are held. */
extern unsigned int fuzz_locked;
/* The next allocations fail, by the bits from the lowest on. */
extern u32 fuzz_no_memory;

static inline void fuzz_may_sleep(void)
{
	fuzz_assert(!fuzz_locked);
}

static inline void fuzz_lock(spinlock_t *lock)
{
	fuzz_assert(!lock->held);
	lock->held = true;
	fuzz_locked++;
}

static inline void fuzz_unlock(spinlock_t *lock)
{
	fuzz_assert(lock->held);
	lock->held = false;
	fuzz_locked--;
}

#define spin_lock_irqsave(lock, flags)		((flags) = 1, fuzz_lock(lock))
#define spin_unlock_irqrestore(lock, flags)	((void)(flags), fuzz_unlock(lock))

static inline void *kmalloc(size_t size, int gfp)
{
	bool fail = fuzz_no_memory & 1;

	(void)gfp;
	fuzz_may_sleep();
	fuzz_no_memory >>= 1;
	return fail ? NULL : malloc(size);
}

static inline void kfree(void *p)
{
	free(p);
}

#define blk_mq_rq_to_pdu(rq)		((void *)(rq))
#define blk_mq_rq_from_pdu(pdu)		((struct request *)(void *)(pdu))
#define wake_up_poll(wait, mask)	((wait)->woken++)
#define wake_up_interruptible_poll(wait, mask)	((wait)->woken++)
/* One thread: whoever waits for what is not so waits for ever. */
#define wait_event_killable(wait, cond)	((cond) ? 0 : 1)

/* A tree that is not balanced, with the calls of the kernel's. */
struct rb_node { struct rb_node *rb_parent, *rb_left, *rb_right; };
struct rb_root { struct rb_node *rb_node; };

#define RB_ROOT	((struct rb_root) { NULL })
#define rb_entry_safe(ptr, type, member) \
	((ptr) ? container_of(ptr, type, member) : NULL)
#define rb_insert_color(node, root)	((void)(node), (void)(root))

static inline void rb_link_node(struct rb_node *node, struct rb_node *parent,
				struct rb_node **link)
{
	*node = (struct rb_node) { .rb_parent = parent };
	*link = node;
}

static inline struct rb_node *rb_next(const struct rb_node *node)
{
	struct rb_node *next = node->rb_right;

	if (next) {
		while (next->rb_left)
			next = next->rb_left;
		return next;
	}
	while (node->rb_parent && node == node->rb_parent->rb_right)
		node = node->rb_parent;
	return node->rb_parent;
}

/* Puts one node, or none, in another's place below its parent. */
static inline void rb_put(struct rb_node *old, struct rb_node *new,
			  struct rb_root *root)
{
	struct rb_node *parent = old->rb_parent;

	if (new)
		new->rb_parent = parent;
	if (!parent)
		root->rb_node = new;
	else if (parent->rb_left == old)
		parent->rb_left = new;
	else
		parent->rb_right = new;
}

static inline void rb_erase(struct rb_node *node, struct rb_root *root)
{
	struct rb_node *next;

	if (!node->rb_left || !node->rb_right) {
		rb_put(node, node->rb_left ? node->rb_left : node->rb_right, root);
		return;
	}
	next = rb_next(node);
	rb_put(next, next->rb_right, root);
	rb_put(node, next, root);
	next->rb_left = node->rb_left;
	next->rb_right = node->rb_right;
	if (next->rb_left)
		next->rb_left->rb_parent = next;
	if (next->rb_right)
		next->rb_right->rb_parent = next;
}

#endif
