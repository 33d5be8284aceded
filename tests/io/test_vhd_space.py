# SPDX-License-Identifier: LGPL-2.1-only
"""What zeros, discards and random writes cost in space, and what status says, on VHDs."""

import random
from pathlib import Path

import pytest

from tests.lib import vhdref
from tests.lib.disk import Disk, write_raw
from tests.lib.vhdutil import ok

pytestmark = pytest.mark.io

MIB = 2048
"""Sectors in a MiB."""
BLOCK = 2 * MIB

ENGINES = ["uring", "posix"]


def create(path: Path, mib: int) -> Path:
    ok("create", "-n", path, "-s", mib)
    return path


def space(path: Path) -> int:
    """Bytes on the disk."""
    return path.stat().st_blocks * 512


def random_pieces(disk: Disk, count: int, rng: random.Random) -> None:
    """Writes of 64 KiB, each in a place of its own, 32 at a time."""
    places = rng.sample(range(disk.sectors // 128), count)
    for i in range(0, count, 32):
        assert set(disk.batch([f"w {p * 128} 128 {p + 1}" for p in places[i : i + 32]])) == {"ok"}


@pytest.mark.parametrize("parent", [False, True])
def test_random_writes_take_little_more_than_their_data(tmp_path: Path, *, parent: bool) -> None:
    path = create(tmp_path / "0.vhd", 2048)
    if parent:
        path = tmp_path / "1.vhd"
        ok("snapshot", "-n", path, "-p", tmp_path / "0.vhd")
    with Disk(f"vhd:{path}") as disk:
        random_pieces(disk, 640, random.Random(str(parent)))
    # 40 MiB of data; 4 KiB for each bitmap at most, and the BAT
    assert space(path) <= 46 << 20
    ok("check", "-n", path)


@pytest.mark.parametrize("engine", ENGINES)
def test_zeros_and_discards_free_what_they_cover(tmp_path: Path, engine: str) -> None:
    path = create(tmp_path / "a.vhd", 64)
    with Disk(f"vhd:{path}", engine=engine) as disk:
        full = [f"w {s} {MIB} 1" for s in range(0, 32 * MIB, MIB)]
        assert set(disk.batch(full)) == {"ok"}
        before = space(path)
        assert before >= 32 << 20
        assert disk.zero(0, 64 * MIB) == "ok"
        assert space(path) <= before - (31 << 20)
        assert set(disk.read(0, 4096)) == {0}
        assert set(disk.batch(full)) == {"ok"}
        assert disk.discard(8, 16 * MIB) == "ok"
        assert space(path) <= before - (15 << 20)
        assert disk.read(0, 16) == [1] * 8 + [0] * 8
        assert set(disk.batch(full)) == {"ok"}
        assert disk.zero(0, 32 * MIB, keep_space=True) == "ok"
        assert space(path) >= before
        assert set(disk.read(0, 4096)) == {0}
    ok("check", "-n", path)


def test_zeros_where_nothing_is_take_no_space(tmp_path: Path) -> None:
    path = create(tmp_path / "a.vhd", 1 << 20)
    before = path.read_bytes()
    with Disk(f"vhd:{path}") as disk:
        assert disk.zero(0, disk.sectors) == "ok"
        assert disk.discard(0, disk.sectors) == "ok"
        assert disk.status(0, disk.sectors) == [(disk.sectors, "hole+zero")]
    assert path.read_bytes() == before


@pytest.mark.parametrize("engine", ENGINES)
def test_zeros_hide_the_parents_data(tmp_path: Path, engine: str) -> None:
    base = create(tmp_path / "0.vhd", 8)
    with Disk(f"vhd:{base}") as disk:
        assert disk.write(100, 4000, 7) == "ok"
        assert disk.write(BLOCK + 5, 3, 8) == "ok"
    leaf = tmp_path / "1.vhd"
    ok("snapshot", "-n", leaf, "-p", base)
    with Disk(f"vhd:{leaf}", engine=engine) as disk:
        assert disk.write(99, 3, 9) == "ok"
        assert disk.zero(101, 50) == "ok"
        assert disk.zero(BLOCK, BLOCK, keep_space=True) == "ok"
        assert disk.read(98, 54) == [0, 9, 9] + [0] * 50 + [7]
        assert set(disk.read(BLOCK, BLOCK)) == {0}
    assert vhdref.Chain(leaf).read(101 * 512, 50 * 512) == bytes(50 * 512)
    assert space(leaf) < 4 << 20
    ok("check", "-n", leaf, "-p")


def test_status_tells_what_any_image_of_the_chain_holds(tmp_path: Path) -> None:
    write_raw(tmp_path / "base.img", 8 * MIB, {})
    leaf = tmp_path / "of-raw.vhd"
    ok("snapshot", "-n", leaf, "-p", tmp_path / "base.img", "-m")
    with Disk(f"vhd:{leaf}", readonly=True) as disk:
        assert disk.status(0, 8 * MIB) == [(8 * MIB, "data")]
    path = create(tmp_path / "0.vhd", 16)
    for i in range(1, 4):
        with Disk(f"vhd:{path}") as disk:
            assert disk.write(i * BLOCK, 8, i) == "ok"
            assert disk.write(i * 64, 16, i) == "ok"
        path, parent = tmp_path / f"{i}.vhd", path
        ok("snapshot", "-n", path, "-p", parent)
    with Disk(f"vhd:{path}", readonly=True) as disk:
        found = disk.status(BLOCK * 2, BLOCK * 3)
    assert found == [(8, "data"), (BLOCK - 8, "hole+zero"), (8, "data"), (2 * BLOCK - 8, "hole+zero")]
