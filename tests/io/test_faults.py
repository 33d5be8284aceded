# SPDX-License-Identifier: LGPL-2.1-only
"""I/O that fails, falls short, is late or is stuck: no request is lost, or answered with wrong data."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lib import vhdref, vhdutil
from tests.lib.disk import Disk, pattern, write_raw
from tests.lib.expected import Batches, Expected, random_batch
from tests.lib.faults import Faults

MIB = 2048
"""Sectors in a MiB."""
SIZE = 12 * MIB
ENGINES = ["uring", "posix"]
KINDS = ["fresh", "chain", "raw"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_block_that_was_given_up_stays_away(tmp_path: Path, engine: str) -> None:
    """Its first write failed, though the medium has it: what was read since, flushed and discarded is there after a close."""
    path = tmp_path / "a.vhd"
    vhdutil.ok("create", "-n", path, "-s", 6)
    rules = Faults(tmp_path / "rules")
    with Disk(f"vhd:{path}", engine=rules.engine(engine)) as disk:
        rules.set("write from=1536 to=4096 errno=EIO reached")
        assert disk.batch(["w 0 4 9"]) == ["err 5"]
        rules.off()
        assert disk.flush() == "ok" and disk.read(0, 4) == [0] * 4
        assert disk.discard(0, 4) == "ok" and disk.flush() == "ok"
    with Disk(f"vhd:{path}") as disk:
        assert disk.read(0, 4) == [0] * 4


class Image:
    """An image of 12 MiB that may be made anew, and what it holds."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.kind = kind
        self.leaf = directory / "leaf"
        self.parent = directory / "parent"
        self.expected = Expected(SIZE)
        if kind == "chain":
            vhdutil.ok("create", "-n", self.parent, "-s", 12)
            with Disk(f"vhd:{self.parent}") as disk:
                assert set(disk.batch([f"w {start} 1000 7" for start in range(1000, 6000, 1000)])) == {"ok"}
        self.make()

    def make(self) -> None:
        """A new one; after the first time a copy of that."""
        seeds = {} if self.kind == "fresh" else dict.fromkeys(range(1000, 6000), 7)
        self.expected = Expected(SIZE, seeds)
        pristine = self.leaf.with_name("pristine")
        if pristine.exists():
            shutil.copyfile(pristine, self.leaf)
            return
        if self.kind == "raw":
            write_raw(self.leaf, SIZE, seeds)
        elif self.kind == "fresh":
            vhdutil.ok("create", "-n", self.leaf, "-s", 12)
        else:
            vhdutil.ok("snapshot", "-n", self.leaf, "-p", self.parent)
        shutil.copyfile(self.leaf, pristine)

    def open(self, engine: str) -> Disk:
        """On this engine."""
        return Disk(f"{'aio' if self.kind == 'raw' else 'vhd'}:{self.leaf}", engine=engine)

    def check(self, *, surplus: bool = False) -> None:
        """After it was closed: valid, and holding what it should, by another reader. `surplus`: may be too long."""
        if self.kind == "raw":
            data = self.leaf.read_bytes()
        else:
            result = vhdutil.run("check", "-n", self.leaf, "-b", "-p")
            assert (result.returncode, surplus or result.stderr) == (0, surplus or b""), result.stderr.decode()
            data = vhdref.Chain(self.leaf).read(0, SIZE * 512)
        for sector, seeds in enumerate(self.expected.now):
            got = data[sector * 512 : sector * 512 + 512]
            assert got in [pattern(sector, seed) if seed else bytes(512) for seed in seeds], f"{sector=} {seeds=}"


# A bit of everything: new blocks, one of them by several requests, a border, what is there, a parent's sectors.
WORK: list[list[str]] = [
    ["w 10 8", "w 200 3", "r 1000 8", "w 4090 12"],
    ["f"],
    ["w 10 8", "r 200 3", "w 1500 1", "w 9000 300"],
    ["r 4090 12", "w 12 1", "r 9000 300", "w 16384 64", "r 5999 2"],
    ["z 1500 8", "d 9100 64", "z 20000 40", "r 4090 12"],
    ["f"],
]


def work(disk: Disk, expected: Expected, *, faults: bool) -> list[str]:
    """Does it; the commands that failed."""
    failed = []
    for batch in WORK:
        commands = []
        for command in batch:
            words = command.split()
            commands.append(expected.write_command(int(words[1]), int(words[2])) if words[0] == "w" else command)
        answers = expected.run(disk, commands, faults=faults)
        failed += [c for c, answer in zip(commands, answers, strict=True) if answer.startswith("err")]
    return failed


EFFECTS = [
    "errno=EIO",
    "errno=ENOSPC reached",
    "errno=EIO short=512",
    "short=512",
    "errno=EAGAIN",
    "delay=5",
]


@pytest.mark.parametrize("kind", KINDS)
def test_each_single_fault_is_survived(tmp_path: Path, kind: str) -> None:
    """The n-th transfer of some work meets a fault, for each n and one effect after the other: no more fails than that
    explains, what comes after goes well, and the failed command can be repeated."""
    image = Image(tmp_path, kind)
    rules = Faults(tmp_path / "rules")
    hit = failures = 0
    n = 0
    while hit == n:
        effect, engine = EFFECTS[n % len(EFFECTS)], ENGINES[n // len(EFFECTS) % 2]
        print(f"{n=} {effect=} {engine=}")
        image.make()
        rules.set(f"any after={n} times=1 {effect}")
        with image.open(rules.engine(engine)) as disk:
            failed = work(disk, image.expected, faults="errno" in effect and "EAGAIN" not in effect)
            hit += len(rules.take_hits())
            failures += bool(failed)
            rules.off()
            if failed:
                image.expected.run(disk, [c for c in failed if c != "f"])
            image.expected.run(disk, ["f"])
            image.expected.check(disk)
        image.check()
        n += 1
    assert n > 12 and failures > n // 3


Choose = Callable[[int], list[str]]
RANDOM: dict[str, Choose] = {
    "errors": lambda seed: [
        f"write chance=8 seed={seed} errno=EIO",
        f"write chance=4 seed={seed + 1} errno=ENOSPC reached",
        f"write chance=4 seed={seed + 2} errno=EIO short=512",
        f"any chance=8 seed={seed + 3} errno=EIO",
    ],
    "slow and short": lambda seed: [
        f"any chance=30 seed={seed} delay=3",
        f"read+write chance=40 seed={seed + 1} short=512",
        f"any chance=20 seed={seed + 2} errno=EINTR",
        f"punch+zero chance=30 seed={seed + 3} errno=EOPNOTSUPP",
    ],
    "all": lambda seed: [
        f"write chance=6 seed={seed} errno=EIO delay=3",
        f"any chance=6 seed={seed + 1} errno=EIO",
        f"read+write chance=20 seed={seed + 2} short=1024 delay=1",
        f"any chance=15 seed={seed + 3} delay=3",
    ],
}


def settle(expected: Expected, disk: Batches, rules: Faults, *, errors: bool) -> list[str]:
    """The end of faults, `errors` or mere delays, after which all goes well. What was hit.

    A sync of the image's own that failed, as when the file grows, is told by the next flush, and by that alone.
    """
    rules.off()
    hits = rules.take_hits()
    [told] = expected.run(disk, ["f"], faults=errors)
    assert told == "ok" or any(hit.startswith("sync ") for hit in hits), f"{told}: {hits}"
    expected.run(disk, ["f"])
    expected.check(disk)
    return hits


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("faults", list(RANDOM))
@pytest.mark.parametrize("kind", KINDS)
def test_random_work_amid_random_faults(tmp_path: Path, kind: str, faults: str, engine: str) -> None:
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    chance = random.Random(seed)
    image = Image(tmp_path, kind)
    rules = Faults(tmp_path / "rules")
    errors = faults != "slow and short"
    hits: list[str] = []
    with image.open(rules.engine(engine)) as disk:
        for turn in range(3):
            rules.set(*RANDOM[faults](seed + turn))
            for _ in range(8):
                image.expected.run(disk, random_batch(image.expected, chance, 12), faults=errors)
            hits += settle(image.expected, disk, rules, errors=errors)
    assert len(hits) > 10
    image.check()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", ["read errno=EIO", "write errno=ENOSPC", "sync errno=EIO", "any errno=EIO"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fails_for_a_while_comes_back(tmp_path: Path, kind: str, rule: str, engine: str) -> None:
    """All of one kind fails, until the test ends that; nothing that was acknowledged is lost."""
    image = Image(tmp_path, kind)
    rules = Faults(tmp_path / "rules")
    with image.open(rules.engine(engine)) as disk:
        work(disk, image.expected, faults=False)
        rules.set(rule)
        for _ in range(3):
            assert work(disk, image.expected, faults=True)
        rules.off()
        assert not work(disk, image.expected, faults=False)
        image.expected.check(disk)
    image.check()
