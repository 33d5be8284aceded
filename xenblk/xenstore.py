# SPDX-License-Identifier: LGPL-2.1-only
"""xenstore, through libxenstore: gc removes nodes, nobody else changes anything.

Backend nodes are written by dom0 alone. What a guest may write (its frontend's nodes) is never read, but by a driver domain's gc, which
has no other way to see that the guest is there: one that removes them loses its own disk.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any

from xenblk import libxl, probe
from xenblk.errors import UserError


class _DeniedError(UserError):
    """A node that is not for this domain."""


class Store:
    """An open xenstore. Paths without a / at their start are this domain's."""

    def __init__(self, module: Any, handle: Any) -> None:
        self._ffi, self._lib, self._handle = module.ffi, module.lib, handle

    def _gone(self, path: str) -> bool:
        if self._ffi.errno in (errno.ENOENT, errno.ENOTDIR):
            return True
        if self._ffi.errno in (errno.EACCES, errno.EPERM):
            raise _DeniedError(f"xenstore: {path}: not for this domain; run this as root in dom0")
        raise UserError(f"xenstore: {path}: {os.strerror(self._ffi.errno)}; see that xenstored runs")

    def read(self, path: str) -> str | None:
        """The value of a node, None if there is no such node."""
        size = self._ffi.new("unsigned int *")
        value = self._lib.xs_read(self._handle, 0, os.fsencode(path), size)
        if value == self._ffi.NULL:
            return None if self._gone(path) else ""
        try:
            return os.fsdecode(bytes(self._ffi.buffer(value, size[0])))
        finally:
            self._lib.free(value)

    def read_of_others(self, path: str) -> str | None:
        """The value of another domain's node; None, too, if that is not for this domain: a driver domain sees its own alone."""
        try:
            return self.read(path)
        except _DeniedError:
            return None

    def remove(self, path: str) -> None:
        """Removes a node and all below it, if it is there."""
        if not self._lib.xs_rm(self._handle, 0, os.fsencode(path)):
            self._gone(path)

    def remove_of_others(self, path: str) -> None:
        """The same of another domain's node; it stays if it is not for this domain to remove."""
        with contextlib.suppress(_DeniedError):
            self.remove(path)

    def has_domain(self, domid: int) -> bool:
        """xenstored knows the domain: it is there, and not dying. Raises UserError if it can't be asked."""
        if self._lib.xs_is_domain_introduced(self._handle, domid):
            return True
        # "no" is its answer to a connection that is lost, too
        if not self._lib.xs_is_domain_introduced(self._handle, 0):
            raise UserError("xenstore: does not know domain 0; see that xenstored runs")
        return False

    def directory(self, path: str) -> list[str]:
        """The names below a node; none if there is no such node."""
        count = self._ffi.new("unsigned int *")
        names = self._lib.xs_directory(self._handle, 0, os.fsencode(path), count)
        if names == self._ffi.NULL:
            self._gone(path)
            return []
        try:
            return [os.fsdecode(self._ffi.string(names[number])) for number in range(count[0])]
        finally:
            self._lib.free(names)


@contextlib.contextmanager
def opened() -> Iterator[Store]:
    """xenstore. Raises UserError if it isn't there."""
    probe.check_xenstored()
    module = libxl.bindings()
    handle = module.lib.xs_open(0)
    if handle == module.ffi.NULL:
        raise UserError("xenstore can't be opened: run this as root in a domain of Xen, with xenstored running")
    try:
        yield Store(module, handle)
    finally:
        module.lib.xs_close(handle)
