# SPDX-License-Identifier: LGPL-2.1-only
"""What a guest may read from its disk: bytes, and what else some sectors may hold.

A sector has several possible contents after a discard, after writes to it that were under way together, and after a
kill that cut a write off. It has one of them: what is read once stays.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.lib.disk import pattern

SECTOR = 512
FEW = 5
"""How many differences a message names."""


@dataclass(frozen=True)
class Op:
    """A guest's request. kind: "write", "zero", "trim", "read" or "flush"; zero and trim may be long."""

    kind: str
    start: int = 0
    count: int = 0
    seed: int = 0
    fua: bool = False
    no_hole: bool = False

    def content(self) -> bytes:
        """What it writes; of a trim, what there may be afterwards."""
        if self.kind == "write":
            return b"".join(pattern(self.start + i, self.seed) for i in range(self.count))
        return bytes(self.count * SECTOR) if self.kind in ("zero", "trim") else b""


def _told(sector: bytes) -> str:
    """What a sector holds, for people."""
    if not any(sector):
        return "zeros"
    number, seed = int.from_bytes(sector[:8], "little"), int.from_bytes(sector[8:16], "little")
    return f"write {seed} of sector {number}" if sector == pattern(number, seed) else f"foreign {sector[:16].hex()}..."


class GuestBytes:
    """A disk of so many sectors, zeros at first."""

    def __init__(self, sectors: int) -> None:
        self.data = bytearray(sectors * SECTOR)
        self.others: dict[int, set[bytes]] = {}

    @property
    def sectors(self) -> int:
        """The disk's size."""
        return len(self.data) // SECTOR

    def copy(self) -> "GuestBytes":
        """One that goes its own way."""
        other = GuestBytes(0)
        other.data = bytearray(self.data)
        other.others = {sector: set(contents) for sector, contents in self.others.items()}
        return other

    def resize(self, sectors: int) -> None:
        """What is added is zeros."""
        self.data = self.data[: sectors * SECTOR].ljust(sectors * SECTOR, b"\0")
        self.others = {sector: contents for sector, contents in self.others.items() if sector < sectors}

    def _at(self, start: int, count: int = 1) -> bytes:
        return bytes(self.data[start * SECTOR : (start + count) * SECTOR])

    def _unsure(self, start: int, count: int) -> Iterator[int]:
        if count < len(self.others):
            return iter([s for s in range(start, start + count) if s in self.others])
        return iter([s for s in self.others if start <= s < start + count])

    def written(self, start: int, content: bytes) -> None:
        """The sectors hold this and nothing else."""
        self.data[start * SECTOR : start * SECTOR + len(content)] = content
        for sector in self._unsure(start, len(content) // SECTOR):
            del self.others[sector]

    def maybe(self, start: int, content: bytes) -> None:
        """The sectors may hold this as well."""
        if self._at(start, len(content) // SECTOR) == content:
            return
        for at in range(0, len(content), SECTOR):
            new, sector = content[at : at + SECTOR], start + at // SECTOR
            if self._at(sector) != new:
                self.others.setdefault(sector, set()).add(new)

    def apply(self, done: Sequence[Op], lost: Sequence[Op] = ()) -> None:
        """Requests that were under way together; those of `lost` were not answered."""
        writes = [(op.start, op.content()) for op in done if op.kind in ("write", "zero")]
        for start, content in writes:
            self.written(start, content)
        for start, content in writes[:-1]:
            self.maybe(start, content)
        self.under_way([op for op in done if op.kind == "trim"])
        self.under_way(lost)

    def under_way(self, ops: Iterable[Op]) -> None:
        """Requests of which each sector may have been done."""
        for op in ops:
            self.maybe(op.start, op.content())

    def judge(self, start: int, got: bytes, who: str, *, settle: bool = True) -> None:
        """Asserts that it may be read there. settle: from now on the sectors hold it."""
        end = start * SECTOR + len(got)
        assert end <= len(self.data), f"{who}: {end} bytes of {len(self.data)}"
        if self.data[start * SECTOR : end] != got:
            wrong = []
            for at in range(0, len(got), SECTOR):
                sector, content = start + at // SECTOR, got[at : at + SECTOR]
                here = self._at(sector)
                allowed = {here, *self.others.get(sector, ())}
                if content not in allowed:
                    wrong.append(f"sector {sector}: {_told(content)}, not {' or '.join(map(_told, allowed))}")
            assert not wrong, f"{who}: {len(wrong)} wrong: {'; '.join(wrong[:FEW])}"
        if settle:
            self.written(start, got)

    def judge_all(self, got: bytes, who: str) -> None:
        """A reading of the whole disk."""
        assert len(got) == len(self.data), f"{who}: {len(got)} bytes, not {len(self.data)}"
        self.judge(0, got, who)
