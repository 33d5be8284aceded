/* SPDX-License-Identifier: LGPL-2.1-only */
/* The flat configuration file, and which paths it allows. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/config.h"

static char root[64];			/* a fresh directory, the working directory */

static int make_root(void **state)
{
	(void)state;
	strcpy(root, "/tmp/test-config.XXXXXX");
	assert_non_null(mkdtemp(root));
	assert_int_equal(chdir(root), 0);
	return 0;
}

static int remove_root(void **state)
{
	char command[128];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf %s", root);
	return system(command);
}

static void write_file(const char *name, const char *text, size_t len)
{
	FILE *f = fopen(name, "w");

	assert_non_null(f);
	assert_int_equal(fwrite(text, 1, len, f), len);
	fclose(f);
}

static int load(struct config *cfg, const char *text, struct error *err)
{
	write_file("config", text, strlen(text));
	return config_load(cfg, "config", err);
}

static void refused(const char *text, const char *says)
{
	struct config cfg;
	struct error err;

	assert_int_not_equal(load(&cfg, text, &err), 0);
	if (!strstr(err.text, says))
		fail_msg("\"%s\" does not say \"%s\"", err.text, says);
	config_dispose(&cfg);
}

static void a_missing_file_gives_the_defaults(void **state)
{
	struct config cfg;

	(void)state;
	assert_int_equal(config_load(&cfg, "none", NULL), 0);
	assert_string_equal(cfg.engine, "uring");
	assert_false(cfg.kernel_io);
	assert_true(cfg.restart);
	assert_int_equal(cfg.nr_image_dirs, 2);
	assert_string_equal(cfg.image_dir[0], "/var/lib/xen/images");
	assert_string_equal(cfg.image_dir[1], "/srv");
	config_dispose(&cfg);
	config_dispose(&cfg);
}

static void keys_are_read_and_unknown_ones_ignored(void **state)
{
	struct config cfg;

	(void)state;
	assert_int_equal(load(&cfg, "# by xenblk\nversion=1\n\nnew.key=1=2\n"
			      "image_dir=/a b/c=d\nimage_dir=/e\nengine=posix\n"
			      "transport=nbd,blktap\n"
			      "kernel_io=yes\nrestart=no\ndead_timeout=60\n",
			      NULL), 0);
	assert_string_equal(cfg.transport, "nbd,blktap");
	assert_true(cfg.kernel_io);
	assert_false(cfg.restart);
	assert_int_equal(cfg.dead_timeout_s, 60);
	assert_string_equal(cfg.engine, "posix");
	assert_int_equal(cfg.nr_image_dirs, 2);
	assert_string_equal(cfg.image_dir[0], "/a b/c=d");
	assert_string_equal(cfg.image_dir[1], "/e");
	config_dispose(&cfg);
}

static void the_environment_names_the_file(void **state)
{
	struct config cfg;

	(void)state;
	write_file("other", "engine=posix\n", 13);
	setenv("XENBLK_CONFIG", "other", 1);
	assert_int_equal(config_load(&cfg, NULL, NULL), 0);
	unsetenv("XENBLK_CONFIG");
	assert_string_equal(cfg.engine, "posix");
	config_dispose(&cfg);
}

static void the_environment_names_the_engine(void **state)
{
	struct config cfg;
	struct error err;

	(void)state;
	write_file("other", "engine=uring\n", 13);
	setenv("XENBLK_ENGINE", "fault:/tmp/rules:posix", 1);
	assert_int_equal(config_load(&cfg, "other", NULL), 0);
	assert_string_equal(cfg.engine, "fault:/tmp/rules:posix");
	config_dispose(&cfg);
	setenv("XENBLK_ENGINE", "faults", 1);
	assert_int_equal(config_load(&cfg, "other", &err), -EINVAL);
	assert_string_equal(err.text,
			    "$XENBLK_ENGINE: engine=faults: must be uring or posix");
	unsetenv("XENBLK_ENGINE");
	config_dispose(&cfg);
}

static void what_is_malformed_is_refused_by_its_line(void **state)
{
	struct config cfg;
	struct error err;
	char many[CONFIG_MAX_DIRS * 16 + 32] = "";

	(void)state;
	refused("version=1\nengine\n", "config: line 2 ");
	refused("=x\n", "is not key=value");
	refused("version=2\n", "version=2: only 1 is known");
	refused("retry_errors=some\n", "retry_errors=some: must be none, transient or all");
	refused("retry_interval=0\n", "retry_interval=0: must be 1 to 3600 seconds");
	refused("retry_for=1s\n", "retry_for=1s: must be 0 to 31536000 seconds");
	refused("no_space=\n", "no_space=: must be fail or wait");
	refused("engine=libaio\n", "engine=libaio: must be uring or posix");
	refused("transport=\n", "transport=: must be auto, or some of blktap,ublk,nbd");
	refused("transport=auto,nbd\n", "transport=auto,nbd: must be auto");
	refused("transport=nbd,ub\n", "must be auto");
	refused("transport=nbd,nbd\n", "must be auto");
	refused("transport=nbd,\n", "must be auto");
	refused("transport=nb\n", "must be auto");
	refused("transport=blktap,ublk,nbd,blktap,ublk,nbd,blktap,ublk,nbd,blktap,ublk,nbd\n",
		"must be auto");
	refused("dead_timeout=-1\n", "dead_timeout=-1: must be 0 to 31536000 seconds");
	refused("restart=on\n", "restart=on: must be yes or no");
	refused("kernel_io=1\n", "kernel_io=1: must be yes or no");
	refused("image_dir=srv\n", "image_dir=srv: must be an absolute path");
	refused("image_dir=\n", "must be an absolute path");
	refused("image_dir=/srv/v", "cut short");
	for (int i = 0; i <= CONFIG_MAX_DIRS; i++)
		strcat(many, "image_dir=/d\n");
	refused(many, "more than 64");
	write_file("config", "image_dir=/a\0b\n", 15);
	assert_int_equal(config_load(&cfg, "config", &err), -EINVAL);
	assert_non_null(strstr(err.text, "NUL"));
	config_dispose(&cfg);
}

static void a_file_that_cannot_be_read_is_an_error(void **state)
{
	struct config cfg;
	struct error err;

	(void)state;
	assert_int_equal(config_load(&cfg, root, &err), -EISDIR);
	assert_non_null(strstr(err.text, root));
	config_dispose(&cfg);
	assert_int_equal(config_load(&cfg, "config/x", &err), -ENOTDIR);
	config_dispose(&cfg);
}

static int allowed(const struct config *cfg, const char *path, const char *extra)
{
	return config_allows(cfg, path, extra, NULL);
}

static void paths_are_allowed_inside_the_directories_only(void **state)
{
	struct config cfg;
	struct error err;
	char text[256];

	(void)state;
	mkdir("in", 0700);
	mkdir("in/deep", 0700);
	mkdir("in2", 0700);
	mkdir("extra", 0700);
	write_file("in/deep/a", "", 0);
	write_file("in2/b", "", 0);
	write_file("extra/c", "", 0);
	assert_int_equal(symlink("../in2/b", "in/out-link"), 0);
	assert_int_equal(symlink("in/deep/a", "in-link"), 0);
	assert_int_equal(symlink("in", "dir-link"), 0);
	snprintf(text, sizeof(text), "image_dir=%s/none\nimage_dir=%s/dir-link/\n",
		 root, root);
	assert_int_equal(load(&cfg, text, NULL), 0);

	assert_int_equal(allowed(&cfg, "in/deep/a", NULL), 0);
	assert_int_equal(allowed(&cfg, "in-link", NULL), 0);
	assert_int_equal(allowed(&cfg, "in/deep/../deep/a", NULL), 0);
	assert_int_equal(allowed(&cfg, "in2/b", NULL), -EACCES);
	assert_int_equal(allowed(&cfg, "in/out-link", NULL), -EACCES);
	assert_int_equal(allowed(&cfg, "in/../in2/b", NULL), -EACCES);
	assert_int_equal(allowed(&cfg, "extra/c", NULL), -EACCES);
	assert_int_equal(allowed(&cfg, "extra/c", "extra"), 0);
	assert_int_equal(allowed(&cfg, "in2/b", "extra"), -EACCES);
	assert_int_equal(allowed(&cfg, "in/none", NULL), -ENOENT);
	/* Of a device it is asked where its link is. */
	assert_int_equal(allowed(&cfg, "in", NULL), 0);
	assert_int_equal(allowed(&cfg, "in2", NULL), -EACCES);
	assert_int_equal(allowed(&cfg, "extra", "extra"), 0);

	assert_int_equal(config_allows(&cfg, "in/out-link", "extra", &err), -EACCES);
	assert_non_null(strstr(err.text, "in/out-link: resolves to"));
	assert_non_null(strstr(err.text, "/in2/b"));
	assert_non_null(strstr(err.text, "(extra, "));
	assert_non_null(strstr(err.text, "/etc/xen/xenblk.yaml"));
	config_dispose(&cfg);

	assert_int_equal(load(&cfg, "image_dir=/\n", NULL), 0);
	assert_int_equal(allowed(&cfg, "in2/b", NULL), 0);
	config_dispose(&cfg);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_missing_file_gives_the_defaults),
		cmocka_unit_test(keys_are_read_and_unknown_ones_ignored),
		cmocka_unit_test(the_environment_names_the_file),
		cmocka_unit_test(the_environment_names_the_engine),
		cmocka_unit_test(what_is_malformed_is_refused_by_its_line),
		cmocka_unit_test(a_file_that_cannot_be_read_is_an_error),
		cmocka_unit_test(paths_are_allowed_inside_the_directories_only),
	};

	return cmocka_run_group_tests_name("config", tests, make_root, remove_root);
}
