# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk snapshot: all disks of a guest, or some, as they are at one moment. tap-ctl and the tapdisks do it."""

import json
import os
import re
import time
from dataclasses import dataclass

from xenblk import guestdisks, tapctl
from xenblk.errors import UsageError, UserError
from xenblk.guestdisks import GuestDisk


@dataclass(frozen=True)
class Snapshot:
    """A disk, the image that keeps its contents, and its leaf, which goes on under its name. Paths."""

    vdev: str
    parent: str
    leaf: str


def _chosen(guest: str, vdevs: list[str]) -> list[GuestDisk]:
    """The disks that are to have a snapshot. Raises UserError if one can't."""
    disks = guestdisks.named(guest, vdevs)
    chosen = disks if vdevs else [disk for disk in disks if disk.mode == "w"]
    if not chosen:
        raise UserError(f"guest {guest}: has no disk that it may write")
    for disk in chosen:
        if disk.mode != "w":
            raise UserError(f"guest {guest}: {disk.vdev} is read-only, so it needs none; leave it out")
        if not str(disk.image).startswith("vhd:"):
            others = " ".join(str(other.vdev) for other in disks if other.vdev != disk.vdev)
            hint = f"name the others: xenblk snapshot {guest} {others}" if others and not vdevs else "leave it out"
            raise UserError(f"guest {guest}: {disk.vdev} is {disk.image}; only a vhd: can have a snapshot; {hint}")
        if disk.pid is None or disk.state in ("paused", "pausing", "waits for its image", "closed", "not answering"):
            raise UserError(f"guest {guest}: {disk.vdev}: {disk.state}; a disk must run to have a snapshot")
    return chosen


def _parent_name(leaf: str, name: str) -> str:
    """a.vhd -> a.NAME.vhd"""
    stem, dot, extension = os.path.basename(leaf).rpartition(".")
    return f"{stem}.{name}.{extension}" if dot and stem else f"{os.path.basename(leaf)}.{name}"


def make(guest: str, vdevs: list[str], name: str | None) -> tuple[list[Snapshot], float]:
    """Makes them; for how many seconds the guest's requests waited at most.

    Raises UserError: then there is none, unless it says so: a tapdisk was killed meanwhile.
    """
    name = name or time.strftime("%Y%m%dT%H%M%S")
    if not re.fullmatch(r"[^/\x00-\x1f\x7f]+", name):
        raise UsageError("snapshot: --name becomes part of a file's name; leave out / and control characters")
    disks = _chosen(guest, vdevs)
    leaves = [os.path.realpath(str(disk.image).removeprefix("vhd:")) for disk in disks]
    parents = [_parent_name(leaf, name) for leaf in leaves]
    command = ["snapshot", "-p", str(disks[0].pid), "-m", str(disks[0].minor), "-n", parents[0]]
    command += [
        f"--also={disk.pid}:{disk.minor}:{parent}" for disk, parent in zip(disks[1:], parents[1:], strict=True)
    ]
    done = tapctl.run(*command)
    if done.returncode:
        raise UserError(f"guest {guest}: {tapctl.complaint(done)}")
    stall = re.fullmatch(rb"stall_us=(\d+)\n", done.stdout)
    made = [
        Snapshot(str(disk.vdev), os.path.join(os.path.dirname(leaf), parent), leaf)
        for disk, parent, leaf in zip(disks, parents, leaves, strict=True)
    ]
    return made, int(stall[1]) / 1e6 if stall else 0.0


def run(guest: str, vdevs: list[str], name: str | None, *, as_json: bool) -> None:
    """Makes and shows them. Raises UserError."""
    made, stall = make(guest, vdevs, name)
    if as_json:
        shown = [{"vdev": one.vdev, "parent": one.parent, "leaf": one.leaf} for one in made]
        print(json.dumps({"stall_seconds": stall, "snapshots": shown}, indent=2))
        return
    for one in made:
        print(f"{one.vdev}: {one.parent}")
    print(f"requests waited at most {stall * 1000:.1f} ms")
