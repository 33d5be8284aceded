# SPDX-License-Identifier: LGPL-2.1-only
"""The migrations part: a guest moves between two hosts' tapdisks on one image, and writes to the last moment.

`python3 -m tests.soak.movepart SEED COUNT` is one slice; it prints the result as JSON.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

from tests.lib import migration
from tests.soak.state import Finding, Slice
from tests.soak.work import Programs, Task, make, run_slice

PART = "migrations"
MARK = "migrations slice: "
MIGRATIONS = 100
NAME = "two hosts' tapdisks"


class MovePart:
    """See the module's text."""

    name = PART
    slice_seconds = 60.0

    def __init__(self, programs: Programs, commit: str) -> None:
        self._programs = programs
        self._commit = commit

    def tasks(self) -> Sequence[Task]:
        return [Task(PART, NAME, MIGRATIONS)]

    def prepare(self) -> None:
        make(self._programs, "MODE=asan")

    def guess(self, task: Task) -> int:
        return task.count

    def run(self, task: Task, seed: int, count: int, seconds: float) -> tuple[Slice, list[Finding]]:
        argv = [sys.executable, "-m", "tests.soak.movepart", str(seed), str(count)]
        result, record = run_slice(self._programs, task, seed, argv, MARK, self._commit)
        loss = result.pop("loss")
        done = record(int(result.pop("migrations")), result)
        repeat = f"python3 -m tests.soak.movepart {seed} {count}"
        return done, [Finding(PART, task.name, seed, loss, repeat, self._commit)] if loss else []


def main() -> int:
    """One slice."""
    told, loss = migration.Told(), ""
    with tempfile.TemporaryDirectory(prefix="xenblk-migrations-") as directory:
        try:
            migration.run(Path(directory), int(sys.argv[2]), Random(int(sys.argv[1])), told)
        except AssertionError as error:
            loss = str(error)
    print(f"{MARK}{json.dumps({**asdict(told), 'loss': loss})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
