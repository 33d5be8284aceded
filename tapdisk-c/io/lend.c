/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Reading in place: files on tmpfs are mapped, and what is asked for is pointed at.
 *
 * The kernel would give a page to a hole that is looked at through a mapping, so
 * only what lies in memory is lent: holes do not, nor what is swapped out or past
 * the end. The kernel is asked for each chunk as a whole (mincore), when it is first
 * wanted; one that lacks a page is read by transfers, and asked for again some
 * reads later.
 *
 * A mapping holds its file open, and with it its locks, for as long as
 * something is lent: so it is made of a descriptor of its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/clock.h"
#include "common/pages.h"
#include "io/engine-internal.h"

#define CHUNK_SHIFT	18
#define CHUNK_PAGES	((1u << CHUNK_SHIFT) / 4096)
#define ASK_AGAIN	64u		/* reads of a chunk that lacks pages */
#define IDLE_NS		1000000000ull

enum chunk { CHUNK_UNKNOWN = 0, CHUNK_FULL = 255 };	/* between: reads until it is asked again */

struct io_map {
	struct engine *engine;
	uint8_t *base;
	uint64_t len;			/* as mapped: the file may grow up to it */
	unsigned int refs;		/* the file's, and of what is lent */
	uint8_t *chunk;			/* enum chunk, of each 256 KiB */
	size_t nr_chunks;
	bool used;			/* since the timer looked last */
	struct io_timer idle;
};

/*
 * Whose pages this process has looked at counts as its memory, though it is the
 * file's: it lets go of them when nothing has been lent for a while.
 */
static void look_idle(struct io_timer *timer)
{
	struct io_map *map = container_of(timer, struct io_map, idle);

	if (map->used)
		engine_timer_set(map->engine, timer, now_ns() + IDLE_NS);
	else
		madvise(map->base, (size_t)map->len, MADV_DONTNEED);
	map->used = false;
}

static bool on_tmpfs(int fd)
{
	struct statfs fs;

	return !fstatfs(fd, &fs) && fs.f_type == TMPFS_MAGIC;
}

/* Of a file that grows, at most what there is memory for is added. */
static uint64_t map_length(int fd, uint64_t size)
{
	long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY || pages < 0 ||
	    page < 0)
		return size;
	return size + (uint64_t)pages * (uint64_t)page;
}

static void *map_file(int fd, uint64_t len)
{
	char path[32];
	void *base;
	int own;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	own = open(path, O_RDONLY | O_CLOEXEC);
	if (own < 0)
		return NULL;
	base = mmap(NULL, (size_t)len, PROT_READ, MAP_SHARED | MAP_NORESERVE,
		    own, 0);
	close(own);
	return base == MAP_FAILED ? NULL : base;
}

void lend_add(struct engine *engine, int fd)
{
	struct io_map *map;
	struct stat st;

	if (!on_tmpfs(fd) || fstat(fd, &st) || st.st_size <= 0)
		return;
	if (!engine->map)
		engine->map = calloc(engine->nr_files, sizeof(*engine->map));
	map = engine->map ? calloc(1, sizeof(*map)) : NULL;
	if (!map)
		return;
	map->engine = engine;
	map->refs = 1;
	map->len = map_length(fd, (uint64_t)st.st_size);
	map->nr_chunks = (size_t)(map->len >> CHUNK_SHIFT);
	map->idle.expired = look_idle;
	map->chunk = pages_alloc(map->nr_chunks);
	map->base = map->chunk ? map_file(fd, map->len) : NULL;
	if (map->base) {
		engine->map[fd] = map;
		return;
	}
	pages_free(map->chunk, map->nr_chunks);
	free(map);
}

void engine_lend_end(struct io_map *map)
{
	if (--map->refs)
		return;
	munmap(map->base, (size_t)map->len);
	pages_free(map->chunk, map->nr_chunks);
	free(map);
}

void lend_remove(struct engine *engine, int fd)
{
	struct io_map *map = engine->map ? engine->map[fd] : NULL;

	if (!map)
		return;
	engine->map[fd] = NULL;
	engine_timer_cancel(engine, &map->idle);
	engine_lend_end(map);
}

void lend_punched(struct engine *engine, const struct io_req *req)
{
	struct io_map *map = engine->map ? engine->map[req->fd] : NULL;
	uint64_t last = (req->offset + req->len - 1) >> CHUNK_SHIFT;

	if (!map)
		return;
	for (uint64_t i = req->offset >> CHUNK_SHIFT;
	     i <= last && i < map->nr_chunks; i++)
		map->chunk[i] = CHUNK_UNKNOWN;
}

static bool is_full(struct io_map *map, uint64_t i)
{
	uint8_t *chunk = &map->chunk[i], there[CHUNK_PAGES];

	if (*chunk == CHUNK_FULL)
		return true;
	if (*chunk && --*chunk)
		return false;
	*chunk = ASK_AGAIN;
	if (mincore(map->base + (i << CHUNK_SHIFT), 1u << CHUNK_SHIFT, there))
		return false;
	for (unsigned int page = 0; page < CHUNK_PAGES; page++)
		if (!(there[page] & 1))
			return false;
	*chunk = CHUNK_FULL;
	return true;
}

const void *engine_lend(struct engine *engine, int fd, uint64_t offset,
			size_t len, struct io_map **lender)
{
	struct io_map *map = engine_file(engine, fd) & FILE_IN_MEMORY &&
			     engine->map ? engine->map[fd] : NULL;
	uint64_t end;

	if (!map || !len || !add_u64(offset, len - 1, &end) ||
	    end >> CHUNK_SHIFT >= map->nr_chunks)
		return NULL;
	for (uint64_t i = offset >> CHUNK_SHIFT; i <= end >> CHUNK_SHIFT; i++)
		if (!is_full(map, i))
			return NULL;
	if (!map->idle.armed)
		engine_timer_set(engine, &map->idle,
				 engine_now(engine) + IDLE_NS);
	map->used = true;
	map->refs++;
	*lender = map;
	return map->base + offset;
}
