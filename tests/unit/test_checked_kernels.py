# SPDX-License-Identifier: LGPL-2.1-only
"""What make check-kernels makes of its runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernels import __main__ as kernels
from tests.kernels import mutants
from tests.lib.checkkernel import KERNELS

GOOD = kernels.Run("kcsan", "6.1.1", "KCSAN", 84, 0, 3000.0, (12, 0), "abc", "def", "2026-11-29")


def test_a_run_without_a_report_without_tests_or_with_one_skipped_is_not_good(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    for text, counts in (
        ("", (0, 1, 0.0)),
        ('<testsuites><testsuite tests="0" time="1.5"/></testsuites>', (0, 1, 1.5)),
        ('<testsuites><testsuite tests="3" errors="0" failures="1" skipped="1" time="2.0"/></testsuites>', (3, 2, 2.0)),
        ('<testsuites><testsuite tests="3" errors="0" failures="0" skipped="0" time="2.0"/></testsuites>', (3, 0, 2.0)),
    ):
        if text:
            report.write_text(text)
        assert kernels.counts(report) == counts
        tests, failed, seconds = counts
        assert kernels.Run("uml", "", "", tests, failed, seconds).good == (counts == (3, 0, 2.0))


def test_the_page_is_whole_when_every_kernel_has_passed_with_this_driver() -> None:
    runs = [replace(GOOD, kernel=name) for name in KERNELS]
    assert kernels.whole(runs, "abc")
    assert not kernels.whole(runs[1:], "abc")
    assert not kernels.whole(runs, "abd")
    assert not kernels.whole([replace(runs[0], failed=1), *runs[1:]], "abc")
    assert not kernels.whole([replace(runs[0], driver="old"), *runs[1:]], "abc")
    assert not kernels.whole([replace(run, driver="abc+") for run in runs], "abc+")


def test_the_page_tells_races_of_the_driver_from_others() -> None:
    assert "| `kcsan` | 6.1.1 | KCSAN | 84 of 84 | 0 in the driver, 12 elsewhere | 50 | def, 2026-11-29 |" in kernels.page([GOOD])


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=[mutant.name for mutant in mutants.MUTANTS])
def test_a_fault_that_is_put_into_the_driver_has_its_place_there(mutant: mutants.Mutant) -> None:
    assert mutant.new in mutants.mutated(mutant)


def test_a_run_is_kept_until_the_next_of_its_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "OUT", tmp_path)
    assert kernels.all_kept() == []
    for run in (replace(GOOD, failed=1), GOOD, replace(GOOD, kernel="kasan")):
        kernels.keep(run)
    assert kernels.all_kept() == [replace(GOOD, kernel="kasan"), GOOD]
