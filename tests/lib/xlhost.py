# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk as installed, with a program in xl's place that records what it is given."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.lib import bridge

XL = """#!/bin/bash
printf '%s\\0' "$@" >"$0.argv"
cat /proc/$$/environ >"$0.environ"
sed -n 's/^SigIgn:\\s*//p' /proc/$$/status >"$0.signals"
for word; do
	case $word in
	/proc/self/fd/*) stat -L -c %F "$word" >"$0.kind"; cat "$word" >"$0.config" ;;
	esac
done
exit 7
"""


@dataclass
class Host:
    """A directory with a guest's image and configuration."""

    directory: Path
    command: Path

    def write(self, text: str) -> str:
        """Writes the guest's configuration and returns its path."""
        path = self.directory / "guest.cfg"
        path.write_text(text, encoding="utf-8")
        return str(path)

    def environment(self, **more: str) -> dict[str, str]:
        """What xenblk runs with."""
        return bridge.environment(
            XENBLK_XL=str(self.directory / "xl"),
            XENBLK_TAP_CTL="true",
            XENBLK_YAML=str(self.directory / "xenblk.yaml"),
            XENBLK_CONFIG=str(self.directory / "run" / "config"),
            **more,
        )

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Runs xenblk."""
        return subprocess.run(
            [str(self.command), *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def xl(self) -> list[str] | None:
        """The arguments that xl got, None if it wasn't started."""
        try:
            return (self.directory / "xl.argv").read_text(encoding="utf-8").split("\0")[:-1]
        except FileNotFoundError:
            return None

    @property
    def ignored(self) -> int:
        """The signals that xl has ignored, as a mask."""
        return int((self.directory / "xl.signals").read_text(), 16)

    @property
    def image(self) -> str:
        """The path of an image that is there."""
        return str(self.directory / "a.vhd")

    @property
    def form(self) -> str:
        """How the image as a writable xvda is given to xl."""
        return f"format=raw,script=block-xenblk,vdev=xvda,access=w,target=vhd:{self.image}"


def make(directory: Path, command: Path) -> Host:
    """Lays it out in `directory`."""
    (directory / "xl").write_text(XL, encoding="utf-8")
    (directory / "xl").chmod(0o755)
    (directory / "a.vhd").write_bytes(b"")
    return Host(directory, command)
