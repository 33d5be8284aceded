/* SPDX-License-Identifier: LGPL-2.1-only */
/* restart: another tapdisk for the disks of one that has died. */
#include "tools/tap-ctl.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "common/diskfile.h"
#include "server.h"

#define TRIES	100
#define WAIT_NS	50000000

/* 0 once the tapdisk has the minor's image open, or has it paused. */
static int wait_until_served(int pid, int minor, struct error *err)
{
	const struct timespec wait = { .tv_nsec = WAIT_NS };
	int rc = -EAGAIN;

	for (int i = 0; i < TRIES && rc == -EAGAIN; i++) {
		json_t *vbds, *vbd;
		size_t n;

		nanosleep(&wait, NULL);
		rc = tapdisk_vbds(pid, TAP_CTL_TIMEOUT_MS, &vbds, err);
		if (rc)
			break;
		rc = -EAGAIN;
		json_array_foreach(vbds, n, vbd)
			if (json_integer_value(json_object_get(vbd, "minor")) == minor &&
			    !(json_integer_value(json_object_get(vbd, "state")) & VBD_REOPENING))
				rc = 0;
		json_decref(vbds);
	}
	if (rc == -EAGAIN)
		error_set(err, -ETIMEDOUT, "minor %d: tapdisk %d can't open its image yet and goes on trying; the log says why",
			  minor, pid);
	return rc;
}

/* The tapdisk that has the minor now, if it is neither ours nor the dead one; 0: there is none. */
static int find_other(int minor, int dead, int ours)
{
	struct diskfile file;

	if (diskfile_read(&file, minor))
		return 0;
	diskfile_dispose(&file);
	return file.pid == dead || file.pid == ours || diskfile_is_left(&file) ?
	       0 : file.pid;
}

int cmd_restart(const struct options *opt, struct error *err)
{
	struct diskfile file;
	char option[32];
	int pid, other, rc;

	rc = diskfile_read(&file, opt->minor);
	if (rc)
		return error_set(err, rc, "minor %d: no tapdisk that died has left it",
				 opt->minor);
	diskfile_dispose(&file);
	if (!diskfile_is_left(&file))
		return error_set(err, -EBUSY, "minor %d: tapdisk %d has it",
				 opt->minor, file.pid);
	snprintf(option, sizeof(option), "--succeed=%d", file.pid);
	rc = tapdisk_spawn(&pid, option, err);
	if (!rc)
		rc = wait_until_served(pid, opt->minor, err);
	/* Its guardian's may have been the first. */
	other = rc ? find_other(opt->minor, file.pid, pid) : 0;
	if (other) {
		pid = other;
		rc = wait_until_served(pid, opt->minor, err);
	}
	if (!rc)
		printf("%d\n", pid);
	return rc;
}
