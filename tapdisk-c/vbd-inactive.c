/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A disk whose image somebody else still has: another host, while its guest
 * comes from there. The gendisk is there and its requests wait. All that is known
 * of the image is its size; it is opened, and that compared, when its lock is free.
 *
 * QEMU reads the first sector of an emulated drive when it is started, which at the
 * destination of a migration is before the source lets go, and waits for it. The
 * guest is suspended then, at the source, and has been before the disk was made
 * (libxl's order), and what it had been told is written is in the image. So what is at its beginning
 * is read at once, past the page cache, and reads of that are answered. All else waits.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/lock.h"
#include "common/log.h"
#include "vbd-internal.h"

#define STEP_NS		100000000ull
/* How long it is before the log says, again, that the disk is still waiting. */
#define COMPLAIN_NS	30000000000ull

/* args: TYPE:PATH, of a driver that can look() */
static bool is_locked(const char *args)
{
	const char *colon = strchr(args, ':');
	bool locked;
	int fd;

	if (!colon)
		return false;
	fd = open(colon + 1, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	/* EAGAIN: another host writes it, and is asked to let this one read. */
	if (fd < 0)
		return errno == EAGAIN;
	locked = !lock_is_free(fd);
	close(fd);
	return locked;
}

static void complain(struct vbd *vbd, const char *why)
{
	uint64_t now = engine_now(vbd->engine);

	if (now < vbd->inactive_said_ns + COMPLAIN_NS)
		return;
	vbd->inactive_said_ns = now;
	log_warn("requests wait until its image can be opened: %s minor=%d path=%s",
		 why, vbd->minor, vbd->args);
}

bool vbd_read_first(const struct vbd *vbd, struct image_request *image)
{
	uint32_t sectors = image_look_sectors(&vbd->info);

	if (!vbd->first || image->op != IMAGE_READ ||
	    image->sector >= sectors || image->count > sectors - image->sector)
		return false;
	image->lent = NULL;
	memcpy(image->buf, vbd->first + (image->sector << SECTOR_SHIFT),
	       (size_t)image->count << SECTOR_SHIFT);
	return true;
}

static void again(struct vbd *vbd)
{
	engine_timer_set(vbd->engine, &vbd->inactive_timer,
			 engine_now(vbd->engine) + STEP_NS);
}

static void step(struct io_timer *timer)
{
	struct vbd *vbd = container_of(timer, struct vbd, inactive_timer);
	struct error err;

	/* Who takes the disks looks for itself. */
	if (vbd->drain != DRAIN_NONE || server_is_leaving(vbd->server)) {
		again(vbd);
	} else if (is_locked(vbd->args)) {
		complain(vbd, "another process, or another host, has it");
		again(vbd);
	} else if (vbd_unpause(vbd, NULL, &err)) {
		complain(vbd, err.text);
		again(vbd);
	}
}

void vbd_inactive_init(struct vbd *vbd)
{
	vbd->inactive_timer.expired = step;
	list_init(&vbd->inactive_timer.link);
}

void vbd_inactive_end(struct vbd *vbd)
{
	engine_timer_cancel(vbd->engine, &vbd->inactive_timer);
	free(vbd->first);
	vbd->first = NULL;
}

/* The size, from an image that may be written meanwhile, and what is at first. */
static int look(struct vbd *vbd, const char *args, bool readonly,
		struct error *err)
{
	struct image_open_args open_args = vbd_image_args(vbd, args, readonly);
	const struct image_driver *driver;
	int rc;

	rc = image_parse(args, &driver, &open_args.path, err);
	if (!rc && !driver->look)
		rc = error_set(err, -EOPNOTSUPP, "%s: can't be waited for", args);
	return rc ? rc : driver->look(&vbd->info, &open_args, vbd->first, err);
}

static int make_first(struct vbd *vbd, struct error *err)
{
	vbd->first = aligned_alloc(IMAGE_ALIGN, IMAGE_LOOK_SECTORS << SECTOR_SHIFT);
	return vbd->first ? 0 : error_set(err, -ENOMEM, "minor %d: out of memory",
					  vbd->minor);
}

/* Its locks reach no other host, and what is read of its tables may be old tomorrow. */
static bool is_vhd_on_device(const char *args)
{
	struct stat st;

	return !strncmp(args, "vhd:", 4) && !stat(args + 4, &st) &&
	       S_ISBLK(st.st_mode);
}

int vbd_open_inactive(struct vbd *vbd, const char *args, bool readonly,
		      bool suspended, struct error *err)
{
	struct error look_err;
	int rc;

	if (!readonly && is_vhd_on_device(args) && !is_locked(args))
		return error_set(err, -EPERM, "%s: nobody has it on this host, and locks on a block device don't tell whether another host has; a guest can bring a VHD from another host on a file system with locks (NFS) only",
				 args);
	rc = vbd_open(vbd, args, readonly, err);
	/* One that is busy without a lock, as a parent is, stays so. */
	if (rc != -EBUSY || vbd->args || !is_locked(args))
		return rc;
	rc = suspended ? make_first(vbd, &look_err) : 0;
	if (!rc)
		rc = look(vbd, args, readonly, &look_err);
	if (rc) {
		*err = look_err;
		goto out;
	}
	rc = vbd_open_held(vbd, args, readonly, err);
	if (rc)
		goto out;
	vbd->inactive_said_ns = engine_now(vbd->engine);
	log_info("inactive until its image is let go minor=%d path=%s%s",
		 vbd->minor, args, readonly ? " readonly" : "");
	again(vbd);
	return 0;
out:
	vbd_inactive_end(vbd);
	return rc;
}
