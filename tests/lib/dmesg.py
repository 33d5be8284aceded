# SPDX-License-Identifier: LGPL-2.1-only
"""What a test may leave in the kernel's log, and what not."""

import re

# Reviewed: each line has been seen without any code of ours, and says nothing about it.
HARMLESS = [
    re.compile(pattern)
    for pattern in (
        r"crc32c_generic.*File exists",
        r"hrtimer: interrupt took",
    )
]

# Faults of the kernel and hints of one: these fail a test whoever caused them.
FAULT = re.compile(
    r"\bBUG:|\bWARNING: |kernel BUG at|\bOops: |Call Trace:|general protection|Kernel panic"
    r"|blocked for more than \d+ seconds|soft lockup|hard LOCKUP|rcu.*stall|Bad page|Bad rss-counter|refcount_t"
    r"|use-after-free|KASAN|UBSAN|list_(add|del) corruption|scheduling while atomic|sleeping function called"
    r"|possible circular locking|double free|segfault at|trap invalid opcode",
)


def findings(text: str) -> list[str]:
    """The lines of `text` that show a fault and are not known to be harmless."""
    return [
        line
        for line in text.splitlines()
        if FAULT.search(line) and not any(harmless.search(line) for harmless in HARMLESS)
    ]
