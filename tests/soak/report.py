# SPDX-License-Identifier: LGPL-2.1-only
"""docs/soak.md."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from tests.soak import coverage, crashpart, fuzz
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
    crashed = [w for w in wanted if w.task.part == crashpart.PART]
    if fuzzed:
        yield from _fuzz(state, fuzzed)
        yield ""
    if state.coverage:
        yield from _coverage(state.coverage)
        yield ""
    if crashed:
        yield from _crash(state, crashed)
