// SPDX-License-Identifier: LGPL-2.1-only
/*
 * A volume that is not active has no device. Where its bytes are is for LVM to say:
 * lvs lists the segments, pvs where the extents of a physical volume begin.
 */
#include "tools/vhd-util-lvm.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vhd/vhd-internal.h"

#define CHUNK (1u << 20)

static void exec_tool(const char *const *argv)
{
	static const char *const dirs[] = { "/usr/sbin", "/sbin" };
	char **args = (char **)(uintptr_t)argv;	/* execv() changes none */
	char path[32];

	execvp(argv[0], args);
	/* cron's PATH has them not. */
	for (unsigned int i = 0; i < 2 && errno == ENOENT; i++) {
		snprintf(path, sizeof(path), "%s/%s", dirs[i], argv[0]);
		execv(path, args);
	}
	_exit(127);
}

static int failed(const char *tool, int status, struct error *err)
{
	if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
		return error_set(err, -ENOENT, "%s: can't be run; install lvm2",
				 tool);
	return error_set(err, -EIO,
			 "%s: ended with status %d; its message is above",
			 tool, WIFEXITED(status) ? WEXITSTATUS(status) : -1);
}

/* The rows that the tool prints as JSON, which it calls what. */
static int report(json_t **rows, const char *const *argv, const char *what,
		  struct error *err)
{
	json_t *all = NULL, *found;
	json_error_t fault;
	FILE *out = NULL;
	int fds[2], status = 0, rc;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC))
		return error_set(err, -errno, "%s: %s", argv[0], strerror(errno));
	pid = fork();
	if (!pid) {
		dup2(fds[1], STDOUT_FILENO);
		setenv("LVM_SUPPRESS_FD_WARNINGS", "1", 1);
		setenv("LC_ALL", "C", 1);
		exec_tool(argv);
	}
	rc = pid < 0 ? -errno : 0;
	close(fds[1]);
	out = fdopen(fds[0], "r");
	if (!out) {
		close(fds[0]);
		rc = -ENOMEM;
	}
	if (!rc)
		all = json_loadf(out, 0, &fault);
	if (out)
		fclose(out);
	if (pid > 0)
		while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
			;
	if (rc)
		rc = error_set(err, rc, "%s: %s", argv[0], strerror(-rc));
	else if (status)
		rc = failed(argv[0], status, err);
	if (rc)
		goto out;
	found = json_object_get(json_array_get(json_object_get(all, "report"), 0),
				what);
	if (!json_is_array(found))
		rc = error_set(err, -EIO,
			       "%s: printed no report in JSON; LVM must be 2.02.158 or later",
			       argv[0]);
	else
		*rows = json_incref(found);
out:
	json_decref(all);
	return rc;
}

static const char *text(const json_t *row, const char *key)
{
	const char *s = json_string_value(json_object_get(row, key));

	return s ? s : "";
}

static uint64_t number(const json_t *row, const char *key)
{
	return strtoull(text(row, key), NULL, 10);
}

static int no_memory(const struct lvm_group *g, struct error *err)
{
	return error_set(err, -ENOMEM, "%s: out of memory", g->name);
}

/* Rows of one volume follow each other. */
static struct lvm_volume *volume_of(struct lvm_group *g, const json_t *row)
{
	const char *name = text(row, "lv_name");
	struct lvm_volume *v, *more;

	if (g->nr && !strcmp(g->volume[g->nr - 1].name, name))
		return &g->volume[g->nr - 1];
	more = realloc(g->volume, (g->nr + 1) * sizeof(*more));
	if (!more)
		return NULL;
	g->volume = more;
	v = &more[g->nr];
	*v = (struct lvm_volume){
		.name = strdup(name),
		.size = number(row, "lv_size"),
		.active = !strcmp(text(row, "lv_active"), "active"),
		.linear = true,
	};
	if (!v->name)
		return NULL;
	g->nr++;
	return v;
}

/* Where the extents of a physical volume begin; UINT64_MAX: it isn't there. */
static uint64_t extents_at(const json_t *pvs, const char *device)
{
	const json_t *row;
	size_t i;

	json_array_foreach(pvs, i, row)
		if (!strcmp(text(row, "pv_name"), device))
			return number(row, "pe_start");
	return UINT64_MAX;
}

/* "/dev/sdb:10-19": of one run alone, since a linear segment has no more. */
static bool parse_piece(struct lvm_piece *p, const json_t *row,
			const json_t *pvs)
{
	const char *range = text(row, "seg_pe_ranges"), *colon;
	uint64_t extent = number(row, "vg_extent_size"), first, last, start;
	char *end;

	colon = strrchr(range, ':');
	if (!colon || strcmp(text(row, "segtype"), "linear"))
		return false;
	first = strtoull(colon + 1, &end, 10);
	if (end == colon + 1 || *end != '-')
		return false;
	last = strtoull(end + 1, &end, 10);
	*p = (struct lvm_piece){
		.device = strndup(range, (size_t)(colon - range)),
		.start = number(row, "seg_start"),
		.length = number(row, "seg_size"),
	};
	if (*end || last < first || !p->device ||
	    p->length != (last - first + 1) * extent)
		goto bad;
	start = extents_at(pvs, p->device);
	if (start == UINT64_MAX || first > (INT64_MAX - start) / extent)
		goto bad;
	p->at = start + first * extent;
	return true;
bad:
	free(p->device);
	return false;
}

static int add_row(struct lvm_group *g, const json_t *row, const json_t *pvs,
		   struct error *err)
{
	struct lvm_volume *v = volume_of(g, row);
	struct lvm_piece piece, *more;

	if (!v)
		return no_memory(g, err);
	if (!number(row, "vg_extent_size") || !parse_piece(&piece, row, pvs)) {
		v->linear = false;
		return 0;
	}
	more = realloc(v->piece, (v->nr_pieces + 1) * sizeof(*more));
	if (!more) {
		free(piece.device);
		return no_memory(g, err);
	}
	v->piece = more;
	more[v->nr_pieces++] = piece;
	return 0;
}

int lvm_group_load(struct lvm_group *g, const char *name, struct error *err)
{
	char select[256];
	const char *const lvs[] = {
		"lvs", "--reportformat", "json", "--units", "b", "--nosuffix",
		"--segments", "-O", "lv_name,seg_start", "-o",
		"lv_name,lv_size,lv_active,segtype,seg_start,seg_size,seg_pe_ranges,vg_extent_size",
		name, NULL,
	};
	const char *const pvs[] = {
		"pvs", "--reportformat", "json", "--units", "b", "--nosuffix",
		"-o", "pv_name,pe_start", "-S", select, NULL,
	};
	json_t *volumes = NULL, *devices = NULL;
	const json_t *row;
	size_t i;
	int rc;

	g->name = name;
	/* As vgcreate takes it. */
	if (!*name || *name == '-' || strlen(name) > 127 ||
	    name[strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+_.-")])
		return error_set(err, -EINVAL,
				 "option -l: %s: is not the name of a volume group",
				 name);
	snprintf(select, sizeof(select), "vg_name=\"%s\"", name);
	rc = report(&volumes, lvs, "seg", err);
	if (!rc)
		rc = report(&devices, pvs, "pv", err);
	json_array_foreach(volumes, i, row)
		if (!rc)
			rc = add_row(g, row, devices, err);
	json_decref(volumes);
	json_decref(devices);
	return rc;
}

void lvm_group_dispose(struct lvm_group *g)
{
	for (size_t i = 0; i < g->nr; i++) {
		for (size_t j = 0; j < g->volume[i].nr_pieces; j++)
			free(g->volume[i].piece[j].device);
		free(g->volume[i].piece);
		free(g->volume[i].name);
	}
	free(g->volume);
	*g = (struct lvm_group){ .name = NULL };
}

const struct lvm_volume *lvm_find(const struct lvm_group *g, const char *name)
{
	for (size_t i = 0; i < g->nr; i++)
		if (!strcmp(g->volume[i].name, name))
			return &g->volume[i];
	return NULL;
}

/* What follows "group-", with the group's own hyphens doubled, or NULL. */
static const char *behind_group(const struct lvm_group *g, const char *base)
{
	for (const char *p = g->name; *p; p++) {
		if (*p != *base || (*p == '-' && *++base != '-'))
			return NULL;
		base++;
	}
	return *base == '-' && base[1] != '-' ? base + 1 : NULL;
}

char *lvm_name_of(const struct lvm_group *g, const char *path)
{
	const char *base = vhd_base_name(path), *rest = behind_group(g, base);
	char *name, *out;

	if (!rest || lvm_find(g, base))
		return strdup(base);
	name = out = malloc(strlen(rest) + 1);
	if (!name)
		return NULL;
	for (const char *p = rest; *p; p++) {
		if (*p == '-' && p[1] == '-')
			p++;
		*out++ = *p;
	}
	*out = 0;
	return name;
}

/* length bytes of the volume at start, to the same place of the file. */
static int copy_range(int fd, const struct lvm_volume *v, uint64_t start,
		      uint64_t length, struct error *err)
{
	uint8_t *buf = malloc(CHUNK);
	int rc = buf ? 0 : -ENOMEM;

	for (size_t i = 0; i < v->nr_pieces && !rc; i++) {
		const struct lvm_piece *p = &v->piece[i];
		uint64_t from = start > p->start ? start : p->start, size;
		uint64_t to = start + length < p->start + p->length ?
			      start + length : p->start + p->length;
		struct stat st;
		int dev;

		if (from >= to)
			continue;
		rc = vhd_file_open(&dev, p->device,
				   VHD_OPEN_NOLOCK | VHD_OPEN_DIRECT, &st, &size,
				   err);
		if (rc) {
			error_prefix(err, "%s", v->name);
			free(buf);
			return rc;
		}
		for (size_t n; from < to && !rc; from += n) {
			n = to - from < CHUNK ? (size_t)(to - from) : CHUNK;
			rc = vhd_read_at(dev, buf, n,
					 p->at + (from - p->start));
			if (!rc && pwrite(fd, buf, n, (off_t)from) !=
				   (ssize_t)n)
				rc = -ENOMEM;
		}
		close(dev);
	}
	free(buf);
	return rc ? error_set(err, rc, "%s: reading its physical volumes: %s",
			      v->name, strerror(-rc)) : 0;
}

static int read_back(int fd, void *buf, size_t len, uint64_t offset)
{
	return pread(fd, buf, len, (off_t)offset) == (ssize_t)len ? 0 : -EIO;
}

/* Where the metadata end that the footer and the header speak of, or 0. */
static uint64_t metadata_end(int fd, const struct lvm_volume *v)
{
	uint8_t raw[VHD_HEADER_BYTES];
	struct vhd_footer footer;
	struct vhd_header h;
	uint64_t end, at;

	if (read_back(fd, raw, VHD_FOOTER_BYTES, 0) ||
	    vhd_footer_decode(&footer, raw, "", "", NULL) ||
	    footer.data_offset > CHUNK ||
	    read_back(fd, raw, sizeof(raw), footer.data_offset) ||
	    vhd_header_decode(&h, raw, "", NULL))
		return 0;
	/* BAT, batmap header and batmap, which has a bit for each 32 of the BAT. */
	end = vhd_batmap_header_offset(&h) + VHD_SECTOR +
	      round_up_u64(h.max_bat_size / 8 + 1, VHD_ALIGN) + VHD_ALIGN;
	for (unsigned int i = 0; i < VHD_NR_LOCATORS; i++) {
		at = h.locator[i].data_offset;
		if (h.locator[i].code && at < v->size &&
		    at + h.locator[i].data_len > end)
			end = at + h.locator[i].data_len;
	}
	return end < v->size ? end : v->size;
}

int lvm_copy_metadata(int *fd, const struct lvm_volume *v, struct error *err)
{
	uint64_t first = v->size < CHUNK / 4 ? v->size : CHUNK / 4, end;
	int rc;

	*fd = -1;
	if (!v->linear || v->size < VHD_SECTOR)
		return error_set(err, -ENOTSUP,
				 "%s: is not active, and not linear, so it can't be read; activate it first (lvchange -ay)",
				 v->name);
	*fd = memfd_create("volume", MFD_CLOEXEC);
	if (*fd < 0 || ftruncate(*fd, (off_t)v->size)) {
		rc = error_set(err, -errno, "%s: %s", v->name, strerror(errno));
		goto out;
	}
	rc = copy_range(*fd, v, 0, first, err);
	if (!rc)
		rc = copy_range(*fd, v, v->size - VHD_SECTOR, VHD_SECTOR, err);
	if (rc)
		goto out;
	end = metadata_end(*fd, v);
	if (end > first)
		rc = copy_range(*fd, v, first, end - first, err);
out:
	if (rc && *fd >= 0) {
		close(*fd);
		*fd = -1;
	}
	return rc;
}
