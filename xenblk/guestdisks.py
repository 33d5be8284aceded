# SPDX-License-Identifier: LGPL-2.1-only
"""The disks that tapdisk serves, and whose they are: what tap-ctl lists, joined with the backend nodes in xenstore."""

import json
import os
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from xenblk import tapctl, xenstore
from xenblk.diskspec import SCRIPT
from xenblk.errors import UserError

# Bits of a tapdisk's state, from the one that says most: tap-ctl(8), list
_STATES = (
    (0x40, "closed"),
    (0x20, "paused"),
    (0x10, "pausing"),
    (0x4000, "waits for its image"),
    (0x2000, "no space"),
    (0x1000, "retrying"),
)
DEVICES = "/dev/xen/blktap-2"
_NO_XEN = "/proc/xen/capabilities"


@dataclass(frozen=True)
class GuestDisk:
    """A disk of a guest, or one that was made by hand and has none. None is what isn't there, or isn't known.

    image: TYPE:PATH. mode: r or w. depth: images in the chain. size: bytes. state: running, one of _STATES, "no tapdisk"
    (requests wait for one), "not answering" (its tapdisk), "attaching", or "failed", with the error that the block script left.
    """

    guest: str | None
    domid: int | None
    vdev: str | None
    mode: str | None
    image: str | None
    device: str | None
    minor: int | None
    pid: int | None
    transport: str | None
    depth: int | None
    size: int | None
    state: str
    error: str | None = None


def tapdisks() -> list[dict[str, Any]]:
    """What tap-ctl list knows; what it says on the way goes to the user. Raises UserError."""
    done = tapctl.run("list", "--json")
    sys.stderr.write(os.fsdecode(done.stderr))
    if done.returncode:
        raise UserError(f"{done.args[0]} list ended with status {done.returncode}; run this as root")
    rows: list[dict[str, Any]] = json.loads(os.fsdecode(done.stdout))
    return rows


def _state(row: dict[str, Any]) -> str:
    if row["pid"] is None:
        return "no tapdisk"
    # only a tapdisk that answers tells the state of a disk; one without disks has none to tell
    if row["state"] is None and row["minor"] is not None:
        return "not answering"
    return next((word for bit, word in _STATES if (row["state"] or 0) & bit), "running")


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def is_for(row: dict[str, Any], node: str) -> bool:
    """A disk that tap-ctl lists was made for this backend node."""
    return bool(row.get("for")) and node.endswith(f"/{row['for']}")


def row_of(store: xenstore.Store, node: str, rows: dict[int, dict[str, Any]]) -> tuple[int | None, dict[str, Any] | None]:
    """The minor that the script has written to a backend node, and what tap-ctl list says of it: None if nothing, or if another disk
    has that minor now. A disk that was made for this node has it still when tap-ctl has moved it to another image; one that
    several nodes share was made for one of them."""
    minor = _number(store.read(f"{node}/tapdisk-minor"))
    row = rows.get(minor) if minor is not None else None
    if row and row["type"] and not is_for(row, node) and f"{row['type']}:{row['path']}" != store.read(f"{node}/params"):
        row = None
    return minor, row


def _from_node(store: xenstore.Store, node: str, domid: int, rows: dict[int, dict[str, Any]]) -> GuestDisk | None:
    """The disk of a backend node; None if the script isn't ours."""
    if not is_ours(store, node):
        return None
    minor, row = row_of(store, node, rows)
    error = store.read(f"{node}/hotplug-error")
    state = _state(row) if row else "no tapdisk" if minor is not None else "failed" if error else "attaching"
    row = row or {}
    return GuestDisk(
        guest=store.read_of_others(f"/local/domain/{domid}/name"),
        domid=domid,
        vdev=store.read(f"{node}/dev"),
        mode=store.read(f"{node}/mode"),
        # tap-ctl may have moved it: what the node says is where it began
        image=f"{row['type']}:{row['path']}" if row.get("type") else store.read(f"{node}/params"),
        device=store.read(f"{node}/physical-device-path"),
        minor=minor,
        pid=row.get("pid"),
        transport=row.get("transport"),
        depth=row.get("depth"),
        size=row.get("size"),
        state=state,
        error=error,
    )


def _by_hand(row: dict[str, Any]) -> GuestDisk:
    readonly = row["readonly"]
    return GuestDisk(
        guest=None,
        domid=None,
        vdev=None,
        mode=None if readonly is None else "r" if readonly else "w",
        image=f"{row['type']}:{row['path']}" if row["type"] else None,
        device=f"{DEVICES}/tapdev{row['minor']}" if row["minor"] is not None else None,
        minor=row["minor"],
        pid=row["pid"],
        transport=row.get("transport"),
        depth=row["depth"],
        size=row["size"],
        state=_state(row),
    )


def home(store: xenstore.Store) -> str:
    """This domain's place in xenstore, where paths without a / at their start begin."""
    return f"/local/domain/{store.read('domid') or '0'}"


def nodes(store: xenstore.Store) -> Iterator[tuple[str, int]]:
    """The backend nodes of this domain's vbds, whatever their script, and the domids that they are for."""
    backends = f"{home(store)}/backend/vbd"
    for domid in sorted(filter(str.isdecimal, store.directory(backends)), key=int):
        for vbd in sorted(filter(str.isdecimal, store.directory(f"{backends}/{domid}")), key=int):
            yield f"{backends}/{domid}/{vbd}", int(domid)


def is_ours(store: xenstore.Store, node: str) -> bool:
    """The block script of a backend node is xenblk's."""
    return os.path.basename(store.read(f"{node}/script") or "") == SCRIPT


def _of_guests(rows: dict[int, dict[str, Any]]) -> list[GuestDisk]:
    with xenstore.opened() as store:
        found = [_from_node(store, node, domid, rows) for node, domid in nodes(store)]
    return [disk for disk in found if disk]


def find(guest: str | None = None) -> list[GuestDisk]:
    """All disks, those without a guest last; or those of a guest, by its name or domid.

    Raises UserError, for a guest without such disks too.
    """
    listed = tapdisks()
    rows = {row["minor"]: row for row in listed if row["minor"] is not None}
    on_xen = os.path.exists(_NO_XEN) or "XENSTORED_PATH" in os.environ
    disks = _of_guests(rows) if on_xen else []
    if guest is None:
        # a guest and its device model may share one
        shown = {disk.minor for disk in disks if disk.minor is not None}
        return disks + [_by_hand(row) for row in listed if row["minor"] not in shown]
    # a number is a domid, as for xl
    disks = [disk for disk in disks if (disk.domid == int(guest) if guest.isdecimal() else disk.guest == guest)]
    if not disks:
        raise UserError(f"guest {guest}: has no disk that tapdisk serves; xenblk ls lists all")
    return disks


def named(guest: str, vdevs: Collection[str]) -> list[GuestDisk]:
    """Those of a guest's disks that are named, all if none is. Raises UserError for a name that it doesn't have."""
    disks = find(guest)
    there = [str(disk.vdev) for disk in disks]
    for vdev in vdevs:
        if vdev not in there:
            raise UserError(f"guest {guest}: tapdisk serves no disk {vdev} of it; there are {', '.join(there)}")
    return [disk for disk in disks if not vdevs or disk.vdev in vdevs]
