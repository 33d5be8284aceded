# SPDX-License-Identifier: LGPL-2.1-only
"""The kernel path: disks of the blktap driver beside loop, ublk and nbd, over the same disk in a virtual machine's memory."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lib import tapdisks
from tests.lib.qemu import BedSpec
from tests.lib.vm import Bed, BedError
from tests.perf.bench import public, say
from tests.perf.inbed import (
    CLIENT,
    LOADS,
    MIB,
    Load,
    arguments,
    build_client,
    counter,
    null_disk,
    parse,
    system_calls,
    write_all,
)
from tests.perf.results import Results, VmCount, VmRun

MEGABYTES = 64
"""Of a disk: 32 blocks of a VHD."""
BACKINGS = {"file": "a file on ext4", "disk": "a block device"}
CELLS = ("r4k1", "r4k16", "w4k16", "r64k8", "r1m2")
QUICK = ("r4k1", "r4k16")
COUNTED = "r4k16"
SHORT, LONG = 2_000, 10_000
"""Requests of the two runs whose difference is counted."""


@dataclass(frozen=True)
class Way:
    """One way to a disk on a backing."""

    name: str
    kernel_io: str = "no"
    transport: str = ""


TAPDISK = (
    Way("extents", kernel_io="yes"),
    Way("copy"),
    Way("ublk", transport="ublk"),
    Way("nbd", transport="nbd"),
)

DRIVER = ("extents", "copy")
"""The ways by the blktap driver, which counts what it gives to tapdisk."""


def part(release: int) -> str:
    """The part's name in the results."""
    return f"kernel of Debian {release}"


def spec(release: int, by_instructions: bool) -> BedSpec:
    """One CPU that never sleeps: else a request at a time measures only how long a wake-up takes."""
    return BedSpec(
        release=release, xen=False, cpus=1, memory=1536, kernel_args="idle=poll", icount=by_instructions
    )


class Disks:
    """All ways on all backings, made in a bed: the device by backing and way."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.devices: dict[tuple[str, str], str] = {}
        self.absent: list[str] = []

    def make(self) -> None:
        """Make them."""
        bed = self.bed
        bed.run("modprobe blktap; modprobe loop; mkdir -p /srv/bench")
        place = null_disk(bed, "files", 6 * MEGABYTES + 64)
        bed.run(f"mkfs.ext4 -q {place} && mount {place} /srv/bench")
        bed.run(f"dd if=/dev/urandom of=/srv/bench/raw bs=1M count={MEGABYTES} oflag=direct 2>/dev/null")
        raw = null_disk(bed, "raw", MEGABYTES)
        bed.run(f"dd if=/dev/urandom of={raw} bs=1M count={MEGABYTES} oflag=direct 2>/dev/null")
        self.devices["disk", "raw"] = raw
        for backing, path in (("file", "/srv/bench/raw"), ("disk", raw)):
            self.devices[backing, "loop"] = bed.run(f"losetup -f --show --direct-io=on {path}").stdout.strip()
        for way in TAPDISK:
            self._tapdisk(way)

    def _tapdisk(self, way: Way) -> None:
        option = f"--transport={way.transport}" if way.transport else ""
        if option and self.bed.run(f"tap-ctl check {option}", check=False).status:
            self.absent.append(way.transport)
            return
        for backing in BACKINGS:
            if backing == "file":
                path = f"/srv/bench/{way.name}.vhd"
                self.bed.run(f"vhd-util create -n {path} -s {MEGABYTES}")
            else:
                # as on a logical volume
                path = null_disk(self.bed, way.name, MEGABYTES + 16)
                self.bed.run(f"vhd-util create -n {path} -s {MEGABYTES}")
            with tapdisks.configured(self.bed, f"kernel_io={way.kernel_io}"):
                device = self.bed.run(f"tap-ctl create {option} -a vhd:{path}").stdout.strip()
            write_all(self.bed, device, MEGABYTES)
            self.devices[backing, way.name] = device

    def close(self) -> None:
        """End the tapdisks."""
        for device in self.devices.values():
            if "tapdev" in device:
                tapdisks.destroy(self.bed, device)


@contextmanager
def disks(release: int, by_instructions: bool) -> Iterator[Disks]:
    """A bed with all of it."""
    with tempfile.TemporaryDirectory(prefix="xenblk-bench-") as directory:
        client = build_client(Path(directory))
    with Bed(spec(release, by_instructions)) as bed, ExitStack() as stack:
        bed.put(CLIENT, client, mode=0o755)
        made = Disks(bed)
        made.make()
        stack.callback(made.close)
        yield made


def ways(made: Disks, backing: str) -> list[str]:
    """In the order in which they were made."""
    return [name for where, name in made.devices if where == backing]


def measure(
    found: Results, release: int, rounds: int, milliseconds: int, names: Sequence[str], by_instructions: bool
) -> None:
    """All cells, in rounds."""
    start = time.monotonic()
    say(f"{part(release)}: making disks")
    with disks(release, by_instructions) as made:
        for name in made.absent:
            found.notes.append(f"{part(release)}: no transport {name} there, or tapdisk has none")
        found.versions[part(release)] = made.bed.run("uname -r").stdout.strip()
        for number in range(rounds):
            for backing in BACKINGS:
                for name in names:
                    one_cell(found, made, release, number, backing, LOADS[name], milliseconds)
            say(f"{part(release)}: round {number + 1} of {rounds} done, {time.monotonic() - start:.0f} s")
        for backing in BACKINGS:
            for way in ways(made, backing):
                if way not in ("raw", "loop"):
                    found.vm_counts.append(count(made, release, backing, way))


def one_cell(
    found: Results, made: Disks, release: int, number: int, backing: str, load: Load, milliseconds: int
) -> None:
    """Every way once, another one first each round."""
    names = ways(made, backing)
    shift = number % len(names)
    for way in [*names[shift:], *names[:shift]]:
        cell = f"{backing}/{load.name}"
        device = made.devices[backing, way]
        try:
            command = f"{CLIENT} {arguments(device, load, MEGABYTES * MIB, number + 1, milliseconds)}"
            ios, seconds = parse(made.bed.run(command, timeout=600).stdout)
        except (BedError, ValueError) as error:
            found.failures.append(f"{part(release)}: {cell}: {way}: {public(error)}")
            continue
        found.vm_runs.append(VmRun(number, part(release), cell, way, ios, seconds))


def count(made: Disks, release: int, backing: str, way: str) -> VmCount:
    """System calls of tapdisk a request, and how many of the requests it was given."""
    device = made.devices[backing, way]
    load = LOADS[COUNTED]
    calls: list[dict[str, int]] = []
    given = 0
    for ios in (SHORT, LONG):
        command = f"{CLIENT} {arguments(device, load, MEGABYTES * MIB, 1, ios=ios)}"
        before = counter(made.bed, device, "submitted") if way in DRIVER else 0
        calls.append(system_calls(made.bed, device, command))
        given = counter(made.bed, device, "submitted") - before if way in DRIVER else ios
    each = {
        name: max(0, number - calls[0].get(name, 0)) / (LONG - SHORT) for name, number in sorted(calls[1].items())
    }
    return VmCount(
        part(release),
        f"{backing}/{load.name}",
        way,
        round(sum(each.values()), 4),
        round(given / LONG, 4),
        {name: round(value, 4) for name, value in each.items() if value >= 0.001},
    )
