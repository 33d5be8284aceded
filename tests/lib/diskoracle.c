// SPDX-License-Identifier: LGPL-2.1-only
/*
 * What libxlutil makes of disk specs. A request on stdin: the number of parts, a line; then for each part its length, a
 * line, and its bytes. The answer: the status of xlu_disk_parse() and a length, a line, and as many bytes: the fields as
 * JSON, or what libxlutil says.
 */
#define LIBXL_API_VERSION 0x041400
#include <libxl.h>
#include <libxlutil.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PARTS 64
#define MAX_BYTES 65536

static char *read_part(void)
{
	unsigned int len;
	char *part;

	if (scanf("%u", &len) != 1 || getchar() != '\n' || len > MAX_BYTES)
		exit(2);
	part = calloc(1, len + 1);
	if (!part || fread(part, 1, len, stdin) != len)
		exit(2);
	return part;
}

static void answer(unsigned int n, const char *const *parts)
{
	char *report = NULL, *json = NULL;
	size_t size = 0;
	FILE *stream = open_memstream(&report, &size);
	XLU_Config *cfg = stream ? xlu_cfg_init(stream, "disk") : NULL;
	libxl_device_disk disk;
	int status;

	if (!cfg)
		exit(2);
	libxl_device_disk_init(&disk);
	status = xlu_disk_parse(cfg, (int)n, parts, &disk);
	if (!status)
		json = libxl_device_disk_to_json(NULL, &disk);
	xlu_cfg_destroy(cfg);
	fclose(stream);
	printf("%d %zu\n%s", status, strlen(json ? json : report), json ? json : report);
	fflush(stdout);
	libxl_device_disk_dispose(&disk);
	free(json);
	free(report);
}

int main(void)
{
	char *parts[MAX_PARTS];
	unsigned int n;

	while (scanf("%u", &n) == 1) {
		if (getchar() != '\n' || n > MAX_PARTS)
			return 2;
		for (unsigned int i = 0; i < n; i++)
			parts[i] = read_part();
		answer(n, (const char *const *)parts);
		for (unsigned int i = 0; i < n; i++)
			free(parts[i]);
	}
	return 0;
}
