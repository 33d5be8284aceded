# SPDX-License-Identifier: LGPL-2.1-only
"""The log of the record engine (tapdisk-c/io/record.c) or of tapdisk-c/tests/preload-record.c, and what of it a power
loss leaves in the files."""

import os
import random
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path

MAGIC = b"xenblk-record-1\n"
RECORD = struct.Struct("<IIQQQq")
FILE, WRITE, PUNCH, ZERO, SYNC, DONE, SIZE, CREATE, RENAME, LINK, UNLINK, NAMESYNC = range(1, 13)
WITH_PAYLOAD = (FILE, WRITE, CREATE, RENAME, LINK, UNLINK)
SECTOR = 512


class RecordError(Exception):
    """Not such a log."""


@dataclass
class Change:
    """What has been done to a file, between two moments: numbers of the log's records."""

    kind: int
    offset: int
    length: int
    data: bytes
    begun: int
    ended: int | None = None
    result: int = 0


@dataclass
class Recorded:
    """One file: its changes and its syncs, in the order in which they began."""

    path: Path
    changes: list[Change] = field(default_factory=list)
    syncs: list[Change] = field(default_factory=list)
    created: bool = False

    def durable(self, change: Change) -> bool:
        """Is it on the medium for sure?"""
        if change.ended is None or change.result < 0:
            return False
        return any(
            sync.begun > change.ended and sync.ended is not None and sync.result == 0 for sync in self.syncs
        )


@dataclass
class NameChange:
    """What has been done to names in the directory. CREATE has the file, RENAME and LINK both names."""

    kind: int
    old: str
    new: str
    begun: int
    ended: int | None = None
    result: int = 0
    file: Recorded | None = None


@dataclass
class Log:
    """All of a log. Moments are numbers of records, from 1; ends[moment - 1] is where in the log its record ends."""

    files: list[Recorded] = field(default_factory=list)
    names: list[NameChange] = field(default_factory=list)
    name_syncs: list[NameChange] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


class _Reader:
    """Takes the records one by one."""

    def __init__(self) -> None:
        self.log = Log()
        self._files: dict[int, Recorded] = {}
        self._running: dict[int, Change | NameChange] = {}

    def _file(self, number: int) -> Recorded:
        if number not in self._files:
            self._files[number] = Recorded(Path())
            self.log.files.append(self._files[number])
        return self._files[number]

    def _name(self, kind: int, number: int, payload: bytes, moment: int) -> None:
        old, _, new = os.fsdecode(payload).partition("\0")
        change = NameChange(kind, old, new, moment)
        (self.log.name_syncs if kind == NAMESYNC else self.log.names).append(change)
        self._running[number] = change

    def take(self, kind: int, file: int, number: int, offset: int, length: int, result: int, payload: bytes) -> bool:
        """False: there is no such kind."""
        moment = len(self.log.ends) + 1
        if kind == FILE:
            seen = self._file(file)
            # Two threads may see it first.
            if seen.path == Path():
                seen.path = Path(os.fsdecode(payload))
                # It may have been cut between its opening and the first request.
                if not seen.changes:
                    seen.changes.append(Change(SIZE, result, 0, b"", moment, moment))
        elif kind == CREATE:
            self._files.pop(file, None)
            created = self._file(file)
            created.path, created.created = Path(os.fsdecode(payload)), True
            self.log.names.append(NameChange(CREATE, str(created.path), "", moment, moment, file=created))
        elif kind in (RENAME, LINK, UNLINK, NAMESYNC):
            self._name(kind, number, payload, moment)
        elif kind == DONE:
            done = self._running.pop(number)
            done.ended, done.result = moment, result
        elif kind in (WRITE, PUNCH, ZERO, SYNC, SIZE):
            change = Change(kind, offset, length, payload, moment)
            (self._file(file).syncs if kind == SYNC else self._file(file).changes).append(change)
            if kind == SIZE:
                change.ended = moment
            else:
                self._running[number] = change
        else:
            return False
        return True


def read_whole(log: Path, end: int | None = None) -> Log:
    """The first `end` bytes of a log, of which the last record may be cut."""
    raw = log.read_bytes()[:end]
    if not raw.startswith(MAGIC):
        raise RecordError(f"{log}: does not begin as a log")
    reader, at = _Reader(), len(MAGIC)
    while at + RECORD.size <= len(raw):
        record = RECORD.unpack_from(raw, at)
        at += RECORD.size
        payload = raw[at : at + record[4]] if record[0] in WITH_PAYLOAD else b""
        if record[0] in WITH_PAYLOAD and len(payload) < record[4]:
            break
        kind, file, number, offset, length, result = record
        if not reader.take(kind, file, number, offset, length, result, payload):
            raise RecordError(f"{log}: no record of kind {record[0]} at {at}")
        at += len(payload)
        reader.log.ends.append(at)
    return reader.log


def read_log(log: Path, end: int | None = None) -> list[Recorded]:
    """The files of it."""
    return read_whole(log, end).files


def _surviving(file: Recorded, change: Change, keep: float, chance: random.Random) -> list[tuple[int, int]]:
    """The parts of a change that the medium has, as start and end in it."""
    sure = 0
    if file.durable(change):
        sure = change.result if change.kind == WRITE else change.length
    parts = [(0, sure)]
    if chance.random() < 0.75:
        return [(0, change.length)] if chance.random() < keep else parts
    parts += [
        (at, min(at + SECTOR, change.length))
        for at in range(sure, change.length, SECTOR)
        if chance.random() < keep
    ]
    return parts


def after_power_loss(file: Recorded, before: Path, after: Path, chance: random.Random) -> None:
    """Makes `after`, which the file may be: of `before`, what it was when the log began, with all that is durable,
    and of the rest a part, torn at sectors."""
    shutil.copyfile(before, after)
    keep = chance.choice((0.0, 0.25, 0.5, 0.75, 1.0))
    # What was under way at the same time may have happened in any order.
    order = sorted(
        (chance.uniform(change.begun, change.ended or change.begun + 1000), number)
        for number, change in enumerate(file.changes)
    )
    with after.open("r+b") as target:
        for _, number in order:
            change = file.changes[number]
            if change.kind == SIZE:
                if file.durable(change) or chance.random() < keep:
                    os.ftruncate(target.fileno(), change.offset)
                continue
            data = change.data
            if change.kind != WRITE:
                # the size stays
                data = bytes(min(change.length, max(0, os.fstat(target.fileno()).st_size - change.offset)))
            for start, end in _surviving(file, change, keep, chance):
                os.pwrite(target.fileno(), data[start:end], change.offset + start)
