/* SPDX-License-Identifier: LGPL-2.1-only */
#include "io/fault-rules.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"

#define NSEC_PER_MSEC	1000000u
#define RULES_BYTES	16384

static const char *const op_names[] = {
	[IO_READ]	= "read",
	[IO_WRITE]	= "write",
	[IO_SYNC]	= "sync",
	[IO_PUNCH]	= "punch",
	[IO_ZERO]	= "zero",
};

#define NR_OPS	 (sizeof(op_names) / sizeof(op_names[0]))
#define ANY	 ((1u << NR_OPS) - 1)

const char *fault_op_name(enum io_op op)
{
	return (size_t)op < NR_OPS ? op_names[op] : "?";
}

uint64_t fault_offset(const struct io_req *req)
{
	return req->offset + req->transferred;
}

uint64_t fault_length(const struct io_req *req)
{
	uint64_t len = 0;

	if (req->op == IO_PUNCH || req->op == IO_ZERO)
		return req->len - req->transferred;
	if (req->op == IO_SYNC)
		return 0;
	for (int i = 0; i < req->iovcnt; i++)
		len += req->iov[i].iov_len;
	return len;
}

/* Parsing */

static int parse_ops(struct fault_rule *rule, char *word, struct error *err)
{
	char *save = NULL;

	for (char *name = strtok_r(word, "+", &save); name;
	     name = strtok_r(NULL, "+", &save)) {
		size_t i = 0;

		if (!strcmp(name, "any")) {
			rule->ops |= ANY;
			continue;
		}
		while (i < NR_OPS && strcmp(op_names[i], name))
			i++;
		if (i == NR_OPS)
			return error_set(err, -EINVAL,
					 "%s: must be read, write, sync, punch, zero or any",
					 name);
		rule->ops |= 1u << i;
	}
	return 0;
}

static int parse_number(const char *key, const char *value, uint64_t *number,
			struct error *err)
{
	char *end;

	errno = 0;
	*number = strtoull(value, &end, 0);
	if (errno || end == value || *end || value[0] == '-')
		return error_set(err, -EINVAL, "%s=%s: must be a number", key,
				 value);
	return 0;
}

static int parse_errno(const char *value, int *number, struct error *err)
{
	static const struct {
		const char *name;
		int number;
	} known[] = {
		{ "EIO", EIO }, { "ENOSPC", ENOSPC }, { "EDQUOT", EDQUOT },
		{ "EAGAIN", EAGAIN }, { "EINTR", EINTR }, { "EBUSY", EBUSY },
		{ "ETIMEDOUT", ETIMEDOUT }, { "ESTALE", ESTALE },
		{ "EINVAL", EINVAL }, { "EOPNOTSUPP", EOPNOTSUPP },
		{ "ENOMEM", ENOMEM }, { "EROFS", EROFS }, { "ENODATA", ENODATA },
		{ "ECONNRESET", ECONNRESET }, { "EPIPE", EPIPE },
		{ "EREMOTEIO", EREMOTEIO }, { "EFBIG", EFBIG },
	};
	struct error ignored;
	uint64_t n;

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (!strcmp(known[i].name, value)) {
			*number = known[i].number;
			return 0;
		}
	if (parse_number("errno", value, &n, &ignored) || !n || n > 4095)
		return error_set(err, -EINVAL, "errno=%s: must be a name such as EIO, or a number",
				 value);
	*number = (int)n;
	return 0;
}

static int parse_word(struct fault_rule *rule, char *word, struct error *err)
{
	char *value = strchr(word, '=');
	uint64_t n;
	int rc;

	if (!strcmp(word, "reached")) {
		rule->reached = true;
		return 0;
	}
	if (!strcmp(word, "stuck")) {
		rule->stuck = true;
		return 0;
	}
	if (!value)
		return error_set(err, -EINVAL, "%s: is no word of a rule", word);
	*value++ = 0;
	if (!strcmp(word, "errno"))
		return parse_errno(value, &rule->err, err);
	if (!strcmp(word, "file")) {
		if (!*value || strlen(value) >= sizeof(rule->file))
			return error_set(err, -EINVAL, "file=%s: must have 1 to %d bytes",
					 value, FAULT_GLOB_MAX - 1);
		strcpy(rule->file, value);
		return 0;
	}
	rc = parse_number(word, value, &n, err);
	if (rc)
		return rc;
	if (!strcmp(word, "from")) {
		rule->from = n;
	} else if (!strcmp(word, "to")) {
		rule->to = n;
	} else if (!strcmp(word, "after")) {
		rule->after = n;
	} else if (!strcmp(word, "times")) {
		rule->times = n;
	} else if (!strcmp(word, "seed")) {
		rule->rng = n * 0x9e3779b97f4a7c15u | 1;
	} else if (!strcmp(word, "short")) {
		rule->is_short = true;
		rule->shorten = n;
	} else if (!strcmp(word, "chance") && n <= 100) {
		rule->chance = (unsigned int)n;
	} else if (!strcmp(word, "delay") && n <= 3600 * 1000) {
		rule->delay_ns = n * NSEC_PER_MSEC;
	} else {
		return error_set(err, -EINVAL, "%s=%s: is no word of a rule, or too much",
				 word, value);
	}
	return 0;
}

static int parse_line(struct fault_rules *rules, char *line, struct error *err)
{
	static const char blanks[] = " \t\r";
	struct fault_rule *rule;
	char *save = NULL, *word;
	int rc;

	line[strcspn(line, "#")] = 0;
	word = strtok_r(line, blanks, &save);
	if (!word)
		return 0;
	if (rules->nr == FAULT_MAX_RULES)
		return error_set(err, -E2BIG, "more than %d rules",
				 FAULT_MAX_RULES);
	rule = &rules->rule[rules->nr];
	*rule = (struct fault_rule){
		.to = UINT64_MAX, .times = UINT64_MAX, .chance = 100, .rng = 1,
	};
	rc = parse_ops(rule, word, err);
	while (!rc && (word = strtok_r(NULL, blanks, &save)))
		rc = parse_word(rule, word, err);
	if (rc)
		return rc;
	if (!rule->err && !rule->is_short && !rule->delay_ns && !rule->stuck)
		return error_set(err, -EINVAL,
				 "nothing happens: needs errno, short, delay or stuck");
	rules->nr++;
	return 0;
}

static int parse(struct fault_rules *rules, char *text, struct error *err)
{
	unsigned int n = 0;
	char *line;

	rules->nr = 0;
	while ((line = strsep(&text, "\n"))) {
		int rc = parse_line(rules, line, err);

		n++;
		if (rc) {
			rules->nr = 0;
			error_prefix(err, "%s: line %u", rules->path, n);
			return rc;
		}
	}
	return 0;
}

static bool unchanged(const struct stat *a, const struct stat *b)
{
	return a->st_ino == b->st_ino && a->st_dev == b->st_dev &&
	       a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
	       a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

int fault_rules_reload(struct fault_rules *rules, struct error *err)
{
	static char text[RULES_BYTES];
	struct stat st;
	ssize_t got;
	int fd, rc;

	if (stat(rules->path, &st) < 0) {
		if (errno != ENOENT)
			return error_set(err, -errno, "%s: %s", rules->path,
					 strerror(errno));
		memset(&st, 0, sizeof(st));
	}
	if (unchanged(&st, &rules->seen))
		return 0;
	rules->seen = st;
	rules->generation++;
	rules->nr = 0;
	if (!st.st_ino)
		return 0;

	fd = open(rules->path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? 0 : error_set(err, -errno, "%s: %s",
						       rules->path, strerror(errno));
	got = read(fd, text, sizeof(text));
	if (got < 0)
		rc = error_set(err, -errno, "%s: %s", rules->path,
			       strerror(errno));
	else if (got == sizeof(text))
		rc = error_set(err, -E2BIG, "%s: %d bytes or more",
			       rules->path, RULES_BYTES);
	else {
		text[got] = 0;
		rc = parse(rules, text, err);
	}
	close(fd);
	return rc;
}

/* Matching */

static bool file_matches(const char *glob, int fd)
{
	char link[32], path[PATH_MAX];
	const char *name = path;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (n < 0)
		return false;
	path[n] = 0;
	if (!strchr(glob, '/') && strrchr(path, '/'))
		name = strrchr(path, '/') + 1;
	return !fnmatch(glob, name, 0);
}

static bool matches(const struct fault_rule *rule, const struct io_req *req)
{
	if (!(rule->ops & 1u << req->op))
		return false;
	if (req->op != IO_SYNC) {
		uint64_t start = fault_offset(req);

		if (start >= rule->to || start + fault_length(req) <= rule->from)
			return false;
	}
	return !rule->file[0] || file_matches(rule->file, req->fd);
}

static bool chosen(struct fault_rule *rule)
{
	uint64_t x = rule->rng;

	if (rule->chance == 100)
		return true;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	rule->rng = x;
	return (x >> 32) % 100 < rule->chance;
}

const struct fault_rule *fault_rules_match(struct fault_rules *rules,
					   const struct io_req *req)
{
	for (unsigned int i = 0; i < rules->nr; i++) {
		struct fault_rule *rule = &rules->rule[i];

		if (!rule->times || !matches(rule, req))
			continue;
		if (rule->after) {
			rule->after--;
			continue;
		}
		if (!chosen(rule))
			continue;
		if (rule->times != UINT64_MAX)
			rule->times--;
		return rule;
	}
	return NULL;
}
