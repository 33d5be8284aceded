/* SPDX-License-Identifier: LGPL-2.1-only */
#include "common/stats.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"
#include "common/rundir.h"

uint64_t stats_percentile(const struct stats_op *op, double percent)
{
	uint64_t total = 0, seen = 0, rank;

	for (unsigned int i = 0; i < STATS_BUCKETS; i++)
		total += op->latency[i];
	if (!total)
		return 0;
	rank = (uint64_t)((double)total * percent / 100);
	for (unsigned int i = 0; i < STATS_BUCKETS; i++) {
		seen += op->latency[i];
		if (seen > rank || seen == total) {
			uint64_t end = stats_bucket_end(i) - 1;

			return end < op->max_ns ? end : op->max_ns;
		}
	}
	return op->max_ns;
}

/* All its space now: a page that /run has no room for would be a SIGBUS later. */
static int make_file(const char *path)
{
	int fd, rc;

	unlink(path);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
		  0600);
	if (fd < 0)
		return -errno;
	rc = -posix_fallocate(fd, 0, sizeof(struct stats_page));
	if (rc) {
		close(fd);
		unlink(path);
		return rc;
	}
	return fd;
}

struct stats_page *stats_page_new(int minor)
{
	struct stats_page *page;
	char path[PATH_MAX];
	int fd = -1;

	if (minor >= 0) {
		fd = run_path(path, sizeof(path), "stats%d.%d", getpid(), minor);
		if (!fd)
			fd = make_file(path);
		if (fd < 0)
			log_warn("no statistics page for others to read minor=%d path=%s err=%d",
				 minor, run_dir(), -fd);
	}
	page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE,
		    fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
	if (fd >= 0)
		close(fd);
	if (page == MAP_FAILED)
		return NULL;
	page->version = STATS_VERSION;
	page->bytes = sizeof(*page);
	page->pid = getpid();
	page->minor = minor;
	__atomic_store_n(&page->magic, STATS_MAGIC, __ATOMIC_RELEASE);
	return page;
}

void stats_page_hide(const struct stats_page *page)
{
	char path[PATH_MAX];

	if (page->minor >= 0 &&
	    !run_path(path, sizeof(path), "stats%d.%d", getpid(), page->minor))
		unlink(path);
}

void stats_page_free(struct stats_page *page)
{
	stats_page_hide(page);
	munmap(page, sizeof(*page));
}

int stats_page_map(const struct stats_page **page, int pid, int minor,
		   struct error *err)
{
	const struct stats_page *p;
	char path[PATH_MAX];
	struct stat st;
	int fd, rc;

	rc = run_path(path, sizeof(path), "stats%d.%d", pid, minor);
	if (rc)
		return error_set(err, rc, "%s: its name is too long", run_dir());
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return error_set(err, -errno, "%s: %s", path, strerror(errno));
	if (fstat(fd, &st))
		rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
	else if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < sizeof(*p))
		rc = error_set(err, -EPROTO, "%s: is no statistics page of this release", path);
	if (rc)
		goto out;
	p = mmap(NULL, sizeof(*p), PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) {
		rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
		goto out;
	}
	if (p->magic != STATS_MAGIC || p->version != STATS_VERSION ||
	    p->pid != pid || p->minor != minor) {
		rc = error_set(err, -EPROTO, "%s: is no statistics page of this release", path);
		stats_page_unmap(p);
		goto out;
	}
	*page = p;
out:
	close(fd);
	return rc;
}

void stats_page_unmap(const struct stats_page *page)
{
	munmap((void *)(uintptr_t)page, sizeof(*page));
}

void stats_change_begin(struct stats_page *page)
{
	__atomic_store_n(&page->sequence, page->sequence + 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void stats_change_end(struct stats_page *page)
{
	__atomic_store_n(&page->sequence, page->sequence + 1, __ATOMIC_RELEASE);
}

bool stats_describe(const struct stats_page *page, struct stats_page *copy)
{
	uint32_t before = __atomic_load_n(&page->sequence, __ATOMIC_ACQUIRE);

	memcpy(copy, page, offsetof(struct stats_page, state));
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return !(before & 1) &&
	       before == __atomic_load_n(&page->sequence, __ATOMIC_RELAXED);
}
