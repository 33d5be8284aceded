/* SPDX-License-Identifier: LGPL-2.1-only */
/* Runs the files of a directory through a fuzz target, once each. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

#include "fuzz/fuzz.h"

#define INPUT_BYTES (1u << 20)

static int run(const char *dir, const char *name)
{
	static uint8_t buf[INPUT_BYTES];
	char path[4096];
	FILE *file;
	size_t n;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	file = fopen(path, "re");
	if (!file) {
		perror(path);
		return -1;
	}
	n = fread(buf, 1, sizeof(buf), file);
	fclose(file);
	/* Of its own size, so that a read past its end is noticed. */
	uint8_t *data = malloc(n ? n : 1);

	if (!data)
		return -1;
	for (size_t i = 0; i < n; i++)
		data[i] = buf[i];
	LLVMFuzzerTestOneInput(data, n);
	free(data);
	return 0;
}

int main(int argc, char **argv)
{
	unsigned int inputs = 0;
	struct dirent *entry;
	DIR *dir;

	if (argc != 2 || !(dir = opendir(argv[1]))) {
		fprintf(stderr, "usage: %s CORPUS-DIRECTORY\n", argv[0]);
		return 1;
	}
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		if (run(argv[1], entry->d_name))
			return 1;
		inputs++;
	}
	closedir(dir);
	if (!inputs) {
		fprintf(stderr, "%s: no inputs\n", argv[1]);
		return 1;
	}
	printf("[  PASSED  ] %u inputs\n", inputs);
	return 0;
}
