# SPDX-License-Identifier: LGPL-2.1-only
"""Disks in a bed's memory that are slow, or bad, or have another block size: Linux's null_blk."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.lib.toytap import wait_for_output
from tests.lib.vm import Bed, Process

IN_FLIGHT = "awk '{{ print $1 + $2 }}' /sys/block/{}/inflight"


def in_flight(bed: Bed, disk: str) -> int:
    """How many requests a disk has, of reads and writes."""
    return int(bed.run(IN_FLIGHT.format(disk.removeprefix("/dev/"))).stdout)


def start_until_in_flight(bed: Bed, disk: str, command: str, requests: str = " 1$") -> Process:
    """Start a command and wait until a disk has its request: `requests` is what the disk's file `inflight` says then.

    Who looks is in the bed and there first: asked from outside, a busy machine may miss a request of some seconds.
    """
    look = f"until grep -q '{requests}' /sys/block/{disk.removeprefix('/dev/')}/inflight; do sleep 0.02; done; echo in flight"
    process = bed.popen(f"({look}) & {command}; status=$?; wait; exit $status")
    wait_for_output(process, "in flight\n")
    return process


@contextmanager
def null_disk(bed: Bed, **settings: int | str) -> Iterator[str]:
    """Its path. settings: attributes of null_blk; irqmode=2 with completion_nsec makes it slow, badblocks fails reads.

    completion_nsec: less than 5 s, which is all that null_blk gives those who look for partitions.
    """
    directory = "/sys/kernel/config/nullb/bed"
    values: dict[str, int | str] = {"memory_backed": 1, "size": 400, "irqmode": 0}
    values.update(settings)
    writes = "; ".join(f"echo {value} > {directory}/{name}" for name, value in values.items() if name != "badblocks")
    bed.run("modprobe null_blk nr_devices=0; mount -t configfs none /sys/kernel/config 2>/dev/null; true")
    bed.run(f"set -e; mkdir {directory}; {writes}; echo 1 > {directory}/power")
    if "badblocks" in values:
        bed.run(f"echo {values['badblocks']} > {directory}/badblocks")
    name = bed.run("ls /sys/block | grep -x 'nullb.*\\|bed'").stdout.split()[0]
    # a machine that stands still for a while makes no errors
    bed.run(f"echo 60000 > /sys/block/{name}/queue/io_timeout")
    try:
        yield f"/dev/{name}"
    finally:
        bed.run(f"rmdir {directory}")
