// SPDX-License-Identifier: LGPL-2.1-only
/* read -p --json: the metadata of an image that can be opened. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "tools/vhd-util.h"
#include "vhd/vhd-internal.h"

/* Bytes of a file as JSON text, which is UTF-8; NULL is null. */
static json_t *text(const char *s)
{
	json_t *o = s ? json_string(s) : json_null();

	return o ? o : json_string("(not UTF-8)");
}

static json_t *uuid_text(const uuid_t uuid)
{
	char s[37];

	uuid_unparse_lower(uuid, s);
	return json_string(s);
}

static json_t *unix_time(uint32_t timestamp)
{
	return json_integer((json_int_t)timestamp + VHD_EPOCH);
}

static json_t *footer_json(const struct vhd_footer *f)
{
	json_t *o = json_object();

	json_object_set_new(o, "type", json_string(vhd_util_type(f->type)));
	json_object_set_new(o, "uuid", uuid_text(f->uuid));
	json_object_set_new(o, "features", json_integer(f->features));
	json_object_set_new(o, "version", json_integer(f->version));
	json_object_set_new(o, "data_offset", f->type == VHD_FIXED ?
			    json_null() :
			    json_integer((json_int_t)f->data_offset));
	json_object_set_new(o, "timestamp", unix_time(f->timestamp));
	json_object_set_new(o, "creator", text(f->creator));
	json_object_set_new(o, "creator_version",
			    json_integer(f->creator_version));
	json_object_set_new(o, "creator_os", json_integer(f->creator_os));
	json_object_set_new(o, "original_size",
			    json_integer((json_int_t)f->original_size));
	json_object_set_new(o, "current_size",
			    json_integer((json_int_t)f->current_size));
	json_object_set_new(o, "cylinders", json_integer(f->geometry >> 16));
	json_object_set_new(o, "heads", json_integer(f->geometry >> 8 & 0xff));
	json_object_set_new(o, "sectors", json_integer(f->geometry & 0xff));
	json_object_set_new(o, "saved", json_boolean(f->saved != 0));
	json_object_set_new(o, "hidden", json_integer(f->hidden));
	return o;
}

static json_t *locators_json(const struct vhd_image *image)
{
	json_t *all = json_array();

	for (unsigned int i = 0; i < VHD_NR_LOCATORS; i++) {
		const struct vhd_locator *l = &image->header.locator[i];
		char code[5] = { 0 }, *path;
		json_t *o;

		if (!l->code)
			continue;
		for (unsigned int j = 0; j < 4; j++) {
			code[j] = (char)(l->code >> (24 - 8 * j));
			if (code[j] < 0x20 || code[j] >= 0x7f)
				code[j] = '?';
		}
		path = vhd_locator_path(image->fd, l);
		o = json_pack("{s:s, s:I, s:I, s:I, s:o}", "code", code,
			      "data_space", (json_int_t)l->data_space,
			      "data_length", (json_int_t)l->data_len,
			      "data_offset", (json_int_t)l->data_offset,
			      "path", text(path));
		json_array_append_new(all, o);
		free(path);
	}
	return all;
}

static json_t *header_json(const struct vhd_image *image)
{
	const struct vhd_header *h = &image->header;
	bool diff = image->footer.type == VHD_DIFF;
	json_t *o = json_object();

	json_object_set_new(o, "table_offset",
			    json_integer((json_int_t)h->table_offset));
	json_object_set_new(o, "version", json_integer(h->version));
	json_object_set_new(o, "max_bat_size", json_integer(h->max_bat_size));
	json_object_set_new(o, "block_size", json_integer(h->block_size));
	json_object_set_new(o, "parent_name",
			    text(diff ? h->parent_name : NULL));
	json_object_set_new(o, "parent_uuid", diff ?
			    uuid_text(h->parent_uuid) : json_null());
	json_object_set_new(o, "parent_timestamp", diff ?
			    unix_time(h->parent_timestamp) : json_null());
	json_object_set_new(o, "locators", locators_json(image));
	return o;
}

int vhd_util_read_json(const struct vhd_image *image, struct error *err)
{
	bool fixed = image->footer.type == VHD_FIXED;
	json_t *o, *batmap = json_null();
	int rc = 0;

	if (image->has_batmap)
		batmap = json_pack("{s:I, s:I, s:i, s:b}", "offset",
				   (json_int_t)image->batmap_offset, "sectors",
				   (json_int_t)image->batmap_sectors, "marker",
				   image->batmap_marker, "checksum_good",
				   image->batmap_ok);
	o = json_pack("{s:o, s:b, s:b, s:o, s:o, s:o}", "image",
		      text(image->path), "footer_copy_good", image->front_ok,
		      "footer_good", image->tail_ok, "footer",
		      footer_json(&image->footer), "header",
		      fixed ? json_null() : header_json(image), "batmap",
		      batmap);
	if (!o || json_dumpf(o, stdout, JSON_INDENT(2)))
		rc = error_set(err, -EIO, "standard output: can't be written");
	else
		putchar('\n');
	json_decref(o);
	return rc;
}
