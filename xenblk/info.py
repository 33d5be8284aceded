# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk info: all that is known of a guest's disks, what they have done included."""

import dataclasses
import json
import os
from typing import Any

from xenblk import guestdisks, tapctl
from xenblk.guestdisks import GuestDisk
from xenblk.table import human, printable

# Of what tap-ctl stats says, the kinds of requests that people ask for
_KINDS = ("read", "write", "flush", "discard")


def _stats(disk: GuestDisk) -> dict[str, Any] | None:
    """What tap-ctl stats knows of it, None while no tapdisk has it."""
    if disk.pid is None:
        return None
    done = tapctl.run("stats", "-p", str(disk.pid), "-m", str(disk.minor), "--json")
    if done.returncode:
        return None
    found: dict[str, Any] = json.loads(os.fsdecode(done.stdout))
    return found


def _lines(disk: GuestDisk, stats: dict[str, Any] | None) -> list[tuple[str, str | None]]:
    """Names and values, in the order in which they are shown; None isn't shown."""
    stats = stats or {}
    lines: list[tuple[str, str | None]] = [
        ("guest", f"{disk.guest or '?'} (domain {disk.domid})"),
        ("state", disk.state if not disk.error else f"{disk.state}: {disk.error}"),
        ("image", disk.image),
        *[("parent", path) for path in stats.get("chain", [])[1:]],
        ("mode", disk.mode),
        ("size", human(disk.size)),
        ("device", disk.device),
        ("transport", disk.transport),
        ("tapdisk", f"pid {disk.pid}, minor {disk.minor}" if disk.pid is not None else None),
    ]
    for kind in _KINDS:
        done = stats.get(kind, {})
        if done.get("requests"):
            errors = f", {done['errors']} errors" if done["errors"] else ""
            size = f", {human(done['bytes'])}" if kind != "flush" else ""
            lines.append((kind, f"{done['requests']} requests{size}{errors}, longest {done['max_ns'] / 1e6:.1f} ms"))
    kernel = stats.get("kernel")
    if kernel and (kernel["reads"] or kernel["writes"]):
        lines.append(("kernel", f"{kernel['reads']} reads and {kernel['writes']} writes by itself"))
    if stats:
        lines.append(("in flight", str(stats["inflight"])))
    return lines


def run(guest: str, vdevs: list[str], *, as_json: bool) -> None:
    """Shows the disks that are named, or all of the guest. Raises UserError."""
    disks = [(disk, _stats(disk)) for disk in guestdisks.named(guest, vdevs)]
    if as_json:
        print(json.dumps([dataclasses.asdict(disk) | {"stats": stats} for disk, stats in disks], indent=2))
        return
    for number, (disk, stats) in enumerate(disks):
        if number:
            print()
        print(printable(str(disk.vdev)))
        for name, value in _lines(disk, stats):
            if value is not None:
                print(f"    {name + ':':11}{printable(value)}")
