/* SPDX-License-Identifier: LGPL-2.1-only */
#include "jobs/job.h"

#include <errno.h>
#include <string.h>

#include "jobs/pump.h"

#define ENGINE_DEPTH 256u
/*
 * What is written goes to the medium meanwhile, so that the last flush has little
 * left; not too often, since a file system makes others wait for it.
 */
#define FLUSH_BYTES (256u << 20)

int job_open(struct job *job, const struct config *cfg,
	     const struct job_watch *watch, struct error *err)
{
	int rc;

	job->cfg = cfg;
	job->watch = watch;
	rc = engine_open(&job->engine, cfg->engine, ENGINE_DEPTH, err);
	if (rc && !strcmp(cfg->engine, "uring"))
		rc = engine_open(&job->engine, "posix", ENGINE_DEPTH, err);
	return rc;
}

int job_image(struct job *job, struct image **image,
	      const struct image_driver *driver, struct image_open_args args,
	      struct error *err)
{
	int rc;

	args.engine = job->engine;
	args.stream = &job->stream;
	args.config = job->cfg;
	args.max_requests = PUMP_SLOTS;
	/*
	 * What a guest's disk holds is not in the page cache, and need not go
	 * there. Nor what goes into a new raw image in large pieces, or where the file
	 * has space; in small pieces new space costs less that way. Where a file system has no direct
	 * I/O the open says so.
	 */
	args.buffered = !args.readonly && !job->in_place &&
			(driver != &raw_driver || args.child);
	rc = driver->open(image, &args, err);
	if (rc != -EINVAL || args.buffered)
		return rc;
	args.buffered = true;
	return driver->open(image, &args, err);
}

static int close_image(struct job *job, struct image **image,
		       struct error *err)
{
	int rc = 0;

	if (!*image)
		return 0;
	while (image_busy(*image) && !rc)
		rc = engine_run(job->engine, -1);
	rc = (*image)->driver->close(*image, err);
	*image = NULL;
	return rc;
}

int job_copy(struct job *job, bool skip_zeros, struct error *err)
{
	struct pump pump = {
		.from = job->from, .to = job->to,
		.from_name = job->from_name, .to_name = job->to_name,
		.skip_zeros = skip_zeros, .flush_bytes = FLUSH_BYTES,
		.stop = job->watch->stop, .progress = job->watch->progress,
		.priv = job->watch->priv,
		.written = job->watch->written,
	};
	int rc = pump_run(&pump, err);

	if (rc)
		return rc;
	rc = close_image(job, &job->to, err);
	return rc ? rc : close_image(job, &job->from, err);
}

void job_close(struct job *job)
{
	close_image(job, &job->to, NULL);
	close_image(job, &job->from, NULL);
	if (job->engine)
		engine_close(job->engine);
	job->engine = NULL;
}
