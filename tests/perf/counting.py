# SPDX-License-Identifier: LGPL-2.1-only
"""System calls and allocations for each request, counted apart from the timed runs.

Each is counted over two runs of a fixed number of requests, a short and a long one, and the difference is taken: what
a start and a connection cost falls out. System calls are counted by perf (which does not slow the server) where the
kernel lets it, else by strace; allocations by the preloaded library of the tests.
"""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

SHORT, LONG = 2_000, 22_000


class CountError(Exception):
    """The output of perf or strace is not understood."""


def parse_perf(text: str) -> int:
    """`perf stat -x,`: the events raw_syscalls:sys_enter."""
    for line in text.splitlines():
        parts = line.split(",")
        if len(parts) > 2 and parts[2].startswith("raw_syscalls:sys_enter"):
            if not parts[0].isdigit():
                raise CountError(f"perf: {parts[0]}")
            return int(parts[0])
    raise CountError(f"perf: no count in {text[:200]!r}")


def parse_strace(text: str) -> dict[str, int]:
    """`strace -c`: calls by name, the total left out. Nothing was called: an empty table."""
    calls: dict[str, int] = {}
    inside = False
    for line in text.splitlines():
        if re.fullmatch(r"[- ]*-[- ]*", line):
            inside = True
            continue
        fields = line.split()
        if not inside or len(fields) < 5 or fields[-1] == "total":
            continue
        if not fields[3].isdigit():
            raise CountError(f"strace: line not understood: {line!r}")
        calls[fields[-1]] = calls.get(fields[-1], 0) + int(fields[3])
    if not inside and text.strip():
        raise CountError(f"strace: no table in {text[:200]!r}")
    return calls


def works(argv: list[str]) -> bool:
    """Whether a tool can do its work here."""
    try:
        return subprocess.run(argv, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def method() -> str:
    """perf, strace or "" """
    if works(["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "true"]):
        return "perf"
    return "strace" if works(["strace", "-c", "-o", "/dev/null", "true"]) else ""


class Counter:
    """Counts the system calls of a process and its threads during the `with`."""

    def __init__(self, tool: str, pid: int, work: Path) -> None:
        self.tool = tool
        self.output = work / "calls.out"
        if tool == "perf":
            self.argv = ["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-o", str(self.output), "-p", str(pid)]
        else:
            self.argv = ["strace", "-f", "-c", "-o", str(self.output), "-p", str(pid)]
        self.total = 0
        self.calls: dict[str, int] = {}

    def __enter__(self) -> "Counter":
        self.process = subprocess.Popen(
            self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(0.3)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        text = self.output.read_text() if self.output.exists() else ""
        if self.tool == "perf":
            self.total = parse_perf(text)
        else:
            self.calls = parse_strace(text)
            self.total = sum(self.calls.values())


def preload(library: Path, work: Path) -> tuple[dict[str, str], Path]:
    """The environment of a server whose allocations are counted, and where."""
    path = work / "mallocs"
    path.unlink(missing_ok=True)
    return {"LD_PRELOAD": str(library), "MALLOC_COUNT": str(path)}, path


def mallocs(path: Path) -> int | None:
    """The counter; None if the server never loaded the library (a static or a set-user-id program)."""
    try:
        return int.from_bytes(path.read_bytes(), sys.byteorder)
    except OSError:
        return None


def per_request(short: int, long: int) -> float:
    """Of two counts over SHORT and LONG requests."""
    return max(0, long - short) / (LONG - SHORT)
