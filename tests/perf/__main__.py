# SPDX-License-Identifier: LGPL-2.1-only
"""`python3 -m tests.perf`: what `make bench` runs."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tests.lib.image import ImageError
from tests.lib.programs import ROOT
from tests.lib.release import RELEASES
from tests.lib.vm import BedError
from tests.perf import cells as cell_module
from tests.perf import attach, checks, guest, jobs, kernel, machine, report, results, verdict
from tests.perf.bench import Bench, Settings, public, say
from tests.perf.cells import Cell
from tests.perf.images import GIB, MIB, Images, PrepareError, has_direct_io
from tests.perf.media import RamDisk, scratch
from tests.perf.servers import Server, TemplateError, parse_template, peers, tapdisk

OUTPUT = ROOT / "build" / "bench"
PARTS = ("servers", "jobs", "kernel", "guest", "attach")
VIRTUAL = {"kernel": kernel, "guest": guest, "attach": attach}
"""Parts in virtual machines: not in a quick bench, unless asked for."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser("python3 -m tests.perf", description="Measure NBD servers, and work on image files, side by side.")
    result.add_argument("--quick", action="store_true", help="the main cells in four minutes; wide bounds")
    result.add_argument(
        "--part",
        choices=PARTS,
        action="append",
        help="only the servers' cells, the work on image files, the driver in a virtual machine, a guest of Xen there, or an attach to one",
    )
    result.add_argument("--rounds", type=int, metavar="N", help="rounds (default 7, quick 3)")
    result.add_argument("--milliseconds", type=int, metavar="MS", help="length of a run (default 1200, quick 500)")
    result.add_argument("--size", type=int, default=512, metavar="MIB", help="of a written disk (default 512)")
    result.add_argument("--fresh-size", type=int, default=4096, metavar="MIB", help="of a fresh disk (default 4096)")
    result.add_argument(
        "--server", action="append", default=[], metavar="'NAME[:FORMATS]=CMD {img} {sock}'", help="one more (repeats)"
    )
    result.add_argument("--only", metavar="NAME,...", help="only these servers")
    result.add_argument("--judge", default="tapdisk", metavar="NAME", help="whom to compare with the best other")
    result.add_argument(
        "--cell", action="append", default=[], metavar="MEDIUM/KIND/PATTERN", help="only these (repeats)"
    )
    result.add_argument("--medium", choices=("ram", "disk"), action="append", help="only this one (repeats)")
    result.add_argument(
        "--pin", action=argparse.BooleanOptionalAction, default=True, help="client and server on CPUs of their own"
    )
    result.add_argument(
        "--counts", action=argparse.BooleanOptionalAction, default=True, help="system calls and mallocs"
    )
    result.add_argument("--checks", action=argparse.BooleanOptionalAction, default=True, help="space and memory")
    result.add_argument(
        "--job", choices=jobs.WORKS, action="append", default=[], help="only this work on image files (repeats)"
    )
    result.add_argument(
        "--job-size", type=int, metavar="GIB", help="of the disk that is copied and checked (default 10, quick 1)"
    )
    result.add_argument(
        "--release", type=int, choices=RELEASES, action="append", help="Debian of the virtual machine (13; repeats)"
    )
    result.add_argument(
        "--clock",
        choices=("instructions", "time"),
        default="instructions",
        help="of the virtual machine: instructions of its one CPU, which other work here can't disturb, or time",
    )
    result.add_argument("--output", type=Path, metavar="FILE.json", help="default: build/bench/DATE.json")
    result.add_argument(
        "--show", type=Path, metavar="FILE.json", help="print and draw earlier results; measures nothing"
    )
    return result


def fail(text: str) -> NoReturn:
    """End with a message."""
    print(f"bench: {text}", file=sys.stderr)
    sys.exit(1)


def participants(args: argparse.Namespace, notes: list[str]) -> list[Server]:
    """The servers that take part."""
    found: list[Server] = []
    try:
        found.append(tapdisk())
    except FileNotFoundError as error:
        notes.append(f"without tapdisk: {error.strerror or error}")
    for server in peers():
        if machine.first_line([server.argv[0], "--version"]):
            found.append(server)
        else:
            notes.append(f"without {server.name}: {server.argv[0]} is not installed; .ci/deps bench installs it")
    try:
        found += [parse_template(text) for text in args.server]
    except TemplateError as error:
        fail(str(error))
    if args.only:
        wanted = args.only.split(",")
        unknown = set(wanted) - {server.name for server in found}
        if unknown:
            fail(f"--only: no server {', '.join(sorted(unknown))}")
        found = [server for server in found if server.name in wanted]
    if not found:
        fail("no server is left to measure")
    return found


def show(found: results.Results, path: Path) -> None:
    """Print the report, draw the picture beside the JSON."""
    print("\n".join(report.lines(found)))
    try:
        from tests.perf import plot  # noqa: PLC0415 # needs a package that nothing else needs
    except ImportError:
        print("No picture: python3-matplotlib is not installed; .ci/deps bench installs it")
        return
    picture = path.with_suffix(".png")
    if plot.draw(found, picture):
        print(f"{path.name} and {picture.name} are in {os.path.relpath(path.parent)}")


def chosen(args: argparse.Namespace, media: Sequence[str]) -> list[Cell]:
    """The cells to measure."""
    if args.cell:
        try:
            cells = [cell_module.cell(name) for name in args.cell]
        except (KeyError, ValueError):
            fail(
                f"--cell {' '.join(args.cell)}: want MEDIUM/{'|'.join(cell_module.KINDS)}/PATTERN, as in ram/full/rr32"
            )
        for cell in cells:
            if cell.medium not in media:
                fail(f"--cell {cell.name}: medium {cell.medium!r} is not there")
        return cells
    return cell_module.cells(media, args.quick)


def parts(args: argparse.Namespace) -> list[str]:
    """What is measured: what was asked for, or what the other options are about."""
    if args.part:
        return [part for part in PARTS if part in args.part]
    if args.job:
        return ["jobs"]
    if args.cell or args.medium or args.only or args.server:
        return ["servers"]
    return [part for part in PARTS if not (args.quick and part in VIRTUAL)]


def measure(args: argparse.Namespace, found: results.Results, path: Path) -> None:
    """Everything, into found."""
    describe(args, found)
    try:
        if "servers" in parts(args):
            measure_servers(args, found)
        if "jobs" in parts(args):
            measure_jobs(args, found)
        for part in parts(args):
            if part in VIRTUAL:
                measure_virtual(args, found, part)
    finally:
        if found.runs or found.jobs or found.vm_runs or found.attaches:
            results.save(found, path, verdict.summary(found))


def measure_jobs(args: argparse.Namespace, found: results.Results) -> None:
    """Work on image files."""
    disk = Path(os.environ.get("BENCH_DIR") or OUTPUT)
    disk.mkdir(parents=True, exist_ok=True)
    directory = scratch(disk)
    try:
        found.machine.setdefault("file_systems", {})["jobs"] = machine.file_system(directory)
        size = (args.job_size or (1 if args.quick else 10)) * GIB
        jobs.measure(found, directory, args.job or jobs.WORKS, size, settings(args).rounds)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def measure_virtual(args: argparse.Namespace, found: results.Results, part: str) -> None:
    """The driver, or a guest of Xen, in a virtual machine."""
    module = VIRTUAL[part]
    rounds = args.rounds or (1 if args.quick else 7)
    milliseconds = args.milliseconds or (50 if args.clock == "instructions" else 500)
    by_instructions = args.clock == "instructions"
    found.settings["vm_clock"] = "instructions (2 ns each)" if by_instructions else "time"
    names = module.QUICK if args.quick else module.CELLS
    for release in args.release or [13]:
        try:
            module.measure(found, release, rounds, milliseconds, names, by_instructions)
        except ImageError as error:
            found.notes.append(f"no {part} of Debian {release}: {public(error)}")
        except (BedError, OSError, ValueError) as error:
            found.failures.append(f"{part}, Debian {release}: {public(error)}")
            say(f"  FAILED {part}: {error}")


def measure_servers(args: argparse.Namespace, found: results.Results) -> None:
    """The cells of the NBD servers."""
    size, fresh = args.size * MIB, args.fresh_size * MIB
    disk = Path(os.environ.get("BENCH_DIR") or OUTPUT)
    # a raw and two full images, four chains of twice their size, what fresh images grow to
    needed = 11 * size + 2 * GIB
    servers = participants(args, found.notes)
    with tempfile.TemporaryDirectory(prefix="work-", dir=OUTPUT) as work, RamDisk(found.notes, needed) as ram:
        places: dict[str, Path] = {}
        if (not args.medium or "ram" in args.medium) and ram.directory:
            places["ram"] = ram.directory
        if not args.medium or "disk" in args.medium:
            disk.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(disk).free < needed:
                found.notes.append(
                    f"nothing on disk: less than {needed >> 20} MiB are free; name a directory by BENCH_DIR"
                )
            elif has_direct_io(disk):
                places["disk"] = scratch(disk)
            else:
                found.notes.append("nothing on disk: no O_DIRECT there; name another directory by BENCH_DIR")
        images = {name: Images(directory, size, fresh) for name, directory in places.items()}
        try:
            cells = chosen(args, list(places))
            if not cells:
                fail("nothing to measure: " + "; ".join(found.notes))
            describe_servers(found, servers, places)
            bench = Bench(found, settings(args), servers, images, Path(work))
            say("making images")
            bench.prepare(cells)
            bench.rounds(cells)
            if args.counts:
                say("counting system calls and mallocs")
                counted = cell_module.counted(list(places), args.quick)
                bench.counts([cell for cell in counted if not args.cell or cell in cells])
            if args.checks and not args.cell:
                say("checking space and memory")
                checks.all_checks(bench, images[cells[0].medium], args.quick)
        finally:
            for each in images.values():
                each.remove()


def settings(args: argparse.Namespace) -> Settings:
    """Rounds, length and CPUs."""
    server, client = machine.split_cpus(os.sched_getaffinity(0)) if args.pin else ("", "")
    return Settings(
        rounds=args.rounds or (3 if args.quick else 7),
        milliseconds=args.milliseconds or (500 if args.quick else 1200),
        server_cpus=server,
        client_cpus=client,
    )


def describe_servers(found: results.Results, servers: Sequence[Server], places: dict[str, Path]) -> None:
    """The servers, and where their images lie."""
    found.machine = machine.describe(places)
    found.servers = {
        server.name: server.public_argv() + (f"  ({server.note})" if server.note else "") for server in servers
    }


def describe(args: argparse.Namespace, found: results.Results) -> None:
    """The machine and the settings."""
    chosen_settings = settings(args)
    found.machine = machine.describe({})
    found.versions = machine.versions()
    found.settings = {
        "quick": args.quick,
        "rounds": chosen_settings.rounds,
        "milliseconds": chosen_settings.milliseconds,
        "size_mib": args.size,
        "fresh_size_mib": args.fresh_size,
        "server_cpus": chosen_settings.server_cpus or "not pinned",
        "client_cpus": chosen_settings.client_cpus or "not pinned",
        "bounds": "order statistics of paired ratios (sign test)",
    }
    if args.pin and not chosen_settings.client_cpus:
        found.notes.append("nothing is pinned: there is one CPU")
    if chosen_settings.rounds < 6:
        found.notes.append("fewer than 6 rounds: the bounds have less than 95 % confidence, a hint and no proof")
    busy = machine.others_busy()
    found.settings["busy_before"] = round(busy, 2)
    if busy > 0.1:
        found.notes.append(
            f"the machine was not idle before the bench: {busy:.2f} CPUs busy; do not trust these figures"
        )


def main() -> int:
    """The program: 0 if all was measured, 1 if not. Missed targets are told, they are no failure."""
    args = parser().parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _frame: sys.exit(128 + got))
    if args.show:
        try:
            show(results.load(args.show), args.show)
        except (OSError, ValueError, TypeError) as error:
            fail(str(error))
        return 0
    date = time.strftime("%Y-%m-%dT%H%MZ", time.gmtime())
    path = args.output or OUTPUT / f"{date}.json"
    found = results.Results(date=date, judged=args.judge)
    try:
        OUTPUT.mkdir(parents=True, exist_ok=True)
        measure(args, found, path)
    except (PrepareError, OSError) as error:
        fail(str(error))
    show(found, path)
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
