# SPDX-License-Identifier: LGPL-2.1-only
"""What xenblk asks of libxl on a running Xen: domains, and disks that come and go. Synchronous; no thread, no fork meanwhile.

What libxl logs is kept, and is the error's text if a call fails.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

from xenblk import libxl, probe
from xenblk.errors import UserError

# What the block script left in hotplug-error, as libxl reports it
_SCRIPT_SAID = re.compile(r"script: (.*)$", re.M)
# Who logs it, and where in its source
_PREFIX = re.compile(r"^\S+: error: (?:\S+\.c:\d+:\S+:? ?)?", re.M)


class Toolstack:
    """An open libxl."""

    def __init__(self, module: Any, ctx: Any, log: "_Log") -> None:
        self._ffi, self._lib, self._ctx, self._log = module.ffi, module.lib, ctx, log

    def _said(self) -> str:
        """Why the last call failed, in one line."""
        text = self._log.take()
        script = _SCRIPT_SAID.findall(text)
        if script:
            return str(script[-1])
        lines = [_PREFIX.sub("", line) for line in text.splitlines()]
        return lines[0] if lines else "libxl gives no reason"

    def domain(self, guest: str) -> tuple[int, str]:
        """Domid and name of the guest of that name or domid. Raises UserError if there is none."""
        domid = self._ffi.new("uint32_t *")
        if self._lib.libxl_domain_qualifier_to_domid(self._ctx, os.fsencode(guest), domid) or (
            self._lib.libxl_domain_info(self._ctx, self._ffi.NULL, domid[0])
        ):
            raise UserError(f"guest {guest}: there is none of this name or domid; xl list shows all")
        name = self._lib.libxl_domid_to_name(self._ctx, domid[0])
        if name == self._ffi.NULL:
            return int(domid[0]), guest
        try:
            return int(domid[0]), os.fsdecode(self._ffi.string(name))
        finally:
            self._lib.free(name)

    def has_disk(self, domid: int, vdev: str) -> bool:
        """A device of that name is there, working or not."""
        with libxl.device_disk() as disk:
            found = not self._lib.libxl_vdev_to_device_disk(self._ctx, domid, os.fsencode(vdev), disk)
        self._log.take()
        return found

    def add_disk(self, domid: int, spec: str) -> None:
        """Attaches the disk of a spec that xl takes. Raises UserError; then nothing of it is left, as with a guest that starts."""
        with libxl.device_disk() as disk:
            libxl.fill_disk(disk, spec)
            rc = self._lib.libxl_device_disk_add(self._ctx, domid, disk, self._ffi.NULL)
            if not rc:
                return
            why = self._said()
            # libxl leaves it half made, and refuses the next one of that name; but with these nothing was made, and who was
            # faster may have a disk of that name
            if rc not in (self._lib.ERROR_DEVICE_EXISTS, self._lib.ERROR_LOCK_FAIL):
                self._lib.libxl_device_disk_destroy(self._ctx, domid, disk, self._ffi.NULL)
        raise UserError(why)

    def remove_disk(self, domid: int, vdev: str, *, force: bool) -> str | None:
        """Detaches it: the guest is asked to let it go, and may refuse. force: at once, whether it lets go or not.

        Returns what the block script said, if it did: then the guest has the disk no more, and something else is left. Raises
        UserError if the guest has it still.
        """
        remove = self._lib.libxl_device_disk_destroy if force else self._lib.libxl_device_disk_safe_remove
        with libxl.device_disk() as disk:
            if self._lib.libxl_vdev_to_device_disk(self._ctx, domid, os.fsencode(vdev), disk):
                raise UserError(f"it has no disk {vdev}")
            if remove(self._ctx, domid, disk, self._ffi.NULL):
                raise UserError(self._said())
        # libxl takes the nodes away all the same, and says nothing
        script = _SCRIPT_SAID.findall(self._log.take())
        return str(script[-1]) if script else None


class _Log:
    """A FILE in memory that libxl logs to."""

    def __init__(self, module: Any) -> None:
        self._ffi, self._lib = module.ffi, module.lib
        self._text, self._size = self._ffi.new("char **"), self._ffi.new("size_t *")
        self.stream = self._lib.open_memstream(self._text, self._size)
        if self.stream == self._ffi.NULL:
            raise MemoryError
        self._taken = 0

    def take(self) -> str:
        """What came since the last time."""
        self._lib.fflush(self.stream)
        new = bytes(self._ffi.buffer(self._text[0], self._size[0]))[self._taken :]
        self._taken += len(new)
        return os.fsdecode(new)

    def close(self) -> None:
        self._lib.fclose(self.stream)
        self._lib.free(self._text[0])


@contextlib.contextmanager
def opened() -> Iterator[Toolstack]:
    """libxl. Raises UserError if this is no dom0."""
    if not os.path.exists("/proc/xen/capabilities"):
        raise UserError("this isn't a dom0: boot Xen, see that xenfs is at /proc/xen")
    probe.check_xenstored()
    module = libxl.bindings()
    log = _Log(module)
    logger = module.lib.xenblk_logger(log.stream)
    ctx = module.ffi.NULL
    try:
        ctx = module.lib.xenblk_libxl(logger)
        if ctx == module.ffi.NULL:
            raise UserError(f"libxl can't be opened: {log.take().strip() or 'no reason given'}; run this as root in dom0")
        yield Toolstack(module, ctx, log)
    finally:
        if ctx != module.ffi.NULL:
            module.lib.libxl_ctx_free(ctx)
        module.lib.xtl_logger_destroy(logger)
        log.close()
