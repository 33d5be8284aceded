# SPDX-License-Identifier: LGPL-2.1-only
"""The place in memory: tmpfs where its O_DIRECT works (Linux 6.6 and later), else ext4 on a brd RAM disk (as root)."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from tests.perf.images import has_direct_io

NEEDED = 6 << 30
BRD = Path("/dev/ram0")


def run(*argv: str | Path) -> str:
    """Run a command. Returns "" or what went wrong."""
    try:
        done = subprocess.run([str(a) for a in argv], capture_output=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.decode(errors="replace").strip() or f"{argv[0]} failed"


class RamDisk:
    """directory is None where there is no such place; why is added to the notes."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes
        self.directory: Path | None = None
        self.mounted = False

    def __enter__(self) -> "RamDisk":
        base = Path(os.environ.get("BENCH_RAM") or "/dev/shm")
        if not base.is_dir():
            self.notes.append("nothing in RAM: no tmpfs; name one by BENCH_RAM")
        elif not has_direct_io(base):
            self._brd()
        elif shutil.disk_usage(base).free < NEEDED:
            self.notes.append(f"nothing in RAM: less than {NEEDED >> 30} GiB free there; name another by BENCH_RAM")
        else:
            self.directory = Path(tempfile.mkdtemp(prefix="xbench-", dir=base))
        return self

    def _brd(self) -> None:
        if os.geteuid() != 0:
            self.notes.append("nothing in RAM: this kernel's tmpfs has no O_DIRECT, and a RAM disk (brd) takes root")
            return
        if BRD.exists():
            self.notes.append(f"nothing in RAM: this kernel's tmpfs has no O_DIRECT, and {BRD} is there already")
            return
        place = Path(tempfile.mkdtemp(prefix="xbench-"))
        wrong = run("modprobe", "brd", "rd_nr=1", f"rd_size={NEEDED >> 10}")
        wrong = wrong or run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", BRD)
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
