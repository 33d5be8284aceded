# SPDX-License-Identifier: LGPL-2.1-only
"""What each sector of a disk may hold, when requests fail and when the power goes.

Sectors are told by their seed, 0 being zeros (tests/lib/disk.py). After a write that failed a sector is the old one or
the new one, and may go from new to old when the image is opened again, until a write to it succeeds.
"""

import random
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

FEW = 5
"""How many differences a message names."""


class Batches(Protocol):
    """A disk: what tests/lib/disk.py and tests/lib/nbddisk.py have in common."""

    def batch(self, commands: Sequence[str]) -> list[str]:
        """Runs the commands concurrently; their answers."""
        ...


class Expected:
    """A disk of so many sectors, which begins with these seeds, all of them durable."""

    def __init__(
        self, sectors: int, seeds: dict[int, int] | None = None, *, holds_all: bool = False, holds: Collection[int] = ()
    ) -> None:
        """`holds_all`: a raw image; else the leaf holds these sectors."""
        self.now = [frozenset({0})] * sectors
        for sector, seed in (seeds or {}).items():
            self.now[sector] = frozenset({seed})
        self.after_loss = list(self.now)
        self._held = [holds_all] * sectors
        for sector in holds:
            self._held[sector] = True
        self._acknowledged: set[int] = set()
        self.left: dict[int, frozenset[int]] = {}
        """What a power loss or a failed write may have left of sectors that the leaf does not hold: the data, not the
        metadata."""
        self.next_seed = 1 + max((seeds or {0: 0}).values())

    def __len__(self) -> int:
        return len(self.now)

    def write_command(self, start: int, count: int) -> str:
        """Writes a seed that no other command has."""
        self.next_seed += 1
        return f"w {start} {count} {self.next_seed}"

    def run(self, disk: Batches, commands: Sequence[str], *, faults: bool = False) -> list[str]:
        """Runs a batch, of which no two overlap and a flush is alone, and judges its answers.

        Without `faults` an error is one of the test's. The answers, "data" for what was read.
        """
        begin = [self._begun(command) for command in commands]
        answers = disk.batch(commands)
        assert len(answers) == len(commands)
        for command, new, answer in zip(commands, begin, answers, strict=True):
            assert faults or not answer.startswith("err"), f"{command}: {answer}"
            self._ended(command, new, answer)
        return answers

    def acknowledged(self, command: str) -> None:
        """A command that was run elsewhere has gone well."""
        self._ended(command, self._begun(command), "ok")

    def _place(self, command: str) -> range:
        words = command.split()
        if words[0] == "f":
            return range(0)
        return range(int(words[1]), int(words[1]) + int(words[2]))

    def _begun(self, command: str) -> frozenset[int]:
        """From now on a loss of power may leave the new content. What it adds."""
        kind = command[0]
        if kind not in "wzZd":
            return frozenset()
        new = frozenset({int(command.split()[3]) if kind == "w" else 0})
        for sector in self._place(command):
            self.after_loss[sector] |= new
            if not self._held[sector]:
                self.after_loss[sector] |= {0} | self.left.get(sector, frozenset())
        return new

    def _ended(self, command: str, new: frozenset[int], answer: str) -> None:
        place = self._place(command)
        if command[0] == "r" and not answer.startswith("err"):
            self._judge_read(place, answer)
        elif command[0] == "f" and answer == "ok":
            self.all_durable()
        for sector in place if new else ():
            if answer == "ok" and command[0] != "d":
                self.now[sector] = new
                # What reads as zeros already is not written by a zero.
                if command[0] == "w":
                    self._acknowledged.add(sector)
            else:
                self.now[sector] |= new
                if not self._held[sector]:
                    self.left[sector] = self.left.get(sector, frozenset()) | new

    def _judge_read(self, place: Iterable[int], answer: str) -> None:
        wrong = []
        for sector, word in zip(place, answer.split(), strict=True):
            if word == "?" or int(word) not in self.now[sector]:
                wrong.append(f"sector {sector} is {word}, not of {sorted(self.now[sector])}")
        assert not wrong, f"{len(wrong)} wrong: {'; '.join(wrong[:FEW])}"

    def new_leaf(self) -> None:
        """A snapshot, for which all was flushed: the leaf holds nothing."""
        self.all_durable()
        self._held = [False] * len(self)
        self.left.clear()

    def all_durable(self) -> None:
        """What has been written is on the medium."""
        for sector in self._acknowledged:
            self._held[sector] = True
        self._acknowledged.clear()
        self.after_loss = list(self.now)

    def check(self, disk: Batches) -> None:
        """Reads the whole disk."""
        step = 2000
        commands = [f"r {s} {min(step, len(self) - s)}" for s in range(0, len(self), step)]
        for at in range(0, len(commands), 16):
            self.run(disk, commands[at : at + 16])

    def judge_after_loss(self, disk: Batches) -> None:
        """Reads the whole disk after a loss of power."""
        self.now = list(self.after_loss)
        self.check(disk)


def random_batch(
    expected: Expected, chance: random.Random, size: int, kinds: str = "wwwwrrrzd", block: int = 4096
) -> list[str]:
    """Commands that don't overlap, often across a block's border, or a flush alone."""
    if chance.random() < 0.15:
        return ["f"]
    touched: list[range] = []
    commands = []
    for _ in range(size):
        if chance.random() < 0.3:
            start = max(0, chance.randrange(0, len(expected), block) - chance.randrange(1, 40))
        else:
            start = chance.randrange(len(expected))
        count = min(chance.choice([1, 3, 8, 64, 300]), len(expected) - start)
        if any(start < other.stop and other.start < start + count for other in touched):
            continue
        touched.append(range(start, start + count))
        kind = chance.choice(kinds)
        commands.append(expected.write_command(start, count) if kind == "w" else f"{kind} {start} {count}")
    return commands
