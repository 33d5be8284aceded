# SPDX-License-Identifier: LGPL-2.1-only
"""A power loss on a real file system: ext4 on dm-log-writes, whose log is cut at flushes and in between.

What the disk held at each cut is made from the log; ext4's journal is replayed, the files are taken out, and the images
are held against the write contract.
"""

import random
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lib import logwrites, tapdisks
from tests.lib.beds import Beds
from tests.lib.disk import pattern
from tests.lib.logwrites import DISCARD, FLUSH, MARK, Entry
from tests.lib.qemu import Disk
from tests.lib.vm import Bed
from tests.soak.statetool import StateTool, ToolError, numbers

MEGABYTES, LARGER = 24, 300
SECTORS = MEGABYTES * 2048
STATES = 60
AT = "/srv/logged"

# Nothing but a sync makes ext4 commit.
SETUP = f"""
modprobe dm-log-writes && modprobe ext4
echo "0 $(blockdev --getsz /dev/vdb) log-writes /dev/vdb /dev/vdc" | dmsetup create --noudevsync logged
dmsetup mknodes
mkfs.ext4 -q -E nodiscard /dev/mapper/logged
mkdir -p {AT} && mount -o commit=600 /dev/mapper/logged {AT}
"""
TEARDOWN = f"umount {AT} && dmsetup remove --noudevsync logged && sync"

Extent = tuple[int, int]
"""First sector, number of sectors. A block has 4096."""
BASE: list[Extent] = [(100, 64), (5000, 200), (9000, 8), (20500, 40)]
UNSYNCED: list[Extent] = [(120, 7), (5100, 16), (30000, 64)]
LEAF: list[Extent] = [(5050, 20), (30000, 100), (110, 3), (9001, 1)]
LEAF_UNSYNCED: list[Extent] = [(30050, 1), (30900, 9), (12300, 64)]
NEW_LEAF: list[Extent] = [(5060, 33), (40000, 200), (101, 1)]


@dataclass
class Phase:
    """From a mark in the log to the next one."""

    sure: dict[str, dict[int, int]] = field(default_factory=dict)
    """The images that must be there, with the seeds of their sectors; others are zeros."""
    may: dict[str, dict[int, set[int]]] = field(default_factory=dict)
    """What else their sectors may hold."""
    new: dict[str, dict[int, int]] = field(default_factory=dict)
    """Those that are not there, or are whole."""
    resizing: str = ""


class Work:
    """What is done in the bed, and what is expected of it after each mark."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.phases: list[Phase] = []
        self._seed = 0

    def mark(self, phase: Phase) -> None:
        """The phase begins."""
        self.bed.run(f"dmsetup message logged 0 mark phase-{len(self.phases)}")
        self.phases.append(phase)

    def write(self, device: str, extents: Iterable[Extent], *, sync: bool) -> dict[int, int]:
        """Writes each extent at once; the seeds."""
        self._seed += 1
        seeds: dict[int, int] = {}
        for start, count in extents:
            data = b"".join(pattern(sector, self._seed) for sector in range(start, start + count))
            self.bed.put(f"/root/data.{start}", data)
            seeds |= dict.fromkeys(range(start, start + count), self._seed)
        self.bed.run(
            "for file in /root/data.*; do dd if=$file of=" + device + " bs=1M seek=$((${file##*.} * 512))"
            " oflag=direct,seek_bytes conv=notrunc status=none || exit 1; rm $file; done"
            + (f"; dd if=/dev/null of={device} conv=notrunc,fsync status=none" if sync else "")
        )
        return seeds

    def plans(self, extents: Iterable[Extent], *, held: dict[int, int] | None = None) -> dict[int, set[int]]:
        """What the next write may leave: its seed, or zeros where the leaf holds nothing."""
        return {
            sector: {self._seed + 1} | (set() if sector in (held or {}) else {0})
            for start, count in extents
            for sector in range(start, start + count)
        }


def run(bed: Bed) -> list[Phase]:
    """All that is done: each step between two marks, the last of which has nothing after it."""
    work = Work(bed)
    base, leaf, middle = "base.vhd", "leaf.vhd", "middle.vhd"
    work.mark(Phase(new={base: {}}))
    bed.run(f"vhd-util create -n {AT}/{base} -s {MEGABYTES}")
    work.mark(Phase({base: {}}, {base: work.plans(BASE)}))
    disk = tapdisks.create(bed, f"vhd:{AT}/{base}")
    seeds = work.write(disk, BASE, sync=True)
    work.mark(Phase({base: seeds}, {base: work.plans(UNSYNCED, held=seeds)}))
    seeds = seeds | work.write(disk, UNSYNCED, sync=False)
    tapdisks.destroy(bed, disk)
    work.mark(Phase({base: seeds}, new={leaf: seeds}))
    bed.run(f"vhd-util snapshot -n {AT}/{leaf} -p {AT}/{base}")
    work.mark(Phase({base: seeds, leaf: seeds}, {leaf: work.plans(LEAF)}))
    disk = tapdisks.create(bed, f"vhd:{AT}/{leaf}")
    own = work.write(disk, LEAF, sync=True)
    work.mark(Phase({base: seeds, leaf: seeds | own}, {leaf: work.plans(LEAF_UNSYNCED, held=own)}))
    own |= work.write(disk, LEAF_UNSYNCED, sync=False)
    [served] = tapdisks.served(bed)
    bed.run(f"tap-ctl snapshot -p {served.pid} -m {served.minor} -n {middle}")
    whole = seeds | own
    work.mark(Phase({base: seeds, middle: whole, leaf: whole}, {leaf: work.plans(NEW_LEAF)}))
    last = whole | work.write(disk, NEW_LEAF, sync=True)
    tapdisks.destroy(bed, disk)
    merging = {sector: {seed} for sector, seed in own.items()}
    work.mark(Phase({base: seeds, middle: whole, leaf: last}, {base: merging}))
    bed.run(f"vhd-util coalesce -n {AT}/{middle}")
    work.mark(Phase({base: whole, middle: whole, leaf: last}, resizing=leaf))
    bed.run(f"vhd-util resize -n {AT}/{leaf} -s {LARGER}")
    work.mark(Phase({base: whole, middle: whole, leaf: last}, resizing=leaf))
    return work.phases


class Files:
    """What a disk's ext4 holds once its journal is replayed."""

    def __init__(self, directory: Path, tool: StateTool) -> None:
        self.disk, self.directory, self.tool = directory / "cut.raw", directory / "files", tool

    def take_out(self) -> None:
        """Of the disk into the directory."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()
        done = subprocess.run(["e2fsck", "-fy", self.disk], capture_output=True, text=True, check=False)
        # 1: what was mended, as sizes of files that were cut off.
        assert done.returncode in (0, 1), f"{done.returncode}: {done.stdout}"
        command: list[str | Path] = ["debugfs", "-R", f"rdump / {self.directory}", self.disk]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def judge(self, name: str, phase: Phase, seeds: dict[int, int]) -> None:
        """One image."""
        path = self.directory / name
        try:
            self.tool.ask("check", path)
        except ToolError:
            self.tool.ask("repair", path)
            self.tool.ask("check", path)
        found = numbers(self.tool.read(f"vhd:{path}"))
        sizes = {SECTORS, LARGER * 2048} if phase.resizing == name else {SECTORS}
        assert len(found) in sizes, f"{name}: {len(found)} sectors"
        may = phase.may.get(name, {})
        wrong = [
            (sector, seed)
            for sector, seed in enumerate(found)
            if seed != seeds.get(sector, 0) and seed not in may.get(sector, ())
        ]
        assert not wrong, f"{name}: {len(wrong)} wrong sectors: {wrong[:5]}"

    def judge_all(self, phase: Phase) -> None:
        """All images of the phase."""
        for name, seeds in phase.sure.items():
            assert (self.directory / name).exists(), f"{name} is gone"
            self.judge(name, phase, seeds)
        for name, seeds in phase.new.items():
            if (self.directory / name).exists():
                self.judge(name, phase, seeds)


def cuts(entries: list[Entry], chance: random.Random) -> list[tuple[int, bool]]:
    """Numbers of entries, and whether all before that is to be there: after the first mark each flush, or some of them
    if there are too many, and moments in between with a part of what was not flushed."""
    first = next(number for number, entry in enumerate(entries) if entry.flags & MARK)
    flushes = [number + 1 for number in range(first, len(entries)) if entries[number].flags & FLUSH]
    chosen = sorted(chance.sample(flushes, min(len(flushes), STATES // 2)))
    between = [chance.randint(first + 1, len(entries)) for _ in range(STATES // 2)]
    return [(number, True) for number in chosen] + [(number, False) for number in between]


@pytest.mark.slow
def test_images_on_ext4_survive_a_power_loss_at_any_flush(beds: Beds, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    disk, log = Disk(tmp_path / "disk.raw", size=192 << 20), Disk(tmp_path / "log.raw", size=2 << 30)
    bed = beds.fresh(xen=False, disks=(disk, log))
    with tapdisks.clean(bed):
        bed.run(SETUP)
        phases = run(bed)
        bed.run(TEARDOWN)
    bed.stop()
    beds.expect_loss(bed)
    entries = logwrites.read_log(log.path, counted=True)
    marks = [number for number, entry in enumerate(entries) if entry.mark.startswith("phase-")]
    assert len(marks) == len(phases)
    chance = random.Random(seed)
    judged = set()
    with StateTool(tmp_path) as tool:
        files = Files(tmp_path, tool)
        for end, whole in cuts(entries, chance):
            number = sum(mark < end for mark in marks) - 1
            kept = entries[:end] if whole else logwrites.survivors(entries, end, chance)
            with files.disk.open("wb") as file:
                file.truncate(disk.size)
            logwrites.replay(log.path, [entry for entry in kept if not entry.flags & (DISCARD | MARK)], files.disk)
            print(f"phase {number}, {end} of {len(entries)} entries, {'all' if whole else 'a part'}", flush=True)
            files.take_out()
            files.judge_all(phases[number])
            judged.add(number)
    print(f"{len(judged)} phases of {len(phases)}")
    assert len(judged) >= len(phases) // 2
    for path in (disk.path, log.path, files.disk):
        path.unlink()
