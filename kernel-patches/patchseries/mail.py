# SPDX-License-Identifier: GPL-2.0-only
"""Patches and cover letters as `git format-patch --zero-commit` writes them, without the kernel's source."""

import difflib
import hashlib
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from patchseries import SeriesError
from patchseries.base import Place

AUTHOR = "Seed 75931363 maintainers <maintainers@users.noreply.r-seed-75931363.example>"
# Not the day on which a series is made: what is made twice is the same.
FIRST_DATE = datetime(2026, 11, 26, tzinfo=UTC)
ZERO = 40 * "0"


@dataclass(frozen=True)
class Letter:
    """What the header and the end of a mail say."""

    number: int
    total: int
    version: str
    prefix: str

    def head(self, subject: str) -> str:
        """Up to the empty line before the message."""
        width = len(str(self.total))
        date = format_datetime(FIRST_DATE + timedelta(minutes=self.number))
        tag = f"[PATCH {self.prefix} {self.number:0{width}}/{self.total}]"
        return f"From {ZERO} Mon Sep 17 00:00:00 2001\nFrom: {AUTHOR}\nDate: {date}\nSubject: {tag} {subject}\n\n"

    def tail(self) -> str:
        """The signature."""
        return f"-- \nxenblk {self.version}\n\n"


def _blob(text: str) -> str:
    data = text.encode()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()[:12]


def new_file(path: str, text: str) -> str:
    """The diff that makes a file."""
    lines = text.splitlines()
    count = "1" if len(lines) == 1 else f"1,{len(lines)}"
    head = f"diff --git a/{path} b/{path}\nnew file mode 100644\nindex {12 * '0'}..{_blob(text)}\n"
    head += f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +{count} @@\n"
    return head + "".join(f"+{line}\n" for line in lines)


def changed_file(path: str, old: str, new: str) -> str:
    """The diff of a file that an earlier patch made."""
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{path}", f"b/{path}"
    )
    return f"diff --git a/{path} b/{path}\nindex {_blob(old)}..{_blob(new)} 100644\n" + "".join(lines)


def added_lines(path: str, place: Place, text: str) -> str:
    """The diff that adds lines to a file of the kernel. Its hash would need the whole file."""
    lines = text.splitlines()
    old = len(place.before) + len(place.behind)
    first = place.line - len(place.before) + 1
    result = f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n"
    result += f"@@ -{first},{old} +{first},{old + len(lines)} @@\n"
    for sign, part in ((" ", place.before), ("+", tuple(lines)), (" ", place.behind)):
        result += "".join(f"{sign}{line}\n" for line in part)
    return result


def statistics(diffs: str) -> str:
    """How many lines of which files."""
    command = ["git", "apply", "--stat", "--summary", "-"]
    # in a repository it would leave out what is not below the directory
    result = subprocess.run(command, input=diffs, cwd="/", capture_output=True, text=True, check=False)
    if result.returncode:
        raise SeriesError(f"git apply --stat: {result.stderr.strip()}")
    return result.stdout
