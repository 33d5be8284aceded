/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * record:LOG:ENGINE, for the tests: writes down all that changes a file, so that
 * a test can make from it what a power loss would leave. LOG must not exist.
 *
 * The log begins with the 16 bytes "xenblk-record-1\n". Then records, each of
 * 40 bytes, little-endian, and perhaps a payload:
 *
 *    0  u32  kind
 *    4  u32  file, as numbered by FILE
 *    8  u64  number of the request
 *   16  u64  offset, bytes
 *   24  u64  length, bytes
 *   32  i64  result
 *
 *   1 FILE    a file is seen first; result: its size; payload: path, length bytes
 *   2 WRITE   is about to begin; payload: the data
 *   3 PUNCH, 4 ZERO, 5 SYNC   is about to begin
 *   6 DONE    request `number` is over; result: bytes, or -errno
 *   7 SIZE    the file has been cut or extended past the engine; offset: its size
 *
 * A sync makes durable what was DONE before it began, if it succeeds. What opens
 * and closes an image goes past the engine: a test kills tapdisk before it closes, and
 * copies the files before it opens. Of the system calls in between a change of the
 * size is seen, with the next request.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"
#include "io/fault-rules.h"
#include "io/wrap.h"

#define MAX_FILES 64

enum kind { FILE_SEEN = 1, WRITE, PUNCH, ZERO, SYNC, DONE, SIZE };

struct record {
	uint32_t kind;
	uint32_t file;
	uint64_t number;
	uint64_t offset;
	uint64_t length;
	int64_t result;
};

_Static_assert(sizeof(struct record) == 40, "written as it is");

struct seen_file {
	dev_t dev;
	ino_t ino;
	uint64_t size;
	uint64_t written;		/* the end of what was written behind size */
};

struct record_wrap {
	struct engine_wrap wrap;
	int log;
	bool broken;			/* the log lacks something: all fails */
	uint64_t next;			/* number */
	struct seen_file file[MAX_FILES];
	uint32_t nr_files;
	unsigned int depth;
	struct {
		const struct io_req *req;
		uint32_t file;
		uint64_t number;
	} running[];
};

static struct record_wrap *to_record(struct engine_wrap *wrap)
{
	return container_of(wrap, struct record_wrap, wrap);
}

static void record_close(struct engine_wrap *wrap)
{
	close(to_record(wrap)->log);
	free(to_record(wrap));
}

static int record_open(struct engine_wrap **wrap, const char *path,
		       unsigned int depth, struct error *err)
{
	static const char magic[16] = "xenblk-record-1\n";
	struct record_wrap *r;

	r = calloc(1, sizeof(*r) + depth * sizeof(r->running[0]));
	if (!r)
		return error_set(err, -ENOMEM, "I/O engine record: out of memory");
	r->depth = depth;
	r->log = open(path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC,
		      0600);
	if (r->log < 0 ||
	    write(r->log, magic, sizeof(magic)) != (ssize_t)sizeof(magic)) {
		int rc = error_set(err, -errno, "%s: %s", path, strerror(errno));

		if (r->log >= 0)
			close(r->log);
		free(r);
		return rc;
	}
	*wrap = &r->wrap;
	return 0;
}

static void put(struct record_wrap *r, const void *data, size_t len)
{
	const char *p = data;

	while (len && !r->broken) {
		ssize_t n = write(r->log, p, len);

		if (n > 0) {
			p += n;
			len -= (size_t)n;
		} else if (n == 0 || errno != EINTR) {
			log_error("I/O engine record: the log cannot be written err=%d",
				  errno);
			r->broken = true;
		}
	}
}

static void put_record(struct record_wrap *r, const struct record *record)
{
	put(r, record, sizeof(*record));
}

static void put_new_file(struct record_wrap *r, int fd, const struct stat *st)
{
	struct record record = { .kind = FILE_SEEN, .file = r->nr_files };
	char link[32], path[PATH_MAX];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path));
	if (n < 0 || r->nr_files == MAX_FILES) {
		log_error("I/O engine record: too many files, or one without a path");
		r->broken = true;
		return;
	}
	r->file[r->nr_files++] = (struct seen_file){
		.dev = st->st_dev, .ino = st->st_ino,
		.size = (uint64_t)st->st_size,
	};
	record.length = (uint64_t)n;
	record.result = st->st_size;
	put_record(r, &record);
	put(r, path, (size_t)n);
}

/* The number of the file, and what has happened to its size. */
static uint32_t look_at_file(struct record_wrap *r, int fd)
{
	struct seen_file *file;
	struct stat st;
	uint32_t i = 0;

	if (fstat(fd, &st) < 0) {
		r->broken = true;
		return 0;
	}
	while (i < r->nr_files && (r->file[i].dev != st.st_dev ||
				   r->file[i].ino != st.st_ino))
		i++;
	if (i == r->nr_files) {
		put_new_file(r, fd, &st);
		return i;
	}
	if (!S_ISREG(st.st_mode))
		return i;
	file = &r->file[i];
	if ((uint64_t)st.st_size < file->size ||
	    ((uint64_t)st.st_size > file->size &&
	     (uint64_t)st.st_size > file->written)) {
		struct record record = {
			.kind = SIZE, .file = i,
			.offset = (uint64_t)st.st_size,
		};

		put_record(r, &record);
	}
	file->size = (uint64_t)st.st_size;
	return i;
}

static void put_start(struct record_wrap *r, const struct io_req *req,
		      unsigned int slot)
{
	static const enum kind kinds[] = {
		[IO_WRITE] = WRITE, [IO_SYNC] = SYNC,
		[IO_PUNCH] = PUNCH, [IO_ZERO] = ZERO,
	};
	struct record record = {
		.kind = kinds[req->op],
		.number = r->next++,
		.offset = req->op == IO_SYNC ? 0 : fault_offset(req),
		.length = fault_length(req),
	};

	record.file = look_at_file(r, req->fd);
	put_record(r, &record);
	if (req->op == IO_WRITE) {
		uint64_t end = record.offset + record.length;

		if (end > r->file[record.file].written)
			r->file[record.file].written = end;
		for (int i = 0; i < req->iovcnt; i++)
			put(r, req->iov[i].iov_base, req->iov[i].iov_len);
	}
	r->running[slot].req = req;
	r->running[slot].file = record.file;
	r->running[slot].number = record.number;
}

static bool changes(const struct io_req *req)
{
	return req->op == IO_WRITE || req->op == IO_SYNC ||
	       req->op == IO_PUNCH || req->op == IO_ZERO;
}

static bool record_submit(struct engine_wrap *wrap, struct io_req *req)
{
	struct record_wrap *r = to_record(wrap);
	unsigned int slot = 0;

	if (!changes(req))
		return wrap_submit_inner(wrap, req);
	while (slot < r->depth && r->running[slot].req)
		slot++;
	if (slot == r->depth)
		return false;
	put_start(r, req, slot);
	if (wrap_submit_inner(wrap, req))
		return true;
	/* Comes again, under another number; of this one nothing is done. */
	put_record(r, &(struct record){
		.kind = DONE, .file = r->running[slot].file,
		.number = r->running[slot].number, .result = -EAGAIN,
	});
	r->running[slot].req = NULL;
	return false;
}

static int record_finish(struct engine_wrap *wrap, struct io_req *req,
			 int result)
{
	struct record_wrap *r = to_record(wrap);
	unsigned int slot = 0;

	if (!changes(req))
		return result;
	while (slot < r->depth && r->running[slot].req != req)
		slot++;
	if (slot < r->depth) {
		put_record(r, &(struct record){
			.kind = DONE, .file = r->running[slot].file,
			.number = r->running[slot].number, .result = result,
		});
		r->running[slot].req = NULL;
	}
	return r->broken ? -EIO : result;
}

const struct engine_wrap_ops record_wrap_ops = {
	.prefix	= "record",
	.open	= record_open,
	.close	= record_close,
	.submit	= record_submit,
	.finish	= record_finish,
};
