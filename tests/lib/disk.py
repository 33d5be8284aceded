# SPDX-License-Identifier: LGPL-2.1-only
"""tool-disk: an image driver over an I/O engine, driven line by line."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.lib.programs import program

Answer = str
"""A line of tool-disk: "ok", "err N", the seeds of the sectors read, or extents."""


class Disk:
    """An open image. Requests of one batch run concurrently.

    The sectors written carry their number and a seed, so that a read answers
    the seed of each sector, 0 for zeros, or "?" for anything else.
    """

    def __init__(
        self,
        spec: str,
        *,
        engine: str = "uring",
        readonly: bool = False,
        requests: int = 64,
        mode: str | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        """Raises OSError with tool-disk's words if the image can't be opened."""
        argv = [str(program("tests/tool-disk", mode)), f"--engine={engine}", f"--requests={requests}"]
        if readonly:
            argv.append("--readonly")
        self.process = subprocess.Popen(
            [*argv, spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.input = self.process.stdin
        self.output = self.process.stdout
        first = self.output.readline().split()
        if not first:
            text = self.stderr().strip()
            self._close_pipes()
            raise OSError(text)
        self.sectors, self.depth, self.sector_size = map(int, first)

    def batch(self, commands: Sequence[str]) -> list[Answer]:
        """Starts all of "w S N SEED", "r S N", "f", "z S N", "d S N", "s S N", then waits for their answers."""
        self.input.write("".join(c + "\n" for c in commands) + "go\n")
        self.input.flush()
        answers = [self.output.readline().rstrip("\n") for _ in commands]
        if "" in answers:
            raise OSError(self.stderr())
        return answers

    def write(self, sector: int, count: int, seed: int) -> Answer:
        """Writes sectors that carry the seed."""
        return self.batch([f"w {sector} {count} {seed}"])[0]

    def read(self, sector: int, count: int) -> list[int]:
        """The seeds of the sectors; ValueError for an error or for foreign bytes."""
        answer = self.batch([f"r {sector} {count}"])[0]
        return [int(word) for word in answer.split()]

    def flush(self) -> Answer:
        """A flush alone."""
        return self.batch(["f"])[0]

    def zero(self, sector: int, count: int, *, keep_space: bool = False) -> Answer:
        """Makes sectors read as zeros."""
        return self.batch([f"{'Z' if keep_space else 'z'} {sector} {count}"])[0]

    def discard(self, sector: int, count: int) -> Answer:
        """Gives up what sectors hold."""
        return self.batch([f"d {sector} {count}"])[0]

    def status(self, sector: int, count: int) -> list[tuple[int, str]]:
        """Extents as (sectors, "data" | "hole" | "zero" | "hole+zero"), asking on until all are told."""
        extents: list[tuple[int, str]] = []
        while count:
            for word in self.batch([f"s {sector} {count}"])[0].split():
                sectors, flags = word.split(":")
                extents.append((int(sectors), flags))
                sector += int(sectors)
                count -= int(sectors)
        return extents

    def crash(self) -> None:
        """Ends the process without closing the image."""
        self.input.write("crash\n")
        self.input.close()
        assert self.process.wait() == 9, self.stderr()
        self._close_pipes()

    def stderr(self) -> str:
        """What it complained of, once it has ended."""
        self.process.wait()
        assert self.process.stderr
        return self.process.stderr.read()

    def close(self) -> None:
        """Closes the image cleanly; an error or a sanitizer report raises."""
        if self.process.poll() is None:
            self.input.close()
        status = self.process.wait(timeout=60)
        text = self.stderr()
        self._close_pipes()
        if status:
            raise OSError(f"tool-disk ended with {status}: {text}")

    def _close_pipes(self) -> None:
        for pipe in (self.input, self.output, self.process.stderr):
            if pipe:
                pipe.close()

    def __enter__(self) -> "Disk":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self.process.returncode is None:
            self.close()
        elif self.process.returncode is None:
            self.process.kill()
            self.process.wait()
            self._close_pipes()


def pattern(sector: int, seed: int) -> bytes:
    """What tool-disk writes to a sector: 512 bytes."""
    return (sector.to_bytes(8, "little") + seed.to_bytes(8, "little")) * 32


def write_raw(path: Path, sectors: int, seeds: dict[int, int]) -> None:
    """A raw image of so many sectors, of which some carry a seed."""
    with path.open("wb") as f:
        f.truncate(sectors * 512)
        for sector, seed in seeds.items():
            f.seek(sector * 512)
            f.write(pattern(sector, seed))
