# SPDX-License-Identifier: LGPL-2.1-only
"""The driver under kernels that check themselves: `make check-kernels`.

    python3 -m tests.kernels [--kernel=NAME]... [--mutants] [-- PYTEST-ARGUMENTS]

For each kernel (tests/lib/checkkernel.py) the tests of the driver are run in a bed that boots it. What came of each is kept
in build/kernels. When all of them have passed under all kernels, with the driver as it is now, docs/kernels.md is written;
else, and for some tests alone, build/kernels/kernels.md.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.lib import dmesg
from tests.lib.checkkernel import KERNELS, built
from tests.lib.commit import head, tree

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "kernels"
PAGE = ROOT / "docs" / "kernels.md"
DRIVER = "kernel-patches/src"
TESTS = (
    "tests/vm/test_blktap_hostile.py",
    "tests/vm/test_blktap_module.py",
    "tests/vm/test_blktap_direct.py",
    "tests/vm/test_blktap_last_close.py",
    "tests/vm/test_kernel_io.py",
)
# Those that a kernel alone can run
OWN_TESTS = {
    "kasan": ("tests/kernels/test_starved.py",),
    "kasan-13": ("tests/kernels/test_starved.py",),
    "uml": ("tests/kernels/test_uml.py",),
}
# The kernel is the spec's, whatever release the test asks for.
SELECT = "not debian13"
CHECKERS = {
    "CONFIG_KASAN": "KASAN",
    "CONFIG_UBSAN": "UBSAN",
    "CONFIG_PROVE_LOCKING": "lockdep",
    "CONFIG_DEBUG_ATOMIC_SLEEP": "atomic sleep",
    "CONFIG_DEBUG_OBJECTS": "debug objects",
    "CONFIG_DEBUG_KMEMLEAK": "kmemleak",
    "CONFIG_FAILSLAB": "failing allocations",
    "CONFIG_KCSAN": "KCSAN",
}


@dataclass(frozen=True)
class Run:
    """What came of one kernel: `races` is all that it reported and those of the driver, `driver` the tree of its source."""

    kernel: str
    version: str
    checkers: str
    tests: int
    failed: int
    seconds: float
    races: tuple[int, int] = (0, 0)
    driver: str = ""
    commit: str = ""
    day: str = ""

    @property
    def good(self) -> bool:
        return self.tests > 0 and self.failed == 0

    def row(self) -> str:
        """A line of the page's table."""
        races = f"{self.races[1]} in the driver, {self.races[0] - self.races[1]} elsewhere" if "KCSAN" in self.checkers else "-"
        return (
            f"| `{self.kernel}` | {self.version} | {self.checkers} | {self.tests - self.failed} of {self.tests}"
            f" | {races} | {self.seconds / 60:.0f} | {self.commit}, {self.day} |"
        )


def run_kernel(name: str, arguments: list[str]) -> Run:
    """Run the tests under a kernel."""
    OUT.mkdir(parents=True, exist_ok=True)
    log, report = OUT / f"{name}.dmesg", OUT / f"{name}.xml"
    for path in (log, report):
        path.unlink(missing_ok=True)
    tests = arguments or [*(() if KERNELS[name].arch == "um" else TESTS), *OWN_TESTS.get(name, ())]
    driver, commit = tree(DRIVER), head("kernel-patches", "tests", "tapdisk-c")
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", SELECT, "--timeout=3600", f"--junitxml={report}", *tests],
        cwd=ROOT,
        env={**os.environ, "XENBLK_KERNEL": name, "XENBLK_KERNEL_LOG": str(log)},
        check=False,
    )
    return outcome(name, log, report, driver, commit)


def outcome(name: str, log: Path, report: Path, driver: str, commit: str) -> Run:
    """What pytest's report and the kernel's log say."""
    directory = built(name)
    version = (directory / "version").read_text(encoding="ascii").strip()
    config = (directory / "build/.config").read_text(encoding="ascii").splitlines()
    checkers = ", ".join(text for option, text in CHECKERS.items() if f"{option}=y" in config)
    count, failed, seconds = counts(report)
    races = dmesg.races(log.read_text(encoding="utf-8")) if log.exists() else (0, 0)
    return Run(name, version, checkers, count, failed, seconds, races, driver, commit, date.today().isoformat())


def counts(report: Path) -> tuple[int, int, float]:
    """How many tests there were, how many did not pass, and seconds. A failed end is one more, and so is a run without a report."""
    if not report.exists():
        return 0, 1, 0.0
    suite = ElementTree.parse(report).getroot()
    suite = suite if suite.tag == "testsuite" else suite[0]
    bad = sum(int(suite.get(kind, "0")) for kind in ("failures", "errors", "skipped"))
    return int(suite.get("tests", "0")), bad or int(suite.get("tests", "0") == "0"), float(suite.get("time", "0"))


def keep(run: Run) -> None:
    """For the page."""
    (OUT / f"{run.kernel}.json").write_text(json.dumps(asdict(run)), encoding="utf-8")


def all_kept() -> list[Run]:
    """What is known of each kernel."""
    runs = []
    for name in KERNELS:
        path = OUT / f"{name}.json"
        if path.exists():
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            reported, of_driver = fields.pop("races")
            runs.append(Run(races=(reported, of_driver), **fields))
    return runs


def whole(runs: list[Run], driver: str) -> bool:
    """Whether all kernels are there, good, and had this driver; one that is not committed is no driver to name."""
    return {run.kernel for run in runs if run.good and run.driver == driver} == set(KERNELS) and not driver.endswith("+") and driver != "unknown"


def page(runs: list[Run]) -> str:
    """docs/kernels.md."""
    return "\n".join(
        [
            "# The driver under the kernel's own checkers",
            "",
            "Written by `make check-kernels` (docs/testing.md), under QEMU's emulation with 2 virtual CPUs, or as user-mode Linux.",
            "",
            "| kernel | version | checkers | tests passed | data races reported | minutes | commit, day |",
            "|---|---|---|---|---|---|---|",
            *(run.row() for run in runs),
            "",
            "A test that leaves a report in the kernel's log, or memory that nothing leads to, has not passed. docs/testing.md says which",
            "data races count as the driver's.",
            "",
        ]
    )


def main() -> int:
    """The program. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="tests.kernels", description=__doc__.partition("\n")[0])
    parser.add_argument("--kernel", action="append", choices=list(KERNELS), help="this one alone; may be repeated")
    parser.add_argument("tests", nargs="*", help="these tests alone, as pytest takes them")
    args = parser.parse_args()
    runs = []
    for name in args.kernel or KERNELS:
        runs.append(run_kernel(name, args.tests))
        if not args.tests:
            keep(runs[-1])
    shown = runs if args.tests else all_kept()
    path = PAGE if not args.tests and whole(shown, tree(DRIVER)) else OUT / "kernels.md"
    text = page(shown)
    path.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {path}")
    return 0 if all(run.good for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
