/* SPDX-License-Identifier: LGPL-2.1-only */
/*
 * The input is two images, child and parent, in a directory of their own:
 *
 *   flags u8 | size of the child's part u24, big-endian | child | parent
 *
 * By FUZZ_LINK the child's header names the parent. Opened, checked, read.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuzz/fuzz.h"
#include "vhd/vhd-internal.h"

#define FUZZ_LINK 1u
#define PREFIX 4u

static char child_path[64], parent_path[64];
static char dir[32] = "/dev/shm/fuzz-chain-XXXXXX";
static struct config config;
static int child = -1, parent = -1;

static void clean_up(void)
{
	unlink(child_path);
	unlink(parent_path);
	rmdir(dir);
}

static void prepare(void)
{
	if (child >= 0)
		return;
	if (!mkdtemp(dir)) {
		strcpy(dir, "/tmp/fuzz-chain-XXXXXX");
		fuzz_assert(mkdtemp(dir));
	}
	snprintf(child_path, sizeof(child_path), "%s/child", dir);
	snprintf(parent_path, sizeof(parent_path), "%s/parent", dir);
	child = open(child_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	parent = open(parent_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	fuzz_assert(child >= 0 && parent >= 0);
	fuzz_assert(!config_load(&config, "/nonexistent", NULL));
	atexit(clean_up);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t uuid[16] = { 0 };
	struct vhd_chain *chain;
	struct error err;
	size_t len;
	bool link;

	prepare();
	if (size < PREFIX)
		return 0;
	link = data[0] & FUZZ_LINK;
	len = get_be32(data) & 0xffffffu;
	data += PREFIX;
	size -= PREFIX;
	if (len > size)
		return 0;
	/* Whatever it is: raw parents are named by a null uuid. */
	if (!fuzz_write_image(parent, data + len, size - len, uuid) ||
	    !fuzz_write_child(child, data, len, uuid, link ? "parent" : NULL))
		return 0;
	if (!vhd_chain_open(&chain, child_path, &config, 0, &err)) {
		fuzz_use_chain(chain);
		vhd_chain_close(chain);
	}
	return 0;
}
