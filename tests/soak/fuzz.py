# SPDX-License-Identifier: LGPL-2.1-only
"""The fuzz part: libFuzzer on the targets of tapdisk-c/fuzz and kernel-patches/fuzz, a slice at a time, all on one
growing corpus each."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from tests.lib.programs import ROOT
from tests.soak.state import Finding, Slice
from tests.soak.work import BUILD, DIRECTORY, SLICE_SECONDS, Programs, SoakError, Task, make

PART = "fuzz"
SEARCH = BUILD / "fuzz" / "tapdisk-c" / "fuzz"
DRIVER_OUT = BUILD / "fuzz" / "kernel-patches"
FINDINGS = DIRECTORY / "findings"
# Quicker, at the price of shorter traces and of a shorter memory for what was freed.
SANITIZERS = {"ASAN_OPTIONS": "malloc_context_size=4:quarantine_size_mb=16"}


@dataclass(frozen=True)
class Target:
    """What is fuzzed: executions of a whole soak, and the most bytes of an input."""

    name: str
    about: str
    count: int
    max_len: int
    driver: bool = False

    @property
    def source(self) -> Path:
        """Where its source and its corpus are."""
        return ROOT / ("kernel-patches" if self.driver else "tapdisk-c") / "fuzz"

    @property
    def search(self) -> Path:
        """The program with libFuzzer."""
        return (DRIVER_OUT if self.driver else SEARCH) / f"{self.name}-search"

    def repeat(self, artifact: Path) -> str:
        """The command that runs one input again, without libFuzzer."""
        if self.driver:
            replay = DRIVER_OUT / self.name
            return f"make -C kernel-patches OUT={DRIVER_OUT} {replay} && {replay} {artifact}"
        replay = BUILD / "asan/tapdisk-c/fuzz" / self.name
        return f"make -C tapdisk-c MODE=asan BUILD={BUILD} {replay} && {replay} {artifact}"

    @property
    def on_chains(self) -> bool:
        """Whether an input is a whole chain."""
        return self.about.startswith("whole chains")


TARGETS = (
    Target("fuzz-footer", "footers, geometry", 8_000_000, 512),
    Target("fuzz-header", "headers", 8_000_000, 1024),
    Target("fuzz-bat", "BATs, free space, writing back", 6_000_000, 1200),
    Target("fuzz-batmap", "batmaps, trimming, writing back", 6_000_000, 4096),
    Target("fuzz-bitmap", "runs of bits", 10_000_000, 260),
    Target("fuzz-locator", "parent locators and names, UTF-16, URLs, writing back", 3_000_000, 1024),
    Target("fuzz-handshake", "what an NBD client sends before its requests", 7_000_000, 1024),
    Target("fuzz-image", "one image: opened, checked, shown, read", 500_000, 8192),
    Target("fuzz-chain", "whole chains: opened, checked, read", 2_000_000, 12288),
    Target("fuzz-disk", "whole chains: served, written to, closed, read again", 500_000, 12288),
    Target("fuzz-change", "whole chains: repaired, resized, filled, parent named anew", 300_000, 12288),
    Target("fuzz-proto", "the driver: what it accepts from a server", 8_000_000, 512, driver=True),
    Target("fuzz-extent", "the driver: extents against a model, withdrawals", 2_000_000, 512, driver=True),
)


@dataclass(frozen=True)
class Output:
    """What libFuzzer printed: executions, its counters, and the file it left."""

    executions: int
    counters: dict[str, int]
    artifact: Path | None
    fault: str


def parse(out: str) -> Output:
    """Take it from its text. executions is 0 if it got to none."""
    total = re.search(r"^stat::number_of_executed_units:\s*(\d+)", out, re.MULTILINE)
    last = re.findall(r"^#(\d+)\s.*?\bcov: (\d+) ft: (\d+) corp: (\d+)/", out, re.MULTILINE)
    left = re.search(r"Test unit written to (\S+)", out)
    fault = re.search(r"^.*(?:does not hold:|runtime error:|ERROR: (?!libFuzzer: deadly)).*$", out, re.MULTILINE)
    counters = dict(zip(("cov", "ft", "corpus"), map(int, last[-1][1:]), strict=True)) if last else {}
    executions = int(total.group(1)) if total else int(last[-1][0]) if last else 0
    return Output(executions, counters, Path(left.group(1)) if left else None, fault.group(0).strip() if fault else "")


class FuzzPart:
    """See the module's text."""

    name = PART
    slice_seconds = SLICE_SECONDS

    def __init__(self, programs: Programs, commit: str) -> None:
        self._programs = programs
        self._commit = commit

    def tasks(self) -> Sequence[Task]:
        return [Task(PART, target.name, target.count) for target in TARGETS]

    def prepare(self) -> None:
        status, _ = self._programs.run(["sh", "-c", "command -v clang"])
        if status:
            raise SoakError("clang is not installed; .ci/deps soak installs it")
        make(self._programs, "CC=clang", "MODE=fuzz", "fuzz")
        make(self._programs, "CC=clang", f"OUT={DRIVER_OUT}", "fuzz", directory="kernel-patches")
        FINDINGS.mkdir(parents=True, exist_ok=True)

    def guess(self, task: Task) -> int:
        return 20_000 if target(task.name).max_len > 4096 else 200_000

    def run(self, task: Task, seed: int, count: int, seconds: float) -> tuple[Slice, list[Finding]]:
        begun = time.monotonic()
        status, out = self._programs.run(argv(target(task.name), seed, count, seconds), SANITIZERS)
        found = parse(out)
        if status and not found.executions:
            raise SoakError(f"{out[-4000:]}\n{task.name} ran nothing; its output is above")
        done = Slice(
            PART,
            task.name,
            seed,
            found.executions,
            round(time.monotonic() - begun, 1),
            self._commit,
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
            found.counters,
        )
        return done, [self._finding(task.name, seed, found, out)] if status else []

    def _finding(self, name: str, seed: int, found: Output, out: str) -> Finding:
        log = FINDINGS / f"{name}-{seed}.log"
        log.write_text(out)
        what = found.fault or "the program died"
        if found.artifact:
            repeat = target(name).repeat(found.artifact)
        else:
            repeat = " ".join(map(str, argv(target(name), seed, found.executions + 1, 600)))
        return Finding(PART, name, seed, f"{what}; libFuzzer's output: {log}", repeat, self._commit)


def target(name: str) -> Target:
    """The target of that name."""
    return next(t for t in TARGETS if t.name == name)


def corpora(name: str) -> list[Path]:
    """Where a target's inputs are: those that were found, and those of the repository."""
    found = DIRECTORY / "corpus" / name
    found.mkdir(parents=True, exist_ok=True)
    return [found, target(name).source / "corpus" / name]


def argv(which: Target, seed: int, count: int, seconds: float) -> list[str | Path]:
    """The command of a slice."""
    return [
        which.search,
        f"-seed={seed}",
        f"-runs={count}",
        f"-max_total_time={max(int(seconds), 1)}",
        f"-max_len={which.max_len}",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-reload=0",
        "-print_final_stats=1",
        *([] if which.driver else [f"-dict={which.source / 'vhd.dict'}"]),
        f"-artifact_prefix={FINDINGS / which.name}-",
        *corpora(which.name),
    ]
