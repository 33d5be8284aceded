# SPDX-License-Identifier: LGPL-2.1-only
"""Which states are made from a log: all that is possible, and nothing else."""

import itertools
import random
from pathlib import Path

import pytest

from tests.lib.crashstates import ZEROS, Base, Cuts, State
from tests.lib.recordlog import (
    CREATE,
    DONE,
    FILE,
    MAGIC,
    NAMESYNC,
    RECORD,
    RENAME,
    SECTOR,
    SIZE,
    SYNC,
    WRITE,
    read_whole,
)

pytestmark = pytest.mark.unit

A, B, C = (letter * SECTOR for letter in (b"a", b"b", b"c"))


class Writer:
    """Makes a log of file 1, "f", of four sectors, and of files that are created."""

    def __init__(self) -> None:
        self.raw = MAGIC + RECORD.pack(FILE, 1, 0, 0, 1, 4 * SECTOR) + b"f"
        self._numbers = itertools.count()

    def begin(self, kind: int, file: int = 1, sector: int = 0, data: bytes = b"") -> int:
        number = next(self._numbers)
        self.raw += RECORD.pack(kind, file, number, sector * SECTOR, len(data), 0) + data
        return number

    def done(self, kind: int, file: int = 1, sector: int = 0, data: bytes = b"") -> None:
        number = self.begin(kind, file, sector, data)
        self.raw += RECORD.pack(DONE, file, number, 0, 0, len(data) if kind == WRITE else 0)

    def states(self, directory: Path, count: int = 1500) -> list[State]:
        log = directory / "log"
        log.write_bytes(self.raw)
        cuts = Cuts(read_whole(log), {"f": Base(ZEROS * 4, 4 * SECTOR, {})}, random.Random(1))
        return list(itertools.islice(cuts.states(), count))


def text(directory: Path, state: State, name: str = "f") -> str:
    """A letter for each sector, as the file has them; a dot for zeros."""
    state.make(directory)
    data = (directory / name).read_bytes()
    return "".join(chr(data[at]) if data[at] else "." for at in range(0, len(data), SECTOR))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def test_each_sector_of_what_was_not_synced_is_there_or_not(tmp_path: Path, place: Path) -> None:
    log = Writer()
    log.done(WRITE, sector=0, data=A)
    log.done(SYNC)
    log.done(WRITE, sector=1, data=B + B)
    log.done(WRITE, sector=3, data=C)
    states = log.states(tmp_path)
    after = {text(place, state) for state in states if state.moment >= 5}
    assert after == {f"a{b}{d}{c}" for b in "b." for d in "b." for c in "c."}
    assert {text(place, state) for state in states if state.kind == "synced"} == {"a..."}
    assert {text(place, state) for state in states if state.kind == "killed" and state.moment == 9} == {"abbc"}


def test_a_sync_covers_only_what_had_ended_when_it_began(tmp_path: Path, place: Path) -> None:
    log = Writer()
    number = log.begin(WRITE, sector=0, data=A)
    log.done(SYNC)
    log.raw += RECORD.pack(DONE, 1, number, 0, 0, SECTOR)
    assert {text(place, state) for state in log.states(tmp_path)} == {"....", "a..."}


def test_sizes_and_what_lies_behind_them(tmp_path: Path, place: Path) -> None:
    log = Writer()
    log.done(WRITE, sector=3, data=A)
    log.done(SYNC)
    log.raw += RECORD.pack(SIZE, 1, 100, 2 * SECTOR, 0, 0)
    log.done(WRITE, sector=4, data=B)
    after = {text(place, state) for state in log.states(tmp_path) if state.moment >= 7}
    assert after == {"...a", "..", "...ab", "....b"}


def test_names_come_in_their_order_and_data_is_not_theirs(tmp_path: Path, place: Path) -> None:
    log = Writer()
    log.raw += RECORD.pack(CREATE, 2, 90, 0, 3, 0) + b"tmp"
    log.done(WRITE, file=2, sector=0, data=A)
    log.done(RENAME, data=b"tmp\0f")
    states = log.states(tmp_path)
    assert {tuple(sorted(state.files)) for state in states} == {("f",), ("f", "tmp")}
    assert {text(place, state) for state in states if "tmp" not in state.files} == {"....", "a", ""}
    log.done(NAMESYNC)
    last = [state for state in log.states(tmp_path) if state.moment == 8]
    assert {text(place, state) for state in last} == {"a", ""}


def test_far_sectors_of_a_large_file_are_kept(tmp_path: Path, place: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(A)
        file.truncate(100 << 20)
        file.seek(64 << 20)
        file.write(B)
    base = Base.read(path)
    assert (base.size, base.far) == (100 << 20, {(64 << 20) // SECTOR: B})
    log = tmp_path / "log"
    log.write_bytes(MAGIC)
    state = next(Cuts(read_whole(log), {"f": base}, random.Random(1)).states())
    state.make(place)
    assert (place / "f").read_bytes() == path.read_bytes()
