# SPDX-License-Identifier: LGPL-2.1-only
"""Long and short work on image files: vhd-util beside qemu-img and cp, each program once a round, one after the other.

A work's images are the same for all rounds; what a run changes is undone before the next. Time runs until the program
ends; then what it wrote is synced, and that time is noted too, since not every program does it itself.
"""

import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lib import vhdref
from tests.lib.programs import program
from tests.perf import machine
from tests.perf.bench import public, say
from tests.perf.images import GIB, MIB, PIECE, SECTOR, SEED, PrepareError, call, tool_disk, vhd_pieces, whole
from tests.perf.results import JobRun, Results

VIRTUAL = 10 * GIB
"""The disk of the images that are empty or have 100 MB."""
WRITTEN = 100 * 10**6
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
COLD = ("coalesce-empty", "coalesce-allocated", "copy", "check")
"""Of the others an administrator makes many, so programs and directories are in memory."""
SLOW = "copy"
SLOW_ROUNDS = 3
WORKS = ("coalesce-empty", "coalesce-allocated", "copy", "check", "create", "snapshot", "query")


@dataclass(frozen=True)
class Step:
    """A program in a work. writes: the file that must be on the medium afterwards, the work's or a new one."""

    entry: str
    argv: tuple[str, ...]
    writes: Path | None = None
    reset: Callable[[], None] | None = None
    verify: Callable[[], None] | None = None


def pieces(size: int) -> list[int]:
    """Where, in bytes, a child of a disk of this size was written."""
    places = random.Random(SEED).sample(range(size // PIECE), min(WRITTEN, size // 4) // PIECE)
    return [place * PIECE for place in places]


def pattern(offset: int, seed: int) -> bytes:
    """The start of a sector that tool-disk has written."""
    return struct.pack("=QQ", offset // SECTOR, seed)


class Files:
    """The images. size: of the disk that is all written, bytes."""

    def __init__(self, directory: Path, size: int) -> None:
        self.directory = directory
        self.size = size
        self.made: set[str] = set()

    def path(self, name: str) -> Path:
        """A file of this name."""
        return self.directory / name

    def util(self, *args: str | Path) -> tuple[str, ...]:
        """A call of vhd-util."""
        return (str(program("vhd-util", "release")), *map(str, args))

    def full(self, suffix: str) -> Path:
        """An image all of whose disk is written."""
        path = self.path(f"full.{suffix}")
        if path.name not in self.made:
            if suffix == "vhd":
                call(list(self.util("create", "-n", path, "-s", str(self.size // MIB))))
                tool_disk(path, whole(self.size))
            else:
                call(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=full", path, str(self.size)])
            self.made.add(path.name)
        return path

    def empty(self, suffix: str) -> Path:
        """An image in which nothing is written."""
        path = self.path(f"empty.{suffix}")
        if path.name not in self.made:
            if suffix == "vhd":
                call(list(self.util("create", "-n", path, "-s", str(VIRTUAL // MIB))))
            else:
                call(["qemu-img", "create", "-q", "-f", "qcow2", path, str(VIRTUAL)])
            self.made.add(path.name)
        return path

    def child(self, parent: Path, size: int) -> Path:
        """A child of it with 100 MB of written data in pieces of 64 KiB."""
        path = parent.with_stem(f"child-{parent.stem}")
        if path.suffix == ".vhd":
            call(list(self.util("snapshot", "-n", path, "-p", parent, "-e")))
            tool_disk(path, vhd_pieces(pieces(size), 1))
        else:
            call(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", parent, path])
            commands = "".join(f"write -q -P 1 {offset} {PIECE}\n" for offset in pieces(size))
            call(["qemu-io", "-f", "qcow2", path], stdin=commands.encode())
        return path

    def kept(self, path: Path) -> Callable[[], None]:
        """Keeps a copy of the file as it is now, marks included; what is returned brings it back."""
        copy = path.with_name(f"{path.name}.kept")
        shutil.copy2(path, copy)

        def back() -> None:
            path.unlink(missing_ok=True)
            shutil.copy2(copy, path)

        return back

    def expect_pieces(self, path: Path, size: int) -> None:
        """Raises PrepareError if what a coalesce must have brought into a VHD isn't there."""
        chain = vhdref.Chain(path)
        for offset in random.Random(SEED).sample(pieces(size), 16):
            if chain.read(offset, SECTOR)[:16] != pattern(offset, 1):
                raise PrepareError(f"{path.name}: wrong data at byte {offset}")

    def expect_whole(self, path: Path) -> None:
        """The same for a copy of the full image, which a coalesce may have changed."""
        changed = set(pieces(self.size))
        offsets = [o for o in range(0, self.size, MIB) if o not in changed]
        chain = vhdref.Chain(path) if path.suffix == ".vhd" else None
        for offset in random.Random(SEED).sample(offsets, 16):
            if chain:
                found = chain.read(offset, SECTOR)[:16]
            else:
                with path.open("rb") as file:
                    file.seek(offset)
                    found = file.read(16)
            if found != pattern(offset, offset // MIB + 1):
                raise PrepareError(f"{path.name}: wrong data at byte {offset}")


def commits(overlay: Path, base: Path, reset: Callable[[], None] | None) -> list[Step]:
    """qemu-img commit, through the page cache (its default) and past it; both sync. -d: the overlay stays as it is."""
    return [
        Step(f"qemu-img commit -t {cache}", ("qemu-img", "commit", "-q", "-d", "-t", cache, str(overlay)), base, reset)
        for cache in ("writeback", "none")
    ]


def coalesce(files: Files, name: str) -> list[Step]:
    """Into an empty parent, or into one all of whose blocks are there."""
    empty = name == "coalesce-empty"
    size = VIRTUAL if empty else files.size
    parents = [files.empty(suffix) if empty else files.full(suffix) for suffix in ("vhd", "qcow2")]
    children = [files.child(parent, size) for parent in parents]
    resets = [files.kept(parent) if empty else None for parent in parents]
    return [
        Step(
            "vhd-util coalesce",
            files.util("coalesce", "-n", children[0]),
            parents[0],
            resets[0],
            lambda: files.expect_pieces(parents[0], size),
        ),
        *commits(children[1], parents[1], resets[1]),
    ]


def copy(files: Files, _name: str) -> list[Step]:
    """A copy of the full VHD: as bytes, as a VHD, as a raw image."""
    source = files.full("vhd")

    def step(entry: str, new: Path, *argv: str | Path, check: bool = True) -> Step:
        def remove() -> None:
            for old in files.directory.glob("new*"):
                old.unlink()

        return Step(
            entry, tuple(map(str, argv)), new, remove, (lambda: files.expect_whole(new)) if check else None
        )

    vhd, raw = files.path("new.vhd"), files.path("new.img")
    return [
        step("vhd-util copy", vhd, *files.util("copy", "-n", source, "-N", vhd)),
        step("vhd-util convert raw", raw, *files.util("convert", "-n", f"vhd:{source}", "-N", f"raw:{raw}")),
        step("cp --sparse=always", vhd, "cp", "--sparse=always", source, vhd, check=False),
        step("qemu-img convert vpc", vhd, "qemu-img", "convert", "-f", "vpc", "-O", "vpc", source, vhd, check=False),
    ]


def check(files: Files, _name: str) -> list[Step]:
    """A full image's metadata; qcow2 has no bitmaps."""
    image = files.full("vhd")
    return [
        Step("vhd-util check -b", files.util("check", "-n", image, "-b")),
        Step("vhd-util check", files.util("check", "-n", image)),
        Step("qemu-img check", ("qemu-img", "check", "-q", "-f", "qcow2", str(files.full("qcow2")))),
    ]


def small(files: Files, name: str) -> list[Step]:
    """What takes no time."""
    vhd, qcow2 = files.path(f"{name}-base.vhd"), files.path(f"{name}-base.qcow2")
    call(list(files.util("create", "-n", vhd, "-s", str(VIRTUAL // MIB))))
    call(["qemu-img", "create", "-q", "-f", "qcow2", qcow2, str(VIRTUAL)])
    new_vhd, new_qcow2 = files.path("small.vhd"), files.path("small.qcow2")

    def remove() -> None:
        new_vhd.unlink(missing_ok=True)
        new_qcow2.unlink(missing_ok=True)

    qemu = ("qemu-img", "create", "-q", "-f", "qcow2")
    if name == "create":
        size = str(VIRTUAL)
        return [
            Step("vhd-util create", files.util("create", "-n", new_vhd, "-s", str(VIRTUAL // MIB)), new_vhd, remove),
            Step("qemu-img create", (*qemu, str(new_qcow2), size), new_qcow2, remove),
        ]
    if name == "snapshot":
        return [
            Step("vhd-util snapshot", files.util("snapshot", "-n", new_vhd, "-p", vhd, "-e"), new_vhd, remove),
            Step("qemu-img create -b", (*qemu, "-F", "qcow2", "-b", str(qcow2), str(new_qcow2)), new_qcow2, remove),
        ]
    return [
        Step("vhd-util query", files.util("query", "-n", vhd, "-v", "-f", "-s")),
        Step("qemu-img info", ("qemu-img", "info", "-f", "qcow2", str(qcow2))),
    ]


PLANS: dict[str, Callable[[Files, str], list[Step]]] = {
    "coalesce-empty": coalesce,
    "coalesce-allocated": coalesce,
    "copy": copy,
    "check": check,
    "create": small,
    "snapshot": small,
    "query": small,
}


def make_cold(directory: Path, steps: Sequence[Step]) -> None:
    """Forget what the page cache has of the images; but not the programs."""
    os.sync()
    try:
        DROP_CACHES.write_text("3\n")
    except OSError:
        for path in directory.iterdir():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
    for name in {step.argv[0] for step in steps}:
        subprocess.run([name, "--version"], capture_output=True, check=False)


def timed(argv: Sequence[str], writes: Path | None) -> tuple[float, float, float]:
    """Seconds until the program ended, until what it wrote was synced too, and its CPU seconds."""
    start = time.monotonic()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr
    text = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise PrepareError(f"{Path(argv[0]).name}: status {process.returncode}: {text.decode(errors='replace')}")
    if writes:
        fd = os.open(writes, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    return seconds, time.monotonic() - start, used.ru_utime + used.ru_stime


class Jobs:
    """Measures into results, in a directory of its own. rounds: of each work, but fewer of the slow one."""

    def __init__(self, results: Results, directory: Path, size: int, rounds: int) -> None:
        self.results = results
        self.files = Files(directory, size)
        self.rounds = rounds
        self.failed: set[tuple[str, str]] = set()

    def one(self, work: str, step: Step, steps: Sequence[Step], number: int) -> None:
        """A program in a round."""
        if step.reset:
            step.reset()
        if work in COLD:
            make_cold(self.files.directory, steps)
        else:
            subprocess.run([step.argv[0], "--version"], capture_output=True, check=False)
        seconds, synced, cpu = timed(step.argv, step.writes)
        if step.verify and number == 0:
            step.verify()
        self.results.jobs.append(JobRun(number, work, step.entry, round(seconds, 6), round(synced, 6), round(cpu, 6)))

    def measure(self, work: str) -> None:
        """All rounds of a work."""
        steps = PLANS[work](self.files, work)
        os.sync()
        start = time.monotonic()
        for number in range(min(self.rounds, SLOW_ROUNDS) if work == SLOW else self.rounds):
            shift = number % len(steps)
            for step in [*steps[shift:], *steps[:shift]]:
                if (work, step.entry) in self.failed:
                    continue
                try:
                    self.one(work, step, steps, number)
                except (PrepareError, OSError) as error:
                    self.failed.add((work, step.entry))
                    self.results.failures.append(f"{work}: {step.entry}: {public(error)}")
                    say(f"  FAILED {work}: {step.entry}: {error}")
        say(f"{work} done, {time.monotonic() - start:.0f} s")


def measure(results: Results, directory: Path, works: Sequence[str], size: int, rounds: int) -> None:
    """Do these works there; removes nothing."""
    kind = machine.file_system(directory)
    if kind in ("tmpfs", "ramfs"):
        results.notes.append("no jobs: the directory is in memory; name one on a disk by BENCH_DIR")
        return
    if shutil.disk_usage(directory).free < 3 * size + 4 * GIB:
        results.notes.append(
            f"no jobs: less than {(3 * size >> 30) + 4} GiB are free; --job-size takes less, or name a directory by"
            " BENCH_DIR"
        )
        return
    results.settings["job_size_mib"] = size // MIB
    results.settings["job_rounds"] = rounds
    results.settings["job_cold_by"] = "drop_caches" if os.access(DROP_CACHES, os.W_OK) else "posix_fadvise"
    jobs = Jobs(results, directory, size, rounds)
    for work in works:
        try:
            jobs.measure(work)
        except (PrepareError, OSError) as error:
            results.failures.append(f"{work}: {public(error)}")
            say(f"  FAILED {work}: {error}")
