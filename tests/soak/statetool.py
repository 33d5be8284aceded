# SPDX-License-Identifier: LGPL-2.1-only
"""tool-state: one process that looks at images, and works on them, as fast as they are made."""

import os
import subprocess
from array import array
from pathlib import Path
from types import TracebackType

from tests.lib.programs import program

FOREIGN = 0xFFFFFFFF
"""The seed of a sector that holds anything but zeros or its own pattern."""

Seeds = bytes
"""Of each sector, 4 bytes in this machine's order."""


class ToolError(Exception):
    """It has answered with an error."""


class ToolDied(Exception):
    """It has ended: a sanitizer's finding, most likely."""


class StateTool:
    """Paths have no spaces."""

    def __init__(self, directory: Path, mode: str | None = None) -> None:
        config = directory / "tool-state.config"
        # io_uring may hold a file, and so its lock, a moment longer than the image is open.
        config.write_text("version=1\nengine=posix\n", encoding="utf-8")
        tool = program("tests/tool-state", mode)
        self._errors = (directory / "tool-state.err").open("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [tool],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "XENBLK_CONFIG": str(config)},
        )

    def ask(self, *words: str | Path | int) -> str:
        """What follows "ok"."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write((" ".join(map(str, words)) + "\n").encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._process.stdout.readline().decode(errors="replace").rstrip("\n")
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            raise ToolDied(f"{' '.join(map(str, words))}: {self._errors.read()}")
        if not answer.startswith("ok"):
            raise ToolError(answer)
        return answer[3:]

    def read(self, spec: str) -> Seeds:
        """The whole disk."""
        assert self._process.stdout
        count = int(self.ask("read", spec))
        return self._process.stdout.read(4 * count)

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._errors.close()

    def __enter__(self) -> "StateTool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill() if kind else None
        self.close()


def numbers(seeds: Seeds) -> "array[int]":
    """As numbers."""
    result = array("I")
    result.frombytes(seeds)
    return result
