# SPDX-License-Identifier: LGPL-2.1-only
"""Compiles the cffi module `xenblk._libxl` against the installed libxl headers.

    python3 -m xenblk._libxl_build OUTDIR

writes OUTDIR/_libxl.abi3.so, to be installed beside the package. $CC and $CFLAGS are respected. API mode: the C
compiler checks what is declared here, and structs stay opaque, since their layout changes with each Xen release.
"""

import contextlib
import io
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from cffi import FFI

DECLARATIONS = """
/* stdio.h: what libxlutil has to say is collected in memory */
FILE *open_memstream(char **text, size_t *size);
int fflush(FILE *stream);
int fclose(FILE *stream);
void free(void *p);

/* libxlutil.h */
typedef struct XLU_Config XLU_Config;
typedef struct XLU_ConfigList XLU_ConfigList;
XLU_Config *xlu_cfg_init(FILE *report, const char *report_filename);
int xlu_cfg_readdata(XLU_Config *, const char *data, int length);
void xlu_cfg_destroy(XLU_Config *);
int xlu_cfg_get_list(const XLU_Config *, const char *name, XLU_ConfigList **list, int *entries, int dont_warn);
const char *xlu_cfg_get_listitem(const XLU_ConfigList *, int entry);

/* libxl.h; JSON shows every field of a disk whatever the release */
typedef struct { ...; } libxl_device_disk;
typedef struct libxl_ctx libxl_ctx;
void libxl_device_disk_init(libxl_device_disk *);
void libxl_device_disk_dispose(libxl_device_disk *);
char *libxl_device_disk_to_json(libxl_ctx *, libxl_device_disk *);
int xlu_disk_parse(XLU_Config *, int nspecs, const char *const *specs, libxl_device_disk *);

/* libxl.h with a running Xen. ao_how NULL: the call returns when it is done */
typedef struct { ...; } libxl_asyncop_how;
typedef struct { ...; } libxl_dominfo;
typedef struct xentoollog_logger xentoollog_logger;
xentoollog_logger *xenblk_logger(FILE *);
void xtl_logger_destroy(xentoollog_logger *);
libxl_ctx *xenblk_libxl(xentoollog_logger *);
int libxl_ctx_free(libxl_ctx *);
int libxl_domain_info(libxl_ctx *, libxl_dominfo *, uint32_t domid);
char *libxl_domid_to_name(libxl_ctx *, uint32_t domid);
int libxl_domain_qualifier_to_domid(libxl_ctx *, const char *name, uint32_t *domid);
int libxl_vdev_to_device_disk(libxl_ctx *, uint32_t domid, const char *vdev, libxl_device_disk *);
enum { ERROR_LOCK_FAIL = ..., ERROR_DEVICE_EXISTS = ..., ... };
int libxl_device_disk_add(libxl_ctx *, uint32_t domid, libxl_device_disk *, const libxl_asyncop_how *ao_how);
int libxl_device_disk_safe_remove(libxl_ctx *, uint32_t domid, libxl_device_disk *, const libxl_asyncop_how *ao_how);
int libxl_device_disk_destroy(libxl_ctx *, uint32_t domid, libxl_device_disk *, const libxl_asyncop_how *ao_how);

/* xenstore.h; every answer is to be freed */
struct xs_handle;
typedef uint32_t xs_transaction_t;
struct xs_handle *xs_open(unsigned long flags);
void xs_close(struct xs_handle *);
void *xs_read(struct xs_handle *, xs_transaction_t, const char *path, unsigned int *len);
char **xs_directory(struct xs_handle *, xs_transaction_t, const char *path, unsigned int *num);
bool xs_rm(struct xs_handle *, xs_transaction_t, const char *path);
bool xs_is_domain_introduced(struct xs_handle *, unsigned int domid);
"""

SOURCE = """
#define LIBXL_API_VERSION 0x041400
#include <stdio.h>
#include <stdlib.h>
#include <libxl.h>
#include <libxlutil.h>
#include <libxl_utils.h>
#include <xenstore.h>
#include <xentoollog.h>
#include <unistd.h>

/* libxl reaps only its own children, so that those of Python's subprocess stay Python's. */
static const libxl_childproc_hooks children = { .chldowner = libxl_sigchld_owner_libxl_always_selective_reap };

/* Without a handler libxl ends the process and says nothing of who it was. */
static void disaster(void *user, libxl_event_type type, const char *msg, int errnoval)
{
	(void)user;
	(void)type;
	fprintf(stderr, "xenblk: libxl: %s: %s\\n", msg, strerror(errnoval));
	_exit(1);
}

static const libxl_event_hooks events = { .disaster = disaster };

static xentoollog_logger *xenblk_logger(FILE *stream)
{
	return (xentoollog_logger *)xtl_createlogger_stdiostream(stream, XTL_ERROR, XTL_STDIOSTREAM_HIDE_PROGRESS);
}

static libxl_ctx *xenblk_libxl(xentoollog_logger *logger)
{
	libxl_ctx *ctx;

	if (libxl_ctx_alloc(&ctx, LIBXL_VERSION, 0, logger))
		return NULL;
	libxl_childproc_setmode(ctx, &children, NULL);
	libxl_event_register_callbacks(ctx, &events, NULL);
	return ctx;
}
"""


def build(outdir: Path) -> Path:
    """Compile the module into outdir. Raises subprocess.CalledProcessError if the compiler fails."""
    ffi = FFI()
    ffi.cdef(DECLARATIONS)
    ffi.set_source("xenblk._libxl", SOURCE)
    outdir.mkdir(parents=True, exist_ok=True)
    source = outdir / "_libxl.c"
    with contextlib.redirect_stdout(sys.stderr if os.environ.get("V") else io.StringIO()):
        ffi.emit_c_code(str(source))
    product = outdir / "_libxl.abi3.so"
    command = [
        *shlex.split(os.environ.get("CC", "cc")),
        *shlex.split(os.environ.get("CFLAGS", "-O2 -g")),
        *("-shared", "-fPIC", f"-I{sysconfig.get_path('include')}"),
        *("-o", f"{product}.new", str(source), "-lxlutil", "-lxenlight", "-lxenstore", "-lxentoollog"),
    ]
    subprocess.run(command, check=True)
    os.replace(f"{product}.new", product)
    return product


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python3 -m xenblk._libxl_build OUTDIR")
    try:
        build(Path(sys.argv[1]))
    except subprocess.CalledProcessError as failure:
        sys.exit(f"_libxl_build: {shlex.join(failure.cmd)} failed: install libxen-dev and python3-dev")
