# SPDX-License-Identifier: LGPL-2.1-only
"""The small drivers: raw's holes, ram, null, and the bitmap of changes of log."""

import itertools
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib import vhdutil
from tests.lib.disk import Disk, write_raw
from tests.lib.diskmodel import exercise
from tests.lib.faults import Faults

pytestmark = pytest.mark.io

MIB = 2048
"""Sectors in a MiB."""
PART = 128
"""Sectors that a bit of a bitmap of changes stands for."""

ENGINES = ["uring", "posix"]


def refused(spec: str, *, readonly: bool = False) -> str:
    with pytest.raises(OSError) as error:
        Disk(spec, readonly=readonly)
    return str(error.value).removeprefix("tool-disk: ")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["raw", "ram", "log"])
def test_zeroed_sectors_read_as_zeros_and_others_are_kept(tmp_path: Path, engine: str, kind: str) -> None:
    write_raw(tmp_path / "a.img", 4 * MIB, {})
    specs = {
        "raw": f"raw:{tmp_path}/a.img",
        "ram": "ram:4M",
        "log": f"log:{tmp_path}/a.map,aio:{tmp_path}/a.img",
    }
    with Disk(specs[kind], engine=engine) as disk:
        assert (disk.sectors, disk.depth) == (4 * MIB, 1)
        exercise(disk, random.Random(kind), 300)


def runs(disk: Disk, sector: int, count: int) -> list[tuple[int, str]]:
    """The status with neighbours of one kind put together."""
    return [
        (sum(n for n, _ in group), kind)
        for kind, group in itertools.groupby(disk.status(sector, count), key=lambda e: e[1])
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_status_of_a_raw_file_tells_its_holes(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "a.img"
    write_raw(path, 64 * MIB, {})
    with Disk(f"aio:{path}", engine=engine) as disk:
        assert runs(disk, 0, 64 * MIB) == [(64 * MIB, "hole+zero")]
        for i in range(100):
            assert disk.write(i * 1024, 512, 1) == "ok"
        assert runs(disk, 0, 102400) == [(512, "data"), (512, "hole+zero")] * 100
        assert runs(disk, 256, 512) == [(256, "data"), (256, "hole+zero")]
        assert runs(disk, 64 * MIB - 1, 1) == [(1, "hole+zero")]


@pytest.mark.parametrize("engine", ENGINES)
def test_discard_and_zero_of_a_raw_file_free_its_space(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "a.img"
    write_raw(path, 16 * MIB, {})
    with Disk(f"aio:{path}", engine=engine) as disk:
        full = [f"w {s} {MIB} 1" for s in range(0, 16 * MIB, MIB)]
        assert set(disk.batch(full)) == {"ok"}
        assert path.stat().st_blocks >= 16 * MIB
        assert disk.discard(0, 8 * MIB) == "ok"
        assert path.stat().st_blocks < 9 * MIB
        assert disk.read(4 * MIB, 8) == [0] * 8
        assert disk.zero(8 * MIB, 4 * MIB) == "ok"
        assert path.stat().st_blocks < 5 * MIB
        assert set(disk.batch(full)) == {"ok"}
        assert disk.zero(0, 16 * MIB, keep_space=True) == "ok"
        assert path.stat().st_blocks >= 16 * MIB
        assert set(disk.read(0, 4096) + disk.read(16 * MIB - 8, 8)) == {0}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_largest_request_zeroes_a_sparse_file(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "a.img"
    write_raw(path, 2**32, {5: 5, 2**32 - 2: 6, 2**32 - 1: 7})
    with Disk(f"aio:{path}", engine=engine) as disk:
        # else the next one would fill the file system
        assert disk.zero(MIB, MIB) == "ok"
        assert runs(disk, MIB, MIB) == [(MIB, "hole+zero")]
        assert disk.zero(0, 2**32 - 1) == "ok"
        assert disk.read(5, 1) == [0]
        assert disk.read(2**32 - 2, 2) == [0, 7]


def test_a_disk_in_memory_gives_discarded_memory_back() -> None:
    with Disk("ram:64M", mode="release") as disk:

        def resident() -> int:
            text = Path(f"/proc/{disk.process.pid}/status").read_text()
            return int(text.split("VmRSS:")[1].split()[0])

        # the tool makes the buffers of 64 writes here, 128 MiB
        assert set(disk.batch([f"w {s} {MIB} 1" for s in range(0, 64 * MIB, MIB)])) == {"ok"}
        before = resident()
        assert disk.discard(3, 64 * MIB - 3) == "ok"
        assert resident() < before - 60 * 1024
        assert disk.read(0, 6) == [1, 1, 1, 0, 0, 0]


def test_a_disk_in_memory_may_be_larger_than_the_machine() -> None:
    with Disk("ram:1T", mode="release") as disk:
        assert disk.sectors == 2**31
        assert disk.write(2**31 - 8, 8, 3) == "ok"
        assert disk.read(2**31 - 16, 16) == [0] * 8 + [3] * 8
    with Disk("ram:4K", readonly=True) as disk:
        assert disk.read(0, 8) == [0] * 8


def test_null_forgets() -> None:
    with Disk("null:8T") as disk:
        assert disk.sectors == 2**34
        assert disk.write(8, 8, 1) == "ok"
        assert disk.read(8, 8) == [0] * 8
        assert [disk.flush(), disk.zero(0, 2**31), disk.discard(0, 2**31)] == ["ok"] * 3
        assert disk.status(1, 2**31) == [(2**31, "hole+zero")]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("/srv/a.img", "/srv/a.img: no image type named; write TYPE:PATH, for example vhd:/srv/a.img"),
        ("qcow2:/a", 'qcow2:/a: unknown image type "qcow2"; known are aio (or raw), vhd, nbd, ram, null and log'),
        ("raw:a.img", "raw:a.img: the path is not absolute"),
        ("ram:", 'ram:: size "": must be a number of bytes, or one with K, M, G or T behind it'),
        ("ram:1Q", 'ram:1Q: size "1Q": must be a number of bytes, or one with K, M, G or T behind it'),
        ("ram:-1", 'ram:-1: size "-1": must be a number of bytes, or one with K, M, G or T behind it'),
        ("null:1GB", 'null:1GB: size "1GB": must be'),
        ("null:8388608T", 'null:8388608T: size "8388608T": must be'),
        ("null:99999999999999999999", 'null:99999999999999999999: size "99999999999999999999": must be'),
        ("null:0", 'null:0: size "0": must be a positive multiple of 512 bytes'),
        ("ram:513", 'ram:513: size "513": must be a positive multiple of 512 bytes'),
        ("ram:8388607T", "ram:8388607T: size: no address space for it"),
        ("log:a,aio:/b", "log:a,aio:/b: the path of the bitmap is not absolute; write log:BITMAP,TYPE:PATH"),
        ("log:/a", "log:/a: no image named; write log:BITMAP,TYPE:PATH"),
        ("log:/a,b", "log:/a,b: b: no image type named"),
        ("log:/a,aio:b", "log:/a,aio:b: aio:b: the path is not absolute"),
    ],
)
def test_a_spec_without_sense_is_refused_by_its_words(spec: str, message: str) -> None:
    assert refused(spec).startswith(message)


class Bitmap:
    """A bitmap of changes, read as tapdisk-c/drivers/dirty.h says."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        assert data[:8] == b"xbdirty\0"
        self.version, self.granularity = (int.from_bytes(data[i : i + 4], "big") for i in (8, 12))
        self.size = int.from_bytes(data[16:24], "big")
        self.state = int.from_bytes(data[24:28], "big")
        self.boot_id = data[32:72].rstrip(b"\0").decode()
        bits = int.from_bytes(data[4096:], "little")
        self.parts = {i for i in range(bits.bit_length()) if bits >> i & 1}


BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@pytest.fixture
def logged(tmp_path: Path) -> str:
    write_raw(tmp_path / "a.img", 64 * MIB, {})
    return f"log:{tmp_path}/a.map,aio:{tmp_path}/a.img"


@pytest.mark.parametrize("engine", ENGINES)
def test_changes_are_in_the_bitmap_when_they_are_answered(tmp_path: Path, logged: str, engine: str) -> None:
    path = tmp_path / "a.map"
    with Disk(logged, engine=engine) as disk:
        assert Bitmap(path).parts == set()
        assert Bitmap(path).boot_id == BOOT_ID.read_text().strip()
        disk.read(0, 4096)
        disk.status(0, 64 * MIB)
        assert disk.flush() == "ok"
        assert Bitmap(path).parts == set()
        assert disk.write(PART - 1, 1, 1) == "ok"
        assert Bitmap(path).parts == {0}
        assert disk.write(8 * PART - 1, 2, 1) == "ok"
        assert Bitmap(path).parts == {0, 7, 8}
        assert disk.zero(64 * PART, 8 * PART) == "ok"
        assert disk.discard(100 * PART + 5, PART) == "ok"
        expected = {0, 7, 8, *range(64, 72), 100, 101}
        assert Bitmap(path).parts == expected
        assert disk.batch(["f", f"w {200 * PART} 1 1", "f"]) == ["ok"] * 3
        expected |= {200}
        assert (Bitmap(path).parts, Bitmap(path).state) == (expected, 0)
    bitmap = Bitmap(path)
    assert (bitmap.version, bitmap.granularity, bitmap.size) == (1, 65536, 64 << 20)
    assert (bitmap.parts, bitmap.state, bitmap.boot_id) == (expected, 1, "")
    with Disk(logged, engine=engine) as disk:
        assert disk.write(64 * MIB - 1, 1, 1) == "ok"
    assert Bitmap(path).parts == expected | {64 * MIB // PART - 1}


def test_the_bitmap_survives_a_killed_process(tmp_path: Path, logged: str) -> None:
    disk = Disk(logged)
    assert disk.write(5 * PART, 300, 1) == "ok"
    disk.crash()
    assert (Bitmap(tmp_path / "a.map").parts, Bitmap(tmp_path / "a.map").state) == ({5, 6, 7}, 0)
    with Disk(logged) as disk:
        assert disk.write(0, 1, 1) == "ok"
    assert (Bitmap(tmp_path / "a.map").parts, Bitmap(tmp_path / "a.map").state) == ({0, 5, 6, 7}, 1)


def test_all_is_taken_for_changed_after_the_host_went_down(tmp_path: Path, logged: str) -> None:
    disk = Disk(logged)
    assert disk.write(5 * PART, 1, 1) == "ok"
    disk.crash()
    path = tmp_path / "a.map"
    data = path.read_bytes()
    path.write_bytes(data.replace(BOOT_ID.read_bytes().strip(), b"0" * 36))
    with Disk(logged):
        pass
    assert (len(Bitmap(path).parts), Bitmap(path).state) == (64 * MIB // PART, 1)


def test_a_readonly_disk_has_no_need_of_the_bitmap(tmp_path: Path, logged: str) -> None:
    with Disk(logged, readonly=True) as disk:
        assert disk.read(0, 1) == [0]
        assert disk.flush() == "ok"
    assert not (tmp_path / "a.map").exists()


def test_the_bitmap_of_another_disk_is_refused_and_unchanged(tmp_path: Path, logged: str) -> None:
    path = tmp_path / "a.map"
    with Disk(logged) as disk:
        assert "writing" in refused(f"log:{path},ram:1M")
        assert disk.write(0, 1, 1) == "ok"
    good = path.read_bytes()
    for field, value, message in (
        (0, b"y", "is not a bitmap of changes, its first bytes are others"),
        (11, b"\2", "version 2 of a bitmap of changes; this tapdisk knows 1"),
        (13, b"\3", "granularity 196608: must be 65536"),
        (23, b"\1", "is the bitmap of a disk of 67108865 bytes, this one has 67108864"),
        (27, b"\7", "state 7: must be 0 or 1"),
    ):
        bad = good[:field] + value + good[field + 1 :]
        path.write_bytes(bad)
        assert f"{path}: {message}" in refused(logged)
        assert path.read_bytes() == bad
    for bad in (b"", good[:-1], good + b"\0", good[:50]):
        path.write_bytes(bad)
        assert str(path) in refused(logged)
        assert path.read_bytes() == bad
    path.unlink()
    path.mkdir()
    assert str(path) in refused(logged)


def test_a_change_that_cannot_be_noted_is_not_made(tmp_path: Path, logged: str) -> None:
    with Disk(logged) as disk:
        subprocess.run(["prlimit", f"--pid={disk.process.pid}", "--fsize=4096:"], check=True)
        assert disk.write(0, 1, 1).startswith("err")
        assert disk.write(0, 1, 1).startswith("err")
        subprocess.run(["prlimit", f"--pid={disk.process.pid}", "--fsize=unlimited:"], check=True)
        assert disk.read(0, 1) == [0]
        assert disk.write(PART, 1, 1) == "ok"
        assert Bitmap(tmp_path / "a.map").parts == {0, 1}


def test_log_goes_over_a_chain(tmp_path: Path) -> None:
    vhdutil.ok("create", "-n", tmp_path / "0.vhd", "-s", "20")
    vhdutil.ok("snapshot", "-n", tmp_path / "1.vhd", "-p", tmp_path / "0.vhd")
    with Disk(f"log:{tmp_path}/a.map,vhd:{tmp_path}/1.vhd") as disk:
        assert disk.depth == 2
        assert disk.write(0, 8, 9) == "ok"
        assert disk.flush() == "ok"
    with Disk(f"vhd:{tmp_path}/1.vhd") as disk:
        assert disk.read(0, 9) == [9] * 8 + [0]
    assert Bitmap(tmp_path / "a.map").parts == {0}
    vhdutil.run("check", "-n", tmp_path / "1.vhd").check_returncode()


def test_the_log_of_a_large_disk_takes_little_memory(tmp_path: Path) -> None:
    with Disk(f"log:{tmp_path}/a.map,null:1T", mode="release") as disk:
        text = Path(f"/proc/{disk.process.pid}/smaps_rollup").read_text()
        assert int(text.split("Private_Dirty:")[1].split()[0]) < 1000
    assert os.stat(tmp_path / "a.map").st_size == 4096 + 2 * 1024 * 1024


WITHOUT = {
    "holes": ["punch errno=EOPNOTSUPP"],
    "holes and zeros": ["punch+zero errno=EOPNOTSUPP"],
    "zeros": ["zero errno=EOPNOTSUPP"],
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("missing", WITHOUT)
def test_zeros_are_written_where_the_kernel_cannot_make_them(tmp_path: Path, engine: str, missing: str) -> None:
    write_raw(tmp_path / "a.img", 8 * MIB, {})
    rules = Faults(tmp_path / "rules")
    rules.set(*WITHOUT[missing])
    with Disk(f"raw:{tmp_path}/a.img", engine=rules.engine(engine)) as disk:
        exercise(disk, random.Random(missing), 100, large=4096)
        assert disk.write(0, 4096, 9) == "ok"
        assert disk.zero(1, 3 * 4096) == "ok"
        assert disk.read(0, 4096) == [9] + [0] * 4095


def test_an_error_ends_a_long_zero(tmp_path: Path) -> None:
    write_raw(tmp_path / "a.img", 64 * MIB, {63 * MIB: 5})
    rules = Faults(tmp_path / "rules")
    rules.set("punch+zero errno=EOPNOTSUPP", "write from=33554432 errno=ENOSPC")
    with Disk(f"raw:{tmp_path}/a.img", engine=rules.engine()) as disk:
        assert disk.zero(0, 64 * MIB) == "err 28"
        assert disk.read(63 * MIB, 1) == [5]
        rules.off()
        assert disk.zero(0, 64 * MIB) == "ok"
        assert disk.read(63 * MIB, 1) == [0]


def test_bits_that_may_be_lost_are_taken_for_set_by_who_opens_it_next(tmp_path: Path, logged: str) -> None:
    """The host has not gone down, and the file says so; but the kernel may have dropped what it could not write."""
    rules = Faults(tmp_path / "rules")
    with Disk(logged):
        pass
    with Disk(logged, engine=rules.engine()) as disk:
        assert disk.write(0, 1, 1) == "ok"
        rules.set("sync file=*.map errno=EIO")
        assert disk.flush() == "err 5"
        disk.crash()
    with Disk(logged):
        pass
    everything = Bitmap(tmp_path / "a.map").parts
    assert len(everything) > 1
    # not if a later sync has brought them
    (tmp_path / "a.map").unlink()
    with Disk(logged):
        pass
    with Disk(logged, engine=rules.engine()) as disk:
        assert disk.write(0, 1, 1) == "ok"
        assert disk.flush() == "err 5"
        rules.off()
        assert disk.flush() == "ok"
        disk.crash()
    with Disk(logged):
        pass
    assert Bitmap(tmp_path / "a.map").parts == {0}


def test_a_flush_fails_with_the_bitmap_and_the_next_brings_all_bits(tmp_path: Path, logged: str) -> None:
    rules = Faults(tmp_path / "rules")
    with Disk(logged):
        pass  # makes the bitmap, under another name at first
    with Disk(logged, engine=rules.engine()) as disk:
        assert disk.write(0, 1, 1) == "ok"
        rules.set("sync file=*.map errno=EIO")
        assert disk.batch(["f", "f"]) == ["err 5", "err 5"]
        # as if the kernel had dropped what it could not write
        with (tmp_path / "a.map").open("r+b") as f:
            f.seek(4096)
            f.write(b"\0")
        rules.off()
        assert disk.flush() == "ok"
        assert Bitmap(tmp_path / "a.map").parts == {0}


@pytest.fixture(params=[512, 4096])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    write_raw(tmp_path / "device", 8 * MIB, {})
    command = ["losetup", "--show", "-f", "--direct-io=off", "--sector-size", str(request.param), str(tmp_path / "device")]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    yield name
    subprocess.run(["losetup", "-d", name], check=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_block_device_discards_and_zeroes(device: str, engine: str) -> None:
    sector = int(Path(f"/sys/block/{Path(device).name}/queue/logical_block_size").read_text()) // 512
    with Disk(f"raw:{device}", engine=engine) as disk:
        assert runs(disk, 0, 8 * MIB) == [(8 * MIB, "data")]
        assert disk.batch([f"w {s} {MIB} 7" for s in range(0, 8 * MIB, MIB)]) == ["ok"] * 8
        assert disk.zero(sector, 3 * sector) == "ok"
        assert disk.zero(8 * sector, MIB, keep_space=True) == "ok"
        assert disk.discard(4 * MIB, 2 * MIB) == "ok"
        assert disk.flush() == "ok"
        assert disk.read(0, 5 * sector) == [7] * sector + [0] * 3 * sector + [7] * sector
        assert disk.read(8 * sector, MIB + sector) == [0] * MIB + [7] * sector
        assert set(disk.read(4 * MIB, 8)) <= {0, 7}
