# SPDX-License-Identifier: LGPL-2.1-only
"""What a soak has done so far, in a file that is whole at any time."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any


class StateError(Exception):
    """The file can't be read; the message says which and what to do."""


@dataclass(frozen=True)
class Slice:
    """One program's run. count: executions, or crash states; detail: by operation, or libFuzzer's counters."""

    part: str
    name: str
    seed: int
    count: int
    seconds: float
    commit: str
    date: str
    detail: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """What must not be: text says it, repeat is the command that shows it again."""

    part: str
    name: str
    seed: int
    text: str
    repeat: str
    commit: str


@dataclass(frozen=True)
class Covered:
    """Of a file's lines and functions, how many were run and how many there are."""

    file: str
    lines: tuple[int, int]
    functions: tuple[int, int]


@dataclass(frozen=True)
class State:
    """All slices since the last --fresh, in the order in which they ended; coverage by what ran."""

    slices: tuple[Slice, ...] = ()
    findings: tuple[Finding, ...] = ()
    coverage: dict[str, tuple[Covered, ...]] = field(default_factory=dict)

    def of(self, part: str, name: str | None = None) -> list[Slice]:
        """The slices of a part, or of one of its names."""
        return [s for s in self.slices if s.part == part and name in (None, s.name)]

    def done(self, part: str, name: str) -> int:
        """Executions or states so far."""
        return sum(s.count for s in self.of(part, name))

    def with_slice(self, done: Slice, findings: Iterable[Finding]) -> "State":
        """The state after one more slice."""
        return replace(self, slices=(*self.slices, done), findings=(*self.findings, *findings))

    def save(self, path: Path) -> None:
        """Write it, so that a kill leaves this one or the one before."""
        new = path.with_suffix(".new")
        with new.open("w") as file:
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)


def _covered(raw: dict[str, Any]) -> Covered:
    lines, functions = raw["lines"], raw["functions"]
    return Covered(raw["file"], (lines[0], lines[1]), (functions[0], functions[1]))


def load(path: Path) -> State:
    """What was saved, or the state before anything."""
    try:
        raw = json.loads(path.read_text())
        return State(
            tuple(Slice(**s) for s in raw["slices"]),
            tuple(Finding(**f) for f in raw["findings"]),
            {name: tuple(_covered(c) for c in files) for name, files in raw["coverage"].items()},
        )
    except FileNotFoundError:
        return State()
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path}: can't be read ({error}); start over with --fresh") from error
