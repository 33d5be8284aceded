# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk gc: what is left when a program that had to remove a guest's disks was killed, or could not.

A tapdisk that block-xenblk made names its backend node (tap-ctl keep --for). Left over is one whose minor no node has,
and a node whose domain is gone. Disks that were made by hand name none and are left alone, and so is a device that
anybody has open: nothing is forced.
"""

import json
import os
import re
import time
from dataclasses import asdict, dataclass, replace

from xenblk import guestdisks, tapctl, xenstore
from xenblk.errors import UserError

# As libxl names it to the script: below the home of this domain
_NODE = re.compile(r"backend/vbd/\d+/\d+")


@dataclass(frozen=True)
class LeftOver:
    """One disk that is left. node: its backend node; there: that is there. minor, image: what the node says, or tap-ctl. pid:
    None: no tapdisk has the minor. why: it is left over. error: it could not be removed."""

    node: str
    there: bool
    minor: int | None
    pid: int | None
    image: str | None
    why: str
    error: str | None = None

    def __str__(self) -> str:
        what = f"tapdisk pid={self.pid} minor={self.minor}" if self.pid else f"minor={self.minor} without a tapdisk"
        if self.there:
            what = self.node
        image = f" {self.image}" if self.image else ""
        return f"{what}{image}: {self.why}"


def _is_there(store: xenstore.Store, node: str, domid: int) -> bool:
    """The domain that a backend node is for. A driver domain may not ask for it, but sees the frontend of its disk as long as there is
    one."""
    if guestdisks.home(store) == "/local/domain/0":
        return store.has_domain(domid)
    frontend = store.read(f"{node}/frontend")
    return frontend is None or store.read_of_others(f"{frontend}/backend") is not None


def find() -> list[LeftOver]:
    """What is left now. Raises UserError."""
    # First: a tapdisk is marked after its node is complete.
    rows = {row["minor"]: row for row in guestdisks.tapdisks() if row["minor"] is not None}
    found: list[LeftOver] = []
    used: set[int] = set()
    with xenstore.opened() as store:
        home = guestdisks.home(store)
        for node, domid in guestdisks.nodes(store):
            if not guestdisks.is_ours(store, node):
                continue
            minor, row = guestdisks.row_of(store, node, rows)
            if minor is not None and (row or minor not in rows):
                used.add(minor)
            if not _is_there(store, node, domid):
                pid = row["pid"] if row else None
                image = store.read(f"{node}/params")
                found.append(LeftOver(node, True, minor, pid, image, f"domain {domid} is gone"))
    for minor, row in rows.items():
        if minor not in used and _NODE.fullmatch(row["for"] or ""):
            node = f"{home}/{row['for']}"
            image = f"{row['type']}:{row['path']}" if row["type"] else None
            why = f"was of {node}, which is gone or has another disk"
            found.append(LeftOver(node, False, minor, row["pid"], image, why))
    return found


def _remove_node(node: str) -> bool:
    """The node, from which blkback learns that it is to let go: it hears nothing of the end of a domain whose frontend nodes
    xenstored has removed. False if its domain is there again."""
    domid, devid = node.split("/")[-2:]
    with xenstore.opened() as store:
        if _is_there(store, node, int(domid)):
            return False
        for path in (f"/local/domain/{domid}/device/vbd/{devid}", f"/libxl/{domid}/device/vbd/{devid}"):
            store.remove_of_others(path)
        store.remove(node)
        above = os.path.dirname(node)
        if not store.directory(above):
            store.remove(above)
    return True


def _remove_tapdisk(node: str, minor: int) -> str | None:
    """What is wrong, None if nothing is. Another disk that has the minor by now is not touched."""
    rows = [row for row in guestdisks.tapdisks() if row["minor"] == minor]
    pids = [row["pid"] for row in rows if _NODE.fullmatch(row["for"] or "") and guestdisks.is_for(row, node)]
    if not pids:
        return None
    if pids[0] is None:
        done = tapctl.run("free", "-m", str(minor))
    else:
        done = tapctl.run("destroy", "-p", str(pids[0]), "-m", str(minor), "-t", "25")
    return tapctl.complaint(done) if done.returncode else None


def _remove(one: LeftOver) -> LeftOver | None:
    """With the error, if there is one; None if it is no longer left over."""
    try:
        if one.there and not _remove_node(one.node):
            return None
        error = _remove_tapdisk(one.node, one.minor) if one.minor is not None else None
    except UserError as failed:
        # the others are still done
        error = str(failed)
    return replace(one, error=error)


def collect(*, dry_run: bool, settle: float) -> list[LeftOver]:
    """Removes what is found twice, settle seconds apart; what that is. Raises UserError."""
    found = find()
    if dry_run or not found:
        return found
    time.sleep(settle)
    still = find()
    both = [one for one in found if one in still]
    return [done for one in both if (done := _remove(one))]


def run(*, dry_run: bool, settle: float, as_json: bool) -> None:
    """Says what was left, and removes it. Raises UserError, if something stays too."""
    found = collect(dry_run=dry_run, settle=settle)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        for one in found:
            print(f"{'left over' if dry_run or one.error else 'removed'}: {one}")
    stays = [f"{one.node}: {one.error}" for one in found if one.error]
    if stays:
        raise UserError("not removed: " + "; ".join(stays) + "; run xenblk gc again when that is mended")
