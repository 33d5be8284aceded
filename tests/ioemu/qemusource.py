# SPDX-License-Identifier: LGPL-2.1-only
"""Debian's source of QEMU, with Debian's patches."""

import re
import subprocess
from pathlib import Path

from tests.ioemu.series import SeriesError, git, run
from tests.lib import apt, cache


class Archive(apt.Archive):
    """A private apt that knows the sources of a suite."""

    def __init__(self, directory: Path, suite: str) -> None:
        super().__init__(directory, suite)
        path = directory / "sources.list"
        path.write_text(re.sub("^deb ", "deb-src ", path.read_text(encoding="utf-8"), flags=re.M), encoding="utf-8")

    def _asked(self, *command: str) -> str:
        program, *arguments = command
        return run([program, *self._options, *arguments], self.directory)

    def versions(self, package: str) -> list[str]:
        """The versions of a source package that the archive has."""
        text = self._asked("apt-cache", "--only-source", "showsrc", package)
        return sorted(set(re.findall(r"^Version: (\S+)$", text, re.M)))

    def download(self, package: str, version: str) -> Path:
        """The .dsc of a source package, its other files beside it, all as the archive's signed lists have them."""
        self._asked("apt-get", "-qq", "--only-source", "--download-only", "source", f"{package}={version}")
        return next(self.directory.glob(f"{package}_*.dsc"))


def source(base: dict[str, str], suite: str) -> Path:
    """The unpacked source of the version that a series is for, from the cache or the archive."""
    package, version = base["package"], base["version"]

    def make(directory: Path) -> None:
        archive = Archive(directory / "apt", suite)
        with cache.step(f"source of {package} {version}"):
            archive.update()
            there = archive.versions(package)
            if version not in there:
                raise SeriesError(
                    f"the archive of {suite} no longer has {package} {version}, but {', '.join(there) or 'none'}: "
                    "the series has to be applied to that, tried, and its base changed"
                )
            dsc = archive.download(package, version)
            # apt has verified it; dpkg-source needs the keyring of Debian's developers for that
            run(["dpkg-source", "--no-check", "-x", str(dsc), str(directory / "source")], directory)
        subprocess.run(["rm", "-rf", str(directory / "apt"), str(directory / "source/.pc")], check=True)

    return cache.product(f"qemu-source-{suite}", cache.key(base, [Path(__file__)]), make) / "source"


def repository(tree: Path, where: Path) -> None:
    """A git repository with the source for its first commit."""
    run(["cp", "-a", str(tree), str(where)], Path("/"))
    git(where, "init", "-q")
    # Debian's tree has files that QEMU's .gitignore names
    git(where, "add", "-A", "-f", ".")
    git(where, "commit", "-q", "-m", "base")
