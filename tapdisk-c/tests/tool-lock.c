/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * tool-lock reader|writer|coalesce PATH [CHILD]: takes the image lock, says "locked", and
 * holds it until its standard input ends. Exit 1 with the message if it is refused.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vhd/vhd.h"

int main(int argc, char **argv)
{
	static const char *const names[] = { "reader", "writer", "coalesce" };
	static const enum lock_mode modes[] = { LOCK_READER, LOCK_WRITER,
						LOCK_COALESCE };
	uint64_t child = 0;
	struct error err;
	unsigned int i = 0;
	char c;
	int fd;

	while (argc > 2 && i < 3 && strcmp(argv[1], names[i]))
		i++;
	if (argc < 3 || i == 3 || argc != (modes[i] == LOCK_COALESCE ? 4 : 3)) {
		fprintf(stderr, "usage: tool-lock reader|writer|coalesce PATH [CHILD]\n");
		return 2;
	}
	if (argc == 4 && vhd_child_key(argv[3], &child, &err)) {
		fprintf(stderr, "%s\n", err.text);
		return 1;
	}
	fd = open(argv[2], (modes[i] == LOCK_READER ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	if (fd < 0) {
		fprintf(stderr, "%s: %s\n", argv[2], strerror(errno));
		return 1;
	}
	if (lock_take(fd, argv[2], modes[i], child, &err)) {
		fprintf(stderr, "%s\n", err.text);
		return 1;
	}
	puts("locked");
	fflush(stdout);
	while (read(STDIN_FILENO, &c, 1) > 0)
		;
	return 0;
}
