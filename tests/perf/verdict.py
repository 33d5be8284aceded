# SPDX-License-Identifier: LGPL-2.1-only
"""What the results say: for each cell the ratio to the best other server, for each target whether it is reached."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.perf import stats
from tests.perf.cells import cell as cell_of
from tests.perf.checks import RSS, SPACE
from tests.perf.results import Results
from tests.perf.stall import STALL
from tests.perf.stats import Interval

BOUND = 0.85
"""Above this share of its one CPU a client, or a server, is what limits a cell."""

REACHED, MISSED, OPEN, ABSENT, NOTED = "reached", "MISSED", "open", "not measured", ""
"""OPEN: the bounds hold the target between them: more rounds, or a quieter machine, would tell. NOTED: no target."""


@dataclass(frozen=True)
class Ratio:
    """A cell: ours against the best other, that which has the highest median of IOPS.

    iops above 1 is better, cpu (server CPU a request) and p99 below 1. limit says which of both is at its limit.
    """

    cell: str
    mine: str
    other: str
    iops: Interval
    cpu: Interval | None
    p99: Interval
    limit: str
    verdict: str
    iops_target: float
    cpu_target: float | None

    @property
    def target(self) -> str:
        """As text."""
        return f"IOPS {self.iops_target}" + (f", CPU {self.cpu_target}" if self.cpu_target else "")


@dataclass(frozen=True)
class Target:
    """A line of the table of targets. value and bounds as text, since units differ."""

    name: str
    value: str
    target: str
    verdict: str


def at_least(found: Interval, limit: float) -> str:
    """Judge by the lower bound; missed only if the upper one is below too."""
    return REACHED if found.low >= limit else MISSED if found.high < limit else OPEN


def at_most(found: Interval, limit: float) -> str:
    """Judge by the upper bound; missed only if the lower one is above too."""
    return REACHED if found.high <= limit else MISSED if found.low > limit else OPEN


def worst(*verdicts: str) -> str:
    """The worst of some verdicts."""
    return max(verdicts, key=(REACHED, OPEN, ABSENT, MISSED).index)


def typical(results: Results, cell: str, entry: str, name: str) -> float:
    """The median of a figure over the rounds."""
    return median(results.series(cell, entry, name).values())


def mine_in(results: Results, cell: str) -> str:
    """Our entry in a cell, or ""."""
    return next((name for name in results.entries(cell) if results.is_judged(name)), "")


def others_in(results: Results, cell: str) -> list[str]:
    """The competitors in a cell."""
    return [name for name in results.entries(cell) if not results.is_judged(name) and not name.startswith("no-server")]


def ratio(results: Results, cell: str) -> Ratio | None:
    """None if a cell has only one side."""
    mine, others = mine_in(results, cell), others_in(results, cell)
    if not mine or not others:
        return None
    other = stats.best({name: results.series(cell, name, "iops") for name in others})
    pair = {name: (results.series(cell, mine, name), results.series(cell, other, name)) for name in METRICS}
    iops = stats.paired(*pair["iops"])
    cpu = stats.paired(*pair["cpu_us_per_io"]) if min(pair["cpu_us_per_io"][1].values()) > 0 else None
    limit, iops_target, cpu_target = "neither", 0.95, None
    if max(typical(results, cell, name, "client_cpu") for name in (mine, other)) >= BOUND:
        limit, cpu_target = "client", 0.7
    elif typical(results, cell, other, "server_cpu") >= BOUND:
        limit, iops_target = "server", 1.5
    verdict = at_least(iops, iops_target)
    if cpu_target:
        verdict = worst(verdict, at_most(cpu, cpu_target) if cpu else ABSENT)
    p99 = stats.paired(*pair["p99_us"])
    return Ratio(cell, mine, other, iops, cpu, p99, limit, verdict, iops_target, cpu_target)


METRICS = ("iops", "cpu_us_per_io", "p99_us")


def ratios(results: Results) -> list[Ratio]:
    """Of all cells."""
    return [found for cell in results.cells() if (found := ratio(results, cell)) is not None]


def show(found: Interval, digits: int = 2) -> str:
    """Median and bounds as text."""
    return f"{found.median:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def between(results: Results, upper: str, lower: str, name: str) -> Interval | None:
    """The ratio of our figures in two cells, round by round."""
    sides = [results.series(cell, mine_in(results, cell), name) for cell in (upper, lower)]
    if not (sides[0].keys() & sides[1].keys()):
        return None
    return stats.paired(sides[0], sides[1])


def worst_count(counts: Sequence[tuple[str, float]], name: str, limit: float, text: str) -> Iterator[Target]:
    """A target that holds in every cell, by the cell that is the worst."""
    if counts:
        cell, value = max(counts, key=lambda pair: pair[1])
        where = f"at worst of {len(counts)} cells ({cell})" if len(counts) > 1 else cell
        yield Target(f"{name} per I/O, {where}", f"{value:.3f}", text, REACHED if value <= limit else MISSED)


def counted(results: Results) -> list[Target]:
    """System calls at depth, allocations everywhere."""
    mine = [count for count in results.counts if results.is_judged(count.entry)]
    calls = [
        (count.cell, count.syscalls)
        for count in mine
        if count.syscalls is not None and cell_of(count.cell).pattern.depth > 1
    ]
    allocations = [(count.cell, count.mallocs) for count in mine if count.mallocs is not None]
    return [
        *worst_count(calls, "system calls", 1.0, "at most 1.0"),
        *worst_count(allocations, "mallocs", 0.0, "0"),
    ]


def compared(results: Results) -> list[Target]:
    """Targets between two of our cells, or with one named competitor."""
    rows = []
    cell = "ram/full/rr32"
    mine = mine_in(results, cell)
    if mine and "qemu-nbd vpc" in results.entries(cell):
        found = stats.paired(
            results.series(cell, mine, "cpu_us_per_io"), results.series(cell, "qemu-nbd vpc", "cpu_us_per_io")
        )
        rows.append(
            Target("server CPU per I/O of qemu-nbd's, " + cell, show(found), "at most 0.5", at_most(found, 0.5))
        )
    for medium in ("ram", "disk"):
        for pattern in ("rr1", "rr32"):
            found_pair = between(results, f"{medium}/chain30/{pattern}", f"{medium}/full/{pattern}", "iops")
            if found_pair:
                rows.append(
                    Target(
                        f"chain of 30 / chain of 1, IOPS, {medium} {pattern}",
                        show(found_pair),
                        "at least 0.95",
                        at_least(found_pair, 0.95),
                    )
                )
        for name, text, limit in (("iops", "IOPS", 0.9), ("p99_us", "p99", 3.0)):
            found_pair = between(results, f"{medium}/fresh/rw32", f"{medium}/full/rw32", name)
            if found_pair:
                judge, word = (at_least, "at least") if name == "iops" else (at_most, "at most")
                rows.append(
                    Target(
                        f"fresh / full VHD, {text}, {medium} rw32",
                        show(found_pair),
                        f"{word} {limit}",
                        judge(found_pair, limit),
                    )
                )
    return rows


CHECKS = {
    SPACE: ("disk space after 200 MiB of 64 KiB writes over 10 GiB", 0.25),
    RSS: ("RSS idle, 1 TiB image", 5.0),
    STALL: ("longest stall of a snapshot, without the fsync", 5.0),
}


def checked(results: Results) -> list[Target]:
    """Figures of checks.py."""
    rows = []
    for check in results.checks:
        if results.is_judged(check.entry):
            name, limit = CHECKS[check.name]
            value = check.text if check.value is None else f"{check.value:.2f} {check.unit}"
            verdict = ABSENT if check.value is None else REACHED if check.value <= limit else MISSED
            if check.text and check.value is not None:
                name += f" ({check.text})"
            rows.append(Target(f"{name}, {check.entry}", value, f"at most {limit} {check.unit}", verdict))
    return rows


JOB_RATIOS = (
    ("coalesce-empty", "vhd-util coalesce", "qemu-img commit", 1.0),
    ("coalesce-allocated", "vhd-util coalesce", "qemu-img commit", 1.0),
    ("copy", "vhd-util copy", "cp", 1.2),
    ("copy", "vhd-util convert raw", "cp", 1.2),
)
"""Work, ours, the program it is compared with (its quickest way), how many times as long ours may take."""
JOB_SECONDS = (
    ("check", "vhd-util check -b", 0.5),
    ("create", "vhd-util create", 0.02),
    ("snapshot", "vhd-util snapshot", 0.02),
    ("query", "vhd-util query", 0.02),
)


def job_ratio(results: Results, work: str, mine: str, other: str, limit: float) -> Iterator[Target]:
    """Ours against a program that need not sync what it wrote; then against the same with its sync."""
    others = {
        name: results.job_series(work, name)
        for name in results.job_entries(work)
        if name.startswith(other) and results.job_series(work, name)
    }
    ours = results.job_series(work, mine)
    if not ours or not others:
        return
    quickest = min(others, key=lambda name: median(others[name].values()))
    if not ours.keys() & others[quickest].keys():
        return
    found = stats.paired(ours, others[quickest])
    yield Target(
        f"{work}: time of {mine} / {quickest}", show(found), f"at most {limit}", at_most(found, limit)
    )
    synced = stats.paired(results.job_series(work, mine, "synced"), results.job_series(work, quickest, "synced"))
    yield Target(f"{work}: time of {mine} / {quickest}, both synced", show(synced), "", NOTED)


def jobs(results: Results) -> list[Target]:
    """Targets of the works on image files."""
    rows = [row for each in JOB_RATIOS for row in job_ratio(results, *each)]
    for work, mine, limit in JOB_SECONDS:
        seconds = results.job_series(work, mine)
        if seconds:
            found = stats.interval(list(seconds.values()))
            rows.append(Target(f"{mine}, seconds", show(found, 3), f"at most {limit}", at_most(found, limit)))
    return rows


VM_RATIOS = (
    ("r4k16", "extents", "loop", 0.9),
    ("r4k1", "extents", "loop", 0.9),
    ("r4k16", "copy", "ublk", 1.2),
    ("r4k1", "copy", "ublk", 1.2),
    *((load, "tap2", other, 0.95) for other in ("phy", "loop") for load in ("r4k16", "w4k16", "r64k8", "w64k8", "r1m2", "w1m2")),
)
"""Load, ours, the one it is compared with, at least how many times its IOPS; in each virtual machine and on each backing."""
VM_TRIPS = {"extents": 0.0, "copy": 1 / 8}
"""System calls of tapdisk a request."""


def virtual(results: Results) -> list[Target]:
    """Targets of the driver, in virtual machines."""
    rows = []
    for part, cell in results.vm_cells():
        for load, mine, other, limit in VM_RATIOS:
            sides = [results.vm_series(part, cell, name) for name in (mine, other)]
            if cell.partition("/")[2] != load or not (sides[0].keys() & sides[1].keys()):
                continue
            found = stats.paired(*sides)
            rows.append(
                Target(f"{part}, {cell}: IOPS of {mine} / {other}", show(found), f"at least {limit}", at_least(found, limit))
            )
    for count in results.vm_counts:
        if count.entry in VM_TRIPS:
            limit = VM_TRIPS[count.entry]
            rows.append(
                Target(
                    f"{count.part}, {count.cell}: system calls per I/O, {count.entry}",
                    f"{count.syscalls:.3f}",
                    f"at most {limit:g}",
                    REACHED if count.syscalls <= limit else MISSED,
                )
            )
    return rows


ATTACH_RATIO = 0.5
"""Of phy's time, by our front."""
ATTACH_FORKS = 20


def attached(results: Results) -> list[Target]:
    """Targets of an attach."""
    rows = []
    for part in dict.fromkeys(run.part for run in results.attaches):
        phy = results.attach_series(part, "phy")
        for way in ("tap2", "script"):
            ours = results.attach_series(part, way)
            if not ours.keys() & phy.keys():
                continue
            found = stats.paired(ours, phy)
            rows.append(
                Target(f"{part}: time of {way} / phy", show(found), f"at most {ATTACH_RATIO}", at_most(found, ATTACH_RATIO))
            )
            forks = stats.interval(list(results.attach_series(part, way, "forks").values()))
            rows.append(
                Target(f"{part}: processes, {way}", show(forks, 0), f"at most {ATTACH_FORKS}", at_most(forks, ATTACH_FORKS))
            )
    return rows


def targets(results: Results) -> list[Target]:
    """All targets but those of the cells."""
    return [*counted(results), *compared(results), *checked(results), *jobs(results), *virtual(results), *attached(results)]


def summary(results: Results) -> list[dict[str, Any]]:
    """For the JSON."""
    return [dataclasses.asdict(row) for row in (*ratios(results), *targets(results))]
