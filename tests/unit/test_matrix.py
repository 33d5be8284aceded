# SPDX-License-Identifier: LGPL-2.1-only
"""What make check-xen makes of pytest's reports."""

from pathlib import Path

import pytest

from tests import matrix

REPORT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" tests="4">
<testcase classname="tests.xen.test_a" name="test_one" />
<testcase classname="tests.xen.test_a" name="test_two[x]"><failure message="no">no</failure></testcase>
<testcase classname="tests.xen.test_b" name="test_three" />
<testcase classname="tests.xen.test_b" name="test_three"><error message="at the end">no</error></testcase>
<testcase classname="tests.xen.test_b" name="test_four"><skipped message="why">why</skipped></testcase>
</testsuite></testsuites>"""


def test_what_failed_at_the_end_or_was_skipped_has_not_passed(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    assert matrix.outcomes(tmp_path / "report.xml") == {
        "test_a: test_one": True,
        "test_a: test_two[x]": False,
        "test_b: test_three": False,
        "test_b: test_four": False,
    }


def test_a_run_without_a_report_or_tests_is_not_good(tmp_path: Path) -> None:
    assert matrix.outcomes(tmp_path / "none.xml") == {}
    assert not matrix.Run(12, (), {}, 1.0).good
    assert not matrix.Run(12, (), {"a: b": True, "a: c": False}, 1.0).good
    assert matrix.Run(12, (), {"a: b": True}, 1.0).good


def test_the_page_counts_by_file_and_names_what_failed() -> None:
    runs = [
        matrix.Run(12, ("4.17.6", "6.1.0"), {"test_a: one": True, "test_b: two": True}, 61.0),
        matrix.Run(13, (), {"test_a: one": True, "test_a: three": False}, 600.0, "abc", "2026-11-27", source=True),
    ]
    lines = matrix.page(runs).splitlines()
    assert "| | Debian 12 | Debian 13, Xen of source |" in lines
    assert "| commit, day | ,  | abc, 2026-11-27 |" in lines
    assert "| Xen, Linux, QEMU | 4.17.6<br>6.1.0 | not told |" in lines
    assert "| `test_a` | 1 of 1 | 1 of 2 |" in lines
    assert "| `test_b` | 1 of 1 | 0 of 0 |" in lines
    assert "| minutes | 1 | 10 |" in lines
    assert lines[-1] == "Debian 13, Xen of source: not passed: `test_a: three`"


def test_runs_are_kept_by_release_and_xen_until_the_next_of_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "OUT", tmp_path)
    assert matrix.all_kept() == []
    of_source = matrix.Run(13, ("4.23",), {"a: b": False}, 2.0, "abc", "2026-11-27", source=True)
    first, second = (matrix.Run(13, (version, "6.12"), {"a: b": True}, 1.0) for version in ("4.20.0", "4.20.3"))
    for run in (of_source, first, second):
        matrix.keep(run)
    assert matrix.all_kept() == [second, of_source]
