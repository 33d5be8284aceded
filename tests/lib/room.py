# SPDX-License-Identifier: LGPL-2.1-only
"""The disk space that `make test` needs, where it writes: a test that finds a disk full says anything but that."""

import shutil
import sys
import tempfile
from pathlib import Path

# in GiB: images of the tests that run at once; beds' disks; images and kernels that are made
NEEDED = {Path(tempfile.gettempdir()): 10, Path("/var/tmp"): 8}


class RoomError(Exception):
    """A file system has less room than a run needs."""


def check(needed: dict[Path, int] | None = None) -> None:
    """Raise RoomError, which names the directories, what they need and what is left, unless all have the GiB."""
    by_device: dict[int, list[Path]] = {}
    sums: dict[int, int] = {}
    for path, gib in (needed or NEEDED).items():
        device = path.stat().st_dev
        by_device.setdefault(device, []).append(path)
        sums[device] = sums.get(device, 0) + gib
    for device, paths in by_device.items():
        left = shutil.disk_usage(paths[0]).free
        if left < sums[device] << 30:
            names = " and ".join(map(str, paths))
            raise RoomError(f"{names}: {left / (1 << 30):.1f} GiB left, the tests need {sums[device]} GiB: make room")


if __name__ == "__main__":
    try:
        check()
    except RoomError as error:
        sys.exit(f"room: {error}")
