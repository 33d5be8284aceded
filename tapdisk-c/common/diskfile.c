/* SPDX-License-Identifier: LGPL-2.1-only */
#include "common/diskfile.h"

#include <blktap.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/process.h"
#include "common/rundir.h"

#define DISKFILE_VERSION 1u
#define DISKFILE_MINORS BLKTAP_MAX_MINORS

static int path_of(char *path, size_t size, int minor)
{
	return run_path(path, size, "disk.%d", minor);
}

static void write_lines(FILE *f, const struct diskfile *file)
{
	fprintf(f, "version=%u\npid=%d\nborn=%llu\nid=%llu\nargs=%s\nreadonly=%d\npaused=%d\nlost=%d\nsigned=%d\ndead_timeout=%u\ngiven_up=%d\nowner=%d\nsectors=%llu\nsector_size=%u\n",
		DISKFILE_VERSION, file->pid, (unsigned long long)file->born,
		(unsigned long long)file->id,
		file->args, file->readonly, file->paused, file->lost,
		file->signed_it, file->dead_timeout_s, file->given_up, file->owner, (unsigned long long)file->sectors,
		file->sector_size);
	if (file->kept_for)
		fprintf(f, "for=%s\n", file->kept_for);
	retry_write(&file->retry, f);
	for (unsigned int i = 0; i < file->nr_former; i++)
		fprintf(f, "former=%d\n", file->former[i]);
}

static int write_file(const struct diskfile *file)
{
	char path[PATH_MAX], new[PATH_MAX];
	FILE *f = NULL;
	int rc, fd;

	rc = path_of(path, sizeof(path), file->minor);
	if (!rc)
		rc = run_path(new, sizeof(new), "disk.%d.%d", file->minor,
			      (int)getpid());
	if (rc)
		goto out;
	fd = open(new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
		  0600);
	f = fd < 0 ? NULL : fdopen(fd, "w");
	if (!f) {
		rc = -errno;
		if (fd >= 0)
			close(fd);
		goto out;
	}
	write_lines(f, file);
	if (fflush(f) || ferror(f))
		rc = errno ? -errno : -EIO;
	fclose(f);
	if (!rc && rename(new, path))
		rc = -errno;
	if (rc)
		unlink(new);
out:
	return rc;
}

static void complain(const struct diskfile *file, int rc)
{
	log_error("cannot note the disk for the next tapdisk minor=%d path=%s err=%d",
		  file->minor, run_dir(), -rc);
}

int diskfile_write(const struct diskfile *file)
{
	int rc = write_file(file);

	if (rc)
		complain(file, rc);
	return rc;
}

/* Another image, requests that go on though they were to wait, a lost flush that nobody is told, or an end with a script. */
static bool misleads(const struct diskfile *old, const struct diskfile *file)
{
	return strcmp(old->args, file->args) || old->readonly != file->readonly ||
	       old->paused != file->paused || old->sectors != file->sectors ||
	       old->owner != file->owner || (file->lost && !old->lost);
}

int diskfile_update(const struct diskfile *file, bool loud)
{
	int rc = write_file(file), read;
	struct diskfile old;

	if (!rc)
		return 0;
	if (loud)
		complain(file, rc);
	/* What can't be read now, for want of descriptors say, may say anything later. */
	read = diskfile_read(&old, file->minor);
	if (read ? read != -ENOENT : misleads(&old, file))
		diskfile_forget(file->minor, 0);
	diskfile_dispose(&old);
	return rc;
}

static bool number(const char *value, uint64_t max, uint64_t *to)
{
	char *end;

	errno = 0;
	*to = strtoull(value, &end, 10);
	return !errno && !*end && isdigit((unsigned char)*value) && *to <= max;
}

static bool set_text(char **to, const char *value)
{
	free(*to);
	*to = strdup(value);
	return *to;
}

/* False if the line is not understood. */
static bool set_number(struct diskfile *file, const char *key,
		       const char *value)
{
	uint64_t n = 0;

	if (!strcmp(key, "version"))
		return number(value, UINT_MAX, &n) && n == DISKFILE_VERSION;
	if (!strcmp(key, "id"))
		return number(value, UINT64_MAX, &file->id);
	if (!strcmp(key, "born"))
		return number(value, UINT64_MAX, &file->born);
	if (!strcmp(key, "sectors"))
		return number(value, UINT64_MAX, &file->sectors);
	if (!number(value, INT_MAX, &n))
		return false;
	if (!strcmp(key, "pid"))
		file->pid = (int)n;
	else if (!strcmp(key, "readonly"))
		file->readonly = n;
	else if (!strcmp(key, "signed"))
		file->signed_it = n;
	else if (!strcmp(key, "dead_timeout"))
		file->dead_timeout_s = (unsigned int)n;
	else if (!strcmp(key, "paused"))
		file->paused = n;
	else if (!strcmp(key, "lost"))
		file->lost = n;
	else if (!strcmp(key, "given_up"))
		file->given_up = n;
	else if (!strcmp(key, "owner"))
		file->owner = (int)n;
	else if (!strcmp(key, "sector_size"))
		file->sector_size = (uint32_t)n;
	else
		diskfile_add_former(file, (int)n);
	return true;
}

static bool set_line(struct diskfile *file, char *line)
{
	static const char *const numbers[] = {
		"version", "pid", "born", "id", "readonly", "paused", "lost",
		"signed", "dead_timeout", "given_up", "owner", "sectors", "sector_size", "former",
	};
	char *eq = strchr(line, '=');
	int rc;

	if (!eq)
		return false;
	*eq = 0;
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		if (!strcmp(line, numbers[i]))
			return set_number(file, line, eq + 1);
	if (!strcmp(line, "args"))
		return set_text(&file->args, eq + 1);
	if (!strcmp(line, "for"))
		return set_text(&file->kept_for, eq + 1);
	rc = retry_set(&file->retry, line, eq + 1, NULL);
	return !rc || rc == -ENOENT;
}

int diskfile_read(struct diskfile *file, int minor)
{
	char path[PATH_MAX], *line = NULL;
	size_t size = 0;
	FILE *f = NULL;
	bool good = true;
	ssize_t len;
	int rc, fd;

	*file = (struct diskfile){ .minor = minor, .retry = retry_defaults };
	rc = path_of(path, sizeof(path), minor);
	if (rc)
		return rc;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	f = fd < 0 ? NULL : fdopen(fd, "r");
	if (!f) {
		rc = -errno;
		if (fd >= 0)
			close(fd);
		return rc;
	}
	while (good && (len = getline(&line, &size, f)) > 0) {
		good = line[len - 1] == '\n';
		line[len - 1] = 0;
		good = good && set_line(file, line);
	}
	if (!good || ferror(f) || !file->args || !file->pid) {
		log_error("not understood, remove it minor=%d path=%s", minor,
			  path);
		diskfile_dispose(file);
		rc = -EPROTO;
	}
	free(line);
	fclose(f);
	return rc;
}

void diskfile_dispose(struct diskfile *file)
{
	free(file->args);
	free(file->kept_for);
	file->args = file->kept_for = NULL;
}

bool diskfile_is_of(const struct diskfile *file, int pid)
{
	bool found = file->pid == pid;

	for (unsigned int i = 0; i < file->nr_former; i++)
		found |= file->former[i] == pid;
	return found;
}

bool diskfile_is_left(const struct diskfile *file)
{
	uint64_t born = process_born(file->pid);

	return process_ended(file->pid) ||
	       (file->born && born && born != file->born);
}

void diskfile_add_former(struct diskfile *file, int pid)
{
	for (unsigned int i = 0; i < file->nr_former; i++)
		if (file->former[i] == pid)
			return;
	if (file->nr_former == DISKFILE_FORMER) {
		memmove(file->former + 1, file->former + 2,
			(DISKFILE_FORMER - 2) * sizeof(file->former[0]));
		file->nr_former--;
	}
	file->former[file->nr_former++] = pid;
}

void diskfile_forget(int minor, int pid)
{
	struct diskfile file;
	char path[PATH_MAX];

	if (pid) {
		if (diskfile_read(&file, minor))
			return;
		diskfile_dispose(&file);
		if (file.pid != pid)
			return;
	}
	if (!path_of(path, sizeof(path), minor))
		unlink(path);
}

static void find_minors(bool *found)
{
	DIR *dir = opendir(run_dir());
	const struct dirent *entry;
	unsigned int minor;
	char c;

	while (dir && (entry = readdir(dir)))
		if (sscanf(entry->d_name, "disk.%9u%c", &minor, &c) == 1 &&
		    minor < DISKFILE_MINORS)
			found[minor] = true;
	if (dir)
		closedir(dir);
}

void diskfile_for_each(void (*see)(struct diskfile *file, void *priv),
		       void *priv)
{
	bool found[DISKFILE_MINORS] = { false };
	struct diskfile file;

	find_minors(found);
	for (int minor = 0; minor < DISKFILE_MINORS; minor++) {
		if (!found[minor] || diskfile_read(&file, minor))
			continue;
		see(&file, priv);
		diskfile_dispose(&file);
	}
}

struct gift {
	int from, to;
};

static void give(struct diskfile *file, void *priv)
{
	const struct gift *gift = priv;

	if (file->pid != gift->from)
		return;
	file->pid = gift->to;
	file->born = process_born(gift->to);
	diskfile_write(file);
}

void diskfile_give(int from, int to)
{
	struct gift gift = { .from = from, .to = to };

	diskfile_for_each(give, &gift);
}
