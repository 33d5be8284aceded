/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A VBD: one disk, served by this process. Its transports bring requests,
 * its image answers them; between the two it counts, and drains for pause and
 * close.
 */
#ifndef XENBLK_VBD_H
#define XENBLK_VBD_H

#include "drivers/image.h"
#include "server.h"
#include "transport/transport.h"

/*
 * In a slot of the transport, which fills image (the caller's part of struct
 * image_request but done), fua and done.
 */
struct vbd_request {
	struct image_request image;
	bool fua;			/* a write, discard or zero is durable when done */
	void (*done)(struct vbd_request *req, int err);

	struct vbd *vbd;
	enum image_op op;		/* as it came: a flush may follow for fua */
	uint64_t arrived_ns;
};

/* minor is -1 for a VBD that has none. It has no transport yet. */
int vbd_create(struct vbd **vbd, struct server *server, int minor,
	       struct error *err);
/* With the ring of minor as transport. */
int vbd_attach(struct vbd **vbd, struct server *server, int minor,
	       struct error *err);
/* Closes the transports and frees the VBD; -EBUSY while an image is open. */
int vbd_detach(struct vbd *vbd, struct error *err);

/* From now on the VBD's, which closes it; started if an image is open. */
int vbd_add_transport(struct vbd *vbd, struct transport *transport,
		      struct error *err);

int vbd_open(struct vbd *vbd, const char *args, bool readonly,
	     struct error *err);
void vbd_close(struct vbd *vbd, bool force, server_done done, void *priv);
void vbd_pause(struct vbd *vbd, server_done done, void *priv);
int vbd_unpause(struct vbd *vbd, const char *args, struct error *err);

/*
 * From the transport. Answers -EIO to what is not on the disk, -EPERM to what
 * would change a read-only one, -EOPNOTSUPP to what the image can't.
 */
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
