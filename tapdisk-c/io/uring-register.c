/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * What the engine knows of files, and the kernel's table of buffers, made when
 * first used: a buffer's number is its place plus one.
 *
 * Files are not put in the kernel's table. It keeps them open when the
 * process is killed, until the ring is taken down some time later, and before
 * 6.13 for a while after they are removed; the image lock would last as long.
 * What it saves, a reference counted up and down, is nothing beside the I/O.
 */
#include "io/uring-internal.h"

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

/*
 * io_uring hands all I/O on a file system in memory to its threads, which costs
 * more than the I/O. A device only has its name there, in /dev.
 */
uint8_t uring_file_add(struct engine *engine, int fd)
{
	struct statfs fs;
	struct stat st;
	uint32_t type;

	(void)engine;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || fstatfs(fd, &fs))
		return 0;
	/* 32 bits, with or without a sign */
	type = (uint32_t)fs.f_type;
	if (type == TMPFS_MAGIC)
		return FILE_IN_MEMORY | FILE_TMPFS;
	return type == RAMFS_MAGIC ? FILE_IN_MEMORY : 0;
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

uint16_t uring_creds_add(struct engine *engine)
{
	int rc = io_uring_register_personality(&to_uring(engine)->ring);

	return rc > 0 ? (uint16_t)rc : 0;
}

void uring_creds_remove(struct engine *engine, uint16_t creds)
{
	io_uring_unregister_personality(&to_uring(engine)->ring, creds);
}
