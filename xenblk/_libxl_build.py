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

/* xenstore.h; every answer is to be freed */
struct xs_handle;
typedef uint32_t xs_transaction_t;
struct xs_handle *xs_open(unsigned long flags);
void xs_close(struct xs_handle *);
void *xs_read(struct xs_handle *, xs_transaction_t, const char *path, unsigned int *len);
char **xs_directory(struct xs_handle *, xs_transaction_t, const char *path, unsigned int *num);
bool xs_write(struct xs_handle *, xs_transaction_t, const char *path, const void *data, unsigned int len);
bool xs_rm(struct xs_handle *, xs_transaction_t, const char *path);
bool xs_is_domain_introduced(struct xs_handle *, unsigned int domid);
"""

SOURCE = """
#define LIBXL_API_VERSION 0x041400
#include <stdio.h>
#include <stdlib.h>
#include <libxl.h>
#include <libxlutil.h>
#include <xenstore.h>
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
        *("-o", f"{product}.new", str(source), "-lxlutil", "-lxenlight", "-lxenstore"),
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
