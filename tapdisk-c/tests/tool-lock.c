/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * tool-lock reader|writer PATH: takes the image lock, says "locked", and holds
 * it until its standard input ends. Exit 1 with the message if it is refused.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/lock.h"

int main(int argc, char **argv)
{
	enum lock_mode mode;
	struct error err;
	char c;
	int fd;

	if (argc != 3 || (strcmp(argv[1], "reader") && strcmp(argv[1], "writer"))) {
		fprintf(stderr, "usage: tool-lock reader|writer PATH\n");
		return 2;
	}
	mode = strcmp(argv[1], "writer") ? LOCK_READER : LOCK_WRITER;
	fd = open(argv[2], (mode == LOCK_WRITER ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	if (fd < 0) {
		fprintf(stderr, "%s: %s\n", argv[2], strerror(errno));
		return 1;
	}
	if (lock_take(fd, argv[2], mode, 0, &err)) {
		fprintf(stderr, "%s\n", err.text);
		return 1;
	}
	puts("locked");
	fflush(stdout);
	while (read(STDIN_FILENO, &c, 1) > 0)
		;
	return 0;
}
