# SPDX-License-Identifier: LGPL-2.1-only
"""The log of a disk's writes: read, cut at a flush, sampled, replayed."""

import random
import subprocess
from pathlib import Path

import pytest

from tests.lib.logwrites import (
    DISCARD,
    ENTRY,
    FLUSH,
    FUA,
    MAGIC,
    MARK,
    SECTOR,
    SUPER,
    LogError,
    flushed,
    read_log,
    replay,
    survivors,
)

Written = tuple[int, bytes, int]
"""Sector, data, flags."""


def make_log(path: Path, entries: list[Written], magic: int = MAGIC, junk: bytes = b"") -> Path:
    """A log as the format describes it; the count in the superblock is an old one."""
    raw = SUPER.pack(magic, 1, 0, SECTOR).ljust(SECTOR, b"\0")
    for sector, data, flags in entries:
        if flags & MARK:
            raw += (ENTRY.pack(0, 0, flags, len(data)) + data).ljust(SECTOR, b"\0")
            continue
        raw += ENTRY.pack(sector, len(data) // SECTOR, flags, 0).ljust(SECTOR, b"\0")
        raw += b"" if flags & DISCARD else data
    path.write_bytes(raw + junk)
    return path


def sectors(letters: str) -> bytes:
    """A sector full of each letter."""
    return b"".join(letter.encode() * SECTOR for letter in letters)


def letters(path: Path) -> str:
    """The first letter of each sector, a dot for zeros."""
    data = path.read_bytes()
    return "".join(chr(data[at]) if data[at] else "." for at in range(0, len(data), SECTOR))


def disk(path: Path, count: int = 6) -> Path:
    path.write_bytes(bytes(count * SECTOR))
    return path


SOME = [
    (0, sectors("abcd"), 0),
    (0, b"", FLUSH),
    (1, sectors("B"), 0),
    (4, sectors("e"), FUA),
    (2, sectors("CD"), 0),
]


def test_the_whole_log_gives_the_disk(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log", SOME)
    target = disk(tmp_path / "disk")
    replay(log, read_log(log), target)
    assert letters(target) == "aBCDe."


def test_a_flush_makes_durable_what_came_before_it(tmp_path: Path) -> None:
    entries = read_log(make_log(tmp_path / "log", [*SOME, (0, b"", FLUSH), (5, sectors("f"), 0)]))
    assert [flushed(entries, end) for end in range(len(entries) + 1)] == [0, 0, 1, 1, 1, 1, 5, 5]


def test_a_write_that_flushes_first_is_not_flushed_itself(tmp_path: Path) -> None:
    entries = read_log(make_log(tmp_path / "log", [(0, sectors("a"), 0), (1, sectors("b"), FLUSH)]))
    assert flushed(entries, 2) == 1


def test_a_discard_reads_as_zeros_and_a_mark_is_no_write(tmp_path: Path) -> None:
    log = make_log(
        tmp_path / "log",
        [(0, sectors("abcd"), 0), (1, sectors("xx"), DISCARD), (0, b"now", MARK), (5, sectors("f"), 0)],
    )
    target = disk(tmp_path / "disk")
    entries = read_log(log)
    replay(log, entries, target)
    assert letters(target) == "a..d.f"
    assert [entry.mark for entry in entries] == ["", "", "now", ""]


def test_the_log_that_qemu_writes_is_read(tmp_path: Path) -> None:
    log, target, image = tmp_path / "log", disk(tmp_path / "disk", 16), disk(tmp_path / "image", 16)
    log.touch()
    options = f"driver=blklogwrites,file.driver=file,file.filename={image},log.driver=file,log.filename={log}"
    commands = ["write -P 0x61 0 2k", "flush", "aio_write -P 0x62 1k 1k", "aio_write -P 0x63 4k 1k", "aio_flush"]
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "--image-opts", options + ",log-sector-size=512", *words], check=True)
    entries = read_log(log)
    assert [(entry.offset, entry.length, entry.flags) for entry in entries[:2]] == [(0, 2048, 0), (0, 0, FLUSH)]
    assert flushed(entries, 4) == 1
    replay(log, entries, target)
    assert letters(target) == letters(image) == "aabb....cc......"


def test_samples_keep_what_was_flushed_and_each_later_sector_old_or_new(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log", SOME)
    entries = read_log(log)
    seen = set()
    for seed in range(200):
        target = disk(tmp_path / "disk")
        replay(log, survivors(entries, len(entries), random.Random(seed)), target)
        seen.add(letters(target))
    # The write with FUA is always kept; the others are two sectors of one write and one of another.
    assert seen == {f"a{b}{c}{d}e." for b in "bB" for c in "cC" for d in "dD"}


def test_a_sample_has_nothing_after_the_moment_of_the_loss(tmp_path: Path) -> None:
    entries = read_log(make_log(tmp_path / "log", SOME))
    for seed in range(20):
        assert all(kept.offset < 4 * SECTOR for kept in survivors(entries, 3, random.Random(seed)))


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"short")
    with pytest.raises(LogError, match="no superblock"):
        read_log(tmp_path / "short")
    with pytest.raises(LogError, match="magic"):
        read_log(make_log(tmp_path / "other", SOME, magic=1))
    for junk in (sectors("j"), bytes(SECTOR)):
        with pytest.raises(LogError, match="no entry at"):
            read_log(make_log(tmp_path / "junk", SOME, junk=junk))


def test_data_that_the_log_lacks_is_an_error(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log", SOME)
    entries = read_log(log)
    with log.open("r+b") as file:
        file.truncate(entries[-1].data + SECTOR)
    with pytest.raises(LogError, match="ends within"):
        replay(log, entries, disk(tmp_path / "disk"))
