# SPDX-License-Identifier: LGPL-2.1-only
"""The series for qemu-xen-traditional, as far as it can be judged without its source; tests/ioemu has the rest."""

import hashlib
import re
from collections import Counter

import pytest

from tests.ioemu.build import Build, worse
from tests.ioemu.disks import CASES
from tests.ioemu.maildiff import diffs
from tests.ioemu.series import COVER
from tests.ioemu.trad import LEFT, NAMES_BLKTAP, SERIES


def test_deleted_files_are_deleted_whole() -> None:
    deleted = [diff for name in SERIES.patches() for diff in diffs(SERIES.text(name)) if diff.deleted]
    assert {diff.path for diff in deleted} == {"hw/xen_blktap.c", "hw/xen_blktap.h", "tapdisk-ioemu.c"}
    for diff in deleted:
        assert diff.hunks == (f"@@ -1,{len(diff.lines)} +0,0 @@",)
        data = "".join(f"{line[1:]}\n" for line in diff.lines).encode("ascii")
        assert hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()[:12] == diff.old, diff.path
        assert not int(diff.new, 16)


def test_base_is_named_the_same_in_both_places() -> None:
    base = SERIES.base()
    assert set(base) == {"repository", "commit"}
    assert re.fullmatch(r"[0-9a-f]{40}", base["commit"])
    assert f"\nbase-commit: {base['commit']}\n" in SERIES.text(COVER)


def test_subjects_name_the_program() -> None:
    for name in [COVER, *SERIES.patches()]:
        assert re.search(r"^Subject: \[PATCH [^]]*\] ioemu: ", SERIES.text(name), re.MULTILINE)


def test_what_is_added_names_no_blktap() -> None:
    for name in SERIES.patches():
        for diff in diffs(SERIES.text(name)):
            for line in (line[1:] for line in diff.lines if line.startswith("+")):
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
