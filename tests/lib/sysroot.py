# SPDX-License-Identifier: LGPL-2.1-only
"""The libraries that our C programs are linked with, for another machine: `python3 -m tests.lib.sysroot arm64`.

They are unpacked, not installed: this machine's packages stay as they are.
"""

import argparse
import shutil
from pathlib import Path

from tests.lib import apt, cache

ARCHITECTURES = ("arm64", "i386", "s390x")
PACKAGES = (
    "liburing-dev",
    "liburing2",
    "libjansson-dev",
    "libjansson4",
    "uuid-dev",
    "libuuid1",
    "libcmocka-dev",
    "libcmocka0",
)


def sysroot(architecture: str) -> Path:
    """A directory with usr/include and usr/lib of the packages; the C library is not in it."""
    suite = apt.host_codename()
    here = Path(__file__).parent

    def make(directory: Path) -> None:
        with cache.step(f"libraries for {architecture}"):
            archive = apt.Archive(directory / "apt", suite, architecture)
            archive.update()
            for package in PACKAGES:
                archive.unpack(package, directory / "root")
            shutil.rmtree(directory / "apt")
            shutil.rmtree(directory / "root/usr/share")

    key = cache.key([suite, architecture, PACKAGES], [here / "sysroot.py", here / "apt.py"])
    return cache.product(f"sysroot-{architecture}", key, make) / "root"


def main() -> None:
    """Print where it is."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.lib.sysroot", description=__doc__)
    parser.add_argument("architecture", choices=ARCHITECTURES)
    print(sysroot(parser.parse_args().architecture))


if __name__ == "__main__":
    main()
