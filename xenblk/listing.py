# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk ls: the disks as a table for people, or as JSON."""

import dataclasses
import json

from xenblk import guestdisks
from xenblk.guestdisks import GuestDisk

_UNITS = ("B", "K", "M", "G", "T", "P")
_COLUMNS = ("GUEST", "VDEV", "MODE", "SIZE", "DEPTH", "PID", "MINOR", "STATE", "IMAGE")
_RIGHT = frozenset({"SIZE", "DEPTH", "PID", "MINOR"})


def human(size: int | None) -> str | None:
    """Bytes with a unit of 1024 and at most one decimal, as ls -h has it: 20G, 1.5G."""
    if size is None:
        return None
    value, unit = float(size), 0
    while round(value, 1) >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f}".removesuffix(".0") + (_UNITS[unit] if unit else "")


def _cells(disk: GuestDisk) -> list[str]:
    values = (
        disk.guest or disk.domid,
        disk.vdev,
        disk.mode,
        human(disk.size),
        disk.depth,
        disk.pid,
        disk.minor,
        disk.state,
        disk.image,
    )
    return ["-" if value is None else _printable(str(value)) for value in values]


def _printable(text: str) -> str:
    """A line break or an escape sequence in a name must not reach the terminal."""
    return "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else f"\\x{ord(c):02x}" for c in text)


def table(disks: list[GuestDisk]) -> str:
    """One line a disk, and a second one for an error; "" for none."""
    if not disks:
        return ""
    rows = [list(_COLUMNS), *map(_cells, disks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row, disk in zip(rows, [None, *disks], strict=True):
        cells = [
            cell.rjust(width) if name in _RIGHT else cell.ljust(width)
            for cell, width, name in zip(row, widths, _COLUMNS, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
        if disk and disk.error:
            lines.append(f"    {_printable(disk.error)}")
    return "\n".join(lines) + "\n"


def run(guest: str | None, *, as_json: bool) -> None:
    """Prints it. Raises UserError."""
    disks = guestdisks.find(guest)
    if as_json:
        print(json.dumps([dataclasses.asdict(disk) for disk in disks], indent=2))
    else:
        print(table(disks), end="")
