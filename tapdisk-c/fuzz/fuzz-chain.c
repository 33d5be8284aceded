/* SPDX-License-Identifier: LGPL-2.1-only */
/* The input is a chain: opened, checked, read. */
#include "fuzz/fuzz.h"
#include "fuzz/memory-files.h"
#include "vhd/vhd-internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vhd_chain *chain;
	struct error err;

	memory_reset();
	if (!fuzz_make_chain(data, size))
		return 0;
	if (!vhd_chain_open(&chain, memory_path(0), fuzz_config(), 0, &err)) {
		fuzz_use_chain(chain);
		vhd_chain_close(chain);
	}
	fuzz_assert(!memory_nr_open());
	return 0;
}
