/* SPDX-License-Identifier: LGPL-2.1-only */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <mntent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "common/diskfile.h"
#include "control/control.h"
#include "vbd.h"

/* Who uses a file. name: a backend node, a loop device in sysfs, or text for a person. */
struct user {
	char *name, *path;
	dev_t device;			/* by its number; 0: none, or not known */
	bool writes;
	bool ours;			/* a tapdisk has it, and its lock tells of all who come by the same node */
};

static struct user *users;
static size_t nr_users;

static void forget_all(void)
{
	for (size_t i = 0; i < nr_users; i++) {
		free(users[i].name);
		free(users[i].path);
	}
	nr_users = 0;
}

static char *format(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* NULL: no memory. */
static char *format(const char *fmt, ...)
{
	char *text;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&text, fmt, ap);
	va_end(ap);
	return n < 0 ? NULL : text;
}

/* Takes both. */
static int add(char *name, char *path, bool writes, struct error *err)
{
	struct user *more = reallocarray(users, nr_users + 1, sizeof(*users));

	if (more)
		users = more;
	if (!more || !name || !path) {
		free(name);
		free(path);
		return error_set(err, -ENOMEM, "out of memory");
	}
	users[nr_users++] = (struct user){ .name = name, .path = path, .writes = writes };
	return 0;
}

static bool is_device(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISBLK(st.st_mode);
}

/* The tapdisk's descriptors, until fn returns other than 0, which is returned. */
static int for_each_open(const struct vbd *vbd,
			 int (*fn)(const struct vbd *vbd, const char *fd,
				   const char *path, struct error *err),
			 struct error *err)
{
	const struct dirent *entry;
	char path[64];
	DIR *dir;
	int rc = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", vbd->pid);
	dir = opendir(path);
	if (!dir)
		return error_set(err, -errno, "%s: tapdisk %d ended", vbd->params,
				 vbd->pid);
	while (!rc && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/proc/%d/fd/%.16s", vbd->pid,
			 entry->d_name);
		rc = fn(vbd, entry->d_name, path, err);
	}
	closedir(dir);
	return rc;
}

static int stop_at_device(const struct vbd *vbd, const char *fd,
			  const char *path, struct error *err)
{
	(void)vbd;
	(void)fd;
	(void)err;
	return is_device(path);
}

/* The leaf is one, or a parent, which shows when the chain is open. */
static bool has_devices(const struct vbd *vbd)
{
	struct error err;

	return is_device(strchr(vbd->params, ':') + 1) ||
	       (vbd->pid > 0 && for_each_open(vbd, stop_at_device, &err) == 1);
}

/* Of a disk of another kind, as who opened it took it: QEMU from where xl was, Xen's scripts from /dev. */
static char *absolute(const struct vbd *vbd, const char *node, const char *path)
{
	int domid = node_domid(node), pid;
	char dir[48];

	if (*path == '/')
		return strdup(path);
	if (!strstr(node, "/qdisk/"))
		return format("/dev/%s", path);
	snprintf(dir, sizeof(dir), "/local/domain/%d/image", domid);
	pid = store_number(vbd->xs, dir, "device-model-pid");
	return pid > 0 ? format("/proc/%d/cwd/%s", pid, path) : strdup(path);
}

/* As its script has written it: what its params name need not be the device's path. 0: not yet, or never. */
static dev_t device_of(const struct vbd *vbd, const char *node)
{
	char *text = store_read(vbd->xs, "%s/physical-device", node);
	unsigned int major, minor;
	dev_t device = 0;

	if (text && sscanf(text, "%x:%x", &major, &minor) == 2)
		device = makedev(major, minor);
	free(text);
	return device;
}

static bool is_ours(const struct vbd *vbd, const char *node)
{
	char *script = store_read(vbd->xs, "%s/script", node);
	bool ours = script && ends_with(script, "/block-xenblk");

	free(script);
	return ours;
}

/* Our own disks are left to the lock, which knows more. One question for each: there may be many. */
static int see_backend(const struct vbd *vbd, const char *node, void *priv,
		       struct error *err)
{
	char *params, *mode;
	const char *path;
	int rc = 0;

	(void)priv;
	if (is_ours(vbd, node))
		return 0;
	params = store_read(vbd->xs, "%s/params", node);
	mode = store_read(vbd->xs, "%s/mode", node);
	path = params;
	/* TYPE:PATH, or a path */
	if (path && *path != '/' && strchr(path, ':'))
		path = strchr(path, ':') + 1;
	if (path) {
		rc = add(strdup(node), absolute(vbd, node, path), !mode || strchr(mode, 'w'), err);
		if (!rc)
			users[nr_users - 1].device = device_of(vbd, node);
	}
	free(params);
	free(mode);
	return rc;
}

struct looking {
	const struct vbd *vbd;
	struct error *err;
	int rc;
};

/*
 * The lock of a block device is that of a node of it, and there may be another: our own disks on devices, as
 * their tapdisks note them.
 */
static void see_ours(struct diskfile *file, void *priv)
{
	struct looking *looking = priv;
	const char *path = strchr(file->args, ':'), *whose = file->kept_for;
	struct stat st;
	char *name;

	if (looking->rc || !path || path[1] != '/' ||
	    !ask_stat(path + 1, 0, &st) || !S_ISBLK(st.st_mode))
		return;
	name = whose && !strncmp(whose, "backend/", 8) ?
		format("%s/%s", looking->vbd->backends, whose + 8) :
		format("the tapdisk of minor %d", file->minor);
	looking->rc = add(name, strdup(path + 1), !file->readonly, looking->err);
	if (!looking->rc)
		users[nr_users - 1].ours = true;
}

/* The first line; NULL if there is none. */
static char *line_of(const char *path)
{
	FILE *f = fopen(path, "re");
	char *line = NULL;
	size_t size = 0;
	ssize_t n;

	if (!f)
		return NULL;
	n = getline(&line, &size, f);
	fclose(f);
	if (n < 0) {
		free(line);
		return NULL;
	}
	if (n && line[n - 1] == '\n')
		line[n - 1] = 0;
	return line;
}

static int look_at_loops(struct error *err)
{
	const char *given = getenv("XENBLK_SYSFS");
	char block[1024], path[PATH_MAX];
	const struct dirent *entry;
	DIR *dir;
	int rc = 0;

	snprintf(block, sizeof(block), "%s/block", given ? given : "/sys");
	dir = opendir(block);
	while (dir && !rc && (entry = readdir(dir))) {
		char *file, *ro;

		if (strncmp(entry->d_name, "loop", 4))
			continue;
		snprintf(path, sizeof(path), "%s/%.32s/loop/backing_file", block,
			 entry->d_name);
		/* It has none, or goes away meanwhile. */
		file = line_of(path);
		if (!file)
			continue;
		snprintf(path, sizeof(path), "%s/%.32s/ro", block, entry->d_name);
		ro = line_of(path);
		rc = add(format("%s/%s", block, entry->d_name), file,
			 !ro || strcmp(ro, "1"), err);
		free(ro);
	}
	if (dir)
		closedir(dir);
	return rc;
}

static int look_at_mounts(struct error *err)
{
	FILE *f = setmntent("/proc/self/mounts", "re");
	const struct mntent *mount;
	int rc = 0;

	while (f && !rc && (mount = getmntent(f)))
		if (!strncmp(mount->mnt_fsname, "/dev/", 5))
			rc = add(format("the mount %s", mount->mnt_dir),
				 strdup(mount->mnt_fsname),
				 !hasmntopt(mount, "ro"), err);
	if (f)
		endmntent(f);
	return rc;
}

int sharing_look(const struct vbd *vbd, struct error *err)
{
	struct looking looking = { .vbd = vbd, .err = err };
	bool device = has_devices(vbd);
	int rc;

	forget_all();
	rc = store_for_each(vbd, "qdisk", see_backend, NULL, err);
	if (!rc && device)
		rc = store_for_each(vbd, "vbd", see_backend, NULL, err);
	if (!rc && device) {
		diskfile_for_each(see_ours, &looking);
		rc = looking.rc;
	}
	if (!rc)
		rc = look_at_loops(err);
	if (!rc && device)
		rc = look_at_mounts(err);
	return rc;
}

/* Names */

/* The guest and vdev of a backend node, in words. */
static char *guest_of(const struct vbd *vbd, const char *node)
{
	char *name = store_read(vbd->xs, "/local/domain/%d/name", node_domid(node));
	char *vdev = store_read(vbd->xs, "%s/dev", node);
	char *text;

	if (name)
		text = format("guest %s (%s)", name,
			      vdev ? vdev : strrchr(node, '/') + 1);
	else
		text = format("the disk %s", node);
	free(name);
	free(vdev);
	return text;
}

struct search {
	const char *device;		/* /dev/loopN */
	int pid;
	char *found;
};

/* libxl makes a loop device for a disk that is a file. */
static int has_device(const struct vbd *vbd, const char *node, void *priv,
		      struct error *err)
{
	struct search *search = priv;
	char *device = store_read(vbd->xs, "%s/node", node);

	(void)err;
	if (device && !search->found && !strcmp(device, search->device)) {
		char *guest = guest_of(vbd, node);

		search->found = format("%s of %s", device, guest ? guest : "a guest");
		free(guest);
	}
	free(device);
	return 0;
}

static int has_tapdisk(const struct vbd *vbd, const char *node, void *priv,
		       struct error *err)
{
	struct search *search = priv;
	char *pid = store_read(vbd->xs, "%s/tapdisk-pid", node);

	(void)err;
	if (pid && !search->found && control_heir(atoi(pid)) == search->pid)
		search->found = guest_of(vbd, node);
	free(pid);
	return 0;
}

static char *user_name(const struct vbd *vbd, const char *name)
{
	struct search search = { .pid = 0 };
	char device[64];

	if (!strncmp(name, vbd->backends, strlen(vbd->backends)))
		return guest_of(vbd, name);
	if (!strstr(name, "/block/loop"))
		return strdup(name);
	snprintf(device, sizeof(device), "/dev/%.32s", strrchr(name, '/') + 1);
	search.device = device;
	store_for_each(vbd, "vbd", has_device, &search, NULL);
	return search.found ? search.found : strdup(device);
}

static int refuse(const struct vbd *vbd, char *who, const char *why,
		  struct error *err)
{
	char text[sizeof(err->text)];

	/* why may be the text of err */
	snprintf(text, sizeof(text), "%s", why);
	error_set(err, -EBUSY, "%s: in use by %s; %s", vbd->params,
		  who ? who : "somebody", text);
	free(who);
	return -EBUSY;
}

void sharing_name_holder(const struct vbd *vbd, struct error *err)
{
	struct search search = { .pid = err->holder };

	store_for_each(vbd, "vbd", has_tapdisk, &search, NULL);
	if (search.found)
		refuse(vbd, search.found, err->text, err);
}

/* Judging */

static bool uses(const struct user *user, const char *file)
{
	struct stat sa, sb;

	if (stat(file, &sa))
		return false;
	if (user->device && S_ISBLK(sa.st_mode) && sa.st_rdev == user->device)
		return true;
	if (!ask_stat(user->path, sa.st_dev, &sb))
		return false;
	if (sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino)
		return !user->ours;
	return S_ISBLK(sa.st_mode) && S_ISBLK(sb.st_mode) && sa.st_rdev == sb.st_rdev;
}

int sharing_check(const struct vbd *vbd, const char *file, bool writes,
		  struct error *err)
{
	for (size_t i = 0; i < nr_users; i++)
		if ((writes || users[i].writes) && uses(&users[i], file))
			return refuse(vbd, user_name(vbd, users[i].name),
				      "end that use first", err);
	return 0;
}

static bool opened_to_write(int pid, const char *fd)
{
	char path[64], line[128];
	unsigned int flags = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%.16s", pid, fd);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "flags: %o", &flags) == 1)
			break;
	if (f)
		fclose(f);
	return flags & 3;
}

static int check_open(const struct vbd *vbd, const char *fd, const char *path,
		      struct error *err)
{
	struct stat st;

	if (stat(path, &st) || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)))
		return 0;
	return sharing_check(vbd, path, opened_to_write(vbd->pid, fd), err);
}

int sharing_check_chain(const struct vbd *vbd, struct error *err)
{
	return for_each_open(vbd, check_open, err);
}
