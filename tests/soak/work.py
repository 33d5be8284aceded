# SPDX-License-Identifier: LGPL-2.1-only
"""What a soak is made of, and the programs it starts."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from tests.lib.programs import ROOT
from tests.soak.state import Finding, Slice

BUILD = ROOT / "build"
DIRECTORY = BUILD / "soak"
SLICE_SECONDS = 25.0
STOP_SECONDS = 5.0


class SoakError(Exception):
    """The soak can't be run; the message says why and what to do."""


class Stopped(Exception):
    """The soak is to end now."""


@dataclass(frozen=True)
class Task:
    """So many executions of a fuzz target, or crash states, that a whole soak has."""

    part: str
    name: str
    count: int


class Part(Protocol):
    """How the tasks of one part are run."""

    name: str
    slice_seconds: float

    def tasks(self) -> Sequence[Task]:
        """All of it."""

    def prepare(self) -> None:
        """Build what it runs. SoakError if that can't be had."""

    def guess(self, task: Task) -> int:
        """How many the first slice of a task may have."""

    def run(self, task: Task, seed: int, count: int, seconds: float) -> tuple[Slice, list[Finding]]:
        """At most so many, and not much longer than so long."""


class Programs:
    """Starts programs in sessions of their own and ends all of them at once."""

    def __init__(self, held: int | None = None) -> None:
        """held: a descriptor that they have, too."""
        self._held = () if held is None else (held,)
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(self, argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Its status and what it printed. Stopped if it was ended by stop(), or comes after that."""
        with self._lock:
            if self._stopped:
                raise Stopped
            process = subprocess.Popen(
                [str(a) for a in argv],
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                pass_fds=self._held,
            )
            self._running.add(process)
        out, _ = process.communicate()
        with self._lock:
            self._running.discard(process)
            if self._stopped:
                raise Stopped
        return process.returncode, out

    def stop(self) -> None:
        """End all, for good. In order first: make deletes what is half made."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for sig in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + STOP_SECONDS
            for process in running:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, sig)
            while any(process.poll() is None for process in running) and time.monotonic() < end:
                time.sleep(0.05)


def run_slice(
    programs: Programs, task: Task, seed: int, argv: Sequence[str], mark: str, commit: str
) -> tuple[dict[str, Any], Callable[[int, dict[str, Any]], Slice]]:
    """What a slice that is a program of its own prints as JSON behind mark, and what makes its record: count, details."""
    begun = time.monotonic()
    status, out = programs.run(argv)
    found = out.rpartition(mark)[2] if mark in out else ""
    if status or not found:
        raise SoakError(f"{out[-4000:]}\n{' '.join(argv)} failed; its output is above")

    def record(count: int, detail: dict[str, Any]) -> Slice:
        took = round(time.monotonic() - begun, 1)
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return Slice(task.part, task.name, seed, count, took, commit, date, detail)

    return json.loads(found.splitlines()[0]), record


def take_lock(path: Path, say: Callable[[str], None]) -> int:
    """A descriptor that one soak has at a time, with the programs it started; waits for those of one that was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another soak, or for what one that was killed has left running")
        fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def make(programs: Programs, *args: str, directory: str = "tapdisk-c") -> None:
    """Build in a directory of the repository; SoakError with the end of what make printed if that fails."""
    argv = ["make", "--no-print-directory", f"-j{os.cpu_count() or 1}", "-C", directory, *args, f"BUILD={BUILD}"]
    status, out = programs.run(argv)
    if status:
        raise SoakError("\n".join([*out.splitlines()[-20:], f"{' '.join(argv)} failed; its output is above"]))
