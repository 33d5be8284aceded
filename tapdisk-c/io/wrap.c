/* SPDX-License-Identifier: LGPL-2.1-only */
#include "io/wrap.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

static const struct engine_wrap_ops *const wraps[] = {
	&fault_wrap_ops,
	&record_wrap_ops,
};

static const struct engine_wrap_ops *find(const char *name, size_t *prefix)
{
	for (size_t i = 0; i < sizeof(wraps) / sizeof(wraps[0]); i++) {
		*prefix = strlen(wraps[i]->prefix);
		if (!strncmp(name, wraps[i]->prefix, *prefix) &&
		    name[*prefix] == ':')
			return wraps[i];
	}
	return NULL;
}

int wrap_open(struct engine_wrap **outermost, const char **name,
	      unsigned int depth, struct error *err)
{
	const struct engine_wrap_ops *ops;
	struct engine_wrap *outer = NULL;
	size_t prefix;
	int rc;

	*outermost = NULL;
	while ((ops = find(*name, &prefix))) {
		const char *path = *name + prefix + 1;
		const char *end = strchr(path, ':');
		struct engine_wrap *wrap;
		char copy[PATH_MAX];

		if (!end || end == path || end - path >= PATH_MAX) {
			rc = error_set(err, -EINVAL,
				       "I/O engine %s: must be %s:PATH:ENGINE",
				       *name, ops->prefix);
			goto out;
		}
		memcpy(copy, path, (size_t)(end - path));
		copy[end - path] = 0;
		rc = ops->open(&wrap, copy, depth, err);
		if (rc)
			goto out;
		wrap->ops = ops;
		wrap->outer = outer;
		if (outer)
			outer->inner = wrap;
		else
			*outermost = wrap;
		outer = wrap;
		*name = end + 1;
	}
	return 0;
out:
	wrap_close(*outermost);
	*outermost = NULL;
	return rc;
}

void wrap_attach(struct engine *engine, struct engine_wrap *outermost)
{
	engine->wrap = outermost;
	for (struct engine_wrap *w = outermost; w; w = w->inner) {
		w->engine = engine;
		engine->innermost_wrap = w;
	}
}

void wrap_close(struct engine_wrap *outermost)
{
	while (outermost) {
		struct engine_wrap *inner = outermost->inner;

		outermost->ops->close(outermost);
		outermost = inner;
	}
}

bool wrap_submit_inner(struct engine_wrap *wrap, struct io_req *req)
{
	if (wrap->inner)
		return wrap->inner->ops->submit(wrap->inner, req);
	return wrap->engine->ops->submit(wrap->engine, req);
}

static int finish_from(struct engine_wrap *wrap, struct io_req *req, int result)
{
	for (; wrap; wrap = wrap->outer)
		result = wrap->ops->finish(wrap, req, result);
	return result;
}

void wrap_finish_held(struct engine_wrap *wrap, struct io_req *req, int result)
{
	engine_finished(wrap->engine, req, finish_from(wrap->outer, req, result));
}

int wrap_finish(struct engine *engine, struct io_req *req, int result)
{
	return finish_from(engine->innermost_wrap, req, result);
}

int64_t wrap_before_wait(struct engine *engine, int64_t timeout_ns)
{
	for (struct engine_wrap *w = engine->wrap; w; w = w->inner)
		if (w->ops->before_wait)
			timeout_ns = w->ops->before_wait(w, timeout_ns);
	return timeout_ns;
}
