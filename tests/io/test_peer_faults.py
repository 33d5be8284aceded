# SPDX-License-Identifier: LGPL-2.1-only
"""Faults that XenServer's tapdisk has, shown absent here where no other test does: docs/testing.md has the whole list."""

import os
import random
import subprocess
import time
from pathlib import Path
from uuid import UUID

import pytest

from tests.lib import vhdmake
from tests.lib.disk import Disk
from tests.lib.faults import Faults
from tests.lib.nbdserver import serve
from tests.lib.vhdmake import MIB, Spec
from tests.lib.vhdutil import content, fails, ok, open_refused

pytestmark = pytest.mark.io


def test_status_is_asked_for_while_its_bitmap_is_read(tmp_path: Path) -> None:
    """Reads and status of the same blocks at once, all of whose bitmaps are slow to come."""
    base, leaf = tmp_path / "base.vhd", tmp_path / "leaf.vhd"
    ok("create", "-n", base, "-s", 64)
    ok("snapshot", "-n", leaf, "-p", base, "-e")
    with Disk(f"vhd:{leaf}") as disk:
        assert set(disk.batch([f"w {b * 4096 + 8} 16 {b + 1}" for b in range(32)])) == {"ok"}
    rules = Faults(tmp_path / "rules")
    rules.set("read delay=30")
    chance = random.Random(4)
    for _ in range(4):
        with Disk(f"vhd:{leaf}", engine=rules.engine(), readonly=True) as disk:
            blocks = [chance.randrange(32) for _ in range(30)]
            commands = [f"{chance.choice('ssr')} {b * 4096} 4096" for b in blocks]
            for block, command, answer in zip(blocks, commands, disk.batch(commands), strict=True):
                if command[0] == "s":
                    assert answer.split()[1] == "16:data"
                else:
                    assert answer.split()[8:24] == [str(block + 1)] * 16


@pytest.mark.parametrize("words", [b"", b"\0\0", b"\0\0\0\3", b"\0\0\0\3IHAVEOPT\0\0\0\7\0\0\0\40"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_while_it_negotiates_costs_nothing(tmp_path: Path, words: bytes, reset: bool) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    with serve(tmp_path, f"aio:{path}") as server:

        def ticks() -> int:
            return sum(map(int, Path(f"/proc/{server.process.pid}/stat").read_text().split()[13:15]))

        for _ in range(5):
            with server.raw() as connection:
                if not reset:  # what is not read makes the end a reset
                    connection.recv(18)
                connection.sendall(words)
        used = ticks()
        time.sleep(1)
        assert ticks() - used < 20
        assert len(server.connect().pread(512, 0)) == 512


def test_an_empty_file_is_no_disk(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert "0 bytes" in open_refused(tmp_path / "empty", kind="aio")
    assert "0 bytes" in fails("snapshot", "-n", tmp_path / "a", "-p", tmp_path / "empty", "-m")
    assert not (tmp_path / "a").exists()


def test_the_block_that_the_batmaps_checksum_leaves_out(tmp_path: Path) -> None:
    """XenServer rounds down: of 8 GiB and a block, with room for more, the last block's bit is behind what is summed."""
    path = tmp_path / "a.vhd"
    ok("create", "-n", path, "-s", 8194, "-S", 20000)
    last = 4096 * 4096
    for seed in (1, 2):
        with Disk(f"vhd:{path}") as disk:
            assert disk.batch([f"w {last} 4096 {seed}", f"w {last - 4096} 4096 {seed}"]) == ["ok", "ok"]
        with Disk(f"vhd:{path}", readonly=True) as disk:
            assert disk.read(last - 4096, 4096) == disk.read(last, 4096) == [seed] * 4096
        assert ok("check", "-n", path, "-b") == f"{path} is valid\n"


def test_no_child_of_more_than_the_format_addresses(tmp_path: Path) -> None:
    raw, leaf = tmp_path / "base.img", tmp_path / "a.vhd"
    raw.touch()
    os.truncate(raw, 2041 << 30)
    message = fails("snapshot", "-n", leaf, "-p", raw, "-m")
    assert "2040 GiB" in message and "raw" in message
    assert "2040 GiB" in fails("convert", "-n", f"raw:{raw}", "-N", f"vhd:{leaf}")
    os.truncate(raw, 2040 << 30)
    ok("snapshot", "-n", leaf, "-p", raw, "-m")
    before = leaf.read_bytes()
    assert "2040 GiB" in fails("snapshot", "-n", tmp_path / "b.vhd", "-p", leaf, "-e", "-S", (2040 << 10) + 1)
    assert "2040 GiB" in fails("resize", "-n", leaf, "-s", (2040 << 10) + 1)
    assert leaf.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.vhd", "base.img"]


def test_what_qemu_wrote_into_an_image_with_a_batmap_is_read(tmp_path: Path) -> None:
    """QEMU puts its first block over the batmap, and leaves that of an image with blocks as it was."""
    for written in (False, True):
        path, raw = tmp_path / f"{written}.vhd", tmp_path / f"{written}.raw"
        ok("create", "-n", path, "-s", 16)
        if written:
            with Disk(f"vhd:{path}") as disk:
                assert disk.write(4096, 4096, 5) == "ok"
        for command in ("write -P 7 5M 3M", "write -P 8 512 1k"):
            subprocess.run(["qemu-io", "-f", "vpc", "-c", command, path], check=True, stdout=-3)
        subprocess.run(["qemu-img", "convert", "-f", "vpc", "-O", "raw", path, raw], check=True)
        assert content(path) == raw.read_bytes()
        with Disk(f"vhd:{path}") as disk:
            assert disk.write(20000, 8, 9) == "ok"
        subprocess.run(["qemu-img", "convert", "-f", "vpc", "-O", "raw", path, raw], check=True)
        assert content(path) == raw.read_bytes()


def test_blocks_of_four_mib_and_of_half_a_mib_take_writes_everywhere(tmp_path: Path) -> None:
    for i, size in enumerate((512 << 10, 4 * MIB)):
        path = vhdmake.make(tmp_path / f"{i}.vhd", Spec(size=40 * MIB, block_size=size, uuid=UUID(int=1 + i)))
        with Disk(f"vhd:{path}") as disk:
            writes = [f"w {s} 8 {s + 1}" for s in range(0, disk.sectors, 1000)]
            for at in range(0, len(writes), 50):
                assert set(disk.batch(writes[at : at + 50])) == {"ok"}
        with Disk(f"vhd:{path}", readonly=True) as disk:
            assert all(disk.read(s, 8) == [s + 1] * 8 for s in range(0, disk.sectors - 8, 1000))
        ok("check", "-n", path, "-b")
