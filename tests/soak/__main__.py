# SPDX-License-Identifier: LGPL-2.1-only
"""`python3 -m tests.soak`: what `make soak` runs."""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import SystemRandom
from types import FrameType

from tests.lib.commit import head
from tests.lib.programs import ROOT
from tests.perf import machine
from tests.soak import coverage, report, state
from tests.soak.crashpart import CrashPart
from tests.soak.diskpart import DiskPart
from tests.soak.fuzz import FuzzPart
from tests.soak.killpart import KillPart
from tests.soak.movepart import MovePart
from tests.soak.runner import Runner, Wanted
from tests.soak.work import BUILD, DIRECTORY, Part, Programs, SoakError, Stopped, take_lock

STATE = DIRECTORY / "state.json"
PAGE = ROOT / "docs" / "soak.md"
PARTS: dict[str, type[FuzzPart] | type[CrashPart] | type[DiskPart] | type[KillPart] | type[MovePart]] = {
    "fuzz": FuzzPart,
    "crash": CrashPart,
    "disk": DiskPart,
    "kills": KillPart,
    "migrations": MovePart,
}
FOUND, ERROR, INTERRUPTED = 1, 2, 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        "python3 -m tests.soak",
        description="Fuzz executions and crash states by the million, rounds of the VHD data path, kills of tapdisk under load, and migrations. Stop it when you like: what was done is in "
        "build/soak, and the next call goes on. Status 1: something was found.",
    )
    result.add_argument("--part", choices=PARTS, action="append", help="only this one (repeats)")
    result.add_argument("--scale", type=float, default=1.0, metavar="F", help="this fraction of the counts (default 1)")
    result.add_argument("--seconds", type=float, metavar="N", help="stop after so long")
    result.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="at a time (default: CPUs)")
    result.add_argument("--seed", type=int, metavar="N", help="of the slices' seeds (default: by chance)")
    result.add_argument("--fresh", action="store_true", help="start over: forget what was done and found")
    result.add_argument("--page", type=Path, metavar="FILE.md", help="where the figures go")
    return result


def say(text: str) -> None:
    """Print at once, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def wanted_of(parts: Sequence[Part], scale: float) -> list[Wanted]:
    """The counts of a soak of that scale."""
    return [Wanted(task, part, max(round(task.count * scale), 1)) for part in parts for task in part.tasks()]


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _write_page(args: argparse.Namespace, runner: Runner, wanted: list[Wanted], seed: int, whole: bool) -> None:
    # What is incomplete is not what the documentation speaks of.
    page = args.page or (PAGE if whole else DIRECTORY / PAGE.name)
    page.write_text(report.text(runner.state, wanted, machine.describe({}), seed))
    say(f"figures: {page}")


SECTIONS = {"disk": report.disk_section, "kills": report.kills_section, "migrations": report.migrations_section}
"""Parts that alone need no soak of the rest: their section of the page is replaced."""


def _write_section(part: str, runner: Runner, wanted: list[Wanted]) -> None:
    PAGE.write_text(report.splice(PAGE.read_text(), SECTIONS[part](runner.state, wanted)))
    say(f"section on {part}: {PAGE}")


def _run(args: argparse.Namespace, programs: Programs, seed: int) -> int:
    if args.fresh:
        shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    start = state.load(STATE)
    if start.findings:
        for finding in start.findings:
            say(f"FOUND earlier by {finding.name}: {finding.text}\n  again: {finding.repeat}")
        say("once that is fixed, start over with --fresh")
        return FOUND
    this = head("tapdisk-c", "kernel-patches", "tests")
    parts: list[Part] = [make_part(programs, this) for name, make_part in PARTS.items() if name in args.part]
    for part in parts:
        say(f"building what {part.name} runs")
        part.prepare()
    wanted = wanted_of(parts, args.scale)
    runner = Runner(start, STATE, wanted, seed, say)
    try:
        runner.run(args.jobs, args.seconds)
        complete = not runner.missing() and not runner.state.findings
        if complete and "fuzz" in args.part:
            say("coverage")
            runner.state = replace(runner.state, coverage=coverage.measure(programs))
            runner.state.save(STATE)
    finally:
        programs.stop()
        whole = not runner.missing() and args.scale >= 1 and len(parts) == len(PARTS)
        _write_page(args, runner, wanted, seed, whole)
        if len(args.part) == 1 and args.part[0] in SECTIONS and not runner.missing() and args.scale >= 1:
            _write_section(args.part[0], runner, wanted)
    if runner.state.findings:
        say(f"{len(runner.state.findings)} findings")
        return FOUND
    missing = runner.missing()
    say(f"not done yet: {', '.join(f'{n} ({c:,})' for n, c in missing.items())}" if missing else "all done, no finding")
    return 0


def main() -> int:
    """See the module's text."""
    args = parser().parse_args()
    args.part = args.part or list(PARTS)
    seed = args.seed if args.seed is not None else SystemRandom().randrange(1 << 32)
    say(f"seed {seed} (--seed={seed})")
    signal.signal(signal.SIGTERM, _interrupt)
    programs = Programs(take_lock(BUILD / "soak.lock", say))
    try:
        return _run(args, programs, seed)
    except (KeyboardInterrupt, Stopped):
        say("stopped; the next call goes on from here")
        return INTERRUPTED
    except (SoakError, state.StateError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return ERROR
    finally:
        programs.stop()


if __name__ == "__main__":
    sys.exit(main())
