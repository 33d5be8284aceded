/* SPDX-License-Identifier: LGPL-2.1-only */
#include "transport/open.h"

#include <errno.h>

#include "transport/blktap.h"
#include "transport/nbd-device.h"
#include "transport/nbd-gendisk.h"
#include "transport/ublk.h"

int transport_open(const struct gendisk_kind *kind,
		   struct transport **transport, struct vbd *vbd,
		   struct engine *engine, int minor, struct error *err)
{
	/* What stands for the kernel in a test must see all I/O. */
	if (kind == &blktap_gendisk)
		return blktap_open(transport, vbd, engine, minor,
				   vbd_config(vbd)->kernel_io &&
				   !engine_wrapped(engine), err);
	if (kind == &ublk_gendisk)
		return ublk_open(transport, vbd, engine, minor, err);
	if (kind == &nbd_gendisk)
		return nbd_device_open(transport, vbd, engine, minor, err);
	return error_set(err, -EOPNOTSUPP, "minor %d: this tapdisk has no transport %s",
			 minor, kind->name);
}
