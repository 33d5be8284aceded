# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk ls: the disks as a table for people, or as JSON."""

import dataclasses
import json

from xenblk import guestdisks
from xenblk.guestdisks import GuestDisk
from xenblk.table import human, render

_COLUMNS = ("GUEST", "VDEV", "MODE", "SIZE", "DEPTH", "PID", "DEVICE", "TRANSPORT", "STATE", "IMAGE")
_RIGHT = frozenset({"SIZE", "DEPTH", "PID"})


def _row(disk: GuestDisk) -> list[object | None]:
    return [
        disk.guest or disk.domid,
        disk.vdev,
        disk.mode,
        human(disk.size),
        disk.depth,
        disk.pid,
        None if disk.minor is None else f"tapdev{disk.minor}",
        disk.transport,
        disk.state,
        disk.image,
    ]


def run(guest: str | None, *, as_json: bool) -> None:
    """Prints it; a table has a second line for an error. Raises UserError."""
    disks = guestdisks.find(guest)
    if as_json:
        print(json.dumps([dataclasses.asdict(disk) for disk in disks], indent=2))
    else:
        print(render(_COLUMNS, list(map(_row, disks)), right=_RIGHT, below=[disk.error for disk in disks]), end="")
