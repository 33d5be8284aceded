/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * tool-control: a tapdisk with a control socket and nothing behind it, for the
 * tests of tap-ctl. $TOOL_CONTROL_FAIL: the message with which it does not start.
 */
#include "tests/fake-server.h"

#include "control/control.h"

int main(void)
{
	struct config cfg = { .engine = "posix" };
	const char *fail = getenv("TOOL_CONTROL_FAIL");
	struct control_server *control;
	struct server *server;
	struct error err;

	if (fail) {
		fprintf(stderr, "tapdisk: %s\n", fail);
		return 1;
	}
	if (server_open(&server, &cfg, &err) ||
	    control_server_open(&control, server, &err)) {
		fprintf(stderr, "tapdisk: %s\n", err.text);
		return 1;
	}
	server_run(server);
	control_server_close(control);
	server_close(server);
	return 0;
}
