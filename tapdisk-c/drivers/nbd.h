/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * A disk on an NBD server. Source of the protocol: common/nbd-proto.h.
 *
 *   nbd:unix:SOCKET[:exportname=NAME]
 *   nbd+unix:///[NAME]?socket=SOCKET[&reconnect=SECONDS]
 *   nbd://HOST[:PORT]/[NAME][?reconnect=SECONDS]
 *
 * In the last two, which are URIs, %XX stands for a byte.
 *
 *   nbd-address.c  the text above
 *   nbd-hello.c    the handshake, from bytes to bytes
 *   nbd-connect.c  connections made, lost and made again
 *   nbd-reply.c    what the server sends
 *   nbd.c          the driver: requests and what is sent
 *
 * A request of the image is a command of the server, or several in turn if it
 * exceeds what the server takes. Commands that come in one round leave in one send.
 * Something is received only while a command waits for its answer: between
 * requests nothing is in flight, and a lost connection is not noticed.
 *
 * A TCP server whose host is gone without a word (no power, no network) is taken for
 * lost when nothing has been heard of it for 25 s, by keepalives of the kernel
 * while a command waits, or since what was sent is not acknowledged. A host that
 * answers for a process that hangs is waited for.
 *
 * When the connection is lost, commands without an answer are kept, and sent
 * again once there is another one: all of them may be done twice. If there is
 * none for the time given (60 s), what waits fails with -EIO; what comes after
 * that is tried once more and then fails. An answered write that no answered
 * flush followed is with the server: if that ends with the process or host
 * that it ran on, a later flush succeeds and says nothing of it. Serve from a server that
 * hands writes to its kernel before it answers (qemu-nbd --cache=none, tapdisk).
 */
#ifndef XENBLK_DRIVER_NBD_H
#define XENBLK_DRIVER_NBD_H

#include <netdb.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "common/nbd-proto.h"
#include "drivers/image.h"

#define NBD_PORT		"10809"
#define NBD_CONNECT_SECONDS	10u	/* for connection and handshake */
#define NBD_RECONNECT_SECONDS	60u
#define NBD_MAX_BLOCK		(32u << 20)	/* bytes of a command, if the server says nothing */

struct nbd_address {
	char socket[sizeof(((struct sockaddr_un *)0)->sun_path)];	/* "": TCP */
	char host[256];
	char port[6];
	char export[NBD_MAX_NAME + 1];
	unsigned int reconnect;		/* seconds */
};

/* The driver's check(). */
int nbd_check(const char *spec, const char *path, struct error *err);
/* path: what follows "nbd:" or "nbd+unix:". -EINVAL with a message that begins with spec. */
int nbd_parse_address(struct nbd_address *a, const char *spec,
		      const char *path, struct error *err);

/* The export as the server describes it. */
struct nbd_info {
	uint64_t bytes;
	uint16_t flags;			/* NBD_FLAG_* */
	uint32_t min_block, max_block;	/* bytes */
	bool structured;		/* replies */
	bool status;			/* of base:allocation, whose id is */
	uint32_t context;
};

enum nbd_hello_step {
	NBD_HELLO_GREETING,
	NBD_HELLO_STRUCTURED,
	NBD_HELLO_CONTEXT,
	NBD_HELLO_GO,
	NBD_HELLO_EXPORT_NAME,
	NBD_HELLO_DONE,
};

#define NBD_HELLO_DATA	8192u	/* of an option's reply; a longer one is refused */
#define NBD_HELLO_REPLIES 64u	/* to all options; a server that sends more would never end */

struct nbd_hello {
	const struct nbd_address *address;
	struct nbd_info info;
	enum nbd_hello_step step;
	bool no_zeroes;
	bool has_export;		/* the reply to GO has come */
	unsigned int replies;
	uint32_t have, want;		/* bytes in buf; of the message, as far as known */
	uint8_t buf[NBD_OPTION_REPLY_HEAD + NBD_HELLO_DATA];
};

void nbd_hello_start(struct nbd_hello *h, const struct nbd_address *address);
/*
 * Receives from and sends to fd without waiting. 0: h->info is filled; -EAGAIN:
 * call again when there is something to receive; else the error of the server
 * or of the connection, with a message that begins with what it is about.
 */
int nbd_hello_progress(struct nbd_hello *h, int fd, struct error *err);

#define NBD_MAX_ADDRS	8u		/* of a host */
#define NBD_IOV		128u		/* of a send */
#define NBD_RX_BYTES	65536u
#define NBD_RX_SMALL	4096u		/* asked for while large reads are expected */
#define NBD_LARGE_READ	65536u		/* bytes */

/* A command to the server. */
struct nbd_slot {
	struct list link;		/* free, queued, sending or sent */
	struct image_request *req;
	uint32_t generation;		/* in the cookie: of the slot's user */
	struct nbd_request cmd;
	uint32_t got;			/* read: bytes received */
	bool on_wire;			/* sending or sent */
	bool sending;			/* the kernel may still look at it */
	bool answered;
	int err;			/* the first that the server told */
	uint8_t head[NBD_REQUEST_BYTES];
};

enum nbd_state {
	NBD_DOWN,		/* there is no connection; timer: the next try */
	NBD_CONNECTING,
	NBD_GREETING,
	NBD_UP,
	NBD_LOST,		/* send or receive have yet to end */
};

/* Where in the server's stream we are. */
enum nbd_rx {
	NBD_RX_HEAD,		/* of a reply */
	NBD_RX_OFFSET,		/* the numbers before a chunk's data */
	NBD_RX_HOLE,
	NBD_RX_ERROR,
	NBD_RX_CONTEXT,
	NBD_RX_EXTENT,
	NBD_RX_DATA,		/* goes to data, left bytes */
	NBD_RX_SKIP,		/* left bytes of no interest */
};

struct nbd_image {
	struct image image;
	struct nbd_address address;
	char *name;			/* for messages */
	struct nbd_info info;		/* of the server now */
	bool unflushed;			/* writes were answered since the last flush began */

	struct nbd_slot *slots;
	unsigned int nr_slots;
	struct list free;		/* nbd_slot.link */
	struct list queued;		/* to be sent */
	struct list sending;
	struct list sent;
	struct list waiting;		/* image_request.link: no slot is free */
	unsigned int unanswered;	/* sending or sent */
	unsigned int large_reads;	/* of these */

	struct sockaddr_storage addr[NBD_MAX_ADDRS];
	socklen_t addr_len[NBD_MAX_ADDRS];
	unsigned int nr_addrs, next_addr;
	int fd;				/* -1: none */
	enum nbd_state state;
	bool answered;			/* anything, since the connection was made */
	uint64_t give_up_ns;		/* no earlier does anything fail */
	uint64_t delay_ns;		/* before the next try */
	struct io_timer timer;
	struct io_watch watch;
	struct nbd_hello hello;

	struct io_plug plug;
	struct io_req send;
	struct iovec send_iov[NBD_IOV];
	bool send_busy;

	struct io_req recv;
	struct iovec recv_iov[2];
	bool recv_busy;
	enum nbd_rx rx_state;
	struct nbd_reply reply;		/* whose payload comes */
	struct nbd_slot *rx_slot;
	uint32_t rx_left;		/* bytes of the payload to come */
	uint8_t *data;			/* NBD_RX_DATA: where, how much */
	uint32_t data_left;
	uint32_t rx_from, rx_to;	/* what of rx is not looked at yet */
	uint8_t rx[NBD_RX_BYTES];
};

/* nbd-connect.c */

int nbd_resolve(struct nbd_image *nbd, struct error *err);
/* The first connection, waited for. Fills info. */
int nbd_connect(struct nbd_image *nbd, struct error *err);
/* Nothing is in flight. A flush and its answer, waited for. */
int nbd_flush_now(struct nbd_image *nbd);
/* The connection is of no use any more. */
void nbd_lose(struct nbd_image *nbd, const char *why);
/* A send or a receive of a lost connection has ended. */
void nbd_lost(struct nbd_image *nbd);
/* A command waits and there is no connection. */
void nbd_want(struct nbd_image *nbd);
void nbd_disconnect(struct nbd_image *nbd);

/* nbd-reply.c */

/* Receives, if a command is unanswered. */
void nbd_receive(struct nbd_image *nbd);

/* nbd.c */

/* Sends what is queued, if nothing is being sent. */
void nbd_send(struct nbd_image *nbd);
/* slot->err is the answer: next command of the request, or its end. */
void nbd_slot_end(struct nbd_image *nbd, struct nbd_slot *slot);
/* All sent commands are to be sent again. */
void nbd_requeue(struct nbd_image *nbd);
void nbd_fail_all(struct nbd_image *nbd, int err);

#endif
