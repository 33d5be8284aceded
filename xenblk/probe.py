# SPDX-License-Identifier: LGPL-2.1-only
"""Before a guest is started: can tapdisk open its images? Says in one line what libxl would bury in ten, and earlier.

What another process holds is left to the block script, which names the guest: it may be let go by then, as at a
restart.
"""

import os
import socket

from xenblk import config
from xenblk.diskspec import Disk
from xenblk.errors import UserError


XENSTORED_SECONDS = 5


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


def check(disks: list[Disk], source: str | None = None) -> None:
    """Opens each image of tapdisk on this host with `tap-ctl probe`, which changes nothing. Raises UserError.

    source names the configuration that the disks are from, if they are from one.
    """
    check_xenstored()
    for disk in disks:
        if disk.driver and disk.local:
            try:
                _probe(disk)
            except UserError as error:
                raise UserError(f"{source}: {error}" if source else str(error)) from None


def _probe(disk: Disk) -> None:
    import subprocess  # noqa: PLC0415 # slow to import, and most guests have no disk of ours

    tap_ctl = os.environ.get("XENBLK_TAP_CTL", config.TAP_CTL)
    command = [tap_ctl, "probe", "-a", f"{disk.driver}:{disk.path}", *(["-R"] if disk.readonly else [])]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise UserError(f"{tap_ctl}: {error.strerror}; install xenblk completely") from None
    if done.returncode and not done.stdout.startswith(b"holder="):
        why = os.fsdecode(done.stderr).strip().removeprefix("tap-ctl: ")
        raise UserError(f"disk '{disk.spec}': {why or f'tap-ctl probe ended with status {done.returncode}'}")
