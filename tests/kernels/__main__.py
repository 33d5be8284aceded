# SPDX-License-Identifier: LGPL-2.1-only
"""The driver under kernels that check themselves: `make check-kernels`.

    python3 -m tests.kernels [--kernel=NAME]... [--mutants] [-- PYTEST-ARGUMENTS]

For each kernel (tests/lib/checkkernel.py) the tests of the driver are run in a bed that boots it. When all of them passed
under all kernels, docs/kernels.md is written; else, and for some kernels or tests alone, build/kernels/kernels.md.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

from tests.lib import dmesg
from tests.lib.checkkernel import KERNELS, built
from tests.lib.commit import head

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "kernels"
PAGE = ROOT / "docs" / "kernels.md"
TESTS = (
    "tests/vm/test_blktap_hostile.py",
    "tests/vm/test_blktap_module.py",
    "tests/vm/test_blktap_direct.py",
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
    """What came of one kernel."""

    kernel: str
    version: str
    checkers: str
    tests: int
    failed: int
    seconds: float
    races: tuple[int, int]

    def row(self) -> str:
        """A line of the page's table."""
        races = f"{self.races[1]} in the driver, {self.races[0] - self.races[1]} elsewhere" if "KCSAN" in self.checkers else "-"
        return (
            f"| `{self.kernel}` | {self.version} | {self.checkers} | {self.tests - self.failed} of {self.tests}"
            f" | {self.seconds:.0f} | {races} |"
        )


def run_kernel(name: str, arguments: list[str]) -> Run:
    """Run the tests under a kernel."""
    directory = built(name)
    version = (directory / "version").read_text(encoding="ascii").strip()
    config = (directory / "build/.config").read_text(encoding="ascii").splitlines()
    checkers = ", ".join(text for option, text in CHECKERS.items() if f"{option}=y" in config)
    OUT.mkdir(parents=True, exist_ok=True)
    log, report = OUT / f"{name}.dmesg", OUT / f"{name}.xml"
    for path in (log, report):
        path.unlink(missing_ok=True)
    tests = arguments or [*(() if KERNELS[name].arch == "um" else TESTS), *OWN_TESTS.get(name, ())]
    begun = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", SELECT, "--timeout=3600", f"--junitxml={report}", *tests],
        cwd=ROOT,
        env={**os.environ, "XENBLK_KERNEL": name, "XENBLK_KERNEL_LOG": str(log)},
        check=False,
    )
    seconds = time.monotonic() - begun
    count, failed = counts(report)
    races = dmesg.races(log.read_text(encoding="utf-8")) if log.exists() else (0, 0)
    return Run(name, version, checkers, count, failed, seconds, races)


def counts(report: Path) -> tuple[int, int]:
    """How many tests there were, and how many did not pass: a failed end is one more, and so is a run without a report."""
    if not report.exists():
        return 0, 1
    suite = ElementTree.parse(report).getroot()
    suite = suite if suite.tag == "testsuite" else suite[0]
    bad = sum(int(suite.get(kind, "0")) for kind in ("failures", "errors", "skipped"))
    return int(suite.get("tests", "0")), bad or int(suite.get("tests", "0") == "0")


def page(runs: list[Run], commit: str) -> str:
    """docs/kernels.md."""
    return "\n".join(
        [
            "# The driver under the kernel's own checkers",
            "",
            "Written by `make check-kernels` (docs/testing.md), under QEMU's emulation.",
            f"Commit {commit}, {date.today().isoformat()}, {os.cpu_count()} CPUs.",
            "",
            "| kernel | version | checkers | tests passed | seconds | data races reported |",
            "|---|---|---|---|---|---|",
            *(run.row() for run in runs),
            "",
            "A test that leaves a report in the kernel's log, or memory that nothing leads to, has not passed.",
            "",
        ]
    )


def main() -> int:
    """The program. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="tests.kernels", description=__doc__.partition("\n")[0])
    parser.add_argument("--kernel", action="append", choices=list(KERNELS), help="this one alone; may be repeated")
    parser.add_argument("tests", nargs="*", help="these tests alone, as pytest takes them")
    args = parser.parse_args()
    runs = [run_kernel(name, args.tests) for name in args.kernel or KERNELS]
    text = page(runs, head("kernel-patches", "tests", "tapdisk-c"))
    whole = not args.kernel and not args.tests and not any(run.failed for run in runs)
    path = PAGE if whole else OUT / "kernels.md"
    path.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {path}")
    return 1 if any(run.failed for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
