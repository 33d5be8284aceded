# SPDX-License-Identifier: LGPL-2.1-only
"""Images of other tools, unusual ones, and damaged ones."""

import json
import os
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from tests.lib import vhdi, vhdmake, vhdref
from tests.lib.disk import Disk
from tests.lib.vhdmake import DIFFERENCING, FIXED, MIB, Locator, Spec, make
from tests.lib.vhdutil import content, fails, ok, open_refused, run

pytestmark = pytest.mark.io

U64 = struct.Struct(">Q").pack
U32 = struct.Struct(">I").pack


def sector(n: int) -> bytes:
    """A sector unlike any other."""
    return struct.pack(">I", n) * 128


def sparse(blocks: int, per_block: int, seed: int = 1) -> dict[int, dict[int, bytes]]:
    """Blocks in mixed order, each with some sectors present."""
    rng = random.Random(seed)
    numbers = list(range(blocks))
    rng.shuffle(numbers)
    return {b: {s: sector(b * per_block + s) for s in rng.sample(range(per_block), 5)} for b in numbers[: blocks // 2]}


def check_warnings(path: Path, *args: str) -> list[str]:
    """The warnings of a check that must succeed."""
    result = run("check", "-n", path, "--json", *args)
    assert result.returncode == 0, result.stderr
    warnings = json.loads(result.stdout)["checked"][0]["warnings"]
    assert isinstance(warnings, list)
    return warnings


# Images of other tools


@pytest.mark.parametrize("fixed", [False, True])
def test_qemus_images_read_as_qemu_reads_them(tmp_path: Path, fixed: bool) -> None:
    path, raw = tmp_path / "q.vhd", tmp_path / "q.raw"
    option = ["-o", "subformat=fixed"] if fixed else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "vpc", *option, path, "30M"], check=True)
    writes = ["write -P 1 0 4k", "write -P 2 1000k 3M", "write -P 3 9999872 512", "write -P 4 29M 512k"]
    subprocess.run(["qemu-io", "-f", "vpc", *[a for w in writes for a in ("-c", w)], path], check=True, stdout=-3)
    subprocess.run(["qemu-img", "convert", "-f", "vpc", "-O", "raw", path, raw], check=True)
    assert content(path) == raw.read_bytes()
    assert vhdref.Chain(path).read(0, 30 * MIB) == raw.read_bytes()[: 30 * MIB]
    assert check_warnings(path, "-b") == []


def test_our_images_read_the_same_in_qemu_and_libvhdi(tmp_path: Path) -> None:
    path, raw = tmp_path / "a.vhd", tmp_path / "a.raw"
    ok("create", "-n", path, "-s", 20)
    with Disk(f"vhd:{path}") as disk:
        assert disk.batch(["w 0 1 1", "w 4000 200 2", "w 8192 4096 3", "w 40959 1 4"]) == ["ok"] * 4
    subprocess.run(["qemu-img", "convert", "-f", "vpc", "-O", "raw", path, raw], check=True)
    assert content(path) == raw.read_bytes()
    assert vhdi.read([path]) == raw.read_bytes()


def test_libvhdi_reads_blocks_that_are_held_in_part(tmp_path: Path) -> None:
    all_of_it = {sector: b"d" * 512 for sector in range(128)}
    held: dict[int, dict[int, bytes]] = {0: {3: b"a" * 512}, 1: {0: b"b" * 512, 127: b"c" * 512}, 2: {}, 3: all_of_it}
    path = make(tmp_path / "a.vhd", Spec(size=5 * 65536, block_size=65536, blocks=held))
    assert vhdi.read([path], 65536) == vhdref.Chain(path).read(0, 5 * 65536)


@pytest.mark.parametrize("block_size", [4096, 512 << 10, MIB, 2 * MIB, 4 * MIB, 16 * MIB])
def test_block_sizes(tmp_path: Path, block_size: int) -> None:
    size = 5 * block_size + 1536  # the last block is a part of one
    spec = Spec(size=size, block_size=block_size, blocks=sparse(5, block_size // 512))
    path = make(tmp_path / "a.vhd", spec)
    want = vhdref.Chain(path).read(0, size)
    assert content(path) == want
    with Disk(f"vhd:{path}") as disk:
        assert disk.batch([f"w {size // 512 - 2} 2 9", "w 0 7 8"]) == ["ok", "ok"]
    after = content(path)
    assert after == vhdref.Chain(path).read(0, size)
    assert after[3584 : size - 1024] == want[3584 : size - 1024]
    assert check_warnings(path, "-b") == []


@pytest.mark.parametrize("creator", [b"win ", b"vpc ", b"qem2", b"vbox", b"d2v ", b"tap\0", b"\xff\0\1\n"])
def test_any_creator(tmp_path: Path, creator: bytes) -> None:
    spec = Spec(creator=creator, creator_version=0x00010003, blocks=sparse(4, 4096))
    path = make(tmp_path / "a.vhd", spec)
    assert content(path) == vhdref.Chain(path).read(0, spec.size)
    assert check_warnings(path, "-b") == []


@pytest.mark.parametrize("kind", [vhdref.DYNAMIC, FIXED])
def test_footer_of_511_bytes(tmp_path: Path, kind: int) -> None:
    spec = Spec(kind=kind, blocks=sparse(4, 4096), tail=511)
    path = make(tmp_path / "a.vhd", spec)
    want = vhdref.Chain(path).read(0, spec.size)
    assert content(path) == want
    assert check_warnings(path) == []
    with Disk(f"vhd:{path}") as disk:
        assert disk.write(16380, 4, 1) == "ok"
    assert content(path)[:-2048] == want[:-2048]
    assert content(path) == vhdref.Chain(path).read(0, spec.size)
    assert check_warnings(path) == []


def test_a_bat_larger_than_the_disk(tmp_path: Path) -> None:
    spec = Spec(size=6 * MIB, max_bat=5000, blocks=sparse(3, 4096))
    path = make(tmp_path / "a.vhd", spec)
    assert content(path) == vhdref.Chain(path).read(0, spec.size)


def test_blocks_of_a_larger_past_are_not_overwritten(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vhd", Spec(size=8 * MIB, blocks={0: {}, 3: {1: sector(7)}}))
    vhdmake.set_footer(path, "current size", U64(4 * MIB))
    old = path.read_bytes()
    block = vhdref.Image(path).bat[3] * 512
    with Disk(f"vhd:{path}") as disk:
        assert disk.write(4096, 4096, 1) == "ok"
    assert path.read_bytes()[block : block + 2 * MIB] == old[block : block + 2 * MIB]


# Footers


def damage(path: Path, at: int) -> None:
    with path.open("r+b") as f:
        f.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        f.write(b"\xc7" * 512)


def test_one_good_footer_of_two_is_enough(tmp_path: Path) -> None:
    spec = Spec(blocks=sparse(4, 4096))
    for at, word in ((0, "start"), (-512, "end")):
        path = make(tmp_path / f"{word}.vhd", spec)
        want = content(path)
        damage(path, at)
        before = path.read_bytes()
        assert content(path) == want
        (warning,) = check_warnings(path)
        assert word in warning and "repair" in warning
        assert path.read_bytes() == before
        ok("repair", "-n", path)
        assert check_warnings(path) == []
        assert content(path) == want == vhdref.Chain(path).read(0, spec.size)


def test_a_clean_close_restores_a_missing_footer_though_nothing_was_written(tmp_path: Path) -> None:
    """As a tapdisk leaves it that was killed between cutting the file and extending it."""
    path = make(tmp_path / "a.vhd", Spec(blocks=sparse(4, 4096)))
    os.truncate(path, path.stat().st_size - 512)
    before = path.read_bytes()
    with Disk(f"vhd:{path}", readonly=True):
        pass
    assert path.read_bytes() == before
    with Disk(f"vhd:{path}"):
        pass
    done = run("check", "-n", path)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{path} is valid\n", b"")
    assert path.read_bytes() == before + before[:512]


def test_a_missing_footer_at_the_end_is_no_news_if_so_asked(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vhd", Spec(tail=0))
    assert check_warnings(path) != []
    assert check_warnings(path, "-i") == []


def test_no_writing_while_the_footer_at_the_end_is_the_only_one(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vhd", Spec())
    damage(path, 0)
    message = open_refused(path)
    assert f"vhd-util repair -n {path}" in message
    ok("repair", "-n", path)
    with Disk(f"vhd:{path}") as disk:
        assert disk.write(0, 1, 1) == "ok"


def test_two_bad_footers_are_corrupt(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vhd", Spec())
    damage(path, 0)
    damage(path, -512)
    assert "footer" in fails("check", "-n", path, status=2)


def test_the_footer_at_the_end_counts_if_it_is_the_same_images(tmp_path: Path) -> None:
    """XenServer and VirtualBox write it first, and go by it; a change may have been cut off in between."""
    path = make(tmp_path / "a.vhd", Spec(size=6 * MIB, max_bat=9, blocks=sparse(3, 4096)))
    vhdmake.set_footer(path, "current size", U64(8 * MIB), front=False)
    assert content(path) == vhdref.Chain(path).read(0, 8 * MIB)
    (warning,) = check_warnings(path)
    assert "differ" in warning and "end" in warning
    assert "8 MB" in ok("read", "-n", path, "-p")
    ok("repair", "-n", path)
    assert check_warnings(path) == []
    assert len(content(path)) == 8 * MIB


def test_a_footer_at_the_end_that_leads_to_another_header_does_not_count(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vhd", Spec(size=6 * MIB, blocks=sparse(3, 4096)))
    data = content(path)
    vhdmake.set_footer(path, "data offset", U64(4096), front=False)
    assert content(path) == data
    (warning,) = check_warnings(path)
    assert "differ" in warning and "start" in warning


def test_guest_data_at_the_end_of_a_crashed_image_is_no_footer(tmp_path: Path) -> None:
    """A guest that keeps a VHD in its disk may leave that one's footer last."""
    inner = vhdmake.footer(Spec(size=2 * MIB, kind=vhdref.DYNAMIC, hidden=1))
    spec = Spec(size=4 * MIB, blocks={0: {4095: inner}}, uuid=UUID(int=77), tail=0)
    path = make(tmp_path / "a.vhd", spec)
    got = json.loads(ok("query", "-n", path, "--json"))
    assert got["virtual_size"] == 4 * MIB and not got["hidden"]


def test_a_guest_cannot_turn_its_fixed_disk_into_a_child_of_another(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s" * 4096)
    locator = Locator(b"W2ru", "secret".encode("utf-16-le"))
    forged = vhdmake.image(Spec(size=MIB, kind=DIFFERENCING, locators=(locator,)))
    path = make(tmp_path / "a.vhd", Spec(size=8 * MIB, kind=FIXED))
    with path.open("r+b") as f:
        f.write(forged)
    assert "disk type" in fails("check", "-n", path, status=2)
    assert "disk type" in open_refused(path)


def test_hidden_flag_of_either_footer_forbids_writing(tmp_path: Path) -> None:
    for front, tail in ((True, False), (False, True), (True, True)):
        path = make(tmp_path / "a.vhd", Spec())
        vhdmake.set_footer(path, "hidden", b"\1", front=front, tail=tail)
        assert ok("query", "-n", path, "-f") == "hidden: 1\n"
        assert "hidden" in open_refused(path)


def test_hidden_flag_without_a_new_checksum_as_xenserver_1_1_left_it(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vhd", Spec(creator=b"tap\0", creator_version=0x00010001))
    vhdmake.set_footer(path, "hidden", b"\1", fix=False)
    assert ok("query", "-n", path, "-f") == "hidden: 1\n"


def test_image_disabled_by_an_interrupted_resize(tmp_path: Path) -> None:
    path = make(tmp_path / "a.vhd", Spec())
    vhdmake.set_footer(path, "cookie", b"v_poison")
    assert "revert" in fails("check", "-n", path, status=63)


# Batmap


def full_tap_image(path: Path) -> Path:
    ok("create", "-n", path, "-s", 8)
    with Disk(f"vhd:{path}") as disk:
        assert disk.batch(["w 0 4096 1", "w 4096 1 2"]) == ["ok", "ok"]
    return path


def test_batmap_says_which_blocks_are_complete(tmp_path: Path) -> None:
    base, leaf = full_tap_image(tmp_path / "a.vhd"), tmp_path / "b.vhd"
    ok("snapshot", "-n", leaf, "-p", base)
    with Disk(f"vhd:{leaf}") as disk:
        assert disk.batch(["w 0 4096 1", "w 4096 1 2"]) == ["ok", "ok"]
    # without a parent a block is complete once it is there
    for path, bits in ((base, [1, 1, 0]), (leaf, [1, 0, 0])):
        assert ok("read", "-n", path, "-j", 0, "-c", 3).split("\n")[:3] == [
            f"batmap for block {i}: {bit}" for i, bit in enumerate(bits)
        ]
        assert check_warnings(path, "-b") == []


def test_batmap_with_a_bad_checksum_counts_as_empty(tmp_path: Path) -> None:
    path = full_tap_image(tmp_path / "a.vhd")
    data = bytearray(path.read_bytes())
    data[2560] = 0xFF  # the map follows the BAT's sector and its own header
    path.write_bytes(data)
    assert "batmap for block 0: 0" in ok("read", "-n", path, "-j", 0)
    assert any("batmap" in w for w in check_warnings(path))
    assert content(path) == vhdref.Chain(path).read(0, 8 * MIB)


def test_check_finds_a_batmap_that_belies_the_bitmap(tmp_path: Path) -> None:
    path = full_tap_image(tmp_path / "a.vhd")
    at = vhdref.Image(path).bat[0] * 512
    with path.open("r+b") as f:
        f.seek(at + 100)
        f.write(b"\0")
    assert check_warnings(path) == []
    said = fails("check", "-n", path, "-b", status=2)
    assert "batmap: block 0" in said and said.endswith(f"run vhd-util repair -n {path}")
    before = content(path)
    ok("repair", "-n", path)
    assert check_warnings(path, "-b") == [] and content(path) == before
    assert "batmap for block 0: 0" in ok("read", "-n", path, "-j", 0)
    assert "batmap for block 1: 1" in ok("read", "-n", path, "-j", 1)


def test_block_that_qemu_wrote_over_the_batmap(tmp_path: Path) -> None:
    path, raw = tmp_path / "a.vhd", tmp_path / "a.raw"
    ok("create", "-n", path, "-s", 8)
    subprocess.run(["qemu-io", "-f", "vpc", "-c", "write -P 5 1M 64k", path], check=True, stdout=-3)
    subprocess.run(["qemu-img", "convert", "-f", "vpc", "-O", "raw", path, raw], check=True)
    assert content(path) == raw.read_bytes()
    ok("check", "-n", path, "-b")


# Damaged images

Damage = Callable[[Path], None]


def footer_field(name: str, value: bytes, **how: bool) -> Damage:
    return lambda path: vhdmake.set_footer(path, name, value, **how)


def header_field(name: str, value: bytes, *, fix: bool = True, offset: int = 0) -> Damage:
    return lambda path: vhdmake.set_header(path, name, value, fix=fix, offset=offset)


def bat_entry(entry: int, value: int) -> Damage:
    return lambda path: vhdmake.set_bat(path, entry, value)


def truncated(size: int) -> Damage:
    return lambda path: os.truncate(path, size)


def both(one: Damage, other: Damage) -> Damage:
    def apply(path: Path) -> None:
        one(path)
        other(path)

    return apply


def locator(offset: int, value: bytes) -> Damage:
    """Changes a field of the first locator: 4 space, 8 length, 16 offset."""
    return header_field("locators", value, offset=offset)


DAMAGES: list[tuple[str, str, int, Damage]] = [
    ("footer checksum", "checksum", 2, footer_field("original size", U64(0), fix=False)),
    ("footer cookie", "cookie", 2, footer_field("cookie", b"connectx")),
    ("footer version", "version", 63, footer_field("version", U32(0x00020000))),
    ("disk type 0", "type", 63, footer_field("type", U32(0))),
    ("disk type 6", "type", 63, footer_field("type", U32(6))),
    ("type huge", "type", 63, footer_field("type", U32(0xFFFFFFFF))),
    ("turned fixed", "current size", 2, both(footer_field("current size", U64(1 << 40)), footer_field("type", U32(2)))),
    ("data offset 0", "data offset", 2, footer_field("data offset", U64(0))),
    ("data offset odd", "data offset", 2, footer_field("data offset", U64(513))),
    ("data offset past the end", "data offset", 2, footer_field("data offset", U64(1 << 40))),
    ("data offset at 2^64", "data offset", 2, footer_field("data offset", U64(2**64 - 512))),
    ("current size 0", "current size", 2, footer_field("current size", U64(0))),
    ("current size odd", "current size", 2, footer_field("current size", U64(4095))),
    ("current size beyond the BAT", "current size", 2, footer_field("current size", U64(8 * MIB + 512))),
    ("current size 2^63", "current size", 2, footer_field("current size", U64(1 << 63))),
    ("current size just under 2^64", "current size", 2, footer_field("current size", U64(2**64 - 512))),
    ("header cookie", "cookie", 2, header_field("cookie", b"cxsparce")),
    ("header checksum", "checksum", 2, header_field("parent timestamp", U32(5), fix=False)),
    ("header version", "version", 63, header_field("version", U32(0))),
    ("table offset 0", "table offset", 2, header_field("table offset", U64(0))),
    ("table offset odd", "table offset", 2, header_field("table offset", U64(1537))),
    ("table on the header", "overlap", 2, header_field("table offset", U64(1024))),
    ("table past the end", "table offset", 2, header_field("table offset", U64(1 << 50))),
    ("table at 2^64", "table offset", 2, header_field("table offset", U64(2**64 - 512))),
    ("max BAT 0", "max BAT", 2, header_field("max bat", U32(0))),
    ("max BAT too small", "max BAT", 2, header_field("max bat", U32(3))),
    ("max BAT past the end", "table offset", 2, header_field("max bat", U32(1 << 23))),
    ("max BAT huge", "max BAT", 63, header_field("max bat", U32(2**32 - 1))),
    ("block size 0", "block size", 2, header_field("block size", U32(0))),
    ("block size 512", "block size", 2, header_field("block size", U32(512))),
    ("block size 3 MiB", "block size", 2, header_field("block size", U32(3 * MIB))),
    ("block size 2 GiB", "block size", 2, header_field("block size", U32(1 << 31))),
    ("block in the footer copy", "entry 1 ", 2, bat_entry(1, 0)),
    ("block in the header", "entry 2 ", 2, bat_entry(2, 2)),
    ("block in the BAT", "entry 0 ", 2, bat_entry(0, 3)),
    ("block in the locators", "locator", 2, bat_entry(3, 4)),
    ("block past the end", "entry 3 ", 2, bat_entry(3, 1 << 30)),
    ("block at the last sector there can be", "entry 3 ", 2, bat_entry(3, 2**32 - 2)),
    ("two entries, one block", "overlap", 2, lambda p: bat_entry(3, vhdref.Image(p).bat[0])(p)),
    ("blocks that overlap by a sector", "overlap", 2, lambda p: bat_entry(3, vhdref.Image(p).bat[0] + 4096)(p)),
    ("file cut in a block", "entry", 2, truncated(2 * MIB)),
    ("file cut in the BAT", "table offset", 2, truncated(1540)),
    ("file cut in the header", "data offset", 2, truncated(1000)),
    ("file cut in the footer", "too short", 2, truncated(300)),
    ("empty file", "too short", 2, truncated(0)),
    ("locator longer than its space", "data length", 2, locator(8, U32(513))),
    ("locator longer than its sectors", "data length", 2, both(locator(4, U32(1)), locator(8, U32(1000)))),
    ("locator of 4 GiB", "data length", 2, locator(8, U32(2**32 - 1))),
    ("locator past the end", "data offset", 2, locator(16, U64(1 << 45))),
    ("locator at 2^64", "data offset", 2, locator(16, U64(2**64 - 8))),
    ("locator in the header", "overlap", 2, locator(16, U64(600))),
]


@pytest.mark.parametrize(("words", "status", "fault"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES])
def test_damage_is_named_and_nothing_is_changed(tmp_path: Path, words: str, status: int, fault: Damage) -> None:
    make(tmp_path / "base.vhd", Spec(uuid=UUID(int=9)))
    spec = Spec(
        kind=DIFFERENCING,
        blocks={0: {1: sector(1)}, 2: {5: sector(2)}},
        parent_uuid=UUID(int=9),
        parent_name="base.vhd",
        locators=(Locator(b"W2ru", ".\\base.vhd".encode("utf-16-le")),),
    )
    path = make(tmp_path / "a.vhd", spec)
    ok("check", "-n", path, "-t")
    fault(path)
    before = path.read_bytes()
    message = fails("check", "-n", path, status=status)
    assert words in message and message.startswith(str(path)), message
    assert words in fails("query", "-n", path, "-v")
    assert words in open_refused(path)
    assert path.read_bytes() == before


def test_random_damage_is_refused_or_read_and_never_crashes(tmp_path: Path) -> None:
    seed = int(os.environ.get("XENBLK_SEED") or random.randrange(1 << 32))
    print(f"XENBLK_SEED={seed}")
    rng = random.Random(seed)
    make(tmp_path / "base.vhd", Spec(uuid=UUID(int=9), size=4 * MIB))
    locators = (
        Locator(b"MacX", b"file://./base.vhd"),
        Locator(b"W2ku", ".\\base.vhd".encode("utf-16-le")),
        Locator(b"W2ru", ".\\base.vhd".encode("utf-16-le")),
    )
    spec = Spec(
        size=4 * MIB,
        kind=DIFFERENCING,
        block_size=512 << 10,
        creator=b"tap\0",
        creator_version=0x00010003,
        blocks=sparse(8, 1024),
        parent_uuid=UUID(int=9),
        parent_name="base.vhd",
        locators=locators,
    )
    good = bytearray(vhdmake.image(spec))
    metadata = 4 * 512 + 3 * 512
    path = tmp_path / "a.vhd"
    interesting = [b"\0", b"\xff", b"\x7f", b"\x80", b"\1"]
    for i in range(150):
        data = bytearray(good)
        for _ in range(rng.choice([1, 1, 2, 4])):
            at = rng.randrange(metadata)
            length = rng.choice([1, 2, 4, 8])
            patch = rng.choice(interesting) * length if rng.random() < 0.7 else rng.randbytes(length)
            data[at : at + length] = patch
        data[:512] = vhdmake.fix_checksum(bytes(data[:512]), 64)
        data[512:1536] = vhdmake.fix_checksum(bytes(data[512:1536]), 36)
        if rng.random() < 0.5:
            data[-512:] = data[:512]
        path.write_bytes(data)
        print(f"case {i}", flush=True)
        for args in (["check", "-pbs"], ["read", "-p", "-r", "0", "-c", "100"]):
            result = run(*args, "-n", path)
            assert result.returncode in (0, 1, 2, 63)
            assert result.returncode == 0 or result.stderr.startswith(b"vhd-util: ")
        assert path.read_bytes() == data
