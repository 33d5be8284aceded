# SPDX-License-Identifier: LGPL-2.1-only
"""Crash states by the thousand: what a kill or a power loss may leave of images at any moment of any operation, each
opened again and held against what docs/architecture.md promises."""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.soak import crashjobs, crashwrites
from tests.soak.crashbed import Bed, Loss, Scenario
from tests.soak.statetool import StateTool, ToolDied, ToolError

OPERATIONS: Mapping[str, Callable[[Bed], Scenario]] = {
    "write": crashwrites.writes,
    "coalesce": crashjobs.coalesce,
    "uring": crashwrites.uring_writes,
    "grow": crashjobs.grow,
    "live snapshot": crashwrites.live_snapshot,
    "copy": crashjobs.copy,
    "shrink": crashjobs.shrink,
    "fill": crashjobs.fill,
    "modify": crashjobs.modify,
    "repair": crashjobs.repair,
    "snapshot": crashjobs.snapshot,
    "convert": crashjobs.convert,
    "create": crashjobs.create,
    "set": crashjobs.set_field,
    "fixed": crashjobs.resize_fixed,
    "large blocks": crashwrites.large_blocks,
}
SHARES = {
    "set": 0.02,
    "fixed": 0.05,
    "create": 0.05,
    "repair": 0.1,
    "large blocks": 0.1,
    "snapshot": 0.3,
    "modify": 0.4,
    "grow": 0.6,
}
"""Of what has few states in each log, or large ones: less than the others have."""
LABELS = frozenset((
    *("write", "write, io_uring", "close", "live snapshot", "write after a live snapshot", "coalesce", "copy"),
    *("convert", "create", "snapshot", "fill", "modify", "repair", "set"),
    *("resize, larger", "resize, smaller", "resize, fixed"),
))
"""What each run has states of, but for very short ones."""
MOST = 150
"""States of one log."""
IN_VAIN = 40
"""So many states in turn that have been there mean that there are no more."""
MAX_LOSSES = 20


@dataclass(frozen=True)
class CrashResult:
    """states: distinct ones that were judged, in all and by operation. losses: each with what repeats it."""

    states: int
    operations: dict[str, int]
    losses: list[str]


def _run_one(name: str, seed: int, states: int, directory: Path, tool: StateTool) -> tuple[Counter[str], list[str]]:
    """At most so many states of one operation on the images of this seed."""
    repeat = f"python3 -m tests.soak.crash --operation='{name}' --seed={seed} --states={states}"
    counts: Counter[str] = Counter()
    bed = Bed(directory, tool, seed)
    try:
        scenario = OPERATIONS[name](bed)
    except (Loss, ToolError, ToolDied, AssertionError, OSError, subprocess.SubprocessError) as error:
        return counts, [f"{name}: before any state: {error!r}; {repeat}"]
    seen: set[int] = set()
    losses: list[str] = []
    vain = 0
    for state in scenario.cuts.states(scenario.first):
        if len(seen) == states or vain == IN_VAIN or len(losses) == 3:
            break
        vain += 1
        key = hash((state.key(), scenario.label(state)))
        if key in seen:
            continue
        seen.add(key)
        vain = 0
        state.make(bed.state)
        try:
            scenario.judge(state)
        except ToolDied as error:
            losses.append(f"{name}: {state.kind} at {state.moment}, {state.what}: {error}; {repeat}")
            break
        except (Loss, ToolError, AssertionError, ValueError, IndexError, OSError) as error:
            losses.append(f"{name}: {state.kind} at {state.moment}, {state.what}: {error!r}; {repeat}")
        counts[scenario.label(state)] += 1
    return counts, losses


def run_slice(seed: int, states: int, directory: Path) -> CrashResult:
    """At least so many distinct states, a share of each operation. The directory is for its files alone."""
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    done = dict.fromkeys(OPERATIONS, 0.0)
    losses: list[str] = []
    most = min(MOST, max(states // len(OPERATIONS), 4))
    directory.mkdir(parents=True, exist_ok=True)
    tool = StateTool(directory)
    while (counts.total() < states or not all(done.values())) and len(losses) < MAX_LOSSES:
        # In their order at first, then the one that is behind.
        name = min(done, key=lambda name: done[name])
        one, lost = _run_one(name, chance.randrange(1 << 32), most, directory, tool)
        done[name] += max(one.total(), 1) / SHARES.get(name, 1)
        counts += one
        losses += lost
        if lost:
            tool.close()
            tool = StateTool(directory)
    tool.close()
    return CrashResult(counts.total(), dict(counts), losses)


def main() -> int:
    """One slice, or one operation again."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.soak.crash", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--states", type=int, default=1000)
    parser.add_argument("--operation", choices=OPERATIONS)
    parser.add_argument("--directory", type=Path, help="where its files are left (default: removed)")
    args = parser.parse_args()
    print(f"seed={args.seed}", flush=True)
    directory = args.directory or Path(tempfile.mkdtemp(prefix="xenblk-crash-"))
    directory.mkdir(parents=True, exist_ok=True)
    if args.operation:
        with StateTool(directory) as tool:
            counts, losses = _run_one(args.operation, args.seed, args.states, directory, tool)
    else:
        result = run_slice(args.seed, args.states, directory)
        counts, losses = Counter(result.operations), result.losses
    if not args.directory:
        shutil.rmtree(directory)
    for name, count in sorted(counts.items()):
        print(f"{count:8} {name}")
    print(f"{counts.total():8} states, {len(losses)} losses")
    for loss in losses:
        print(loss)
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())
