// SPDX-License-Identifier: LGPL-2.1-only
/*
 * Parent locators. W2RU and W2KU are UTF-16LE paths with backslashes; MACX is
 * a file:// URL in UTF-8. XenServer writes relative paths into all three, and
 * puts them into the URL without percent encoding.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vhd/vhd-internal.h"

static bool is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Windows' separators and drives to ours, in place. */
static void from_windows(char *path)
{
	size_t skip = 0;

	for (char *p = path; *p; p++)
		if (*p == '\\')
			*p = '/';
	if (!strncmp(path, "//?/", 4))
		skip = 3;
	if (is_letter(path[skip]) && path[skip + 1] == ':')
		skip += 2;
	else if (skip && is_letter(path[skip + 1]) && path[skip + 2] == ':')
		skip += 3;
	memmove(path, path + skip, strlen(path + skip) + 1);
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* In place. False if nothing was encoded, or not validly. */
static bool percent_decode(char *s)
{
	char *to = s;
	bool any = false;

	for (const char *p = s; *p; p++)
		if (*p == '%' &&
		    (hex_digit(p[1]) < 0 || hex_digit(p[2]) < 0 ||
		     (p[1] == '0' && p[2] == '0')))
			return false;
	for (const char *p = s; *p; p++) {
		if (*p == '%') {
			*to++ = (char)(hex_digit(p[1]) << 4 | hex_digit(p[2]));
			p += 2;
			any = true;
		} else {
			*to++ = *p;
		}
	}
	*to = '\0';
	return any;
}

/* The locator's bytes and a NUL, or NULL. */
static uint8_t *read_data(int fd, const struct vhd_locator *l)
{
	uint8_t *data;

	if (!l->data_len || l->data_len > VHD_MAX_LOCATOR)
		return NULL;
	data = calloc(1, (size_t)l->data_len + 1);
	if (data && vhd_read_at(fd, data, l->data_len, l->data_offset)) {
		free(data);
		data = NULL;
	}
	return data;
}

char *vhd_locator_path(int fd, const struct vhd_locator *l)
{
	uint8_t *data = NULL;
	char *path = NULL;
	size_t size = 2 * (size_t)l->data_len + 1;	/* UTF-8 is at most 3/2 */

	if (l->code != VHD_LOC_W2RU && l->code != VHD_LOC_W2KU &&
	    l->code != VHD_LOC_MACX)
		goto out;
	data = read_data(fd, l);
	if (!data)
		goto out;
	if (l->code == VHD_LOC_MACX) {
		const char *url = (const char *)data;

		if (strncmp(url, "file://", 7))
			goto out;
		url += 7;
		if (!strncmp(url, "localhost/", 10))
			url += 9;
		path = strdup(url);
	} else {
		path = malloc(size);
		if (path && vhd_utf16_decode(path, size, data, l->data_len,
					     false)) {
			free(path);
			path = NULL;
		}
		if (path)
			from_windows(path);
	}
	if (path && !*path) {
		free(path);
		path = NULL;
	}
out:
	free(data);
	return path;
}

static void add_name(struct vhd_parent_name *names, unsigned int *n,
		     char *path, const char *source)
{
	if (!path)
		return;
	names[*n] = (struct vhd_parent_name){ .path = path, .source = source };
	++*n;
}

/* The last part of a path. */
static void add_mere_name(struct vhd_parent_name *names, unsigned int *n,
			  const char *of, const char *source)
{
	const char *name = vhd_base_name(of);
	char *path;

	if (!*name)
		return;
	path = strdup(name);
	if (!path)
		return;
	names[*n] = (struct vhd_parent_name){ .path = path, .source = source,
					      .mere_name = true };
	++*n;
}

unsigned int vhd_parent_names(struct vhd_parent_name names[VHD_MAX_NAMES],
			      int fd, const struct vhd_header *header)
{
	static const struct { uint32_t code; const char *name; } order[] = {
		{ VHD_LOC_W2RU, "W2RU" },
		{ VHD_LOC_MACX, "MACX" },
		{ VHD_LOC_W2KU, "W2KU" },
	};
	struct vhd_parent_name all[VHD_MAX_NAMES];
	unsigned int n = 0, sorted = 0;
	char *path;

	for (size_t o = 0; o < sizeof(order) / sizeof(order[0]); o++) {
		for (unsigned int i = 0; i < VHD_NR_LOCATORS; i++) {
			const struct vhd_locator *l = &header->locator[i];

			if (l->code != order[o].code)
				continue;
			path = vhd_locator_path(fd, l);
			if (path && l->code == VHD_LOC_MACX) {
				char *decoded = strdup(path);

				if (decoded && percent_decode(decoded))
					add_name(all, &n, decoded, "MACX");
				else
					free(decoded);
			}
			add_name(all, &n, path, order[o].name);
		}
	}
	for (unsigned int pass = 0; pass < 2; pass++)
		for (unsigned int i = 0; i < n; i++)
			if ((all[i].path[0] == '/') == (pass == 1))
				names[sorted++] = all[i];
	n = sorted;
	path = strdup(header->parent_name);
	if (path) {
		from_windows(path);
		add_mere_name(names, &sorted, path, "parent name");
		free(path);
	}
	for (unsigned int i = 0; i < n; i++)
		if (names[i].path[0] == '/')
			add_mere_name(names, &sorted, names[i].path,
				      names[i].source);
	return sorted;
}

void vhd_parent_names_free(struct vhd_parent_name *names, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		free(names[i].path);
}

/* What an ordinary URL may hold, and the space, which XenServer leaves as it is. */
static bool plain_in_url(uint8_t c)
{
	return c >= 0x20 && c < 0x7f && !strchr("%#?\"<>\\^`{|}", c);
}

static int encode_url(uint8_t *out, size_t out_size, size_t *out_bytes,
		      const char *relative)
{
	size_t n = 7;

	if (out_size < 7)
		return -ENAMETOOLONG;
	memcpy(out, "file://", 7);
	for (const char *p = relative; *p; p++) {
		uint8_t c = (uint8_t)*p;
		bool plain = plain_in_url(c);

		if (n + 3 > out_size)
			return -ENAMETOOLONG;
		if (plain) {
			out[n++] = c;
		} else {
			out[n++] = '%';
			out[n++] = (uint8_t)"0123456789ABCDEF"[c >> 4];
			out[n++] = (uint8_t)"0123456789ABCDEF"[c & 15];
		}
	}
	*out_bytes = n;
	return 0;
}

int vhd_locator_encode(uint8_t *out, size_t out_size, size_t *out_bytes,
		       uint32_t code, const char *relative)
{
	char *windows;
	int rc;

	if (code == VHD_LOC_MACX)
		return encode_url(out, out_size, out_bytes, relative);
	/* A backslash in a name would be read as a separator. */
	if (strchr(relative, '\\'))
		return -EILSEQ;
	/* Windows takes a path for relative if it starts with ".\\". */
	if (asprintf(&windows, "%s%s", strncmp(relative, "./", 2) ? "./" : "",
		     relative) < 0)
		return -ENOMEM;
	for (char *p = windows; *p; p++)
		if (*p == '/')
			*p = '\\';
	rc = vhd_utf16_encode(out, out_size, out_bytes, windows, false);
	free(windows);
	return rc;
}

int vhd_locators_encode(struct vhd_header *header,
			uint8_t out[VHD_LOCATORS_MAX], uint64_t offset,
			size_t *used, const char *image, const char *dir,
			const char *parent, struct error *err)
{
	static const uint32_t code[] = { VHD_LOC_MACX, VHD_LOC_W2KU,
					 VHD_LOC_W2RU };
	char *relative = vhd_relative_path(dir, parent);
	size_t n;
	int rc = 0;

	*used = 0;
	if (!relative)
		return error_set(err, -errno, "%s: path: %s", parent,
				 strerror(errno));
	memset(header->locator, 0, sizeof(header->locator));
	for (unsigned int i = 0; i < 3 && !rc; i++) {
		struct vhd_locator *l = &header->locator[i];

		rc = vhd_locator_encode(out + *used, VHD_LOCATORS_MAX - *used,
					&n, code[i], relative);
		if (rc)
			break;
		l->code = code[i];
		l->data_len = (uint32_t)n;
		l->data_space = (uint32_t)round_up_u64(n, VHD_SECTOR);
		l->data_offset = offset + *used;
		*used += l->data_space;
	}
	if (rc)
		error_set(err, rc,
			  "%s: parent name '%s' can't be written into a VHD (%s); rename or move it: no backslash, UTF-8, and not so long",
			  image, relative, strerror(-rc));
	free(relative);
	return rc;
}
