# SPDX-License-Identifier: LGPL-2.1-only
"""Debian's sources of the kernels, kept in the cache: each a git repository of the files that a series changes."""

import gzip
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from patchseries import HERE, SeriesError
from patchseries.base import ADDITIONS, read_base, write_base

from tests.lib import apt, builder, cache
from tests.lib.release import RELEASES

# Which Debian release has which kernel
RELEASE = {"6.1": 12, "6.12": 13}
BASE = "base"
# What a series changes, and what spdxcheck.py, which checkpatch.pl runs, wants of a repository
TRACKED = (*(addition.path for addition in ADDITIONS), "LICENSES")


@dataclass(frozen=True)
class Source:
    """The source of one kernel. Its work tree is ours to change, under `cache.locked(name)`."""

    kernel: str
    debian: str
    tree: Path

    @property
    def series(self) -> Path:
        """The series for this kernel."""
        return HERE / f"series-{self.kernel}"

    @property
    def patches(self) -> list[Path]:
        """The patches of the series in their order."""
        return [self.series / name for name in (self.series / "series").read_text().split()]

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a program in the tree, with Debian's Python for the kernel's scripts."""
        return builder.run(["env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *command], self.tree)

    def git(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run git in the tree."""
        identity = ["-c", "user.name=check-series", "-c", "user.email=check-series@localhost"]
        return builder.run(["git", *identity, *arguments], self.tree)

    def restore(self) -> None:
        """Bring the tree back to what Debian has; what was built of the kernel itself stays."""
        for path in (".git/rebase-apply", "drivers/block/blktap"):
            shutil.rmtree(self.tree / path, ignore_errors=True)
        for arguments in (("checkout", "-q", "-f", "--detach", BASE), ("reset", "-q", "--hard", BASE)):
            result = self.git(*arguments)
            if result.returncode:
                raise SeriesError(f"{self.tree}: git {arguments[0]}: {result.stdout}")


def _fetch(kernel: str, directory: Path) -> str:
    """Debian's current source of that kernel, in `directory`/tree. Returns its version."""
    package = f"linux-source-{kernel}"
    with cache.step(f"{package}: fetch"):
        archive = apt.Archive(directory / "apt", RELEASES[RELEASE[kernel]].suite)
        archive.update()
        archive.unpack(package, directory / "root")
    with gzip.open(directory / "root/usr/share/doc" / package / "changelog.Debian.gz", "rt", encoding="utf-8") as file:
        found = re.match(r"\S+ \((\S+)\)", file.readline())
    if not found:
        raise SeriesError(f"{package}: no version in its changelog")
    tree = directory / "tree"
    tree.mkdir()
    with cache.step(f"{package} {found[1]}: unpack"):
        tar = directory / "root/usr/src" / f"{package}.tar.xz"
        subprocess.run(["tar", "-x", "--strip-components=1", "-C", tree, "-f", tar], check=True)
    for part in ("apt", "root"):
        shutil.rmtree(directory / part)
    source = Source(kernel, found[1], tree)
    for arguments in (
        ("init", "-q"),
        ("add", "-f", *TRACKED),
        ("commit", "-q", "-m", BASE),
        ("tag", BASE),
    ):
        result = source.git(*arguments)
        if result.returncode:
            raise SeriesError(f"{package}: git {arguments[0]}: {result.stdout}")
    return found[1]


def _name(kernel: str) -> str:
    return f"linux-{kernel}"


def find(kernel: str) -> Source:
    """The source that the series is made for."""
    wanted = read_base(kernel).debian

    def make(directory: Path) -> None:
        version = _fetch(kernel, directory)
        if version != wanted:
            raise SeriesError(
                f"linux-source-{kernel}: Debian has {version}, the series is for {wanted}: "
                f"run `make -C kernel-patches check-series UPDATE=1` and commit what it changes"
            )

    directory = cache.product(_name(kernel), cache.key([wanted], []), make)
    return Source(kernel, wanted, directory / "tree")


def update(kernel: str) -> None:
    """Note the kernel that Debian has now as the one that the series is for."""
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache.root()) as name:
        directory = Path(name)
        version = _fetch(kernel, directory)
        write_base(kernel, directory / "tree", version)

        def make(place: Path) -> None:
            (directory / "tree").rename(place / "tree")

        cache.product(_name(kernel), cache.key([version], []), make)
