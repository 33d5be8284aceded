# SPDX-License-Identifier: LGPL-2.1-only
"""Disks whose gendisk a given transport makes, in a bed without Xen."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lib import tapdisks
from tests.lib.diskload import DiskLoad
from tests.lib.vm import Bed

MODEL = Path(__file__).parent / "bed" / "diskmodel.py"
HOME = "/srv/stock"
# Loading our module fails, as where there is none.
WITHOUT_OURS = "modprobe -r blktap 2>/dev/null; echo 'install blktap /bin/false' > /etc/modprobe.d/test.conf"


@dataclass(frozen=True)
class Stock:
    """A bed, and the transport that its disks are to have."""

    bed: Bed
    transport: str

    def create(self, spec: str, *options: str) -> str:
        """The device of a new disk."""
        command = " ".join((f"tap-ctl create -a {spec} --transport={self.transport}", *options))
        return self.bed.run(command).stdout.strip()

    def image(self, name: str, megabytes: int, depth: int = 1) -> str:
        """A chain whose parents hold something; the leaf's path."""
        path = f"{HOME}/{name}.vhd"
        self.bed.run(f"vhd-util create -n {path} -s {megabytes}")
        for level in range(1, depth):
            device = self.create(f"vhd:{path}")
            self.bed.run(f"dd if=/dev/urandom of={device} bs=64k count=20 seek={7 * level} oflag=direct 2>/dev/null")
            tapdisks.destroy(self.bed, device)
            child = f"{HOME}/{name}.{level}.vhd"
            self.bed.run(f"vhd-util snapshot -n {child} -p {path}")
            path = child
        return path

    def load(self, device: str) -> DiskLoad:
        """Begin to write to it, at random."""
        seed = random.randrange(1 << 31)
        print(f"seed {seed}")
        return DiskLoad(self.bed, device, seed)

    def resend_sooner(self, name: str) -> None:
        """For the test's sake: what waits for an answer of a tapdisk that has gone, goes again in 2 s. Each tapdisk sets it anew."""
        if self.transport != "blktap":  # its disks have no requests of the kernel's queue
            self.bed.run(f"echo 2000 > /sys/block/{name}/queue/io_timeout")

    def kernel_name(self, device: str) -> str:
        """What the device is in /sys/block."""
        return self.bed.run(f"basename $(realpath {device})").stdout.strip()

    def sha256(self, device: str) -> str:
        """Of what is on it."""
        return self.bed.run(f"dd if={device} bs=1M iflag=direct 2>/dev/null | sha256sum").stdout.split()[0]


@contextmanager
def clean(bed: Bed, transport: str) -> Iterator[Stock]:
    """With nothing of tapdisk before and after; without our module, unless it is the transport."""
    ours = transport == "blktap"
    bed.run(f"{'true' if ours else WITHOUT_OURS}; mkdir -p {HOME} /run/xenblk; echo restart=no > /run/xenblk/config")
    bed.put("/root/diskmodel.py", MODEL.read_bytes())
    with tapdisks.clean(bed, tapdisks.NOTHING_LEFT if ours else tapdisks.NO_STOCK_LEFT):
        yield Stock(bed, transport)
        bed.run(f"rm -rf {HOME} /etc/modprobe.d/test.conf /run/xenblk/config")
