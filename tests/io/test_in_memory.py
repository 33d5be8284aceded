# SPDX-License-Identifier: LGPL-2.1-only
"""Images on tmpfs, which are read in place: the same answers as on a disk, and no space taken by looking."""

import errno
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib import vhdutil
from tests.lib.nbddisk import NbdDisk, Tapdisk

pytestmark = pytest.mark.io

MIB = 2048
"""Sectors in a MiB."""
SIZE = 16
"""MiB of a disk."""


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="xenblk-") as path:
        yield Path(path)


def has_direct_io(memory: Path) -> bool:
    """Linux before 6.6 refuses it on tmpfs, and tapdisk says so."""
    try:
        os.close(os.open(memory / "probe", os.O_RDWR | os.O_CREAT | os.O_DIRECT))
    except OSError as error:
        assert error.errno == errno.EINVAL
        return False
    return True


def create(kind: str, image: Path) -> None:
    if kind == "raw":
        image.touch()
        os.truncate(image, SIZE << 20)
    else:
        vhdutil.ok("create", "-n", image, "-s", SIZE)


def serve(memory: Path, kind: str, image: Path) -> Tapdisk | None:
    """None where the kernel can't, and tapdisk has said so."""
    spec = f"{'aio' if kind == 'raw' else 'vhd'}:{image}"
    if has_direct_io(memory):
        return Tapdisk(memory, spec)
    with pytest.raises(OSError, match="O_DIRECT"):
        Tapdisk(memory, spec)
    return None


def use(disk: NbdDisk, seeds: list[set[int]], rng: random.Random, first_seed: int) -> None:
    """Changes, one at a time, and after each a batch of reads, against the model."""
    for seed in range(first_seed, first_seed + 60):
        start = rng.randrange(len(seeds))
        count = min(rng.choice([1, 8, 128, 1000]), len(seeds) - start)
        op = rng.choice("wwwzd")
        assert disk.batch([f"{op} {start} {count} {seed}"]) == ["ok"]
        old = seeds[start : start + count]
        seeds[start : start + count] = [s | {0} for s in old] if op == "d" else [{seed if op == "w" else 0}] * count
        expect(disk, seeds, [(rng.randrange(len(seeds) - 512), rng.choice([1, 8, 64, 512])) for _ in range(16)])


def expect(disk: NbdDisk, seeds: list[set[int]], places: list[tuple[int, int]]) -> None:
    for (start, count), answer in zip(places, disk.batch([f"r {s} {n}" for s, n in places]), strict=True):
        assert all(int(got) in seeds[start + i] for i, got in enumerate(answer.split())), (start, count, answer)


@pytest.mark.parametrize("kind", ["raw", "vhd"])
def test_random_use_agrees_with_a_model(memory: Path, kind: str) -> None:
    rng = random.Random(kind)
    seeds = [{0}] * (SIZE * MIB)
    image = memory / "disk"
    create(kind, image)
    for depth in range(3):
        server = serve(memory, kind, image)
        if not server:
            return
        with server, NbdDisk(server.socket) as disk:
            fill = range(0, SIZE * MIB, MIB)
            if not depth:
                assert set(disk.batch([f"w {s} {MIB} 9999" for s in fill])) == {"ok"}
                seeds = [{9999}] * (SIZE * MIB)
            use(disk, seeds, rng, 1 + 100 * depth)
            expect(disk, seeds, [(s, MIB) for s in fill])
            assert str(image) in Path(f"/proc/{server.process.pid}/maps").read_text(encoding="utf-8")
        if kind == "vhd":
            child = memory / f"disk{depth}"
            vhdutil.ok("snapshot", "-n", child, "-p", image)
            image = child


@pytest.mark.parametrize("kind", ["raw", "vhd"])
def test_reading_holes_takes_no_space(memory: Path, kind: str) -> None:
    image = memory / "disk"
    create(kind, image)
    server = serve(memory, kind, image)
    if not server:
        return
    with server, NbdDisk(server.socket) as disk:
        assert disk.batch(["w 0 8 1", f"w {9 * MIB} 2000 2"]) == ["ok", "ok"]
        before = image.stat().st_blocks
        for _ in range(3):
            disk.batch([f"r {s} 128" for s in range(0, SIZE * MIB, 128)])
        assert image.stat().st_blocks == before
