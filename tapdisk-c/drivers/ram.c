/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * ram: a disk in this process's memory, zeros when opened, gone when closed,
 * answered inside submit(). For tests and for measuring. What was never written
 * or is discarded takes no memory; a disk larger than the machine's memory can
 * be opened, and ends the process when it is filled.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/bytes.h"
#include "drivers/image.h"

struct ram_image {
	struct image image;
	uint8_t *base;
	size_t size;			/* bytes */
	size_t page;
};

static struct ram_image *ram_of(struct image *image)
{
	return container_of(image, struct ram_image, image);
}

static int ram_open(struct image **image, const struct image_open_args *args,
		    struct error *err)
{
	struct ram_image *ram = calloc(1, sizeof(*ram));
	int rc;

	if (!ram)
		return error_set(err, -ENOMEM, "ram:%s: out of memory",
				 args->path);
	ram->image.driver = &ram_driver;
	ram->image.engine = args->engine;
	ram->image.stream = args->stream;
	ram->image.readonly = args->readonly;
	ram->image.info.sectors = image_size(args->path);
	ram->image.info.sector_size = SECTOR_SIZE;
	ram->image.info.depth = 1;
	ram->image.info.can = IMAGE_CAN_DISCARD | IMAGE_CAN_ZERO;
	ram->size = (size_t)ram->image.info.sectors << SECTOR_SHIFT;
	ram->page = (size_t)sysconf(_SC_PAGESIZE);
	errno = ENOMEM;
	ram->base = ram->image.info.sectors > SIZE_MAX >> SECTOR_SHIFT ? MAP_FAILED :
		    mmap(NULL, ram->size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (ram->base == MAP_FAILED) {
		rc = error_set(err, -errno,
			       "ram:%s: size: no address space for it: %s",
			       args->path, strerror(errno));
		free(ram);
		return rc;
	}
	*image = &ram->image;
	return 0;
}

static int ram_close(struct image *image, struct error *err)
{
	struct ram_image *ram = ram_of(image);

	(void)err;
	munmap(ram->base, ram->size);
	free(ram);
	return 0;
}

/* Whole pages go back to the kernel, what is left of others is zeroed. */
static void clear(const struct ram_image *ram, size_t at, size_t len)
{
	size_t first = (size_t)round_up_u64(at, ram->page);
	size_t last = (at + len) & ~(ram->page - 1);

	if (first >= last ||
	    madvise(ram->base + first, last - first, MADV_DONTNEED) < 0) {
		memset(ram->base + at, 0, len);
		return;
	}
	memset(ram->base + at, 0, first - at);
	memset(ram->base + last, 0, at + len - last);
}

static void ram_submit(struct image *image, struct image_request *req)
{
	struct ram_image *ram = ram_of(image);
	size_t at = (size_t)req->sector << SECTOR_SHIFT;
	size_t len = (size_t)req->count << SECTOR_SHIFT;
	int rc = 0;

	switch (req->op) {
	case IMAGE_READ:
		memcpy(req->buf, ram->base + at, len);
		break;
	case IMAGE_WRITE:
		memcpy(ram->base + at, req->buf, len);
		break;
	case IMAGE_FLUSH:
		break;
	case IMAGE_DISCARD:
	case IMAGE_ZERO:
		clear(ram, at, len);
		break;
	case IMAGE_STATUS:
		rc = -EOPNOTSUPP;
		break;
	}
	req->done(req, rc);
}

const struct image_driver ram_driver = {
	.type		= "ram",
	.check		= image_check_size,
	.open		= ram_open,
	.close		= ram_close,
	.submit		= ram_submit,
};
