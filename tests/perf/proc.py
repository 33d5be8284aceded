# SPDX-License-Identifier: LGPL-2.1-only
"""CPU time and memory of a server, from /proc.

A server is started as the leader of a session, so its processes are those of that session; threads of the kernel that
work for an io_uring are threads of its process and are counted too.
"""

import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def fields(text: str) -> list[str]:
    """The fields of /proc/PID/stat from the third on (the state); the name before it may hold anything."""
    return text[text.rindex(")") + 2 :].split()


def members(session: int) -> list[int]:
    """The processes of a session."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = fields(Path("/proc", entry, "stat").read_text())
            except (OSError, ValueError):
                continue
            if int(stat[3]) == session:
                found.append(int(entry))
    return found


def cpu_seconds(session: int) -> float:
    """User and system time of a session's processes, ended threads and waited-for children included."""
    ticks = 0
    for pid in members(session):
        try:
            ticks += sum(map(int, fields(Path(f"/proc/{pid}/stat").read_text())[11:15]))
        except OSError:
            continue
    return ticks / TICKS


def rss_kib(session: int) -> int:
    """Resident memory of a session's processes, without RssShmem: an image's own pages, if it lies in memory."""
    total = 0
    for pid in members(session):
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        lines = (line.split() for line in text.splitlines())
        total += sum(int(line[1]) for line in lines if line[:1] in (["RssAnon:"], ["RssFile:"]))
    return total
