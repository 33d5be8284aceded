# SPDX-License-Identifier: LGPL-2.1-only
"""Before a guest is started: can tapdisk open its images? Says in one line what libxl would bury in ten, and earlier.

What another process holds is left to the block script, which names the guest: it may be let go by then, as at a
restart.
"""

import os

from xenblk import config
from xenblk.diskspec import Disk
from xenblk.errors import UserError


def check(disks: list[Disk]) -> None:
    """Opens each image of tapdisk on this host with `tap-ctl probe`, which changes nothing. Raises UserError."""
    for disk in disks:
        if disk.driver and disk.local:
            _probe(disk)


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
