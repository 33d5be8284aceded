# SPDX-License-Identifier: LGPL-2.1-only
"""What the figures were measured on, without names or paths of the machine."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def first_line(argv: list[str]) -> str:
    """The first line that a command prints, or "" if it can't run."""
    try:
        done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    return lines[0] if lines else ""


def versions() -> dict[str, str]:
    """Of the client and of the servers of the packages."""
    found = {
        name: first_line([name, "--version"])
        for name in ("fio", "qemu-nbd", "qemu-storage-daemon", "qemu-img", "nbdkit", "cp", "strace", "perf")
    }
    return {name: line for name, line in found.items() if line}


def file_system(directory: Path) -> str:
    """The type of the file system that holds a directory."""
    return first_line(["findmnt", "-n", "-o", "FSTYPE", "-T", str(directory)])


def describe(media: dict[str, Path]) -> dict[str, Any]:
    """The machine: CPU, memory, kernel, the file systems of the media."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return {
        "cpu": model.group(1) if model else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "virtual": bool(re.search(r"^flags.*\bhypervisor\b", cpuinfo, re.MULTILINE)),
        "kernel": platform.release(),
        "file_systems": {name: file_system(directory) for name, directory in media.items()},
        "root": os.geteuid() == 0,
    }


def busy_seconds() -> float:
    """CPU time that all CPUs have spent on anything, time stolen by the host included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def others_busy(seconds: float = 1.0) -> float:
    """How many CPUs are busy while the bench does nothing."""
    before = busy_seconds()
    time.sleep(seconds)
    return (busy_seconds() - before) / seconds


def split_cpus(cpus: Iterable[int]) -> tuple[str, str]:
    """CPUs for the server and for the client: the client gets the last one alone. ("", ""): too few."""
    ordered = sorted(cpus)
    if len(ordered) < 2:
        return "", ""
    return ",".join(map(str, ordered[:-1])), str(ordered[-1])
