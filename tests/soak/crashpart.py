# SPDX-License-Identifier: LGPL-2.1-only
"""The crash part: slices of tests.soak.crash, each in a process of its own.

`python3 -m tests.soak.crashpart SEED STATES DIRECTORY` is one; it prints the result as JSON.
"""

import importlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from tests.soak.state import Finding, Slice
from tests.soak.work import DIRECTORY, SLICE_SECONDS, Programs, SoakError, Task, make

PART = "crash"
STATES = 100_000
MARK = "crash slice: "


class CrashPart:
    """See the module's text."""

    name = PART
    slice_seconds = SLICE_SECONDS

    def __init__(self, programs: Programs, commit: str) -> None:
        self._programs = programs
        self._commit = commit

    def tasks(self) -> Sequence[Task]:
        return [Task(PART, PART, STATES)]

    def prepare(self) -> None:
        try:
            importlib.import_module("tests.soak.crash")
        except ImportError as error:
            raise SoakError(f"the crash part is missing: {error}; without it: --part fuzz") from error
        for mode in ("asan", "release"):
            make(self._programs, f"MODE={mode}")

    def guess(self, task: Task) -> int:
        return 200

    def run(self, task: Task, seed: int, count: int, seconds: float) -> tuple[Slice, list[Finding]]:
        directory = DIRECTORY / f"crash-{seed}"
        argv: list[str | Path] = [sys.executable, "-m", "tests.soak.crashpart", str(seed), str(count), directory]
        begun = time.monotonic()
        try:
            status, out = self._programs.run(argv)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        found = out.rpartition(MARK)[2] if MARK in out else ""
        if status or not found:
            raise SoakError(f"{out[-4000:]}\n{' '.join(map(str, argv))} failed; its output is above")
        result = json.loads(found.splitlines()[0])
        done = Slice(
            PART,
            PART,
            seed,
            int(result["states"]),
            round(time.monotonic() - begun, 1),
            self._commit,
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
            result["operations"],
        )
        repeat = f"python3 -m tests.soak.crash --seed={seed} --states={count}"
        return done, [Finding(PART, PART, seed, loss, repeat, self._commit) for loss in result["losses"]]


def main() -> int:
    """One slice."""
    seed, states, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    result = importlib.import_module("tests.soak.crash").run_slice(seed, states, directory)
    print(f"{MARK}{json.dumps(asdict(result))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
