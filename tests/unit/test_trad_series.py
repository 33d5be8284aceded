# SPDX-License-Identifier: LGPL-2.1-only
"""The series for qemu-xen-traditional, as far as it can be judged without its source; tests/ioemu has the rest."""

import hashlib
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from email import message_from_string
from email.header import decode_header, make_header

import pytest
from patchseries import mail

from tests.ioemu.build import Build, worse
from tests.ioemu.disks import CASES
from tests.ioemu.trad import LEFT, NAMES_BLKTAP, SERIES, base, patches

COVER = "0000-cover-letter.patch"
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


def text(name: str) -> str:
    return (SERIES / name).read_text(encoding="ascii")


def diffs(name: str) -> list[FileDiff]:
    result = []
    for part in text(name).split("\ndiff --git ")[1:]:
        lines = part.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("@@ "))
        index = next(line for line in lines[:start] if line.startswith("index ")).split()[1]
        old, _, new = index.partition("..")
        hunks = tuple(line for line in lines[start:] if line.startswith("@@ "))
        body = tuple(line for line in lines[start:] if line[:1] in tuple("+- "))
        deleted = any(line.startswith("deleted file mode") for line in lines[:start])
        result.append(FileDiff(lines[0].partition(" b/")[2], old, new, deleted, hunks, body))
    return result


def stat(mail_text: str) -> tuple[dict[str, int], tuple[int, ...]]:
    """The statistics in a mail: changed lines by file; files, insertions and deletions."""
    total = TOTAL.search(mail_text)
    assert total
    return {path: int(lines) for path, lines in CHANGED.findall(mail_text)}, tuple(int(n or 0) for n in total.groups())


def test_series_lists_each_patch_in_order() -> None:
    assert sorted(path.name for path in SERIES.glob("*.patch")) == [COVER, *patches()]
    assert [name[:5] for name in patches()] == [f"{number:04}-" for number in range(1, len(patches()) + 1)]
    assert {path.name for path in SERIES.iterdir()} == {COVER, "series", "base", *patches()}


def test_mails_are_those_of_one_series_and_are_made_alike_everywhere() -> None:
    for number, name in enumerate([COVER, *patches()]):
        first, _, rest = text(name).partition("\n")
        assert first == f"From {mail.ZERO} Mon Sep 17 00:00:00 2001"
        message = message_from_string(rest)
        subject = re.sub(r"\s+", " ", str(make_header(decode_header(message["Subject"]))))
        assert subject.startswith(f"[PATCH qemu-xen-traditional {number}/{len(patches())}] ioemu: ")
        assert re.sub(r"\s+", " ", message["From"]) == mail.AUTHOR
        assert message["Date"] == f"Fri, 27 Nov 2026 00:{number:02}:00 +0000"
        assert not re.search(r"/(?:var/tmp|tmp|home|root|work)/|@localhost", rest)


@pytest.mark.parametrize("name", patches())
def test_patch_has_reason_sign_off_and_whole_hunks(name: str) -> None:
    message = text(name).partition("\n---\n")[0].partition("\n\n")[2]
    assert len(message.partition("\nSigned-off-by:")[0].split()) > 20
    assert message.endswith(f"\n\nSigned-off-by: {mail.AUTHOR}")
    assert max(len(line) for line in message.splitlines()[:-1]) <= 76
    command = ["git", "apply", "--numstat", str(SERIES / name)]
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    counts = {path: (int(more), int(less)) for more, less, path in (row.split() for row in result.stdout.splitlines())}
    assert counts == {diff.path: (diff.count("+"), diff.count("-")) for diff in diffs(name)}
    assert all(sum(pair) for pair in counts.values()), "a file without a change"
    by_file, total = stat(text(name))
    assert by_file == {path: sum(pair) for path, pair in counts.items()}
    assert total == (len(counts), sum(more for more, _ in counts.values()), sum(less for _, less in counts.values()))


def test_deleted_files_are_deleted_whole() -> None:
    deleted = [diff for name in patches() for diff in diffs(name) if diff.deleted]
    assert {diff.path for diff in deleted} == {"hw/xen_blktap.c", "hw/xen_blktap.h", "tapdisk-ioemu.c"}
    for diff in deleted:
        assert diff.hunks == (f"@@ -1,{len(diff.lines)} +0,0 @@",)
        data = "".join(f"{line[1:]}\n" for line in diff.lines).encode("ascii")
        assert hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()[:12] == diff.old, diff.path
        assert not int(diff.new, 16)


def test_each_patch_goes_on_where_the_last_one_ended() -> None:
    now: dict[str, str] = {}
    for name in patches():
        for diff in diffs(name):
            assert diff.old == now.get(diff.path, diff.old), f"{name}: {diff.path}"
            now[diff.path] = diff.new


def test_cover_letter_counts_what_the_patches_change() -> None:
    by_file, (files, more, less) = stat(text(COVER))
    all_diffs = [diff for name in patches() for diff in diffs(name)]
    assert set(by_file) == {diff.path for diff in all_diffs}
    assert files == len(by_file)
    # a line that two patches change counts once there
    assert more - less == sum(diff.count("+") - diff.count("-") for diff in all_diffs)
    patched = Counter(diff.path for diff in all_diffs)
    for diff in all_diffs:
        if patched[diff.path] == 1:
            assert by_file[diff.path] == diff.count("+") + diff.count("-")
    shortlog = text(COVER).partition(f" ({len(patches())}):\n")[2].partition("\n\n")[0]
    subjects = [text(name).partition("] ")[2].partition("\n\n")[0].replace("\n", "") for name in patches()]
    assert [line.strip() for line in shortlog.splitlines()] == subjects
    deleted = sorted(diff.path for diff in all_diffs if diff.deleted)
    assert re.findall(r"^ delete mode 100644 (\S+)$", text(COVER), re.MULTILINE) == deleted


def test_base_is_named_the_same_in_both_places() -> None:
    assert set(base()) == {"repository", "commit"}
    assert re.fullmatch(r"[0-9a-f]{40}", base()["commit"])
    assert f"\nbase-commit: {base()['commit']}\n" in text(COVER)


def test_what_is_added_names_no_blktap_and_is_clean() -> None:
    for name in patches():
        for diff in diffs(name):
            for line in (line[1:] for line in diff.lines if line.startswith("+")):
                assert line == line.rstrip()
                assert len(line) <= 80 or "logfile" in line, line
                assert not NAMES_BLKTAP.search(line) or (diff.path, line.strip()) in LEFT, line


# The check itself


def made(compiled: str, tried: str = "", warnings: tuple[str, ...] = (), unresolved: str = "") -> Build:
    names = frozenset(compiled.split())
    counted = Counter(("a.c", warning) for warning in warnings)
    return Build(names | set(tried.split()), names, counted, frozenset(unresolved.split()))


@pytest.mark.parametrize(
    ("after", "still", "found"),
    [
        (made("a.o b.o", "c.o"), "abc", []),
        (made("a.o", "c.o"), "ac", []),
        (made("a.o", "b.o c.o"), "abc", ["b.o is no longer compiled"]),
        (made("a.o b.o"), "abc", ["c.o is no longer tried"]),
        (made("a.o b.o", "c.o", ("unused", "unused")), "abc", ["new warning: a.c: unused"]),
        (made("a.o b.o", "c.o", unresolved="printf init"), "abc", ["nothing defines init"]),
    ],
)
def test_what_is_worse_than_before_is_found(after: Build, still: str, found: list[str]) -> None:
    before = made("a.o b.o", "c.o", ("unused",), "printf")
    assert worse(before, after, set(still)) == found


def test_cases_of_disks_differ() -> None:
    assert len({case.name for case in CASES}) == len({case.orders() for case in CASES}) == len(CASES)
