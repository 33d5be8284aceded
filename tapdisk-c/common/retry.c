/* SPDX-License-Identifier: LGPL-2.1-only */
#include "common/retry.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define YEAR_S 31536000u

const struct retry_policy retry_defaults = {
	.errors		= RETRY_TRANSIENT,
	.interval_s	= 1,
	.for_s		= 600,
	.then_pause	= false,
	.no_space_waits	= true,
};

static const char *const errors[] = { "none", "transient", "all", NULL };
static const char *const then[] = { "fail", "pause", NULL };
static const char *const space[] = { "fail", "wait", NULL };

static int set_number(uint32_t *to, const char *key, const char *value,
		      uint32_t low, uint32_t high, struct error *err)
{
	unsigned long n;
	char *end;

	errno = 0;
	n = strtoul(value, &end, 10);
	if (errno || *end || !isdigit((unsigned char)*value) || n < low ||
	    n > high)
		return error_set(err, -EINVAL, "%s=%s: must be %u to %u seconds",
				 key, value, low, high);
	*to = (uint32_t)n;
	return 0;
}

static int set_choice(unsigned int *to, const char *key, const char *value,
		      const char *const *choices, struct error *err)
{
	char list[64] = "";

	for (unsigned int i = 0; choices[i]; i++) {
		if (!strcmp(choices[i], value)) {
			*to = i;
			return 0;
		}
		if (i)
			strcat(list, choices[i + 1] ? ", " : " or ");
		strcat(list, choices[i]);
	}
	return error_set(err, -EINVAL, "%s=%s: must be %s", key, value, list);
}

int retry_set(struct retry_policy *policy, const char *key, const char *value,
	      struct error *err)
{
	unsigned int choice = 0;
	int rc;

	if (!strcmp(key, "retry_interval"))
		return set_number(&policy->interval_s, key, value, 1, 3600, err);
	if (!strcmp(key, "retry_for"))
		return set_number(&policy->for_s, key, value, 0, YEAR_S, err);
	if (!strcmp(key, "retry_errors")) {
		rc = set_choice(&choice, key, value, errors, err);
		if (!rc)
			policy->errors = (enum retry_errors)choice;
		return rc;
	}
	if (!strcmp(key, "retry_then")) {
		rc = set_choice(&choice, key, value, then, err);
		if (!rc)
			policy->then_pause = choice;
		return rc;
	}
	if (!strcmp(key, "no_space")) {
		rc = set_choice(&choice, key, value, space, err);
		if (!rc)
			policy->no_space_waits = choice;
		return rc;
	}
	return error_set(err, -ENOENT, "%s: no such setting", key);
}

void retry_write(const struct retry_policy *policy, FILE *f)
{
	fprintf(f, "retry_errors=%s\nretry_interval=%u\nretry_for=%u\nretry_then=%s\nno_space=%s\n",
		errors[policy->errors], policy->interval_s, policy->for_s,
		then[policy->then_pause], space[policy->no_space_waits]);
}
