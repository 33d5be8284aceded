/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Reading in place: files on tmpfs are mapped, and what is asked for is pointed at.
 *
 * The kernel would give a page to a hole that is looked at through a mapping, so
 * only what lies in memory is lent: holes do not, nor what is swapped out or past
 * the end. The kernel is asked for the pages of a chunk (mincore) when one is wanted that
 * is not known to be there, and again no sooner than some reads later; meanwhile they are
 * read by transfers.
 *
 * A mapping holds its file open, and with it its locks, for as long as
 * something is lent: so it is made of a descriptor of its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/clock.h"
#include "common/pages.h"
#include "io/engine-internal.h"

#define CHUNK_SHIFT	18
#define PAGE_SHIFT	12
#define CHUNK_PAGES	(1u << (CHUNK_SHIFT - PAGE_SHIFT))	/* bits of map.there[] */
#define ASK_AGAIN	64u		/* reads that miss a page of the chunk */
#define IDLE_NS		1000000000ull
/* Of the address space, which a process of 32 bits has little of. */
#define MAP_MAX		(SIZE_MAX / 16 + 1)

struct io_map {
	struct engine *engine;
	uint8_t *base;
	size_t len;			/* as mapped: the file may grow up to it */
	unsigned int refs;		/* the file's, and of what is lent */
	uint64_t *there;		/* a bit for each page, a chunk's in each */
	uint8_t *wait;			/* of each chunk: so many reads before it is asked again */
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
		madvise(map->base, map->len, MADV_DONTNEED);
	map->used = false;
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

static void map_free(struct io_map *map)
{
	if (map->base)
		munmap(map->base, map->len);
	pages_free(map->there, map->nr_chunks * sizeof(*map->there));
	pages_free(map->wait, map->nr_chunks);
	free(map);
}

static void *map_file(int fd, size_t len)
{
	char path[32];
	void *base;
	int own;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	own = open(path, O_RDONLY | O_CLOEXEC);
	if (own < 0)
		return NULL;
	base = mmap(NULL, len, PROT_READ, MAP_SHARED | MAP_NORESERVE,
		    own, 0);
	close(own);
	return base == MAP_FAILED ? NULL : base;
}

void lend_add(struct engine *engine, int fd)
{
	struct io_map *map;
	struct stat st;
	uint64_t len;

	if (sysconf(_SC_PAGESIZE) != 1 << PAGE_SHIFT || fstat(fd, &st) ||
	    st.st_size <= 0)
		return;
	if ((uint64_t)st.st_size > MAP_MAX)
		return;
	len = round_up_u64(map_length(fd, (uint64_t)st.st_size),
			   1u << CHUNK_SHIFT);
	if (!engine->map)
		engine->map = calloc(engine->nr_files, sizeof(*engine->map));
	map = engine->map ? calloc(1, sizeof(*map)) : NULL;
	if (!map)
		return;
	map->engine = engine;
	map->refs = 1;
	map->len = len < MAP_MAX ? (size_t)len : MAP_MAX;
	map->nr_chunks = map->len >> CHUNK_SHIFT;
	map->idle.expired = look_idle;
	map->there = pages_alloc(map->nr_chunks * sizeof(*map->there));
	map->wait = pages_alloc(map->nr_chunks);
	if (map->there && map->wait)
		map->base = map_file(fd, map->len);
	if (map->base)
		engine->map[fd] = map;
	else
		map_free(map);
}

void engine_lend_end(struct io_map *map)
{
	if (!--map->refs)
		map_free(map);
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
		map->there[i] = 0;
}

/* The bits of the chunk's pages from first to last, which may lie in other chunks. */
static uint64_t mask_of(uint64_t chunk, uint64_t first, uint64_t last)
{
	uint64_t from = chunk * CHUNK_PAGES, mask = UINT64_MAX;

	if (first > from)
		mask <<= first - from;
	if (last < from + CHUNK_PAGES - 1)
		mask &= UINT64_MAX >> (from + CHUNK_PAGES - 1 - last);
	return mask;
}

static bool is_there(struct io_map *map, uint64_t chunk, uint64_t mask)
{
	uint8_t page[CHUNK_PAGES];
	uint64_t there = 0;

	if ((map->there[chunk] & mask) == mask)
		return true;
	if (map->wait[chunk] && --map->wait[chunk])
		return false;
	map->wait[chunk] = ASK_AGAIN;
	if (mincore(map->base + (chunk << CHUNK_SHIFT), 1u << CHUNK_SHIFT,
		    page))
		return false;
	for (unsigned int i = 0; i < CHUNK_PAGES; i++)
		there |= (uint64_t)(page[i] & 1) << i;
	map->there[chunk] = there;
	return (there & mask) == mask;
}

const void *engine_lend(struct engine *engine, int fd, uint64_t offset,
			size_t len, struct io_map **lender)
{
	struct io_map *map = engine_file(engine, fd) & FILE_TMPFS &&
			     engine->map ? engine->map[fd] : NULL;
	uint64_t end;

	if (!map || !len || !add_u64(offset, len - 1, &end) ||
	    end >> CHUNK_SHIFT >= map->nr_chunks)
		return NULL;
	for (uint64_t i = offset >> CHUNK_SHIFT; i <= end >> CHUNK_SHIFT; i++)
		if (!is_there(map, i, mask_of(i, offset >> PAGE_SHIFT,
					      end >> PAGE_SHIFT)))
			return NULL;
	if (!map->idle.armed)
		engine_timer_set(engine, &map->idle,
				 engine_now(engine) + IDLE_NS);
	map->used = true;
	map->refs++;
	*lender = map;
	return map->base + offset;
}
