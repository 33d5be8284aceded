# SPDX-License-Identifier: LGPL-2.1-only
"""The tests on Xen, on each Debian release with its own Xen, Linux and QEMU: `make check-xen`.

    python3 -m tests.matrix [--release=N]... [TEST...]

When all of them passed on all releases, docs/matrix.md is written; else, and for some alone, build/matrix/matrix.md.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

from tests.lib.commit import head
from tests.lib.release import RELEASES

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "matrix"
PAGE = ROOT / "docs" / "matrix.md"
TESTS = ("tests/xen", "tests/hosts")
# What a bed says of itself: programs whose versions are told in one line
VERSIONS = "xl info xen_version; uname -r; set -- /usr/libexec/xen-qemu-system-i386 /usr/bin/qemu-system-i386; for q; do [ ! -x $q ] || break; done; $q --version | head -n 1"


@dataclass(frozen=True)
class Run:
    """What came of a release: by test, whether it passed."""

    release: int
    versions: tuple[str, ...]
    passed: dict[str, bool]
    seconds: float

    @property
    def good(self) -> bool:
        return bool(self.passed) and all(self.passed.values())


def outcomes(report: Path) -> dict[str, bool]:
    """Of each test in pytest's report; what was skipped has not passed, and a run without a report has no tests."""
    if not report.exists():
        return {}
    found: dict[str, bool] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}: {case.get('name')}"
        bad = any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
        found[name] = found.get(name, True) and not bad
    return found


def run_release(release: int, tests: list[str]) -> Run:
    """Run the tests on beds of a release."""
    OUT.mkdir(parents=True, exist_ok=True)
    report = OUT / f"debian{release}.xml"
    report.unlink(missing_ok=True)
    environment = {**os.environ, "XENBLK_RELEASE": str(release)}
    begun = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *(tests or TESTS)]
    subprocess.run(command, cwd=ROOT, env=environment, check=False)
    seconds = time.monotonic() - begun
    said = subprocess.run(
        [str(ROOT / "tests/bed"), "--release", str(release), "--", VERSIONS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return Run(release, tuple(said.stdout.splitlines()), outcomes(report), seconds)


def page(runs: list[Run], commit: str) -> str:
    """docs/matrix.md: a line for each file of tests, with what passed of how many; below it what did not."""
    files = sorted({name.partition(":")[0] for run in runs for name in run.passed})
    lines = [
        "# Xen, and what was tested on it",
        "",
        "Written by `make check-xen` (docs/testing.md), on real Xen under QEMU's emulation.",
        f"Commit {commit}, {date.today().isoformat()}, {os.cpu_count()} CPUs.",
        "",
        f"| | {' | '.join(f'Debian {run.release}' for run in runs)} |",
        f"|---|{'---|' * len(runs)}",
        f"| Xen, Linux, QEMU | {' | '.join('<br>'.join(run.versions) or 'not told' for run in runs)} |",
    ]
    for file in files:
        cells = []
        for run in runs:
            counts = Counter(good for name, good in run.passed.items() if name.startswith(f"{file}:"))
            cells.append(f"{counts[True]} of {counts.total()}")
        lines.append(f"| `{file}` | {' | '.join(cells)} |")
    lines.append(f"| minutes | {' | '.join(f'{run.seconds / 60:.0f}' for run in runs)} |")
    for run in runs:
        for name, good in run.passed.items():
            if not good:
                lines.append(f"\nDebian {run.release}: not passed: `{name}`")
    return "\n".join([*lines, ""])


def main() -> int:
    """The program. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="tests.matrix", description=__doc__.partition("\n")[0])
    parser.add_argument("--release", action="append", type=int, choices=list(RELEASES), help="this one alone; may be repeated")
    parser.add_argument("tests", nargs="*", help="these tests alone, as pytest takes them")
    args = parser.parse_args()
    runs = [run_release(release, args.tests) for release in args.release or RELEASES]
    good = all(run.good for run in runs)
    text = page(runs, head("."))
    path = PAGE if good and not args.release and not args.tests else OUT / "matrix.md"
    path.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {path}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
