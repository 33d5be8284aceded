# SPDX-License-Identifier: LGPL-2.1-only
"""What is written to a disk is what is read from it, whatever the chain beneath."""

import hashlib
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.lib import vhdi, vhdref
from tests.lib.disk import Disk, pattern, write_raw
from tests.lib.programs import program

pytestmark = pytest.mark.io

MIB = 2048
"""Sectors in a MiB."""

ENGINES = ["uring", "posix"]


def vhd_util(*args: str | Path) -> None:
    subprocess.run([program("vhd-util"), *map(str, args)], check=True, timeout=60)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Model:
    """The seed of every sector of a disk; 0 where nothing was written."""

    def __init__(self, sectors: int, rng: random.Random) -> None:
        self.seeds = [0] * sectors
        self.rng = rng
        self.next_seed = 1

    def extent(self) -> tuple[int, int]:
        """A random run of sectors, often across a block's border."""
        if self.rng.random() < 0.3:
            start = self.rng.randrange(0, len(self.seeds), 4096) - self.rng.randrange(1, 40)
        else:
            start = self.rng.randrange(len(self.seeds))
        start = max(start, 0)
        return start, min(self.rng.choice([1, 3, 8, 64, 300]), len(self.seeds) - start)

    def batch(self, disk: Disk, size: int) -> None:
        """A batch of writes that do not overlap, and of reads of other sectors."""
        touched: list[tuple[int, int]] = []
        commands: list[str] = []
        expected: list[str] = []
        for _ in range(size):
            start, count = self.extent()
            if any(start < e and s < start + count for s, e in touched):
                continue
            touched.append((start, start + count))
            if self.rng.random() < 0.5:
                commands.append(f"r {start} {count}")
                expected.append(" ".join(map(str, self.seeds[start : start + count])))
            else:
                commands.append(f"w {start} {count} {self.next_seed}")
                expected.append("ok")
                self.seeds[start : start + count] = [self.next_seed] * count
                self.next_seed += 1
        assert disk.batch(commands) == expected

    def check(self, disk: Disk) -> None:
        """Reads the whole disk."""
        step = 2000
        commands = [
            f"r {s} {min(step, len(self.seeds) - s)}" for s in range(0, len(self.seeds), step)
        ]
        for i in range(0, len(commands), 16):
            got = disk.batch(commands[i : i + 16])
            want = [
                " ".join(map(str, self.seeds[int(c.split()[1]) :][: int(c.split()[2])]))
                for c in commands[i : i + 16]
            ]
            assert got == want


def make_chain(directory: Path, depth: int, root: str) -> tuple[list[Path], Model, random.Random]:
    """A chain of 20 MiB images, each with something written; leaf first.

    root is "dynamic", "fixed" or "raw".
    """
    rng = random.Random(f"{depth} {root}")
    model = Model(20 * MIB, rng)
    paths = [directory / "0.img"]
    if root == "raw":
        for _ in range(30):
            start, count = model.extent()
            model.seeds[start : start + count] = [model.next_seed] * count
            model.next_seed += 1
        write_raw(paths[0], 20 * MIB, {i: s for i, s in enumerate(model.seeds) if s})
        vhd_util("snapshot", "-n", directory / "1.vhd", "-p", paths[0], "-m")
        paths.insert(0, directory / "1.vhd")
    elif root == "fixed":
        vhd_util("create", "-n", paths[0], "-s", "20", "-r")
    else:
        vhd_util("create", "-n", paths[0], "-s", "20")
    while len(paths) < depth:
        with Disk(f"vhd:{paths[0]}") as disk:
            model.batch(disk, 20)
        child = directory / f"{len(paths)}.vhd"
        vhd_util("snapshot", "-n", child, "-p", paths[0])
        paths.insert(0, child)
    return paths, model, rng


@pytest.mark.parametrize("engine", ENGINES)
def test_raw_image(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "a.img"
    write_raw(path, 8 * MIB, {0: 77})
    model = Model(8 * MIB, random.Random(1))
    model.seeds[0] = 77
    with Disk(f"aio:{path}", engine=engine) as disk:
        assert disk.sectors == 8 * MIB
        for _ in range(10):
            model.batch(disk, 30)
        assert disk.flush() == "ok"
        model.check(disk)
    with Disk(f"aio:{path}", engine=engine, readonly=True) as disk:
        model.check(disk)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("depth", "root"),
    [(1, "dynamic"), (1, "fixed"), (2, "dynamic"), (2, "raw"), (3, "fixed"), (5, "dynamic"), (5, "raw")],
)
def test_chain(tmp_path: Path, engine: str, depth: int, root: str) -> None:
    paths, model, _ = make_chain(tmp_path, depth, root)
    before = [sha256(p) for p in paths[1:]]
    with Disk(f"vhd:{paths[0]}", engine=engine) as disk:
        assert (disk.sectors, disk.depth) == (20 * MIB, depth)
        model.check(disk)
        for _ in range(10):
            model.batch(disk, 40)
        assert disk.flush() == "ok"
        model.check(disk)
    with Disk(f"vhd:{paths[0]}", engine=engine, readonly=True) as disk:
        model.check(disk)
    assert [sha256(p) for p in paths[1:]] == before


@pytest.mark.parametrize(
    ("depth", "root"), [(1, "dynamic"), (1, "fixed"), (2, "raw"), (5, "dynamic")]
)
def test_other_readers_agree_on_what_was_written(tmp_path: Path, depth: int, root: str) -> None:
    paths, model, _ = make_chain(tmp_path, depth, root)
    with Disk(f"vhd:{paths[0]}") as disk:
        for _ in range(5):
            model.batch(disk, 40)
    expected = b"".join(pattern(i, seed) if seed else bytes(512) for i, seed in enumerate(model.seeds))
    assert vhdref.Chain(paths[0]).read(0, len(expected)) == expected
    if depth == 1:
        # It is wrong about chains with partly filled blocks.
        assert vhdi.read(paths[:1])[: len(expected)] == expected
        subprocess.run(["qemu-img", "convert", "-f", "vpc", "-O", "raw", paths[0], tmp_path / "raw"], check=True)
        assert (tmp_path / "raw").read_bytes()[: len(expected)] == expected


def test_chain_of_thirty(tmp_path: Path) -> None:
    paths, model, _ = make_chain(tmp_path, 30, "dynamic")
    with Disk(f"vhd:{paths[0]}") as disk:
        assert disk.depth == 30
        for _ in range(5):
            model.batch(disk, 40)
        model.check(disk)


@pytest.mark.parametrize("engine", ENGINES)
def test_acknowledged_writes_survive_the_death_of_the_process(tmp_path: Path, engine: str) -> None:
    paths, model, _ = make_chain(tmp_path, 2, "dynamic")
    for _ in range(3):
        disk = Disk(f"vhd:{paths[0]}", engine=engine)
        model.check(disk)
        model.batch(disk, 40)
        disk.crash()
    with Disk(f"vhd:{paths[0]}") as disk:
        model.check(disk)
    vhd_util("check", "-n", paths[0], "-p")


def test_more_requests_than_the_pools_hold_all_complete(tmp_path: Path) -> None:
    paths, model, _ = make_chain(tmp_path, 3, "dynamic")
    with Disk(f"vhd:{paths[0]}", requests=1) as disk:
        for _ in range(10):
            model.batch(disk, 120)
        model.check(disk)


def test_opening_and_closing_changes_no_byte(tmp_path: Path) -> None:
    paths, model, _ = make_chain(tmp_path, 2, "dynamic")
    before = [sha256(p) for p in paths]
    with Disk(f"vhd:{paths[0]}") as disk:
        model.check(disk)
        assert disk.flush() == "ok"
    assert [sha256(p) for p in paths] == before


def hammer(disk: Disk, starts: Sequence[int]) -> None:
    answers = disk.batch(
        [f"w {s} 8 1" for s in starts] + [f"r {s + 100} 8" for s in starts] + ["f"]
    )
    assert not [a for a in answers if a.startswith("err")]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["aio", "vhd"])
def test_data_path_allocates_nothing(tmp_path: Path, engine: str, kind: str) -> None:
    """New blocks, present sectors, parents and flushes: no malloc after the first batch."""
    if kind == "aio":
        path = tmp_path / "a.img"
        write_raw(path, 200 * MIB, {})
    else:
        vhd_util("create", "-n", tmp_path / "base.vhd", "-s", "200")
        path = tmp_path / "leaf.vhd"
        vhd_util("snapshot", "-n", path, "-p", tmp_path / "base.vhd")
    counter = tmp_path / "mallocs"
    preload = {"LD_PRELOAD": str(program("tests/preload-malloc.so", "release")), "MALLOC_COUNT": str(counter)}
    with Disk(f"{kind}:{path}", engine=engine, mode="release", env=preload) as disk:
        hammer(disk, range(0, 64 * 128, 128))  # the tool makes its own buffers here
        before = counter.read_bytes()
        for i in range(1, 20):
            hammer(disk, range(i * 10 * MIB, i * 10 * MIB + 64 * 128, 128))
        assert int.from_bytes(before, sys.byteorder) > 0
        assert counter.read_bytes() == before


def test_sparse_disk_takes_little_space(tmp_path: Path) -> None:
    path = tmp_path / "a.vhd"
    vhd_util("create", "-n", path, "-s", "2000")
    with Disk(f"vhd:{path}") as disk:
        for i in range(0, 2000 * MIB, 40 * MIB):
            assert disk.write(i, 8, 5) == "ok"
    # 50 blocks, of which each holds 4 KiB of data and a bitmap.
    assert path.stat().st_blocks * 512 < 50 * 3 * 4096 + (1 << 20)


def test_disk_ends_where_the_file_says_no_more(tmp_path: Path) -> None:
    """A file that can't grow gives errors for new blocks, and serves the rest."""
    path = tmp_path / "a.vhd"
    vhd_util("create", "-n", path, "-s", "1000")
    with Disk(f"vhd:{path}") as disk:
        assert disk.write(0, 8, 5) == "ok"
    limit = path.stat().st_size
    subprocess.run(["truncate", "-s", str(limit), path], check=True)
    with Disk(f"vhd:{path}") as disk:
        subprocess.run(["prlimit", f"--pid={disk.process.pid}", f"--fsize={limit}:"], check=True)
        wanted = [f"w {s} 8 6" for s in range(4096, 1000 * MIB, 4096)]
        assert {a.split()[0] for a in disk.batch(wanted[:400])} == {"err"}
        assert disk.read(0, 8) == [5] * 8
        assert disk.write(0, 8, 7) == "ok"
        subprocess.run(["prlimit", f"--pid={disk.process.pid}", "--fsize=unlimited:"], check=True)
        assert set(disk.batch(wanted[:400])) == {"ok"}
        assert disk.read(4096, 8) == [6] * 8
    vhd_util("check", "-n", path)
