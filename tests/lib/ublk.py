# SPDX-License-Identifier: LGPL-2.1-only
"""Disks of the stock kernel's ublk in a bed that has nothing of our driver."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.lib import tapdisks
from tests.lib.vm import Bed

WITHOUT_DRIVER = (
    "rmmod blktap 2>/dev/null; test ! -e /sys/module/blktap || exit 1;"
    " mkdir -p /srv/u /run/xenblk; printf 'transport=ublk\\nrestart=no\\n' > /run/xenblk/config"
)


@dataclass(frozen=True)
class Disk:
    """A disk, the process that serves it and the name that the kernel has for it."""

    bed: Bed
    pid: int
    minor: int

    @property
    def device(self) -> str:
        """The name by which it is used."""
        return f"/dev/xen/blktap-2/tapdev{self.minor}"

    @property
    def name(self) -> str:
        """The kernel's."""
        return f"ublkb{self.minor}"

    @property
    def at(self) -> str:
        """How tap-ctl is told of it."""
        return f"-p {self.pid} -m {self.minor}"

    def attribute(self, name: str) -> str:
        """A file of the disk's in sysfs."""
        return self.bed.run(f"cat /sys/block/{self.name}/{name}").stdout.strip()

    def destroy(self) -> None:
        """End the disk and its tapdisk."""
        self.bed.run(f"tap-ctl destroy {self.at}")


def create(bed: Bed, spec: str, options: str = "") -> Disk:
    """A new disk, in a tapdisk of its own."""
    device = bed.run(f"tap-ctl create -a '{spec}' {options}").stdout.strip()
    minor = int(device.removeprefix("/dev/xen/blktap-2/tapdev"))
    (row,) = json.loads(bed.run(f"tap-ctl list -m {minor} --json").stdout)
    assert row["transport"] == "ublk"
    return Disk(bed, row["pid"], minor)


def taking_over(disk: Disk, spec: str) -> str:
    """The command that gives a dead tapdisk's disk to a new one, and says its pid. The image may be locked a little longer
    than the dead one lived."""
    return (
        f"pid=$(tap-ctl spawn) && tap-ctl attach -p $pid -m {disk.minor} || exit 1;"
        f" for try in 1 2 3 4 5 6 7 8 9 10; do tap-ctl open -p $pid -m {disk.minor} -a '{spec}' && break; done"
        " && echo $pid"
    )


def take_over(disk: Disk, spec: str) -> Disk:
    """A dead tapdisk's disk in a new one."""
    return Disk(disk.bed, int(disk.bed.run(taking_over(disk, spec)).stdout), disk.minor)


@contextmanager
def clean(bed: Bed) -> Iterator[Bed]:
    """Without our driver; holds a test to leaving nothing behind, and removes what it leaves."""
    bed.run(WITHOUT_DRIVER)
    with tapdisks.clean(bed, tapdisks.NO_STOCK_LEFT):
        yield bed
        bed.run("rm -rf /srv/u /run/xenblk/config")
