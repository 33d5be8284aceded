# SPDX-License-Identifier: LGPL-2.1-only
"""The picture: each cell a dot with its bounds on a log axis around 1.0; right is better, green is reached."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tests.perf import verdict
from tests.perf.cells import KINDS
from tests.perf.cells import cell as cell_of
from tests.perf.results import Results
from tests.perf.stats import Interval
from tests.perf.verdict import Ratio, Target

COLOURS = {
    verdict.REACHED: "#1a7f37",
    verdict.MISSED: "#c62828",
    verdict.OPEN: "#b8860b",
    verdict.ABSENT: "#777777",
    verdict.NOTED: "#555555",
}
MARKS = {verdict.REACHED: "✓", verdict.MISSED: "✗", verdict.OPEN: "?", verdict.ABSENT: "-", verdict.NOTED: ""}
SHORT = {"raw": "raw", "full": "VHD full", "fresh": "VHD fresh", "chain5": "chain 5", "chain30": "chain 30"}
assert SHORT.keys() == KINDS.keys()


def label(row: Ratio) -> str:
    """A cell in words, and with whom it is compared."""
    where = cell_of(row.cell)
    return f"{SHORT[where.kind]}, {where.pattern.text}"


def inverse(found: Interval) -> Interval:
    """The ratio the other way round, so that more is better."""
    return Interval(1 / found.median, 1 / found.high, 1 / found.low, found.confidence, found.rounds)


def dots(axes: Any, found: Sequence[Interval | None], colours: Sequence[str], hollow: Sequence[bool]) -> None:
    """A dot and its bounds on each line."""
    for y, (each, colour, is_hollow) in enumerate(zip(found, colours, hollow, strict=True)):
        if each is None:
            continue
        axes.plot([each.low, each.high], [y, y], color=colour, linewidth=2.5, solid_capstyle="butt", alpha=0.55)
        axes.plot(
            [each.median],
            [y],
            "o",
            color=colour,
            markersize=8,
            markerfacecolor="white" if is_hollow else colour,
            markeredgewidth=2,
        )
        axes.annotate(
            f"{each.median:.2f}",
            (each.median, y),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=colour,
        )


def marks(axes: Any, found: Sequence[float | None]) -> None:
    """Where each line's target is."""
    for y, each in enumerate(found):
        if each:
            axes.plot([each, each], [y - 0.3, y + 0.3], color="#333333", linewidth=1.5)


def scale(axes: Any, found: Sequence[Interval | None], title: str, worse: str, better: str) -> None:
    """A log axis around 1.0 with plain numbers."""
    values = [v for each in found if each for v in (each.low, each.high) if v > 0]
    reach = 1.15 * max([1.7, *values, *(1 / v for v in values)])
    axes.set_xscale("log")
    axes.set_xlim(max(0.04, 1 / reach), min(25, reach))
    ticks = [
        t for t in (0.05, 0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 5, 10, 20) if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]
    ]
    axes.set_xticks(ticks)
    axes.set_xticklabels([f"{t:g}x" for t in ticks])
    axes.minorticks_off()
    axes.axvline(1.0, color="black", linewidth=1)
    axes.axvspan(axes.get_xlim()[0], 1.0, color="#c62828", alpha=0.05)
    axes.axvspan(1.0, axes.get_xlim()[1], color="#1a7f37", alpha=0.05)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(f"← {worse}      {better} →", fontsize=9)


def draw_targets(axes: Any, rows: Sequence[Target]) -> None:
    """The other targets as lines of text."""
    axes.axis("off")
    axes.set_ylim(len(rows), -1)
    axes.set_xlim(0, 1)
    for y, row in enumerate(rows):
        colour = COLOURS[row.verdict]
        axes.text(0.0, y, MARKS[row.verdict], color=colour, fontsize=12, va="center", fontweight="bold")
        axes.text(0.025, y, row.name, fontsize=9, va="center")
        axes.text(0.60, y, row.value, fontsize=9, va="center", color=colour)
        axes.text(0.86, y, row.target, fontsize=9, va="center", color="#555555")


def draw(results: Results, path: Path) -> bool:
    """Write the PNG. False if there is nothing to draw."""
    # from the top: RAM before disk, kinds together, in the order of cells.KINDS
    order = list(KINDS)
    ratios = sorted(
        verdict.ratios(results), key=lambda r: (r.cell.split("/")[0] != "ram", order.index(r.cell.split("/")[1]))
    )
    rows = verdict.targets(results)
    if not ratios:
        return False
    heights = [0.31 * len(ratios) + 0.4, 0.26 * len(rows) + 0.2]
    figure = Figure(figsize=(14, sum(heights) + 1.9), dpi=110)
    grid = figure.add_gridspec(2, 2, height_ratios=heights, width_ratios=(1, 1))
    left = figure.add_subplot(grid[0, 0])
    right = figure.add_subplot(grid[0, 1], sharey=left)
    iops = [row.iops for row in ratios]
    cpu = [inverse(row.cpu) if row.cpu and row.cpu.low > 0 else None for row in ratios]
    bound = [row.limit == "client" for row in ratios]
    dots(left, iops, [COLOURS[row.verdict] for row in ratios], bound)
    dots(
        right,
        cpu,
        ["#1a7f37" if c and c.low >= 1 else "#c62828" if c and c.high < 1 else "#b8860b" for c in cpu],
        bound,
    )
    marks(left, [row.iops_target for row in ratios])
    marks(right, [1 / row.cpu_target if row.cpu_target else None for row in ratios])
    scale(left, iops, "IOPS (MB/s)", "slower than the best other", f"{results.judged} is faster")
    scale(right, cpu, "I/Os per second of server CPU", "takes more CPU", f"{results.judged} takes less CPU")
    left.set_yticks(range(len(ratios)))
    left.set_yticklabels([label(row) for row in ratios], fontsize=9)
    left.set_ylim(len(ratios) - 0.4, -0.8)
    for y, row in enumerate(ratios):
        right.annotate(
            f"vs {row.other}", (1.01, y), xycoords=("axes fraction", "data"), fontsize=8, va="center", color="#555555"
        )
    for axes in (left, right):
        for y, row in enumerate(ratios):
            if order.index(row.cell.split("/")[1]) % 2:
                axes.axhspan(y - 0.5, y + 0.5, color="#000000", alpha=0.045, linewidth=0)
        medium = ""
        for y, row in enumerate(ratios):
            now = row.cell.split("/")[0]
            if now != medium:
                if medium:
                    axes.axhline(y - 0.55, color="black", linewidth=0.8)
                axes.text(
                    0.005,
                    y - 0.42,
                    now.upper(),
                    transform=axes.get_yaxis_transform(),
                    fontsize=9,
                    fontweight="bold",
                    va="top",
                )
                medium = now
    right.tick_params(axis="y", labelleft=False)
    draw_targets(figure.add_subplot(grid[1, :]), rows)
    confidence = min(row.iops.confidence for row in ratios)
    reached = sum(row.verdict == verdict.REACHED for row in ratios)
    figure.suptitle(
        f"{results.judged} against the best other in each cell: {reached} of {len(ratios)} cells reach their target",
        fontsize=14,
        fontweight="bold",
    )
    cpu_name, cpus = results.machine.get("cpu", ""), results.machine.get("cpus", "")
    figure.text(
        0.5,
        0.005,
        f"{results.date}, {cpu_name}, {cpus} CPUs. Dots: medians of {ratios[0].iops.rounds} paired rounds; bars:"
        f" {confidence:.0%} bounds; short strokes: targets. Hollow: the client is the limit. Green: target reached;"
        " red: missed; ochre: the bounds hold the target.",
        ha="center",
        fontsize=8.5,
        color="#333333",
    )
    figure.tight_layout(rect=(0, 0.02, 0.985, 0.99))
    figure.savefig(path)
    return True
