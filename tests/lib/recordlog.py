# SPDX-License-Identifier: LGPL-2.1-only
"""The log of the record engine (tapdisk-c/io/record.c), and what of it a power loss leaves in the files."""

import os
import random
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path

MAGIC = b"xenblk-record-1\n"
RECORD = struct.Struct("<IIQQQq")
FILE, WRITE, PUNCH, ZERO, SYNC, DONE, SIZE = range(1, 8)
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

    def durable(self, change: Change) -> bool:
        """Is it on the medium for sure?"""
        if change.ended is None or change.result < 0:
            return False
        return any(
            sync.begun > change.ended and sync.ended is not None and sync.result == 0 for sync in self.syncs
        )


def read_log(log: Path, end: int | None = None) -> list[Recorded]:
    """The files of the first `end` bytes of a log, of which the last record may be cut."""
    raw = log.read_bytes()[:end]
    if not raw.startswith(MAGIC):
        raise RecordError(f"{log}: does not begin as a log")
    files: list[Recorded] = []
    running: dict[int, Change] = {}
    at, moment = len(MAGIC), 0
    while at + RECORD.size <= len(raw):
        kind, file, number, offset, length, result = RECORD.unpack_from(raw, at)
        at += RECORD.size
        payload = raw[at : at + length] if kind in (FILE, WRITE) else b""
        if kind in (FILE, WRITE) and len(payload) < length:
            break
        at += len(payload)
        moment += 1
        if kind == FILE:
            files.append(Recorded(Path(os.fsdecode(payload))))
            # It may have been cut between its opening and the first request.
            files[-1].changes.append(Change(SIZE, result, 0, b"", moment, moment))
        elif kind == DONE:
            change = running.pop(number)
            change.ended, change.result = moment, result
        elif kind in (WRITE, PUNCH, ZERO, SYNC, SIZE):
            change = Change(kind, offset, length, payload, moment)
            (files[file].syncs if kind == SYNC else files[file].changes).append(change)
            if kind == SIZE:
                change.ended = moment
            else:
                running[number] = change
        else:
            raise RecordError(f"{log}: no record of kind {kind} at {at}")
    return files


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
