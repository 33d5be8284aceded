# SPDX-License-Identifier: LGPL-2.1-only
"""Runs slices side by side until all counts are reached, the time is over, or something is found."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.soak.state import Finding, Slice, State
from tests.soak.work import Part, Stopped, Task


@dataclass(frozen=True)
class Wanted:
    """A task, and how much of it this soak is to have."""

    task: Task
    part: Part
    count: int


class Runner:
    """Slices of all tasks, those first that lack most. The state is saved after each."""

    def __init__(self, state: State, path: Path, wanted: list[Wanted], seed: int, say: Callable[[str], None]) -> None:
        self.state = state
        self._path = path
        self._wanted = wanted
        self._random = Random(f"{seed}/{len(state.slices)}")
        self._say = say
        self._lock = threading.Lock()
        self._flying: dict[str, int] = {w.task.name: 0 for w in wanted}
        self._stop = False
        self._error: Exception | None = None

    def missing(self) -> Mapping[str, int]:
        """What is still to do, by task."""
        left = {w.task.name: w.count - self.state.done(w.task.part, w.task.name) for w in self._wanted}
        return {name: count for name, count in left.items() if count > 0}

    def run(self, jobs: int, seconds: float | None) -> None:
        """Until it is over; KeyboardInterrupt goes through, and no slice is started after it."""
        end = None if seconds is None else time.monotonic() + seconds
        threads = [threading.Thread(target=self._work, args=(end,), daemon=True) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            self._stop = True
        if self._error:
            raise self._error

    def _work(self, end: float | None) -> None:
        try:
            while self._step(end):
                pass
        except Stopped:
            pass
        except Exception as error:
            # Told by run(), in the thread that called it.
            with self._lock:
                self._error = self._error or error
                self._stop = True

    def _step(self, end: float | None) -> bool:
        left = None if end is None else end - time.monotonic()
        with self._lock:
            chosen = None if self._stop or (left is not None and left < 1) else self._choose(left)
            if not chosen:
                return False
            wanted, count, left = chosen
            seed = self._random.randrange(1, 1 << 32)
            self._flying[wanted.task.name] += count
        done, findings = wanted.part.run(wanted.task, seed, count, left)
        with self._lock:
            self._flying[wanted.task.name] -= count
            self._note(wanted, done, findings)
        return True

    def _choose(self, most: float | None) -> tuple[Wanted, int, float] | None:
        def left(w: Wanted) -> int:
            return w.count - self.state.done(w.task.part, w.task.name) - self._flying[w.task.name]

        open_ones = [w for w in self._wanted if left(w) > 0]
        if not open_ones:
            return None
        wanted = max(open_ones, key=lambda w: left(w) / w.count)
        seconds = min(wanted.part.slice_seconds, wanted.part.slice_seconds if most is None else most)
        return wanted, min(left(wanted), self._size(wanted, seconds)), seconds

    def _size(self, wanted: Wanted, seconds: float) -> int:
        """How many take about so long, by the last slices."""
        last = [s for s in self.state.of(wanted.task.part, wanted.task.name)[-3:] if s.count and s.seconds]
        if not last:
            return wanted.part.guess(wanted.task)
        return max(int(seconds * sum(s.count for s in last) / sum(s.seconds for s in last)), 1)

    def _note(self, wanted: Wanted, done: Slice, findings: list[Finding]) -> None:
        self.state = self.state.with_slice(done, findings)
        self.state.save(self._path)
        total = self.state.done(done.part, done.name)
        self._say(
            f"{done.name}: {total:,} of {wanted.count:,} ({done.count:,} in {done.seconds:.0f} s, seed {done.seed})"
        )
        for finding in findings:
            self._stop = True
            self._say(f"FOUND by {finding.name}: {finding.text}\n  again: {finding.repeat}")
