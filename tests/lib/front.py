# SPDX-License-Identifier: LGPL-2.1-only
"""The front of xl beside programs that stand for Xen's xl and for xenblk and record what they are given."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.lib import bridge, programs

# FAKE says what it does in the end
FAKE = """#!/bin/bash
name=${0##*/}
printf '%s\\0' $# "$@" >"$RECORD/$name.argv"
cat /proc/$$/environ >"$RECORD/$name.environ"
echo $$ >"$RECORD/$name.pid"
eval "$FAKE"
"""


@dataclass(frozen=True)
class Front:
    """A directory as installed: sbin/xl, the front, sbin/xenblk, libexec/xl."""

    root: Path

    @property
    def xl(self) -> str:
        """The front's path."""
        return str(self.root / "sbin/xl")

    def environment(self, **more: str) -> dict[str, str]:
        """What it runs with: nothing of this machine's Xen, if any."""
        here = {"RECORD": str(self.root), "FAKE": "exit 0", "XENBLK_REAL_XL": str(self.root / "libexec/xl")}
        return bridge.environment(**(here | more))

    def run(self, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """Calls the front, in its directory; `more` is environment."""
        for record in self.root.glob("*.argv"):
            record.unlink()
        return subprocess.run(
            [self.xl, *arguments],
            cwd=self.root,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def given(self, name: str) -> list[str] | None:
        """The arguments that "xl" or "xenblk" got, None if it wasn't started."""
        try:
            return [os.fsdecode(part) for part in (self.root / f"{name}.argv").read_bytes().split(b"\0")[1:-1]]
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> str:
        """Writes a file beside it, and returns its path."""
        path = self.root / name
        path.write_text(text, encoding="utf-8")
        return str(path)


def install(root: Path, mode: str | None = None) -> Front:
    """Lays it out in `root`."""
    for place in ("sbin", "libexec"):
        (root / place).mkdir()
    shutil.copy(programs.program("xl", mode), root / "sbin/xl")
    for path in (root / "sbin/xenblk", root / "libexec/xl"):
        path.write_text(FAKE, encoding="utf-8")
        path.chmod(0o755)
    return Front(root)
