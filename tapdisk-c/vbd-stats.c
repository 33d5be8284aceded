/* SPDX-License-Identifier: LGPL-2.1-only */
/* The statistics page: what it says of the VBD, and its state. */
#include <string.h>

#include "vbd-internal.h"

_Static_assert(IMAGE_READ == 0 && IMAGE_STATUS == STATS_OPS - 1,
	       "stats_page.op is in the order of enum image_op");

/* The end of what has been added; size when it does not fit. */
static size_t add_text(char *text, size_t at, size_t size, const char *s)
{
	size_t n = strlen(s) + 1;

	/* One NUL more is the end. */
	if (at + n + 1 > size)
		return at;
	memcpy(text + at, s, n);
	return at + n;
}

void vbd_stats_describe(struct vbd *vbd)
{
	struct stats_page *page = vbd->stats;
	const struct image *image = vbd->image;
	const char *path;
	size_t at = 0;

	stats_change_begin(page);
	memset(page->text, 0, sizeof(page->text));
	page->open = vbd->args != NULL;
	page->readonly = vbd->readonly;
	page->sector_size = vbd->info.sector_size;
	page->depth = vbd->info.depth;
	page->sectors = vbd->info.sectors;
	if (vbd->args)
		at = add_text(page->text, at, sizeof(page->text), vbd->args);
	for (unsigned int i = 0; image && image->driver->chain_path &&
	     (path = image->driver->chain_path(image, i)); i++)
		at = add_text(page->text, at, sizeof(page->text), path);
	stats_change_end(page);
	vbd_stats_publish(vbd);
}

void vbd_stats_open(struct vbd *vbd)
{
	memset(vbd->stats->op, 0, sizeof(vbd->stats->op));
	vbd->stream.merged = 0;
	vbd_stats_describe(vbd);
}

void vbd_stats_publish(struct vbd *vbd)
{
	struct stats_page *page = vbd->stats;

	page->state = vbd_state(vbd);
	page->inflight = vbd->inflight;
	page->waiting = vbd->nr_waiting;
	page->merged = vbd->stream.merged;
}
