# SPDX-License-Identifier: LGPL-2.1-only
"""What vhd-util makes of storage that does not give what it asks for: an image beside, a bitmap, a raw parent.

strace has the calls of a file fail, of a program without sanitizers, as LeakSanitizer is no friend of another tracer.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lib import vhdref
from tests.lib.disk import Disk
from tests.lib.programs import program
from tests.lib.vhdmake import MIB
from tests.lib.vhdutil import content, fails, ok

pytestmark = pytest.mark.io


def traced(path: Path, options: list[str | Path], args: tuple[str | Path, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["strace", "-qq", "-P", path, *options, program("vhd-util", "release"), *args],
        env={**os.environ, "XENBLK_CONFIG": "/nonexistent"},
        capture_output=True,
        timeout=120,
        check=False,
        text=True,
    )


def failing(path: Path, calls: str, *args: str | Path, when: str = "") -> tuple[int, str, str]:
    """vhd-util's exit status, output and errors, if these calls for this file fail."""
    done = traced(path, ["-o", "/dev/null", f"--inject={calls}:error=EIO{when}"], args)
    return done.returncode, done.stdout, done.stderr


def reads(path: Path, *args: str | Path) -> list[int]:
    """Where vhd-util reads from this file, in turn."""
    done = traced(path, ["-e", "trace=pread64"], args)
    assert done.returncode == 0
    return [int(offset) for offset in re.findall(r"^pread64\(.*, (\d+)\) += \d+$", done.stderr, re.M)]


def unmarked(directory: Path) -> Path:
    """A parent on a file system that has no attributes."""
    base = directory / "base.vhd"
    ok("create", "-n", base, "-s", 6)
    with Disk(f"vhd:{base}") as disk:
        assert disk.write(0, 8, 1) == "ok"
    ok("snapshot", "-n", directory / "child.vhd", "-p", base)
    os.removexattr(base, "user.xenblk.children")
    return base


def test_an_image_beside_that_cannot_be_read_may_be_a_child(tmp_path: Path) -> None:
    base = unmarked(tmp_path)
    child = tmp_path / "child.vhd"
    before = base.read_bytes()
    status, _, said = failing(child, "pread64", "modify", "-z", "-n", base)
    assert (status, said) == (5, f"vhd-util: {base}: looking for its children: {child}: Input/output error\n")
    assert base.read_bytes() == before
    child.write_bytes(child.read_bytes()[:-512])  # one footer is enough to tell
    assert f"is the parent of {child}" in fails("modify", "-z", "-n", base)


def test_a_directory_beside_is_not_asked(tmp_path: Path) -> None:
    """It may be where something was mounted whose server is gone."""
    base = unmarked(tmp_path)
    (tmp_path / "child.vhd").unlink()
    (tmp_path / "gone").mkdir()
    assert failing(tmp_path / "gone", "newfstatat,openat", "modify", "-z", "-n", base) == (0, "", "")


def test_repair_goes_on_past_a_bitmap_that_cannot_be_read(tmp_path: Path) -> None:
    """Its block's data can be had only since the batmap says that all of it is there."""
    path = tmp_path / "a.vhd"
    ok("create", "-n", path, "-s", 8)
    with Disk(f"vhd:{path}") as disk:
        assert disk.batch(["w 0 4096 1", "w 4096 4096 2"]) == ["ok", "ok"]
    want = content(path)
    with path.open("r+b") as f:
        f.write(bytes(512))
    image = vhdref.Image(path)
    copy = Path(shutil.copy(path, tmp_path / "copy.vhd"))
    number = 1 + reads(copy, "repair", "-n", copy).index(image.bat[1] * 512 // 4096 * 4096)
    status, _, said = failing(path, "pread64", "repair", "-n", path, when=f":when={number}")
    told = "warning: bitmaps that can't be read: 1; the batmap says still that their blocks are complete"
    assert (status, said) == (0, f"vhd-util: {path}: {told}\n")
    assert ok("check", "-n", path, "-b") == f"{path} is valid\n" and content(path) == want
    assert "batmap for block 1: 1" in ok("read", "-n", path, "-j", 1)


def test_a_raw_parent_that_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    raw, middle, leaf = tmp_path / "raw.img", tmp_path / "middle.vhd", tmp_path / "leaf.vhd"
    raw.write_bytes(bytes(4 * MIB))
    ok("snapshot", "-n", middle, "-p", raw, "-m")
    with Disk(f"vhd:{middle}") as disk:
        assert disk.write(8, 8, 3) == "ok"
    ok("snapshot", "-n", leaf, "-p", middle)
    before = leaf.read_bytes()
    status, _, said = failing(raw, "pread64", "modify", "-n", leaf, "-p", raw, "-m")
    assert (status, said) == (5, f"vhd-util: {raw}: reading sector 8: Input/output error\n")
    assert leaf.read_bytes() == before
