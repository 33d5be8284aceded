# SPDX-License-Identifier: LGPL-2.1-only
"""The record engine's log: read, cut anywhere, and replayed as a power loss may."""

import random
from pathlib import Path

import pytest

from tests.lib.recordlog import (
    DONE,
    FILE,
    MAGIC,
    PUNCH,
    RECORD,
    SECTOR,
    SIZE,
    SYNC,
    WRITE,
    RecordError,
    after_power_loss,
    read_log,
)

Record = tuple[int, int, int, bytes | int, int]
"""Kind, number of the request, offset in sectors, data (or length in sectors), result in sectors."""


def sectors(letters: str) -> bytes:
    return b"".join(letter.encode() * SECTOR for letter in letters)


def make_log(path: Path, records: list[Record]) -> Path:
    raw = MAGIC + RECORD.pack(FILE, 0, 0, 0, 1, 6 * SECTOR) + b"f"
    for kind, number, offset, data, result in records:
        payload = data if isinstance(data, bytes) else b""
        length = data * SECTOR if isinstance(data, int) else len(data)
        raw += RECORD.pack(kind, 0, number, offset * SECTOR, length, result * SECTOR) + payload
    path.write_bytes(raw)
    return path


def write(number: int, offset: int, letters: str) -> list[Record]:
    return [(WRITE, number, offset, sectors(letters), 0), (DONE, number, 0, 0, len(letters))]


def sync(number: int) -> list[Record]:
    return [(SYNC, number, 0, 0, 0), (DONE, number, 0, 0, 0)]


def outcomes(directory: Path, records: list[Record], end: int | None = None) -> set[str]:
    """What 300 power losses leave of "......": the first letter of each sector, a dot for zeros."""
    log = make_log(directory / "log", records)
    before = directory / "before"
    before.write_bytes(bytes(6 * SECTOR))
    seen = set()
    [file] = read_log(log, end)
    for seed in range(300):
        after_power_loss(file, before, directory / "after", random.Random(seed))
        data = (directory / "after").read_bytes()
        seen.add("".join(chr(data[at]) if data[at] else "." for at in range(0, len(data), SECTOR)))
    return seen


def test_what_was_synced_is_there_and_the_rest_sector_by_sector_or_not(tmp_path: Path) -> None:
    seen = outcomes(tmp_path, [*write(0, 0, "ab"), *sync(1), *write(2, 1, "BC")])
    assert seen == {f"a{b}{c}..." for b in "bB" for c in ".C"}


def test_a_sync_covers_only_what_was_over_when_it_began(tmp_path: Path) -> None:
    begun, ended = write(0, 0, "a")
    assert outcomes(tmp_path, [begun, (SYNC, 1, 0, 0, 0), ended, (DONE, 1, 0, 0, 0)]) == {"a.....", "......"}


def test_a_sync_that_is_not_over_or_failed_promises_nothing(tmp_path: Path) -> None:
    for rest in ([sync(1)[0]], [sync(1)[0], (DONE, 1, 0, 0, -1)]):
        assert outcomes(tmp_path, [*write(0, 0, "a"), *rest]) == {"a.....", "......"}


def test_a_write_that_failed_may_be_there_and_of_a_short_one_the_start_is(tmp_path: Path) -> None:
    failed, short = write(0, 0, "a")[0], write(1, 2, "cd")[0]
    records = [failed, (DONE, 0, 0, 0, -1), short, (DONE, 1, 0, 0, 1), *sync(2)]
    assert outcomes(tmp_path, records) == {f"{a}.c{d}.." for a in ".a" for d in ".d"}


def test_writes_under_way_at_once_happen_in_any_order_and_others_in_theirs(tmp_path: Path) -> None:
    (first, first_done), (second, second_done) = write(0, 0, "a"), write(1, 0, "b")
    assert outcomes(tmp_path, [first, second, first_done, second_done, *sync(2)]) == {"a.....", "b....."}
    assert outcomes(tmp_path, [first, first_done, second, second_done, *sync(2)]) == {"b....."}


def test_a_hole_is_zeros_and_a_cut_cuts(tmp_path: Path) -> None:
    punch: list[Record] = [(PUNCH, 2, 1, 9, 0), (DONE, 2, 0, 0, 0)]
    assert outcomes(tmp_path, [*write(0, 0, "abcdef"), *sync(1), *punch, *sync(3)]) == {"a....."}
    cut: Record = (SIZE, 0, 2, 0, 0)
    assert outcomes(tmp_path, [*write(0, 0, "abcdef"), *sync(1), cut]) == {"abcdef", "ab"}
    assert outcomes(tmp_path, [*write(0, 0, "abcdef"), *sync(1), cut, *sync(3)]) == {"ab"}


def test_a_cut_before_the_first_request_is_seen(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log", sync(0))
    (tmp_path / "before").write_bytes(sectors("abcdefgh"))
    after_power_loss(read_log(log)[0], tmp_path / "before", tmp_path / "after", random.Random(1))
    assert (tmp_path / "after").read_bytes() == sectors("abcdef")


def test_a_log_may_end_anywhere(tmp_path: Path) -> None:
    records = [*write(0, 0, "ab"), *sync(1)]
    size = make_log(tmp_path / "log", records).stat().st_size
    start = len(MAGIC) + RECORD.size + 1
    assert {frozenset(outcomes(tmp_path, records, end)) for end in range(start, start + 100, 9)} == {
        frozenset({"......"})
    }
    assert outcomes(tmp_path, records, size - 1) > {"ab....", "......"}
    assert outcomes(tmp_path, records, size) == {"ab...."}


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"something else")
    with pytest.raises(RecordError, match="does not begin"):
        read_log(tmp_path / "log")
    (tmp_path / "log").write_bytes(MAGIC + RECORD.pack(99, 0, 0, 0, 0, 0))
    with pytest.raises(RecordError, match="kind 99"):
        read_log(tmp_path / "log")
