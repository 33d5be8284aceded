# SPDX-License-Identifier: LGPL-2.1-only
"""The commands of vhd-util: what they print, and what they leave behind."""

import json
import os
import socket
import stat
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from tests.lib import vhdmake, vhdref
from tests.lib.disk import Disk
from tests.lib.vhdmake import MIB
from tests.lib.vhdutil import content, fails, ok, open_refused, run

pytestmark = pytest.mark.io


def create(path: Path, megabytes: int = 20, *args: str) -> Path:
    ok("create", "-n", path, "-s", megabytes, *args)
    return path


def snapshot(path: Path, parent: Path, *args: str) -> Path:
    ok("snapshot", "-n", path, "-p", parent, *args)
    return path


def qemu_info(path: Path) -> dict[str, object]:
    text = subprocess.check_output(["qemu-img", "info", "--output=json", "-f", "vpc", path], timeout=20)
    info = json.loads(text)
    assert isinstance(info, dict)
    return info


# create


def test_created_image_is_what_qemu_and_an_independent_reader_expect(tmp_path: Path) -> None:
    path = create(tmp_path / "a.vhd", 100)
    assert qemu_info(path)["virtual-size"] == 100 * MIB
    image = vhdref.Image(path)
    assert (image.kind, image.footer.creator, image.size) == (vhdref.DYNAMIC, b"tap\0", 100 * MIB)
    assert image.bat == (vhdref.UNUSED,) * 50
    assert path.read_bytes()[:512] == path.read_bytes()[-512:]


def test_fixed_image_has_all_its_space_and_one_footer(tmp_path: Path) -> None:
    path = create(tmp_path / "a.vhd", 6, "-r")
    assert path.stat().st_size == 6 * MIB + 512
    assert path.stat().st_blocks * 512 >= 6 * MIB
    assert vhdref.Image(path).kind == vhdref.FIXED
    assert qemu_info(path)["virtual-size"] == 6 * MIB


def test_size_is_rounded_up_to_a_block(tmp_path: Path) -> None:
    assert vhdref.Image(create(tmp_path / "a.vhd", 5)).size == 6 * MIB


def test_geometry_is_the_specifications(tmp_path: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "vpc", tmp_path / "q.vhd", "2000M"], check=True)
    size = vhdref.Image(tmp_path / "q.vhd").size  # QEMU rounds up to whole cylinders
    ours = vhdref.Image(create(tmp_path / "a.vhd", 2000)).footer.geometry
    cylinders, heads, sectors = ours >> 16, ours >> 8 & 0xFF, ours & 0xFF
    assert cylinders * heads * sectors * 512 <= 2000 * MIB < size + heads * sectors * 512
    huge = vhdref.Image(create(tmp_path / "b.vhd", 1 << 20)).footer.geometry
    assert huge == 65535 << 16 | 16 << 8 | 255


def test_reserved_metadata_has_room_for_the_larger_size(tmp_path: Path) -> None:
    path = create(tmp_path / "a.vhd", 20, "-S", "40000")
    image = vhdref.Image(path)
    assert (image.size, image.max_bat) == (20 * MIB, 20000)
    assert ok("query", "-n", path, "-S") == "40000\n"
    with Disk(f"vhd:{path}") as disk:
        assert disk.write(0, 8, 3) == "ok"
    assert ok("check", "-n", path, "-b") == f"{path} is valid\n"


def test_disks_of_guests_are_not_for_all_to_read(tmp_path: Path) -> None:
    assert stat.S_IMODE(create(tmp_path / "a.vhd").stat().st_mode) == 0o600


def test_nothing_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"precious")
    assert "exists already" in fails("create", "-n", path, "-s", 10)
    assert path.read_bytes() == b"precious"
    (tmp_path / "link").symlink_to("nowhere")
    assert "exists already" in fails("create", "-n", tmp_path / "link", "-s", 10)
    assert sorted(os.listdir(tmp_path)) == ["a", "link"]


@pytest.mark.parametrize("args", [["-s", "2088961"], ["-s", "10", "-S", "2088961"], ["-s", "17592186044415"]])
def test_what_the_format_cannot_address_is_refused(tmp_path: Path, args: list[str]) -> None:
    message = fails("create", "-n", tmp_path / "a", *args)
    assert "2040 GiB" in message and "raw" in message
    assert os.listdir(tmp_path) == []


def test_the_largest_disk_is_made(tmp_path: Path) -> None:
    path = create(tmp_path / "a.vhd", 2040 * 1024)
    assert ok("query", "-n", path, "-v") == f"{2040 * 1024}\n"
    assert ok("check", "-n", path, "-b") == f"{path} is valid\n"


def test_failed_create_leaves_nothing(tmp_path: Path) -> None:
    for args in (["-s", "0"], ["-s", "10", "-S", "5"]):
        fails("create", "-n", tmp_path / "a", *args)
    fails("create", "-n", tmp_path / "no" / "a", "-s", 10)
    assert os.listdir(tmp_path) == []


# snapshot


def test_snapshot_reads_as_its_parent_and_leaves_its_bytes_alone(tmp_path: Path) -> None:
    base = create(tmp_path / "a.vhd", 5)
    with Disk(f"vhd:{base}") as disk:
        assert disk.write(100, 9, 5) == "ok"
    before = base.read_bytes()
    leaf = snapshot(tmp_path / "b.vhd", base)
    assert base.read_bytes() == before
    child, parent = vhdref.Image(leaf), vhdref.Image(base)
    assert child.kind == vhdref.DIFFERENCING and child.size == parent.size
    assert child.parent_uuid == parent.footer.uuid != child.footer.uuid
    assert child.parent_name == "a.vhd"
    assert [(x.code, x.path) for x in child.locators] == [
        (b"MacX", "./a.vhd"),
        (b"W2ku", "./a.vhd"),
        (b"W2ru", "./a.vhd"),
    ]
    assert child.parent_timestamp == int(base.stat().st_mtime) - 946684800
    assert content(leaf) == content(base)


def test_parent_is_marked_so_that_it_is_not_written_again(tmp_path: Path) -> None:
    base = create(tmp_path / "a.vhd")
    snapshot(tmp_path / "b", base)
    assert os.getxattr(base, "user.xenblk.children") == b"1"
    assert "children" in open_refused(base)
    with Disk(f"vhd:{base}", readonly=True) as disk:
        assert disk.read(0, 1) == [0]


def test_the_mark_of_a_parent_is_taken_off_once_its_children_are_gone(tmp_path: Path) -> None:
    """As the error that it gives says, for a raw parent too."""
    (tmp_path / "there").mkdir()
    config = tmp_path / "config"
    config.write_text(f"version=1\nimage_dir={tmp_path}\n")
    base = create(tmp_path / "a.vhd")
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(1 << 20))
    cases: list[tuple[str, Path, list[str]]] = [("vhd", base, []), ("aio", raw, ["-m"])]
    for kind, parent, options in cases:
        near, far = tmp_path / "near.vhd", tmp_path / "there/far.vhd"
        for child in (near, far):
            ok("snapshot", "-n", child, "-p", parent, *options, config=config)
        forget: list[str | Path | int] = ["set", "-n", parent, "-f", "children", "-v", 0]
        assert str(near) in fails(*forget)
        near.unlink()
        with Disk(f"vhd:{far}", env={"XENBLK_CONFIG": str(config)}):
            assert "has it as a parent" in fails(*forget)
        far.unlink()
        assert "children" in open_refused(parent, kind=kind)
        ok(*forget)
        with Disk(f"{kind}:{parent}") as disk:
            assert disk.batch(["w 0 1 1"]) == ["ok"]
        ok(*forget)
    assert "set to 0 alone" in fails("set", "-n", base, "-f", "children", "-v", 1, status=2)
    assert "No such file" in fails("set", "-n", tmp_path / "none", "-f", "children", "-v", 0)


def test_a_snapshot_that_fails_leaves_its_parent_as_it_was(tmp_path: Path) -> None:
    """A disk that was paused for it goes on."""
    base = create(tmp_path / "a.vhd")
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(1 << 20))
    cases: list[tuple[Path, list[str]]] = [(base, []), (raw, ["-m"])]
    for parent, options in cases:
        assert "File name too long" in fails("snapshot", "-n", tmp_path / ("x" * 260), "-p", parent, *options)
        assert "user.xenblk.children" not in os.listxattr(parent)
    with Disk(f"vhd:{base}") as disk:
        assert disk.batch(["w 0 1 1"]) == ["ok"]
    # not where there are others
    snapshot(tmp_path / "b", base)
    fails("snapshot", "-n", tmp_path / ("x" * 260), "-p", base)
    assert os.getxattr(base, "user.xenblk.children") == b"1"


def test_a_size_to_reserve_is_rounded_as_the_size_is(tmp_path: Path) -> None:
    ok("create", "-n", tmp_path / "a.vhd", "-s", 3, "-S", 3)
    assert ok("query", "-n", tmp_path / "a.vhd", "-v") == "4\n"


def test_empty_parent_is_skipped_unless_asked_for(tmp_path: Path) -> None:
    base = create(tmp_path / "a.vhd")
    empty = snapshot(tmp_path / "b.vhd", base)
    assert ok("query", "-n", snapshot(tmp_path / "c.vhd", empty), "-p") == f"{base}\n"
    assert ok("query", "-n", snapshot(tmp_path / "d.vhd", empty, "-e"), "-p") == f"{empty}\n"


@pytest.mark.parametrize("raw", [False, True])
def test_empty_parent_that_hides_the_end_of_a_larger_one_is_kept(tmp_path: Path, raw: bool) -> None:
    base = tmp_path / "base"
    if raw:
        base.write_bytes(os.urandom(8 * MIB))
    else:
        create(base, 8)
        with Disk(f"vhd:{base}") as disk:
            assert disk.write(5 * MIB // 512, 9, 5) == "ok"
    spec = vhdmake.Spec(
        size=4 * MIB,
        kind=vhdmake.DIFFERENCING,
        parent_uuid=UUID(int=0) if raw else vhdref.Image(base).footer.uuid,
        parent_name=base.name,
        locators=(vhdmake.Locator(b"W2ru", ".\\base".encode("utf-16-le")),),
    )
    small = vhdmake.make(tmp_path / "small", spec)
    grown = snapshot(tmp_path / "grown", small, "-e")
    ok("resize", "-n", grown, "-s", 8)
    for named in (small, grown):
        made = snapshot(tmp_path / f"on-{named.name}", named)
        assert content(made) == content(named)
        assert ok("query", "-n", made, "-p") == f"{small}\n"


def test_raw_parent(tmp_path: Path) -> None:
    raw = tmp_path / "base.img"
    raw.write_bytes(os.urandom(3 * MIB + 512))
    leaf = snapshot(tmp_path / "a.vhd", raw, "-m")
    assert vhdref.Image(leaf).parent_uuid.int == 0
    assert content(leaf) == raw.read_bytes()
    assert ok("query", "-n", leaf, "-pd") == f"{raw}\nchain depth: 2\n"


def test_raw_parent_with_half_a_sector_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base.img").write_bytes(bytes(1000))
    assert "multiple of 512" in fails("snapshot", "-n", tmp_path / "a", "-p", tmp_path / "base.img", "-m")


def test_depth_limit(tmp_path: Path) -> None:
    base = create(tmp_path / "a.vhd")
    message = fails("snapshot", "-n", tmp_path / "b", "-p", base, "-l", 1, status=28)
    assert "depth exceeded" in message
    assert not (tmp_path / "b").exists()


def test_snapshot_of_an_image_in_use_is_refused(tmp_path: Path) -> None:
    base = create(tmp_path / "a.vhd")
    with Disk(f"vhd:{base}"):
        message = fails("snapshot", "-n", tmp_path / "b", "-p", base)
    assert str(base) in message
    assert sorted(os.listdir(tmp_path)) == ["a.vhd"]


# query


def test_query_prints_the_lines_that_storage_managers_count(tmp_path: Path) -> None:
    base = create(tmp_path / "a.vhd", 20)
    with Disk(f"vhd:{base}") as disk:
        assert disk.write(0, 1, 1) == "ok"
    size = base.stat().st_size
    assert ok("query", "-n", base, "-vsfpd") == f"20\n{size}\n{base} has no parent\nhidden: 0\nchain depth: 1\n"
    assert ok("query", "--debug", "-n", base, "-m", "-a") == "marker: 0\n1\n"
    leaf = snapshot(tmp_path / "b.vhd", base)
    assert ok("query", "-n", leaf, "-vsfpd") == f"20\n{leaf.stat().st_size}\n{base}\nhidden: 0\nchain depth: 2\n"
    assert ok("query", "-n", leaf, "-pu") == "./a.vhd\n"


def test_query_json(tmp_path: Path) -> None:
    base = create(tmp_path / "a.vhd", 20)
    leaf = snapshot(tmp_path / "b.vhd", base)
    got = json.loads(ok("query", "-n", leaf, "--json"))
    assert got["type"] == "differencing" and got["virtual_size"] == 20 * MIB
    assert (got["parent"], got["chain_depth"], got["hidden"]) == (str(base), 2, False)
    assert got["parent_uuid"] == str(vhdref.Image(base).footer.uuid)


def test_query_of_a_lost_parent_still_tells_the_rest(tmp_path: Path) -> None:
    base = create(tmp_path / "a.vhd", 20)
    leaf = snapshot(tmp_path / "b.vhd", base)
    base.rename(tmp_path / "elsewhere")
    result = run("query", "-n", leaf, "-vp")
    assert (result.returncode, result.stdout) == (1, b"20\nquery failed\n")
    assert b"'./a.vhd'" in result.stderr and b"missing" in result.stderr


def test_query_of_an_image_that_is_being_written(tmp_path: Path) -> None:
    base = create(tmp_path / "a.vhd", 200)
    with Disk(f"vhd:{base}") as disk:
        for block in range(100):
            assert disk.write(block * 4096, 1, 1) == "ok"
            if block % 20 == 0:
                assert ok("query", "-n", base, "-a") == f"{block + 1}\n"
        message = fails("check", "-n", base)
    assert str(base) in message


# read


def test_read_reads_through_the_chain(tmp_path: Path) -> None:
    base = create(tmp_path / "a.vhd", 6)
    with Disk(f"vhd:{base}") as disk:
        assert disk.batch(["w 5 20 1", "w 4090 30 2"]) == ["ok", "ok"]
    leaf = snapshot(tmp_path / "b.vhd", base)
    with Disk(f"vhd:{leaf}") as disk:
        assert disk.batch(["w 8 3 3", "w 9000 7 4"]) == ["ok", "ok"]
    chain = vhdref.Chain(leaf)
    assert content(leaf) == chain.read(0, chain.size)
    assert run("read", "-n", leaf, "-r", 8, "-c", 5).stdout == chain.read(8 * 512, 5 * 512)
    assert run("read", "-n", leaf, "-R", 4100, "-c", 777).stdout == chain.read(4100, 777)


def test_read_dumps_what_people_look_at(tmp_path: Path) -> None:
    # of an image with a parent: without one all sectors of a block count as written
    base = snapshot(tmp_path / "b.vhd", create(tmp_path / "a.vhd", 6))
    with Disk(f"vhd:{base}") as disk:
        assert disk.batch(["w 5 3 1", "w 10 2 1"]) == ["ok", "ok"]
    image = vhdref.Image(base)
    offset = image.bat[0] * 512
    assert ok("read", "-n", base, "-b", 0, "-c", 2) == f"block: 0: offset: {offset}\nblock: 1: offset: not allocated\n"
    assert ok("read", "-n", base, "-t", 7) == (
        f"logical sector 7: block number: 0, sector offset: 7, file offset: {offset + 512 + 7 * 512}\n"
    )
    assert ok("read", "-n", base, "-e", 0, "-c", 4096) == "5 3\n10 2\n"
    assert ok("read", "-n", base, "-i", 7, "-c", 2) == "block 0: sec: 7: 1\nblock 0: sec: 8: 0\n"
    assert ok("read", "-n", base, "-j", 0) == "batmap for block 0: 0\n"
    assert run("read", "-n", base, "-B").stdout == b"\x80"
    assert run("read", "-n", base, "-m", 0).stdout == image.data[offset : offset + 512]
    assert run("read", "-n", base, "-d", 0).stdout == image.data[offset + 512 :][: 2 * MIB]
    headers = ok("read", "-n", base, "-p")
    assert "Current disk size   : 6 MB (6291456 Bytes)" in headers
    assert headers.count("(Good!)") == 3  # footer, header, batmap


def test_read_dumps_json(tmp_path: Path) -> None:
    base = create(tmp_path / "base.vhd")
    leaf = snapshot(tmp_path / "leaf.vhd", base, "-e")
    image = vhdref.Image(leaf)
    got = json.loads(ok("read", "-n", leaf, "-p", "--json"))
    assert got["footer"]["type"] == "differencing" and got["footer"]["current_size"] == 20 * MIB
    assert got["footer"]["creator"] == "tap" and got["footer_good"] and got["footer_copy_good"]
    assert abs(got["footer"]["timestamp"] - leaf.stat().st_mtime) < 100
    assert got["header"]["parent_name"] == "base.vhd" and got["header"]["max_bat_size"] == 10
    assert got["header"]["parent_uuid"] == str(image.parent_uuid)
    assert [(x["code"], x["path"]) for x in got["header"]["locators"]][1:] == [
        ("W2ku", "./base.vhd"),
        ("W2ru", "./base.vhd"),
    ]
    assert got["batmap"]["checksum_good"] and got["batmap"]["marker"] == 0
    got = json.loads(ok("read", "-p", "--json", "-n", create(tmp_path / "fixed.vhd", 4, "-r")))
    assert got["header"] is None and got["batmap"] is None and got["footer"]["data_offset"] is None
    assert run("read", "-n", leaf, "--json").returncode == 2
    assert run("read", "-n", leaf, "-p", "--json", "-B").returncode == 2


def test_read_dumps_headers_of_a_broken_image_and_says_so(tmp_path: Path) -> None:
    base = create(tmp_path / "a.vhd", 6)
    vhdmake.set_footer(base, "geometry", b"\1\1\1\1", fix=False)
    result = run("read", "-n", base, "-p")
    assert result.returncode == 1 and b"(Bad!)" in result.stdout and b"checksum" in result.stderr


@pytest.mark.parametrize("option", ["-b", "-m", "-d", "-j"])
def test_read_past_the_end_is_refused(tmp_path: Path, option: str) -> None:
    base = create(tmp_path / "a.vhd", 6)
    assert "past the end" in fails("read", "-n", base, option, 3)
    assert "past the end" in fails("read", "-n", base, option, 1, "-c", 3)


# check


def test_check_counts_what_is_written(tmp_path: Path) -> None:
    base = create(tmp_path / "a.vhd", 20)
    leaf = snapshot(tmp_path / "b.vhd", base)
    with Disk(f"vhd:{leaf}") as disk:
        assert disk.batch(["w 0 100 1", "w 9000 24 1"]) == ["ok", "ok"]
    assert ok("check", "-n", leaf, "-s") == "b.vhd: secs allocated: 0x2000 secs written: 0x7c (1.51%)\n"
    assert ok("check", "-n", leaf, "-p") == f"{leaf} is valid\n{base} is valid\n"
    assert [x["image"] for x in json.loads(ok("check", "-n", leaf, "-p", "--json"))["checked"]] == [
        str(leaf),
        str(base),
    ]


def test_check_of_an_image_in_use_is_a_failure_not_corruption(tmp_path: Path) -> None:
    base = create(tmp_path / "a.vhd")
    with Disk(f"vhd:{base}"):
        assert str(base) in fails("check", "-n", base, status=1)
        result = run("check", "-n", base, "--json")
    assert (result.returncode, json.loads(result.stdout)["status"]) == (1, "failed")


def test_repair_refuses_an_image_in_use(tmp_path: Path) -> None:
    base = create(tmp_path / "a.vhd")
    with Disk(f"vhd:{base}"):
        assert str(base) in fails("repair", "-n", base)


# all


@pytest.mark.parametrize("command", ["create", "snapshot", "query", "read", "repair", "resize"])
def test_a_wrong_call_is_status_2(command: str) -> None:
    wrong: list[list[str]] = [[], ["-n", "x", "extra"], ["-?"]]
    for args in wrong:
        result = run(command, *args)
        assert result.returncode == 2 and b"usage: vhd-util" in result.stderr
    assert run(command, "-h").returncode == 0


def test_numbers_are_numbers(tmp_path: Path) -> None:
    for text in ("10M", "-1", "", "0x10", "99999999999999999999"):
        assert run("create", "-n", tmp_path / "a", "-s", text).returncode == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["query", "read", "check", "snapshot"])
def test_only_files_and_block_devices_are_images(tmp_path: Path, command: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dir").mkdir()
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "socket"))
    for name, what in (("fifo", "FIFO"), ("dir", "directory"), ("socket", "socket"), ("/dev/zero", "character")):
        path = tmp_path / name
        args = ["-n", str(tmp_path / "new"), "-p", str(path)] if command == "snapshot" else ["-n", str(path)]
        assert what in fails(command, *args)
