# SPDX-License-Identifier: LGPL-2.1-only
"""Xen's own grammar: libxlutil reads domain configurations and disk specs. Needs no running Xen.

Strings that come from files or the command line are str with undecodable bytes kept as surrogates (PEP 383).
"""

import contextlib
import errno
import importlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from xenblk.errors import UserError


class GrammarError(Exception):
    """libxlutil refuses the text; str() is its report, the lines that xl would print."""


@dataclass
class _Report:
    """Collects what libxlutil prints."""

    text: str = ""
    buffers: list[Any] = field(default_factory=list)


def bindings() -> Any:
    """The compiled module: ffi and lib. Raises UserError if it isn't there, or not this Xen's."""
    try:
        return importlib.import_module("xenblk._libxl")
    except ImportError as error:
        if error.name == "_cffi_backend":
            raise UserError(f"libxl: the binding can't be loaded ({error}); install python3-cffi-backend") from error
        raise UserError(
            f"libxl: the binding can't be loaded ({error}); it belongs to one Xen release: "
            "rebuild xenblk with this release's libxen-dev"
        ) from error


@contextlib.contextmanager
def _config(source: str, report: _Report) -> Iterator[tuple[Any, Any, Any]]:
    """(ffi, lib, XLU_Config *); report.text is complete after the block."""
    module = bindings()
    ffi, lib = module.ffi, module.lib
    text, size = ffi.new("char **"), ffi.new("size_t *")
    stream = lib.open_memstream(text, size)
    if stream == ffi.NULL:
        raise MemoryError
    cfg = lib.xlu_cfg_init(stream, os.fsencode(source))
    try:
        if cfg == ffi.NULL:
            raise MemoryError
        yield ffi, lib, cfg
    finally:
        if cfg != ffi.NULL:
            lib.xlu_cfg_destroy(cfg)
        lib.fclose(stream)
        report.text = os.fsdecode(bytes(ffi.buffer(text[0], size[0])))
        lib.free(text[0])


def read_disks(source: str, data: bytes) -> list[str]:
    """The disk specs of a domain configuration, as xl sees them.

    source names the configuration in messages. Raises GrammarError if xl would refuse it. A `disk` that isn't a list,
    and what follows an item that isn't a string, doesn't exist for xl.
    """
    report = _Report()
    disks: list[str] = []
    with _config(source, report) as (ffi, lib, cfg):
        status = lib.xlu_cfg_readdata(cfg, data, len(data))
        if not status:
            found, count = ffi.new("XLU_ConfigList **"), ffi.new("int *")
            if not lib.xlu_cfg_get_list(cfg, b"disk", found, count, 1):
                for entry in range(count[0]):
                    item = lib.xlu_cfg_get_listitem(found[0], entry)
                    if item == ffi.NULL:
                        break
                    disks.append(os.fsdecode(ffi.string(item)))
    if status:
        raise GrammarError(report.text.strip() or f"{source}: {os.strerror(status)}")
    return disks


@contextlib.contextmanager
def device_disk() -> Iterator[Any]:
    """An empty libxl_device_disk *."""
    module = bindings()
    disk = module.ffi.new("libxl_device_disk *")
    module.lib.libxl_device_disk_init(disk)
    try:
        yield disk
    finally:
        module.lib.libxl_device_disk_dispose(disk)


def fill_disk(disk: Any, *parts: str) -> None:
    """Sets an empty libxl_device_disk to what a spec says; several parts are read one after the other, as xl block-attach does.

    Raises GrammarError if xl would refuse the spec.
    """
    report = _Report()
    with _config("disk", report) as (ffi, lib, cfg):
        texts = [ffi.new("char[]", os.fsencode(part)) for part in parts]
        status = lib.xlu_disk_parse(cfg, len(texts), ffi.new("char *[]", texts), disk)
    if status:
        raise GrammarError(report.text.strip() or os.strerror(status))


def parse_disk(*parts: str) -> dict[str, Any]:
    """The fields of libxl_device_disk (libxl_types.idl) that a spec sets to something else than the default.

    Raises GrammarError, see fill_disk().
    """
    module = bindings()
    with device_disk() as disk:
        fill_disk(disk, *parts)
        shown = module.lib.libxl_device_disk_to_json(module.ffi.NULL, disk)
        if shown == module.ffi.NULL:
            raise OSError(errno.ENOMEM, "libxl_device_disk_to_json failed")
        fields: dict[str, Any] = json.loads(os.fsdecode(module.ffi.string(shown)))
        module.lib.free(shown)
    return fields
