# SPDX-License-Identifier: LGPL-2.1-only
"""A root directory of a Debian release with what QEMU is built with."""

import shutil
from pathlib import Path

from tests.lib import apt, cache
from tests.lib.release import RELEASES

PACKAGES = (
    "bzip2",
    "gcc",
    "libc6-dev",
    "libfdt-dev",
    "libglib2.0-dev",
    "libpixman-1-dev",
    "libxen-dev",
    "make",
    "meson",
    "ninja-build",
    "perl",
    "pkg-config",
    "python3",
    "python3-distlib",
    "python3-venv",
    "zlib1g-dev",
)


def root(number: int) -> Path:
    """The root of this release. Another one than the modules' builder has: each has its own key."""
    suite = RELEASES[number].suite

    def make(directory: Path) -> None:
        with cache.step(f"root to build QEMU for Debian {number} in"):
            apt.mmdebstrap(directory / "root", suite, list(PACKAGES))
            shutil.rmtree(directory / "root/boot", ignore_errors=True)

    key = cache.key([suite, PACKAGES], [Path(__file__), Path(apt.__file__)])
    return cache.product(f"qemu-root-{number}", key, make) / "root"
