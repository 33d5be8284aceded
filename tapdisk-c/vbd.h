/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A VBD: one minor, served by this process. Its transport brings requests,
 * its image answers them; between the two it counts, and drains for pause and
 * close.
 */
#ifndef XENBLK_VBD_H
#define XENBLK_VBD_H

#include "drivers/image.h"
#include "server.h"

/* In a slot of the transport. The caller fills the first part. */
struct vbd_request {
	enum image_op op;
	uint64_t sector;
	uint32_t count;			/* sectors; 0 for a flush */
	uint8_t *buf;			/* IMAGE_ALIGN-aligned */
	void (*done)(struct vbd_request *req, int err);

	struct vbd *vbd;
	struct image_request image;
	uint64_t arrived_ns;
};

int vbd_attach(struct vbd **vbd, struct server *server, int minor,
	       struct error *err);
int vbd_detach(struct vbd *vbd, struct error *err);

int vbd_open(struct vbd *vbd, const char *args, bool readonly,
	     struct error *err);
void vbd_close(struct vbd *vbd, bool force, server_done done, void *priv);
void vbd_pause(struct vbd *vbd, server_done done, void *priv);
int vbd_unpause(struct vbd *vbd, const char *args, struct error *err);

/* From the transport. Answers -EIO to what is not on the disk. */
void vbd_submit(struct vbd *vbd, struct vbd_request *req);

/*
 * After each round of the engine: hands completions over, takes new requests,
 * and goes on with a drain that has come to its end. True if there is more to
 * do before the next wait.
 */
bool vbd_round(struct vbd *vbd);

/* No image is open, and no verb is under way. */
bool vbd_idle(const struct vbd *vbd);

/* A pause or a close is under way. */
bool vbd_draining(const struct vbd *vbd);

int vbd_minor(const struct vbd *vbd);
void vbd_fill_view(const struct vbd *vbd, struct vbd_view *view);

#endif
