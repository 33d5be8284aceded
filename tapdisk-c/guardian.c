/* SPDX-License-Identifier: LGPL-2.1-only */
#include "guardian.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/diskfile.h"
#include "common/log.h"
#include "common/process.h"
#include "control/control.h"

#define SECOND_NS	1000000000ull
#define END_MS		2000
#define BACK_STEP_US	100000
#define BACK_STEPS	(GUARDIAN_BACK_S * 1000000 / BACK_STEP_US)

/* What tapdisk tells its guardian: one byte a message. */
#define WORD_BYE	'b'
#define WORD_TAKEN	't'

/* The guardian's own. */
struct guard {
	int fd;				/* to the ward */
	int ward;
	bool ours;			/* it is a child of ours */
	int wards[GUARDIAN_WARDS];	/* whose disks the next one has to take */
	unsigned int nr_wards;
	bool in_vain;			/* the last one that was started has not taken all yet */
	unsigned int nr_disks;		/* that they had, as last counted */
	unsigned int nr_own;		/* those of them that the ward had itself */
	unsigned int nr_back;		/* and that go back to who had them before */
	unsigned int wait_s;		/* before the next try */
	uint64_t deaths[GUARDIAN_DEATHS];	/* when */
	unsigned int nr_deaths;
	char path[PATH_MAX];		/* the program, as it was called */
	char *const *argv;
};

/* True if it ended in order. */
static bool wait_for_end(struct guard *g)
{
	char word;
	ssize_t n;

	for (;;) {
		n = recv(g->fd, &word, 1, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		if (word == WORD_BYE)
			return true;
		g->wards[0] = g->ward;
		g->nr_wards = 1;
		g->in_vain = false;
	}
}

static bool had(const struct guard *g, const struct diskfile *file)
{
	for (unsigned int i = 0; i < g->nr_wards; i++)
		if (g->wards[i] == file->pid)
			return true;
	return false;
}

/* What the wards had says that nobody comes for it. */
static void give_up(struct diskfile *file, void *priv)
{
	if (!had(priv, file))
		return;
	file->given_up = true;
	diskfile_write(file);
	log_error("no other tapdisk is started, requests wait for `tap-ctl restart` minor=%d path=%s",
		  file->minor, file->args);
}

static void count_disk(struct diskfile *file, void *priv)
{
	struct guard *g = priv;
	bool back = false;

	if (!had(g, file))
		return;
	g->nr_disks++;
	g->nr_own += file->pid == g->ward;
	for (unsigned int i = 0; i < file->nr_former && !back; i++)
		back = control_has_name(file->former[i]) &&
		       process_born(file->former[i]) <= file->born;
	g->nr_back += back;
}

static bool has_disks(struct guard *g)
{
	g->nr_disks = g->nr_own = g->nr_back = 0;
	diskfile_for_each(count_disk, g);
	return g->nr_disks;
}

/* True if there are some for us when who may have them back has them, or has ended. */
static bool has_disks_still(struct guard *g)
{
	for (unsigned int i = 0; has_disks(g); i++) {
		if (!g->nr_back || i == BACK_STEPS)
			return true;
		usleep(BACK_STEP_US);
	}
	return false;
}

/* One more death; false: there were too many of late. */
static bool may_restart(struct guard *g)
{
	uint64_t now = now_ns();

	memmove(g->deaths, g->deaths + 1,
		(GUARDIAN_DEATHS - 1) * sizeof(g->deaths[0]));
	g->deaths[GUARDIAN_DEATHS - 1] = now;
	/* For tests, which kill more often. */
	if (secure_getenv("XENBLK_RESTART_ALWAYS"))
		return true;
	return ++g->nr_deaths < GUARDIAN_DEATHS ||
	       now - g->deaths[0] > GUARDIAN_PERIOD_S * SECOND_NS;
}

struct arguments {
	char guardian[32];
	char *argv[64];
};

/* Those of the program's options, fd and what is told last. */
static void fill_arguments(struct arguments *args, char *const *argv, int fd,
			   char *last)
{
	size_t n = 0;

	snprintf(args->guardian, sizeof(args->guardian), "--guardian=%d", fd);
	for (; argv[n] && n < 60; n++)
		args->argv[n] = argv[n];
	args->argv[n++] = args->guardian;
	args->argv[n++] = last;
	args->argv[n] = NULL;
}

static _Noreturn void run_ward(const struct guard *g, int fd)
{
	char succeed[GUARDIAN_WARDS * 12 + 16];
	struct arguments args;
	sigset_t ends;
	size_t len;

	setsid();
	len = (size_t)snprintf(succeed, sizeof(succeed), "--succeed=");
	for (unsigned int i = 0; i < g->nr_wards; i++)
		len += (size_t)snprintf(succeed + len, sizeof(succeed) - len,
					"%s%d", i ? "," : "", g->wards[i]);
	/* It is no death before it can take them. */
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigprocmask(SIG_SETMASK, &ends, NULL);
	fill_arguments(&args, g->argv, fd, succeed);
	fcntl(fd, F_SETFD, 0);
	execv(g->path, args.argv);
	log_error("cannot start another tapdisk path=%s err=%d", g->path, errno);
	_exit(127);
}

static int start_ward(struct guard *g)
{
	int sv[2], pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv))
		return -errno;
	pid = fork();
	if (!pid)
		run_ward(g, sv[1]);
	close(sv[1]);
	if (pid < 0) {
		pid = -errno;
		close(sv[0]);
		return pid;
	}
	g->fd = sv[0];
	g->ward = pid;
	g->ours = g->in_vain = true;
	if (g->nr_wards == GUARDIAN_WARDS)
		g->nr_wards--;
	g->wards[g->nr_wards++] = pid;
	return 0;
}

/* False: it has ended by itself, since it could not start. */
static bool has_died(const struct guard *g)
{
	int status = 0;

	/* Its files go before it does. */
	for (int i = 0; !g->ours && i < END_MS && !process_ended(g->ward); i++)
		usleep(1000);
	if (!g->ours || waitpid(g->ward, &status, 0) != g->ward)
		log_error("tapdisk %d has died", g->ward);
	else if (WIFSIGNALED(status))
		log_error("tapdisk %d was ended by signal %d", g->ward,
			  WTERMSIG(status));
	else
		log_error("tapdisk %d ended with status %d", g->ward,
			  WEXITSTATUS(status));
	return !WIFEXITED(status) || WEXITSTATUS(status) != GUARDIAN_NOT_STARTED;
}

/* Not in a hurry, and not for nothing. */
static void wait_a_little(struct guard *g)
{
	for (unsigned int i = 0; i < g->wait_s; i++) {
		sleep(1);
		if (!has_disks(g))
			_exit(0);
	}
}

static void wait_longer(struct guard *g)
{
	g->wait_s = g->wait_s ? g->wait_s * 2 : 1;
	if (g->wait_s > GUARDIAN_WAIT_S)
		g->wait_s = GUARDIAN_WAIT_S;
	wait_a_little(g);
}

/* The first at once. */
static void wait_after_death(struct guard *g)
{
	g->wait_s = g->in_vain;
	wait_a_little(g);
}

static _Noreturn void guard(struct guard *g)
{
	bool died;
	int rc;

	for (;;) {
		if (wait_for_end(g) || !has_disks(g))
			_exit(0);
		close(g->fd);
		died = has_died(g);
		/* The next one need not look for what it did not take. */
		if (!g->nr_own && g->nr_wards > 1)
			g->nr_wards--;
		if (died && !may_restart(g)) {
			log_error("%u tapdisks died within %d s",
				  GUARDIAN_DEATHS, GUARDIAN_PERIOD_S);
			diskfile_for_each(give_up, g);
			_exit(1);
		}
		if (!has_disks_still(g))
			_exit(0);
		if (died)
			wait_after_death(g);
		else
			wait_longer(g);
		while ((rc = start_ward(g))) {
			log_error("cannot start another tapdisk err=%d", -rc);
			wait_longer(g);
		}
	}
}

static void protect(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	/* tapdisk says it if that can't be had. */
	if (fd >= 0) {
		(void)!write(fd, "-1000", 5);
		close(fd);
	}
	if (geteuid() == 0)
		mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT);
}

void guardian_run(int fd, int ward, char *const *argv)
{
	static struct guard g;
	sigset_t none;
	ssize_t n;

	setsid();
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_NAME, "tapdisk-guard");
	n = readlink("/proc/self/exe", g.path, sizeof(g.path) - 1);
	log_close();
	if (n < 0 || dup2(fd, STDERR_FILENO + 1) < 0 ||
	    close_range(STDERR_FILENO + 2, ~0u, 0))
		_exit(1);
	log_reopen();
	/* A program that was replaced meanwhile is started from where it was. */
	if (n > 10 && !strcmp(g.path + n - 10, " (deleted)"))
		g.path[n - 10] = 0;
	fcntl(STDERR_FILENO + 1, F_SETFD, FD_CLOEXEC);
	protect();
	g.fd = STDERR_FILENO + 1;
	g.ward = ward;
	g.wards[0] = ward;
	g.nr_wards = 1;
	g.argv = argv;
	guard(&g);
}

/* rc: the child's pid. */
static int started(struct guardian *g, const int *sv, int rc)
{
	close(sv[1]);
	if (rc < 0) {
		close(sv[0]);
		return rc;
	}
	g->fd = sv[0];
	g->child = rc;
	return 0;
}

int guardian_start(struct guardian *g, char *const *argv)
{
	int sv[2], pid = getpid(), rc;

	g->fd = -1;
	g->argv = argv;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv))
		return -errno;
	rc = fork();
	if (!rc)
		guardian_run(sv[1], pid, argv);
	return started(g, sv, rc < 0 ? -errno : rc);
}

/*
 * Later on there are mappings that a child would keep: of the engine's ring, which
 * would keep our end of the socket, and of images, which would keep their locks. And there
 * is direct I/O under way, whose pages a fork would have us copy while it goes to the
 * others (open(2), O_DIRECT): a child that shares our memory until it is another program.
 */
static int spawn_guardian(struct guardian *g)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	struct arguments args;
	char guards[32];
	sigset_t none;
	int sv[2], rc;
	pid_t pid;

	g->fd = -1;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv))
		return -errno;
	snprintf(guards, sizeof(guards), "--guards=%d", (int)getpid());
	fill_arguments(&args, g->argv, sv[1], guards);
	sigemptyset(&none);
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attr);
	/* onto itself: it stays open in the new program */
	rc = posix_spawn_file_actions_adddup2(&actions, sv[1], sv[1]);
	if (!rc)
		rc = posix_spawnattr_setsigmask(&attr, &none);
	if (!rc)
		rc = posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
	if (!rc)
		rc = posix_spawn(&pid, "/proc/self/exe", &actions, &attr,
				 args.argv, environ);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&actions);
	return started(g, sv, rc ? -rc : pid);
}

void guardian_adopt(struct guardian *g, char *const *argv, int fd)
{
	g->fd = fd;
	g->child = 0;
	g->argv = argv;
	fcntl(fd, F_SETFD, FD_CLOEXEC);
}

static void start_in(struct guardian *g, unsigned int seconds)
{
	engine_timer_set(g->engine, &g->timer, now_ns() + seconds * SECOND_NS);
}

static void start_again(struct io_timer *timer)
{
	struct guardian *g = container_of(timer, struct guardian, timer);
	int rc;

	if (g->child)
		waitpid(g->child, NULL, WNOHANG);
	rc = spawn_guardian(g);
	if (rc)
		log_error("goes on without a guardian, tries again in %u s err=%d",
			  GUARDIAN_WAIT_S, -rc);
	guardian_watch(g, g->engine);
}

static void lost(struct io_watch *watch, short revents)
{
	struct guardian *g = container_of(watch, struct guardian, watch);

	(void)revents;
	log_warn("the guardian has ended: starting another");
	guardian_unwatch(g);
	close(g->fd);
	g->fd = -1;
	start_in(g, 1);
}

void guardian_watch(struct guardian *g, struct engine *engine)
{
	g->engine = engine;
	g->timer.expired = start_again;
	list_init(&g->timer.link);
	g->watch.fd = g->fd;
	g->watch.events = POLLIN;
	g->watch.ready = lost;
	if (g->fd >= 0 && engine_watch(engine, &g->watch))
		log_warn("an end of the guardian will not be noticed");
	if (g->fd < 0 && g->argv)
		start_in(g, GUARDIAN_WAIT_S);
}

void guardian_unwatch(struct guardian *g)
{
	if (!g->engine)
		return;
	engine_unwatch(g->engine, &g->watch);
	engine_timer_cancel(g->engine, &g->timer);
}

static void say(const struct guardian *g, char word)
{
	if (g->fd >= 0)
		(void)!send(g->fd, &word, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void guardian_taken(void *priv)
{
	say(priv, WORD_TAKEN);
}

void guardian_dismiss(struct guardian *g)
{
	guardian_unwatch(g);
	g->engine = NULL;
	say(g, WORD_BYE);
}

void guardian_release(struct guardian *g)
{
	struct pollfd gone = { .fd = g->fd, .events = POLLIN };

	say(g, WORD_BYE);
	if (g->fd < 0 || poll(&gone, 1, END_MS) != 1)
		return;
	if (g->child)
		waitpid(g->child, NULL, 0);
}
