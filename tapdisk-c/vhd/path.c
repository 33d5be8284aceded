// SPDX-License-Identifier: LGPL-2.1-only
/* Paths between images. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vhd/vhd-internal.h"

const char *vhd_base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static char *dir_part(const char *path)
{
	const char *slash = strrchr(path, '/');

	if (!slash)
		return strdup(".");
	if (slash == path)
		return strdup("/");
	return strndup(path, (size_t)(slash - path));
}

char *vhd_dir_of_name(const char *path)
{
	char *dir = dir_part(path), *real;

	if (!dir)
		return NULL;
	real = realpath(dir, NULL);
	free(dir);
	return real;
}

char *vhd_dir_of_file(const char *path)
{
	char *real = realpath(path, NULL), *dir;

	if (!real)
		return NULL;
	dir = dir_part(real);
	free(real);
	return dir;
}

char *vhd_relative_path(const char *dir, const char *path)
{
	char *to = vhd_dir_of_name(path), *out = NULL;
	size_t i, common = 0, ups = 0, len;
	const char *rest;

	if (!to)
		return NULL;
	/* The longest common prefix that ends at a component. */
	for (i = 0; dir[i] && dir[i] == to[i]; i++)
		if (dir[i] == '/')
			common = i;
	if ((!dir[i] && (!to[i] || to[i] == '/')) || (dir[i] == '/' && !to[i]))
		common = i;
	for (rest = dir + common; *rest; rest++)
		if (*rest == '/' && rest[1])
			ups++;
	rest = to + common;
	while (*rest == '/')
		rest++;
	len = 2 + 3 * ups + strlen(rest) + 1 + strlen(vhd_base_name(path)) + 1;
	out = malloc(len);
	if (!out)
		goto out;
	out[0] = '\0';
	if (!ups)
		strcat(out, "./");
	while (ups--)
		strcat(out, "../");
	strcat(out, rest);
	if (*rest)
		strcat(out, "/");
	strcat(out, vhd_base_name(path));
out:
	free(to);
	return out;
}
