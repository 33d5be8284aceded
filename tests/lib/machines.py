# SPDX-License-Identifier: LGPL-2.1-only
"""Our C programs as other machines run them: what tapdisk-c/cross.mk has built."""

import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.lib.programs import ROOT, program

EMULATORS = {"arm64": "qemu-aarch64", "i386": "qemu-i386", "s390x": "qemu-s390x"}


@dataclass(frozen=True)
class Machine:
    """A kind of machine; "" is this one."""

    name: str

    def __str__(self) -> str:
        """For pytest's names of tests."""
        return self.name or "native"

    def argv(self, name: str, *args: str | int | Path) -> list[str]:
        """The command that runs a program of tapdisk-c with these arguments."""
        if not self.name:
            return [str(program(name)), *map(str, args)]
        built = ROOT / "build" / self.name / "trap" / "tapdisk-c"
        path = built / name
        if not path.exists():
            raise FileNotFoundError(f"{path}: not built; run make -C tapdisk-c check-{self.name}")
        emulator = [] if _runs(built / "vhd-util") else [EMULATORS[self.name]]
        return [*emulator, str(path), *map(str, args)]

    def ok(self, name: str, *args: str | int | Path, text: str = "") -> str:
        """The output of a program that gets `text`, succeeds and says nothing on stderr."""
        done = self.run(name, *args, text=text)
        assert (done.returncode, done.stderr) == (0, ""), f"{self}: {done.returncode}: {done.stderr}"
        return done.stdout

    def run(self, name: str, *args: str | int | Path, text: str = "") -> "subprocess.CompletedProcess[str]":
        """Whatever becomes of it."""
        return subprocess.run(
            self.argv(name, *args), input=text, capture_output=True, text=True, timeout=120, check=False
        )


@functools.cache
def _runs(path: Path) -> bool:
    """Does the kernel run it by itself, as many do i386?"""
    try:
        subprocess.run([path], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    except OSError:
        return False
    return True


NATIVE = Machine("")
OTHERS = [Machine(name) for name in EMULATORS]
