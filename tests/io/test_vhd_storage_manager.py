# SPDX-License-Identifier: LGPL-2.1-only
"""The calls of XenServer's storage manager (sm: vhdutil.py, lvhdutil.py), and what it takes from the output."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib import vhdref
from tests.lib.disk import Disk
from tests.lib.vhdlog import killed_states, run_recorded
from tests.lib.vhdmake import MIB
from tests.lib.vhdutil import content, fails, ok, run

pytestmark = pytest.mark.io

DEBUG = "--debug"  # sm's OPT_LOG_ERR


def write(path: Path, *commands: str) -> None:
    with Disk(f"vhd:{path}") as disk:
        assert set(disk.batch(list(commands))) == {"ok"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.vhd"
    assert ok("create", DEBUG, "-n", path, "-s", "8") == ""
    write(path, "w 0 30 1", "w 9000 5 1")
    return path


@pytest.fixture
def leaf(base: Path) -> Path:
    path = base.with_name("leaf.vhd")
    assert ok("snapshot", DEBUG, "-n", path, "-p", base) == ""
    write(path, "w 10 10 2")
    return path


def test_vhd_info(base: Path, leaf: Path) -> None:
    """getVHDInfo: five lines by number."""
    lines = ok("query", DEBUG, "-vsafp", "-n", leaf).strip().split("\n")
    assert lines == ["8", str(leaf.stat().st_size), str(base), "hidden: 0", "1"]
    lines = ok("query", DEBUG, "-vsaf", "-n", base).strip().split("\n")
    assert lines == ["8", str(base.stat().st_size), "hidden: 0", "2"]
    assert "no parent" in ok("query", DEBUG, "-p", "-n", base)
    assert ok("query", DEBUG, "-d", "-n", leaf).startswith("chain depth: 2")
    assert int(ok("query", DEBUG, "-S", "-n", leaf)) == 8


def test_query_of_a_lost_parent_says_so(base: Path, leaf: Path) -> None:
    """getParent."""
    base.unlink()
    result = run("query", DEBUG, "-p", "-n", leaf)
    assert b"query failed" in result.stdout and result.returncode == 1


def test_has_parent(base: Path, leaf: Path) -> None:
    kinds = [re.match(r".*Disk type\s+: (\S+) hard disk.*", ok("read", DEBUG, "-p", "-n", p), re.S) for p in (base, leaf)]
    assert [kind and kind.group(1) for kind in kinds] == ["Dynamic", "Differencing"]


def test_block_bitmap(base: Path) -> None:
    """getBlockBitmap: a bit for each block, the first is the highest."""
    assert run("read", DEBUG, "-B", "-n", base).stdout == bytes([0b10100000])


def test_coalesce_tells_how_much_it_was(base: Path, leaf: Path) -> None:
    match = re.match(r"^Coalesced (\d+) sectors", ok("coalesce", DEBUG, "-n", leaf))
    assert match and int(match.group(1)) == 10
    assert ok("coalesce", "-s", "--json", "-n", leaf) == '{\n  "bytes": 5120\n}\n'
    assert content(base) == content(leaf)


def test_failures_that_are_told_apart(tmp_path: Path, leaf: Path) -> None:
    """cleanup.py reports ENOSPC and EIO by the exit status."""
    assert "depth exceeded" in fails("snapshot", "-n", tmp_path / "x", "-p", leaf, "-l", 2, status=28)
    assert "No such file" in fails("query", "-v", "-n", tmp_path / "x")


def test_keys_are_none(base: Path, tmp_path: Path) -> None:
    """getKeyHash; setKey is refused."""
    assert ok("key", "-p", "-n", base) == "none\n"
    assert ok("key", "-p", "--json", "-n", base) == '{\n  "key_hash": null\n}\n'
    for args in (f"-s -n {base} -H 00", f"-c -n {base} -k {base}", f"-C -k {base}"):
        assert "not supported" in fails("key", *args.split())
    assert "No such file" in fails("key", "-p", "-n", tmp_path / "none")
    assert "not supported" in fails("copy", "-n", base, "-N", tmp_path / "new", "-E", status=2)


def test_killed_data_show_the_parent(base: Path, leaf: Path) -> None:
    """killData."""
    expected = content(base)
    ok("modify", DEBUG, "-z", "-n", leaf)
    assert content(leaf) == expected
    assert ok("query", "-a", "-n", leaf) == "0\n"
    assert leaf.stat().st_size == int(ok("query", "-s", "-n", leaf))
    assert "is valid" in ok("check", "-n", leaf, "-b")
    write(leaf, "w 10 10 2")


def test_data_of_others_are_not_killed(base: Path, leaf: Path) -> None:
    before = base.read_bytes()
    assert "children" in fails("modify", "-z", "-n", base)
    with Disk(f"vhd:{leaf}"):
        assert "in use" in fails("modify", "-z", "-n", leaf)
    assert base.read_bytes() == before
    fixed = base.with_name("fixed.vhd")
    ok("create", "-n", fixed, "-s", 4, "-r")
    assert "fixed" in fails("modify", "-z", "-n", fixed)


def test_killing_data_cut_off_anywhere_leaves_an_image(base: Path, leaf: Path, tmp_path: Path) -> None:
    before, log = tmp_path / "before", tmp_path / "log"
    shutil.copyfile(leaf, before)
    run_recorded(log, leaf, "modify", "-z", "-n", leaf)
    for _ in killed_states(log, before, leaf):
        assert run("check", "-n", leaf, "-b").returncode == 0
        run("repair", "-n", leaf)
        ok("modify", "-z", "-n", leaf)
        assert content(leaf) == content(base)


def test_footer_goes_where_a_file_is_to_end(leaf: Path) -> None:
    """setSizePhys, on a file."""
    data = content(leaf)
    needed = int(ok("query", "-s", "-n", leaf))
    ok("modify", DEBUG, "-s", needed + 4096, "-n", leaf)
    assert leaf.stat().st_size == needed + 4096
    assert vhdref.Footer.parse(leaf.read_bytes()[-512:]).current_size == 8 * MIB
    assert content(leaf) == data
    before = leaf.read_bytes()
    assert f"needs {needed}" in fails("modify", "-s", needed - 512, "-n", leaf)
    assert "multiple of 512" in fails("modify", "-s", needed + 1, "-n", leaf)
    assert leaf.read_bytes() == before
    ok("modify", "-s", needed, "-n", leaf)
    assert leaf.stat().st_size == needed and content(leaf) == data


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A loop device of 16 MiB."""
    (tmp_path / "disk").write_bytes(bytes(16 * MIB))
    name = subprocess.run(
        ["losetup", "--show", "-f", tmp_path / "disk"], capture_output=True, check=True, text=True
    ).stdout.strip()
    yield Path(name)
    subprocess.run(["losetup", "-d", name], check=True)


def resize_device(device: Path, file: Path, size: int) -> None:
    with file.open("r+b") as f:
        f.truncate(size)
    subprocess.run(["losetup", "-c", device], check=True)


def test_a_volume_is_inflated_and_deflated(tmp_path: Path, device: Path) -> None:
    """lvhdutil.inflate and deflate: the volume grows, its new end is zeroed, and the reverse."""
    ok("create", DEBUG, "-n", device, "-s", 8)
    write(device, "w 0 30 1", "w 9000 5 1")
    data = content(device)
    resize_device(device, tmp_path / "disk", 20 * MIB)
    assert "the device has" in fails("modify", "-s", 21 * MIB, "-n", device, status=28)
    ok("modify", "-s", 20 * MIB, "-n", device)
    assert vhdref.Footer.parse(device.read_bytes()[-512:]).current_size == 8 * MIB
    small = (int(ok("query", "-s", "-n", device)) + MIB - 1) // MIB * MIB
    assert small < 20 * MIB
    ok("modify", DEBUG, "-s", small, "-n", device)
    # or, where the volume gets the same space again, it would be the footer that was written last
    assert device.read_bytes()[-512:] == bytes(512)
    resize_device(device, tmp_path / "disk", small)
    assert run("check", DEBUG, "-n", device).stderr == b""
    assert content(device) == data


def test_repair_from_the_copy(base: Path) -> None:
    with base.open("r+b") as file:
        file.seek(-512, 2)
        file.write(bytes(512))
    ok("repair", "-b", "-n", base)
    assert run("check", "-n", base).stderr == b""
    with base.open("r+b") as file:
        file.write(bytes(512))
    assert "footer copy" in fails("repair", "-b", "-n", base)
    ok("repair", "-n", base)
    assert run("check", "-n", base).stderr == b""


@pytest.mark.parametrize("option", ["-b", "-f", "-t", "-B"])
def test_what_fill_refuses(base: Path, option: str) -> None:
    assert "not supported" in fails("fill", "-n", base, option, *(["1"] if option in ("-f", "-t") else []), status=2)


def test_misspelt_verbs_and_help(base: Path) -> None:
    assert fails("coalecse", "-n", base, status=2) == "unknown command 'coalecse'; did you mean 'coalesce'?"
    result = run("frobnicate")
    assert result.returncode == 2 and b"COMMAND := {" in result.stderr
    result = run("query", "--help")
    assert result.returncode == 0 and result.stdout.startswith(b"usage: vhd-util query") and not result.stderr
    result = run("query", "--jsn", "-n", base)
    assert result.returncode == 2 and result.stderr.startswith(b"vhd-util query: unrecognized option '--jsn'\n")
    assert b"vhd-util(8)" in result.stderr
    assert run("query", base).stderr.startswith(f"vhd-util query: unexpected argument '{base}'\n".encode())
    assert run("create", "-n", base).stderr.startswith(b"vhd-util create: -s is missing\n")
    assert run("query", "-n", base, "--help").stderr == b""
