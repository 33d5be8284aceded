/* SPDX-License-Identifier: LGPL-2.1-only */
#include "common/config.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_VERSION "1"
#define YEAR_S 31536000u

static int add_dir(struct config *cfg, const char *dir, struct error *err)
{
	if (dir[0] != '/')
		return error_set(err, -EINVAL,
				 "image_dir=%s: must be an absolute path", dir);
	if (cfg->nr_image_dirs == CONFIG_MAX_DIRS)
		return error_set(err, -E2BIG, "image_dir: more than %d of them",
				 CONFIG_MAX_DIRS);
	cfg->image_dir[cfg->nr_image_dirs] = strdup(dir);
	if (!cfg->image_dir[cfg->nr_image_dirs])
		return error_set(err, -ENOMEM, "out of memory");
	cfg->nr_image_dirs++;
	return 0;
}

static int add_default_dirs(struct config *cfg, struct error *err)
{
	int rc = add_dir(cfg, "/var/lib/xen/images", err);

	return rc ? rc : add_dir(cfg, "/srv", err);
}

/* What a wrapped engine is wrapped in and around, io/wrap.c judges. */
static int set_engine(struct config *cfg, const char *value, struct error *err)
{
	if ((strcmp(value, "uring") && strcmp(value, "posix") &&
	     strncmp(value, "fault:", 6) && strncmp(value, "record:", 7)) ||
	    strlen(value) >= sizeof(cfg->engine))
		return error_set(err, -EINVAL,
				 "engine=%s: must be uring or posix", value);
	strcpy(cfg->engine, value);
	return 0;
}

static bool in_list(const char *list, const char *name, size_t len)
{
	while (strncmp(list, name, len) || (list[len] && list[len] != ',')) {
		list = strchr(list, ',');
		if (!list++)
			return false;
	}
	return true;
}

/* Each one is known and there once. */
static bool transports_valid(const char *value)
{
	const char *name = value;

	for (;;) {
		size_t len = strcspn(name, ",");

		if (!len || !in_list(TRANSPORT_AUTO, name, len))
			return false;
		name += len;
		if (!*name++)
			return true;
		if (in_list(name, name - len - 1, len))
			return false;
	}
}

int config_set_transport(struct config *cfg, const char *value,
			 struct error *err)
{
	if (strlen(value) >= sizeof(cfg->transport) ||
	    (strcmp(value, "auto") && !transports_valid(value)))
		return error_set(err, -EINVAL,
				 "transport=%s: must be auto, or some of " TRANSPORT_AUTO " in the order to try them",
				 value);
	strcpy(cfg->transport, value);
	return 0;
}

static int set_bool(bool *to, const char *key, const char *value,
		    struct error *err)
{
	if (strcmp(value, "yes") && strcmp(value, "no"))
		return error_set(err, -EINVAL, "%s=%s: must be yes or no", key,
				 value);
	*to = !strcmp(value, "yes");
	return 0;
}

static int set_seconds(unsigned int *to, const char *key, const char *value,
		       struct error *err)
{
	unsigned long n;
	char *end;

	errno = 0;
	n = strtoul(value, &end, 10);
	if (errno || *end || *value < '0' || *value > '9' || n > YEAR_S)
		return error_set(err, -EINVAL, "%s=%s: must be 0 to %u seconds",
				 key, value, YEAR_S);
	*to = (unsigned int)n;
	return 0;
}

static int set_key(struct config *cfg, const char *key, const char *value,
		   struct error *err)
{
	if (!strcmp(key, "version")) {
		if (strcmp(value, CONFIG_VERSION))
			return error_set(err, -EINVAL,
					 "version=%s: only " CONFIG_VERSION
					 " is known; run the xenblk of this "
					 "release", value);
	} else if (!strcmp(key, "image_dir")) {
		return add_dir(cfg, value, err);
	} else if (!strcmp(key, "engine")) {
		return set_engine(cfg, value, err);
	} else if (!strcmp(key, "transport")) {
		return config_set_transport(cfg, value, err);
	} else if (!strcmp(key, "kernel_io")) {
		return set_bool(&cfg->kernel_io, key, value, err);
	} else if (!strcmp(key, "restart")) {
		return set_bool(&cfg->restart, key, value, err);
	} else if (!strcmp(key, "dead_timeout")) {
		return set_seconds(&cfg->dead_timeout_s, key, value, err);
	} else {
		int rc = retry_set(&cfg->retry, key, value, err);

		/* Keys of later releases are ignored. */
		return rc == -ENOENT ? 0 : rc;
	}
	return 0;
}

/* len counts the newline. */
static int parse_line(struct config *cfg, char *line, size_t len,
		      struct error *err)
{
	char *eq;

	if (memchr(line, 0, len))
		return error_set(err, -EINVAL, "holds a NUL byte");
	/* Half of an image_dir would allow more than was meant. */
	if (line[len - 1] != '\n')
		return error_set(err, -EINVAL,
				 "is cut short, it has no newline");
	line[len - 1] = 0;
	if (!line[0] || line[0] == '#')
		return 0;
	eq = strchr(line, '=');
	if (!eq || eq == line)
		return error_set(err, -EINVAL, "is not key=value");
	*eq = 0;
	return set_key(cfg, line, eq + 1, err);
}

int config_load(struct config *cfg, const char *path, struct error *err)
{
	size_t size = 0;
	char *line = NULL;
	FILE *f = NULL;
	ssize_t len;
	int rc = 0;

	memset(cfg, 0, sizeof(*cfg));
	snprintf(cfg->engine, sizeof(cfg->engine), "uring");
	snprintf(cfg->transport, sizeof(cfg->transport), "auto");
	cfg->restart = true;
	cfg->retry = retry_defaults;

	if (!path)
		path = secure_getenv("XENBLK_CONFIG");
	if (!path)
		path = CONFIG_PATH;

	f = fopen(path, "re");
	if (!f && errno != ENOENT) {
		rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
		goto out;
	}
	errno = 0;
	for (unsigned int n = 1; f && (len = getline(&line, &size, f)) > 0; n++) {
		rc = parse_line(cfg, line, (size_t)len, err);
		if (rc) {
			error_prefix(err, "%s: line %u (run `xenblk config "
				     "apply` to write it anew)", path, n);
			goto out;
		}
		errno = 0;
	}
	if (f && !feof(f)) {
		rc = errno ? -errno : -EIO;
		error_set(err, rc, "%s: %s", path, strerror(-rc));
		goto out;
	}
	if (!cfg->nr_image_dirs)
		rc = add_default_dirs(cfg, err);
	if (!rc && secure_getenv("XENBLK_ENGINE")) {
		rc = set_engine(cfg, secure_getenv("XENBLK_ENGINE"), err);
		if (rc)
			error_prefix(err, "$XENBLK_ENGINE");
	}
out:
	free(line);
	if (f)
		fclose(f);
	return rc;
}

void config_dispose(struct config *cfg)
{
	for (unsigned int i = 0; i < cfg->nr_image_dirs; i++)
		free(cfg->image_dir[i]);
	memset(cfg, 0, sizeof(*cfg));
}

/* Both are resolved: no "..", no double slash, no slash at the end but "/". */
static bool lies_inside(const char *path, const char *dir)
{
	size_t n = strlen(dir);

	if (!strcmp(dir, "/"))
		return true;
	return !strncmp(path, dir, n) && (path[n] == '/' || !path[n]);
}

static bool dir_allows(const char *dir, const char *resolved)
{
	char *real = realpath(dir, NULL);
	bool yes = real && lies_inside(resolved, real);

	free(real);
	return yes;
}

int config_allows(const struct config *cfg, const char *path,
		  const char *extra_dir, struct error *err)
{
	char *resolved = realpath(path, NULL);
	char dirs[512] = "";
	size_t n = 0;
	int rc = 0;

	if (!resolved)
		return error_set(err, -errno, "%s: %s", path, strerror(errno));

	if (extra_dir && dir_allows(extra_dir, resolved))
		goto out;
	for (unsigned int i = 0; i < cfg->nr_image_dirs; i++)
		if (dir_allows(cfg->image_dir[i], resolved))
			goto out;

	if (extra_dir)
		n = (size_t)snprintf(dirs, sizeof(dirs), "%s", extra_dir);
	for (unsigned int i = 0; i < cfg->nr_image_dirs && n < sizeof(dirs); i++)
		if (!extra_dir || strcmp(extra_dir, cfg->image_dir[i]))
			n += (size_t)snprintf(dirs + n, sizeof(dirs) - n,
					      "%s%s", n ? ", " : "",
					      cfg->image_dir[i]);
	rc = error_set(err, -EACCES, "%s: resolves to %s, outside the image "
		       "directories (%s); add its directory to image_dirs in "
		       "/etc/xen/xenblk.yaml", path, resolved, dirs);
out:
	free(resolved);
	return rc;
}
