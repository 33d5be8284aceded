# SPDX-License-Identifier: LGPL-2.1-only
"""The tests on Xen, on each Debian release with its own Xen, Linux and QEMU: `make check-xen`.

    python3 -m tests.matrix [--release=N]... [--xen=DIR] [TEST...]

What came of each is kept in build/matrix. When all tests have passed on all releases, at whatever commits, docs/matrix.md is
written; else, and for some tests alone, build/matrix/matrix.md. With --xen they run on the Xen in DIR (tests/lib/xentree.py)
instead of Debian's, on Debian 13 if nothing else is said, and the page has it too, whatever came of it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.lib.commit import head
from tests.lib.release import RELEASES
from tests.lib.xentree import VARIABLE

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "matrix"
PAGE = ROOT / "docs" / "matrix.md"
SOURCE_RELEASE = 13
TESTS = ("tests/xen", "tests/hosts")
# What a bed says of itself: programs whose versions are told in one line
VERSIONS = "echo $(xl info xen_version) $(xl info xen_changeset); uname -r; set -- /usr/libexec/xen-qemu-system-i386 /usr/bin/qemu-system-i386; for q; do [ ! -x $q ] || break; done; $q --version | head -n 1"


@dataclass(frozen=True)
class Run:
    """What came of a release, with its own Xen or one of source: by test, whether it passed."""

    release: int
    versions: tuple[str, ...]
    passed: dict[str, bool]
    seconds: float
    commit: str = ""
    day: str = ""
    source: bool = False

    @property
    def name(self) -> str:
        """What it is called in the page."""
        return f"Debian {self.release}{', Xen of source' if self.source else ''}"

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


def run_release(release: int, xen: Path | None, tests: list[str]) -> Run:
    """Run the tests on beds of a release, with a Xen of source in the place of its own."""
    OUT.mkdir(parents=True, exist_ok=True)
    report = OUT / f"debian{release}.xml"
    report.unlink(missing_ok=True)
    environment = {**os.environ, "XENBLK_RELEASE": str(release), VARIABLE: str(xen.resolve()) if xen else ""}
    begun, commit = time.monotonic(), head(".")
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *(tests or TESTS)]
    subprocess.run(command, cwd=ROOT, env=environment, check=False)
    seconds = time.monotonic() - begun
    said = subprocess.run(
        [str(ROOT / "tests/bed"), "--release", str(release), "--", VERSIONS],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    versions = tuple(said.stdout.splitlines())
    return Run(release, versions, outcomes(report), seconds, commit, date.today().isoformat(), bool(xen))


def kept(release: int, source: bool) -> Path:
    """The file that a run is kept in."""
    return OUT / f"debian{release}{'-source' if source else ''}.json"


def keep(run: Run) -> None:
    """For the page."""
    kept(run.release, run.source).write_text(json.dumps(asdict(run)), encoding="utf-8")


def all_kept() -> list[Run]:
    """What is known of each, those of Debian's own Xen first."""
    runs = []
    for source in (False, True):
        for release in RELEASES:
            path = kept(release, source)
            if path.exists():
                fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                runs.append(Run(versions=tuple(fields.pop("versions")), **fields))
    return runs


def page(runs: list[Run]) -> str:
    """docs/matrix.md: a line for each file of tests, with what passed of how many; below it what did not."""
    files = sorted({name.partition(":")[0] for run in runs for name in run.passed})
    lines = [
        "# Xen, and what was tested on it",
        "",
        f"Written by `make check-xen` (docs/testing.md), on real Xen under QEMU's emulation, on {os.cpu_count()} CPUs.",
        "",
        f"| | {' | '.join(run.name for run in runs)} |",
        f"|---|{'---|' * len(runs)}",
        f"| Xen, Linux, QEMU | {' | '.join('<br>'.join(run.versions) or 'not told' for run in runs)} |",
        f"| commit, day | {' | '.join(f'{run.commit}, {run.day}' for run in runs)} |",
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
                lines.append(f"\n{run.name}: not passed: `{name}`")
    return "\n".join([*lines, ""])


def main() -> int:
    """The program. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="tests.matrix", description=__doc__.partition("\n")[0])
    parser.add_argument("--release", action="append", type=int, choices=list(RELEASES), help="this one alone; may be repeated")
    parser.add_argument("--xen", type=Path, metavar="DIR", help="the DESTDIR of `make install` of a Xen built from source")
    parser.add_argument("tests", nargs="*", help="these tests alone, as pytest takes them")
    args = parser.parse_args()
    releases = args.release or ([SOURCE_RELEASE] if args.xen else RELEASES)
    runs = []
    for release in releases:
        runs.append(run_release(release, args.xen, args.tests))
        if not args.tests:
            keep(runs[-1])
    shown = runs if args.tests else all_kept()
    text = page(shown)
    debians = {run.release for run in shown if run.good and not run.source}
    path = PAGE if debians == set(RELEASES) and not args.tests else OUT / "matrix.md"
    path.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {path}")
    return 0 if all(run.good for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
