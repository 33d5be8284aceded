# SPDX-License-Identifier: LGPL-2.1-only
"""The log that dm-log-writes or QEMU's blklogwrites keeps of a disk's writes, and what of them a power loss leaves.

The log has the format of Linux's dm-log-writes: sectors of 512 bytes, a superblock in the first; then entries, each a
sector with its header, in which a mark has its text, followed by the data, of which a discard has none. QEMU appends an
entry when its request has completed; Linux does so at the next flush, or at once with FUA, so that writes without a
flush come late.
"""

import os
import random
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
MAGIC = 0x6A736677736872
VERSION = 1
# magic, version, number of entries, sector size
SUPER = struct.Struct("<QQQI")
# sector, number of sectors, flags, length of a mark's text
ENTRY = struct.Struct("<QQQQ")
FLUSH, FUA, DISCARD, MARK, METADATA = 1, 2, 4, 8, 16


class LogError(Exception):
    """Not such a log."""


@dataclass(frozen=True)
class Entry:
    """A request: where on the disk, and where its data is in the log; all in bytes."""

    offset: int
    length: int
    flags: int
    data: int
    mark: str = ""


def read_log(path: Path, *, counted: bool = False) -> list[Entry]:
    """The entries so far. The file must have been empty at first, and no request may be under way.

    `counted`: so many as the superblock says. Not of QEMU 7.2, which may write an older one over a newer one.
    """
    entries: list[Entry] = []
    size = path.stat().st_size
    with path.open("rb") as file:
        raw = file.read(SUPER.size)
        if len(raw) < SUPER.size:
            raise LogError(f"{path}: no superblock")
        magic, version, number, sector_size = SUPER.unpack(raw)
        if (magic, version, sector_size) != (MAGIC, VERSION, SECTOR):
            raise LogError(f"{path}: magic {magic:#x}, version {version}, sectors of {sector_size} bytes")
        place = SECTOR
        while place < size and not (counted and len(entries) == number):
            head = os.pread(file.fileno(), SECTOR, place)
            sector, count, flags, text = ENTRY.unpack(head[: ENTRY.size])
            if flags & ~(FLUSH | FUA | DISCARD | MARK | METADATA) or not (flags or count):
                raise LogError(f"{path}: no entry at {place}: {sector=} {count=} flags={flags:#x}")
            place += SECTOR
            mark = head[ENTRY.size :][:text].decode() if flags & MARK else ""
            entries.append(Entry(sector * SECTOR, count * SECTOR, flags, place, mark))
            if not flags & DISCARD:
                place += count * SECTOR
    return entries


def flushed(entries: Sequence[Entry], end: int) -> int:
    """How many of the first `end` entries are on the medium for sure: those before the last flush among them.

    A flush of QEMU's is an entry of its own. With FLUSH on a write, what came before it is flushed, not its own data.
    """
    return next((at for at in range(end - 1, -1, -1) if entries[at].flags & FLUSH), 0)


def survivors(entries: Sequence[Entry], end: int, chance: random.Random) -> list[Entry]:
    """What a power loss after the first `end` entries may leave: all that was flushed, of each write since then
    all, nothing, or some of its sectors."""
    durable = flushed(entries, end)
    kept = list(entries[:durable])
    for entry in entries[durable:end]:
        fate = chance.choice(("kept", "lost", "torn"))
        if fate == "kept" or entry.flags & FUA:
            kept.append(entry)
        elif fate == "torn" and not entry.flags & DISCARD:
            kept += [
                Entry(entry.offset + at, SECTOR, entry.flags, entry.data + at)
                for at in range(0, entry.length, SECTOR)
                if chance.random() < 0.5
            ]
    return kept


def data_of(log: Path, entry: Entry) -> bytes:
    """What the entry writes; what was discarded reads as zeros."""
    if entry.flags & (DISCARD | MARK):
        return bytes(entry.length)
    with log.open("rb") as file:
        data = os.pread(file.fileno(), entry.length, entry.data)
    if len(data) != entry.length:
        raise LogError(f"{log}: ends within the data at {entry.data}")
    return data


def replay(log: Path, entries: Iterable[Entry], disk: Path) -> None:
    """Apply the entries to the disk, in their order."""
    with disk.open("r+b") as target:
        for entry in entries:
            os.pwrite(target.fileno(), data_of(log, entry), entry.offset)
