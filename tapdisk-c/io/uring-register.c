/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Tables of files and buffers in the kernel, made when first used. A file's place
 * is its descriptor; a buffer's number is its place plus one.
 */
#include "io/uring-internal.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <unistd.h>

#define MAX_FILES	1024u

static int set_file(struct uring_engine *u, unsigned int place, int fd)
{
	int rc = io_uring_register_files_update(&u->ring, place, &fd, 1);

	return rc < 0 ? rc : 0;
}

/*
 * Before 6.13 the kernel drops a file that is removed from the table when all
 * requests that are in flight, of any file, are done, or even a second later.
 * Closing an image releases its lock, so that is no use. Tries it with two pipes.
 */
static bool removal_is_immediate(struct uring_engine *u)
{
	struct pollfd writer = { .fd = -1 };
	int busy[2] = { -1, -1 }, gone[2] = { -1, -1 };
	struct io_uring_sqe *sqe;
	bool yes = false;

	if (pipe2(busy, O_CLOEXEC) < 0 || pipe2(gone, O_CLOEXEC) < 0 ||
	    set_file(u, 0, busy[0]) || set_file(u, 1, gone[0]))
		goto out;
	sqe = io_uring_get_sqe(&u->ring);
	if (!sqe)
		goto out;
	io_uring_prep_poll_add(sqe, 0, POLLIN);
	sqe->flags |= IOSQE_FIXED_FILE;
	io_uring_sqe_set_data64(sqe, TAG_IGNORED);
	if (io_uring_submit(&u->ring) < 0)
		goto out;
	if (set_file(u, 1, -1))
		goto out;
	close(gone[0]);
	gone[0] = -1;
	writer.fd = gone[1];
	/* POLLERR: nobody can read it any more. */
	yes = poll(&writer, 1, 0) == 1 && (writer.revents & POLLERR);
out:
	/* Ends the poll. */
	if (busy[1] >= 0)
		close(busy[1]);
	io_uring_submit_and_get_events(&u->ring);
	set_file(u, 0, -1);
	set_file(u, 1, -1);
	if (busy[0] >= 0)
		close(busy[0]);
	if (gone[0] >= 0)
		close(gone[0]);
	if (gone[1] >= 0)
		close(gone[1]);
	return yes;
}

static enum uring_table make_files(struct uring_engine *u)
{
	struct rlimit limit;

	u->nr_files = MAX_FILES;
	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur < MAX_FILES)
		u->nr_files = (unsigned int)limit.rlim_cur;
	if (u->nr_files < 2 ||
	    io_uring_register_files_sparse(&u->ring, u->nr_files) < 0)
		return TABLE_REFUSED;
	if (removal_is_immediate(u))
		return TABLE_THERE;
	io_uring_unregister_files(&u->ring);
	return TABLE_REFUSED;
}

/*
 * io_uring hands all I/O on a file system in memory to its threads, which costs
 * more than the I/O.
 */
static bool in_memory(int fd)
{
	struct statfs fs;

	return !fstatfs(fd, &fs) &&
	       (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

uint8_t uring_file_add(struct engine *engine, int fd)
{
	struct uring_engine *u = to_uring(engine);
	uint8_t flags = in_memory(fd) ? FILE_IN_MEMORY : 0;

	if (u->files == TABLE_UNTRIED)
		u->files = make_files(u);
	if (u->files == TABLE_THERE && (unsigned int)fd < u->nr_files &&
	    !set_file(u, (unsigned int)fd, fd))
		flags |= FILE_REGISTERED;
	return flags;
}

void uring_file_remove(struct engine *engine, int fd)
{
	if (engine_file(engine, fd) & FILE_REGISTERED)
		set_file(to_uring(engine), (unsigned int)fd, -1);
}

static int set_buffer(struct uring_engine *u, unsigned int place, void *base,
		      size_t len)
{
	const struct iovec iov = { base, len };
	static const __u64 tag;
	int rc = io_uring_register_buffers_update_tag(&u->ring, place, &iov,
						      &tag, 1);

	return rc < 0 ? rc : 0;
}

uint16_t uring_buffer_add(struct engine *engine, void *base, size_t len)
{
	struct uring_engine *u = to_uring(engine);
	unsigned int i = 0;

	if (u->buffers == TABLE_UNTRIED)
		u->buffers = io_uring_register_buffers_sparse(&u->ring,
							      URING_BUFFERS) < 0 ?
			     TABLE_REFUSED : TABLE_THERE;
	if (u->buffers == TABLE_REFUSED)
		return 0;
	while (i < URING_BUFFERS && u->buffer_used[i])
		i++;
	if (i == URING_BUFFERS || set_buffer(u, i, base, len))
		return 0;
	u->buffer_used[i] = true;
	return (uint16_t)(i + 1);
}

void uring_buffer_remove(struct engine *engine, uint16_t buffer)
{
	struct uring_engine *u = to_uring(engine);

	set_buffer(u, buffer - 1u, NULL, 0);
	u->buffer_used[buffer - 1u] = false;
}
