// SPDX-License-Identifier: LGPL-2.1-only
/* What images there are, line by line as XenServer's storage manager reads it. */
#include <errno.h>
#include <fnmatch.h>
#include <getopt.h>
#include <glob.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/vhd-util-lvm.h"
#include "tools/vhd-util.h"
#include "vhd/vhd-internal.h"

#define MAX_INDENT 1000
#define NONE SIZE_MAX

struct found {
	char *path;			/* as it is opened */
	char *parent;			/* as it is printed, or NULL */
	char *parent_path;		/* where it is, or NULL */
	uint64_t capacity, size;
	uint8_t hidden, marker;
	bool raw, printed;
	int code;			/* -errno */
	char *message;
	size_t up, child, next;		/* the tree, by number */
	dev_t dev;
	ino_t ino;			/* 0: not there */
	const struct lvm_volume *lv;	/* NULL: a file */
};

struct scan {
	bool fast, go_on, pretty, parents, verbose, marker, json;
	const char *volume, *filter;
	struct lvm_group group;		/* of volume */
	struct found *list;
	size_t nr, room, looked;
	struct config cfg;
};

/* Takes path; false without memory. */
static bool add(struct scan *s, char *path, bool raw)
{
	struct found *list = s->list;
	struct stat st = { 0 };

	if (!path)
		return false;
	if (s->nr == s->room) {
		s->room = s->room ? 2 * s->room : 64;
		list = realloc(s->list, s->room * sizeof(*list));
		if (!list) {
			free(path);
			return false;
		}
		s->list = list;
	}
	if (stat(path, &st))
		st.st_ino = 0;
	list[s->nr++] = (struct found){ .path = path, .raw = raw, .up = NONE,
					.child = NONE, .next = NONE,
					.dev = st.st_dev, .ino = st.st_ino };
	return true;
}

static bool add_volume(struct scan *s, const struct lvm_volume *lv, bool raw)
{
	char *path;

	if (asprintf(&path, "/dev/%s/%s", s->volume, lv->name) < 0 ||
	    !add(s, path, raw))
		return false;
	s->list[s->nr - 1].lv = lv;
	return true;
}

static void fault(struct found *f, const struct error *err)
{
	f->code = err->code;
	f->message = strdup(err->text);
}

static void look_raw(struct found *f)
{
	struct error err = { 0 };
	struct stat st;
	int fd;

	if (vhd_file_open(&fd, f->path, VHD_OPEN_NOLOCK, &st, &f->size, &err)) {
		fault(f, &err);
		return;
	}
	close(fd);
	f->capacity = f->size;
	f->hidden = 1;
}

/* The first name that the child gives, whether or not there is such a file. */
static void stored_parent(const struct scan *s, struct found *f,
			  const struct vhd_image *image)
{
	struct vhd_parent_name names[VHD_MAX_NAMES];
	unsigned int n = vhd_parent_names(names, image->fd, &image->header);
	char *dir = s->volume ? NULL : vhd_dir_of_file(f->path);

	if (n && s->volume)
		f->parent_path = lvm_name_of(&s->group, names[0].path);
	else if (n && names[0].path[0] == '/')
		f->parent_path = strdup(names[0].path);
	else if (n && dir &&
		 asprintf(&f->parent_path, "%s/%s", dir,
			  strncmp(names[0].path, "./", 2) ? names[0].path :
							    names[0].path + 2) < 0)
		f->parent_path = NULL;
	if (n)
		f->parent = strdup(s->volume && f->parent_path ?
				   f->parent_path : names[0].path);
	vhd_parent_names_free(names, n);
	free(dir);
}

static void find_parent(const struct scan *s, struct found *f,
			const struct vhd_image *image)
{
	struct vhd_parent parent;
	struct error err = { 0 };
	char *extra;

	if (s->fast || s->volume) {
		stored_parent(s, f, image);
	} else {
		extra = vhd_extra_dir(f->path);
		if (vhd_parent_open(&parent, image, &s->cfg, extra,
				    VHD_OPEN_NOLOCK, NULL, 0, &err)) {
			stored_parent(s, f, image);
		} else {
			f->parent = strdup(parent.path);
			f->parent_path = parent.path;
			vhd_close(parent.vhd);
			if (parent.raw_fd >= 0)
				close(parent.raw_fd);
		}
		free(extra);
	}
	if (!f->parent) {
		error_set(&err, -EINVAL,
			  "%s: header: no parent locator can be read and the parent name is empty",
			  f->path);
		fault(f, &err);
	} else if (err.code && err.code != -ENOENT) {
		fault(f, &err);
	}
}

static bool known(const struct scan *s, const char *path)
{
	struct stat st;

	for (size_t i = 0; i < s->nr && s->volume; i++)
		if (!strcmp(s->list[i].lv->name, path))
			return true;
	if (s->volume || stat(path, &st))
		st.st_ino = 0;
	for (size_t i = 0; i < s->nr; i++)
		if (!strcmp(s->list[i].path, path) ||
		    (st.st_ino && s->list[i].ino == st.st_ino &&
		     s->list[i].dev == st.st_dev))
			return true;
	return false;
}

/* Opens the image, of a volume without a device by a copy of its metadata. */
static int look_image(struct vhd_image **image, const struct found *f,
		      struct error *err)
{
	char copy[32];
	size_t len;
	int fd, rc;

	if (!f->lv || f->lv->active)
		return vhd_util_look(image, f->path, err);
	rc = lvm_copy_metadata(&fd, f->lv, err);
	if (rc)
		return rc;
	len = (size_t)snprintf(copy, sizeof(copy), "/proc/self/fd/%d", fd);
	rc = vhd_util_look(image, copy, err);
	close(fd);
	if (rc && !strncmp(err->text, copy, len) &&
	    !strncmp(err->text + len, ": ", 2)) {
		len += 2;
		memmove(err->text, err->text + len, strlen(err->text + len) + 1);
		error_prefix(err, "%s", f->lv->name);
	}
	return rc;
}

static bool add_parent(struct scan *s, const char *parent, bool raw)
{
	const struct lvm_volume *lv;

	if (known(s, parent))
		return true;
	if (!s->volume)
		return add(s, strdup(parent), raw);
	lv = lvm_find(&s->group, parent);
	return !lv || add_volume(s, lv, raw);
}

static int look(struct scan *s, size_t i)
{
	struct vhd_image *image;
	struct error err = { 0 };
	bool raw;

	if (s->list[i].raw && s->list[i].lv) {
		s->list[i].capacity = s->list[i].size = s->list[i].lv->size;
		s->list[i].hidden = 1;
		return 0;
	}
	if (s->list[i].raw) {
		look_raw(&s->list[i]);
		return s->list[i].code;
	}
	if (look_image(&image, &s->list[i], &err)) {
		fault(&s->list[i], &err);
		return err.code;
	}
	s->list[i].capacity = image->footer.current_size;
	s->list[i].size = image->file_size;
	s->list[i].hidden = image->footer.hidden;
	s->list[i].marker = image->batmap_marker;
	if (image->footer.type == VHD_DIFF) {
		find_parent(s, &s->list[i], image);
		raw = uuid_is_null(image->header.parent_uuid);
		if (s->parents && s->list[i].parent_path &&
		    !add_parent(s, s->list[i].parent_path, raw)) {
			error_set(&err, -ENOMEM, "%s: out of memory",
				  s->list[i].path);
			fault(&s->list[i], &err);
		}
	}
	vhd_close(image);
	return s->list[i].code;
}

static const char *short_name(const struct scan *s, const char *path)
{
	return vhd_util_plain(s->verbose && !s->volume ? path : vhd_base_name(path));
}

static void print_line(const struct scan *s, struct found *f, size_t depth)
{
	int tab = depth < MAX_INDENT ? (int)depth * 3 : 3 * MAX_INDENT;

	f->printed = true;
	printf("%*s", tab, "");
	if (f->code) {
		printf("vhd=%s scan-error=%d error-message='%s'\n",
		       vhd_util_plain(s->volume ? vhd_base_name(f->path) : f->path), f->code,
		       f->message ? vhd_util_plain(f->message) : "out of memory");
		return;
	}
	printf("vhd=%s capacity=%" PRIu64 " size=%" PRIu64 " hidden=%u ",
	       short_name(s, f->path), f->capacity, f->size, f->hidden);
	if (s->marker)
		printf("marker=%u keyhash= ", f->marker);
	printf("parent=%s%s\n",
	       f->parent ? short_name(s, f->parent) : "none", s->pretty && f->parent && f->up == NONE ?
	       " (not found in scan)" : "");
}

static int by_path(const void *a, const void *b)
{
	return strcmp(((const struct found *)a)->path,
		      ((const struct found *)b)->path);
}

/* Not hidden children before hidden ones. */
static void print_tree(const struct scan *s, size_t i, size_t depth)
{
	print_line(s, &s->list[i], depth);
	for (unsigned int hidden = 0; hidden < 2 && depth < MAX_INDENT;
	     hidden++)
		for (size_t c = s->list[i].child; c != NONE; c = s->list[c].next)
			if (!s->list[c].printed &&
			    (s->list[c].hidden != 0) == hidden)
				print_tree(s, c, depth + 1);
}

static void print_pretty(struct scan *s)
{
	if (s->looked)
		qsort(s->list, s->looked, sizeof(*s->list), by_path);
	/* From the last, so that each list of children is in order. */
	for (size_t i = s->looked; i-- > 0;) {
		struct found key = { .path = s->list[i].parent_path }, *up;
		char volume[PATH_MAX];

		if (!key.path)
			continue;
		if (s->volume) {
			snprintf(volume, sizeof(volume), "/dev/%s/%s",
				 s->volume, key.path);
			key.path = volume;
		}
		up = bsearch(&key, s->list, s->looked, sizeof(*up), by_path);
		if (!up)
			continue;
		s->list[i].up = (size_t)(up - s->list);
		s->list[i].next = up->child;
		up->child = i;
	}
	/* Roots that are hidden, other roots, and what forms a loop. */
	for (unsigned int pass = 0; pass < 3; pass++)
		for (size_t i = 0; i < s->looked; i++)
			if (!s->list[i].printed &&
			    (pass == 2 || (s->list[i].up == NONE &&
					   (pass || s->list[i].hidden))))
				print_tree(s, i, 0);
}

/* Bytes of a name or message as JSON text, which is UTF-8. */
static json_t *json_text(const char *text)
{
	json_t *o = text ? json_string(text) : json_null();

	return o ? o : json_string("(not UTF-8)");
}

static void print_json(const struct scan *s)
{
	json_t *all = json_array(), *o;

	for (size_t i = 0; i < s->looked; i++) {
		const struct found *f = &s->list[i];

		o = json_pack("{s:o, s:I, s:I, s:b, s:i, s:b, s:o, s:o}",
			      "image", json_text(f->path),
			      "virtual_size", (json_int_t)f->capacity,
			      "physical_size", (json_int_t)f->size,
			      "hidden", f->hidden != 0, "marker", f->marker,
			      "raw", f->raw, "parent", json_text(f->parent),
			      "error", json_text(f->message));
		json_array_append_new(all, o);
	}
	json_dumpf(all, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(all);
}

static int find_files(struct scan *s, char **names, int n, struct error *err)
{
	glob_t g = { 0 };
	int rc = 0;

	if (s->filter) {
		rc = glob(s->filter, GLOB_BRACE | GLOB_ERR, NULL, &g);
		if (rc && rc != GLOB_NOMATCH)
			rc = error_set(err, -EIO, "%s: can't be searched: %s",
				       s->filter, strerror(errno));
		else
			rc = 0;
	}
	for (size_t i = 0; i < g.gl_pathc && !rc; i++)
		if (!add(s, strdup(g.gl_pathv[i]), false))
			rc = error_set(err, -ENOMEM, "%s: out of memory",
				       s->filter);
	for (int i = 0; i < n && !rc; i++)
		if (!add(s, strdup(names[i]), false))
			rc = error_set(err, -ENOMEM, "%s: out of memory",
				       names[i]);
	globfree(&g);
	return rc;
}

/* Of the group's volumes those whose names match. */
static int find_volumes(struct scan *s, char **names, int n, struct error *err)
{
	int rc = lvm_group_load(&s->group, s->volume, err);

	for (size_t i = 0; i < s->group.nr && !rc; i++) {
		const char *name = s->group.volume[i].name;
		bool wanted = s->filter &&
			      !fnmatch(s->filter, name,
				       FNM_PATHNAME | FNM_EXTMATCH);

		for (int j = 0; j < n; j++)
			wanted = wanted || !fnmatch(names[j], name,
						    FNM_PATHNAME | FNM_EXTMATCH);
		if (wanted && !add_volume(s, &s->group.volume[i], false))
			rc = error_set(err, -ENOMEM, "%s: out of memory", name);
	}
	return rc;
}

/* Trees are by canonical names, as the parents' are. */
static void canonical(struct found *f)
{
	char *real = realpath(f->path, NULL);

	if (real) {
		free(f->path);
		f->path = real;
	}
}

static int scan(struct scan *s, char **names, int n)
{
	struct error err = { 0 };
	int rc, first = 0;

	rc = config_load(&s->cfg, NULL, &err);
	if (!rc)
		rc = s->volume ? find_volumes(s, names, n, &err) :
				 find_files(s, names, n, &err);
	for (size_t i = 0; i < s->nr && !rc; i++) {
		if (s->pretty && !s->volume)
			canonical(&s->list[i]);
		if (look(s, i) && !first)
			first = s->list[i].code;
		if (!s->pretty && !s->json)
			print_line(s, &s->list[i], 0);
		s->looked = i + 1;
		if (first && !s->go_on)
			break;
	}
	if (!rc && s->json)
		print_json(s);
	else if (!rc && s->pretty)
		print_pretty(s);
	for (size_t i = 0; i < s->nr; i++) {
		free(s->list[i].path);
		free(s->list[i].parent);
		free(s->list[i].parent_path);
		free(s->list[i].message);
	}
	free(s->list);
	lvm_group_dispose(&s->group);
	config_dispose(&s->cfg);
	if (rc)
		return vhd_util_failed(&err);
	return first && !s->go_on ? EXIT_FAILED : EXIT_OK;
}

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "json", no_argument, NULL, 'J' },
		{ NULL, 0, NULL, 0 },
	};
	struct scan s = { 0 };
	int opt;

	while ((opt = getopt_long(argc, argv, "m:fcl:pavMh", longopts, NULL)) !=
	       -1) {
		switch (opt) {
		case 'm':
			s.filter = optarg;
			break;
		case 'f':
			s.fast = true;
			break;
		case 'c':
			s.go_on = true;
			break;
		case 'l':
			s.volume = optarg;
			break;
		case 'p':
			s.pretty = true;
			break;
		case 'a':
			s.parents = true;
			break;
		case 'v':
			s.verbose = true;
			break;
		case 'M':
			s.marker = true;
			break;
		case 'J':
			s.json = true;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!s.filter && optind == argc)
		return vhd_util_usage(self, 0);
	/* A tree needs to know where the parents are. */
	if (s.pretty)
		s.fast = false;
	return scan(&s, argv + optind, argc - optind);
}

const struct vhd_util_command vhd_util_scan = {
	.name = "scan",
	.usage = "[-m PATTERN] [-f] [-c] [-l GROUP] [-p] [-a] [-v] [-M] [--json] [-h] [NAME ...]\n"
		 "  -m  files (with -l: volumes) that match\n"
		 "  -f  fast: parents by their stored names, not looked for\n"
		 "  -c  go on after a failure\n"
		 "  -l  volumes of an LVM group, whether or not they are active\n"
		 "  -p  as trees\n"
		 "  -a  parents too\n"
		 "  -v  whole paths\n"
		 "  -M  markers",
	.run = run,
};
