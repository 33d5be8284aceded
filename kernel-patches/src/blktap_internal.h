/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The driver's own objects.
 *
 *   minors (xarray) --> struct blktap --> gendisk --> hidden gendisk, blk-mq queue
 *                           |  ^             |           | queue_rq
 *                           |  +-------- pending <-------+
 *                           |                |           |
 *                           |  extents, files <-- direct-+
 *                           |                `--- pass --> block devices
 *                           +--> struct blktap_queue: rings, issued requests
 *
 * A bio of the disk is passed on to a block device, or becomes a request of the
 * queue. A request is on one list: pending (nobody has it), issued (the server has
 * it), or direct (the kernel's worker is to have it), or the kernel's own I/O for
 * it runs. A dead server's issued requests go back to the head of pending; the
 * kernel's own I/O goes on, and only what fails comes to pending.
 *
 * Lock order: blktap.lock, then disk->open_mutex (tried only), then
 * blktap.rq_lock. mmap(), poll() and sysfs take none of them: mmap() runs
 * under mmap_lock, which a fault on the server's buffer takes inside
 * blktap.lock, and removing a device waits for its sysfs readers.
 */
#ifndef BLKTAP_INTERNAL_H
#define BLKTAP_INTERNAL_H

#include <linux/blk-mq.h>
#include <linux/cdev.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/rbtree.h>
#include <linux/spinlock.h>
#include <linux/version.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "proto.h"

#define BLKTAP_NODE_DIR	"xen/blktap-2/"
#define BLKTAP_REQ_FAILED	REQ_DRV	/* passed on in vain: for the server */
#define BLKTAP_MAX_DEAD_TIMEOUT	(365u * 24 * 3600)

enum blktap_state {
	BLKTAP_NEW,		/* no device */
	BLKTAP_LIVE,		/* a device and its server */
	BLKTAP_QUIESCED,	/* a device; its requests are held for a server */
	BLKTAP_DEAD,		/* freed: only open files keep it */
};

/* A request's own data (blk-mq pdu). */
struct blktap_rq {
	struct list_head node;	/* in pending, issued or direct */
	u8 flags;		/* BLKTAP_RQ_DIRECT_FAILED, BLKTAP_RQ_UNFIT */
	u8 epoch;		/* in which that is counted */
	u16 nr_bvecs;
	unsigned long start;	/* jiffies */
	struct kiocb iocb;
	atomic_t ref;		/* on iocb: of who started it and of its completion */
	long ret;		/* of that */
	struct bio_vec bvec[];	/* max_bvecs */
};

/* A registered file. */
struct blktap_target {
	struct file *file;	/* NULL: the number is free */
	struct block_device *bdev;	/* the disk under it */
	struct block_device *pass;	/* it is one that bios can be passed to */
	u32 align;		/* a mask: offsets and lengths of direct I/O */
	bool write;
};

/* Where an extent has a request. */
struct blktap_place {
	u64 offset;		/* bytes */
	u32 file;
};

/* The count of I/O that the kernel runs, by what may have started it. */
struct blktap_epochs {
	u32 running[2];
	u8 now;			/* new I/O is counted here */
	u64 wanted;		/* withdrawals so far */
	u64 turned;		/* those that the old epoch is waited for */
	u64 drained;		/* those whose I/O has ended */
};

/* The ring of one queue. Under blktap.lock, but see mmap() and poll(). */
struct blktap_queue {
	struct blktap_ring *ring;	/* shared: never trusted */
	struct blktap_sqe *sqes;	/* shared: written, never read */
	struct blktap_cqe *cqes;	/* shared: read once */
	u64 ring_bytes;
	u32 entries;
	u32 sq_tail;			/* the kernel's indices; those in */
	u32 cq_head;			/* the ring are copies for the server */
	struct list_head issued;	/* oldest first */
	struct request *held[BLKTAP_MAX_ENTRIES];
	u64 held_ids[BLKTAP_MAX_ENTRIES];	/* 0: the tag is free */
};

struct blktap_counters {
	u64 submitted;
	u64 completed;		/* completions accepted */
	u64 refused;		/* completions refused */
	u64 faults;		/* requests failed by the server's buffer */
	u64 requeued;		/* given back by the server */
	u64 recovered;		/* given again after a server's death */
	u64 outlived;		/* run by the kernel when their server died */
	u64 expired;		/* held when the time was over; under rq_lock too */
	/* the kernel's own I/O, under rq_lock */
	u64 direct_reads;
	u64 direct_writes;
	u64 direct_failed;
};

struct blktap {
	struct device dev;	/* its reference count is the minor's */
	struct cdev cdev;
	int minor;
	u64 id;			/* no other minor has had it since boot */

	struct mutex lock;	/* all below but what rq_lock covers */
	enum blktap_state state;	/* read without the lock too */

	/* the server: whoever has the ring open */
	bool opened;
	bool set_up;
	pid_t task;
	struct mm_struct *mm;	/* compared only: mmgrab() keeps it unique */
	u8 __user *buf;
	u64 features;
	u32 max_io_bytes;
	struct blktap_queue queue;

	/* while QUIESCED */
	unsigned int dead_timeout;	/* seconds, 0: for ever; read without the lock too */
	unsigned long dead_since;	/* jiffies: what dead_timeout counts from */
	struct delayed_work dead_work;

	/* the device */
	struct gendisk *disk;
	struct gendisk *queue_disk;	/* hidden: what is not passed on */
	struct blk_mq_tag_set tag_set;
	struct blktap_device_params params;	/* flags: queue_rq reads them */
	u32 dev_entries;
	u32 dev_max_io_bytes;
	u32 max_bvecs;

	spinlock_t rq_lock;	/* all below, with interrupts off */
	struct list_head pending;
	bool failing;		/* the device goes away: fail every request */
	bool expired;		/* no server came in time: the same until one does */
	/* changed under lock too */
	struct blktap_target targets[BLKTAP_MAX_FILES];
	struct rb_root extents;
	u32 nr_extents;
	struct blktap_epochs epochs;
	struct list_head direct;
	struct blktap_pass *pass_pool;	/* made with the first file that is one */
	struct list_head passes;	/* those that are free */
	struct list_head passed;	/* for the worker to end */
	struct bio_list again;		/* passed on in vain */

	wait_queue_head_t wait;	/* the server's, and who waits for a drain */
	struct workqueue_struct *workqueue;	/* made with the first file */
	struct work_struct direct_work;
	struct workqueue_struct *again_queue;	/* made with pass_pool */
	struct work_struct again_work;	/* may wait for a tag */

	struct blktap_counters count;	/* written under lock */
};

/* main.c */
extern struct class *blktap_class;
extern unsigned int blktap_max_minors;
extern unsigned int blktap_dead_timeout;
extern dev_t blktap_devt;
/*
 * Reads a struct that starts with its size: usize bytes at least are asked for.
 */
int blktap_get_arg(void *arg, size_t ksize, size_t min, const void __user *from);
/* Writes back what the caller has room for. */
int blktap_put_arg(const void *arg, size_t ksize, void __user *to);

/* control.c */
int blktap_control_init(void);
void blktap_control_exit(void);

/* ring.c */
extern const struct file_operations blktap_ring_fops;

/* enter.c */
/* -EPERM, -ENODEV, -EPROTO, -EINTR; lock is held. */
int blktap_enter(struct blktap *tap, struct blktap_enter *enter);
/* Puts what a server that is gone has issued back, to be given again. */
void blktap_hold_issued(struct blktap *tap);

/* queue.c; lock is held where a queue is made and removed. */
int blktap_queue_create(struct blktap *tap, const struct blktap_device_params *params);
/*
 * All of its requests have ended, or will without a server. Whoever is about to
 * submit to it still may: the gendisk is put by blktap_free_disk().
 */
void blktap_queue_remove(struct blktap *tap);
/* Without a lock. Gives a bio of the disk to the queue; may wait for a tag. */
void blktap_queue_bio(struct gendisk *queue_disk, struct bio *bio);
/* One that queue_rq has taken. */
void blktap_end_request(struct blktap *tap, struct request *rq, blk_status_t status);
void blktap_end_request_task(struct blktap *tap, struct request *rq, blk_status_t status);
/* In the disk's statistics. start: jiffies. */
void blktap_account_end(struct block_device *part, enum req_op op,
			unsigned int sectors, unsigned long start);

/* device.c; lock is held in all of them. */
int blktap_device_create(struct blktap *tap,
			 const struct blktap_device_params *params);
int blktap_device_resume(struct blktap *tap,
			 const struct blktap_device_params *params);
int blktap_device_set(struct blktap *tap,
		      const struct blktap_device_params *params);
/*
 * -ENODEV; -EBUSY when it is open, unless although_open. -EINTR: killed while
 * the kernel's own I/O ran; it fails all requests, and may be removed again.
 * The lock is dropped for that I/O. any: also a device that was made
 * meanwhile; else -ENODEV then.
 */
int blktap_device_remove(struct blktap *tap, bool although_open, bool any);
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
void blktap_limits(struct blktap *tap, const struct blktap_device_params *params,
		   struct queue_limits *lim);
#else
void blktap_limits(struct blktap *tap, const struct blktap_device_params *params,
		   struct request_queue *q);
#endif

/* expire.c */
int blktap_expire_init(void);
void blktap_expire_exit(void);
void blktap_expire_work(struct work_struct *work);
/* lock is held. The device has lost its server, or its time has changed. */
void blktap_expire_begin(struct blktap *tap);
/* Now, whatever the time; -EBUSY if a server is there. */
int blktap_expire_now(struct blktap *tap);
/* A server has come. */
void blktap_expire_end(struct blktap *tap);

/* copy.c */
/*
 * The data of a request to or from the server's buffer, in the server's
 * context. -EFAULT: the buffer is not there. -EINTR: the server is being
 * killed, so that a fault says nothing about its buffer.
 */
int blktap_copy_to_server(struct blktap *tap, struct request *rq);
int blktap_copy_from_server(struct blktap *tap, struct request *rq);

/* file.c */
/* Whether part of the caller's memory is mapped from a file on a disk, or from a disk. */
bool blktap_buffer_on_disk(u64 addr, u64 len);
/* lock is held. */
int blktap_file_add(struct blktap *tap, int fd, u32 number, bool write);
int blktap_file_remove(struct blktap *tap, u32 number);
/* The extents too. Returns how much I/O on them still runs. */
u32 blktap_files_drop(struct blktap *tap);

/* extent.c; lock is held but where rq_lock is said. */
/* Checks each; added says how many there are after an error too. */
int blktap_extents_add(struct blktap *tap, const struct blktap_extent *extent,
		       u32 nr, u32 *added);
/*
 * Forgets what there is in a range, of one file, or of all for -1. Returns how
 * much I/O runs on what was forgotten now and before.
 */
u32 blktap_extents_withdraw(struct blktap *tap, u64 sector, u64 nr_sectors, int file);
/* None of it runs any more; without a lock. */
bool blktap_drained(struct blktap *tap);
/* Waits for that; -EINTR if killed. */
int blktap_drain_wait(struct blktap *tap);
/* rq_lock is held: the one extent that has all of a request's sectors. */
bool blktap_extent_find(struct blktap *tap, u64 sector, u32 nr_sectors,
			bool write, struct blktap_place *place);
/* The epoch that I/O begins in, and ends with. */
u8 blktap_running_begin(struct blktap *tap);
void blktap_running_end(struct blktap *tap, u8 epoch);

/* direct.c */
/* rq_lock is held. True if the kernel does the request's I/O: then kick. */
bool blktap_direct_try(struct blktap *tap, struct request *rq);
void blktap_direct_kick(struct blktap *tap);
enum blktap_refusal blktap_check_remap(const struct blktap *tap, struct request *rq,
				       u32 file);
/* The server says where the request's data is. It gets back what can't be done there. */
void blktap_direct_remap(struct blktap *tap, struct request *rq, u32 file, u64 offset);
void blktap_direct_work(struct work_struct *work);
/* The server has not taken from the file what it was registered with. */
bool blktap_still_direct(const struct file *file);
bool blktap_may_write(const struct blktap_target *target);

/* pass.c */
/* lock is held; -ENOMEM. */
int blktap_pass_init(struct blktap *tap);
/* Nothing runs. */
void blktap_pass_exit(struct blktap *tap);
/* Whether any bio can be passed on to it. */
bool blktap_pass_possible(struct block_device *bdev);
/* False: it is for the queue. */
bool blktap_pass_try(struct blktap *tap, struct bio *bio);
/* What has ended, and could not where it did. */
void blktap_pass_work(struct blktap *tap);
void blktap_again_work(struct work_struct *work);

/* sysfs.c */
extern const struct attribute_group *blktap_groups[];

static inline struct blktap_rq *blktap_rq(struct request *rq)
{
	return blk_mq_rq_to_pdu(rq);
}

static inline struct request *blktap_request(struct blktap_rq *brq)
{
	return blk_mq_rq_from_pdu(brq);
}

/* rq_lock is held. */
static inline bool blktap_fails(const struct blktap *tap)
{
	return tap->failing || tap->expired;
}

/* Readers outside the lock see a state that was true a moment ago. */
static inline void blktap_set_state(struct blktap *tap, enum blktap_state state)
{
	WRITE_ONCE(tap->state, state);
}

/* Tells the server that requests wait. */
static inline void blktap_wake(struct blktap *tap)
{
	wake_up_interruptible_poll(&tap->wait, EPOLLIN | EPOLLRDNORM);
}

#endif
