// SPDX-License-Identifier: LGPL-2.1-only
/*
 * The metadata as text, line by line as XenServer's "vhd-util read -p" prints
 * them, also of an image that can't be opened.
 */
#include "vhd/dump.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "vhd/vhd-internal.h"

struct dump {
	FILE *out;
	bool hex;
	int fd;
	char text[3][24];
	unsigned int next;
};

/* A number in the base asked for; good until the third call after. */
static const char *num(struct dump *d, uint64_t n)
{
	char *s = d->text[d->next++ % 3];

	snprintf(s, sizeof(d->text[0]), d->hex && n ? "0x%" PRIx64 : "%" PRIu64,
		 n);
	return s;
}

static const char *time_text(char out[26], uint32_t timestamp)
{
	time_t t = (time_t)timestamp + VHD_EPOCH;
	struct tm tm;

	if (!localtime_r(&t, &tm) ||
	    !strftime(out, 26, "%a %b %e %H:%M:%S %Y", &tm))
		strcpy(out, "?");
	return out;
}

/* What may be printed to a terminal of bytes from a file. */
static void put_text(FILE *out, const char *s, size_t max)
{
	for (size_t i = 0; i < max && s[i]; i++)
		fputc((unsigned char)s[i] < 0x20 || s[i] == 0x7f ? '?' : s[i],
		      out);
}

static void put_checksum(struct dump *d, uint32_t stored, uint32_t sum)
{
	fprintf(d->out, "Checksum            : 0x%x|0x%x (%s)\n", stored, sum,
		stored == sum ? "Good!" : "Bad!");
}

static void dump_footer(struct dump *d, const uint8_t *raw,
			const struct vhd_footer *f)
{
	static const char *const type[] = {
		"None", "Reserved (deprecated)", "Fixed hard disk",
		"Dynamic hard disk", "Differencing hard disk",
		"Reserved (deprecated)", "Reserved (deprecated)",
	};
	uint64_t c = f->geometry >> 16, h = f->geometry >> 8 & 0xff,
		 s = f->geometry & 0xff, chs = c * h * s;
	uint32_t raw_type = get_be32(raw + 60);
	char text[37];

	fprintf(d->out, "VHD Footer Summary:\n-------------------\n");
	fprintf(d->out, "Cookie              : ");
	put_text(d->out, (const char *)raw, 8);
	fprintf(d->out, "\nFeatures            : (0x%08x) %s%s\n", f->features,
		f->features & 1 ? "<TEMP>" : "", f->features & 2 ? "<RESV>" : "");
	fprintf(d->out, "File format version : Major: %u, Minor: %u\n",
		f->version >> 16, f->version & 0xffff);
	fprintf(d->out, "Data offset         : %s\n", num(d, f->data_offset));
	fprintf(d->out, "Timestamp           : %s\n",
		time_text(text, f->timestamp));
	fprintf(d->out, "Creator Application : '");
	put_text(d->out, f->creator, 4);
	fprintf(d->out, "'\nCreator version     : Major: %u, Minor: %u\n",
		f->creator_version >> 16, f->creator_version & 0xffff);
	fprintf(d->out, "Creator OS          : %s\n",
		f->creator_os == 0x5769326b ? "Windows" :
		f->creator_os == 0x4d616320 ? "Macintosh" : "Unknown!");
	fprintf(d->out, "Original disk size  : %s MB (%s Bytes)\n",
		num(d, f->original_size >> 20), num(d, f->original_size));
	fprintf(d->out, "Current disk size   : %s MB (%s Bytes)\n",
		num(d, f->current_size >> 20), num(d, f->current_size));
	fprintf(d->out, "Geometry            : Cyl: %s, Hds: %s, Sctrs: %s\n",
		num(d, c), num(d, h), num(d, s));
	fprintf(d->out, "                    : = %s MB (%s Bytes)\n",
		num(d, chs >> 11), num(d, chs << 9));
	fprintf(d->out, "Disk type           : %s\n",
		raw_type < sizeof(type) / sizeof(type[0]) ? type[raw_type] :
							    "Unknown type!");
	put_checksum(d, get_be32(raw + 64),
		     vhd_checksum(raw, VHD_FOOTER_BYTES, 64));
	uuid_unparse_lower(f->uuid, text);
	fprintf(d->out, "UUID                : %s\n", text);
	fprintf(d->out, "Saved state         : %s\n", f->saved ? "Yes" : "No");
	fprintf(d->out, "Hidden              : %u\n\n", f->hidden);
}

static void dump_header(struct dump *d, const uint8_t *raw,
			const struct vhd_header *h)
{
	char text[37];

	fprintf(d->out, "VHD Header Summary:\n-------------------\n");
	fprintf(d->out, "Cookie              : ");
	put_text(d->out, (const char *)raw, 8);
	fprintf(d->out, "\nData offset (unusd) : %s\n", num(d, get_be64(raw + 8)));
	fprintf(d->out, "Table offset        : %s\n", num(d, h->table_offset));
	fprintf(d->out, "Header version      : 0x%08x\n", h->version);
	fprintf(d->out, "Max BAT size        : %s\n", num(d, h->max_bat_size));
	fprintf(d->out, "Block size          : %s (%s MB)\n",
		num(d, h->block_size), num(d, h->block_size >> 20));
	fprintf(d->out, "Parent name         : ");
	put_text(d->out, h->parent_name, sizeof(h->parent_name));
	uuid_unparse_lower(h->parent_uuid, text);
	fprintf(d->out, "\nParent UUID         : %s\n", text);
	fprintf(d->out, "Parent timestamp    : %s\n",
		time_text(text, h->parent_timestamp));
	put_checksum(d, get_be32(raw + 36),
		     vhd_checksum(raw, VHD_HEADER_BYTES, 36));
	fprintf(d->out, "\n");
}

static const char *code_name(uint32_t code)
{
	switch (code) {
	case 0x57693272:
		return "PLAT_CODE_WI2R";
	case 0x5769326b:
		return "PLAT_CODE_WI2K";
	case VHD_LOC_W2RU:
		return "PLAT_CODE_W2RU";
	case VHD_LOC_W2KU:
		return "PLAT_CODE_W2KU";
	case 0x4d616320:
		return "PLAT_CODE_MAC";
	case VHD_LOC_MACX:
		return "PLAT_CODE_MACX";
	default:
		return "UNKNOWN";
	}
}

static void dump_locators(struct dump *d, const struct vhd_header *h)
{
	fprintf(d->out, "VHD Parent Locators:\n--------------------\n");
	for (unsigned int i = 0; i < VHD_NR_LOCATORS; i++) {
		const struct vhd_locator *l = &h->locator[i];
		char *path;

		if (!l->code)
			continue;
		fprintf(d->out, "locator:            : %u\n", i);
		fprintf(d->out, "       code         : %s\n", code_name(l->code));
		fprintf(d->out, "       data_space   : %s\n",
			num(d, l->data_space));
		fprintf(d->out, "       data_length  : %s\n",
			num(d, l->data_len));
		fprintf(d->out, "       data_offset  : %s\n",
			num(d, l->data_offset));
		path = vhd_locator_path(d->fd, l);
		if (path) {
			fprintf(d->out, "       decoded name : ");
			put_text(d->out, path, SIZE_MAX);
			fprintf(d->out, "\n\n");
		} else {
			fprintf(d->out, "failed to read parent name\n\n");
		}
		free(path);
	}
}

/* The checksum that the map should have, if it can be read. */
static bool batmap_sum(struct dump *d, const struct vhd_footer *f,
		       const struct vhd_header *h, const uint8_t *raw,
		       uint32_t *sum)
{
	const struct vhd_image image = { .footer = *f, .header = *h };
	uint32_t len = vhd_batmap_covered(&image);
	uint8_t *map = malloc(len);
	bool ok = map && !vhd_read_at(d->fd, map, len, get_be64(raw + 8));

	if (ok)
		*sum = vhd_batmap_checksum(map, len, get_be32(raw + 20));
	free(map);
	return ok;
}

static void dump_batmap(struct dump *d, const struct vhd_footer *f,
			const struct vhd_header *h)
{
	uint8_t raw[VHD_SECTOR];
	uint32_t sum;

	if (vhd_read_at(d->fd, raw, sizeof(raw), vhd_batmap_header_offset(h)) ||
	    memcmp(raw, "tdbatmap", 8))
		return;
	fprintf(d->out, "VHD Batmap Summary:\n-------------------\n");
	fprintf(d->out, "Batmap offset       : %s\n", num(d, get_be64(raw + 8)));
	fprintf(d->out, "Batmap size (secs)  : %s\n",
		num(d, get_be32(raw + 16)));
	fprintf(d->out, "Batmap version      : 0x%08x\n", get_be32(raw + 20));
	if (batmap_sum(d, f, h, raw, &sum))
		put_checksum(d, get_be32(raw + 24), sum);
	fprintf(d->out, "\n");
}

int vhd_dump_headers(FILE *out, const char *path, bool hex, struct error *err)
{
	struct dump d = { .out = out, .hex = hex };
	uint8_t footer[VHD_FOOTER_BYTES] = { 0 }, header[VHD_HEADER_BYTES];
	struct vhd_footer f, tail;
	struct vhd_header h;
	struct stat st;
	uint64_t size, len;
	bool tail_ok;
	int rc;

	rc = vhd_file_open(&d.fd, path, VHD_OPEN_NOLOCK, &st, &size, err);
	if (rc)
		return rc;
	len = size % VHD_SECTOR == 511 ? 511 : VHD_FOOTER_BYTES;
	rc = size < len ? -ENODATA :
			  vhd_read_at(d.fd, footer, (size_t)len, size - len);
	if (rc) {
		error_set(err, rc, "%s: footer: reading: %s", path,
			  strerror(-rc));
		goto out;
	}
	rc = vhd_footer_decode(&tail, footer, path, "footer at the end", NULL);
	if (!rc && tail.type == VHD_FIXED) {
		dump_footer(&d, footer, &tail);
		goto out;
	}
	/* As vhd_open() does it. */
	tail_ok = !rc;
	rc = vhd_read_at(d.fd, footer, sizeof(footer), 0);
	if (rc || memcmp(footer, "conectix", 8) ||
	    (tail_ok && !vhd_footer_decode(&f, footer, path, "footer", NULL) &&
	     vhd_tail_counts(&f, &tail)))
		rc = vhd_read_at(d.fd, footer, (size_t)len, size - len);
	if (rc) {
		error_set(err, rc, "%s: footer: reading: %s", path,
			  strerror(-rc));
		goto out;
	}
	vhd_footer_decode(&f, footer, path, "footer", NULL);
	dump_footer(&d, footer, &f);
	if (vhd_read_at(d.fd, header, sizeof(header), f.data_offset))
		goto out;
	rc = vhd_header_decode(&h, header, path, NULL);
	dump_header(&d, header, &h);
	if (get_be32(footer + 60) == VHD_DIFF)
		dump_locators(&d, &h);
	/* Not after a bad header: the place and size of the map come from it. */
	if (!rc && f.current_size / h.block_size <= h.max_bat_size)
		dump_batmap(&d, &f, &h);
	rc = 0;
out:
	close(d.fd);
	return rc;
}
