# SPDX-License-Identifier: LGPL-2.1-only
"""What a loss of power may leave of an image: what docs/architecture.md promises, at random moments of random work."""

import random
import shutil
from pathlib import Path

import pytest

from tests.lib import vhdutil
from tests.lib.disk import Disk, write_raw
from tests.lib.expected import Expected, random_batch
from tests.lib.faults import Faults
from tests.lib.recordlog import after_power_loss, read_log

MIB = 2048
"""Sectors in a MiB."""
SIZE = 12 * MIB
LOSSES = 8

Moment = tuple[int, list[frozenset[int]]]
"""The log's size, and what a loss may leave until it is larger."""


def make_image(directory: Path, kind: str) -> tuple[Path, Expected]:
    """An image of 12 MiB to write to."""
    leaf = directory / "leaf"
    seeds = {sector: 7 for sector in range(1000, 6000)}
    if kind == "raw":
        write_raw(leaf, SIZE, seeds)
        return leaf, Expected(SIZE, seeds, holds_all=True)
    if kind == "fresh":
        vhdutil.ok("create", "-n", leaf, "-s", 12)
        return leaf, Expected(SIZE)
    parent = directory / "parent"
    vhdutil.ok("create", "-n", parent, "-s", 12)
    with Disk(f"vhd:{parent}") as disk:
        assert set(disk.batch([f"w {start} 1000 7" for start in range(1000, 6000, 1000)])) == {"ok"}
    vhdutil.ok("snapshot", "-n", leaf, "-p", parent)
    return leaf, Expected(SIZE, seeds)


def work(disk: Disk, log: Path, expected: Expected, chance: random.Random, *, faults: bool) -> list[Moment]:
    """Random batches. When each was over and what a loss during the next one may leave."""
    moments = []
    for _ in range(20):
        commands = random_batch(expected, chance, 12)
        before = expected.after_loss
        end = log.stat().st_size
        expected.run(disk, commands, faults=faults)
        # A flush that is under way may not have happened.
        moments.append((end, list(before if commands == ["f"] else expected.after_loss)))
    return moments


def die_once(spec: str, rules: Faults, expected: Expected, chance: random.Random) -> None:
    """Leaves behind what a tapdisk leaves that was killed amid errors, all of it on the medium."""
    rules.set(f"write chance=15 seed={chance.randrange(1 << 30)} errno=EIO")
    disk = Disk(spec, engine=rules.engine())
    for _ in range(3):
        expected.run(disk, random_batch(expected, chance, 6), faults=True)
    disk.crash()
    rules.off()
    expected.all_durable()


def repaired(image: Path) -> bool:
    """Is it clean, or clean after vhd-util repair?"""
    if vhdutil.run("check", "-n", image).returncode:
        vhdutil.run("repair", "-n", image)
    return vhdutil.run("check", "-n", image, "-b").returncode == 0


def judge(kind: str, image: Path, expected: Expected, *, repair: bool) -> None:
    """What tapdisk reads from an image after a loss, and that it can go on with it."""
    if kind != "raw" and repair:
        assert repaired(image)
    with Disk(f"{'aio' if kind == 'raw' else 'vhd'}:{image}") as disk:
        expected.judge_after_loss(disk)
        for start in range(100, SIZE, 4 * MIB):
            expected.run(disk, [expected.write_command(start, 8)])
        expected.run(disk, ["f"])
        expected.check(disk)
    if kind != "raw":
        assert vhdutil.run("check", "-n", image, "-b", "-p").returncode == 0


@pytest.mark.parametrize(
    ("engine", "faults"), [("uring", False), ("uring", True), ("posix", True)], ids=["uring", "uring-faults", "posix-faults"]
)
@pytest.mark.parametrize("kind", ["fresh", "chain", "raw"])
def test_flushed_data_survives_and_the_rest_is_old_or_new(
    tmp_path: Path, kind: str, engine: str, faults: bool
) -> None:
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    chance = random.Random(seed)
    leaf, expected = make_image(tmp_path, kind)
    before, log = tmp_path / "before", tmp_path / "log"
    rules = Faults(tmp_path / "rules")
    die_once(f"{'aio' if kind == 'raw' else 'vhd'}:{leaf}", rules, expected, chance)
    shutil.copyfile(leaf, before)
    if faults:
        rules.set(
            f"write+sync chance=4 seed={seed} errno=EIO reached",
            f"write chance=4 seed={seed + 1} errno=EIO short=512",
            f"any chance=4 seed={seed + 2} errno=EIO",
            f"write chance=4 seed={seed + 3} short=1024",
            f"any chance=10 seed={seed + 4} delay=2",
        )
    disk = Disk(
        f"{'aio' if kind == 'raw' else 'vhd'}:{leaf}", engine=rules.engine(f"record:{log}:{engine}")
    )
    moments = work(disk, log, expected, chance, faults=faults)
    disk.crash()
    for number in range(LOSSES):
        at = chance.randrange(len(moments))
        start, expected.after_loss = moments[at]
        stop = moments[at + 1][0] if at + 1 < len(moments) else log.stat().st_size
        files = read_log(log, chance.randint(start, stop))
        image = tmp_path / "after"
        print(f"{number=} {at=} {start=} {stop=}")
        if files:
            after_power_loss(files[0], before, image, chance)
        else:
            shutil.copyfile(before, image)
        judge(kind, image, expected, repair=chance.random() < 0.5)
