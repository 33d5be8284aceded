# SPDX-License-Identifier: LGPL-2.1-only
"""The images that are served, and where they lie.

A chain of N holds what N-1 generations of a guest's writes leave: the root has every block, each image above it a
random 1/N of the disk in pieces of 64 KiB, the same pieces in both formats. A VHD is written by tapdisk's own driver,
so its data lies aligned to 4 KiB and its bitmaps say what is there; qemu reads it correctly since it is full.
"""

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.lib.programs import program
from tests.perf.cells import DEPTHS, Cell

MIB = 1 << 20
GIB = 1 << 30
PIECE = 64 << 10
SECTOR = 512
SEED = 20_26


class PrepareError(Exception):
    """An image can't be made, or the place is not fit."""


def call(argv: list[str | Path], stdin: bytes | None = None, timeout: float = 300.0) -> None:
    """Run a tool. Raises PrepareError with what it said."""
    done = subprocess.run([str(a) for a in argv], input=stdin, capture_output=True, timeout=timeout, check=False)
    if done.returncode != 0:
        text = (done.stderr + done.stdout[-300:]).decode(errors="replace").strip()
        raise PrepareError(f"{Path(argv[0]).name}: exit status {done.returncode}: {text}")


def has_direct_io(directory: Path) -> bool:
    """Whether O_DIRECT works on files there."""
    path = directory / ".xenblk-direct"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
    except OSError:
        return False
    finally:
        path.unlink(missing_ok=True)
    return True


def tool_disk(image: Path, lines: Iterator[str]) -> None:
    """Write through tapdisk's image driver, as tests/tool-disk understands it."""
    text = "\n".join(lines) + "\ngo\n"
    call([program("tests/tool-disk", "release"), f"vhd:{image}"], stdin=text.encode())


def whole(size: int) -> Iterator[str]:
    """Every sector of the disk, 1 MiB at a time."""
    step = MIB // SECTOR
    for number, sector in enumerate(range(0, size // SECTOR, step), 1):
        yield f"w {sector} {step} {number}"
        if number % 64 == 0:
            yield "go"


def generation(size: int, depth: int, level: int) -> list[int]:
    """Where, in bytes, the image at this level of a chain (from 1) was written."""
    pieces = size // PIECE
    chosen = random.Random(SEED * 1000 + level).sample(range(pieces), pieces // depth)
    return [piece * PIECE for piece in chosen]


def vhd_pieces(offsets: list[int], level: int) -> Iterator[str]:
    """The same as lines for tool-disk."""
    for number, offset in enumerate(offsets, 1):
        yield f"w {offset // SECTOR} {PIECE // SECTOR} {level}"
        if number % 256 == 0:
            yield "go"


class Images:
    """The images of one medium. size in bytes; fresh images have fresh_size, so that they stay fresh for a run."""

    def __init__(self, directory: Path, size: int, fresh_size: int) -> None:
        self.directory = directory
        self.size = size
        self.fresh_size = fresh_size
        self.made: set[str] = set()
        self.places: dict[tuple[int, int], set[int]] = {}

    def path(self, kind: str, image_format: str) -> Path:
        """Where the image is (the leaf of a chain)."""
        suffix = {"raw": "img", "vpc": "vhd", "qcow2": "qcow2"}[image_format]
        if kind in DEPTHS:
            return self.directory / f"{kind}-{image_format}" / f"{DEPTHS[kind] - 1}.{suffix}"
        return self.directory / f"{kind}.{suffix}"

    def disk_size(self, kind: str) -> int:
        """The size of the disk in an image."""
        return self.fresh_size if kind == "fresh" else self.size

    def ready(self, cell: Cell, image_format: str) -> Path:
        """The image for a run: made now if it is fresh or was not made yet."""
        path = self.path(cell.kind, image_format)
        if cell.kind == "fresh":
            path.unlink(missing_ok=True)
            self.empty(path, image_format, self.fresh_size)
        elif str(path) not in self.made:
            if cell.kind in DEPTHS:
                self._chain(path, image_format, DEPTHS[cell.kind])
            else:
                self._full(path, image_format)
            os.sync()
            self.made.add(str(path))
        return path

    def empty(self, path: Path, image_format: str, size: int) -> None:
        """A new image in which nothing is written. A VHD is made by vhd-util, for qemu too."""
        if image_format == "vpc":
            call([program("vhd-util", "release"), "create", "-n", path, "-s", str(size // MIB)])
        else:
            call(["qemu-img", "create", "-q", "-f", image_format, path, str(size)])

    def _full(self, path: Path, image_format: str) -> None:
        if image_format == "vpc":
            self.empty(path, image_format, self.size)
            tool_disk(path, whole(self.size))
            return
        raw = self.path("raw", "raw")
        if not raw.exists():
            chunk = random.Random(SEED).randbytes(MIB)
            with raw.open("wb") as file:
                for _ in range(self.size // MIB):
                    file.write(chunk)
                os.fsync(file.fileno())
        if image_format == "qcow2":
            call(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", raw, path])

    def _chain(self, leaf: Path, image_format: str, depth: int) -> None:
        directory = leaf.parent
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        root = directory / f"0{leaf.suffix}"
        self._full(root, image_format)
        for level in range(1, depth):
            path = directory / f"{level}{leaf.suffix}"
            parent = directory / f"{level - 1}{leaf.suffix}"
            offsets = generation(self.size, depth, level)
            if image_format == "vpc":
                call([program("vhd-util", "release"), "snapshot", "-n", path, "-p", parent])
                tool_disk(path, vhd_pieces(offsets, level))
            else:
                call(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", parent, path])
                commands = "".join(f"write -q -P {level} {offset} {PIECE}\n" for offset in offsets)
                call(["qemu-io", "-f", "qcow2", path], stdin=commands.encode())

    def expected(self, kind: str, image_format: str, offset: int) -> bytes:
        """What is at the start of a piece of a disk that no run has written to yet."""
        if kind == "fresh":
            return bytes(16)
        written = [
            level
            for level in range(1, DEPTHS.get(kind, 1))
            if offset in self.places.setdefault((DEPTHS[kind], level), set(generation(self.size, DEPTHS[kind], level)))
        ]
        if image_format == "vpc":
            seed = written[-1] if written else offset // MIB + 1
            return struct.pack("=QQ", offset // SECTOR, seed)
        return bytes([written[-1]]) * 16 if written else random.Random(SEED).randbytes(MIB)[offset % MIB :][:16]

    def drop_cache(self, image_format: str) -> None:
        """Forget cached pages of the raw image, for a server that reads through the page cache."""
        path = self.path("raw", image_format)
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)

    def remove(self) -> None:
        """Remove all images."""
        shutil.rmtree(self.directory, ignore_errors=True)
