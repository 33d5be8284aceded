/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * Plain POSIX: a few threads that only run system calls, and poll(2). For
 * kernels that forbid io_uring, and as the other opinion in the tests.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "io/engine-internal.h"

#define NR_THREADS	4
#define MAX_SOCKETS	8192u
#define NSEC_PER_SEC	1000000000

struct posix_engine {
	struct engine engine;
	pthread_t thread[NR_THREADS];
	unsigned int nr_threads;
	int event_fd;			/* readable while finished isn't empty */
	struct list sockets;		/* IO_RECV and IO_SEND that poll() waits for */
	unsigned int nr_sockets;
	struct pollfd pollfd[ENGINE_MAX_WATCHES + 1 + MAX_SOCKETS];

	pthread_mutex_t lock;		/* for what follows */
	pthread_cond_t work;
	struct list todo;		/* io_req.link */
	struct list finished;		/* io_req.link, result set */
	bool stop;
};

static struct posix_engine *to_posix(struct engine *engine)
{
	return container_of(engine, struct posix_engine, engine);
}

/* One call transfers less than 2 GiB, so int holds it. */
int posix_transfer(const struct io_req *req)
{
	off_t offset = (off_t)(req->offset + req->transferred);
	ssize_t n = 0;

	switch (req->op) {
	case IO_READ:
		n = req->iovcnt == 1 ?
		    pread(req->fd, req->iov->iov_base, req->iov->iov_len, offset) :
		    preadv(req->fd, req->iov, req->iovcnt, offset);
		break;
	case IO_WRITE:
		n = req->iovcnt == 1 ?
		    pwrite(req->fd, req->iov->iov_base, req->iov->iov_len, offset) :
		    pwritev(req->fd, req->iov, req->iovcnt, offset);
		break;
	case IO_SYNC:
		n = fdatasync(req->fd);
		break;
	case IO_PUNCH:
		n = fallocate(req->fd, FALLOC_FL_PUNCH_HOLE |
			      FALLOC_FL_KEEP_SIZE, offset, (off_t)req->len);
		break;
	case IO_ZERO:
		n = fallocate(req->fd, FALLOC_FL_ZERO_RANGE |
			      FALLOC_FL_KEEP_SIZE, offset, (off_t)req->len);
		break;
	case IO_RECV:
	case IO_SEND:
	case IO_COMMAND:
		break;
	}
	return n < 0 ? -errno : (int)n;
}

static void *worker(void *arg)
{
	struct posix_engine *p = arg;
	static const uint64_t one = 1;

	pthread_mutex_lock(&p->lock);
	for (;;) {
		struct io_req *req;
		bool first;
		int result;

		while (list_empty(&p->todo) && !p->stop)
			pthread_cond_wait(&p->work, &p->lock);
		if (p->stop)
			break;
		req = container_of(list_pop(&p->todo), struct io_req, link);

		pthread_mutex_unlock(&p->lock);
		result = posix_transfer(req);
		pthread_mutex_lock(&p->lock);

		req->result = result;
		first = list_empty(&p->finished);
		list_add_tail(&req->link, &p->finished);
		/* Can't fail: the counter is 0 or 1, the descriptor is ours. */
		if (first && write(p->event_fd, &one, sizeof(one)) < 0)
			abort();
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

static void posix_close(struct engine *engine)
{
	struct posix_engine *p = to_posix(engine);

	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_broadcast(&p->work);
	pthread_mutex_unlock(&p->lock);
	for (unsigned int i = 0; i < p->nr_threads; i++)
		pthread_join(p->thread[i], NULL);
	pthread_cond_destroy(&p->work);
	pthread_mutex_destroy(&p->lock);
	if (p->event_fd >= 0)
		close(p->event_fd);
	free(p);
}

/* Signals are for the thread that runs the engine. */
static int start_threads(struct posix_engine *p)
{
	sigset_t all, old;
	int rc = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	while (!rc && p->nr_threads < NR_THREADS) {
		rc = -pthread_create(&p->thread[p->nr_threads], NULL, worker, p);
		if (!rc)
			p->nr_threads++;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return rc;
}

/*
 * poll(2) refuses more entries than the process may have descriptors, and a
 * descriptor may have several.
 */
static void allow_poll(void)
{
	const rlim_t need = ENGINE_MAX_WATCHES + 1 + MAX_SOCKETS;
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur >= need)
		return;
	limit.rlim_cur = limit.rlim_max < need ? limit.rlim_max : need;
	(void)setrlimit(RLIMIT_NOFILE, &limit);
}

static int posix_open(struct engine **engine, unsigned int depth,
		      struct error *err)
{
	struct posix_engine *p;
	int rc = 0;

	(void)depth;
	p = calloc(1, sizeof(*p));
	if (!p)
		return error_set(err, -ENOMEM, "I/O engine posix: out of memory");
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->work, NULL);
	list_init(&p->todo);
	list_init(&p->finished);
	list_init(&p->sockets);
	allow_poll();

	p->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (p->event_fd < 0)
		rc = -errno;
	if (!rc)
		rc = start_threads(p);
	if (rc) {
		error_set(err, rc, "I/O engine posix: %s", strerror(-rc));
		posix_close(&p->engine);
		return rc;
	}
	*engine = &p->engine;
	return 0;
}

/* Bytes or -errno. Doesn't wait, so it is for the loop's own thread. */
static int run_socket(const struct io_req *req)
{
	struct msghdr msg = {
		.msg_iov	= req->iov,
		.msg_iovlen	= (size_t)req->iovcnt,
	};
	ssize_t n;

	do {
		n = req->op == IO_RECV ?
		    recvmsg(req->fd, &msg, MSG_DONTWAIT) :
		    sendmsg(req->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : (int)n;
}

static void submit_socket(struct posix_engine *p, struct io_req *req)
{
	int result = run_socket(req);

	if (result != -EAGAIN) {
		engine_finish(&p->engine, req, result);
	} else if (p->nr_sockets == MAX_SOCKETS) {
		engine_finish(&p->engine, req, -EMFILE);
	} else {
		list_add_tail(&req->link, &p->sockets);
		p->nr_sockets++;
	}
}

static bool posix_submit(struct engine *engine, struct io_req *req)
{
	struct posix_engine *p = to_posix(engine);

	if (req->op == IO_COMMAND) {
		engine_finish(engine, req, -EOPNOTSUPP);
		return true;
	}
	if (on_socket(req)) {
		submit_socket(p, req);
		return true;
	}
	pthread_mutex_lock(&p->lock);
	list_add_tail(&req->link, &p->todo);
	pthread_cond_signal(&p->work);
	pthread_mutex_unlock(&p->lock);
	return true;
}

static void posix_unwatch(struct engine *engine, unsigned int slot)
{
	/* poll(2) refers to nothing between two waits. */
	(void)engine;
	(void)slot;
}

static void take_finished(struct posix_engine *p)
{
	struct list *item, batch;
	uint64_t count;

	list_init(&batch);
	pthread_mutex_lock(&p->lock);
	if (read(p->event_fd, &count, sizeof(count)) < 0)
		count = 0;
	list_splice(&p->finished, &batch);
	pthread_mutex_unlock(&p->lock);

	while ((item = list_pop(&batch))) {
		struct io_req *req = container_of(item, struct io_req, link);

		engine_finish(&p->engine, req, req->result);
	}
}

/* From fd on in the order of the list, which nothing changes while poll() waits. */
static nfds_t poll_sockets(struct posix_engine *p, struct pollfd *fd)
{
	list_for_each(pos, &p->sockets) {
		struct io_req *req = container_of(pos, struct io_req, link);

		*fd++ = (struct pollfd) {
			.fd	= req->fd,
			.events	= req->op == IO_RECV ? POLLIN : POLLOUT,
		};
	}
	return p->nr_sockets;
}

static void take_sockets(struct posix_engine *p, const struct pollfd *fd)
{
	list_for_each_safe(pos, next, &p->sockets) {
		struct io_req *req = container_of(pos, struct io_req, link);

		int result;

		if (!(fd++)->revents)
			continue;
		result = run_socket(req);
		if (result == -EAGAIN)
			continue;
		list_del(&req->link);
		p->nr_sockets--;
		engine_finish(&p->engine, req, result);
	}
}

static int posix_wait(struct engine *engine, int64_t timeout_ns)
{
	struct posix_engine *p = to_posix(engine);
	struct timespec ts = {
		.tv_sec = (time_t)(timeout_ns / NSEC_PER_SEC),
		.tv_nsec = (long)(timeout_ns % NSEC_PER_SEC),
	};
	nfds_t n = engine->nr_slots, sockets;

	for (unsigned int i = 0; i < n; i++) {
		const struct io_watch *watch = engine->slot[i].watch;

		/* poll() passes over negative descriptors. */
		p->pollfd[i].fd = watch ? watch->fd : -1;
		p->pollfd[i].events = watch ? watch->events : 0;
		p->pollfd[i].revents = 0;
	}
	p->pollfd[n] = (struct pollfd){ .fd = p->event_fd, .events = POLLIN };

	sockets = poll_sockets(p, &p->pollfd[n + 1]);
	if (ppoll(p->pollfd, n + 1 + sockets, timeout_ns < 0 ? NULL : &ts, NULL) < 0)
		return errno == EINTR ? 0 : -errno;

	for (unsigned int i = 0; i < n; i++)
		if (p->pollfd[i].revents)
			engine_ready(engine, i, p->pollfd[i].revents);
	if (p->pollfd[n].revents)
		take_finished(p);
	take_sockets(p, &p->pollfd[n + 1]);
	return 0;
}

const struct engine_ops posix_engine_ops = {
	.name = "posix",
	.open = posix_open,
	.close = posix_close,
	.submit = posix_submit,
	.unwatch = posix_unwatch,
	.wait = posix_wait,
};
