# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk attach and detach: a disk of a guest that runs, by libxl. What fails leaves nothing."""

import dataclasses
import json

from xenblk import diskspec, guestdisks, libxl, probe, toolstack
from xenblk.errors import UserError
from xenblk.guestdisks import GuestDisk


def _show(disk: GuestDisk, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(disk), indent=2))
    else:
        print(f"{disk.guest or disk.domid} {disk.vdev}: {disk.image} by {disk.device}")


def attach(guest: str, specs: list[str], *, as_json: bool) -> None:
    """Attaches the disk of these words, as xl block-attach reads them, and shows it. Raises UserError."""
    text = " ".join(specs)
    try:
        disk = diskspec.read(*specs)
    except libxl.GrammarError as error:
        raise UserError(f"disk '{text}': not understood by libxl: {error}") from None
    if not disk.driver:
        raise UserError(f"disk '{text}': tapdisk has no part in it; use xl block-attach, or write tap2:vhd:/path or tap2:aio:/path")
    if not disk.local:
        raise UserError(f"disk '{text}': a driver domain serves it; use xl block-attach")
    probe.prepare([disk])
    with toolstack.opened() as xen:
        domid, name = xen.domain(guest)
        if xen.has_disk(domid, disk.vdev):
            raise UserError(f"guest {name}: has a disk {disk.vdev} already; name another, or xenblk detach {name} {disk.vdev}")
        try:
            xen.add_disk(domid, disk.rewritten)
        except UserError as error:
            raise UserError(f"guest {name}: {disk.vdev} not attached: {error}") from None
    [made] = guestdisks.named(str(domid), [disk.vdev])
    _show(made, as_json=as_json)


def _is_left(disk: GuestDisk) -> bool:
    """tapdisk has it, and no guest: the block script did not come to its end. libxl says nothing of one that it killed."""
    now = [one for one in guestdisks.find() if (one.minor, one.image) == (disk.minor, disk.image)]
    return bool(now) and all(one.domid is None for one in now)


def detach(guest: str, vdev: str, *, force: bool, as_json: bool) -> None:
    """Detaches a disk that tapdisk serves, and shows what it was. Raises UserError."""
    with toolstack.opened() as xen:
        domid, name = xen.domain(guest)
        [disk] = guestdisks.named(str(domid), [vdev])
        try:
            said = xen.remove_disk(domid, vdev, force=force)
        except UserError as error:
            hint = "" if force else "; the guest was asked to let go and still may: detach it again then, or now with -f"
            raise UserError(f"guest {name}: {vdev} not detached: {error}{hint}") from None
        if not said and _is_left(disk):
            said = f"minor {disk.minor} with {disk.image} is still there, and the block script did not say why"
        if said:
            raise UserError(f"guest {name}: it has {vdev} no more, but {said}; when that is mended, xenblk gc removes it")
    _show(disk, as_json=as_json)
