# SPDX-License-Identifier: LGPL-2.1-only
"""Images and statistics go from one machine to another: arm64, i386 (32 bits) and s390x (big-endian)."""

import os
import random
from pathlib import Path

import pytest

from tests.lib.disk import pattern, write_raw
from tests.lib.machines import NATIVE, OTHERS, Machine
from tests.lib.tapctl import MINOR, Served
from tests.lib.vhdmake import FOOTER_FIELDS, HEADER_FIELDS, fix_checksum, set_footer
from tests.lib.vhdref import SECTOR, Chain

SECTORS = 3 * 4096 + 8  # of 2 MiB blocks three, and a bit
IMAGES = ("base.vhd", "middle.vhd", "leaf.vhd")


others = pytest.mark.parametrize("machine", OTHERS, ids=str)


def make_chain(machine: Machine, where: Path) -> dict[int, int]:
    """The three images, made on `machine` in the same way; the seed of each sector that was written."""
    seeds = {sector: 1 for sector in (*range(40), *range(4090, 4100), SECTORS - 1)}
    where.mkdir()
    write_raw(where / "base.raw", SECTORS, seeds)
    machine.ok("vhd-util", "convert", "-n", f"raw:{where}/base.raw", "-N", f"vhd:{where}/base.vhd")
    (where / "base.raw").unlink()
    machine.ok("vhd-util", "resize", "-n", where / "base.vhd", "-s", 16)
    machine.ok("vhd-util", "snapshot", "-n", where / "middle.vhd", "-p", where / "base.vhd")
    for name, seed, runs in (("middle", 2, [(7, 9), (4095, 3)]), ("leaf", 3, [(20, 1), (8192, 100), (12000, 296)])):
        if name == "leaf":
            machine.ok("vhd-util", "snapshot", "-n", where / "leaf.vhd", "-p", where / "middle.vhd")
        lines = [f"w {start} {count} {seed}" for start, count in runs]
        answers = machine.ok(
            "tests/tool-disk", "--engine=posix", f"vhd:{where}/{name}.vhd", text="\n".join([*lines, "f", "go\n"])
        )
        assert answers.split()[3:] == ["ok"] * (len(runs) + 1)
        seeds |= {sector: seed for start, count in runs for sector in range(start, start + count)}
    return seeds


def expected(seeds: dict[int, int], sectors: int) -> bytes:
    """The disk with these sectors written."""
    return b"".join(pattern(i, seeds[i]) if i in seeds else bytes(SECTOR) for i in range(sectors))


def comparable(path: Path) -> bytes:
    """An image without what no two have in common: uuids and times, and the checksums of these."""
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), SECTOR):
        if data[at : at + 8] != b"conectix":
            continue
        for name in ("uuid", "timestamp", "checksum"):
            offset, length = FOOTER_FIELDS[name]
            data[at + offset : at + offset + length] = bytes(length)
    for name in ("parent uuid", "parent timestamp", "checksum"):
        offset, length = HEADER_FIELDS[name]
        data[SECTOR + offset : SECTOR + offset + length] = bytes(length)
    return bytes(data)


@others
def test_a_chain_is_the_same_whoever_made_it(machine: Machine, tmp_path: Path) -> None:
    work = tmp_path / "work"
    for maker in (NATIVE, machine):
        make_chain(maker, work)
        work.rename(tmp_path / str(maker))
    bases = [tmp_path / str(maker) / "base.vhd" for maker in (NATIVE, machine)]
    assert len({Chain(base).read(0, 16 << 20) for base in bases}) == 1
    for name in IMAGES:
        ours, theirs = (comparable(tmp_path / str(maker) / name) for maker in (NATIVE, machine))
        # where a converted image has its blocks is a matter of who was first
        starts = range(0, 3 * SECTOR if name == "base.vhd" else max(len(ours), len(theirs)), SECTOR)
        differ = [i for i in starts if ours[i : i + SECTOR] != theirs[i : i + SECTOR]]
        assert not differ, f"{name}: differ at {differ[:10]}"


@others
def test_each_reads_the_chain_of_the_other(machine: Machine, tmp_path: Path) -> None:
    for maker, reader in ((machine, NATIVE), (NATIVE, machine)):
        where = tmp_path / f"by-{maker}"
        seeds = make_chain(maker, where)
        leaf = where / "leaf.vhd"
        disk = expected(seeds, 16 << 11)
        assert Chain(leaf).read(0, 16 << 20) == disk
        reader.ok("vhd-util", "check", "-n", leaf, "-p")
        reader.ok("vhd-util", "convert", "-n", f"vhd:{leaf}", "-N", f"raw:{where}/all.raw")
        assert (where / "all.raw").read_bytes() == disk
        # and goes on with it
        reader.ok("vhd-util", "coalesce", "-n", leaf)
        maker.ok("vhd-util", "check", "-n", where / "middle.vhd", "-p")
        assert Chain(where / "middle.vhd").read(0, 16 << 20) == disk


@others
def test_a_corrupted_image_is_told_in_the_same_words(machine: Machine, tmp_path: Path) -> None:
    seed = int(os.environ.get("XENBLK_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"XENBLK_SEED={seed}")
    dice = random.Random(seed)
    make_chain(NATIVE, tmp_path / "good")
    whole = (tmp_path / "good/leaf.vhd").read_bytes()
    path = tmp_path / "good/bad.vhd"
    for _ in range(12):
        data = bytearray(whole)
        at = dice.choice([SECTOR + field for field in (16, 24, 28, 32, 584)] + [2048, 2056])
        data[at : at + 4] = dice.randbytes(4)
        data[SECTOR : SECTOR + 1024] = fix_checksum(bytes(data[SECTOR : SECTOR + 1024]), 36)
        path.write_bytes(data)
        for verb, option in (("check", "-p"), ("query", "--json"), ("read", "-p")):
            said = [m.run("vhd-util", verb, "-n", path, option) for m in (NATIVE, machine)]
            assert (said[0].returncode, said[0].stderr) == (said[1].returncode, said[1].stderr), at
            assert said[0].stdout == said[1].stdout, at


@others
def test_what_lies_beyond_4_gib_of_a_file_is_found(machine: Machine, tmp_path: Path) -> None:
    path, sector = tmp_path / "a.vhd", (4 << 21) + 100
    machine.ok("vhd-util", "create", "-n", path, "-s", 4100, "-r")
    assert path.stat().st_size == (4100 << 20) + SECTOR
    answers = machine.ok("tests/tool-disk", "--engine=posix", f"vhd:{path}", text=f"w {sector} 8 7\nf\ngo\n")
    assert answers.split()[3:] == ["ok", "ok"]
    with path.open("rb") as file:
        file.seek(sector * SECTOR)
        assert file.read(SECTOR) == pattern(sector, 7)
    for reader in (NATIVE, machine):
        reader.ok("vhd-util", "check", "-n", path)
        answers = reader.ok("tests/tool-disk", "--engine=posix", f"vhd:{path}", text=f"r {sector} 8\nr 100 2\ngo\n")
        assert answers.split()[3:] == ["7"] * 8 + ["0"] * 2


@others
def test_times_after_2038_are_shown(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    NATIVE.ok("vhd-util", "create", "-n", path, "-s", 4)
    set_footer(path, "timestamp", (0xF0000000).to_bytes(4, "big"))
    shown = [m.ok("vhd-util", "read", "-n", path, "-p") for m in (NATIVE, machine)]
    assert shown[0] == shown[1]
    assert "2127" in shown[0]


def test_a_disk_in_memory_that_32_bits_can_not_address_is_refused() -> None:
    machine = Machine("i386")
    done = machine.run("tests/tool-disk", "--engine=posix", "ram:5G")
    assert done.returncode == 1
    assert done.stderr == "tool-disk: ram:5G: size: no address space for it: Cannot allocate memory\n"
    assert machine.ok("tests/tool-disk", "--engine=posix", "ram:1G").split() == [str(1 << 21), "1", "512"]


@pytest.mark.parametrize("machine", [m for m in OTHERS if m.name != "s390x"], ids=str)
def test_statistics_of_this_machine_are_read_by(machine: Machine, tmp_path: Path) -> None:
    """The page is in the byte order of its host, where both are."""
    NATIVE.ok("vhd-util", "create", "-n", tmp_path / "a.vhd", "-s", 4)
    with Served(tmp_path, f"vhd:{tmp_path}/a.vhd") as served:
        ours = served.ok("stats")
        os.environ["XENBLK_CONTROL_DIR"] = str(served.directory)
        try:
            theirs = machine.ok("tap-ctl", "stats", "-p", served.pid, "-m", MINOR)
            listed = machine.ok("tap-ctl", "list", "-p", served.pid)
        finally:
            del os.environ["XENBLK_CONTROL_DIR"]
    assert theirs == ours
    assert f"pid={served.pid} minor={MINOR} state=0 args=vhd:{tmp_path}/a.vhd" in listed
