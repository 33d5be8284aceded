// SPDX-License-Identifier: LGPL-2.1-only
#include <errno.h>
#include <getopt.h>
#include <stdio.h>

#include "tools/vhd-util.h"

struct modify {
	struct vhd_parent_args parent;
	bool kill_data, sized;
	uint64_t size;
};

/* In the order of XenServer's; a parent that can't be had, or a size, costs no data. */
static int modify(const struct modify *m, struct error *err)
{
	struct vhd_parent_args check = m->parent;
	struct config cfg = { 0 };
	int rc;

	check.check = true;
	rc = config_load(&cfg, NULL, err);
	if (!rc && m->kill_data && m->parent.parent)
		rc = vhd_set_parent(&check, &cfg, err);
	if (!rc && m->kill_data && m->sized)
		rc = vhd_check_physical_size(m->parent.path, m->size, err);
	if (!rc && m->kill_data)
		rc = vhd_kill_data(m->parent.path, err);
	if (!rc && m->sized)
		rc = vhd_set_physical_size(m->parent.path, m->size, err);
	if (!rc && m->parent.parent)
		rc = vhd_set_parent(&m->parent, &cfg, err);
	config_dispose(&cfg);
	return rc;
}

static int run(const struct vhd_util_command *self, int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "force", no_argument, NULL, 'F' },
		{ NULL, 0, NULL, 0 },
	};
	struct modify m = { .kill_data = false };
	struct error err = { 0 };
	int opt;

	while ((opt = getopt_long(argc, argv, "n:p:ms:zh", longopts, NULL)) !=
	       -1) {
		switch (opt) {
		case 'n':
			m.parent.path = optarg;
			break;
		case 'p':
			m.parent.parent = optarg;
			break;
		case 'm':
			m.parent.raw = true;
			break;
		case 's':
			if (!vhd_util_number(optarg, opt, INT64_MAX, &m.size))
				return EXIT_USAGE;
			m.sized = true;
			break;
		case 'z':
			m.kill_data = true;
			break;
		case 'F':
			m.parent.force = true;
			break;
		default:
			return vhd_util_usage(self, opt);
		}
	}
	if (!m.parent.path || optind != argc ||
	    (!m.parent.parent && !m.sized && !m.kill_data) ||
	    (!m.parent.parent && (m.parent.raw || m.parent.force)))
		return vhd_util_usage(self, 0);
	if (!modify(&m, &err))
		return EXIT_OK;
	if (err.code == -EBUSY && err.holder)
		error_append(&err, "; if that serves a disk, pausing it is enough: tap-ctl pause -p %d -m MINOR",
			     err.holder);
	return vhd_util_failed(&err);
}

const struct vhd_util_command vhd_util_modify = {
	.name = "modify",
	.usage = "-n NAME [-p PARENT [-m] [--force]] [-s BYTES] [-z] [-h]\n"
		 "  -p  another parent, or the parent's new name\n"
		 "  -m  the parent is raw\n"
		 "  --force  though it is not known from the image's chain, or is larger\n"
		 "  -s  moves the footer at the end to where a file or volume of BYTES ends\n"
		 "  -z  forgets all that the image itself holds: its data are lost",
	.run = run,
};
