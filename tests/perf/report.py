# SPDX-License-Identifier: LGPL-2.1-only
"""The printed report."""

from collections.abc import Iterator
from statistics import median

from tests.perf import stats, verdict
from tests.perf.cells import KINDS
from tests.perf.cells import cell as cell_of
from tests.perf.results import Results


def table(rows: list[list[str]], left: int = 1) -> Iterator[str]:
    """Columns, the first `left` of them flush left; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (
            text.ljust(w) if i < left else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        yield "  " + "  ".join(cells).rstrip()


def cell_lines(results: Results, cell: str) -> Iterator[str]:
    """All entries of a cell."""
    where = cell_of(cell)
    yield ""
    yield f"{cell}: {where.pattern.text}, {KINDS[where.kind]}"
    rows = [["", "IOPS", "MB/s", "p99 us", "max us", "CPU us/IO", "server", "client", "RSS idle", "after", "rounds"]]
    for entry in results.entries(cell):
        typical = {
            name: median(results.series(cell, entry, name).values())
            for name in (
                *("iops", "mb_per_second", "p99_us", "max_us", "cpu_us_per_io", "server_cpu", "client_cpu"),
                *("rss_idle_kib", "rss_after_kib"),
            )
        }
        rows.append(
            [
                entry,
                f"{typical['iops']:.0f}",
                f"{typical['mb_per_second']:.1f}",
                f"{typical['p99_us']:.0f}",
                f"{typical['max_us']:.0f}",
                f"{typical['cpu_us_per_io']:.2f}",
                f"{typical['server_cpu']:.0%}",
                f"{typical['client_cpu']:.0%}",
                f"{typical['rss_idle_kib'] * 1.024e-3:.1f} MB",
                f"{typical['rss_after_kib'] * 1.024e-3:.1f} MB",
                str(len(results.of(cell, entry))),
            ]
        )
    yield from table(rows)


def count_lines(results: Results) -> Iterator[str]:
    """System calls and allocations of all."""
    if not results.counts:
        return
    yield ""
    yield f"System calls (by {results.settings.get('syscalls_by') or 'nothing'}) and mallocs per I/O"
    rows = [["cell", "server", "syscalls", "mallocs"]]
    for count in results.counts:
        calls = "-" if count.syscalls is None else f"{count.syscalls:.3f}"
        mallocs = "-" if count.mallocs is None else f"{count.mallocs:.4f}"
        rows.append([count.cell, count.entry, calls, mallocs])
    yield from table(rows, 2)


def check_lines(results: Results) -> Iterator[str]:
    """The checks of all."""
    if not results.checks:
        return
    yield ""
    yield "Checks"
    rows = [["", "server", "value"]]
    for check in results.checks:
        name = verdict.CHECKS[check.name][0]
        rows.append([name, check.entry, "-" if check.value is None else f"{check.value:.2f} {check.unit}"])
    yield from table(rows, 2)


def job_lines(results: Results) -> Iterator[str]:
    """The works on image files."""
    if not results.jobs:
        return
    yield ""
    yield "Work on image files, seconds: medians with bounds; synced: until what was written is on the medium"
    rows = [["work", "program", "time", "synced", "CPU", "rounds"]]
    for work in results.works():
        for entry in results.job_entries(work):
            series = {name: list(results.job_series(work, entry, name).values()) for name in JOB_FIGURES}
            rows.append(
                [
                    work,
                    entry,
                    verdict.show(stats.interval(series["seconds"]), 3),
                    f"{median(series['synced']):.3f}",
                    f"{median(series['cpu_seconds']):.3f}",
                    str(len(series["seconds"])),
                ]
            )
    yield from table(rows, 2)


JOB_FIGURES = ("seconds", "synced", "cpu_seconds")


def vm_lines(results: Results) -> Iterator[str]:
    """IOPS in virtual machines; then what tapdisk has to do there for a request."""
    if results.vm_runs:
        yield ""
        yield f"In virtual machines, by {results.settings.get('vm_clock', 'time')}: IOPS, medians with bounds"
        rows = [["machine", "cell", "way", "IOPS", "rounds"]]
        for part, cell in results.vm_cells():
            for entry in results.vm_entries(part, cell):
                values = list(results.vm_series(part, cell, entry).values())
                rows.append([part, cell, entry, verdict.show(stats.interval(values), 0), str(len(values))])
        yield from table(rows, 3)
    if results.vm_counts:
        yield ""
        yield "In virtual machines: tapdisk's system calls per I/O, and the share of I/Os that reach it"
        rows = [["machine", "cell", "way", "syscalls", "share", ""]]
        for count in results.vm_counts:
            calls = " ".join(f"{name} {value:.3f}" for name, value in count.calls.items())
            rows.append([count.part, count.cell, count.entry, f"{count.syscalls:.3f}", f"{count.given:.4f}", calls])
        yield from table(rows, 3)


def attach_lines(results: Results) -> Iterator[str]:
    """What an attach takes."""
    if not results.attaches:
        return
    yield ""
    yield f"A disk of a guest, by {results.settings.get('vm_clock', 'time')}: seconds and processes, medians with bounds"
    rows = [["machine", "way", "connected", "gone again", "processes", "rounds"]]
    for part, entry in dict.fromkeys((run.part, run.entry) for run in results.attaches):
        series = {name: list(results.attach_series(part, entry, name).values()) for name in ("seconds", "gone", "forks")}
        shown = [verdict.show(stats.interval(series[name]), 2 if name != "forks" else 0) for name in series]
        rows.append([part, entry, *shown, str(len(series["forks"]))])
    yield from table(rows, 2)


def ratio_lines(results: Results) -> Iterator[str]:
    """Ours against the best other."""
    found = verdict.ratios(results)
    if not found and not results.runs:
        return
    if not found:
        yield ""
        yield f"No ratios: {results.judged} has no runs beside another server's."
        return
    confidence = min(row.iops.confidence for row in found)
    yield ""
    yield (
        f"{results.judged} / best other: medians of paired ratios with bounds (order statistics, {confidence:.1%} or"
        " more). IOPS above 1 is better, CPU per I/O and p99 below 1."
    )
    rows = [["cell", "best other", "limit", "IOPS", "CPU per I/O", "p99", "target", ""]]
    for row in found:
        cpu = verdict.show(row.cpu) if row.cpu else "-"
        rows.append(
            [
                row.cell,
                row.other,
                row.limit,
                verdict.show(row.iops),
                cpu,
                verdict.show(row.p99),
                row.target,
                row.verdict,
            ]
        )
    yield from table(rows, 3)


def target_lines(results: Results) -> Iterator[str]:
    """The other targets."""
    rows = [[row.name, row.value, row.target, row.verdict] for row in verdict.targets(results)]
    if rows:
        yield ""
        yield "Targets"
        yield from table([["", "measured", "target", ""], *rows])


def lines(results: Results) -> Iterator[str]:
    """The whole report."""
    machine = results.machine
    yield (
        f"{results.date}: {machine.get('cpu')}, {machine.get('cpus')} CPUs"
        f"{' (virtual)' if machine.get('virtual') else ''}, Linux {machine.get('kernel')}, "
        + ", ".join(f"{name} on {kind}" for name, kind in machine.get("file_systems", {}).items())
    )
    for cell in results.cells():
        yield from cell_lines(results, cell)
    yield from count_lines(results)
    yield from check_lines(results)
    yield from job_lines(results)
    yield from vm_lines(results)
    yield from attach_lines(results)
    yield from ratio_lines(results)
    yield from target_lines(results)
    busy = [run.others_cpu for run in results.runs if not run.entry.startswith("no-server")]
    if busy:
        yield ""
        yield f"Beside client and server, {median(busy):.2f} CPUs were busy (median; at most {max(busy):.2f})."
    for text in results.notes:
        yield f"Note: {text}"
    for text in results.failures:
        yield f"FAILED: {text}"
