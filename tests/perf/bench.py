# SPDX-License-Identifier: LGPL-2.1-only
"""The rounds: every server does every cell once a round, in an order that rotates."""

import os
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lib.programs import program
from tests.perf import counting, fio, machine, nbd, proc
from tests.perf.cells import Cell, Entry, entries, rotated
from tests.perf.images import PIECE, SEED, Images
from tests.perf.results import Count, Results, Run
from tests.perf.servers import Running, Server, ServerError

REFERENCE = "no-server raw"
"""fio on the file itself, in the cells of the raw image: what the medium can do. It is no competitor."""


@dataclass(frozen=True)
class Settings:
    """How long, how often, where. server_cpus and client_cpus: "" is not pinned."""

    rounds: int
    milliseconds: int
    server_cpus: str
    client_cpus: str


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def public(error: Exception) -> str:
    """The first line of an error, without the places of this machine."""
    return re.sub(r"/\S*/", "", str(error).partition("\n")[0])


class Bench:
    """Measures into results. images by medium; work is a directory for small files."""

    def __init__(
        self,
        results: Results,
        settings: Settings,
        servers: Sequence[Server],
        images: dict[str, Images],
        work: Path,
    ) -> None:
        self.results = results
        self.settings = settings
        self.servers = servers
        self.images = images
        self.work = work
        self.failed: set[tuple[str, str]] = set()

    def client(self, argv: list[str]) -> list[str]:
        """The client's command on the client's CPU."""
        cpus = self.settings.client_cpus
        return ["taskset", "-c", cpus, *argv] if cpus else argv

    def load(self, pattern: fio.Pattern, target: list[str], size: int, seed: int, ios: int = 0) -> fio.FioResult:
        """One run of fio: of the settings' time, or of a number of requests."""
        argv = fio.command(
            pattern, target, size=size, seed=seed, ios=ios, milliseconds=0 if ios else self.settings.milliseconds
        )
        return fio.run(self.client(argv), self.work / "fio.json")

    def single_writes(self, target: list[str], size: int, milliseconds: int) -> fio.FioResult:
        """Writes of 4 KiB, one at a time, for so long."""
        argv = fio.command(fio.PATTERNS["rw1"], target, size=size, seed=1, milliseconds=milliseconds)
        return fio.run(self.client(argv), self.work / "fio.json")

    def failure(self, cell: str, entry: str, error: Exception) -> None:
        """Note it, and don't try this again."""
        self.failed.add((cell, entry))
        self.results.failures.append(f"{cell}: {entry}: {public(error)}")
        say(f"  FAILED {cell}: {entry}: {error}")

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Make all images, and see that every server reads from each what is in it: a wrong answer is no fast one."""
        seen: set[tuple[str, str, str]] = set()
        for cell in cells:
            for entry in entries(cell.kind, self.servers):
                if (cell.medium, cell.kind, entry.name) in seen:
                    continue
                seen.add((cell.medium, cell.kind, entry.name))
                try:
                    self.verify(cell, entry)
                except (ServerError, nbd.NbdError, OSError) as error:
                    for same in cells:
                        if (same.medium, same.kind) == (cell.medium, cell.kind):
                            self.failed.add((same.name, entry.name))
                    self.failure(cell.name, entry.name, error)

    def verify(self, cell: Cell, entry: Entry) -> None:
        """Raises ServerError if the server reads something else than the image holds."""
        images = self.images[cell.medium]
        image = images.ready(cell, entry.image_format)
        with Running(entry.server, image, entry.image_format, self.work) as server, nbd.Client(server.sock) as client:
            size = images.disk_size(cell.kind)
            if client.size != size:
                raise ServerError(f"{entry.name}: the disk has {client.size} bytes instead of {size}")
            for offset in random.Random(SEED).sample(range(0, size, PIECE), 64):
                if client.read(offset, 512)[:16] != images.expected(cell.kind, entry.image_format, offset):
                    raise ServerError(f"{entry.name}: reads wrong data at byte {offset}")

    def rounds(self, cells: Sequence[Cell]) -> None:
        """All rounds."""
        start = time.monotonic()
        for number in range(self.settings.rounds):
            for cell in cells:
                for entry in rotated(entries(cell.kind, self.servers), number):
                    if (cell.name, entry.name) in self.failed:
                        continue
                    try:
                        self.results.runs.append(self.measure(cell, entry, number))
                    except (ServerError, fio.FioError, nbd.NbdError, OSError) as error:
                        self.failure(cell.name, entry.name, error)
                if cell.kind == "raw":
                    self.results.runs.append(self.reference(cell, number))
            say(f"round {number + 1} of {self.settings.rounds} done, {time.monotonic() - start:.0f} s")

    def measure(self, cell: Cell, entry: Entry, number: int) -> Run:
        """One server in one cell: started, measured, ended."""
        images, pattern = self.images[cell.medium], cell.pattern
        image = images.ready(cell, entry.image_format)
        if entry.server.buffered:
            images.drop_cache(entry.image_format)
        with Running(entry.server, image, entry.image_format, self.work, cpus=self.settings.server_cpus) as server:
            idle = proc.rss_kib(server.session)
            busy, used, start = machine.busy_seconds(), proc.cpu_seconds(server.session), time.monotonic()
            done = self.load(pattern, fio.by_nbd(server.sock), images.disk_size(cell.kind), number + 1)
            wall = time.monotonic() - start
            used, busy = proc.cpu_seconds(server.session) - used, machine.busy_seconds() - busy
            flush = 0.0
            if pattern.writes:
                with nbd.Client(server.sock) as client:
                    start = time.monotonic()
                    client.flush()
                    flush = time.monotonic() - start
            after = proc.rss_kib(server.session)
        if entry.server.buffered:
            # or the next server's O_DIRECT would have to throw these pages away
            images.drop_cache(entry.image_format)
        return self.run(cell, entry.name, number, done, flush, used, max(0.0, busy - used) / wall, idle, after)

    def run(
        self,
        cell: Cell,
        entry: str,
        number: int,
        done: fio.FioResult,
        flush: float,
        used: float,
        others: float,
        idle: int,
        after: int,
    ) -> Run:
        """A Run of what was measured."""
        return Run(
            round=number,
            cell=cell.name,
            entry=entry,
            ios=done.ios,
            bytes=done.bytes,
            seconds=round(done.seconds + flush, 6),
            flush_ms=round(flush * 1e3, 3),
            mean_us=round(done.mean_us, 2),
            p99_us=round(done.p99_us, 2),
            max_us=round(done.max_us, 2),
            client_cpu=round(done.cpu, 4),
            server_cpu=round(used / done.seconds, 4),
            cpu_us_per_io=round(used / done.ios * 1e6, 4),
            # fio has it in a share of its run, the machine in ticks
            others_cpu=round(max(0.0, others - done.cpu), 4),
            rss_idle_kib=idle,
            rss_after_kib=after,
        )

    def reference(self, cell: Cell, number: int) -> Run:
        """The same without a server."""
        images = self.images[cell.medium]
        path = images.ready(cell, "raw")
        done = self.load(cell.pattern, fio.by_file(path), images.disk_size(cell.kind), number + 1)
        flush = 0.0
        if cell.pattern.writes:
            fd = os.open(path, os.O_RDWR)
            start = time.monotonic()
            os.fdatasync(fd)
            flush = time.monotonic() - start
            os.close(fd)
        return self.run(cell, REFERENCE, number, done, flush, 0.0, 0.0, 0, 0)

    def counts(self, cells: Sequence[Cell]) -> None:
        """System calls and allocations a request of every server in these cells."""
        tool = counting.method()
        if not tool:
            self.results.notes.append("system calls are not counted: neither perf nor strace can do it here")
        self.results.settings["syscalls_by"] = tool
        for cell in cells:
            for entry in entries(cell.kind, self.servers):
                if (cell.name, entry.name) in self.failed:
                    continue
                try:
                    self.results.counts.append(self.count(cell, entry, tool))
                except (ServerError, fio.FioError, counting.CountError, OSError) as error:
                    self.results.failures.append(f"count {cell.name}: {entry.name}: {public(error)}")
                    say(f"  FAILED count {cell.name}: {entry.name}: {error}")

    def count(self, cell: Cell, entry: Entry, tool: str) -> Count:
        """Of one server in one cell."""
        images = self.images[cell.medium]
        image = images.ready(cell, entry.image_format)
        env, place = counting.preload(program("tests/preload-malloc.so", "release"), self.work)
        calls: list[int] = []
        by_name: list[dict[str, int]] = []
        allocations: list[int | None] = []
        with Running(
            entry.server, image, entry.image_format, self.work, cpus=self.settings.server_cpus, env=env
        ) as server:
            for ios in (counting.SHORT, counting.LONG):
                before = counting.mallocs(place)

                def again(ios: int = ios) -> None:
                    self.load(cell.pattern, fio.by_nbd(server.sock), images.disk_size(cell.kind), ios, ios)

                if tool:
                    with counting.Counter(tool, server.session, self.work) as counter:
                        again()
                    calls.append(counter.total)
                    by_name.append(counter.calls)
                else:
                    again()
                after = counting.mallocs(place)
                allocations.append(None if before is None or after is None else after - before)
        short, long = allocations
        names = by_name[1] if by_name else {}
        return Count(
            cell.name,
            entry.name,
            counting.per_request(*calls) if calls else None,
            None if short is None or long is None else counting.per_request(short, long),
            {
                name: round(value, 4)
                for name in sorted(names)
                if (value := counting.per_request(by_name[0].get(name, 0), names[name])) >= 0.001
            },
        )
