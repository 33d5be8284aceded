/* SPDX-License-Identifier: LGPL-2.1-only */
/* The control socket's server, from the side of its clients. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cmocka.h>
#include <jansson.h>

#include "control/control.h"
#include "control/proto.h"
#include "tests/fake-server.h"

#define MAX_CLIENTS 32

static char dir[64];
static const struct config cfg = { .engine = "posix" };

struct fixture {
	struct server *server;
	struct control_server *control;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct error err;

	strcpy(dir, "/tmp/test-control.XXXXXX");
	assert_non_null(mkdtemp(dir));
	setenv("XENBLK_CONTROL_DIR", dir, 1);
	assert_int_equal(server_open(&f->server, &cfg, &err), 0);
	if (control_server_open(&f->control, f->server, &err))
		fail_msg("%s", err.text);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	if (f->control)
		control_server_close(f->control);
	server_close(f->server);
	free(f);
	/* The server has removed its socket. */
	return rmdir(dir);
}

static void turn(struct fixture *f)
{
	for (int i = 0; i < 4; i++)
		assert_int_equal(engine_run(f->server->engine, 0), 0);
}

static int client(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	assert_int_equal(control_socket_path(a.sun_path, sizeof(a.sun_path),
					     getpid(), NULL), 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	return fd;
}

static void say_bytes(int fd, const void *msg, size_t len)
{
	assert_int_equal(send(fd, msg, len, MSG_NOSIGNAL), len);
}

static void say(int fd, const char *msg)
{
	say_bytes(fd, msg, strlen(msg));
}

/* The answer that is there, or NULL. */
static json_t *heard(int fd)
{
	static char buf[CONTROL_MAX_MESSAGE];
	ssize_t n = recv(fd, buf, sizeof(buf), MSG_TRUNC);
	json_t *answer;

	if (n < 0 && errno == EAGAIN)
		return NULL;
	assert_in_range(n, 1, CONTROL_MAX_MESSAGE);
	answer = json_loadb(buf, (size_t)n, 0, NULL);
	assert_true(json_is_object(answer));
	return answer;
}

static bool has_ended(int fd)
{
	char c;
	ssize_t n = recv(fd, &c, 1, 0);

	return !n || (n < 0 && errno == ECONNRESET && !recv(fd, &c, 1, 0));
}

static json_t *ask(struct fixture *f, int fd, const char *msg)
{
	json_t *answer;

	say(fd, msg);
	turn(f);
	answer = heard(fd);
	assert_non_null(answer);
	return answer;
}

static void expect_ok(json_t *answer)
{
	if (!json_is_true(json_object_get(answer, "ok")))
		fail_msg("%s", json_string_value(json_object_get(answer, "message")));
	json_decref(answer);
}

static void expect_error(json_t *answer, int code, const char *says)
{
	const char *text = json_string_value(json_object_get(answer, "message"));

	assert_true(json_is_false(json_object_get(answer, "ok")));
	assert_int_equal(json_integer_value(json_object_get(answer, "errno")), code);
	if (!strstr(text, says))
		fail_msg("\"%s\" does not say \"%s\"", text, says);
	json_decref(answer);
}

/* Attaches and opens a file whose name steers the fake server. */
static void open_named(struct fixture *f, int fd, int minor, const char *name)
{
	char msg[512], path[256];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	file = fopen(path, "w");
	assert_non_null(file);
	fclose(file);
	snprintf(msg, sizeof(msg), "{\"op\":\"attach\",\"minor\":%d}", minor);
	expect_ok(ask(f, fd, msg));
	snprintf(msg, sizeof(msg),
		 "{\"op\":\"open\",\"minor\":%d,\"args\":\"aio:%s\"}", minor, path);
	expect_ok(ask(f, fd, msg));
	unlink(path);
}

static void ping_answers_pid_and_version(void **state)
{
	struct fixture *f = *state;
	int fd = client();
	json_t *answer = ask(f, fd, "{\"op\": \"ping\"}");

	assert_int_equal(json_integer_value(json_object_get(answer, "pid")), getpid());
	assert_string_equal(json_string_value(json_object_get(answer, "version")),
			    XENBLK_VERSION);
	json_decref(answer);
	close(fd);
}

static void what_is_no_request_ends_its_connection_alone(void **state)
{
	static const char *const bad[] = {
		"{", "[]", "5", "\"ping\"", "{}", "{\"op\":5}", "{\"op\":null}",
		"{\"op\":\"reboot\"}", "{\"op\":\"Ping\"}",
		"{\"op\":\"ping\",\"op\":\"ping\"}",
		"{\"op\":\"ping\",\"minor\":1}",
		"{\"op\":\"ping\"} {\"op\":\"ping\"}",
		"{\"op\":\"attach\"}",
		"{\"op\":\"attach\",\"minor\":\"1\"}",
		"{\"op\":\"attach\",\"minor\":-1}",
		"{\"op\":\"attach\",\"minor\":4096}",
		"{\"op\":\"attach\",\"minor\":4294967297}",
		"{\"op\":\"attach\",\"minor\":9223372036854775808}",
		"{\"op\":\"attach\",\"minor\":1.0}",
		"{\"op\":\"attach\",\"minor\":1,\"force\":true}",
		"{\"op\":\"open\",\"minor\":1}",
		"{\"op\":\"open\",\"args\":\"aio:/x\"}",
		"{\"op\":\"open\",\"minor\":1,\"args\":7}",
		"{\"op\":\"open\",\"minor\":1,\"args\":\"aio:/x\",\"readonly\":1}",
		"{\"op\":\"open\",\"minor\":1,\"args\":\"aio:/x\",\"inactive\":1}",
		"{\"op\":\"unpause\",\"minor\":1,\"inactive\":true}",
		"{\"op\":\"open\",\"minor\":1,\"args\":\"aio:/x\",\"read-only\":true}",
		"{\"op\":\"open\",\"minor\":1,\"args\":\"aio:/x\\u0000y\"}",
		"{\"op\":\"open\",\"minor\":1,\"args\":\"aio:/\xe4\"}",
		"{\"op\":\"close\",\"minor\":1,\"force\":\"yes\"}",
		"{\"op\":\"list\",\"first\":-1}",
	};
	struct fixture *f = *state;
	int other = client(), fd;

	expect_ok(ask(f, other, "{\"op\":\"attach\",\"minor\":1}"));
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		fd = client();
		expect_error(ask(f, fd, bad[i]), EINVAL, "");
		if (!has_ended(fd))
			fail_msg("still there after %s", bad[i]);
		close(fd);
	}
	expect_ok(ask(f, other, "{\"op\":\"detach\",\"minor\":1}"));
	close(other);
}

static void errors_name_the_field(void **state)
{
	struct fixture *f = *state;
	int fd = client();

	expect_error(ask(f, fd, "{\"op\":\"attach\",\"minor\":4096}"), EINVAL,
		     "attach: minor: wrong type or out of range");
	close(fd);
	fd = client();
	expect_error(ask(f, fd, "{\"op\":\"open\",\"minor\":1,\"ro\":true}"),
		     EINVAL, "open: has no field ro");
	close(fd);
	fd = client();
	expect_error(ask(f, fd, "{\"op\":\"open\",\"minor\":1}"), EINVAL,
		     "open: args is missing");
	close(fd);
}

static void long_messages_are_refused_and_the_longest_is_not(void **state)
{
	struct fixture *f = *state;
	char *msg = malloc(CONTROL_MAX_MESSAGE + 1);
	int fd = client();

	memset(msg, ' ', CONTROL_MAX_MESSAGE + 1);
	memcpy(msg, "{\"op\":\"ping\"}", 13);
	say_bytes(fd, msg, CONTROL_MAX_MESSAGE);
	turn(f);
	expect_ok(heard(fd));
	say_bytes(fd, msg, CONTROL_MAX_MESSAGE + 1);
	turn(f);
	expect_error(heard(fd), EMSGSIZE, "too long");
	assert_true(has_ended(fd));
	close(fd);
	free(msg);
}

static void a_verb_that_fails_leaves_the_connection(void **state)
{
	struct fixture *f = *state;
	int fd = client();

	expect_error(ask(f, fd, "{\"op\":\"detach\",\"minor\":4}"), ENODEV,
		     "minor 4 is not attached");
	expect_error(ask(f, fd, "{\"op\":\"stats\",\"minor\":4}"), ENODEV,
		     "minor 4 is not attached");
	expect_ok(ask(f, fd, "{\"op\":\"attach\",\"minor\":4}"));
	expect_error(ask(f, fd, "{\"op\":\"open\",\"minor\":4,\"args\":\"aio:/garbled\"}"),
		     EIO, "parent ?? of it is bad");
	close(fd);
}

static void control_characters_in_a_path_are_refused(void **state)
{
	struct fixture *f = *state;
	int fd = client();

	open_named(f, fd, 1, "a");
	expect_ok(ask(f, fd, "{\"op\":\"pause\",\"minor\":1}"));
	expect_error(ask(f, fd, "{\"op\":\"unpause\",\"minor\":1,"
			 "\"args\":\"aio:/x\\npid=1 minor=2\"}"),
		     EINVAL, "control character");
	expect_ok(ask(f, fd, "{\"op\":\"attach\",\"minor\":2}"));
	expect_error(ask(f, fd, "{\"op\":\"open\",\"minor\":2,"
			 "\"args\":\"aio:/x\\u007f\"}"), EINVAL, "control character");
	close(fd);
}

static void list_and_stats_show_the_vbds(void **state)
{
	struct fixture *f = *state;
	json_t *answer, *expected;
	int fd = client();
	char want[4096];

	open_named(f, fd, 7, "disk.vhd");
	expect_ok(ask(f, fd, "{\"op\":\"attach\",\"minor\":8}"));
	answer = ask(f, fd, "{\"op\":\"list\"}");
	snprintf(want, sizeof(want), "{\"ok\":true,\"vbds\":["
		 "{\"minor\":7,\"state\":0,\"args\":\"aio:%s/disk.vhd\","
		 "\"for\":null,\"readonly\":false,\"sectors\":2048,\"sector_size\":512,\"depth\":2},"
		 "{\"minor\":8,\"state\":64,\"args\":null,"
		 "\"for\":null,\"readonly\":false,\"sectors\":2048,\"sector_size\":512,\"depth\":2}]}",
		 dir);
	expected = json_loads(want, 0, NULL);
	assert_true(json_equal(answer, expected));
	json_decref(answer);
	json_decref(expected);

	answer = ask(f, fd, "{\"op\":\"stats\",\"minor\":7}");
	snprintf(want, sizeof(want), "{\"ok\":true,\"vbd\":"
		 "{\"minor\":7,\"state\":0,\"args\":\"aio:%s/disk.vhd\","
		 "\"for\":null,\"readonly\":false,\"sectors\":2048,\"sector_size\":512,\"depth\":2,"
		 "\"chain\":[\"%s/disk.vhd\",\"/srv/b?se.vhd\"],"
		 "\"inflight\":15,\"merged\":16,\"waiting\":17,"
		 "\"read\":{\"requests\":1,\"sectors\":2,\"bytes\":1024,\"errors\":3,\"retries\":0,"
		 "\"total_ns\":4,\"max_ns\":5,\"p50_ns\":3,\"p99_ns\":3,\"latency\":[[4,1]]},"
		 "\"write\":{\"requests\":6,\"sectors\":7,\"bytes\":3584,\"errors\":8,\"retries\":0,"
		 "\"total_ns\":9,\"max_ns\":10,\"p50_ns\":0,\"p99_ns\":0,\"latency\":[]},"
		 "\"flush\":{\"requests\":11,\"sectors\":0,\"bytes\":0,\"errors\":12,\"retries\":18,"
		 "\"total_ns\":13,\"max_ns\":14,\"p50_ns\":0,\"p99_ns\":0,\"latency\":[]},"
		 "\"discard\":{\"requests\":0,\"sectors\":0,\"bytes\":0,\"errors\":0,\"retries\":0,"
		 "\"total_ns\":0,\"max_ns\":0,\"p50_ns\":0,\"p99_ns\":0,\"latency\":[]},"
		 "\"zero\":{\"requests\":0,\"sectors\":0,\"bytes\":0,\"errors\":0,\"retries\":0,"
		 "\"total_ns\":0,\"max_ns\":0,\"p50_ns\":0,\"p99_ns\":0,\"latency\":[]},"
		 "\"status\":{\"requests\":0,\"sectors\":0,\"bytes\":0,\"errors\":0,\"retries\":0,"
		 "\"total_ns\":0,\"max_ns\":0,\"p50_ns\":0,\"p99_ns\":0,\"latency\":[]}"
		 "}}", dir, dir);
	expected = json_loads(want, 0, NULL);
	assert_true(json_equal(answer, expected));
	json_decref(answer);
	json_decref(expected);
	close(fd);
}

static void a_list_that_is_too_long_comes_in_parts(void **state)
{
	struct fixture *f = *state;
	char name[200], msg[64];
	unsigned int seen = 0, parts = 0;
	int fd = client();
	json_t *answer;

	memset(name, 'n', sizeof(name));
	name[sizeof(name) - 1] = 0;
	for (int i = 0; i < FAKE_VBDS; i++)
		open_named(f, fd, 20 + i, name);
	for (json_int_t next = 0; next >= 0; parts++) {
		const json_t *vbds;

		snprintf(msg, sizeof(msg), "{\"op\":\"list\",\"first\":%d}", (int)next);
		answer = ask(f, fd, msg);
		vbds = json_object_get(answer, "vbds");
		for (size_t i = 0; i < json_array_size(vbds); i++, seen++)
			assert_int_equal(json_integer_value(json_object_get(
				json_array_get(vbds, i), "minor")), 20 + seen);
		next = json_object_get(answer, "next") ?
			json_integer_value(json_object_get(answer, "next")) : -1;
		json_decref(answer);
	}
	assert_int_equal(seen, FAKE_VBDS);
	assert_in_range(parts, 2, 10);
	close(fd);
}

static void an_answer_that_is_too_long_is_an_error(void **state)
{
	struct fixture *f = *state;
	int fd = client();

	open_named(f, fd, 1, "long");
	expect_error(ask(f, fd, "{\"op\":\"stats\",\"minor\":1}"), EMSGSIZE,
		     "too long for a control message");
	expect_ok(ask(f, fd, "{\"op\":\"ping\"}"));
	close(fd);
}

static void pause_is_answered_when_it_is_done(void **state)
{
	struct fixture *f = *state;
	int fd = client(), other = client();

	open_named(f, fd, 1, "stuck");
	say(fd, "{\"op\":\"pause\",\"minor\":1}");
	say(fd, "{\"op\":\"unpause\",\"minor\":1,\"args\":\"aio:/\"}");
	turn(f);
	assert_null(heard(fd));
	expect_error(ask(f, other, "{\"op\":\"close\",\"minor\":1}"), EBUSY,
		     "a pause is under way");
	fake_finish(f->server->vbd[0]);
	expect_ok(heard(fd));
	/* What was sent meanwhile has waited. */
	turn(f);
	expect_ok(heard(fd));
	close(fd);
	close(other);
}

static void a_client_that_leaves_during_its_verb_breaks_nothing(void **state)
{
	struct fixture *f = *state;
	int fd = client(), other = client();

	open_named(f, fd, 1, "stuck");
	say(fd, "{\"op\":\"close\",\"minor\":1}");
	turn(f);
	close(fd);
	turn(f);
	fake_finish(f->server->vbd[0]);
	turn(f);
	expect_ok(ask(f, other, "{\"op\":\"detach\",\"minor\":1}"));
	close(other);
}

static void a_verb_may_end_after_the_control_server(void **state)
{
	struct fixture *f = *state;
	int fd = client();

	open_named(f, fd, 1, "stuck");
	say(fd, "{\"op\":\"close\",\"minor\":1}");
	turn(f);
	control_server_close(f->control);
	f->control = NULL;
	assert_null(heard(fd));
	fake_finish(f->server->vbd[0]);
	assert_true(has_ended(fd));
	close(fd);
}

static void a_client_that_does_not_read_holds_up_nobody(void **state)
{
	struct fixture *f = *state;
	unsigned int asked = 0, answered = 0;
	int fd = client(), other = client();
	json_t *answer;

	open_named(f, other, 1, "a");
	while (send(fd, "{\"op\":\"list\"}", 13, MSG_NOSIGNAL) == 13) {
		asked++;
		turn(f);
	}
	assert_int_equal(errno, EAGAIN);
	expect_ok(ask(f, other, "{\"op\":\"ping\"}"));
	/* Nothing spins meanwhile. */
	assert_int_equal(engine_run(f->server->engine, 0), 0);
	while (answered < asked) {
		turn(f);
		answer = heard(fd);
		assert_non_null(answer);
		expect_ok(answer);
		answered++;
	}
	assert_null(heard(fd));
	close(fd);
	close(other);
}

static void the_longest_idle_client_makes_room(void **state)
{
	struct fixture *f = *state;
	int fd[MAX_CLIENTS], more;

	for (int i = 0; i < MAX_CLIENTS; i++) {
		fd[i] = client();
		turn(f);
	}
	expect_ok(ask(f, fd[0], "{\"op\":\"ping\"}"));
	more = client();
	expect_ok(ask(f, more, "{\"op\":\"ping\"}"));
	expect_ok(ask(f, fd[0], "{\"op\":\"ping\"}"));
	assert_true(has_ended(fd[1]));
	expect_ok(ask(f, fd[2], "{\"op\":\"ping\"}"));
	for (int i = 0; i < MAX_CLIENTS; i++)
		close(fd[i]);
	close(more);
}

static void with_a_verb_under_way_on_each_the_next_is_refused(void **state)
{
	struct fixture *f = *state;
	int fd[MAX_CLIENTS], more;
	char msg[64];

	for (int i = 0; i < MAX_CLIENTS; i++) {
		fd[i] = client();
		open_named(f, fd[i], 20 + i, "stuck");
	}
	for (int i = 0; i < MAX_CLIENTS; i++) {
		snprintf(msg, sizeof(msg), "{\"op\":\"pause\",\"minor\":%d}", 20 + i);
		say(fd[i], msg);
	}
	turn(f);
	more = client();
	turn(f);
	expect_error(heard(more), EBUSY, "too many control connections");
	assert_true(has_ended(more));
	for (int i = 0; i < MAX_CLIENTS; i++) {
		fake_finish(f->server->vbd[i]);
		expect_ok(heard(fd[i]));
		close(fd[i]);
	}
	close(more);
}

static void running_out_of_descriptors_does_not_spin(void **state)
{
	struct fixture *f = *state;
	struct rlimit old, none;
	unsigned int runs = 0;
	struct timespec a, b;
	int fd = client(), highest;

	expect_ok(ask(f, fd, "{\"op\":\"ping\"}"));
	getrlimit(RLIMIT_NOFILE, &old);
	highest = client();
	none = (struct rlimit){ (rlim_t)highest + 1, old.rlim_max };
	setrlimit(RLIMIT_NOFILE, &none);
	turn(f);
	clock_gettime(CLOCK_MONOTONIC, &a);
	do {
		assert_int_equal(engine_run(f->server->engine, 100), 0);
		runs++;
		clock_gettime(CLOCK_MONOTONIC, &b);
	} while ((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 < 300);
	setrlimit(RLIMIT_NOFILE, &old);
	assert_in_range(runs, 1, 4);
	/* The idle client has made room, the waiting one gets its turn. */
	assert_true(has_ended(fd));
	say(highest, "{\"op\":\"ping\"}");
	for (int i = 0; i < 20 && runs; i++) {
		json_t *answer;

		assert_int_equal(engine_run(f->server->engine, 100), 0);
		answer = heard(highest);
		if (answer) {
			expect_ok(answer);
			runs = 0;
		}
	}
	assert_int_equal(runs, 0);
	close(highest);
	close(fd);
}

static void detaching_the_last_vbd_stops_the_server(void **state)
{
	struct fixture *f = *state;
	int fd = client();

	expect_ok(ask(f, fd, "{\"op\":\"attach\",\"minor\":1}"));
	expect_ok(ask(f, fd, "{\"op\":\"attach\",\"minor\":2}"));
	expect_ok(ask(f, fd, "{\"op\":\"detach\",\"minor\":1}"));
	expect_error(ask(f, fd, "{\"op\":\"detach\",\"minor\":1}"), ENODEV, "");
	assert_false(f->server->stop);
	expect_ok(ask(f, fd, "{\"op\":\"detach\",\"minor\":2}"));
	assert_true(f->server->stop);
	close(fd);
}

/* Opening */

static mode_t mode_of(const char *path)
{
	struct stat st;

	assert_int_equal(lstat(path, &st), 0);
	return st.st_mode & 07777;
}

static void directory_and_socket_are_the_owners_alone(void **state)
{
	struct fixture *f = *state;
	struct control_server *again;
	struct error err;
	char path[128];

	assert_int_equal(mode_of(dir), 0700);
	control_socket_path(path, sizeof(path), getpid(), NULL);
	assert_int_equal(mode_of(path), 0600);

	/* A stale socket of our pid, in a directory left open. */
	assert_int_equal(chmod(dir, 0777), 0);
	assert_int_equal(control_server_open(&again, f->server, &err), 0);
	assert_int_equal(mode_of(dir), 0700);
	control_server_close(again);
	assert_int_equal(access(path, F_OK), -1);
}

static void a_directory_that_is_none_of_ours_is_refused(void **state)
{
	struct fixture *f = *state;
	struct control_server *c;
	struct error err;
	char path[256];

	snprintf(path, sizeof(path), "%s/link", dir);
	assert_int_equal(symlink("/tmp", path), 0);
	setenv("XENBLK_CONTROL_DIR", path, 1);
	assert_int_equal(control_server_open(&c, f->server, &err), -EPERM);
	assert_non_null(strstr(err.text, path));
	unlink(path);
	snprintf(path, sizeof(path), "%s/none/none", dir);
	setenv("XENBLK_CONTROL_DIR", path, 1);
	assert_int_equal(control_server_open(&c, f->server, &err), -ENOENT);
	memset(path, 'x', 120);
	path[120] = 0;
	setenv("XENBLK_CONTROL_DIR", path, 1);
	assert_int_equal(control_server_open(&c, f->server, &err), -ENAMETOOLONG);
	setenv("XENBLK_CONTROL_DIR", dir, 1);
}

/* Fuzzing: whatever comes is answered or ends the connection. */

static void mutated_messages_are_answered_or_refused(void **state)
{
	static const char *const seeds[] = {
		"{\"op\":\"open\",\"minor\":1,\"args\":\"aio:/x\",\"readonly\":true}",
		"{\"op\":\"close\",\"minor\":1,\"force\":false}",
		"{\"op\":\"list\",\"first\":0}",
		"{\"op\":\"unpause\",\"minor\":1,\"args\":\"vhd:/\\u00e4\"}",
		"{\"op\":\"stats\",\"minor\":1}",
	};
	const char *given = getenv("XENBLK_SEED");
	unsigned int seed = given ? (unsigned int)atoi(given) : (unsigned int)time(NULL);
	struct fixture *f = *state;

	print_message("XENBLK_SEED=%u\n", seed);
	srandom(seed);
	for (int round = 0; round < 3000; round++) {
		const char *text = seeds[(size_t)random() % 5];
		size_t len = strlen(text);
		char msg[128];
		int fd = client();
		json_t *answer;

		memcpy(msg, text, len);
		for (long n = random() % 4; n >= 0; n--) {
			size_t at = (size_t)random() % len;

			if (random() % 2)
				msg[at] = (char)random();
			else
				msg[at] = "{}[]\",:\\0-e"[random() % 11];
		}
		if (random() % 4 == 0)
			len = (size_t)random() % len + 1;
		say_bytes(fd, msg, len);
		turn(f);
		answer = heard(fd);
		assert_non_null(answer);
		assert_true(json_is_boolean(json_object_get(answer, "ok")));
		json_decref(answer);
		close(fd);
		turn(f);
	}
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(ping_answers_pid_and_version),
		T(what_is_no_request_ends_its_connection_alone),
		T(errors_name_the_field),
		T(long_messages_are_refused_and_the_longest_is_not),
		T(a_verb_that_fails_leaves_the_connection),
		T(control_characters_in_a_path_are_refused),
		T(list_and_stats_show_the_vbds),
		T(a_list_that_is_too_long_comes_in_parts),
		T(an_answer_that_is_too_long_is_an_error),
		T(pause_is_answered_when_it_is_done),
		T(a_client_that_leaves_during_its_verb_breaks_nothing),
		T(a_verb_may_end_after_the_control_server),
		T(a_client_that_does_not_read_holds_up_nobody),
		T(the_longest_idle_client_makes_room),
		T(with_a_verb_under_way_on_each_the_next_is_refused),
		T(running_out_of_descriptors_does_not_spin),
		T(detaching_the_last_vbd_stops_the_server),
		T(directory_and_socket_are_the_owners_alone),
		T(a_directory_that_is_none_of_ours_is_refused),
		T(mutated_messages_are_answered_or_refused),
	};

	return cmocka_run_group_tests_name("control", tests, NULL, NULL);
}
