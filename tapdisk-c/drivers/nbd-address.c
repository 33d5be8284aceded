/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Where an NBD server is: drivers/nbd.h. Source of the URIs:
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/nbd.h"

#define RECONNECT_MAX 86400u	/* seconds */

/* Whose text is what in a message. */
struct field {
	const char *spec;
	const char *name;
	struct error *err;
};

static int hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* len bytes of text, of a URI if uri is true, to out of size bytes. */
static int copy(const struct field *f, char *out, size_t size, const char *text,
		size_t len, bool uri)
{
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		char c = text[i];

		if (uri && c == '%') {
			int hi = len - i > 2 ? hex(text[i + 1]) : -1;
			int lo = hi >= 0 ? hex(text[i + 2]) : -1;

			if (lo < 0 || !(hi | lo))
				return error_set(f->err, -EINVAL,
						 "%s: %s: %% must be followed by two hexadecimal digits, not both 0",
						 f->spec, f->name);
			c = (char)(hi * 16 + lo);
			i += 2;
		}
		if (n + 1 == size)
			return error_set(f->err, -EINVAL,
					 "%s: %s: is longer than %zu bytes",
					 f->spec, f->name, size - 1);
		out[n++] = c;
	}
	out[n] = 0;
	return 0;
}

static int set_socket(struct nbd_address *a, struct field f, const char *text,
		      size_t len, bool uri)
{
	int rc;

	f.name = "socket";
	rc = copy(&f, a->socket, sizeof(a->socket), text, len, uri);
	if (!rc && a->socket[0] != '/')
		rc = error_set(f.err, -EINVAL,
			       "%s: socket: the path is not absolute", f.spec);
	return rc;
}

static int set_reconnect(struct nbd_address *a, struct field f,
			 const char *text, size_t len)
{
	unsigned int n = 0;

	for (size_t i = 0; i < len && n <= RECONNECT_MAX; i++)
		n = text[i] < '0' || text[i] > '9' ? RECONNECT_MAX + 1 :
		    n * 10 + (unsigned int)(text[i] - '0');
	if (!len || n > RECONNECT_MAX)
		return error_set(f.err, -EINVAL,
				 "%s: reconnect: must be 0 to %u seconds",
				 f.spec, RECONNECT_MAX);
	a->reconnect = n;
	return 0;
}

static bool starts(const char *text, size_t len, const char *with)
{
	return len >= strlen(with) && !memcmp(text, with, strlen(with));
}

static int parse_query(struct nbd_address *a, struct field f, const char *query,
		       bool is_unix)
{
	int rc = 0;

	while (!rc && *query) {
		size_t len = strcspn(query, "&;");

		if (is_unix && starts(query, len, "socket="))
			rc = set_socket(a, f, query + 7, len - 7, true);
		else if (starts(query, len, "reconnect="))
			rc = set_reconnect(a, f, query + 10, len - 10);
		else
			rc = error_set(f.err, -EINVAL,
				       "%s: parameter \"%.*s\": known are %sreconnect",
				       f.spec, (int)len, query,
				       is_unix ? "socket and " : "");
		query += len;
		query += *query != 0;
	}
	return rc;
}

/* [v6]:port, host:port, or without port */
static int parse_host(struct nbd_address *a, struct field f, const char *text,
		      size_t len)
{
	size_t host = 0, port;
	int rc;

	f.name = "host";
	if (len && text[0] == '[') {
		const char *close = memchr(text, ']', len);

		if (!close)
			return error_set(f.err, -EINVAL,
					 "%s: host: the ] is missing", f.spec);
		host = (size_t)(close - text) + 1;
		rc = copy(&f, a->host, sizeof(a->host), text + 1, host - 2,
			  true);
	} else {
		while (host < len && text[host] != ':')
			host++;
		rc = copy(&f, a->host, sizeof(a->host), text, host, true);
	}
	if (rc)
		return rc;
	if (!a->host[0])
		return error_set(f.err, -EINVAL, "%s: host: is missing", f.spec);
	strcpy(a->port, NBD_PORT);
	if (host == len)
		return 0;
	port = len - host - 1;
	if (text[host] != ':' || !port || port > 5 ||
	    strspn(text + host + 1, "0123456789") < port ||
	    strtoul(text + host + 1, NULL, 10) - 1 > 65534)
		return error_set(f.err, -EINVAL,
				 "%s: port: must be a number from 1 to 65535",
				 f.spec);
	f.name = "port";
	return copy(&f, a->port, sizeof(a->port), text + host + 1, port, false);
}

/* text is what follows "//" */
static int parse_uri(struct nbd_address *a, struct field f, const char *text,
		     bool is_unix)
{
	size_t authority = strcspn(text, "/?"), export;
	const char *at = text + authority;
	int rc;

	rc = is_unix ? 0 : parse_host(a, f, text, authority);
	at += *at == '/';
	export = strcspn(at, "?");
	f.name = "export";
	if (!rc)
		rc = copy(&f, a->export, sizeof(a->export), at, export, true);
	at += export;
	if (!rc && *at)
		rc = parse_query(a, f, at + 1, is_unix);
	if (!rc && is_unix && !a->socket[0])
		rc = error_set(f.err, -EINVAL,
			       "%s: socket: is missing; write nbd+unix:///NAME?socket=PATH",
			       f.spec);
	return rc;
}

int nbd_parse_address(struct nbd_address *a, const char *spec,
		      const char *path, struct error *err)
{
	static const char name[] = ":exportname=";
	struct field f = { .spec = spec, .err = err };
	const char *export;
	int rc;

	memset(a, 0, sizeof(*a));
	a->reconnect = NBD_RECONNECT_SECONDS;
	if (!strncmp(path, "//", 2))
		return parse_uri(a, f, path + 2, path[2] == '/');
	if (strncmp(path, "unix:", 5))
		return error_set(err, -EINVAL,
				 "%s: no NBD server; write nbd:unix:SOCKET, nbd+unix:///NAME?socket=SOCKET or nbd://HOST/NAME",
				 spec);
	path += 5;
	export = strstr(path, name);
	rc = set_socket(a, f, path, export ? (size_t)(export - path) :
			strlen(path), false);
	if (rc || !export)
		return rc;
	export += strlen(name);
	f.name = "exportname";
	return copy(&f, a->export, sizeof(a->export), export, strlen(export),
		    false);
}

int nbd_check(const char *spec, const char *path, struct error *err)
{
	bool socket = !strncmp(spec, "nbd+unix:", 9);
	bool no_host = !strncmp(path, "///", 3);
	struct nbd_address a;

	if (socket && !no_host)
		return error_set(err, -EINVAL,
				 "%s: write nbd+unix:///NAME?socket=SOCKET",
				 spec);
	if (!socket && no_host)
		return error_set(err, -EINVAL,
				 "%s: host: is missing; write nbd://HOST/NAME, or nbd+unix:///NAME?socket=SOCKET",
				 spec);
	return nbd_parse_address(&a, spec, path, err);
}
