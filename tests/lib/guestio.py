# SPDX-License-Identifier: LGPL-2.1-only
"""A guest's use of its disk (bed/guestio.c), and what the disk holds after it."""

import functools
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.lib.disk import pattern
from tests.lib.initrd import SCRIPTS

SECTOR = 512
PAGE_SECTORS = 8
LENGTHS = (1, 3, 8, 8, 15, 64, 88, 255, 512, 2048)
MASK = (1 << 64) - 1


@functools.cache
def program() -> bytes:
    """Guestio, for a machine that has nothing else."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "guestio")
        source = str(SCRIPTS / "guestio.c")
        subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(out), source], check=True)
        subprocess.run(["strip", str(out)], check=True)
        return out.read_bytes()


@dataclass(frozen=True)
class Use:
    """One run: `guestio DISK SEED WORKERS OPERATIONS`."""

    seed: int
    workers: int = 4
    operations: int = 100

    def command(self, disk: str) -> str:
        """For the guest's shell."""
        return f"/guestio {disk} {self.seed} {self.workers} {self.operations}"

    def writes(self, sectors: int) -> list[tuple[int, int, int]]:
        """First sector, number of sectors and tag, in the order of each worker, on a disk of so many sectors."""
        part = sectors // self.workers
        result = []
        for worker in range(self.workers):
            state = self.seed + worker
            for number in range(1, self.operations + 1):
                drawn = []
                for _ in range(5):
                    state = (state * 6364136223846793005 + 1442695040888963407) & MASK
                    drawn.append(state >> 32)
                count = LENGTHS[drawn[0] % len(LENGTHS)]
                if drawn[3] % 2:
                    tag = self.seed << 32 | worker << 24 | number
                    at = drawn[1] % (part - count + 1)
                    at -= at % PAGE_SECTORS if drawn[4] % 2 else 0
                    result.append((part * worker + at, count, tag))
        return result

    def apply(self, disk: bytearray) -> None:
        """Change what a disk holds as the run does."""
        for first, count, tag in self.writes(len(disk) // SECTOR):
            data = b"".join(pattern(sector, tag) for sector in range(first, first + count))
            disk[first * SECTOR : (first + count) * SECTOR] = data
