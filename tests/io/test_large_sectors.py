# SPDX-License-Identifier: LGPL-2.1-only
"""Images on a file system whose disk has sectors of 4096 bytes: direct I/O takes no less, which holes don't show."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lib import vhdutil
from tests.lib.disk import Disk

pytestmark = pytest.mark.io

ENGINES = ["uring", "posix"]


@contextmanager
def mounted(tmp_path: Path, kind: str, sector: int) -> Iterator[Path]:
    """A directory of such a file system, on a disk with sectors of so many bytes."""
    disk, directory = tmp_path / "disk", tmp_path / "mounted"
    with disk.open("wb") as file:
        file.truncate(512 << 20)
    command = ["losetup", "--show", "-f", "--sector-size", str(sector), str(disk)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        subprocess.run([f"mkfs.{kind}", "-q", device], check=True)
        directory.mkdir()
        subprocess.run(["mount", device, directory], check=True)
        try:
            yield directory
        finally:
            subprocess.run(["umount", directory], check=True)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.fixture(params=["ext4", "xfs"])
def large(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory there."""
    with mounted(tmp_path, request.param, 4096) as directory:
        yield directory


def sparse(path: Path, mib: int) -> Path:
    with path.open("wb") as file:
        file.truncate(mib << 20)
    return path


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_is_a_hole_has_the_sectors_of_one_that_is_not(large: Path, engine: str) -> None:
    path = sparse(large / "a.img", 8)
    for _ in range(2):
        with Disk(f"raw:{path}", engine=engine) as disk:
            assert disk.sector_size == 4096
            assert disk.batch(["w 0 8 1", "w 800 8 2"]) == ["ok", "ok"]
            assert disk.read(800, 8) == [2] * 8 and disk.read(8, 8) == [0] * 8


def test_a_file_that_shares_blocks_has_the_sectors_that_it_had(tmp_path: Path) -> None:
    """A file system may say that its blocks are best then, as XFS does from Linux 6.14 on: that is no bound."""
    with mounted(tmp_path, "xfs", 512) as directory:
        (directory / "a.img").write_bytes(bytes(8 << 20))
        subprocess.run(["cp", "--reflink=always", directory / "a.img", directory / "copy.img"], check=True)
        for name in ("a.img", "copy.img"):
            with Disk(f"raw:{directory / name}") as disk:
                assert disk.sector_size == 512
                assert disk.batch(["w 3 1 7"]) == ["ok"] and disk.read(2, 3) == [0, 7, 0]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("parent", ["raw", "fixed"])
def test_a_child_of_a_hole_is_read_and_written_by_sectors_of_512(large: Path, engine: str, parent: str) -> None:
    base = large / "base"
    if parent == "raw":
        sparse(base, 8)
        with base.open("r+b") as file:
            file.seek(5 << 20)
            file.write(b"x" * 4096)
    else:
        vhdutil.ok("create", "-n", base, "-s", 8, "-r")
    vhdutil.ok("snapshot", "-n", large / "leaf.vhd", "-p", base, *(["-m"] if parent == "raw" else []))
    with Disk(f"vhd:{large}/leaf.vhd", engine=engine) as disk:
        assert disk.batch(["w 3 1 7", "w 1001 1 8"]) == ["ok", "ok"]
        assert disk.read(0, 8) == [0, 0, 0, 7, 0, 0, 0, 0]
        assert disk.read(1000, 3) == [0, 8, 0]
        assert disk.batch(["r 10241 1"]) == ["?" if parent == "raw" else "0"]
        assert disk.flush() == "ok"
    assert "is valid" in vhdutil.ok("check", "-n", large / "leaf.vhd", "-b")
