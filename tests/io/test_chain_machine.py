# SPDX-License-Identifier: LGPL-2.1-only
"""A disk on a chain of images, whatever is done to both and in whatever order, reads as a model of it says.

docs/testing.md tells how to search for longer and how to repeat a failure.
"""

import contextlib
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import hypothesis.core
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.lib import opinions
from tests.lib.chainfiles import CREATORS, RAW, ChainFiles, created, foreign
from tests.lib.guestbytes import SECTOR, GuestBytes, Op
from tests.lib.nbdguest import Guest, Request
from tests.lib.recordlog import MAGIC, SIZE, read_log
from tests.lib.tapctl import Served
from tests.lib.vhdlog import grows_ahead
from tests.lib.vhdmake import MIB
from tests.lib.waiting import after_a_kill

EXAMPLES = int(os.environ.get("XENBLK_MODEL_EXAMPLES", "30"))
ENOUGH = 30
"""Of so many runs some ask each of the other readers."""
STEPS = int(os.environ.get("XENBLK_MODEL_STEPS", "40"))
SHRINK = os.environ.get("XENBLK_MODEL_SHRINK", "1") != "0"
MOST_IMAGES = 6
STATE_ZERO = 2
BLOCK_SIZES = [4 << 10, 64 << 10, 512 << 10, 2 * MIB]


@dataclass(frozen=True)
class Draft:
    """A request before it is known what disk it goes to: near the border of a block."""

    kind: str
    block: int
    shift: int
    blocks: int
    more: int
    fua: bool
    no_hole: bool

    def op(self, sectors: int, block_sectors: int, number: int) -> Op:
        """For a disk of so many sectors; number: the write's own."""
        start = (self.block * block_sectors + self.shift) % sectors
        # Of small blocks many, of large ones few.
        count = min(self.blocks * block_sectors + self.more, sectors - start)
        fua = self.fua and self.kind in ("write", "zero", "trim")
        if self.kind == "flush":
            return Op("flush")
        return Op(self.kind, start, count, number if self.kind == "write" else 0, fua, self.no_hole)


def drafts(kinds: str) -> st.SearchStrategy[Draft]:
    """Requests of these kinds."""
    return st.builds(
        Draft,
        kind=st.sampled_from(kinds.split()),
        block=st.integers(0, 40),
        shift=st.integers(-9, 9) | st.integers(0, 4095),
        blocks=st.sampled_from([0, 0, 0, 0, 0, 1, 3]),
        more=st.sampled_from([1, 1, 2, 3, 7, 8, 9, 16, 64, 129, 300]),
        fua=st.booleans(),
        no_hole=st.booleans(),
    )


USE = "write write write write zero trim read read flush"
LOADS = st.lists(drafts(USE), min_size=1, max_size=10)
ENGINES = st.sampled_from(["uring", "uring", "posix", "posix", "record"])
LOG_MOST = 64 * MIB
"""A longer log of the record engine is not read any more: each time takes all of it."""
ENDS = st.sampled_from(["pause", "pause", "close", "kill"])
"""How a disk comes to be closed, for what is done to its files."""


class ChainMachine(RuleBasedStateMachine):
    """One disk, its files, and the tapdisk that serves it."""

    files: ChainFiles

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="xenblk-model-"))
        self.log = self.directory / "log"
        self.writes = 1
        self.served: Served | None = None
        self.guest: Guest | None = None

    @initialize(
        kind=st.sampled_from(["foreign", "foreign", "dynamic", "dynamic", "fixed", RAW]),
        megabytes=st.sampled_from([1, 2, 3, 5, 8, 8, 8, 24]),
        odd=st.sampled_from([0, 0, -3, 9]),
        block_size=st.sampled_from(BLOCK_SIZES),
        creator=st.sampled_from(sorted(CREATORS)),
        blocks=st.lists(st.integers(0, 40), max_size=4),
        engine=ENGINES,
    )
    def begin(
        self,
        kind: str,
        megabytes: int,
        odd: int,
        block_size: int,
        creator: bytes,
        blocks: list[int],
        engine: str,
    ) -> None:
        """The root of the chain."""
        path = self.directory / "disk"
        if kind == "foreign":
            root = foreign(path, megabytes * MIB // SECTOR + odd, block_size, creator, tuple(blocks))
        else:
            root = created(path, kind, megabytes)
        self.files = ChainFiles(self.directory, root)
        self.serve(engine)

    # What the steps are made of

    def serve(self, engine: str) -> None:
        """By a new tapdisk."""
        self.log.unlink(missing_ok=True)
        name = f"record:{self.log}:uring" if engine == "record" else engine
        self.served = after_a_kill(lambda: Served(self.directory, self.files.leaf.spec, engine=name))
        self.connect()

    def connect(self) -> None:
        """Anew, since a client keeps the size that it was told."""
        assert self.served
        if self.guest:
            self.guest.close()
        self.guest = Guest(self.served.socket)
        assert self.guest.sectors == self.model.sectors

    @property
    def model(self) -> GuestBytes:
        """Of the guest's disk."""
        return self.files.leaf.holds

    @property
    def disk(self) -> tuple[Served, Guest]:
        """While it is served."""
        assert self.served and self.guest
        return self.served, self.guest

    def ops(self, load: Sequence[Draft]) -> list[Op]:
        """The requests for the disk that is there."""
        self.writes += len(load)
        leaf = self.files.leaf
        number = self.writes
        return [draft.op(self.model.sectors, leaf.block_sectors, number + i) for i, draft in enumerate(load)]

    def logged(self) -> int:
        """Bytes of the record engine's log; 0 if there is none, or it is too long."""
        size = self.log.stat().st_size if self.log.exists() else 0
        return size if size < LOG_MOST else 0

    def judge_durable(self, since: int) -> None:
        """All that tapdisk has done to files since the log had so many bytes is on the medium, but for growth ahead of need."""
        if not (since and self.logged()):
            return
        before = {file.path: len(file.changes) for file in read_log(self.log, since)}
        for file in read_log(self.log):
            for change in file.changes[before.get(file.path, 1) :]:
                durable = change.kind == SIZE or file.durable(change) or grows_ahead(file, change)
                assert durable, f"{file.path}: {change.offset} was not synced"
        opinions.consulted["log"] += 1

    def one(self, op: Op) -> None:
        """A request alone, and what it promises."""
        since = self.logged() if op.fua else min(self.logged(), len(MAGIC))
        [request] = self.disk[1].run([op])
        if op.fua or op.kind == "flush":
            self.judge_durable(since)
        if op.kind == "read":
            self.model.judge(op.start, request.data(), "a read")
        else:
            self.model.apply([op])

    def apply(self, requests: Sequence[Request]) -> None:
        """Judges and notes what has become of requests that were under way together."""
        before = self.model.copy() if any(r.op.kind == "read" for r in requests) else None
        self.model.apply([r.op for r in requests if r.done], [r.op for r in requests if not r.done])
        if before:
            before.under_way(r.op for r in requests)
            for r in requests:
                if r.done and r.op.kind == "read":
                    before.judge(r.op.start, r.data(), "a read beside writes", settle=False)

    def end(self, how: str) -> None:
        """Close the disk. how: "pause", "close" or "kill"."""
        served, guest = self.disk
        if how == "pause":
            served.ok("pause")
            return
        if how == "kill":
            served.kill()
            self.files.leaf.killed = True
        served.__exit__(None, None, None)
        guest.close()
        self.served = self.guest = None

    @contextlib.contextmanager
    def closed(self, how: str, engine: str) -> Iterator[None]:
        """While the disk's files are worked on. Afterwards it is served again."""
        self.end(how)
        yield
        if self.served:
            self.served.ok("unpause", "-a", self.files.leaf.spec)
            self.connect()
        else:
            self.serve(engine)

    # What a guest does

    @rule(load=LOADS)
    def one_by_one(self, load: list[Draft]) -> None:
        """Requests that follow each other."""
        for op in self.ops(load):
            self.one(op)

    @rule(load=LOADS)
    def together(self, load: list[Draft]) -> None:
        """Requests under way at the same time, to the same places too."""
        self.apply(self.disk[1].run(self.ops(load)))

    @rule(draft=drafts("read"))
    def status(self, draft: Draft) -> None:
        """What is said to read as zeros does."""
        [op] = self.ops([draft])
        guest = self.disk[1]
        for start, count, flags in guest.status(op.start, op.count):
            if flags & STATE_ZERO:
                self.model.judge(start, bytes(count * SECTOR), "block status")
        self.model.judge(op.start, guest.read(op.start, op.count), "a read after block status")

    @rule()
    def read_all(self) -> None:
        """The whole disk."""
        self.model.judge_all(self.disk[1].read(0, self.model.sectors), "a read of all")

    # What becomes of tapdisk

    @rule(load=LOADS)
    def pause_under_load(self, load: list[Draft]) -> None:
        """Requests before and while it is paused are answered."""
        served, guest = self.disk
        half = len(load) // 2
        ops = self.ops(load)
        requests = guest.start(ops[:half])
        served.ok("pause")
        requests += guest.start(ops[half:])
        served.ok("unpause")
        guest.wait(requests)
        assert all(r.done for r in requests)
        self.apply(requests)

    @rule(how=st.sampled_from(["pause", "close", "kill"]), engine=ENGINES)
    def reopen(self, how: str, engine: str) -> None:
        """With nothing under way."""
        with self.closed(how, engine):
            pass

    @rule(load=LOADS, answers=st.integers(0, 10), engine=ENGINES)
    def kill_under_load(self, load: list[Draft], answers: int, engine: str) -> None:
        """After some answers; what was not answered may be done in part."""
        served, guest = self.disk
        requests = guest.start(self.ops(load))
        guest.wait(requests, enough=min(answers, len(requests)))
        served.kill()
        guest.wait(requests)
        self.apply(requests)
        self.end("kill")
        self.serve(engine)

    # What an administrator does

    def may_grow(self) -> bool:
        """There is room for another image."""
        return len(self.files.members) < MOST_IMAGES

    def has_parent(self) -> bool:
        """There is something to coalesce."""
        return len(self.files.members) > 1

    def is_vhd(self) -> bool:
        """The leaf is no raw file."""
        return self.files.leaf.kind != RAW

    @precondition(may_grow)
    @precondition(is_vhd)
    @rule(load=LOADS)
    def snapshot_in_use(self, load: list[Draft]) -> None:
        """tap-ctl snapshot while requests are under way: each is in the parent or in the leaf."""
        served, guest = self.disk
        ops = self.ops(load)
        parent = self.files.new_name()
        then = self.model.copy()
        then.under_way(ops)
        requests = guest.start(ops)
        served.ok("snapshot", "-n", parent.name)
        guest.wait(requests)
        assert all(r.done for r in requests)
        self.apply(requests)
        self.files.grew(parent, 2 * MIB, then)

    @precondition(may_grow)
    @rule(how=ENDS, engine=ENGINES, skip_empty=st.booleans(), hide=st.booleans())
    def snapshot(self, how: str, engine: str, skip_empty: bool, hide: bool) -> None:
        """vhd-util snapshot."""
        with self.closed(how, engine):
            self.files.snapshot(skip_empty=skip_empty, hide=hide)

    @precondition(may_grow)
    @rule(how=ENDS, engine=ENGINES, block_size=st.sampled_from(BLOCK_SIZES), creator=st.sampled_from(sorted(CREATORS)))
    def foreign_snapshot(self, how: str, engine: str, block_size: int, creator: bytes) -> None:
        """A child with other blocks than its parent."""
        with self.closed(how, engine):
            self.files.foreign_snapshot(block_size, creator)

    @precondition(has_parent)
    @rule(
        how=ENDS,
        engine=ENGINES,
        number=st.integers(0, MOST_IMAGES),
        take_out=st.booleans(),
        kill_after=st.none() | st.sampled_from([0.005, 0.01, 0.02]),
    )
    def coalesce(self, how: str, engine: str, number: int, take_out: bool, kill_after: float | None) -> None:
        """An image, the leaf too, into its parent; then it is taken out of the chain, or not yet."""
        number %= len(self.files.members) - 1
        with self.closed(how, engine):
            self.files.coalesce(number, kill_after)
            if take_out:
                self.files.take_out(number)

    @rule(how=ENDS, engine=ENGINES, more=st.sampled_from([1, 3, 8]))
    def grow(self, how: str, engine: str, more: int) -> None:
        """While paused, too: unpause sees the new size."""
        megabytes = -(-len(self.model.data) // MIB) + more
        if megabytes > 40:
            return
        with self.closed(how, engine):
            self.files.grow(0, megabytes)

    @precondition(is_vhd)
    @rule(how=st.sampled_from(["close", "kill"]), engine=ENGINES, less=st.integers(0, 5))
    def shrink(self, how: str, engine: str, less: int) -> None:
        """Not below its parent's size."""
        least = -(-len(self.files.members[1].holds.data) // MIB) if self.has_parent() else 1
        megabytes = max(least, len(self.model.data) // MIB - less)
        size = len(self.model.data)
        if megabytes * MIB > size or self.files.leaf.whole_blocks(megabytes) > size > megabytes * MIB:
            return
        with self.closed(how, engine):
            self.files.shrink(megabytes)

    @precondition(is_vhd)
    @rule(how=ENDS, engine=ENGINES)
    def fill(self, how: str, engine: str) -> None:
        """All of the disk into its leaf."""
        with self.closed(how, engine):
            self.files.fill()

    @precondition(has_parent)
    @precondition(is_vhd)
    @rule(how=ENDS, engine=ENGINES)
    def flatten(self, how: str, engine: str) -> None:
        """A copy in place of the chain."""
        with self.closed(how, engine):
            self.files.flatten()

    @rule(how=ENDS, engine=ENGINES)
    def ask_others(self, how: str, engine: str) -> None:
        """Other readers, of the chain's files."""
        with self.closed(how, engine):
            opinions.judge(self.files)

    def teardown(self) -> None:
        """Each run ends with all opinions, unless it has failed already."""
        try:
            if self.served and sys.exc_info()[0] is None:
                self.one(Op("flush"))
                self.read_all()
                self.end("close")
                opinions.judge(self.files)
        finally:
            if self.served:
                self.served.__exit__(*(sys.exc_info() if sys.exc_info()[0] else (AssertionError, None, None)))
            if self.guest:
                self.guest.close()
            shutil.rmtree(self.directory)


@pytest.mark.slow
def test_a_disk_holds_what_its_model_does() -> None:
    number = hypothesis.core.global_force_seed
    if number is None:
        number = random.randrange(1 << 32)
    print(f"--hypothesis-seed={number}")
    opinions.consulted.clear()
    how = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        # How long a step, or drawing it, takes says nothing on a busy machine.
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        print_blob=True,
        derandomize=False,
        # Examples of another tree's bugs.
        database=None,
        phases=[Phase.generate, *([Phase.shrink] if SHRINK else [])],
        report_multiple_bugs=False,
    )
    machine: Callable[[], RuleBasedStateMachine] = seed(number)(ChainMachine)
    run_state_machine_as_test(machine, settings=how)  # type: ignore[no-untyped-call]
    print(dict(opinions.consulted))
    for who in () if EXAMPLES < ENOUGH else ("check", "vhdref", "map", "compare", "libvhdi", "log"):
        assert opinions.consulted[who], f"{who} was never asked"
