# SPDX-License-Identifier: LGPL-2.1-only
"""vhd-util map and compare: what holds the data of a chain, and whether two disks are the same."""

import json
import os
from pathlib import Path

import pytest

from tests.lib import vhdmake, vhdref
from tests.lib.disk import Disk
from tests.lib.vhdmake import FIXED, MIB, Spec
from tests.lib.vhdutil import content, fails, ok, run

pytestmark = pytest.mark.io


def write(path: Path, *commands: str) -> None:
    with Disk(f"vhd:{path}") as disk:
        assert set(disk.batch(list(commands))) == {"ok"}


@pytest.fixture
def leaf(tmp_path: Path) -> Path:
    """On a raw file that is smaller, and has a hole."""
    raw, middle, path = (tmp_path / name for name in ("base.img", "middle.vhd", "leaf.vhd"))
    with raw.open("wb") as file:
        file.write(b"r" * MIB)
        file.truncate(4 * MIB)
    ok("snapshot", "-n", middle, "-p", raw, "-m")
    write(middle, "w 10 20 1")
    ok("snapshot", "-n", path, "-p", middle)
    write(path, "w 16 8 2")
    ok("resize", "-n", path, "-s", 8)
    write(path, "w 12288 8 3")
    return path


def test_each_part_is_where_the_map_says(leaf: Path) -> None:
    extents = json.loads(ok("map", "-n", leaf, "--json"))
    data, at = content(leaf), 0
    for e in extents:
        assert e["start"] == at
        part = data[at : at + e["length"]]
        if e["present"]:
            with Path(e["file"]).open("rb") as file:
                assert os.pread(file.fileno(), e["length"], e["offset"]) == part
        if e["zero"]:
            assert part == bytes(len(part))
        assert e["data"] is not e["zero"]
        at += e["length"]
    assert at == len(data)
    held = [(e["start"] // 512, e["length"] // 512, e["depth"]) for e in extents if e["data"]]
    assert held == [(0, 10, 2), (10, 6, 1), (16, 8, 0), (24, 6, 1), (30, 2018, 2), (12288, 8, 0)]
    assert [(e["present"], e["depth"]) for e in extents if e["zero"]] == [(True, 2), (False, 3), (False, 3)]


def test_lines(leaf: Path) -> None:
    lines = ok("map", "-n", leaf).splitlines()
    offset = vhdref.Image(leaf).bat[0] * 512 + 512
    assert lines[2] == f"{16 * 512} {8 * 512} data 0 {offset + 16 * 512} {leaf}"
    assert f"{MIB} {3 * MIB} zero 2 {MIB} {leaf.parent / 'base.img'}" in lines
    assert lines[-1] == f"{12296 * 512} {8 * MIB - 12296 * 512} hole"


def test_map_of_a_fixed_image_and_of_a_large_empty_one(tmp_path: Path) -> None:
    fixed = vhdmake.make(tmp_path / "f.vhd", Spec(kind=FIXED, blocks={0: {1: b"x" * 512}}))
    assert json.loads(ok("map", "-n", fixed, "--json"))[0]["offset"] == 0
    ok("create", "-n", tmp_path / "a.vhd", "-s", 2040 * 1024)
    assert ok("map", "-n", tmp_path / "a.vhd") == f"0 {2040 << 30} hole\n"


def test_the_same_disk_in_other_images(tmp_path: Path, leaf: Path) -> None:
    raw, flat = tmp_path / "flat.img", tmp_path / "copy.vhd"
    raw.write_bytes(content(leaf))
    assert ok("compare", "-n", leaf, "-N", raw, "-m") == "Images are identical.\n"
    ok("snapshot", "-n", flat, "-p", leaf)
    assert json.loads(ok("compare", "-n", leaf, "-N", flat, "--json")) == {
        "identical": True,
        "offset": None,
        "sizes": [8 * MIB] * 2,
    }
    ok("compare", "-n", leaf, "-N", leaf)


@pytest.mark.parametrize("at", [0, 16 * 512 + 3, 4 * MIB, 8 * MIB - 1])
def test_the_first_difference(tmp_path: Path, leaf: Path, at: int) -> None:
    data = bytearray(content(leaf))
    data[at] ^= 1
    data[-1] ^= 1 if at != len(data) - 1 else 0
    raw = tmp_path / "other.img"
    raw.write_bytes(data)
    result = run("compare", "-n", leaf, "-N", raw, "-m")
    assert (result.returncode, result.stdout) == (1, f"Content mismatch at offset {at}!\n".encode())
    result = run("compare", "-n", leaf, "-N", raw, "-m", "--json")
    assert (result.returncode, json.loads(result.stdout)["offset"]) == (1, at)


def test_sizes(tmp_path: Path) -> None:
    small, large = tmp_path / "a.vhd", tmp_path / "b.vhd"
    ok("create", "-n", small, "-s", 4)
    ok("create", "-n", large, "-s", 8)
    for pair in ((small, large), (large, small)):
        assert ok("compare", "-n", pair[0], "-N", pair[1]) == "Images are identical.\n"
        result = run("compare", "-s", "-n", pair[0], "-N", pair[1])
        assert (result.returncode, result.stdout) == (1, b"Image size mismatch!\n")
    write(large, "w 8192 1 1")
    result = run("compare", "-n", small, "-N", large)
    assert result.returncode == 1 and str(4 * MIB).encode()[:4] in result.stdout


def test_failures_are_not_differences(tmp_path: Path) -> None:
    path, odd = tmp_path / "a.vhd", tmp_path / "odd"
    ok("create", "-n", path, "-s", 4)
    odd.write_bytes(bytes(100))
    assert "512" in fails("compare", "-n", path, "-N", odd, "-m", status=2)
    assert "odd" in fails("compare", "-n", path, "-N", odd, status=2)
    assert "No such file" in fails("compare", "-n", path, "-N", tmp_path / "no", status=2)
    assert "No such file" in fails("map", "-n", tmp_path / "no")
    with Disk(f"vhd:{path}"):
        assert str(path) in fails("compare", "-n", path, "-N", path, status=2)
        assert ok("map", "-n", path).endswith("hole\n")
    for command in ("map", "compare"):
        assert run(command, "-n", path, "extra").returncode == 2
        assert run(command, "-h").returncode == 0
