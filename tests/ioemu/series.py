# SPDX-License-Identifier: LGPL-2.1-only
"""A series of ioemu-patches: its files, and how it is applied to a tree."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lib import apt

PATCHES = Path(__file__).parents[2] / "ioemu-patches"
COVER = "0000-cover-letter.patch"


class SeriesError(Exception):
    """The series is not what it should be, or can't be tried."""


@dataclass(frozen=True)
class Series:
    """One directory."""

    directory: Path

    def base(self) -> dict[str, str]:
        """Where the series applies."""
        lines = (self.directory / "base").read_text(encoding="ascii").splitlines()
        return {name: value for name, _, value in (line.partition(": ") for line in lines)}

    def patches(self) -> list[str]:
        """The names in `series`."""
        return (self.directory / "series").read_text(encoding="ascii").splitlines()

    def text(self, name: str) -> str:
        """A mail."""
        return (self.directory / name).read_text(encoding="ascii")

    def apply(self, name: str, tree: Path) -> None:
        """Apply a patch, as `git am` does: the lines around must be there as they are, be it elsewhere."""
        try:
            git(tree, "am", "-q", str(self.directory / name))
        except SeriesError as error:
            raise SeriesError(f"{name} does not apply: {error}") from None


def run(command: list[str], cwd: Path, check: bool = True) -> str:
    """The output of a command, with its errors."""
    env = {**os.environ, "LC_ALL": "C", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    # of a make that this runs under
    env = {name: value for name, value in env.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "XEN_ROOT")}
    result = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if check and result.returncode:
        raise SeriesError(f"{' '.join(command[:4])}: status {result.returncode}\n{result.stdout[-3000:]}")
    return result.stdout


def git(tree: Path, *arguments: str) -> str:
    """Git's output."""
    return run(["git", "-c", "user.name=check", "-c", "user.email=check@localhost", *arguments], tree)


def report(what: str, found: list[str], good: str) -> int:
    """Say what was found. Returns how much."""
    print(f"{what}: {f'{len(found)} found' if found else good}", flush=True)
    for text in found:
        print(f"  {text}", flush=True)
    return len(found)


def verdict(name: str, look: Callable[[], int]) -> int:
    """Say how a check ended that returns how much it found. Returns the program's exit status."""
    try:
        count = look()
    except (SeriesError, apt.AptError, OSError) as error:
        print(f"{name}: FAILED: {error}")
        return 1
    print(f"{name}: {f'FAILED: {count} found' if count else 'ok'}")
    return 1 if count else 0
