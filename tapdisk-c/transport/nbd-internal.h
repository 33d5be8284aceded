/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * What the files of the NBD transport share.
 *
 *   nbd.c          the transport: its socket, who may connect, start and stop
 *   nbd-device.c   another one: the kernel's client is the only one
 *   nbd-server.c   what the two share: connections and their memory
 *   nbd-conn.c     a connection: what is received and sent, handshake, end
 *   nbd-request.c  from requests to pieces and to the VBD
 *   nbd-reply.c    from pieces to replies
 *
 * A request is served in pieces of at most NBD_CHUNK_BYTES, so that memory is
 * bounded whatever its length. All that is received goes through one buffer,
 * but the rest of a write's data, which goes to its piece. A request whose
 * next piece finds no room waits, and nothing is received meanwhile.
 */
#ifndef XENBLK_NBD_INTERNAL_H
#define XENBLK_NBD_INTERNAL_H

#include <sys/stat.h>
#include <sys/un.h>

#include "transport/nbd-handshake.h"
#include "transport/nbd-pool.h"
#include "common/nbd-proto.h"
#include "vbd.h"

#define NBD_MAX_REQUEST	(32u << 20)
#define NBD_MAX_EXTENTS	256u

#define NBD_COMMANDS	256u	/* of a connection, at once */
#define NBD_PIECES	256u
#define NBD_MAX_IOV	256u

struct nbd_conn;

/* A request of the client until it is answered. */
struct nbd_command {
	struct list link;		/* free; or the connection's streams */
	struct nbd_request req;
	uint32_t taken;			/* bytes in pieces so far; of a bad write: passed over */
	unsigned int pieces;		/* made and not answered for */
	int err;			/* the first one, -errno */
	unsigned int losses;		/* the VBD's when it came */
	bool refused;			/* never reaches the VBD: err says why */
	bool stream;			/* a simple reply of several pieces, in their order */
	bool begun;			/* the stream's first bytes have been handed over */
	struct list ordered;		/* the stream's pieces */
};

/* A part of a command: a request of the VBD, then a reply or a part of one. */
struct nbd_piece {
	struct vbd_request vbd;
	struct nbd_conn *conn;
	struct nbd_command *cmd;
	struct list link;		/* free, ready, or sending */
	struct list order;		/* the stream's */
	uint8_t *buf;			/* NULL: none */
	uint32_t len;			/* of the buffer as taken */
	uint32_t at;			/* offset within the request */
	uint32_t filled;		/* write: bytes received */
	const uint8_t *send;		/* what follows the head */
	uint32_t send_len;
	int err;
	bool done;			/* the stream's: the VBD has answered */
	uint8_t head_len;
	uint8_t head[NBD_HEAD_MAX];
};

enum nbd_state {
	NBD_HANDSHAKE,
	NBD_SERVING,
	NBD_LAST,			/* the client goes: answer what there is, then end */
	NBD_DEAD,			/* shut down; waits for what is in flight */
};

/* In its part of the pool. */
struct nbd_conn {
	struct nbd *nbd;
	struct list link;		/* the transport's */
	struct list kick;		/* the transport's: has work for the next round */
	int fd;
	enum nbd_state state;
	struct nbd_handshake handshake;
	struct io_timer deadline;	/* of the handshake */
	bool active;			/* since the transport looked last */
	bool waits;			/* serves nobody until those that left before it came have ended */
	bool lost;			/* another's flush failed: its next one, which would succeed, must not */

	/* Receiving */
	struct io_req recv;
	struct iovec recv_iov[2];
	bool receiving;
	bool bulk;			/* the last request was a long write: ask for no more than needed */
	uint8_t *rx;
	uint32_t rx_start, rx_end;	/* what is not looked at yet */
	struct nbd_command *cmd;	/* not all of its pieces are made */
	struct nbd_piece *fill;		/* of cmd: its data is being received */

	/* Sending */
	struct io_req send;
	bool sending;
	struct list ready, in_send;	/* pieces */
	struct list streams;		/* commands */
	struct nbd_command *streaming;	/* nothing else may go before its end */
	struct list blocked;		/* pieces that wait for that */
	uint32_t answer_len;
	struct iovec iov[NBD_MAX_IOV];

	unsigned int inflight;		/* pieces at the VBD */
	struct list free_commands, free_pieces;
	unsigned int nr_commands, nr_pieces;	/* ever used */
	struct nbd_buffers buffers;
	uint8_t answer[NBD_ANSWER_MAX];
	struct nbd_command commands[NBD_COMMANDS];
	struct nbd_piece pieces[NBD_PIECES];
};

struct nbd {
	struct transport transport;
	struct vbd *vbd;
	struct engine *engine;
	struct sockaddr_un address;
	struct stat name;		/* the file at the address, while fd is open */
	bool required;			/* an error of its socket is one of the disk */
	int fd;				/* listening, -1: not */
	struct io_watch watch;
	struct io_timer tick;		/* accept again, give memory back */
	void (*gone)(struct nbd *nbd);	/* a connection has ended, or the tick: accept again */
	bool serving;			/* started */
	bool lost;			/* one that has ended was to be told: the next one is, which may be the same client */
	bool held;
	struct image_info info;
	bool readonly;
	struct nbd_pool pool;
	struct list conns;
	struct list kicked;
};

/* nbd-server.c */
void nbd_server_init(struct nbd *nbd, struct vbd *vbd, struct engine *engine);
void nbd_server_start(struct nbd *nbd, const struct image_info *info,
		      bool readonly);
/* Ends all connections now; their requests come to their end. */
void nbd_server_stop(struct nbd *nbd);
void nbd_server_release(struct nbd *nbd, const struct image_info *info,
			bool readonly);
/* As transport_ops.leave. */
bool nbd_server_leave(struct nbd *nbd);
bool nbd_server_round(struct nbd *nbd);
/* Nothing is in flight, or the process ends. */
void nbd_server_close(struct nbd *nbd);
/* What the kernel or another client is told. */
unsigned int nbd_server_flags(const struct nbd *nbd);

/* nbd-conn.c */
void nbd_conn_open(struct nbd *nbd, void *part, int fd);
/* The same for a client that knows the disk: there is no handshake. */
void nbd_conn_open_ready(struct nbd *nbd, void *part, int fd);
/* Gives a socket room for what a round sends. */
void nbd_conn_widen(int fd);
/* Ends it now: nothing more is sent. What is in flight comes to its end. */
void nbd_conn_shut(struct nbd_conn *conn);
/* The same if the client has left, which is not noticed while nothing is received. */
void nbd_conn_look(struct nbd_conn *conn);
/* Goes on in the next round. */
void nbd_conn_kick(struct nbd_conn *conn);
/* Looks at what was received, sends what is ready. The connection may be gone. */
void nbd_conn_round(struct nbd_conn *conn);

/* nbd-request.c */
/* Makes pieces of what was received as far as there is room. */
void nbd_take_requests(struct nbd_conn *conn);
/* A piece of cmd, or NULL; len 0: without a buffer. */
struct nbd_piece *nbd_piece_take(struct nbd_conn *conn,
				 struct nbd_command *cmd, uint32_t len);
void nbd_piece_give(struct nbd_piece *piece);

/* What a read was lent. */
static inline void nbd_piece_return(struct nbd_piece *piece)
{
	struct image_request *image = &piece->vbd.image;

	if (image->lent)
		engine_lend_end(image->lender);
	image->lent = NULL;
}
void nbd_command_give(struct nbd_conn *conn, struct nbd_command *cmd);
/* Goes to the VBD once more, as a flush. */
void nbd_flush_for(struct nbd_piece *piece);

/* nbd-reply.c */
/* The VBD has answered; or there was nothing to ask it. */
void nbd_piece_done(struct nbd_piece *piece, int err);
/* What is ready, as an iovec for the socket; 0 if nothing is. */
int nbd_gather(struct nbd_conn *conn);
/* All of it was sent, or never will be. */
void nbd_sent(struct nbd_conn *conn);

/* nbd-server.c */
/* A connection has ended: there is room for another. */
void nbd_conn_gone(struct nbd *nbd);
/* Until it is active no more, and its memory given back. */
void nbd_conn_active(struct nbd_conn *conn);
/* Looks in a while whether to accept again. */
void nbd_tick(struct nbd *nbd);

#endif
