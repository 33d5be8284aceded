# SPDX-License-Identifier: LGPL-2.1-only
"""Images as other programs write them: Hyper-V, Virtual PC, VirtualBox, disk2vhd, Azure, QEMU, XenServer."""

import json
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from tests.lib import vhdmake, vhdref
from tests.lib.disk import Disk
from tests.lib.vhdmake import DIFFERENCING, FIXED, MIB, Locator, Spec, make
from tests.lib.vhdutil import content, fails, ok, open_refused, run

pytestmark = pytest.mark.io

KIB = 1 << 10
XENSERVER = Spec(creator=b"tap\0", creator_version=0x00010003)


def sector(n: int) -> bytes:
    """A sector unlike any other."""
    return struct.pack(">I", n) * 128


def some(block: int, per_block: int, chance: random.Random) -> dict[int, bytes]:
    """A block with a run of sectors and its last one."""
    start = chance.randrange(per_block - 40)
    numbers = [*range(start, start + 33), per_block - 1]
    return {s: sector(block * per_block + s + 1) for s in numbers}


def blocks(numbers: list[int], per_block: int = 4096) -> dict[int, dict[int, bytes]]:
    chance = random.Random(9)
    return {b: some(b, per_block, chance) for b in numbers}


def small(numbers: list[int]) -> Spec:
    """A disk of 1 MiB in four blocks."""
    return Spec(size=MIB, block_size=256 * KIB, blocks=blocks(numbers, 512))


def whole(block: dict[int, bytes], per_block: int = 4096) -> dict[int, bytes]:
    """The block with all bits set, as programs write them that ignore bitmaps."""
    return {s: block.get(s, bytes(512)) for s in range(per_block)}


def warnings(path: Path, *args: str) -> list[str]:
    """Of a check that must succeed."""
    result = run("check", "-n", path, "-b", "--json", *args)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)["checked"][0]["warnings"]
    assert isinstance(found, list)
    return found


def reads(path: Path) -> bytes:
    """The disk, of which vhd-util, tapdisk's driver and an independent reader have the same opinion."""
    before = path.read_bytes()
    data = content(path)
    chain = vhdref.Chain(path)
    assert len(data) == chain.size
    assert chain.read(0, chain.size) == data
    with Disk(f"vhd:{path}", readonly=True) as disk:
        assert disk.sectors * 512 == chain.size
        for start in range(0, disk.sectors, 4096):
            count = min(4096, disk.sectors - start)
            (answer,) = disk.batch([f"r {start} {count}"])
            want = data[start * 512 : (start + count) * 512]
            marks = ["0" if not any(want[i : i + 512]) else "?" for i in range(0, len(want), 512)]
            assert answer.split() == marks
    assert path.read_bytes() == before
    return data


def written(path: Path) -> None:
    """tapdisk writes to it, and all else stays."""
    data = bytearray(content(path))
    size = len(data)
    with Disk(f"vhd:{path}") as disk:
        assert disk.batch(["w 0 9 7", f"w {size // 512 - 3} 3 7"]) == ["ok", "ok"]
    after = content(path)
    assert after[9 * 512 : size - 3 * 512] == data[9 * 512 : size - 3 * 512]
    assert after == vhdref.Chain(path).read(0, size)
    result = run("check", "-n", path, "-b")
    assert result.returncode == 0, result.stderr


# The size is the footer's, whatever its geometry says


@pytest.mark.parametrize("kind", [vhdref.DYNAMIC, FIXED])
@pytest.mark.parametrize(
    "creator", [b"tap\0", b"win ", b"vpc ", b"vs  ", b"qemu", b"qem2", b"vbox", b"d2v ", b"CTXS", b"wa\0\0", b"\0" * 4,
                b"\xff\xfe\n\x1b"],
)  # fmt: skip
def test_the_size_is_the_footers_current_size(tmp_path: Path, creator: bytes, kind: int) -> None:
    """Virtual PC and QEMU stop where the geometry ends; then what lies behind it would be lost."""
    geometry = 30 << 16 | 4 << 8 | 17
    spec = replace(small([0, 3]), kind=kind, creator=creator, creator_version=0x00010003, geometry=geometry)
    path = make(tmp_path / "a.vhd", spec)
    data = reads(path)
    assert 30 * 4 * 17 * 512 < len(data) == MIB and data[-512:] == sector(MIB // 512)
    assert warnings(path) == []
    written(path)


@pytest.mark.parametrize("size", ["30M", "1000000000", "10737418240", "140G"])
@pytest.mark.parametrize("options", ["subformat=dynamic", "subformat=dynamic,force_size=on", "subformat=fixed"])
def test_qemus_disks_are_as_large_as_qemu_says(tmp_path: Path, size: str, options: str) -> None:
    path, raw = tmp_path / "q.vhd", tmp_path / "q.raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vpc", "-o", options, path, size], check=True)
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", "-f", "vpc", path]))
    last = info["virtual-size"] - 65536
    writes = ["write -P 1 512 4k", "write -P 2 3M 3M", f"write -P 4 {last} 64k"]
    subprocess.run(["qemu-io", "-f", "vpc", *[a for w in writes for a in ("-c", w)], path], check=True, stdout=-3)
    assert json.loads(ok("query", "-n", path, "--json"))["virtual_size"] == info["virtual-size"]
    assert warnings(path) == []
    with Disk(f"vhd:{path}") as disk:
        assert disk.write(4096, 4000, 5) == "ok"
        assert disk.write(disk.sectors - 20, 3, 5) == "ok"
    if "fixed" in options and info["virtual-size"] > MIB << 10:
        return
    ok("convert", "-n", f"vhd:{path}", "-N", f"raw:{raw}")
    subprocess.run(["qemu-img", "compare", "-q", "-f", "vpc", "-F", "raw", path, raw], check=True)


# Where things lie in the file


ORDERS = [
    ("header", "table", "blocks", "locators"),
    ("header", "locators", "table", "blocks"),
    ("locators", "table", "header", "blocks"),
    ("table", "blocks", "locators", "header"),
    ("blocks", "header", "locators", "table"),
]


@pytest.mark.parametrize(("gap", "order"), zip([0, 1, 9, 0, 3], ORDERS, strict=True))
def test_parts_in_any_order(tmp_path: Path, gap: int, order: tuple[str, ...]) -> None:
    size = MIB + 512
    base = make(tmp_path / "base.vhd", replace(small([0, 1, 2, 3]), size=size, uuid=UUID(int=9)))
    spec = replace(
        small([3, 1]),
        size=size,
        kind=DIFFERENCING,
        parent_uuid=UUID(int=9),
        locators=(Locator(b"W2ru", ".\\base.vhd".encode("utf-16-le")), Locator(b"MacX", b"file://base.vhd")),
        blocks=blocks([3, 1], 512) | {4: {0: sector(5)}},
        parts=order,
        gap=gap,
        max_bat=300,
    )
    for child in (spec, replace(spec, descending=True, junk=b"\0"), replace(spec, tail=511), replace(spec, tail=0)):
        path = make(tmp_path / "a.vhd", child)
        assert reads(path) != content(base)
        assert all("footer" in w for w in warnings(path))
        written(path)
        assert warnings(path) == []
        path.unlink()


@pytest.mark.parametrize("padding", [512, MIB - 512, 777, 3 * MIB])
def test_zeros_behind_the_footer_of_a_dynamic_image(tmp_path: Path, padding: int) -> None:
    path = make(tmp_path / "a.vhd", Spec(blocks=blocks([2, 0]), padding=padding))
    data = reads(path)
    assert any("missing" in w for w in warnings(path))
    ok("repair", "-n", path)
    assert warnings(path) == []
    assert reads(path) == data


@pytest.mark.parametrize("padding", [512, MIB - 512, 777])
def test_a_fixed_image_needs_its_footer_at_the_end(tmp_path: Path, padding: int) -> None:
    """Anywhere else it could be what the guest wrote."""
    path = make(tmp_path / "a.vhd", Spec(kind=FIXED, blocks=blocks([2, 0]), padding=padding))
    assert "footer at the end: cookie" in fails("check", "-n", path, status=2)
    assert "footer at the end: cookie" in open_refused(path)


def test_bytes_between_a_fixed_disk_and_its_footer(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vhd", Spec(size=8 * MIB, kind=FIXED, blocks=blocks([1, 3]), fixed_data_offset=0))
    vhdmake.set_footer(path, "current size", struct.pack(">Q", 6 * MIB), front=False)
    data = reads(path)
    assert data == path.read_bytes()[: 6 * MIB]
    assert any("data offset" in w for w in warnings(path))
    written(path)
    assert vhdref.Image(path).data[6 * MIB : 8 * MIB] == vhdmake.image(
        Spec(size=8 * MIB, kind=FIXED, blocks=blocks([1, 3]))
    )[6 * MIB : 8 * MIB]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A loop device of 9 MiB full of old bytes."""
    (tmp_path / "disk").write_bytes(b"\xa5" * (9 * MIB))
    name = subprocess.run(
        ["losetup", "--show", "-f", tmp_path / "disk"], capture_output=True, check=True, text=True
    ).stdout.strip()
    yield Path(name)
    subprocess.run(["losetup", "-d", name], check=True)


@pytest.mark.parametrize("tail", ["at the end of the device", "where the image was cut", "nowhere"])
def test_dynamic_images_copied_onto_block_devices(tmp_path: Path, device: Path, tail: str) -> None:
    """XenServer's volumes: the footer in the last sector, or lost when the volume became larger."""
    raw = vhdmake.image(replace(XENSERVER, blocks=blocks([3, 0])))
    want = vhdref.Chain(make(tmp_path / "a.vhd", replace(XENSERVER, blocks=blocks([3, 0])))).read(0, 8 * MIB)
    with device.open("r+b") as file:
        file.write(raw if tail == "where the image was cut" else raw[:-512])
        if tail == "at the end of the device":
            file.seek(9 * MIB - 512)
            file.write(raw[-512:])
    before = device.read_bytes()
    assert content(device) == want
    found = warnings(device)
    assert device.read_bytes() == before
    assert (found == []) == (tail == "at the end of the device")
    ok("repair", "-n", device)
    assert warnings(device) == []
    written(device)
    assert vhdref.Footer.parse(device.read_bytes()[-512:]).current_size == 8 * MIB


# What fields hold


def test_a_disk_of_a_suspended_machine_is_told(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vhd", Spec(creator=b"vpc ", saved=1))
    assert any("saved state" in w for w in warnings(path))


@pytest.mark.parametrize("features", [0, 1, 3, 0x80000002])
def test_features_don_t_keep_an_image_from_being_read(tmp_path: Path, features: int) -> None:
    path = make(tmp_path / "a.vhd", Spec(features=features, blocks=blocks([1])))
    reads(path)
    assert any("features" in w for w in warnings(path)) == (features != 3)


def test_partly_set_bitmaps_and_fully_set_ones(tmp_path: Path) -> None:
    """VirtualBox sets the bits of what was written, Hyper-V's and QEMU's dynamic images have all of them."""
    mixed: dict[int, dict[int, bytes]] = {2: whole(blocks([2])[2]), 0: blocks([0])[0], 3: {}}
    for creator in (b"vbox", b"win "):
        path = make(tmp_path / f"{creator.decode()}.vhd", Spec(creator=creator, blocks=mixed))
        reads(path)
        assert warnings(path) == []
        written(path)


# Chains


def windows_child(name: str, parent: UUID, uuid: int) -> Spec:
    """As Hyper-V: relative and absolute path in UTF-16LE, each in a sector of its own, and the absolute one as name."""
    absolute = f"C:\\ClusterStorage\\Volume1\\Größe\\{name}"
    return Spec(
        kind=DIFFERENCING,
        creator_version=0x00060003,
        parent_uuid=parent,
        parent_name=absolute,
        uuid=UUID(int=uuid),
        locators=(
            Locator(b"W2ku", absolute.encode("utf-16-le"), space=512),
            Locator(b"W2ru", f".\\{name}".encode("utf-16-le"), space=512),
        ),
    )


@pytest.mark.parametrize("space", ["bytes", "sectors"])
def test_a_chain_of_hyper_v(tmp_path: Path, space: str) -> None:
    name, parent = "Grundplatte ü.vhd", UUID(int=50)
    make(tmp_path / name, Spec(uuid=parent, blocks={b: whole(x) for b, x in blocks([1, 0]).items()}))
    for i in range(3):
        own = {3 - i: blocks([3 - i])[3 - i], 0: {i: sector(900 + i)}}
        spec = replace(windows_child(name, parent, 60 + i), blocks=own)
        if space == "sectors":
            spec = replace(spec, locators=tuple(replace(x, space=1) for x in spec.locators))
        name, parent = f"Server_{i}.avhd", UUID(int=60 + i)
        path = make(tmp_path / name, spec)
    data = reads(path)
    assert [data[i * 512 : i * 512 + 512] for i in range(3)] == [sector(900 + i) for i in range(3)]
    assert run("check", "-n", path, "-p", "-b", "-t").stderr == b""
    written(path)


def test_a_parent_known_by_an_absolute_path_alone(tmp_path: Path) -> None:
    """It means another machine's directory: the name counts, with the uuid to tell."""
    base = make(tmp_path / "base.vhd", Spec(uuid=UUID(int=50), blocks=blocks([1])))
    for text in ("D:\\VMs\\base.vhd", "\\\\server\\share\\base.vhd", "/home/vbox/base.vhd", "\\\\?\\D:\\x\\base.vhd"):
        locators = (Locator(b"W2ku", text.encode("utf-16-le")),)
        spec = replace(windows_child("x", UUID(int=50), 51), parent_name="", locators=locators)
        path = make(tmp_path / "a.vhd", spec)
        assert reads(path) == content(base)
        other = make(tmp_path / "a.vhd", replace(spec, parent_uuid=UUID(int=52)))
        assert "uuid" in fails("read", "-n", other, "-r", 0)
        assert run("read", "-n", make(path, replace(spec, parent_uuid=UUID(int=0))), "-r", 0).returncode == 1
        path.unlink()


def test_a_raw_parent_of_another_directory_is_not_looked_for_by_name(tmp_path: Path) -> None:
    (tmp_path / "base.img").write_bytes(bytes(MIB))
    locators = (Locator(b"W2ku", "D:\\VMs\\base.img".encode("utf-16-le")),)
    path = make(tmp_path / "a.vhd", replace(windows_child("x", UUID(int=0), 51), locators=locators))
    assert "missing" in fails("read", "-n", path, "-r", 0)
    with Disk(f"aio:{tmp_path / 'base.img'}") as disk:
        assert disk.write(0, 1, 1) == "ok"


def test_locators_that_virtualbox_leaves_in_images_without_a_parent(tmp_path: Path) -> None:
    locators = (Locator(b"W2ku", b"", 1024),)
    path = make(tmp_path / "a.vhd", Spec(creator=b"vbox", blocks=blocks([1]), locators=locators))
    reads(path)
    assert any("parent fields" in w for w in warnings(path))
    written(path)


def test_children_and_parents_with_blocks_of_other_sizes(tmp_path: Path) -> None:
    sizes = [2 * MIB, 512 * KIB, 4 * MIB, 64 * KIB, 16 * MIB]
    size = 33 * MIB + 512
    for i, block_size in enumerate(sizes):
        per_block = block_size // 512
        numbers = sorted({0, size // block_size - i % 2, i % (size // block_size)})
        last = size // 512 - size // block_size * per_block
        data = {b: some(b, per_block if b < size // block_size else max(last, 41), random.Random(i)) for b in numbers}
        spec = Spec(size=size, block_size=block_size, blocks=data, uuid=UUID(int=70 + i))
        if i:
            name = f"{i - 1}.vhd".encode("utf-16-le")
            spec = replace(spec, kind=DIFFERENCING, parent_uuid=UUID(int=69 + i), locators=(Locator(b"W2ru", name),))
        path = make(tmp_path / f"{i}.vhd", spec)
    reads(path)
    assert run("check", "-n", path, "-p", "-b").stderr == b""
    written(path)


# What XenServer leaves when it is killed


def cut_leaf(path: Path, held: int, cut: int, *, bits: int | None = None) -> Path:
    """Without a footer at the end, and with the last block cut behind so many sectors; `held` of them are written."""
    last = {s: sector(s + 1) for s in range(held)}
    path = make(path, replace(XENSERVER, blocks={1: blocks([1])[1], 2: last}, tail=0))
    at = vhdref.Image(path).bat[2] * 512
    if bits is not None:
        with path.open("r+b") as file:
            file.seek(at + bits // 8)
            file.write(bytes([0x80 >> bits % 8]))
    os.truncate(path, at + 512 + cut * 512)
    return path


@pytest.mark.parametrize("cut", [24, 25, 4095])
def test_a_file_that_ends_in_a_block_not_yet_written_is_whole(tmp_path: Path, cut: int) -> None:
    path = cut_leaf(tmp_path / "a.vhd", 24, cut)
    data = reads(path)
    assert data[4 * MIB : 4 * MIB + 24 * 512] == b"".join(sector(s + 1) for s in range(24))
    found = warnings(path)
    assert any("block 2" in w and "repair" in w for w in found)
    before = path.read_bytes()
    assert f"vhd-util repair -n {path}" in open_refused(path)
    assert "repair" in fails("resize", "-n", path, "-s", 10)
    assert path.read_bytes() == before
    ok("repair", "-n", path)
    assert warnings(path) == []
    assert reads(path) == data
    written(path)


def test_a_file_that_ends_before_data_is_corrupt(tmp_path: Path) -> None:
    for path in (
        cut_leaf(tmp_path / "a.vhd", 24, 23),
        cut_leaf(tmp_path / "b.vhd", 24, 1000, bits=1000),
        cut_leaf(tmp_path / "c.vhd", 24, 1000, bits=4095),
        cut_leaf(tmp_path / "d.vhd", 0, -1),
    ):
        before = path.read_bytes()
        assert "BAT: entry 2" in fails("check", "-n", path, status=2)
        assert "BAT: entry 2" in open_refused(path, readonly=True)
        assert run("repair", "-n", path).returncode == 1
        assert path.read_bytes() == before


def test_a_batmap_does_not_speak_for_a_block_that_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    ok("create", "-n", path, "-s", 8)
    with Disk(f"vhd:{path}") as disk:
        assert disk.write(0, 4096, 1) == "ok"
    at = vhdref.Image(path).bat[0] * 512
    with path.open("r+b") as file:
        file.seek(at + 1)
        file.write(bytes(511))
    os.truncate(path, at + 512 + 8 * 512)
    with Disk(f"vhd:{path}", readonly=True) as disk:
        assert disk.read(0, 16) == [1] * 8 + [0] * 8


@pytest.mark.parametrize("front", [False, True])
def test_an_image_that_xenserver_has_disabled_is_left_to_it(tmp_path: Path, front: bool) -> None:
    """It disables both footers, one after the other; its journal would undo what is written meanwhile."""
    path = make(tmp_path / "a.vhd", XENSERVER)
    vhdmake.set_footer(path, "cookie", b"v_poison", front=front, tail=not front)
    before = path.read_bytes()
    assert "revert" in fails("check", "-n", path, status=63)
    assert "revert" in open_refused(path)
    assert "revert" in fails("repair", "-n", path)
    assert path.read_bytes() == before
    if not front:
        # a guest's data at the end of a file that was not closed
        vhdmake.set_footer(path, "uuid", UUID(int=5).bytes, front=False)
        assert any("missing" in w for w in warnings(path))


def test_a_device_that_is_mounted_is_not_overwritten(tmp_path: Path, device: Path) -> None:
    """The kernel's own users take no lock."""
    (tmp_path / "mnt").mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True)
    subprocess.run(["mount", "-o", "ro", device, tmp_path / "mnt"], check=True)
    try:
        said = fails("create", "-n", device, "-s", 4)
    finally:
        subprocess.run(["umount", tmp_path / "mnt"], check=True)
    assert f"{device}: is mounted, or in use by the kernel otherwise" in said
    assert b"conectix" not in device.read_bytes()
    ok("create", "-n", device, "-s", 4)


def test_a_batmap_that_tells_of_a_block_that_is_not_there_does_not_come_true(tmp_path: Path) -> None:
    """XenServer's `modify -z`, cut off, leaves that; the block is made again, and nobody closes the image."""
    base, child = tmp_path / "base.vhd", tmp_path / "child.vhd"
    ok("create", "-n", base, "-s", 4)
    with Disk(f"vhd:{base}") as disk:
        assert disk.batch(["w 0 4096 1"]) == ["ok"]
    ok("snapshot", "-n", child, "-p", base)
    with Disk(f"vhd:{child}") as disk:
        assert disk.batch(["w 0 4096 2"]) == ["ok"]
    vhdmake.set_bat(child, 0, 0xFFFFFFFF)
    with Disk(f"vhd:{child}") as disk:
        assert disk.batch(["w 0 8 3", "f"]) == ["ok", "ok"]
        disk.crash()
    assert run("check", "-n", child, "-b", "-p").returncode == 0
    with Disk(f"vhd:{child}", readonly=True) as disk:
        assert disk.read(0, 16) == [3] * 8 + [1] * 8


def test_minus_capital_i_forgives_another_parent_and_no_damage(tmp_path: Path) -> None:
    base, leaf = tmp_path / "base.vhd", tmp_path / "leaf.vhd"
    ok("create", "-n", base, "-s", 4)
    ok("snapshot", "-n", leaf, "-p", base)
    whole = base.read_bytes()
    base.write_bytes(whole[:1536] + b"\0\0\0\1" + whole[1540:])
    assert "BAT" in fails("check", "-n", leaf, "-p", status=2)
    assert "BAT" in fails("check", "-n", leaf, "-p", "-I", status=2)
    base.unlink()
    ok("create", "-n", base, "-s", 4)
    fails("check", "-n", leaf, "-p", status=2)
    ok("check", "-n", leaf, "-p", "-I")
    base.unlink()
    ok("check", "-n", leaf, "-p", "-I")
