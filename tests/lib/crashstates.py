# SPDX-License-Identifier: LGPL-2.1-only
"""The states of a directory that a kill or a power loss may leave, of all that a log (tests/lib/recordlog.py) tells.

A cut is a moment of the log. What was synced by then is there; of the rest each sector of a write, each change of a
size, is there or not, and of the changes of names the first so many.
"""

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lib.recordlog import CREATE, LINK, RENAME, SECTOR, SIZE, UNLINK, WRITE, Change, Log, NameChange, Recorded

ZEROS = bytes(SECTOR)
DENSE = 8 << 20
"""Bytes of a file that are put together in memory; what lies behind is written by sectors."""

Part = frozenset[int] | None
"""The sectors of a change, by their numbers in it, that have survived; None: all."""


@dataclass(frozen=True)
class Base:
    """What a file held when the log began: `data`, zeros behind it but for the sectors `far`, up to `size`."""

    data: bytes
    size: int
    far: Mapping[int, bytes]

    @classmethod
    def read(cls, path: Path) -> "Base":
        """Of a file, which may have large holes."""
        size, far, at = path.stat().st_size, {}, DENSE
        with path.open("rb", buffering=0) as file:
            data = file.read(DENSE)
            while at < size:
                try:
                    at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                except OSError:
                    break
                end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
                while at < end:
                    sector = os.pread(file.fileno(), SECTOR, at)
                    if sector != ZEROS:
                        far[at // SECTOR] = sector
                    at += SECTOR
        return cls(data, size, far)


@dataclass(frozen=True)
class Content:
    """What a file holds: `base` up to `kept` but for `sectors`, by their numbers in the file; zeros up to `size`."""

    base: bytes
    size: int
    kept: int
    sectors: Mapping[int, bytes]

    def key(self) -> int:
        """Equal for equal contents of one file."""
        return hash((self.size, self.kept, frozenset(self.sectors.items())))

    def write(self, path: Path) -> None:
        """Makes it the file at path."""
        dense = [s for s in self.sectors if s * SECTOR < DENSE]
        top = min(self.size, max([min(self.kept, len(self.base)), *(s * SECTOR + SECTOR for s in dense)]))
        data = bytearray(self.base[: min(top, self.kept)].ljust(top, b"\0"))
        for s in dense:
            data[s * SECTOR : (s + 1) * SECTOR] = self.sectors[s]
        with path.open("wb", buffering=0) as file:
            file.write(memoryview(data)[: self.size])
            for s in self.sectors.keys() - set(dense):
                os.pwrite(file.fileno(), self.sectors[s], s * SECTOR)
            file.truncate(self.size)


@dataclass(frozen=True)
class State:
    """What is there after a cut. kind: "synced" (only what was), "killed" (all that was done) or "lost"."""

    kind: str
    moment: int
    what: str
    files: Mapping[str, tuple[int, Content]]
    """By name: the file's number, so that two names of one can be told, and what it holds."""

    def key(self) -> int:
        """Equal for states that are the same."""
        return hash(frozenset((name, number, content.key()) for name, (number, content) in self.files.items()))

    def make(self, directory: Path) -> None:
        """Makes the directory, which is there, that state."""
        for path in directory.iterdir():
            path.unlink()
        first: dict[int, Path] = {}
        for name, (number, content) in self.files.items():
            path = directory / name
            if number in first:
                path.hardlink_to(first[number])
            else:
                content.write(path)
                first[number] = path


@dataclass
class _File:
    """A file of the log, or one that is there and is not changed."""

    base: Base
    log: Recorded = field(default_factory=lambda: Recorded(Path()))
    pieces: dict[int, dict[int, bytes]] = field(default_factory=dict)

    def sectors(self, number: int) -> dict[int, bytes]:
        """What the change writes, by the file's sectors."""
        if number not in self.pieces:
            change = self.log.changes[number]
            first = change.offset // SECTOR
            self.pieces[number] = {
                first + at // SECTOR: change.data[at : at + SECTOR] for at in range(0, change.length, SECTOR)
            }
        return self.pieces[number]

    def content(self, survivors: Sequence[tuple[int, Part]]) -> Content:
        """With these changes, in this order."""
        size, kept = self.base.size, len(self.base.data)
        over: dict[int, bytes] = dict(self.base.far)
        for number, part in survivors:
            change = self.log.changes[number]
            if change.kind == SIZE:
                size, kept = change.offset, min(kept, change.offset)
                for s in [s for s in over if s * SECTOR >= size]:
                    del over[s]
                continue
            first = change.offset // SECTOR
            if change.kind == WRITE:
                sectors = self.sectors(number)
                if part is not None:
                    sectors = {first + i: sectors[first + i] for i in part}
                if not sectors:
                    continue
                over.update(sectors)
                size = max(size, (max(sectors) + 1) * SECTOR)
            else:
                last = min(change.offset + change.length, size) // SECTOR
                over.update((s, ZEROS) for s in range(first, last) if part is None or s - first in part)
        return Content(self.base.data, size, kept, {s: d for s, d in over.items() if d != self._had(s, kept)})

    def _had(self, sector: int, kept: int) -> bytes:
        return self.base.data[sector * SECTOR : min((sector + 1) * SECTOR, kept)] or ZEROS


Choice = Callable[[int, int, Change], Part]
"""Of a file's number, a change's, and the change, which is not durable: what of it has survived."""


class Cuts:
    """All states of a directory whose files were `before`, by name, when the log began."""

    def __init__(self, log: Log, before: Mapping[str, Base], chance: random.Random) -> None:
        self.log, self.chance = log, chance
        self._files: list[_File] = []
        self._names: dict[str, int] = {}
        for name, data in before.items():
            self._names[name] = len(self._files)
            self._files.append(_File(data))
        self._created: dict[int, int] = {}
        for recorded in log.files:
            if recorded.created:
                self._created[id(recorded)] = len(self._files)
                self._files.append(_File(Base(b"", 0, {}), recorded))
            else:
                file = self._files[self._names[recorded.path.name]]
                file.log = Recorded(recorded.path, file.log.changes + recorded.changes, file.log.syncs + recorded.syncs)
        for file in self._files:
            file.log.changes = [change for change in file.log.changes if change.result >= 0 or change.kind == WRITE]
        self.end = len(log.ends)

    def changed(self) -> set[str]:
        """The names of the files that are changed in place."""
        return {file.log.path.name for file in self._files if file.log.changes and not file.log.created}

    def moment(self, size: int) -> int:
        """That at which the log had this size."""
        return sum(end <= size for end in self.log.ends)

    # What is durable

    def _durable(self, syncs: Sequence[Change] | Sequence[NameChange], moment: int) -> int:
        """Of what ended before this moment it is sure."""
        return max(
            (s.begun for s in syncs if s.ended is not None and s.ended <= moment and s.result == 0), default=0
        )

    def _open(self, moment: int) -> list[tuple[int, int]]:
        """The changes that have begun and are not durable: numbers of the file and of the change."""
        found = []
        for number, file in enumerate(self._files):
            sure = self._durable(file.log.syncs, moment)
            found += [
                (number, i)
                for i, change in enumerate(file.log.changes)
                if change.begun <= moment and not (change.ended is not None and change.ended < sure)
            ]
        return found

    def _names_at(self, count: int) -> dict[str, int]:
        """After the first so many changes of names."""
        names = dict(self._names)
        for change in self.log.names[:count]:
            if change.result < 0:
                continue
            if change.kind == CREATE:
                names[change.old] = self._created[id(change.file)]
            elif change.kind == LINK and change.old in names:
                names[change.new] = names[change.old]
            elif change.kind == RENAME and change.old in names:
                names[change.new] = names.pop(change.old)
            elif change.kind == UNLINK:
                names.pop(change.old, None)
        return names

    def _state(
        self, kind: str, moment: int, what: str, choose: Choice, count: int, jitter: bool = False
    ) -> State:
        names = self._names_at(count)
        contents: dict[int, Content] = {}
        for number in set(names.values()):
            file = self._files[number]
            sure = self._durable(file.log.syncs, moment)
            kept: list[tuple[float, int, Part]] = []
            for i, change in enumerate(file.log.changes):
                if change.begun > moment:
                    continue
                at: float = change.begun
                part: Part = None
                if change.ended is None or change.ended >= sure:
                    part = choose(number, i, change)
                    if jitter and change.kind != SIZE:
                        at = self.chance.uniform(change.begun, min(change.ended or moment, moment))
                elif change.kind == WRITE and change.result < change.length:
                    part = frozenset(range(change.result // SECTOR))
                if part is None or part:
                    kept.append((at, i, part))
            contents[number] = file.content([(i, part) for _, i, part in sorted(kept, key=lambda k: k[:2])])
        return State(kind, moment, what, {n: (f, contents[f]) for n, f in names.items()})

    def _names_done(self, moment: int) -> tuple[int, int]:
        """How many changes of names are durable, and how many may be there."""
        sure = self._durable(self.log.name_syncs, moment)
        names = self.log.names
        return (
            sum(change.ended is not None and change.ended < sure for change in names),
            sum(change.begun <= moment for change in names),
        )

    # States

    def lost(self) -> State:
        """Any that a power loss may leave."""
        return self._some(self.chance.randint(1, self.end), self.chance.random(), 0.2)

    def synced(self, moment: int) -> State:
        """Only what was durable."""
        return self._state("synced", moment, "nothing else", lambda *_: frozenset(), self._names_done(moment)[0])

    def killed(self, moment: int) -> State:
        """All that had ended, of what was under way all, nothing or a part."""

        def choose(_file: int, _number: int, change: Change) -> Part:
            if change.ended is not None and change.ended <= moment:
                return None
            cut = self.chance.choice((0, change.length, self.chance.randrange(change.length + 1)))
            return None if cut == change.length else frozenset(range(cut // SECTOR))

        done = sum(change.ended is not None and change.ended <= moment for change in self.log.names)
        may = self._names_done(moment)[1]
        return self._state("killed", moment, "all", choose, self.chance.randint(done, may))

    def _torn(self, change: Change) -> Part:
        sectors = -(-change.length // SECTOR)
        if change.kind == SIZE or sectors < 2:
            return self.chance.choice((None, frozenset()))
        cut = self.chance.randrange(1, sectors)
        half = frozenset(i for i in range(sectors) if self.chance.random() < 0.5)
        return self.chance.choice((frozenset(range(cut)), frozenset(range(cut, sectors)), half))

    def _one(self, moment: int, which: tuple[int, int], what: str) -> State:
        """Only that change, or all but that, or it torn amid the others or alone."""
        others: Part = None if what in ("without", "torn") else frozenset()
        change = self._files[which[0]].log.changes[which[1]]
        own: Part = None if what == "only" else frozenset() if what == "without" else self._torn(change)
        low, high = self._names_done(moment)
        return self._state(
            "lost",
            moment,
            f"{what} change {which[1]} of file {which[0]}",
            lambda file, number, _: own if (file, number) == which else others,
            self.chance.randint(low, high),
        )

    def _some(self, moment: int, keep: float, torn: float) -> State:
        """Each change with this chance, and some of them torn."""

        def choose(_file: int, _number: int, change: Change) -> Part:
            if self.chance.random() < torn:
                return self._torn(change)
            return None if self.chance.random() < keep else frozenset()

        low, high = self._names_done(moment)
        what = f"each with {keep}, torn {torn}"
        return self._state("lost", moment, what, choose, self.chance.randint(low, high), self.chance.random() < 0.3)

    def _windows(self) -> list[int]:
        """The moments with the most that is not durable: where a sync begins, and the end."""
        begun = {sync.begun for file in self._files for sync in file.log.syncs}
        return sorted(begun | {sync.begun for sync in self.log.name_syncs} | {self.end})

    def states(self, first: int = 0) -> Iterator[State]:
        """Without an end, some more than once: from the moment `first` on, after each sync what was synced, then all
        kinds among each other, the systematic ones once."""
        ended = {s.ended for file in self._files for s in file.log.syncs if s.ended is not None}
        ended |= {s.ended for s in self.log.name_syncs if s.ended is not None}
        for moment in sorted(ended | {self.end}):
            if moment >= first:
                yield self.synced(moment)
        windows = [moment for moment in self._windows() if moment >= first] or [self.end]
        todo: list[tuple[int, tuple[int, int] | None, str]] = []
        for moment in windows:
            kinds = ("only", "without", "torn", "alone")
            todo += [(moment, which, what) for which in self._open(moment) for what in kinds]
        begun = {c.begun for file in self._files for c in file.log.changes} | {n.begun for n in self.log.names}
        todo += [(moment, None, "killed") for moment in begun | ended | {self.end} if moment >= first]
        self.chance.shuffle(todo)
        while True:
            what = "some"
            if todo and self.chance.random() < 0.6:
                moment, which, what = todo.pop()
                yield self.killed(moment) if which is None else self._one(moment, which, what)
                continue
            moment = self.chance.choice(windows)
            if self.chance.random() < 0.25:
                moment = self.chance.randint(first, self.end)
            if self.chance.random() < 0.15:
                yield self.killed(moment)
            else:
                keep = self.chance.choice((0.0, 0.15, 0.5, 0.5, 0.85, 1.0))
                yield self._some(moment, keep, self.chance.choice((0.0, 0.0, 0.2, 0.7)))
