/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/gendisk.h"

#include <blktap.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/config.h"
#include "transport/nbd-gendisk.h"

static const struct gendisk_kind *const kinds[] = {
	&blktap_gendisk, &ublk_gendisk, &nbd_gendisk,
};

const struct gendisk_kind *gendisk_find(const char *name)
{
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (!strcmp(kinds[i]->name, name))
			return kinds[i];
	return NULL;
}

static int try(const char *name, const struct gendisk_kind **kind,
	       struct error *err)
{
	*kind = gendisk_find(name);
	if (!*kind)
		return error_set(err, -EOPNOTSUPP, "this release has no such transport");
	return (*kind)->check(err);
}

int gendisk_choose(const char *transports, const struct gendisk_kind **kind,
		   struct error *err)
{
	const char *list = strcmp(transports, "auto") ? transports :
							TRANSPORT_AUTO;
	char names[CONFIG_TRANSPORT_BYTES], why[800] = "";
	struct error e;
	size_t n = 0;
	char *save;
	int rc = 0;

	snprintf(names, sizeof(names), "%s", list);
	for (const char *name = strtok_r(names, ",", &save); name;
	     name = strtok_r(NULL, ",", &save)) {
		rc = try(name, kind, &e);
		if (!rc)
			return 0;
		if (n < sizeof(why))
			n += (size_t)snprintf(why + n, sizeof(why) - n,
					      "%stransport %s: %s", n ? "; " : "",
					      name, e.text);
	}
	*kind = NULL;
	return error_set(err, rc ? rc : -EINVAL, "%s", why);
}

/* The name */

static int link_error(const char *path, struct error *err)
{
	return error_set(err, -errno, "%s: %s", path, strerror(errno));
}

static int make_directory(struct error *err)
{
	char path[] = BLKTAP_DEVICE_PATH;

	for (char *p = path + 1; (p = strchr(p, '/')); *p++ = '/') {
		*p = 0;
		if (mkdir(path, 0755) && errno != EEXIST)
			return link_error(path, err);
	}
	return 0;
}

int gendisk_publish(int minor, const char *name, struct error *err)
{
	char path[64], early[96], node[64], target[64];
	struct stat st;
	int rc;

	snprintf(path, sizeof(path), BLKTAP_DEVICE_PATH, minor);
	snprintf(early, sizeof(early), "%s.%d", path, (int)getpid());
	snprintf(node, sizeof(node), "/dev/%s", name);
	snprintf(target, sizeof(target), "../../%s", name);
	if (stat(node, &st))
		return link_error(node, err);
	if (!S_ISBLK(st.st_mode))
		return error_set(err, -ENOTBLK, "%s: is no block device; /dev must be a devtmpfs",
				 node);
	if (chown(node, 0, 0) || chmod(node, 0600))
		return link_error(node, err);
	rc = make_directory(err);
	if (rc)
		return rc;
	if (!lstat(path, &st) && !S_ISLNK(st.st_mode))
		return error_set(err, -EEXIST, "%s: exists and is no link; remove it",
				 path);
	unlink(early);
	if (symlink(target, early))
		return link_error(early, err);
	if (rename(early, path)) {
		rc = link_error(path, err);
		unlink(early);
	}
	return rc;
}

void gendisk_unpublish(int minor)
{
	struct stat st;
	char path[64];

	snprintf(path, sizeof(path), BLKTAP_DEVICE_PATH, minor);
	if (!lstat(path, &st) && S_ISLNK(st.st_mode))
		unlink(path);
}

/* Modules */

static _Noreturn void run_modprobe(const char *name, const char *parameter,
				   int fd)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0 || dup2(null, STDIN_FILENO) < 0 ||
	    dup2(fd, STDOUT_FILENO) < 0 || dup2(fd, STDERR_FILENO) < 0)
		_exit(127);
	execlp("modprobe", "modprobe", name, parameter, (char *)NULL);
	execl("/sbin/modprobe", "modprobe", name, parameter, (char *)NULL);
	dprintf(STDERR_FILENO, "modprobe: %s", strerror(errno));
	_exit(127);
}

int module_load(const char *name, const char *parameter, struct error *err)
{
	char text[300] = "";
	int fds[2], status = 0;
	size_t n = 0;
	ssize_t got;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC))
		return error_set(err, -errno, "pipe: %s", strerror(errno));
	pid = fork();
	if (!pid)
		run_modprobe(name, parameter, fds[1]);
	close(fds[1]);
	if (pid < 0) {
		close(fds[0]);
		return error_set(err, -EAGAIN, "fork: %s", strerror(errno));
	}
	/* What there is no room for is read too, so that it ends. */
	do {
		char rest[256];
		bool room = n < sizeof(text) - 1;

		got = read(fds[0], room ? text + n : rest,
			   room ? sizeof(text) - 1 - n : sizeof(rest));
		if (room && got > 0)
			n += (size_t)got;
	} while (got > 0 || (got < 0 && errno == EINTR));
	close(fds[0]);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!status)
		return 0;
	text[n] = 0;
	text[strcspn(text, "\n")] = 0;
	return error_set(err, -ENODEV, "%s", *text ? text : "modprobe failed");
}
