/* SPDX-License-Identifier: LGPL-2.1-only */
/* The control socket of a tapdisk: docs/architecture.md, "Control socket". */
#ifndef XENBLK_CONTROL_H
#define XENBLK_CONTROL_H

#include <stddef.h>

#include "common/error.h"
#include "server.h"

struct control_server;

/*
 * Makes the directory (0700) and the socket (0600) and answers tap-ctl from
 * engine_run() of the server's engine. When the last VBD is detached the
 * process has done its work: it answers, then calls server_stop().
 */
int control_server_open(struct control_server **control, struct server *server,
			struct error *err);
/* control/owner.h, owners_create(). */
int control_create(struct control_server *control, int minor, int pid,
		   struct error *err);
/* control/takeover.h; done once all is taken. */
void control_take_over(struct control_server *control, const int *pids,
		       unsigned int nr, void (*done)(void *priv), void *priv);
/* A close or pause that is still under way may call back later. */
void control_server_close(struct control_server *control);

/* $XENBLK_CONTROL_DIR, for tests, else /run/blktap-control. */
const char *control_dir(void);

/* control_dir()/ctl<pid>; -ENAMETOOLONG if a socket address can't hold it. */
int control_socket_path(char *path, size_t size, int pid, struct error *err);
/*
 * The name of a tapdisk whose disks we took over leads to us from now on, until
 * control_unlink_all().
 */
void control_link(int pid);
void control_unlink_all(void);
/* Removes the name of pid if who it leads to is dead; perhaps it is not there. */
void control_forget(int pid);
/* Where the name of pid leads: pid itself, or who has taken over from it. */
int control_heir(int pid);
/* The tapdisk runs, and nobody has taken over from it. */
bool control_has_name(int pid);
/* The name of that socket before it listens. */
int control_early_path(char *path, size_t size, int pid, struct error *err);

#endif
