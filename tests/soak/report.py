# SPDX-License-Identifier: LGPL-2.1-only
"""docs/soak.md."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from tests.soak import coverage, crashpart, diskpart, fuzz, killpart, movepart
from tests.soak.runner import Wanted
from tests.soak.state import Covered, Slice, State

SEEDS_SHOWN = 6


def table(head: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> Iterator[str]:
    """A Markdown table; all columns but the first ones are numbers."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join("---" if i < left else "---:" for i in range(len(head))) + "|"
    for row in rows:
        yield "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row) + " |"


def _seconds(slices: Sequence[Slice]) -> float:
    return sum(s.seconds for s in slices)


def _rate(slices: Sequence[Slice]) -> str:
    seconds = _seconds(slices)
    return f"{sum(s.count for s in slices) / seconds:,.0f}" if seconds else "-"


def _took(slices: Sequence[Slice]) -> str:
    return str(timedelta(seconds=round(_seconds(slices))))


def _seeds(slices: Sequence[Slice]) -> str:
    seeds = [str(s.seed) for s in slices]
    more = len(seeds) - SEEDS_SHOWN
    return ", ".join(seeds[:SEEDS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _fuzz(state: State, wanted: Sequence[Wanted]) -> Iterator[str]:
    slices = state.of(fuzz.PART)
    chains = [t.name for t in fuzz.TARGETS if t.on_chains]
    findings = sum(f.part == fuzz.PART for f in state.findings)
    yield "## Fuzzing"
    yield ""
    yield (
        f"{sum(s.count for s in slices):,} executions, "
        f"{sum(s.count for s in slices if s.name in chains):,} of them on whole chains; findings: {findings}. "
        f"{_took(slices)} of one core."
    )
    yield ""
    rows = []
    for w in wanted:
        mine = state.of(fuzz.PART, w.task.name)
        last = max(mine, key=lambda s: s.detail.get("ft", 0), default=None)
        counters = last.detail if last else {}
        rows.append(
            [
                w.task.name,
                fuzz.target(w.task.name).about,
                sum(s.count for s in mine),
                w.count,
                _rate(mine),
                *(counters.get(name, "-") for name in ("cov", "ft", "corpus")),
            ]
        )
    yield from table(["target", "on", "executions", "wanted", "per second", "cov", "ft", "corpus"], rows, 2)
    yield ""
    yield "cov, ft: edges and features that libFuzzer has seen. corpus: inputs."


def _coverage(found: dict[str, tuple[Covered, ...]]) -> Iterator[str]:
    yield "## Coverage of `tapdisk-c/vhd`"
    yield ""
    yield (
        "What the inputs of the fuzz targets run, and what the C unit tests do; pytest's tiers, which run the "
        "programs, are not counted."
    )
    yield ""
    by = [{c.file: c for c in (*found[name], coverage.total(found[name]))} for name in found]
    names = sorted({file for files in by for file in files} - {"all"})

    def cells(file: str) -> Iterator[str]:
        for files in by:
            c = files.get(file, Covered(file, (0, 0), (0, 0)))
            for have, of in (c.lines, c.functions):
                yield f"{have}/{of}" + (f" ({have / of:.0%})" if of else "")

    head = ["file", *(f"{what}, {name}" for name in found for what in ("lines", "functions"))]
    yield from table(head, [[file, *cells(file)] for file in (*names, "all")])


def _crash(state: State, wanted: Sequence[Wanted]) -> Iterator[str]:
    slices = state.of(crashpart.PART)
    findings = sum(f.part == crashpart.PART for f in state.findings)
    counts: Counter[str] = Counter()
    for s in slices:
        counts.update(s.detail)
    yield "## Crash states"
    yield ""
    yield (
        f"{sum(s.count for s in slices):,} states of {sum(w.count for w in wanted):,}; losses: {findings}. "
        f"{_took(slices)} of one core."
    )
    yield ""
    yield from table(["operation", "states"], sorted(counts.items()))
    yield ""
    yield f"Seeds: {_seeds(slices)}."


def splice(page: str, section: str) -> str:
    """The page with this section, which begins with its heading, in the place of the one with that heading, or at the end."""
    heading = section.splitlines()[0]
    before, found, after = page.partition(f"\n{heading}\n")
    if not found:
        return f"{page.rstrip()}\n\n{section}"
    _, more, rest = after.partition("\n## ")
    return f"{before}\n{section}" + (f"\n## {rest}" if more else "")


def disk_section(state: State, wanted: Sequence[Wanted]) -> str:
    """The section of the VHD data path, with its heading."""
    return "\n".join(_disk(state, wanted)) + "\n"


def _disk(state: State, wanted: Sequence[Wanted]) -> Iterator[str]:
    slices = state.of(diskpart.PART)
    findings = sum(f.part == diskpart.PART for f in state.findings)
    yield "## VHD data path"
    yield ""
    yield (
        f"{sum(s.count for s in slices):,} rounds of {sum(w.count for w in wanted):,}, each a disk of its own shape and five sessions, under "
        f"requests, failing I/O, kills and power losses by chance; findings: {findings}. {_took(slices)} of one core."
    )
    yield from _when(slices)
    yield ""
    yield f"Seeds: {_seeds(slices)}."


def _when(slices: Sequence[Slice]) -> Iterator[str]:
    if slices:
        dates = sorted(s.date for s in slices)
        yield f"From {dates[0]} to {dates[-1]}, commit {', '.join(sorted({s.commit for s in slices}))}."


def kills_section(state: State, wanted: Sequence[Wanted]) -> str:
    """The section of the kills, with its heading."""
    return "\n".join(_kills(state, wanted)) + "\n"


def _kills(state: State, wanted: Sequence[Wanted]) -> Iterator[str]:
    slices = state.of(killpart.PART)
    findings = sum(f.part == killpart.PART for f in state.findings)
    yield "## Kills"
    yield ""
    yield (
        f"{sum(s.count for s in slices):,} kills of {sum(w.count for w in wanted):,} under load, seen by the disk's user: "
        f"{findings}. {_took(slices)}."
    )
    yield from _when(slices)
    yield ""
    names = ("allocating", "slow", "held", "reissued", "outlived", "fenced", "kept", "direct")
    rows: list[list[object]] = []
    for w in wanted:
        mine = state.of(killpart.PART, w.task.name)
        counts = [sum(s.detail.get(name, 0) for s in mine) for name in names]
        longest = max((s.detail.get("longest_ms", 0) for s in mine), default=0)
        rows.append([w.task.name, sum(s.count for s in mine), w.count, *counts, longest])
    yield from table(["transport", "kills", "wanted", *names, "longest, ms"], rows)
    yield ""
    yield (
        "allocating: kills while new blocks were written. slow: kills with the image on a disk that writes 3 s late. held: requests that the device had when its tapdisk died. reissued: of these, "
        "those that tapdisk had, given to the next one (only our driver says). outlived: those that the kernel itself did, which were "
        "not. fenced: kills after which the next tapdisk waited for the image's lock. kept: kills after which the kernel kept the tapdisk for more than a second, and with it "
        "its locks, until its writes were over. direct: requests that the kernel did by itself, between kills too. longest: from a "
        "kill to the next tapdisk, in emulation. In a guest the load allocates all the time."
    )
    yield ""
    yield f"Seeds: {_seeds(slices)}."


def migrations_section(state: State, wanted: Sequence[Wanted]) -> str:
    """The section of the migrations, with its heading."""
    return "\n".join(_migrations(state, wanted)) + "\n"


def _migrations(state: State, wanted: Sequence[Wanted]) -> Iterator[str]:
    slices = state.of(movepart.PART)
    findings = sum(f.part == movepart.PART for f in state.findings)
    yield "## Migrations"
    yield ""
    yield (
        f"{sum(s.count for s in slices):,} of {sum(w.count for w in wanted):,}, of a guest that writes to the last moment, between "
        f"two hosts with one image; differences: {findings}. {_took(slices)}."
    )
    yield from _when(slices)
    yield ""
    rows = []
    for w in wanted:
        mine = state.of(movepart.PART, w.task.name)
        sums = {name: sum(s.detail.get(name, 0) for s in mine) for name in ("asked_again", "answered_late", "compared")}
        rows.append(
            [w.task.name, sum(s.count for s in mine), w.count, sums["asked_again"], sums["answered_late"], sums["compared"] >> 20]
        )
    yield from table(["between", "migrations", "wanted", "asked again", "answered late", "compared, MiB"], rows, 1)
    yield ""
    yield (
        "Two tapdisks have a run directory each. Two hosts are two beds, the second has the first one's directory by NFS; libxl's script is "
        "called as at `xl migrate`, for a domain that there is not. asked again: requests that the source had under way when the guest "
        "stopped, which the guest asked for again at the destination; answered late: of these, those that the source answered meanwhile. "
        "compared: all of the disk after each migration."
    )
    yield ""
    yield f"Seeds: {_seeds(slices)}."


def text(state: State, wanted: Sequence[Wanted], machine: dict[str, Any], seed: int) -> str:
    """The whole page."""
    return "\n".join(_lines(state, wanted, machine, seed)) + "\n"


def _lines(state: State, wanted: Sequence[Wanted], machine: dict[str, Any], seed: int) -> Iterator[str]:
    slices = state.slices
    commits: Counter[str] = Counter()
    for s in slices:
        commits[s.commit] += 1
    dates = sorted(s.date for s in slices)
    yield "# Soak"
    yield ""
    yield "What `make soak` writes: docs/testing.md says what it does."
    yield ""
    if dates:
        yield f"- from {dates[0]} to {dates[-1]}"
    yield "- commit " + ", ".join(f"{c} ({n} slices)" for c, n in commits.items())
    yield f"- seed {seed} (`--seed`, of the last call); each slice has one of its own"
    yield f"- {machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_mib']} MiB"
    yield ""
    if state.findings:
        yield f"## Findings: {len(state.findings)}"
        yield ""
        for finding in state.findings:
            yield f"- {finding.name}, seed {finding.seed}, commit {finding.commit}: {finding.text}"
            yield f"  Again: `{finding.repeat}`"
        yield ""
    fuzzed = [w for w in wanted if w.task.part == fuzz.PART]
    killed = [w for w in wanted if w.task.part == killpart.PART]
    moved = [w for w in wanted if w.task.part == movepart.PART]
    crashed = [w for w in wanted if w.task.part == crashpart.PART]
    served = [w for w in wanted if w.task.part == diskpart.PART]
    if fuzzed:
        yield from _fuzz(state, fuzzed)
        yield ""
    if state.coverage:
        yield from _coverage(state.coverage)
        yield ""
    if crashed:
        yield from _crash(state, crashed)
        yield ""
    if served:
        yield from _disk(state, served)
        yield ""
    if killed:
        yield from _kills(state, killed)
        yield ""
    if moved:
        yield from _migrations(state, moved)
