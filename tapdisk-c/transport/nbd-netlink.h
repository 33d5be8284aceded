/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The kernel's nbd client by generic netlink (linux/nbd-netlink.h): a device by
 * its index, /dev/nbd<index>, and the backend identifier that it was made with,
 * which the kernel compares (from 5.14). Each call is one request and its answer, for
 * which the caller waits; the kernel serves one such call of the host at a time.
 *
 * Messages are made and read apart from the socket. Fields are in the host's
 * byte order, attributes begin at multiples of 4.
 */
#ifndef XENBLK_NBD_NETLINK_H
#define XENBLK_NBD_NETLINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#define NBD_NETLINK_MAX 512u

struct nbd_link {
	uint32_t index;
	const char *backend;		/* at most 64 bytes */
};

struct nbd_link_disk {
	uint64_t bytes;
	uint32_t block_bytes;
	uint16_t flags;			/* NBD_FLAG_* of common/nbd-proto.h */
	uint64_t hold_s;		/* how long requests wait for a new connection when there is none */
};

/* Makes the device, served by the other end of the socket. It goes when it is disconnected. */
int nbd_link_connect(const struct nbd_link *link,
		     const struct nbd_link_disk *disk, int sock,
		     struct error *err);
/*
 * Gives a device whose connection is lost a new one. 0 although nothing was done
 * if it isn't lost: the kernel then does not keep the socket.
 */
int nbd_link_reconnect(const struct nbd_link *link, int sock,
		       struct error *err);
/*
 * From 6.9 on waits for all requests: who serves them must not be the caller, nor
 * wait for another call of this file.
 */
int nbd_link_resize(const struct nbd_link *link, uint64_t bytes,
		    uint32_t block_bytes, struct error *err);
/* Whether the kernel is to disconnect the device when it is closed for the last time. */
int nbd_link_end_on_close(const struct nbd_link *link, bool yes,
			  struct error *err);
/*
 * What the device holds fails. Tells the server, which must read, or have shut
 * its end.
 */
int nbd_link_disconnect(const struct nbd_link *link, struct error *err);

/* The messages: their length, at most NBD_NETLINK_MAX. Not addressed yet. */
size_t nbd_link_put_connect(uint8_t *msg, const struct nbd_link *link,
			    const struct nbd_link_disk *disk, int sock);
size_t nbd_link_put_reconnect(uint8_t *msg, const struct nbd_link *link,
			      int sock);
size_t nbd_link_put_resize(uint8_t *msg, const struct nbd_link *link,
			   uint64_t bytes, uint32_t block_bytes);
size_t nbd_link_put_end_on_close(uint8_t *msg, const struct nbd_link *link,
				 bool yes);
size_t nbd_link_put_disconnect(uint8_t *msg, const struct nbd_link *link);

/* Asks the controller for the family's number, to which the others are addressed. */
size_t nbd_link_put_family(uint8_t *msg, uint32_t seq);
void nbd_link_address(uint8_t *msg, uint16_t family, uint32_t seq);

/*
 * Looks through what was received for the answer to seq: 1 and *rc, its 0 or
 * -errno; 0 if it is not there; -EPROTO. A family's number on the way goes to
 * *family.
 */
int nbd_link_get(const uint8_t *msg, size_t len, uint32_t seq, int *rc,
		 uint16_t *family);

#endif
