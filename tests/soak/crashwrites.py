# SPDX-License-Identifier: LGPL-2.1-only
"""Crash states of a disk in use: writes, zeros, discards, flushes, the close, and snapshots meanwhile."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from tests.lib.crashstates import Base, Cuts, State
from tests.lib.disk import Disk
from tests.lib.expected import Batches, Expected, random_batch
from tests.lib.nbddisk import NbdDisk
from tests.lib.programs import RECORDED
from tests.lib.recordlog import read_whole
from tests.lib.tapctl import Served
from tests.lib.vhdlog import recording
from tests.soak.crashbed import MIB_SECTORS, Bed, Look, Loss, Scenario, Shape, differences, random_shape
from tests.soak.statetool import numbers

Allowed = list[frozenset[int]]


@dataclass
class Step:
    """From this size of the log on a power loss or a kill may leave this."""

    size: int
    lost: Allowed
    killed: Allowed
    what: str


class History:
    """A disk's requests, and what may be found of them at each moment."""

    def __init__(self, bed: Bed, expected: Expected, block: int) -> None:
        self.bed, self.expected, self.block = bed, expected, max(block // 512, 1)
        self.steps: list[Step] = []

    def _size(self) -> int:
        return self.bed.log.stat().st_size if self.bed.log.exists() else 0

    def stays(self, what: str) -> None:
        """Something begins that changes nothing of the disk."""
        self.steps.append(Step(self._size(), list(self.expected.after_loss), list(self.expected.now), what))

    def batches(self, disk: Batches, count: int, kinds: str = "wwwwrzd") -> None:
        """Random ones."""
        for _ in range(count):
            commands = random_batch(
                self.expected, self.bed.chance, self.bed.chance.randint(1, 9), kinds, self.block
            )
            size, lost, now = self._size(), self.expected.after_loss, self.expected.now
            now = list(now)
            self.expected.run(disk, commands)
            # A flush that is under way may not have happened.
            lost = list(lost) if commands == ["f"] else list(self.expected.after_loss)
            killed = [a | b for a, b in zip(now, self.expected.now, strict=True)]
            self.steps.append(Step(size, lost, killed, "write"))


@dataclass
class Writes(Scenario):
    """A leaf that was written to. All else of its chain is unchanged."""

    leaf: str
    steps: Sequence[Step]
    moments: Sequence[int]
    """Those of the steps."""

    def _step(self, state: State) -> Step:
        return self.steps[max(bisect.bisect_right(self.moments, state.moment) - 1, 0)]

    def label(self, state: State) -> str:
        """The operation that the state counts for."""
        what = self._step(state).what
        return self.operation if what == "write" else what

    def judge(self, state: State) -> None:
        """As above."""
        look, step = Look(self.bed), self._step(state)
        if self.leaf not in state.files:
            raise Loss(f"{self.leaf} is gone")
        # The parent of a snapshot is only read, and may lack its end.
        look.opens(self.leaf)
        seeds = look.read(self.leaf)
        wrong = differences(seeds, step.killed if state.kind == "killed" else step.lost)
        if wrong:
            raise Loss(f"{self.leaf}: {wrong}")
        look.more(self.leaf, seeds)


def _scenario(bed: Bed, operation: str, leaf: str, before: dict[str, Base], history: History) -> Writes:
    cuts = Cuts(read_whole(bed.log), before, bed.chance)
    others = cuts.changed() - {leaf}
    if others:
        raise Loss(f"{operation} has changed {others}")
    moments = [cuts.moment(step.size) for step in history.steps]
    return Writes(operation, bed, cuts, leaf, history.steps, moments)


def _expected(bed: Bed, leaf: str) -> Expected:
    seeds = dict(enumerate(numbers(bed.read(leaf))))
    expected = Expected(
        len(seeds), seeds, holds_all=not leaf.endswith(".vhd"), holds=bed.holds(leaf) if leaf.endswith(".vhd") else ()
    )
    expected.next_seed = bed.next_seed() + 1000
    return expected


def _leaf(bed: Bed) -> tuple[str, Shape, dict[int, frozenset[int]]]:
    """To write to: seldom a fixed one or a raw one. What an earlier power loss may have left of its sectors."""
    dice = bed.chance.random()
    if dice < 0.08:
        return bed.raw("leaf.img", 700), Shape(700, 0, False), {}
    if dice < 0.16:
        return "leaf.vhd", bed.chain("leaf.vhd", shape=Shape(700, 0, False)), {}
    shape = bed.chain("leaf.vhd")
    return "leaf.vhd", shape, _lose_power(bed, "leaf.vhd", shape) if dice < 0.5 else {}


def _lose_power(bed: Bed, leaf: str, shape: Shape) -> dict[int, frozenset[int]]:
    """Writes to it and makes of all images what a power loss leaves: behind the last block there may be anything. What
    each sector's place may hold then."""
    before = bed.before()
    expected = _expected(bed, leaf)
    disk = Disk(bed.spec(leaf), mode=RECORDED, engine="posix", env=recording(bed.log, bed.work))
    history = History(bed, expected, shape.block)
    history.batches(disk, bed.chance.randint(1, 4), "wwwz")
    disk.crash()
    Cuts(read_whole(bed.log), before, bed.chance).lost().make(bed.work)
    bed.skip_seeds(expected.next_seed)
    left = [frozenset[int]().union(*each) for each in zip(*(step.lost for step in history.steps), strict=True)]
    return dict(enumerate(left))


def writes(bed: Bed, *, uring: bool = False) -> Writes:
    """By tool-disk: with the posix engine, from open to close, or by io_uring under the record engine until a kill."""
    leaf, shape, left = _leaf(bed)
    expected = _expected(bed, leaf)
    expected.left = left
    before = bed.before()
    engine = f"record:{bed.log}:uring" if uring else "posix"
    env = {} if uring else recording(bed.log, bed.work)
    bed.log.unlink(missing_ok=True) if uring else None
    history = History(bed, expected, shape.block)
    history.stays("write")
    disk = Disk(bed.spec(leaf), mode=RECORDED, engine=engine, env=env, requests=bed.chance.choice((2, 8, 64)))
    history.batches(disk, bed.chance.randint(2, 14))
    if uring:
        disk.crash()
    else:
        history.stays("close")
        disk.close()
        # Whoever closes may rely on all of it.
        history.expected.all_durable()
        history.stays("close")
    if not bed.log.exists():
        bed.log.write_bytes(b"")
    return _scenario(bed, "write, io_uring" if uring else "write", leaf, before, history)


def uring_writes(bed: Bed) -> Writes:
    """As above."""
    return writes(bed, uring=True)


def large_blocks(bed: Bed) -> Writes:
    """So many blocks of 2 MiB that the file is extended more than once."""
    sectors = 40 * 2 * MIB_SECTORS
    shape = Shape(sectors, 2 << 20, bed.chance.random() < 0.5)
    bed.image("leaf.vhd", shape, writes=1)
    expected = _expected(bed, "leaf.vhd")
    before = bed.before()
    history = History(bed, expected, shape.block)
    disk = Disk(bed.spec("leaf.vhd"), mode=RECORDED, engine="posix", env=recording(bed.log, bed.work))
    history.stays("write")
    history.batches(disk, 10, "wwww")
    history.stays("close")
    disk.close()
    return _scenario(bed, "write", "leaf.vhd", before, history)


def live_snapshot(bed: Bed) -> Writes:
    """Of a disk that is served, between writes."""
    shape = bed.chain("leaf.vhd", shape=random_shape(bed.chance))
    expected = _expected(bed, "leaf.vhd")
    before = bed.before()
    history = History(bed, expected, shape.block)
    env = recording(bed.log, bed.work)
    control = bed.state.parent
    with Served(control, bed.spec("leaf.vhd"), mode=RECORDED, engine="posix", env=env) as served:
        with NbdDisk(served.socket) as disk:
            for number in range(bed.chance.randint(1, 2)):
                history.batches(disk, bed.chance.randint(1, 4))
                history.stays("live snapshot")
                served.ok("snapshot", "-n", f"parent{number}.vhd")
                expected.new_leaf()
            history.batches(disk, bed.chance.randint(1, 4))
        history.stays("close")
    return _scenario(bed, "write after a live snapshot", "leaf.vhd", before, history)
