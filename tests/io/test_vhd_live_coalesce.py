# SPDX-License-Identifier: LGPL-2.1-only
"""Coalescing the middle of a chain while its disk is served: who is let in beside it, and that no read is ever wrong."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest

from tests.lib import vhdref
from tests.lib.disk import Disk
from tests.lib.expected import Expected, random_batch
from tests.lib.faults import Faults
from tests.lib.nbddisk import NbdDisk
from tests.lib.programs import program
from tests.lib.tapctl import Served
from tests.lib.vhdmake import MIB
from tests.lib.vhdutil import content, fails, ok, run
from tests.lib.waiting import OF_THE_DEAD, after_a_kill, wait_for

pytestmark = pytest.mark.io

SECTORS = 48 * MIB // 512
COALESCES = "coalesces a child into it"


@contextmanager
def loop_device(file: Path, *options: str) -> Iterator[Path]:
    argv = ["losetup", "--show", "-f", *options, str(file)]
    name = subprocess.run(argv, capture_output=True, check=True, text=True).stdout.strip()
    try:
        yield Path(name)
    finally:
        subprocess.run(["losetup", "-d", name], check=True)


class Chain:
    """grand <- base <- middle <- leaf, and what the leaf reads as; raw: base is raw and has no parent."""

    def __init__(self, directory: Path, chance: random.Random, *, raw: bool = False) -> None:
        self.chance = chance
        self.expected = Expected(SECTORS)
        self.grand, self.base, self.middle, self.leaf = (
            directory / f"{name}.vhd" for name in ("grand", "base", "middle", "leaf")
        )
        if raw:
            self.base = directory / "base.img"
            self.base.write_bytes(bytes(SECTORS * 512))
            self.scribble(self.base, "raw", 60)
            ok("snapshot", "-n", self.middle, "-p", self.base, "-m")
        else:
            ok("create", "-n", self.grand, "-s", SECTORS * 512 // MIB)
            self.scribble(self.grand, "vhd", 60)
            ok("snapshot", "-n", self.base, "-p", self.grand)
            self.scribble(self.base, "vhd", 60)
            ok("snapshot", "-n", self.middle, "-p", self.base)
        self.scribble(self.middle, "vhd", 120)
        ok("snapshot", "-n", self.leaf, "-p", self.middle)
        self.scribble(self.leaf, "vhd", 40)

    def scribble(self, path: Path, kind: str, writes: int) -> None:
        with Disk(f"{kind}:{path}") as disk:
            for _ in range(writes // 10):
                self.expected.run(disk, random_batch(self.expected, self.chance, 10, "wwwz"))

    def relink(self) -> None:
        raw = ["-m"] if self.base.suffix == ".img" else []
        ok("modify", "-n", self.leaf, "-p", self.base, *raw)


@pytest.fixture
def chance() -> random.Random:
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    return random.Random(seed)


class Coalesce:
    """vhd-util coalesce of an image, under way: each of its transfers is late, until it is to finish."""

    def __init__(self, directory: Path, image: Path, *, late_ms: int = 10) -> None:
        self.faults = Faults(directory / "coalesce.rules")
        self.faults.set(f"any delay={late_ms}")
        env = {**os.environ, "XENBLK_ENGINE": self.faults.engine(), "XENBLK_CONFIG": "/nonexistent/xenblk-config"}
        argv = [str(program("vhd-util")), "coalesce", "-n", str(image), "--progress=1"]
        self.process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for(self, percent: int) -> None:
        """Until it is so far, and then it stands still."""
        assert self.process.stdout
        for line in self.process.stdout:
            if int(line.split("/")[0]) >= percent:
                break
        else:
            raise AssertionError(self.process.communicate()[1])
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def finish(self) -> None:
        self.faults.off()
        self.go_on()
        out, err = self.process.communicate(timeout=60)
        assert (self.process.returncode, err) == (0, ""), err
        assert "Coalesced" in out

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> "Coalesce":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.ended():
            self.kill()


@pytest.mark.parametrize("raw", [False, True])
def test_reads_and_writes_go_on_and_the_chain_is_shortened(tmp_path: Path, chance: random.Random, raw: bool) -> None:
    chain = Chain(tmp_path, chance, raw=raw)
    middle = content(chain.middle)
    expected = chain.expected
    with Served(tmp_path, f"vhd:{chain.leaf}") as served, NbdDisk(served.socket, 3) as disk:
        with Coalesce(tmp_path, chain.middle) as job:
            batches = 0
            while not job.ended():
                expected.run(disk, random_batch(expected, chance, 16))
                batches += 1
            job.finish()
        assert batches > 3
        assert content(chain.middle) == middle
        assert (chain.base.read_bytes() if raw else content(chain.base)) == middle
        # What was in memory before is still right, and what was not yet is read from what is there now.
        expected.check(disk)
        message = fails("modify", "-n", chain.leaf, "-p", chain.base, *(["-m"] if raw else []))
        assert f"pausing it is enough: tap-ctl pause -p {served.pid}" in message
        served.ok("pause")
        chain.relink()
        served.ok("unpause")
        chain.middle.unlink()
        expected.check(disk)
        for _ in range(20):
            expected.run(disk, random_batch(expected, chance, 16))
    ok("check", "-n", chain.leaf, "-p", "-b")
    with Disk(f"vhd:{chain.leaf}") as again:
        assert again.depth == (2 if raw else 3)
        expected.check(again)
    assert vhdref.Chain(chain.leaf).size == SECTORS * 512


def test_the_disk_can_be_opened_meanwhile(tmp_path: Path, chance: random.Random) -> None:
    """A guest that reboots finds its disk, at any step of the job, and reads what it should."""
    chain = Chain(tmp_path, chance)
    with Coalesce(tmp_path, chain.middle) as job:
        opened = 0
        while not job.ended():
            with Disk(f"vhd:{chain.leaf}") as disk:
                chain.expected.check(disk)
                chain.expected.run(disk, random_batch(chain.expected, chance, 16))
            opened += 1
        job.finish()
    assert opened
    assert "is valid" in ok("check", "-n", chain.leaf, "-p", "-b")


def test_a_bat_that_is_read_half_changed_is_read_again(tmp_path: Path, chance: random.Random) -> None:
    chain = Chain(tmp_path, chance)
    image = vhdref.Image(chain.base)
    block = next(i for i, at in enumerate(image.bat) if at != 0xFFFFFFFF)
    entry = int.from_bytes(image.data[512 + 16 : 512 + 24], "big") + 4 * block  # behind the table offset

    def set_entry(value: int) -> None:
        with chain.base.open("r+b") as file:
            file.seek(entry)
            file.write(value.to_bytes(4, "big"))

    set_entry(0x7F000000)
    with pytest.raises(OSError, match="BAT"):
        Disk(f"vhd:{chain.leaf}").close()
    argv = [str(program("tests/tool-lock")), "coalesce", str(chain.base), str(chain.middle)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin and holder.stdout and holder.stdout.readline() == b"locked\n"
        with pytest.raises(OSError, match="changes it too fast"):
            Disk(f"vhd:{chain.leaf}").close()
        timer = Timer(0.3, set_entry, [image.bat[block]])
        timer.start()
        with Disk(f"vhd:{chain.leaf}") as disk:
            chain.expected.check(disk)
        timer.join()


@pytest.mark.parametrize("raw", [False, True])
def test_whoever_would_see_the_difference_is_kept_out(tmp_path: Path, chance: random.Random, raw: bool) -> None:
    chain = Chain(tmp_path, chance, raw=raw)
    flags = ["-m"] if raw else []
    (tmp_path / "elsewhere").mkdir()
    sibling = tmp_path / "elsewhere" / "sibling.vhd"
    config = tmp_path / "config-dirs"
    config.write_text(f"version=1\nimage_dir={tmp_path}\n")
    ok("snapshot", "-n", sibling, "-p", chain.base, "-e", *flags, config=config)
    with Coalesce(tmp_path, chain.middle, late_ms=200) as job:
        job.wait_for(30)
        kind = "raw" if raw else "vhd"
        with pytest.raises(OSError, match=COALESCES):
            Disk(f"{kind}:{chain.base}", readonly=True).close()
        with pytest.raises(OSError, match=COALESCES):
            Disk(f"vhd:{sibling}", env={"XENBLK_CONFIG": str(config)}).close()
        assert COALESCES in fails("snapshot", "-n", tmp_path / "new.vhd", "-p", chain.base, *flags)
        assert COALESCES in fails("modify", "-n", chain.leaf, "-p", chain.base, *flags)
        assert COALESCES in fails("coalesce", "-n", chain.middle)
        if not raw:
            assert COALESCES in fails("check", "-n", chain.base)
        for qemu in (f"qemu-nbd -r -f raw -k {tmp_path}/qemu.sock", "qemu-io -f raw -c quit"):
            argv = [*qemu.split(), str(chain.base)]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
            assert done.returncode == 1 and "lock" in done.stderr, qemu
        # Nor may what is read be written.
        assert "in use" in fails("modify", "-z", "-n", chain.middle)
        # Who reads through the child is welcome, and may become its child.
        assert run("check", "-n", chain.leaf, "-p").returncode == 0
        other = tmp_path / "other.vhd"
        ok("snapshot", "-n", other, "-p", chain.middle)
        with Disk(f"vhd:{other}") as disk:
            assert disk.depth == (3 if raw else 4)
        job.finish()


@pytest.mark.parametrize("raw", [False, True])
def test_it_does_not_begin_if_somebody_would_see_it(tmp_path: Path, chance: random.Random, raw: bool) -> None:
    chain = Chain(tmp_path, chance, raw=raw)
    (tmp_path / "elsewhere").mkdir()
    sibling = tmp_path / "elsewhere" / "sibling.vhd"
    config = tmp_path / "config-dirs"
    config.write_text(f"version=1\nimage_dir={tmp_path}\n")
    ok("snapshot", "-n", sibling, "-p", chain.base, "-e", *(["-m"] if raw else []), config=config)
    before = chain.base.read_bytes()
    with Disk(f"vhd:{chain.leaf}") as _, Disk(f"vhd:{sibling}", env={"XENBLK_CONFIG": str(config)}) as other:
        message = fails("coalesce", "-n", chain.middle)
        assert f"tool-disk (pid {other.process.pid}) has it as a parent of another image" in message
        assert str(chain.base) in message
    with Disk(f"vhd:{chain.leaf}") as _, Disk(f"{'raw' if raw else 'vhd'}:{chain.base}", readonly=True) as other:
        assert f"tool-disk (pid {other.process.pid}) reads it" in fails("coalesce", "-n", chain.middle)
    # A copy of the child is another child, though it has the same uuid.
    copy = tmp_path / "elsewhere" / "middle.vhd"
    shutil.copyfile(chain.middle, copy)
    if not raw:
        ok("modify", "-n", copy, "-p", chain.base, config=config)
        with Disk(f"vhd:{copy}", readonly=True, env={"XENBLK_CONFIG": str(config)}):
            assert "parent of another image" in fails("coalesce", "-n", chain.middle)
    with Disk(f"vhd:{chain.middle}", readonly=True), Disk(f"vhd:{chain.leaf}"):
        assert chain.base.read_bytes() == before
        ok("coalesce", "-n", chain.middle)


def test_a_disk_whose_leaf_is_the_child_is_not_coalesced(tmp_path: Path, chance: random.Random) -> None:
    chain = Chain(tmp_path, chance)
    with Disk(f"vhd:{chain.leaf}"):
        assert "has it open for writing" in fails("coalesce", "-n", chain.leaf)


def test_kills_of_either_side_lose_nothing(tmp_path: Path, chance: random.Random) -> None:
    chain = Chain(tmp_path, chance)
    expected, middle = chain.expected, content(chain.middle)
    for turn, percent in enumerate((5, 40, 80, 10, 60)):
        with Served(tmp_path, f"vhd:{chain.leaf}") as served, NbdDisk(served.socket, 3) as disk:
            with Coalesce(tmp_path, chain.middle) as job:
                job.wait_for(percent)
                job.go_on()
                for _ in range(5):
                    expected.run(disk, random_batch(expected, chance, 16))
                if turn % 2:
                    served.kill()
                    with after_a_kill(lambda: Disk(f"vhd:{chain.leaf}")) as again:
                        expected.check(again)
                    job.finish()
                else:
                    job.kill()
                    wait_for(lambda: OF_THE_DEAD not in run("check", "-n", chain.base).stderr.decode(), "its lock goes", 30)
            if not turn % 2:
                expected.check(disk)
        with Disk(f"vhd:{chain.leaf}") as again:
            expected.check(again)
        assert content(chain.middle) == middle
        shutil.rmtree(tmp_path / "ctl")
    ok("coalesce", "-n", chain.middle)
    chain.relink()
    with Disk(f"vhd:{chain.leaf}") as again:
        expected.check(again)


def test_a_snapshot_while_its_chain_is_coalesced(tmp_path: Path, chance: random.Random) -> None:
    """The old leaf is locked as a parent from then on, so that it too can be coalesced live."""
    chain = Chain(tmp_path, chance)
    expected = chain.expected
    with Served(tmp_path, f"vhd:{chain.leaf}") as served, NbdDisk(served.socket, 3) as disk:
        with Coalesce(tmp_path, chain.middle) as job:
            job.wait_for(20)
            job.go_on()
            served.ok("snapshot", "-n", "frozen.vhd")
            expected.run(disk, random_batch(expected, chance, 16))
            job.finish()
        expected.check(disk)
        frozen = tmp_path / "frozen.vhd"
        assert "has it open for writing" not in fails("repair", "-n", frozen)
        assert "has it as a parent" in fails("repair", "-n", frozen)
        assert "has it as a parent" in fails("repair", "-n", frozen, "-b")
        ok("coalesce", "-n", frozen)
        expected.check(disk)
        served.ok("pause")
        ok("modify", "-n", chain.leaf, "-p", chain.middle)
        served.ok("unpause")
        frozen.unlink()
        expected.check(disk)


def test_a_leaf_is_coalesced_while_its_disk_is_paused(tmp_path: Path, chance: random.Random) -> None:
    """The manual's recipe: the parent takes the leaf's name."""
    chain = Chain(tmp_path, chance)
    expected = chain.expected
    with Served(tmp_path, f"vhd:{chain.leaf}") as served, NbdDisk(served.socket) as disk:
        expected.run(disk, random_batch(expected, chance, 16))
        served.ok("pause")
        ok("coalesce", "-n", chain.leaf)
        chain.middle.rename(chain.leaf)
        ok("set", "-n", chain.leaf, "-f", "hidden", "-v", 0)
        ok("set", "-n", chain.leaf, "-f", "children", "-v", 0)
        served.ok("unpause")
        expected.check(disk)
        expected.run(disk, random_batch(expected, chance, 16))
        expected.check(disk)
    with Disk(f"vhd:{chain.leaf}") as again:
        assert again.depth == 3
        expected.check(again)


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("raw", [False, True])
def test_a_block_device_as_the_parent(tmp_path: Path, chance: random.Random, raw: bool, sector: int) -> None:
    """Stale bytes on the device never show, and a device of 4096-byte sectors takes single ones."""
    expected = Expected(SECTORS)
    disk_file = tmp_path / "disk"
    disk_file.write_bytes(b"stale!!!" * (56 * MIB // 8))
    if raw:
        disk_file.write_bytes(bytes(SECTORS * 512))
    group = tmp_path / "group"
    group.mkdir()
    device = group / "volume"
    with loop_device(disk_file, "-b", str(sector)) as loop:
        device.symlink_to(loop)
        if not raw:
            ok("create", "-n", device, "-s", SECTORS * 512 // MIB)
        child, leaf = tmp_path / "child.vhd", tmp_path / "leaf.vhd"
        ok("snapshot", "-n", child, "-p", device, "-e", *(["-m"] if raw else []))
        with Disk(f"vhd:{child}") as disk:
            for _ in range(12):
                expected.run(disk, random_batch(expected, chance, 12, "wwwz"))
        ok("snapshot", "-n", leaf, "-p", child)
        with Disk(f"vhd:{leaf}") as disk:
            expected.run(disk, random_batch(expected, chance, 12))
            ok("coalesce", "-n", child)
            expected.check(disk)
        ok("modify", "-n", leaf, "-p", device, *(["-m"] if raw else []))
        with Disk(f"vhd:{leaf}") as disk:
            assert disk.depth == 2
            expected.check(disk)
        if not raw:
            assert run("check", "-n", device, "-b").returncode == 0


def test_a_chain_of_devices_in_one_group(tmp_path: Path, chance: random.Random) -> None:
    """As LVM links its volumes, /dev/GROUP/NAME: the parent is found and admitted beside its child."""
    expected = Expected(8 * MIB // 512)
    group = tmp_path / "group"
    group.mkdir()
    files = [tmp_path / "file0", tmp_path / "file1"]
    for file in files:
        file.write_bytes(bytes(12 * MIB))
    with loop_device(files[0]) as first, loop_device(files[1]) as second:
        base, leaf = group / "base", group / "leaf"
        base.symlink_to(first)
        leaf.symlink_to(second)
        ok("create", "-n", base, "-s", 8)
        with Disk(f"vhd:{base}") as disk:
            expected.run(disk, random_batch(expected, chance, 10, "w"))
        ok("snapshot", "-n", leaf, "-p", base)
        assert ok("query", "-p", "-n", leaf) == f"{base}\n"
        with Disk(f"vhd:{leaf}") as disk:
            assert disk.depth == 2
            expected.run(disk, random_batch(expected, chance, 10, "w"))
            expected.check(disk)


def test_a_parent_grows_in_place_and_takes_a_larger_child(tmp_path: Path, chance: random.Random) -> None:
    """As the storage manager calls it before a coalesce, when the disk has grown since the snapshot."""
    base, middle, leaf = (tmp_path / f"{name}.vhd" for name in ("base", "middle", "leaf"))
    ok("create", "-n", base, "-s", 8, "-S", 100)
    small = Expected(8 * MIB // 512)
    with Disk(f"vhd:{base}") as disk:
        small.run(disk, random_batch(small, chance, 10, "w"))
    ok("snapshot", "-n", middle, "-p", base, "-S", 100)
    ok("resize", "-n", middle, "-s", 20, "-f")
    expected = Expected(20 * MIB // 512)
    expected.now[: len(small)] = small.now
    expected.next_seed = small.next_seed
    with Disk(f"vhd:{middle}") as disk:
        for _ in range(5):
            expected.run(disk, random_batch(expected, chance, 10, "w"))
    ok("snapshot", "-n", leaf, "-p", middle)
    with Served(tmp_path, f"vhd:{leaf}") as served, NbdDisk(served.socket, 3) as disk:
        expected.run(disk, random_batch(expected, chance, 10))
        assert "make it as large first" in fails("coalesce", "-n", middle, status=28)
        ok("resize", "--debug", "-s", "20", "-n", base, "-f")
        ok("coalesce", "-n", middle)
        expected.check(disk)
        # What would have to move blocks needs the image alone; and so does what is written.
        assert "has it as a parent" in fails("resize", "-s", "2000", "-n", base)
        assert "has it as a parent" in fails("resize", "-s", "10", "-n", base)
        assert "has it open for writing" in fails("resize", "-s", "30", "-n", leaf, "-f")
        ok("resize", "-s", "22", "-n", base, "-j", "journal")
        served.ok("pause")
        ok("modify", "-n", leaf, "-p", base, "--force")
        served.ok("unpause")
        expected.check(disk)
    assert "is valid" in ok("check", "-n", leaf, "-p", "-b")


def test_a_disk_grows_while_it_is_served(tmp_path: Path, chance: random.Random) -> None:
    """The manual's recipe: pause, resize, unpause."""
    leaf = tmp_path / "leaf.vhd"
    ok("create", "-n", leaf, "-s", 8)
    small = Expected(8 * MIB // 512)
    with Served(tmp_path, f"vhd:{leaf}") as served:
        with NbdDisk(served.socket) as disk:
            small.run(disk, random_batch(small, chance, 10, "w"))
        served.ok("pause")
        ok("resize", "-n", leaf, "-s", 40)
        served.ok("unpause")
        expected = Expected(40 * MIB // 512)
        expected.now[: len(small)] = small.now
        expected.next_seed = small.next_seed
        with NbdDisk(served.socket) as disk:
            expected.check(disk)
            for _ in range(5):
                expected.run(disk, random_batch(expected, chance, 10))
            expected.check(disk)
    assert "is valid" in ok("check", "-n", leaf, "-b")


def test_a_coalesce_that_waits_long_is_named(tmp_path: Path, chance: random.Random) -> None:
    chain = Chain(tmp_path, chance)
    with Coalesce(tmp_path, chain.middle, late_ms=200) as job:
        job.wait_for(10)
        start = time.monotonic()
        message = fails("check", "-n", chain.base)
        assert f"vhd-util (pid {job.process.pid}) {COALESCES}" in message
        assert time.monotonic() - start < 30
        job.finish()
