# SPDX-License-Identifier: LGPL-2.1-only
"""The data path part: rounds of tapdisk-c/tests/test-vhd-soak.c, each a disk under random requests, faults, kills and power losses."""

import re
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from tests.soak.state import Finding, Slice
from tests.soak.work import BUILD, SLICE_SECONDS, Programs, SoakError, Task, make

PART = "data path"
ROUNDS = 50_000
PROGRAM = BUILD / "asan" / "tapdisk-c" / "tests" / "test-vhd-soak"
# A round takes a twentieth of a second.
HANGS_SECONDS = 600
ENVIRONMENT = {"ASAN_OPTIONS": "handle_abort=1"}
_SEED = re.compile(r"SOAK_SEED=(\d+)")
_FAULT = re.compile(r"^.*(?:error: Failure!|ERROR: AddressSanitizer|runtime error:|fault engine:|livelock|hang).*$", re.MULTILINE)


class DiskPart:
    """See the module's text."""

    name = PART
    slice_seconds = SLICE_SECONDS

    def __init__(self, programs: Programs, commit: str) -> None:
        self._programs = programs
        self._commit = commit

    def tasks(self) -> Sequence[Task]:
        return [Task(PART, PART, ROUNDS)]

    def prepare(self) -> None:
        make(self._programs, "MODE=asan", str(PROGRAM))

    def guess(self, task: Task) -> int:
        return 200

    def run(self, task: Task, seed: int, count: int, seconds: float) -> tuple[Slice, list[Finding]]:
        """The seeds of the slice's rounds follow each other."""
        begun = time.monotonic()
        first = seed << 20
        argv: list[str | Path] = ["timeout", "-s", "ABRT", "-k", "10", str(HANGS_SECONDS), PROGRAM]
        status, out = self._programs.run(argv, {**ENVIRONMENT, "SOAK_SEED": str(first), "SOAK_ROUNDS": str(count)})
        seeds = [int(found) for found in _SEED.findall(out)]
        if not seeds or (not status and len(seeds) != count):
            raise SoakError(f"{out[-4000:]}\n{PROGRAM} ran {len(seeds)} of {count} rounds; its output is above")
        took = round(time.monotonic() - begun, 1)
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        done = Slice(PART, task.name, seed, len(seeds), took, self._commit, date)
        return done, [self._finding(task, seed, seeds[-1], out)] if status else []

    def _finding(self, task: Task, seed: int, last: int, out: str) -> Finding:
        fault = _FAULT.search(out)
        repeat = f"make -C tapdisk-c MODE=asan BUILD={BUILD} {PROGRAM} && FAULT_TRACE=1 SOAK_SEED={last} {PROGRAM}"
        return Finding(PART, task.name, seed, fault[0].strip() if fault else "the program died", repeat, self._commit)
