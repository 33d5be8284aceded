# SPDX-License-Identifier: LGPL-2.1-only
"""Disks in a bed's memory that are slow, or bad, or have another block size: Linux's null_blk."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.lib.vm import Bed


IN_FLIGHT = "awk '{{ print $1 + $2 }}' /sys/block/{}/inflight"


def in_flight(bed: Bed, disk: str) -> int:
    """How many requests a disk has, of reads and writes."""
    return int(bed.run(IN_FLIGHT.format(disk.removeprefix("/dev/"))).stdout)


def wait_for_write(bed: Bed, disk: str) -> None:
    """Wait until a disk has one write."""
    bed.wait_for(f"grep -q ' 1$' /sys/block/{disk.removeprefix('/dev/')}/inflight", 30, 0.05)


@contextmanager
def null_disk(bed: Bed, **settings: int | str) -> Iterator[str]:
    """Its path. settings: attributes of null_blk; irqmode=2 with completion_nsec makes it slow, badblocks fails reads."""
    directory = "/sys/kernel/config/nullb/bed"
    values: dict[str, int | str] = {"memory_backed": 1, "size": 400, "irqmode": 0}
    values.update(settings)
    writes = "; ".join(f"echo {value} > {directory}/{name}" for name, value in values.items() if name != "badblocks")
    bed.run("modprobe null_blk nr_devices=0; mount -t configfs none /sys/kernel/config 2>/dev/null; true")
    bed.run(f"set -e; mkdir {directory}; {writes}; echo 1 > {directory}/power")
    if "badblocks" in values:
        bed.run(f"echo {values['badblocks']} > {directory}/badblocks")
    name = bed.run("ls /sys/block | grep -x 'nullb.*\\|bed'").stdout.split()[0]
    try:
        yield f"/dev/{name}"
    finally:
        bed.run(f"rmdir {directory}")
