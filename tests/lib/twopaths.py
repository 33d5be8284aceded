# SPDX-License-Identifier: LGPL-2.1-only
"""A disk that an HVM guest uses by QEMU's emulated IDE, and dom0 by blkback, as the guest's own driver would."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from tests.lib import hvm, tapdisks
from tests.lib.hvm import HvmGuest, line, text_of
from tests.lib.vm import Bed

MEGABYTES = 10
DOM0_DISK = "xvdq"
HOME = "/srv/paths"
LEAF = f"{HOME}/disk.vhd"
SCRIPT = f"{HOME}/bare"
# A block script that looks for no other user of the device.
BARE = b"""#!/bin/sh
[ "$1" = add ] || exit 0
device=$(xenstore-read "$XENBUS_PATH/params")
xenstore-write "$XENBUS_PATH/physical-device" "$(stat -c %t:%T "$device")" "$XENBUS_PATH/physical-device-path" "$device"
xenstore-write "$XENBUS_PATH/hotplug-status" connected
"""


@dataclass(frozen=True)
class TwoPaths:
    """The guest runs twopaths.S and has read SHARED once, which was `first`."""

    guest: HvmGuest
    first: bytes

    def in_image(self, number: int) -> bytes:
        """What tapdisk has been given for this sector."""
        return hvm.in_image(self.guest.bed, LEAF, number)

    def device(self) -> str:
        """The gendisk."""
        [disk] = tapdisks.served(self.guest.bed)
        return disk.device

    def connect(self) -> None:
        """Dom0 gets the gendisk by blkback."""
        bed = self.guest.bed
        bed.run("modprobe xen-blkfront")
        bed.put(SCRIPT, BARE, 0o755)
        bed.run(f"xl block-attach 0 'format=raw,script={SCRIPT},vdev={DOM0_DISK},access=w,target={self.device()}'")
        bed.wait_for(f"test -b /dev/{DOM0_DISK}", 60)

    def by_blkback(self, data: bytes) -> None:
        """Dom0 writes SHARED."""
        self.guest.bed.run(f"dd of=/dev/{DOM0_DISK} bs=512 seek={hvm.SHARED} oflag=direct 2>/dev/null", stdin=data)
        assert self.in_image(hvm.SHARED) == data

    def by_ide(self, *texts: bytes) -> None:
        """The guest reads SHARED by emulated IDE; these it has read now, one after the other."""
        self.guest.say("r")
        self.guest.wait_text("^" + "".join(f"boot: has {text_of(text)}\n" for text in texts))


@contextlib.contextmanager
def begun(
    bed: Bed,
    arguments: tuple[str, ...] = (),
    emulator: str = "",
    *,
    disk: str = "hda,w",
    more: tuple[str, ...] = (),
    sectors: dict[int, bytes] | None = None,
    extra: str = "",
) -> Iterator[TwoPaths]:
    """Such a guest, on a VHD that has `sectors` as well, its vdev and mode in `disk`, with `more` disks. `emulator`:
    another than the bed's, with more `arguments`. `extra` is appended to its configuration."""
    bed.run(f"mkdir -p {HOME} && rm -f {LEAF} && vhd-util create -n {LEAF} -s {MEGABYTES}")
    first = line("first")
    tapdisks.write(bed, f"vhd:{LEAF}", {0: hvm.two_paths(), hvm.SHARED: first} | (sectors or {}))
    guest = HvmGuest(bed, "paths", [f"tap2:vhd:{LEAF},{disk}", *more], arguments, hears=True, emulator=emulator, extra=extra)
    try:
        guest.start(create=tapdisks.CREATE)
        guest.wait_text("^boot: begin\n")
        paths = TwoPaths(guest, first)
        paths.by_ide(first)
        yield paths
    finally:
        bed.run(f"xl block-detach 0 {DOM0_DISK} 2>/dev/null", check=False)
        guest.destroy()
        bed.run(f"rm -rf {HOME}")
