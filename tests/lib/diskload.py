# SPDX-License-Identifier: LGPL-2.1-only
"""A load on a disk that knows what it has written (bed/load.c), and goes on for as long as the test wants it."""

import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tests.lib.toytap import wait_for_output
from tests.lib.vm import Bed, Result

SOURCE = Path(__file__).parent / "bed" / "load.c"
PROGRAM = "/root/load"
MODEL = "/root/model"
END_SECONDS = 300


@cache
def build() -> bytes:
    """The program, which needs no library."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "load"
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o", out, SOURCE], check=True)
        return out.read_bytes()


def good(ended: Result) -> bool:
    """Was all as it was written?"""
    return ended.status == 0 and "good pieces=" in ended.stdout


def check(bed: Bed, device: str) -> Result:
    """Hold a device against what the last load remembers."""
    return bed.run(f"{PROGRAM} check {device} {MODEL}", check=False)


class DiskLoad:
    """Reads and writes of 4 to 64 KiB, eight at a time, in the disk's first `blocks` of 2 MiB, some of them to new blocks. Only a
    disk's one load remembers."""

    def __init__(self, bed: Bed, device: str, seed: int, blocks: int = 1) -> None:
        self.bed = bed
        bed.put(PROGRAM, build(), 0o755)
        self._process = bed.popen(f"echo $$; exec {PROGRAM} {device} {MODEL} 0 {seed} {blocks}")
        wait_for_output(self._process, "begun\n")
        self.pid = int(self._process.output().split()[0])

    @property
    def ended(self) -> bool:
        """Is it over? Then it has met an error, or `end` was called."""
        return self._process.ended

    def kill(self) -> None:
        """End it at once, if it is not over."""
        self._process.kill()
        self._process.wait(END_SECONDS, check=False)

    def wrote(self, name: str, writes: int) -> None:
        """Wait until the disk `name` of /sys/block has answered so many writes more, under a load that has met no error."""
        now = int(self.bed.run(f"awk '{{ print $5 }}' /sys/block/{name}/stat").stdout)
        self.bed.wait_for(f"awk '{{ exit $5 < {now + writes} }}' /sys/block/{name}/stat", 60, 0.1)
        assert not self.ended, self._process.output()

    def end(self, check: bool = True) -> Result:
        """Have it read all that it has written, and say whether it was there."""
        self.bed.run(f"kill -TERM {self.pid}", check=False)
        ended = self._process.wait(END_SECONDS, check=False)
        assert good(ended) or not check, ended.output
        return ended
