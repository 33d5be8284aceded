# SPDX-License-Identifier: LGPL-2.1-only
"""The migrations part: a guest moves between two hosts with one image, and writes to the last moment.

Once two tapdisks are the hosts, once two beds on Xen with NFS, in which libxl's script is called. `python3 -m tests.soak.movepart
SEED COUNT TASK` is one slice; it prints the result as JSON.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

from tests.lib import migration, scriptmove, twohosts
from tests.lib.qemu import BedSpec
from tests.lib.vm import Bed
from tests.soak.state import Finding, Slice
from tests.soak.work import Programs, Task, make, run_slice

PART = "migrations"
MARK = "migrations slice: "
MIGRATIONS = 100
TAPDISKS = "two tapdisks"
SCRIPT = "two hosts, by the script"
A_BOOT = 25
"""So many are worth to boot two beds, and begin with an image that has nothing in it."""


class MovePart:
    """See the module's text."""

    name = PART
    slice_seconds = 600.0

    def __init__(self, programs: Programs, commit: str) -> None:
        self._programs = programs
        self._commit = commit

    def tasks(self) -> Sequence[Task]:
        return [Task(PART, name, MIGRATIONS) for name in (TAPDISKS, SCRIPT)]

    def prepare(self) -> None:
        make(self._programs, "MODE=asan")
        make(self._programs, "MODE=release")

    def guess(self, task: Task) -> int:
        return A_BOOT if task.name == SCRIPT else task.count

    def run(self, task: Task, seed: int, count: int, seconds: float) -> tuple[Slice, list[Finding]]:
        argv = [sys.executable, "-m", "tests.soak.movepart", str(seed), str(min(count, self.guess(task))), task.name]
        result, record = run_slice(self._programs, task, seed, argv, MARK, self._commit)
        loss = result.pop("loss")
        done = record(int(result.pop("migrations")), result)
        repeat = f"python3 -m tests.soak.movepart {seed} {count} '{task.name}'"
        return done, [Finding(PART, task.name, seed, loss, repeat, self._commit)] if loss else []


def move(directory: Path, name: str, count: int, seed: int, told: migration.Told) -> None:
    """An AssertionError says what was lost."""
    random = Random(seed)
    if name == TAPDISKS:
        migration.run(directory, count, random, told)
        return
    first, second = (Bed(BedSpec(**twohosts.wire(directory, is_first))) for is_first in (True, False))
    with first, second:
        twohosts.connect(first, second)
        scriptmove.run((first, second), count, random, told)
        warnings = [line for bed in (first, second) for line in bed.dmesg_findings()]
        assert not warnings, "\n".join(warnings)


def main() -> int:
    """One slice."""
    seed, count, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    told, loss = migration.Told(), ""
    with tempfile.TemporaryDirectory(prefix="xenblk-migrations-") as directory:
        try:
            move(Path(directory), name, count, seed, told)
        except AssertionError as error:
            loss = str(error)
    print(f"{MARK}{json.dumps({**asdict(told), 'loss': loss})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
