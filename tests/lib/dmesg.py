# SPDX-License-Identifier: LGPL-2.1-only
"""What a test may leave in the kernel's log, and what not."""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A line that looks like a fault, has been seen without any code of ours, and says nothing about it."""

    pattern: str
    reason: str


KNOWN = (
    Known(r"crc32c_generic.*File exists", "loaded by the initrd, built in or loaded again by ext4"),
    Known(r"hrtimer: interrupt took", "emulation is slow"),
    Known(r"RCU callback double-/use-after-free debug is enabled", "debug objects say that they are there"),
    Known(
        r"kmemleak: Automatic memory scanning thread|kmemleak: Kernel memory leak detector (?:initialized|disabled)",
        "kmemleak says that it is there",
    ),
)

# Faults of the kernel and hints of one: these fail a test whoever caused them.
FAULT = re.compile(
    r"\bBUG:|\bWARNING: |kernel BUG at|\bOops: |Call Trace:|general protection|Kernel panic"
    r"|blocked for more than \d+ seconds|soft lockup|hard LOCKUP|rcu.*stall|Bad page|Bad rss-counter|refcount_t"
    r"|use-after-free|KASAN|KCSAN|UBSAN|list_(add|del) corruption|scheduling while atomic|sleeping function called"
    r"|double free|segfault at|trap invalid opcode|ODEBUG|kmemleak: \d+ new suspected|stack-out-of-bounds"
    # lockdep's
    r"|possible (?:circular locking|recursive locking|irq lock inversion)|inconsistent lock state|lock held (?:when|at)"
    r"|bad unlock balance|held lock freed|[Ii]nvalid wait context|suspicious RCU usage|MAX_LOCK\w+ too low"
    r"|(?:SOFTIRQ|HARDIRQ|RECLAIM_FS)-(?:un)?safe.*lock order|DEBUG_LOCKS_WARN_ON",
)

# What the driver says of itself: an error of its own or of its server, but for these
DRIVER = re.compile(r"\bblktap2 blktap\d+: |\bblktap: ")
DRIVER_NEWS = re.compile(
    r"\bblktap2 blktap\d+: task \d+ (?:is gone: requests are held|serves the device again)$"
    r"|\bblktap: loading out-of-tree module|\bblktap: module verification failed"
)

KCSAN_REPORT = re.compile(r"^.*BUG: KCSAN: .*$(?:\n(?!.*={20}).*$)*", re.M)
# The accesses of a report, each with its first frames: what touches the data, and who called that.
KCSAN_ACCESS = re.compile(r"^.*(?:read|write|assert no accesses).* by (?:task|interrupt).*$((?:\n.*\+0x[0-9a-f]+/.*$){1,3})", re.M)


def findings(text: str, expected: Iterable[str] = ()) -> list[str]:
    """The lines of `text` that show a fault, and what the driver complains of, but for what is known to be harmless.

    `expected`: regular expressions of what the test has provoked. Of data races see is_of_the_driver().
    """
    harmless = [re.compile(known) for known in (*(known.pattern for known in KNOWN), *expected)]
    lines = KCSAN_REPORT.sub(_races_of_the_driver, text).splitlines()
    return [
        line
        for line in lines
        if (FAULT.search(line) or (DRIVER.search(line) and not DRIVER_NEWS.search(line)))
        and not any(pattern.search(line) for pattern in harmless)
    ]


def is_of_the_driver(report: str) -> bool:
    """Of a data race: the driver makes one of the accesses, itself or by a function that it calls or that this one calls.

    The stock kernel has races by the hundred in itself, in AIO and in page flags for example, and it may run beneath the
    driver, or be called by it to end a request.
    """
    accesses = [access[1] for access in KCSAN_ACCESS.finditer(report)]
    return not accesses or any("[blktap]" in frames for frames in accesses) or "[blktap]" in report.splitlines()[0]


def _races_of_the_driver(report: "re.Match[str]") -> str:
    return report[0] if is_of_the_driver(report[0]) else ""


def races(text: str) -> tuple[int, int]:
    """How many data races KCSAN reported, and how many of them are the driver's."""
    reports = [report[0] for report in KCSAN_REPORT.finditer(text)]
    return len(reports), sum(map(is_of_the_driver, reports))


def from_first(text: str, lines: list[str], most: int = 120) -> str:
    """The log from the first of the lines on: the report that it begins."""
    every = text.splitlines()
    start = every.index(lines[0]) if lines and lines[0] in every else 0
    return "\n".join(every[start : start + most])
