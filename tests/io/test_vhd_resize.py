# SPDX-License-Identifier: LGPL-2.1-only
"""vhd-util resize: what it keeps, what it refuses, and what it leaves when it is cut off."""

import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lib import vhdmake, vhdref
from tests.lib.disk import Disk
from tests.lib.vhdlog import killed_states, lost_states, run_recorded
from tests.lib.vhdmake import FIXED, MIB, Spec
from tests.lib.vhdutil import content, fails, ok, run

pytestmark = pytest.mark.io

KIB = 1 << 10
NEAR, FAR = 8, 40
"""MiB: within the capacity of the images made here, and beyond it."""


def pattern(sector: int) -> bytes:
    return struct.pack(">I", sector) * 128


def dynamic(path: Path, *, reserve: bool = False) -> Path:
    """6 MiB with some data in two blocks, and perhaps room for FAR."""
    ok("create", "-n", path, "-s", 6, *(["-S", str(FAR)] if reserve else []))
    with Disk(f"vhd:{path}") as disk:
        assert disk.batch(["w 3 20 1", "w 9000 7 2"]) == ["ok", "ok"]
    return path


def small_blocks(path: Path, creator: bytes = b"win ", version: int = 0x000A0000) -> Path:
    """2 MiB in blocks of 4 KiB, most of them there: a larger BAT has many in its way."""
    numbers = list(range(500))
    random.Random(5).shuffle(numbers)
    blocks = {b: {s: pattern(8 * b + s) for s in range(8) if (b + s) % 3} for b in numbers[:300]}
    spec = Spec(size=2 * MIB, block_size=4 * KIB, blocks=blocks, creator=creator, creator_version=version)
    return vhdmake.make(path, spec)


def with_parent(path: Path) -> Path:
    base = dynamic(path.parent / "base.vhd")
    ok("snapshot", "-n", path, "-p", base)
    with Disk(f"vhd:{path}") as disk:
        assert disk.batch(["w 5 3 3", "w 5000 9 4"]) == ["ok", "ok"]
    return path


def fixed(path: Path) -> Path:
    """6 MiB, full."""
    ok("create", "-n", path, "-s", 6, "-r")
    with Disk(f"vhd:{path}") as disk:
        assert disk.batch([f"w {start} 1024 1" for start in range(0, 12288, 1024)]) == ["ok"] * 12
    return path


def foreign_fixed(path: Path) -> Path:
    """Its footer has 511 bytes, and lies a way behind the disk."""
    spec = Spec(size=2 * MIB, kind=FIXED, tail=511)
    data = b"".join(pattern(sector) for sector in range(4096))
    path.write_bytes(data + b"x" * 2 * MIB + vhdmake.footer(spec)[:511])
    return path


Maker = Callable[[Path], Path]
MAKERS: dict[str, Maker] = {"dynamic": dynamic, "small blocks": small_blocks, "differencing": with_parent}


def padded(data: bytes, megabytes: int) -> bytes:
    return data.ljust(megabytes * MIB, b"\0")[: megabytes * MIB]


def sound(path: Path) -> None:
    """Nothing to complain of, for us and by an independent reader."""
    result = run("check", "-n", path, "-b")
    assert (result.returncode, result.stderr) == (0, b""), result.stderr
    chain = vhdref.Chain(path)
    assert chain.size == int(ok("query", "-n", path, "-v")) * MIB
    image = chain.images[0]
    if image.kind != FIXED:
        # XenServer's check: no block before the end of the metadata
        first = min((x for x in image.bat if x != vhdref.UNUSED), default=1 << 32)
        assert first * 512 >= struct.unpack_from(">Q", image.data, image.footer.data_offset + 16)[0] + 4 * image.max_bat


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("megabytes", [NEAR, FAR])
def test_a_larger_disk_has_all_its_data_and_zeros(tmp_path: Path, kind: str, megabytes: int) -> None:
    path = MAKERS[kind](tmp_path / "a.vhd")
    before = content(path)
    ok("resize", "--debug", "-n", path, "-s", megabytes, "-j", tmp_path / "journal")
    assert content(path) == padded(before, megabytes)
    assert vhdref.Chain(path).read(0, len(before)) == before
    sound(path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "base.vhd") == ["a.vhd"]
    with Disk(f"vhd:{path}") as disk:
        assert disk.write(megabytes * 2048 - 8, 8, 9) == "ok"
        assert disk.write(40, 8, 9) == "ok"
    sound(path)
    with Disk(f"vhd:{path}") as disk:
        assert disk.read(megabytes * 2048 - 8, 8) == [9] * 8


def test_room_in_the_metadata_is_used(tmp_path: Path) -> None:
    path = dynamic(tmp_path / "a.vhd", reserve=True)
    before, header = content(path), path.read_bytes()[512:1536]
    ok("resize", "-n", path, "-s", FAR, "-f")
    assert path.read_bytes()[512:1536] == header
    assert content(path) == padded(before, FAR)
    sound(path)
    assert "leave out -f" in fails("resize", "-n", path, "-s", FAR + 2, "-f", status=28)
    assert "less than" in fails("resize", "-n", path, "-s", 6, "-f")


def test_growing_again_and_again(tmp_path: Path) -> None:
    path = small_blocks(tmp_path / "a.vhd", b"tap\0", 0x00010003)
    before = content(path)
    size = path.stat().st_size
    for megabytes in range(3, 40, 3):
        ok("resize", "-n", path, "-s", megabytes)
        assert content(path) == padded(before, megabytes)
        sound(path)
    assert path.stat().st_size < size + 400 * KIB


def test_size_is_rounded_up_to_a_block(tmp_path: Path) -> None:
    path = dynamic(tmp_path / "a.vhd")
    ok("resize", "-n", path, "-s", 7)
    assert ok("query", "-n", path, "-v") == "8\n"
    ok("resize", "-n", path, "-s", 7)
    assert ok("query", "-n", path, "-v") == "8\n"


def test_what_lay_behind_the_end_of_a_foreign_image_is_no_data(tmp_path: Path) -> None:
    """Its last block is used in part, and the BAT has an entry past the disk's end."""
    junk = {s: pattern(s) for s in range(4096)}
    path = vhdmake.make(tmp_path / "a.vhd", Spec(size=3 * MIB, blocks={1: junk, 2: junk}, max_bat=4))
    before = content(path)
    ok("resize", "-n", path, "-s", 8)
    assert content(path) == padded(before, 8)
    sound(path)


def test_a_locator_that_claims_gigabytes_does_not_make_the_file_so_long(tmp_path: Path) -> None:
    path = with_parent(tmp_path / "a.vhd")
    vhdmake.set_header(path, "locators", struct.pack(">I", 0x7FFFFE00), offset=4)
    data, size = content(path), path.stat().st_size
    ok("resize", "-n", path, "-s", FAR * 100)
    assert run("read", "-n", path, "-R", 0, "-c", len(data)).stdout == data
    assert path.stat().st_size < size + 4 * MIB
    ok("check", "-n", path, "-b")


@pytest.mark.parametrize("grown", [6, 40])
def test_smaller_and_larger_again_gives_zeros(tmp_path: Path, grown: int) -> None:
    path = dynamic(tmp_path / "a.vhd")
    before = path.read_bytes()
    message = fails("resize", "-n", path, "-s", 4)
    assert "2097152 bytes (2 MiB)" in message and "--force" in message
    assert path.read_bytes() == before
    data = content(path)
    ok("resize", "-n", path, "-s", 4, "--force")
    assert content(path) == padded(data, 4)
    assert path.stat().st_size < len(before) - MIB
    sound(path)
    ok("resize", "-n", path, "-s", grown)
    assert content(path) == padded(padded(data, 4), grown)
    sound(path)


def test_smaller_without_data_there_needs_no_force(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    ok("create", "-n", path, "-s", 100)
    ok("resize", "-n", path, "-s", 10)
    assert ok("query", "-n", path, "-vS") == "10\n100\n"
    sound(path)


def test_only_a_leaf_can_be_smaller_and_no_smaller_than_its_parent(tmp_path: Path) -> None:
    leaf = with_parent(tmp_path / "a.vhd")
    assert "the parent's" in fails("resize", "-n", leaf, "-s", 4, "--force")
    assert "children" in fails("resize", "-n", tmp_path / "base.vhd", "-s", 4, "--force")
    data = content(leaf)
    ok("resize", "-n", tmp_path / "base.vhd", "-s", 8)
    assert content(leaf) == data
    ok("resize", "-n", leaf, "-s", 10)
    assert content(leaf) == padded(data, 10)


@pytest.mark.parametrize("raw", [False, True])
def test_what_a_larger_parent_has_behind_the_end_does_not_come_up(tmp_path: Path, raw: bool) -> None:
    base, small, leaf = tmp_path / "base", tmp_path / "small", tmp_path / "a.vhd"
    mark = ["-m"] if raw else []
    dynamic(base)
    ok("create", "-n", small, "-s", 4)
    for path in (base, small) if raw else ():
        path.write_bytes(content(path))
    ok("snapshot", "-n", leaf, "-p", small, *mark)
    ok("modify", "-n", leaf, "-p", base, "--force", *mark)
    before = leaf.read_bytes()
    # 4 MiB on top of 6 MiB, whose last data are at sector 9000
    text = fails("resize", "-n", leaf, "-s", 6)
    assert text.startswith(f"{leaf}: its parent {base} is larger and has data")
    assert f"(byte {9000 * 512})" in text
    assert "copy the image" in text
    assert leaf.read_bytes() == before


def test_over_zeros_of_a_larger_parent_a_disk_can_grow(tmp_path: Path) -> None:
    leaf = with_parent(tmp_path / "a.vhd")
    data = content(leaf)
    ok("resize", "-n", tmp_path / "base.vhd", "-s", 8)
    ok("resize", "-n", leaf, "-s", 8)
    assert content(leaf) == padded(data, 8)


def test_fixed_images(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    ok("create", "-n", path, "-s", 4, "-r")
    with Disk(f"vhd:{path}") as disk:
        assert disk.batch(["w 0 9 1", "w 8190 2 2"]) == ["ok", "ok"]
    data = content(path)
    ok("resize", "-n", path, "-s", 7)
    assert content(path) == padded(data, 7)
    assert path.stat().st_size == 7 * MIB + 512
    assert path.stat().st_blocks * 512 >= 7 * MIB
    sound(path)
    assert "would be lost" in fails("resize", "-n", path, "-s", 3)
    ok("resize", "-n", path, "-s", 3, "--force")
    assert content(path) == padded(data, 3)
    assert path.stat().st_size == 3 * MIB + 512


def test_bytes_between_a_fixed_disk_and_its_footer_become_zeros(tmp_path: Path) -> None:
    for megabytes in (4, 5, 7):
        path = fixed(tmp_path / f"{megabytes}.vhd")
        data = content(path)
        vhdmake.set_footer(path, "current size", struct.pack(">Q", 3 * MIB), front=False)
        ok("resize", "-n", path, "-s", megabytes)
        assert content(path) == padded(data[: 3 * MIB], megabytes)
        assert path.stat().st_size == megabytes * MIB + 512
        sound(path)


def test_a_fixed_image_with_a_footer_of_511_bytes(tmp_path: Path) -> None:
    for megabytes in (3, 4, 9):
        spec = Spec(size=4 * MIB, kind=FIXED, blocks={1: {4095: pattern(1)}}, tail=511)
        path = vhdmake.make(tmp_path / f"{megabytes}.vhd", spec)
        data = content(path)
        ok("resize", "-n", path, "-s", megabytes, "--force")
        assert content(path) == padded(data, megabytes)
        sound(path)


@pytest.mark.parametrize("block_size", [512 * KIB, 128 * KIB])
def test_small_blocks_leave_room_for_less(tmp_path: Path, block_size: int) -> None:
    """A bitmap and its alignment for each block: not all of 2040 GiB could be written."""
    path = vhdmake.make(tmp_path / "a.vhd", Spec(size=2 * MIB, block_size=block_size))
    before = path.read_bytes()
    message = fails("resize", "-n", path, "-s", 2040 * 1024)
    assert "larger blocks" in message and "raw" in message
    assert path.read_bytes() == before
    most = int(message.split("at most ")[1].split(" GiB")[0])
    assert "at most" in fails("resize", "-n", path, "-s", (most + 1) * 1024)
    ok("resize", "-n", path, "-s", most * 1024)
    sizes = vhdref.Image(path)
    per_block = -(-(512 + block_size) // 4096) * 4096
    assert sizes.max_bat * per_block + 3 * 512 + 4 * sizes.max_bat < 512 * (2**32 - 1)


@pytest.mark.parametrize("megabytes", [2040 * 1024 + 1, 17592186044415])
def test_what_the_format_cannot_address_is_refused(tmp_path: Path, megabytes: int) -> None:
    path = dynamic(tmp_path / "a.vhd")
    before = path.read_bytes()
    message = fails("resize", "-n", path, "-s", megabytes)
    assert "2040 GiB" in message and "raw" in message
    assert path.read_bytes() == before


def test_the_largest_disk(tmp_path: Path) -> None:
    path = dynamic(tmp_path / "a.vhd")
    ok("resize", "-n", path, "-s", 2040 * 1024)
    assert ok("query", "-n", path, "-v") == f"{2040 * 1024}\n"
    assert ok("check", "-n", path, "-b") == f"{path} is valid\n"
    with Disk(f"vhd:{path}") as disk:
        assert disk.write(2040 * 1024 * 2048 - 8, 8, 5) == "ok"
        assert disk.read(3, 20) == [1] * 20
    small = small_blocks(tmp_path / "b.vhd")
    assert "larger blocks" in fails("resize", "-n", small, "-s", 2040 * 1024)


def test_wrong_calls_and_images_in_use_change_nothing(tmp_path: Path) -> None:
    path = dynamic(tmp_path / "a.vhd")
    before = path.read_bytes()
    wrong: list[list[str]] = [["-s", "8", "-f", "-j", "x"], ["-s", "8", "-f", "--force"], ["-s", "-1"], ["-s", "x"], []]
    for args in wrong:
        assert run("resize", "-n", path, *args).returncode == 2
    assert "is 0" in fails("resize", "-n", path, "-s", 0)
    with Disk(f"vhd:{path}", readonly=True):
        assert str(path) in fails("resize", "-n", path, "-s", 8)
    assert path.read_bytes() == before
    vhdmake.set_footer(path, "geometry", b"\1\1\1\1", fix=False, tail=False)
    assert "repair" in fails("resize", "-n", path, "-s", 8)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A loop device of 5 MiB with an image of 6 MiB, two blocks of which are there."""
    (tmp_path / "disk").write_bytes(bytes(5 * MIB))
    name = subprocess.run(
        ["losetup", "--show", "-f", tmp_path / "disk"], capture_output=True, check=True, text=True
    ).stdout.strip()
    ok("create", "-n", name, "-s", 6)
    with Disk(f"vhd:{name}") as disk:
        assert disk.batch(["w 3 20 1", "w 9000 7 2"]) == ["ok", "ok"]
    yield Path(name)
    subprocess.run(["losetup", "-d", name], check=True)


def test_on_a_block_device(tmp_path: Path, device: Path) -> None:
    data, before = content(device), device.read_bytes()
    assert "extend the device" in fails("resize", "-n", device, "-s", 400000, status=28)
    assert device.read_bytes() == before
    with (tmp_path / "disk").open("r+b") as file:
        file.truncate(12 * MIB)
    subprocess.run(["losetup", "-c", device], check=True)
    ok("resize", "-n", device, "-s", 40)
    assert content(device) == padded(data, 40)
    assert run("check", "-n", device, "-b").stderr == b""
    assert vhdref.Footer.parse(device.read_bytes()[-512:]).current_size == 40 * MIB
    ok("resize", "-n", device, "-s", 4, "--force")
    assert content(device) == padded(data, 4)
    ok("resize", "-n", device, "-s", 40)
    assert "extend the device" in fails("fill", "-n", device, status=28)
    assert content(device) == padded(padded(data, 4), 40)


def states(tmp_path: Path, path: Path, *args: str) -> tuple[bytes, Path, Path]:
    """Resizes the image; its content before, and what the states are made from."""
    before = tmp_path / "before"
    shutil.copyfile(path, before)
    data = content(path)
    run_recorded(tmp_path / "log", path, "resize", "-n", path, *args)
    return data, before, tmp_path / "log"


def judge(path: Path, old: bytes, new: bytes, *args: str) -> None:
    """It opens, is of the old size or the new one with all data, and the command can be given again."""
    assert content(path) in (old, new)
    run("repair", "-n", path)
    assert run("check", "-n", path, "-b").returncode == 0
    ok("resize", "-n", path, *args)
    assert content(path) == new
    sound(path)
    image = vhdref.Image(path)
    if image.kind == FIXED:
        assert len(image.data) == image.size + 512
    else:
        assert set(image.bat[-(-image.size // image.block_size) :]) <= {vhdref.UNUSED}


CUT: dict[str, tuple[Maker, int]] = {
    "dynamic": (dynamic, 8),
    "small blocks": (small_blocks, 9),
    "differencing": (with_parent, 8),
    "smaller": (dynamic, 4),
    "fixed": (fixed, 8),
    "fixed, smaller": (fixed, 4),
    "foreign fixed": (foreign_fixed, 3),
    "foreign fixed, to its end": (foreign_fixed, 4),
    "foreign fixed, smaller": (foreign_fixed, 1),
}


@pytest.mark.parametrize("case", CUT)
def test_cut_off_at_any_step(tmp_path: Path, case: str) -> None:
    maker, megabytes = CUT[case]
    path = maker(tmp_path / "a.vhd")
    args = ["-s", str(megabytes), "--force"]
    old, before, log = states(tmp_path, path, *args)
    count = 0
    for count in killed_states(log, before, path):
        judge(path, old, padded(old, megabytes), *args)
    assert count >= 3


@pytest.mark.parametrize("case", CUT)
def test_power_lost_at_any_moment(tmp_path: Path, case: str) -> None:
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    maker, megabytes = CUT[case]
    path = maker(tmp_path / "a.vhd")
    args = ["-s", str(megabytes), "--force"]
    old, before, log = states(tmp_path, path, *args)
    for _ in lost_states(log, before, path, random.Random(seed)):
        judge(path, old, padded(old, megabytes), *args)


# The two footers


def grown_but_for_the_copy(path: Path) -> bytes:
    """Its resize, to 16 MiB, was killed between the two. The copy as it is then."""
    ok("create", "-n", path, "-s", 4, "-S", 64)
    copy = path.read_bytes()[:512]
    ok("resize", "-n", path, "-s", 16)
    with path.open("r+b") as file:
        file.write(copy)
    return copy


def test_a_copy_that_is_behind_is_made_new_before_anything_is_written(tmp_path: Path) -> None:
    """The footer at the end is gone with the first block that is allocated."""
    path = tmp_path / "a.vhd"
    copy = grown_but_for_the_copy(path)
    ok("query", "-n", path, "-v")
    assert path.read_bytes()[:512] == copy
    disk = Disk(f"vhd:{path}")
    assert path.read_bytes()[:512] == path.read_bytes()[-512:] != copy
    assert disk.batch(["w 20000 8 5", "f"]) == ["ok", "ok"]
    disk.crash()
    path.write_bytes(path.read_bytes()[:-512])  # as a volume that grows leaves it
    assert ok("query", "-n", path, "-v") == "16\n"
    with Disk(f"vhd:{path}", readonly=True) as again:
        assert again.read(20000, 8) == [5] * 8


def test_resize_again_ends_what_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    copy = grown_but_for_the_copy(path)
    ok("resize", "-n", path, "-s", 16)
    assert path.read_bytes()[:512] == path.read_bytes()[-512:] != copy


def test_repair_takes_the_copy_where_it_is_told_to(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    copy = grown_but_for_the_copy(path)
    ok("repair", "-n", path, "-b")
    assert path.read_bytes()[:512] == path.read_bytes()[-512:] == copy
    other = tmp_path / "b.vhd"
    copy = grown_but_for_the_copy(other)
    ok("repair", "-n", other)
    assert other.read_bytes()[:512] == other.read_bytes()[-512:] != copy


def test_less_that_would_be_more_in_whole_blocks_is_refused(tmp_path: Path) -> None:
    path = vhdmake.make(tmp_path / "a.vhd", Spec(size=3 * MIB + 512))
    before = path.read_bytes()
    assert "in whole blocks of 2097152 it is 4194304, which is more" in fails("resize", "-n", path, "-s", 3)
    assert path.read_bytes() == before


def test_a_footer_copy_that_is_behind_does_not_count(tmp_path: Path) -> None:
    """A resize, or a change of the hidden flag, was cut off before it, or others wrote the one at the end only."""
    path = dynamic(tmp_path / "a.vhd", reserve=True)
    first = path.read_bytes()[:512]
    ok("resize", "-n", path, "-s", NEAR)
    with Disk(f"vhd:{path}") as disk:
        assert disk.write(14000, 8, 3) == "ok"
    want = content(path)
    path.write_bytes(first + path.read_bytes()[512:])
    vhdmake.set_footer(path, "hidden", b"\1", front=False)
    ok("resize", "-n", path, "-s", NEAR + 2)
    assert content(path) == want + bytes(2 * MIB)
    assert ok("query", "-n", path, "-f") == "hidden: 1\n"
    assert run("check", "-n", path).stderr == b""
