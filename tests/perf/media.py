# SPDX-License-Identifier: LGPL-2.1-only
"""The place in memory: tmpfs where its O_DIRECT works (Linux 6.6 and later), else ext4 on a brd RAM disk (as root)."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from tests.perf.images import has_direct_io

BRD = Path("/dev/ram0")


def run(*argv: str | Path) -> str:
    """Run a command. Returns "" or what went wrong."""
    try:
        done = subprocess.run([str(a) for a in argv], capture_output=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.decode(errors="replace").strip() or f"{argv[0]} failed"


def scratch(base: Path) -> Path:
    """A directory for images. What a bench left that was killed is removed."""
    for old in base.glob("xbench-*"):
        pid = old.name.split("-")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"xbench-{os.getpid()}-", dir=base))


def available_memory() -> int:
    """Bytes that can be taken without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


class RamDisk:
    """directory is None where there is no such place of `needed` bytes; why is added to the notes."""

    def __init__(self, notes: list[str], needed: int) -> None:
        self.notes = notes
        self.needed = needed
        self.directory: Path | None = None
        self.mounted = False

    def __enter__(self) -> "RamDisk":
        base = Path(os.environ.get("BENCH_RAM") or "/dev/shm")
        if available_memory() < self.needed:
            self.notes.append(f"nothing in RAM: less than {self.needed >> 20} MiB are free; --size takes less")
        elif not base.is_dir():
            self.notes.append("nothing in RAM: no tmpfs; name one by BENCH_RAM")
        elif not has_direct_io(base):
            self._brd()
        elif shutil.disk_usage(base).free < self.needed:
            self.notes.append(f"nothing in RAM: the tmpfs has less than {self.needed >> 20} MiB; --size takes less")
        else:
            self.directory = scratch(base)
        return self

    def _brd(self) -> None:
        if os.geteuid() != 0:
            self.notes.append("nothing in RAM: this kernel's tmpfs has no O_DIRECT, and a RAM disk (brd) takes root")
            return
        if BRD.exists():
            self.notes.append(f"nothing in RAM: this kernel's tmpfs has no O_DIRECT, and {BRD} is there already")
            return
        place = Path(tempfile.mkdtemp(prefix="xbench-"))
        wrong = run("modprobe", "brd", "rd_nr=1", f"rd_size={self.needed >> 10}")
        wrong = wrong or run("mkfs.ext4", "-q", "-N", "1024", BRD)
        wrong = wrong or run("mount", BRD, place)
        if wrong:
            run("rmmod", "brd")
            place.rmdir()
            self.notes.append(f"nothing in RAM: this kernel's tmpfs has no O_DIRECT, and no RAM disk: {wrong}")
            return
        self.directory, self.mounted = place, True

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self.directory is None:
            return
        if self.mounted:
            run("umount", self.directory)
            run("rmmod", "brd")
            self.directory.rmdir()
        else:
            shutil.rmtree(self.directory, ignore_errors=True)
