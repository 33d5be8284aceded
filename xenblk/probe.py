# SPDX-License-Identifier: LGPL-2.1-only
"""Before a guest is started: can its images be opened? Says in one line what libxl would bury in ten, and earlier.

An image of tapdisk that another process holds is left to the block script, if a guest is started: it may be let go by then, as at a
restart. For a guest that runs it is refused.
"""

import os
import re
import socket
import stat

from xenblk import config, patience, tapctl
from xenblk.diskspec import Disk
from xenblk.errors import UserError

XENSTORED_SECONDS = 5
_BACKENDS = "/local/domain/0/backend/vbd"


def check_xenstored() -> None:
    """xl waits for a xenstored that isn't there for ever, without a word. Raises UserError."""
    if not os.path.exists("/proc/xen/capabilities"):  # xl says that it isn't on Xen
        return
    path = os.environ.get("XENSTORED_PATH", "/run/xenstored/socket")
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
            return
        except OSError:
            pass
    # It may be a domain of its own, which has no socket.
    import subprocess  # noqa: PLC0415 # slow to import

    try:
        subprocess.run(["xenstore-exists", "/"], timeout=XENSTORED_SECONDS, capture_output=True, check=False)
    except (OSError, subprocess.TimeoutExpired):
        raise UserError(f"xenstored doesn't answer at {path}; start it: systemctl start xenstored, or xen") from None


def prepare(disks: list[Disk], source: str | None = None, *, opened: bool = True, runs: bool = False) -> bool:
    """What precedes a call of xl with these disks; True if one is tapdisk's. Raises UserError.

    source, runs: see check(). opened: xl will have them opened now.
    """
    has_tap = any(disk.driver for disk in disks)
    if has_tap or any(disk.scripted for disk in disks):
        config.apply_if_changed()
    if opened:
        check(disks, source, runs=runs)
    return has_tap


def check(disks: list[Disk], source: str | None = None, *, runs: bool = False) -> None:
    """Raises UserError if an image can't be opened, or if a tapdisk has what another backend is to open.

    source names the configuration that the disks are from, if they are from one. runs: their guest does. Changes nothing.
    """
    if any(disk.driver for disk in disks):
        check_xenstored()
    try:
        _check_twice(disks)
        for disk in disks:
            if disk.driver and disk.local:
                _check_ours(disk, runs)
            elif disk.local:
                for path in disk.foreign:
                    _check_foreign(disk, path)
    except UserError as error:
        raise UserError(f"{source}: {error}" if source else str(error)) from None


def _probe(driver: str, path: str, readonly: bool) -> tuple[int | None, str]:
    """What is wrong with opening an image, "" if nothing, and the process that holds it, if that is why: 0 if it is on
    another host."""
    try:
        done = tapctl.run(
            "probe", "-a", f"{driver}:{path}", *(["-R"] if readonly else []), seconds=patience.OPEN_SECONDS
        )
    except TimeoutError:
        return None, str(patience.no_answer(path))
    if not done.returncode:
        return None, ""
    holder = int(done.stdout.removeprefix(b"holder=")) if done.stdout.startswith(b"holder=") else None
    return holder, tapctl.complaint(done)


def _file(path: str) -> tuple[int, int] | None:
    """What a file is, whatever its name; None if it isn't there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (-1, found.st_rdev) if stat.S_ISBLK(found.st_mode) else (found.st_dev, found.st_ino)


def _check_twice(disks: list[Disk]) -> None:
    """An image of tapdisk's that one configuration has in two disks has no lock yet that would tell."""
    seen: dict[tuple[int, int], Disk] = {}
    names: dict[str, Disk] = {}
    for disk in disks:
        same = names.setdefault(disk.vdev, disk)
        if same is not disk and (same.driver or disk.driver):
            raise UserError(f"disk '{disk.spec}': the guest has a disk {disk.vdev} already, '{same.spec}'; give one another vdev")
        for path in (disk.path,) if disk.path else disk.foreign:
            file = _file(path) if disk.local else None
            if file is None:
                continue
            other = seen.setdefault(file, disk)
            if other is disk or (other.readonly and disk.readonly) or not (other.driver or disk.driver):
                continue
            raise UserError(f"disk '{disk.spec}': {path}: is the guest's {other.vdev} too, and one of them writes; name another image")


def _check_ours(disk: Disk, runs: bool) -> None:
    holder, why = _probe(str(disk.driver), str(disk.path), disk.readonly)
    if why and (runs or not holder):
        raise UserError(f"disk '{disk.spec}': {_user(holder)}{why}")


def _check_foreign(disk: Disk, path: str) -> None:
    """QEMU, as libxl runs it, and losetup don't ask for the image lock: who holds it is asked for them."""
    mode = _mode(path)
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        return
    holder, why = _probe("aio", path, disk.readonly)
    if holder is not None:
        raise UserError(f"disk '{disk.spec}': {_user(holder)}{why}")


def _user(holder: int | None) -> str:
    return f"in use by {_name(holder)}; " if holder else ""


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0


def _heir(pid: int) -> int:
    """The tapdisk that has the disks of pid now: itself, or the one that took over from it."""
    try:
        name = os.readlink(f"{os.environ.get('XENBLK_CONTROL_DIR', '/run/blktap-control')}/ctl{pid}")
        return int(name.removeprefix("ctl"))
    except (OSError, ValueError):
        return pid


def _name(holder: int) -> str:
    """The guest whose disk a tapdisk serves, by what the block script has written; else the process."""
    import subprocess  # noqa: PLC0415 # slow to import

    def xenstore(*command: str) -> str:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return os.fsdecode(done.stdout)

    try:
        listing = xenstore("xenstore-ls", "-f", _BACKENDS)
        for found in re.finditer(rf'^({_BACKENDS}/(\d+)/\d+)/tapdisk-pid = "(\d+)"$', listing, re.M):
            if _heir(int(found[3])) != holder:
                continue
            guest = xenstore("xenstore-read", f"/local/domain/{found[2]}/name").strip()
            vdev = xenstore("xenstore-read", f"{found[1]}/dev").strip()
            return f"guest {guest} ({vdev})"
    except OSError:
        pass
    return f"process {holder}"
