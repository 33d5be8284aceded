# SPDX-License-Identifier: LGPL-2.1-only
"""What the mails of a series say that they change."""

import re
from dataclasses import dataclass

CHANGED = re.compile(r"^ (\S+) +\| +(\d+)", re.MULTILINE)
TOTAL = re.compile(r"^ (\d+) files? changed(?:, (\d+) insertions?\(\+\))?(?:, (\d+) deletions?\(-\))?$", re.MULTILINE)


@dataclass(frozen=True)
class FileDiff:
    """What a patch does to a file: the blobs before and after, abbreviated, and the lines of its hunks."""

    path: str
    old: str
    new: str
    deleted: bool
    hunks: tuple[str, ...]
    lines: tuple[str, ...]

    def count(self, sign: str) -> int:
        """How many lines go (-) or come (+)."""
        return sum(line.startswith(sign) for line in self.lines)


def diffs(mail: str) -> list[FileDiff]:
    """What a patch does, by file."""
    result = []
    for part in mail.split("\ndiff --git ")[1:]:
        lines = part.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("@@ "))
        index = next(line for line in lines[:start] if line.startswith("index ")).split()[1]
        old, _, new = index.partition("..")
        hunks = tuple(line for line in lines[start:] if line.startswith("@@ "))
        body = tuple(line for line in lines[start:] if line[:1] in tuple("+- "))
        deleted = any(line.startswith("deleted file mode") for line in lines[:start])
        result.append(FileDiff(lines[0].partition(" b/")[2], old, new, deleted, hunks, body))
    return result


def statistics(mail: str) -> tuple[dict[str, int], tuple[int, ...]]:
    """The statistics in a mail: changed lines by file; files, insertions and deletions."""
    total = TOTAL.search(mail)
    if not total:
        raise ValueError("a mail without statistics")
    return {path: int(lines) for path, lines in CHANGED.findall(mail)}, tuple(int(n or 0) for n in total.groups())
