// SPDX-License-Identifier: LGPL-2.1-only
/*
 * xl: stands before Xen's xl and becomes it at once. Only a call that brings a disk of tapdisk, or a VHD, becomes xenblk, which
 * rewrites the disk and comes back here; and one that gives an image which a tapdisk has to somebody else, who wouldn't
 * ask: xenblk refuses it. So does one that names a file which other hosts have too.
 *
 * Whether it does is judged by the text alone, and in doubt it does: xenblk, which parses, passes on what it needn't
 * change. Built without the library of the other programs, since every call of xl waits for it.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "tools/xl-plain.h"

#define SELF "/proc/self/exe"
#define VERSION_DIR "/sys/hypervisor/version"
/* Set by xenblk to its process id, which exec keeps: rewritten, go on to Xen's xl. */
#define REWRITTEN "XENBLK_REWRITTEN"
/* For tests: Xen's xl. */
#define REAL_XL "XENBLK_REAL_XL"
#define EXIT_NOT_FOUND 127
/* docs/architecture.md, "Image lock" */
#define LOCKS "/proc/locks"
/* For tests: in its place. */
#define GIVEN_LOCKS "XENBLK_LOCKS"
/*
 * Bytes of the image lock (common/lock.c): of each tapdisk one of the first, and of a parent's
 * readers the last; the kernel joins those beside each other. QEMU's own are among the
 * first too, which costs a look by xenblk.
 */
#define FIRST_LOCKED 200
#define LAST_LOCKED 301
#define CHILD_LOCKED (1ull << 40)
#define MAX_LOCKED 4096
/* linux/gfs2_ondisk.h */
#define GFS2_MAGIC 0x01161970
/* xl doesn't mind a larger configuration; xenblk reads it then. */
#define MAX_CONFIG (1 << 20)
/* Looks for files of one configuration; of one that needs more, xenblk knows which they are. */
#define MAX_LOOKS 20000

/* Where a command has the names of configuration files among its words, once its options are taken out. */
enum place {
	PLACE_NONE,
	PLACE_WORDS, /* each word without a = */
	PLACE_BEFORE_LAST, /* the first of exactly two */
	PLACE_THIRD,
};

struct command {
	const char *name;
	size_t shortest; /* prefix that some xl from 4.7 on takes for it; Xen's xl decides for itself */
	const char *with_value; /* getopt(3) string: only options with a value, which isn't a word */
	char config_option;
	int leading; /* words before the options proper */
	enum place place;
};

static const struct command commands[] = {
	{ "create", 2, "f:", 'f', 0, PLACE_WORDS },
	{ "config-update", 4, "f:", 'f', 1, PLACE_WORDS },
	{ "block-attach", 7, "", '\0', 0, PLACE_NONE },
	{ "restore", 3, "", '\0', 0, PLACE_BEFORE_LAST },
	{ "save", 2, "", '\0', 0, PLACE_THIRD },
	/* migrate-receive begins the same way */
	{ "migrate", 7, "C:s:", 'C', 0, PLACE_NONE },
};

/* vhd: those that are tapdisk's if xenblk.yaml says so, which xenblk reads */
static const char *const marks[] = { "tap:", "tap2:", "tapdisk:", "backendtype=tap", "vhd:", "format=vhd", "block-xenblk" };

static char config[MAX_CONFIG];

static const struct command *find_command(const char *word)
{
	size_t len = strlen(word);

	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (len >= commands[i].shortest && !strncmp(word, commands[i].name, len))
			return &commands[i];
	}
	return NULL;
}

/* /a,vhd,xvda: a word of the spec by itself, and no part of a path. */
static bool has_vhd_word(const char *text, size_t len)
{
	const char *p = text, *end = text + len;

	while ((p = memmem(p, (size_t)(end - p), "vhd", 3))) {
		const char *before = p;

		while (before > text && strchr(" \t\n", before[-1]))
			before--;
		p += 3;
		if (before > text && before[-1] == ',' && (p == end || strchr(", \t\n'\"", *p)))
			return true;
	}
	return false;
}

static bool has_mark(const char *text, size_t len)
{
	for (size_t i = 0; i < sizeof(marks) / sizeof(marks[0]); i++) {
		if (memmem(text, len, marks[i], strlen(marks[i])))
			return true;
	}
	return has_vhd_word(text, len);
}

/*
 * A line of /proc/locks: whether it is of the image lock, of which inode then. A host that exports an image by NFS has the
 * other host's as POSIX, or a delegation, which lets that host keep its locks to itself.
 */
static bool read_lock(const char *line, unsigned long long *inode)
{
	const char *own = strstr(line, "OFDLCK"), *p = own ? own : strstr(line, "POSIX");
	const char *delegation = strstr(line, "DELEG");
	unsigned long long start, end;
	int got;

	if (delegation)
		return sscanf(delegation, "%*s %*s %*s %*s %*x:%*x:%llu", inode) == 1;
	if (!p)
		return false;
	got = sscanf(p, "%*s %*s %*s %*s %*x:%*x:%llu %llu %llu", inode, &start, &end);
	if (got == 2) /* EOF */
		end = ULLONG_MAX;
	if (got < 2 || (!own && start < FIRST_LOCKED)) /* a whole file, by programs of all kinds */
		return false;
	return end >= CHILD_LOCKED || (start <= LAST_LOCKED && end >= FIRST_LOCKED);
}

/*
 * The inodes with the image lock. /proc/locks has the file system's device too, but that need not be stat(2)'s: btrfs
 * has one for each subvolume. Which file it is xenblk finds out.
 */
static size_t read_locked(unsigned long long *locked, size_t room)
{
	const char *given = getenv(GIVEN_LOCKS);
	FILE *f = fopen(given ? given : LOCKS, "re");
	char line[256];
	size_t n = 0;

	while (f && n < room && fgets(line, sizeof(line), f))
		n += read_lock(line, &locked[n]);
	if (f)
		fclose(f);
	return n;
}

/* Another host may have it, whose locks only asking for them shows. */
static bool is_shared(const char *path)
{
	struct statfs fs;

	if (statfs(path, &fs))
		return false;
	switch ((unsigned long)fs.f_type) {
	case NFS_SUPER_MAGIC:
	case CIFS_SUPER_MAGIC:
	case SMB2_SUPER_MAGIC:
	case OCFS2_SUPER_MAGIC:
	case CEPH_SUPER_MAGIC:
	case FUSE_SUPER_MAGIC:
	case GFS2_MAGIC:
		return true;
	default:
		return false;
	}
}

static bool is_locked_in(const char *dir, const char *path, size_t len, const unsigned long long *locked, size_t n)
{
	char name[PATH_MAX];
	struct stat st;

	if (len >= PATH_MAX || (size_t)snprintf(name, sizeof(name), "%s%.*s", dir, (int)len, path) >= sizeof(name) ||
	    stat(name, &st))
		return false;
	for (size_t i = 0; i < n; i++) {
		if (st.st_ino == locked[i])
			return true;
	}
	return S_ISREG(st.st_mode) && is_shared(name);
}

/* What does not begin with / libxl takes from here, and Xen's scripts from /dev. */
static bool is_locked(const char *path, size_t len, const unsigned long long *locked, size_t n)
{
	return len && (is_locked_in("", path, len, locked, n) ||
		       (*path != '/' && is_locked_in("/dev/", path, len, locked, n)));
}

static size_t span_to(const char *text, size_t len, const char *ends)
{
	size_t n = 0;

	while (n < len && !strchr(ends, text[n]))
		n++;
	return n;
}

/* Whatever may be a path: it may have commas, blanks and quotes in it, so up to each of these, within its line. */
static bool names_locked_file(const char *text, size_t len)
{
	static unsigned long long locked[MAX_LOCKED];
	size_t n = read_locked(locked, MAX_LOCKED);

	if (n == MAX_LOCKED)
		return true;
	for (size_t i = 0, looks = 0; i < len; i++) {
		if ((i && !strchr("'\"=:, \t\n", text[i - 1])) || strchr(" \t\n", text[i]))
			continue;
		for (size_t end = 0; end < PATH_MAX; end++) {
			end += span_to(text + i + end, len - i - end, ", \t'\"\n");
			if (++looks > MAX_LOOKS || is_locked(text + i, end, locked, n))
				return true;
			if (i + end == len || text[i + end] == '\n')
				break;
		}
	}
	return false;
}

/* xl.cfg has escapes, which may spell a mark. */
static bool may_have_mark(const char *text, size_t len)
{
	return has_mark(text, len) || memchr(text, '\\', len) || names_locked_file(text, len);
}

/* Lines that are comments as a whole go, since no string of xl.cfg goes beyond its line. Returns what is left, in bytes. */
static size_t drop_comments(char *text, size_t len)
{
	size_t left = 0;

	for (size_t at = 0, line; at < len; at += line) {
		size_t blank = 0;

		line = span_to(text + at, len - at, "\n");
		line += at + line < len;
		while (blank < line && (text[at + blank] == ' ' || text[at + blank] == '\t'))
			blank++;
		if (blank < line && text[at + blank] == '#')
			continue;
		memmove(text + left, text + at, line);
		left += line;
	}
	return left;
}

/* What can't be read has no disks: Xen's xl can't read it either, and says so. */
static bool config_may_have_mark(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	bool found = false;
	struct stat st;
	size_t len = 0;

	if (fd < 0)
		return false;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode))
		goto out;
	while (len < sizeof(config)) {
		ssize_t n = read(fd, config + len, sizeof(config) - len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		len += (size_t)n;
	}
	found = len == sizeof(config) || may_have_mark(config, drop_comments(config, len));
out:
	close(fd);
	return found;
}

static bool words_may_have_mark(const struct command *command, int count, char *const *words)
{
	switch (command->place) {
	case PLACE_NONE:
		return false;
	case PLACE_WORDS:
		for (int i = 0; i < count; i++) {
			if (strchr(words[i], '=') ? may_have_mark(words[i], strlen(words[i])) :
						    config_may_have_mark(words[i]))
				return true;
		}
		return false;
	case PLACE_BEFORE_LAST:
		return count == 2 && config_may_have_mark(words[0]);
	case PLACE_THIRD:
		return count >= 3 && config_may_have_mark(words[2]);
	}
	return true;
}

/* block-attach dom /a vhd xvda w: xl joins the words by commas. */
static bool begins_with_vhd(const char *word)
{
	word += strspn(word, " \t\n");
	return !strncmp(word, "vhd", 3) && (!word[3] || word[3] == ',');
}

/* argv[0] is the command's word. The order of argv changes. */
static bool needs_rewriting(const struct command *command, int argc, char **argv)
{
	static const struct option long_options[] = {
		{ "defconfig", required_argument, NULL, 'f' },
		{ NULL, 0, NULL, 0 },
	};
	static const struct option none[] = { { NULL, 0, NULL, 0 } };
	const struct option *longs = command->config_option == 'f' ? long_options : none;
	int opt;

	for (int i = 1; i < argc; i++) {
		if (has_mark(argv[i], strlen(argv[i])) ||
		    (command->place == PLACE_NONE &&
		     (begins_with_vhd(argv[i]) || names_locked_file(argv[i], strlen(argv[i])))))
			return true;
	}
	for (int i = 0; i < command->leading && argc > 1; i++) {
		argc--;
		argv++;
	}
	/* as xl: a first word is the configuration even where POSIXLY_CORRECT ends the options at it */
	if (command->place == PLACE_WORDS && argc > 1 && argv[1][0] != '-' && !strchr(argv[1], '=')) {
		if (config_may_have_mark(argv[1]))
			return true;
		argc--;
		argv++;
	}
	optind = 0;
	while ((opt = getopt_long(argc, argv, command->with_value, longs, NULL)) != -1) {
		if (opt != '?' && opt == command->config_option && config_may_have_mark(optarg))
			return true;
	}
	return words_may_have_mark(command, argc - optind, argv + optind);
}

/* The directory of this program, without a slash at its end. */
static int own_directory(char *path, size_t size)
{
	ssize_t n = readlink(SELF, path, size - 1);

	if (n < 0)
		return -errno;
	path[n] = '\0';
	*strrchr(path, '/') = '\0';
	return 0;
}

static int read_number(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, text, size - 1);
	close(fd);
	if (n <= 0)
		return -EIO;
	text[n] = '\0';
	text[strcspn(text, "\n")] = '\0';
	return *text && strspn(text, "0123456789") == strlen(text) ? 0 : -EINVAL;
}

static bool usable(const char *path)
{
	struct stat self, st;

	if (access(path, X_OK) || stat(path, &st) || stat(SELF, &self))
		return false;
	return st.st_dev != self.st_dev || st.st_ino != self.st_ino;
}

/*
 * Xen's xl: of the running hypervisor's release, as Debian has it, or the one that installation has set aside. On
 * Debian that is a script which looks for the former.
 */
static const char *find_xl(char *path, size_t size)
{
	const char *given = secure_getenv(REAL_XL);
	char major[16], minor[16], directory[PATH_MAX];

	if (given)
		return usable(given) ? given : NULL;
	if (!read_number(VERSION_DIR "/major", major, sizeof(major)) &&
	    !read_number(VERSION_DIR "/minor", minor, sizeof(minor))) {
		snprintf(path, size, "/usr/lib/xen-%s.%s/bin/xl", major, minor);
		if (usable(path))
			return path;
	}
	if (own_directory(directory, sizeof(directory)))
		return NULL;
	snprintf(path, size, "%s/../libexec/xl", directory);
	return usable(path) ? path : NULL;
}

static int become_xl(char **argv)
{
	char path[PATH_MAX + 32];
	const char *xl = find_xl(path, sizeof(path));

	if (!xl) {
		fputs("xl: Xen's own xl isn't there; install Xen's tools (on Debian xen-utils-common)\n", stderr);
		return EXIT_NOT_FOUND;
	}
	/* what Debian's script would give it, and what ps shows then */
	argv[0] = (char *)xl;
	execv(xl, argv);
	fprintf(stderr, "xl: %s: %s\n", xl, strerror(errno));
	return EXIT_NOT_FOUND;
}

static int become_xenblk(int argc, char **argv)
{
	static char verb[] = "xl";
	char directory[PATH_MAX], path[PATH_MAX + 32];
	char **args = calloc((size_t)argc + 2, sizeof(*args));
	int rc = own_directory(directory, sizeof(directory));

	if (!args || rc) {
		fprintf(stderr, "xl: %s: %s\n", SELF, strerror(args ? -rc : ENOMEM));
		goto out;
	}
	snprintf(path, sizeof(path), "%s/xenblk", directory);
	args[0] = path;
	args[1] = verb;
	memcpy(args + 2, argv + 1, (size_t)argc * sizeof(*args));
	execv(path, args);
	/* not Xen's xl: it would give the disk to QEMU */
	fprintf(stderr, "xl: %s: %s; install xenblk again\n", path, strerror(errno));
out:
	free(args);
	return EXIT_NOT_FOUND;
}

/*
 * argv[at] is the word block-attach. Returns -1 if xenblk is to see to it; else the exit status of an xl that could not
 * be run.
 */
static int attach_plainly(int argc, char **argv, int at)
{
	static char end_of_options[] = "--";
	char directory[PATH_MAX], tap_ctl[PATH_MAX + 16];
	struct xl_plain disk;
	char **args;

	if (argc < at + 3 || argv[at + 1][0] == '-' || !xl_plain_read(argc - at - 2, argv + at + 2, &disk) ||
	    own_directory(directory, sizeof(directory)))
		return -1;
	snprintf(tap_ctl, sizeof(tap_ctl), "%s/tap-ctl", directory);
	if (!xl_plain_ready(&disk, tap_ctl))
		return -1;
	args = calloc((size_t)at + 5, sizeof(*args));
	if (!args)
		return -1;
	memcpy(args, argv, (size_t)(at + 1) * sizeof(*args));
	args[at + 1] = end_of_options;
	args[at + 2] = argv[at + 1];
	args[at + 3] = xl_plain_rewritten(&disk);
	return args[at + 3] ? become_xl(args) : -1;
}

static bool come_from_xenblk(void)
{
	const char *mark = getenv(REWRITTEN);
	char pid[16];
	bool ours;

	if (!mark)
		return false;
	snprintf(pid, sizeof(pid), "%ld", (long)getpid());
	ours = !strcmp(mark, pid);
	unsetenv(REWRITTEN);
	return ours;
}

int main(int argc, char **argv)
{
	const struct command *command;
	bool rewrite;
	char **copy;
	int at, rc = -1;

	if (argc < 1)
		return EXIT_NOT_FOUND;
	if (come_from_xenblk())
		return become_xl(argv);
	opterr = 0;
	while (getopt(argc, argv, "+vftTN") != -1)
		;
	if (optind >= argc)
		return become_xl(argv);
	at = optind;
	command = find_command(argv[at]);
	if (!command)
		return become_xl(argv);
	/* getopt puts the words last */
	copy = calloc((size_t)argc + 1, sizeof(*copy));
	if (!copy) {
		fputs("xl: out of memory\n", stderr);
		return EXIT_NOT_FOUND;
	}
	memcpy(copy, argv, (size_t)argc * sizeof(*copy));
	rewrite = needs_rewriting(command, argc - at, copy + at);
	free(copy);
	if (!rewrite)
		return become_xl(argv);
	if (!strcmp(command->name, "block-attach"))
		rc = attach_plainly(argc, argv, at);
	return rc < 0 ? become_xenblk(argc, argv) : rc;
}
