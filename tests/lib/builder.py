# SPDX-License-Identifier: LGPL-2.1-only
"""Builds for a Debian release that this machine does not run, in a root of that release with its own compiler."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.lib import apt, cache
from tests.lib.release import RELEASES

PACKAGES = (
    "make",
    "gcc",
    "libc6-dev",
    "linux-headers-amd64",
    "pkg-config",
    "libxen-dev",
    "liburing-dev",
    "libjansson-dev",
    "uuid-dev",
    "python3-cffi",
    "python3-dev",
    "python3-setuptools",
    "python3-yaml",
    "perl",
)


def foreign(number: int) -> bool:
    """Does a build for this release need a root of its own?"""
    return apt.host_codename() != RELEASES[number].suite


def builder(number: int) -> Path:
    """The root directory to build for this release in."""
    suite = RELEASES[number].suite
    here = Path(__file__).parent

    def make(directory: Path) -> None:
        with cache.step(f"root to build for Debian {number} in"):
            apt.mmdebstrap(directory / "root", suite, list(PACKAGES))
            shutil.rmtree(directory / "root/boot")

    key = cache.key([suite, PACKAGES], [here / "builder.py", here / "apt.py"])
    return cache.product(f"builder-{number}", key, make) / "root"


def inside(root: Path, visible: list[Path], directory: Path, command: list[str]) -> list[str]:
    """The command that runs `command` in `root`, in `directory`; the paths `visible` are there as they are here."""
    script = ['set -e; root=$1; where=$2; shift 2; mount -t proc proc "$root/proc"']
    for path in visible:
        place = root / path.relative_to("/")
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        script.append(f"mount --bind {path} {place}")
    script.append('exec chroot "$root" sh -c \'cd "$0" && exec "$@"\' "$where" "$@"')
    return ["unshare", "--mount", "sh", "-c", "; ".join(script), "inside", str(root), str(directory), *command]


def clean_environment() -> dict[str, str]:
    """This process's environment without what a `make` above us lends to its own makes."""
    return {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}


def run(command: list[str], directory: Path) -> "subprocess.CompletedProcess[str]":
    """Run a build command, its output captured."""
    return subprocess.run(
        command,
        cwd=directory,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
