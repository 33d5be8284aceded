// SPDX-License-Identifier: LGPL-2.1-only
#include "xl-plain.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* As in xenblk/config.py, probe.py and patience.py. */
#define YAML "/etc/xen/xenblk.yaml"
#define FLAT "/run/xenblk/config"
#define ON_XEN "/proc/xen/capabilities"
#define XENSTORED "/run/xenstored/socket"
#define OPEN_SECONDS 20

extern char **environ;

static const char *place(const char *variable, const char *usual)
{
	const char *given = getenv(variable);

	return given ? given : usual;
}

/* The length of a path that needs no care, up to its comma; 0: there is none. */
static size_t plain_path(const char *text)
{
	size_t len = 0;

	while (isalnum((unsigned char)text[len]) || (text[len] && strchr("/._-", text[len])))
		len++;
	return text[len] == ',' ? len : 0;
}

/* xvdb, sda, hdc1 */
static bool is_vdev(const char *text, size_t len)
{
	static const char *const buses[] = { "xvd", "sd", "hd" };
	size_t at = 0, start;

	for (size_t i = 0; i < 3 && !at; i++) {
		if (!strncmp(text, buses[i], strlen(buses[i])))
			at = strlen(buses[i]);
	}
	start = at;
	while (at < len && islower((unsigned char)text[at]))
		at++;
	if (!start || at == start || at > start + 2 || text[at] == '0')
		return false;
	start = at;
	while (at < len && isdigit((unsigned char)text[at]))
		at++;
	return at == len && at <= start + 2;
}

/* What comes after the vdev, or nothing, which is w. */
static bool read_access(const char *text, bool *writes)
{
	static const char *const written[] = { "w", "rw", "r", "ro" };

	for (size_t i = 0; i < 4; i++) {
		if (!strcmp(text, written[i])) {
			*writes = i < 2;
			return true;
		}
	}
	return false;
}

static bool join(int nr, char *const *words, char *spec, size_t size)
{
	size_t len = 0;

	for (int i = 0; i < nr; i++) {
		int n = snprintf(spec + len, size - len, "%s%s", i ? "," : "", words[i]);

		if (n < 0 || (size_t)n >= size - len)
			return false;
		len += (size_t)n;
	}
	return len;
}

bool xl_plain_read(int nr, char *const *words, struct xl_plain *disk)
{
	static const char *const taps[] = { "tap:tapdisk:", "tap2:tapdisk:", "tapdisk:", "tap:", "tap2:" };
	char spec[PATH_MAX + 64];
	const char *at = spec;
	size_t path, vdev, target;

	if (!join(nr, words, spec, sizeof(spec)))
		return false;
	for (size_t i = 0; i < sizeof(taps) / sizeof(taps[0]) && at == spec; i++) {
		if (!strncmp(spec, taps[i], strlen(taps[i])))
			at += strlen(taps[i]);
	}
	if (at == spec || (strncmp(at, "vhd:/", 5) && strncmp(at, "aio:/", 5)))
		return false;
	path = plain_path(at + 4);
	target = 4 + path;
	if (!path || target >= sizeof(disk->target))
		return false;
	memcpy(disk->target, at, target);
	disk->target[target] = '\0';
	at += target + 1;
	vdev = strcspn(at, ",");
	if (vdev >= sizeof(disk->vdev) || !is_vdev(at, vdev))
		return false;
	memcpy(disk->vdev, at, vdev);
	disk->vdev[vdev] = '\0';
	at += vdev;
	disk->writes = true;
	return !*at || read_access(at + 1, &disk->writes);
}

char *xl_plain_rewritten(const struct xl_plain *disk)
{
	char *text;

	if (asprintf(&text, "format=raw,script=block-xenblk,vdev=%s,access=%c,target=%s", disk->vdev,
		     disk->writes ? 'w' : 'r', disk->target) < 0)
		return NULL;
	return text;
}

static bool later(struct timespec a, struct timespec b)
{
	return a.tv_sec != b.tv_sec ? a.tv_sec > b.tv_sec : a.tv_nsec > b.tv_nsec;
}

/* Nobody has touched the settings since they were applied, or there are none. */
static bool settings_apply(void)
{
	const char *yaml_path = place("XENBLK_YAML", YAML), *flat_path = place("XENBLK_CONFIG", FLAT);
	struct stat yaml, flat;

	if (stat(yaml_path, &yaml))
		return errno == ENOENT && stat(flat_path, &flat) && errno == ENOENT;
	return !stat(flat_path, &flat) && later(flat.st_mtim, yaml.st_ctim);
}

static bool xenstored_answers(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	const char *path = place("XENSTORED_PATH", XENSTORED);
	bool answers;
	int fd;

	if (access(ON_XEN, F_OK))
		return true;
	if (strlen(path) >= sizeof(address.sun_path))
		return false;
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	answers = fd >= 0 && !connect(fd, (const struct sockaddr *)&address, sizeof(address));
	if (fd >= 0)
		close(fd);
	return answers;
}

/* What hangs in the kernel is left there: xenblk says what is wrong. */
static bool ends_in_time(pid_t pid)
{
	struct pollfd end = { .fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN };
	bool ends = end.fd < 0 || poll(&end, 1, OPEN_SECONDS * 1000) == 1;

	if (end.fd >= 0)
		close(end.fd);
	if (!ends)
		kill(pid, SIGKILL);
	return ends;
}

static bool opens(const struct xl_plain *disk, const char *tap_ctl)
{
	const char *const argv[] = { "tap-ctl", "probe", "-a", disk->target, disk->writes ? NULL : "-R", NULL };
	posix_spawn_file_actions_t actions;
	int status, rc;
	pid_t pid;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
	posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
	rc = posix_spawn(&pid, place("XENBLK_TAP_CTL", tap_ctl), &actions, NULL,
			 (char *const *)(uintptr_t)argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	return !rc && ends_in_time(pid) && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && !WEXITSTATUS(status);
}

bool xl_plain_ready(const struct xl_plain *disk, const char *tap_ctl)
{
	return settings_apply() && xenstored_answers() && opens(disk, tap_ctl);
}
