# SPDX-License-Identifier: LGPL-2.1-only
"""What was measured, and its JSON."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """One server in one cell in one round.

    seconds has the final flush of a write in it; cpu is in CPUs, others_cpu what neither server nor client used.
    """

    round: int
    cell: str
    entry: str
    ios: int
    bytes: int
    seconds: float
    flush_ms: float
    mean_us: float
    p99_us: float
    max_us: float
    client_cpu: float
    server_cpu: float
    cpu_us_per_io: float
    others_cpu: float
    rss_idle_kib: int
    rss_after_kib: int

    @property
    def iops(self) -> float:
        """Requests a second."""
        return self.ios / self.seconds

    @property
    def mb_per_second(self) -> float:
        """10^6 bytes a second."""
        return self.bytes / self.seconds / 1e6


@dataclass(frozen=True)
class Count:
    """System calls and allocations a request; None: could not be counted."""

    cell: str
    entry: str
    syscalls: float | None
    mallocs: float | None
    calls: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A figure that is not a cell's. value None: not measured, text says why."""

    name: str
    entry: str
    value: float | None
    unit: str
    text: str = ""


@dataclass(frozen=True)
class JobRun:
    """One program in one work on image files in one round. synced: until what it wrote was on the medium, too."""

    round: int
    work: str
    entry: str
    seconds: float
    synced: float
    cpu_seconds: float


@dataclass(frozen=True)
class VmRun:
    """One way to a disk in one cell (backing/load) in one round, in a virtual machine."""

    round: int
    part: str
    cell: str
    entry: str
    ios: int
    seconds: float

    @property
    def iops(self) -> float:
        """Requests a second."""
        return self.ios / self.seconds


@dataclass(frozen=True)
class VmCount:
    """System calls of tapdisk a request there, and the share of requests that it was given at all."""

    part: str
    cell: str
    entry: str
    syscalls: float
    given: float
    calls: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AttachRun:
    """A disk attached to a guest and detached, in a virtual machine: seconds until connected, until gone; processes made."""

    round: int
    part: str
    entry: str
    seconds: float
    gone: float
    forks: int


@dataclass
class Results:
    """All of a bench."""

    date: str = ""
    judged: str = "tapdisk"
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    servers: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    jobs: list[JobRun] = field(default_factory=list)
    vm_runs: list[VmRun] = field(default_factory=list)
    vm_counts: list[VmCount] = field(default_factory=list)
    attaches: list[AttachRun] = field(default_factory=list)

    def cells(self) -> list[str]:
        """The cells that have runs, in the order of the first round."""
        return list(dict.fromkeys(run.cell for run in self.runs))

    def entries(self, cell: str) -> list[str]:
        """The entries of a cell; the judged one first."""
        names = sorted({run.entry for run in self.runs if run.cell == cell})
        return sorted(names, key=lambda name: not self.is_judged(name))

    def is_judged(self, entry: str) -> bool:
        """Whether this is the server that the others are compared with."""
        return entry.rsplit(" ", 1)[0] == self.judged

    def of(self, cell: str, entry: str) -> list[Run]:
        """The runs of an entry in a cell."""
        return [run for run in self.runs if run.cell == cell and run.entry == entry]

    def works(self) -> list[str]:
        """The works that have runs."""
        return list(dict.fromkeys(job.work for job in self.jobs))

    def job_entries(self, work: str) -> list[str]:
        """The programs of a work; ours first."""
        names = sorted({job.entry for job in self.jobs if job.work == work})
        return sorted(names, key=lambda name: not name.startswith("vhd-util "))

    def job_series(self, work: str, entry: str, name: str = "seconds") -> dict[int, float]:
        """One figure of a program in a work by round."""
        return {job.round: float(getattr(job, name)) for job in self.jobs if (job.work, job.entry) == (work, entry)}

    def vm_cells(self) -> list[tuple[str, str]]:
        """Parts and cells in virtual machines that have runs."""
        return list(dict.fromkeys((run.part, run.cell) for run in self.vm_runs))

    def vm_entries(self, part: str, cell: str) -> list[str]:
        """The ways in such a cell."""
        return list(dict.fromkeys(run.entry for run in self.vm_runs if (run.part, run.cell) == (part, cell)))

    def vm_series(self, part: str, cell: str, entry: str) -> dict[int, float]:
        """IOPS by round."""
        return {run.round: run.iops for run in self.vm_runs if (run.part, run.cell, run.entry) == (part, cell, entry)}

    def attach_series(self, part: str, entry: str, name: str = "seconds") -> dict[int, float]:
        """One figure of a way to attach by round."""
        return {run.round: float(getattr(run, name)) for run in self.attaches if (run.part, run.entry) == (part, entry)}

    def series(self, cell: str, entry: str, name: str) -> dict[int, float]:
        """One figure by round."""
        return {run.round: float(getattr(run, name)) for run in self.of(cell, entry)}


def save(results: Results, path: Path, summary: list[dict[str, Any]]) -> None:
    """Write the JSON; summary is what was concluded, for readers that don't compute it again."""
    document = {"schema": SCHEMA, **dataclasses.asdict(results), "summary": summary}
    path.write_text(json.dumps(document, indent=1) + "\n")


def load(path: Path) -> Results:
    """Read what save() wrote. Raises ValueError if it is something else."""
    document = json.loads(path.read_text())
    if document.pop("schema", None) != SCHEMA:
        raise ValueError(f"{path}: not the results of this bench (schema {SCHEMA} is missing)")
    document.pop("summary", None)
    document["runs"] = [Run(**run) for run in document["runs"]]
    document["counts"] = [Count(**count) for count in document["counts"]]
    document["checks"] = [Check(**check) for check in document["checks"]]
    document["jobs"] = [JobRun(**job) for job in document.get("jobs", [])]
    document["vm_runs"] = [VmRun(**run) for run in document.get("vm_runs", [])]
    document["vm_counts"] = [VmCount(**count) for count in document.get("vm_counts", [])]
    document["attaches"] = [AttachRun(**run) for run in document.get("attaches", [])]
    return Results(**document)
