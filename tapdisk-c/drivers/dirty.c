/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The bits are kept in memory too, and written with pwrite(), not through a
 * mapping: a full or broken file system then fails a request and does not end
 * the process. A part's first change costs such a write into the page cache,
 * its later ones a look at the bit.
 */
#include "drivers/dirty.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/file.h"
#include "common/lock.h"
#include "common/log.h"

#define DIRTY_VERSION	 1u
#define DIRTY_PART_SHIFT 16
#define DIRTY_PART	 (1u << DIRTY_PART_SHIFT)	/* bytes of the disk */
#define DIRTY_BITS	 4096u		/* where the bits are */
#define DIRTY_HEADER	 72u
#define BOOT_ID_OFFSET	 32u
#define BOOT_ID_LEN	 40u

enum dirty_state { DIRTY_OPEN, DIRTY_CONSISTENT };

static const char magic[8] = "xbdirty";

/* All zeros if it can't be told: no boot of any host. */
static void boot_id(uint8_t id[BOOT_ID_LEN])
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);

	memset(id, 0, BOOT_ID_LEN);
	if (fd < 0)
		return;
	if (read(fd, id, 36) != 36)
		memset(id, 0, BOOT_ID_LEN);
	close(fd);
}

static int write_header(const struct dirty *d, enum dirty_state state)
{
	uint8_t h[DIRTY_HEADER] = { 0 };

	memcpy(h, magic, sizeof(magic));
	put_be32(h + 8, DIRTY_VERSION);
	put_be32(h + 12, DIRTY_PART);
	put_be64(h + 16, d->size);
	put_be32(h + 24, (uint32_t)state);
	if (state == DIRTY_OPEN && !d->doubtful)
		boot_id(h + BOOT_ID_OFFSET);
	return file_write_all(d->fd, h, sizeof(h), 0);
}

static int check_header(const struct dirty *d, const uint8_t *h, uint64_t bytes,
			struct error *err)
{
	uint64_t size = get_be64(h + 16);

	if (memcmp(h, magic, sizeof(magic)))
		return error_set(err, -EINVAL,
				 "%s: is not a bitmap of changes, its first bytes are others; name another file, one that is missing is made",
				 d->path);
	if (get_be32(h + 8) != DIRTY_VERSION)
		return error_set(err, -EINVAL,
				 "%s: version %u of a bitmap of changes; this tapdisk knows %u; move the file away to begin a new one",
				 d->path, get_be32(h + 8), DIRTY_VERSION);
	if (get_be32(h + 12) != DIRTY_PART)
		return error_set(err, -EINVAL,
				 "%s: granularity %u: must be %u; move the file away to begin a new one",
				 d->path, get_be32(h + 12), DIRTY_PART);
	if (size != d->size)
		return error_set(err, -EINVAL,
				 "%s: is the bitmap of a disk of %llu bytes, this one has %llu; move the file away to begin a new one",
				 d->path, (unsigned long long)size,
				 (unsigned long long)d->size);
	if (get_be32(h + 24) > DIRTY_CONSISTENT)
		return error_set(err, -EINVAL,
				 "%s: state %u: must be 0 or 1; move the file away to begin a new one",
				 d->path, get_be32(h + 24));
	if (bytes != DIRTY_BITS + d->nr_bytes)
		return error_set(err, -EINVAL,
				 "%s: is %llu bytes long, not %llu as its disk takes; move the file away to begin a new one",
				 d->path, (unsigned long long)bytes,
				 (unsigned long long)(DIRTY_BITS + d->nr_bytes));
	return 0;
}

/* What is zero is not touched, so that it takes no memory. */
static int read_bits(const struct dirty *d)
{
	uint8_t piece[4096];
	static const uint8_t zero[sizeof(piece)];

	for (uint64_t at = 0; at < d->nr_bytes; at += sizeof(piece)) {
		size_t n = sizeof(piece);
		int rc;

		if (d->nr_bytes - at < n)
			n = (size_t)(d->nr_bytes - at);
		rc = file_read_all(d->fd, piece, n, DIRTY_BITS + at);
		if (rc)
			return rc;
		if (memcmp(piece, zero, n))
			memcpy(d->bits + at, piece, n);
	}
	return 0;
}

static uint64_t nr_parts(const struct dirty *d)
{
	return (d->size + DIRTY_PART - 1) >> DIRTY_PART_SHIFT;
}

static int load(struct dirty *d, uint64_t bytes, struct error *err)
{
	uint8_t h[DIRTY_HEADER] = { 0 }, id[BOOT_ID_LEN], none[BOOT_ID_LEN] = { 0 };
	int rc;

	/* A shorter file leaves zeros, which are not the magic. */
	rc = file_read_all(d->fd, h, sizeof(h), 0);
	if (rc && rc != -ENODATA)
		return error_set(err, rc, "%s: %s", d->path, strerror(-rc));
	rc = check_header(d, h, bytes, err);
	if (rc)
		return rc;
	rc = read_bits(d);
	if (rc)
		return error_set(err, rc, "%s: its bits: %s", d->path,
				 strerror(-rc));
	boot_id(id);
	if (get_be32(h + 24) == DIRTY_CONSISTENT ||
	    (!memcmp(id, h + BOOT_ID_OFFSET, BOOT_ID_LEN) &&
	     memcmp(id, none, BOOT_ID_LEN)))
		return 0;
	log_warn("the host went down while the disk was open, or its bits could not be written: all of it is taken for changed path=%s",
		 d->path);
	rc = dirty_set(d, 0, d->size);
	return rc ? error_set(err, rc, "%s: %s", d->path, strerror(-rc)) : 0;
}

static int sync_directory(const char *path)
{
	char *copy = strdup(path);
	int fd, rc = 0;

	if (!copy)
		return -ENOMEM;
	fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd) < 0)
		rc = -errno;
	if (fd >= 0)
		close(fd);
	free(copy);
	return rc;
}

/*
 * Under another name, so that what bears this one is whole. Space for all bits
 * is taken now: no change shall wait for it.
 */
static int make_as(struct dirty *d, const char *name, struct error *err)
{
	int rc;

	d->fd = open(name, O_RDWR | O_CLOEXEC | O_CREAT | O_NOFOLLOW, 0600);
	if (d->fd < 0)
		return error_set(err, -errno, "%s: can't be made: %s", d->path,
				 strerror(errno));
	rc = lock_take(d->fd, name, LOCK_WRITER, 0, err);
	if (rc)
		return rc;
	if (ftruncate(d->fd, 0) < 0)
		rc = -errno;
	if (!rc)
		rc = -posix_fallocate(d->fd, 0,
				      (off_t)(DIRTY_BITS + d->nr_bytes));
	if (!rc)
		rc = write_header(d, DIRTY_CONSISTENT);
	if (!rc && (fsync(d->fd) < 0 || link(name, d->path) < 0))
		rc = -errno;
	unlink(name);
	if (!rc)
		rc = sync_directory(d->path);
	return rc ? error_set(err, rc, "%s: can't be made: %s", d->path,
			      strerror(-rc)) : 0;
}

static int make(struct dirty *d, struct error *err)
{
	char *name;
	int rc;

	if (asprintf(&name, "%s.new", d->path) < 0)
		return error_set(err, -ENOMEM, "%s: out of memory", d->path);
	rc = make_as(d, name, err);
	free(name);
	return rc;
}

static int open_there(struct dirty *d, struct error *err)
{
	struct stat st;
	int rc;

	if (fstat(d->fd, &st) < 0)
		return error_set(err, -errno, "%s: %s", d->path,
				 strerror(errno));
	if (!S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "%s: is no regular file",
				 d->path);
	rc = lock_take(d->fd, d->path, LOCK_WRITER, 0, err);
	return rc ? rc : load(d, (uint64_t)st.st_size, err);
}

static void release(struct dirty *d)
{
	if (d->fd >= 0)
		close(d->fd);
	free(d->bits);
	free(d->path);
	d->fd = -1;
	d->bits = NULL;
	d->path = NULL;
}

int dirty_open(struct dirty *d, const char *path, uint64_t size,
	       struct error *err)
{
	int rc;

	*d = (struct dirty) { .fd = -1, .size = size };
	d->path = strdup(path);
	d->nr_bytes = round_up_u64((nr_parts(d) + 7) / 8, 8);
	if ((size_t)d->nr_bytes == d->nr_bytes)
		d->bits = calloc(1, (size_t)d->nr_bytes);
	if (!d->path || !d->bits) {
		rc = error_set(err, -ENOMEM, "%s: out of memory", path);
		goto out;
	}
	/* O_NONBLOCK: opening a FIFO must not hang. */
	d->fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (d->fd >= 0)
		rc = open_there(d, err);
	else if (errno == ENOENT)
		rc = make(d, err);
	else
		rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
	if (rc)
		goto out;
	rc = write_header(d, DIRTY_OPEN);
	if (!rc && fdatasync(d->fd) < 0)
		rc = -errno;
	if (rc)
		error_set(err, rc, "%s: %s", path, strerror(-rc));
out:
	if (rc)
		release(d);
	return rc;
}

/* Memory has bits that the file or the medium may lack. */
static int rewrite(struct dirty *d)
{
	int rc = 0;

	if (d->rewrite)
		rc = file_write_all(d->fd, d->bits, (size_t)d->nr_bytes, DIRTY_BITS);
	if (!rc)
		d->rewrite = false;
	return rc;
}

/* Bits of part first to last in a byte that begins with part base. */
static uint8_t mask_of(uint64_t base, uint64_t first, uint64_t last)
{
	unsigned int lo = first > base ? (unsigned int)(first - base) : 0;
	unsigned int hi = last < base + 7 ? (unsigned int)(last - base) : 7;

	return (uint8_t)((0xffu << lo) & (0xffu >> (7 - hi)));
}

int dirty_set(struct dirty *d, uint64_t offset, uint64_t len)
{
	uint64_t first = offset >> DIRTY_PART_SHIFT;
	uint64_t last = (offset + len - 1) >> DIRTY_PART_SHIFT;
	uint64_t from = UINT64_MAX, to = 0;
	int rc = rewrite(d);

	if (rc)
		return rc;
	for (uint64_t i = first / 8; i <= last / 8; i++) {
		uint8_t mask = mask_of(i * 8, first, last);

		if ((d->bits[i] & mask) == mask)
			continue;
		if (from == UINT64_MAX)
			from = i;
		to = i + 1;
	}
	if (from == UINT64_MAX)
		return 0;
	for (uint64_t i = from; i < to; i++)
		d->bits[i] |= mask_of(i * 8, first, last);
	d->unsynced = true;
	rc = file_write_all(d->fd, d->bits + from, (size_t)(to - from),
		       DIRTY_BITS + from);
	if (rc) {
		d->rewrite = true;
		log_error("can't note a change path=%s err=%d", d->path, -rc);
	}
	return rc;
}

int dirty_sync_begin(struct dirty *d)
{
	int rc = rewrite(d);

	if (!rc)
		d->unsynced = false;
	return rc;
}

/* Without the boot's id nobody trusts the bits, though the host has not gone down. */
static void doubt(struct dirty *d, bool doubtful)
{
	int rc;

	if (d->doubtful == doubtful)
		return;
	d->doubtful = doubtful;
	rc = write_header(d, DIRTY_OPEN);
	if (!rc)
		return;
	d->doubtful = true;
	log_error("can't be marked path=%s err=%d", d->path, -rc);
}

void dirty_sync_end(struct dirty *d, int err)
{
	if (!err) {
		doubt(d, d->doubtful && d->rewrite);
		return;
	}
	/* The kernel may have dropped what it could not write. */
	d->rewrite = true;
	doubt(d, true);
	d->unsynced = true;
	log_error("bits not on the medium path=%s err=%d", d->path, -err);
}

int dirty_close(struct dirty *d, struct error *err)
{
	int rc = dirty_sync_begin(d);

	if (!rc && fdatasync(d->fd) < 0)
		rc = -errno;
	if (!rc)
		rc = write_header(d, DIRTY_CONSISTENT);
	if (!rc && fdatasync(d->fd) < 0)
		rc = -errno;
	if (rc) {
		error_set(err, rc, "%s: not marked consistent: %s", d->path,
			  strerror(-rc));
		doubt(d, true);
	}
	release(d);
	return rc;
}
