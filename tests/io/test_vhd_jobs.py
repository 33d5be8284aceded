# SPDX-License-Identifier: LGPL-2.1-only
"""The long commands of vhd-util: coalesce, copy and convert, against an independent reader."""

import hashlib
import math
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from uuid import UUID

import pytest

from tests.lib import vhdmake, vhdref
from tests.lib.disk import Disk, pattern, write_raw
from tests.lib.faults import Faults
from tests.lib.nbdserver import serve
from tests.lib.programs import program
from tests.lib.recordlog import WRITE, read_log
from tests.lib.vhdmake import MIB, Spec
from tests.lib.vhdutil import FOUND, fails, ok, run
from tests.lib.waiting import after_a_kill

pytestmark = pytest.mark.io

SECTORS = 16 * MIB // 512
ENV = dict(os.environ, XENBLK_CONFIG="/nonexistent/xenblk-config", ASAN_OPTIONS=f"exitcode={FOUND}")


def scribble(path: Path, rng: random.Random, writes: int, seed: int) -> None:
    """Random writes, some of zeros."""
    with Disk(f"vhd:{path}") as disk:
        commands = []
        for i in range(writes):
            sector, count = rng.randrange(SECTORS), rng.choice([1, 3, 8, 64, 128, 1000])
            count = min(count, SECTORS - sector)
            commands.append(f"z {sector} {count}" if rng.random() < 0.1 else f"w {sector} {count} {seed + i}")
            if rng.random() < 0.3:
                assert set(disk.batch([*commands, "f"])) == {"ok"}
                commands = []
        assert set(disk.batch([*commands, "f"])) == {"ok"}


def root(path: Path, rng: random.Random, *, raw: bool) -> Path:
    if raw:
        write_raw(path, SECTORS, {rng.randrange(SECTORS): 1 + i for i in range(200)})
    else:
        ok("create", "-n", path, "-s", 16)
        scribble(path, rng, 10, 1)
    return path


def child_of(parent: Path, path: Path, rng: random.Random, seed: int, *, raw: bool = False) -> Path:
    ok("snapshot", "-n", path, "-p", parent, "-e", *(["-m"] if raw else []))
    scribble(path, rng, 25, seed)
    return path


def disk_of(path: Path) -> str:
    return vhdref.Chain(path).sha256()


def expected_parent(child: Path) -> bytes:
    """What the parent must read as afterwards."""
    chain = vhdref.Chain(child)
    return chain.read(0, chain.size)


def present(path: Path) -> set[int]:
    """The sectors that the image itself holds."""
    image = vhdref.Image(path)
    return {sector for sector in range(SECTORS) if image.has_sector(sector)}


def slowed(directory: Path, rule: str) -> dict[str, str]:
    """The environment in which vhd-util's transfers are late by this rule."""
    faults = Faults(directory / "rules")
    faults.set(rule)
    return {**ENV, "XENBLK_ENGINE": faults.engine()}


def kill_midway(child: Path, after: float, env: dict[str, str]) -> bool:
    """Whether the coalesce was still at work."""
    process = subprocess.Popen(
        [program("vhd-util"), "coalesce", "-n", child], env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    time.sleep(after)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


# coalesce


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_parent_reads_as_the_child_does_and_the_child_is_untouched(tmp_path: Path, seed: int, raw: bool) -> None:
    rng = random.Random(seed)
    base = root(tmp_path / "base", rng, raw=raw)
    child = child_of(base, tmp_path / "child.vhd", rng, 1000, raw=raw)
    before, bytes_before = expected_parent(child), child.read_bytes()
    ok("coalesce", "-n", child)
    assert child.read_bytes() == bytes_before
    assert expected_parent(child) == before
    if raw:
        assert base.read_bytes() == before
    else:
        assert expected_parent(base) == before
        ok("check", "-n", child, "-p", "-b")


@pytest.mark.parametrize("raw", [False, True])
def test_parent_with_space_for_all_is_written_in_place(tmp_path: Path, raw: bool) -> None:
    rng = random.Random(3)
    base = root(tmp_path / "base", rng, raw=raw)
    if not raw:
        ok("fill", "-n", base)
    # without holes, and with what is allocated when it is written back
    data = base.read_bytes()
    with base.open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    child = child_of(base, tmp_path / "child.vhd", rng, 1000, raw=raw)
    before, bytes_before, space = expected_parent(child), child.read_bytes(), base.stat().st_blocks
    ok("coalesce", "-n", child)
    assert child.read_bytes() == bytes_before
    assert (base.read_bytes() if raw else expected_parent(base)) == before
    assert base.stat().st_blocks == space
    if not raw:
        ok("check", "-n", child, "-p", "-b")


@pytest.mark.parametrize("seed", range(3))
def test_only_the_childs_own_sectors_go_into_the_middle_of_a_chain(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    base = root(tmp_path / "base.vhd", rng, raw=False)
    middle = child_of(base, tmp_path / "middle.vhd", rng, 1000)
    child = child_of(middle, tmp_path / "child.vhd", rng, 2000)
    before, base_bytes = expected_parent(child), base.read_bytes()
    had = present(middle) | present(child)
    ok("coalesce", "-n", child)
    assert expected_parent(middle) == before
    assert base.read_bytes() == base_bytes
    assert present(middle) == had
    # An inner image whose own children read through it.
    leaf_before = disk_of(child)
    ok("coalesce", "-n", middle)
    assert disk_of(child) == leaf_before
    assert expected_parent(base) == before


@pytest.mark.parametrize("raw", [False, True])
def test_killed_at_any_moment_it_changes_nothing_and_goes_on_when_run_again(tmp_path: Path, raw: bool) -> None:
    rng = random.Random(7)
    base = root(tmp_path / "base", rng, raw=raw)
    child = child_of(base, tmp_path / "child.vhd", rng, 1000, raw=raw)
    middle = child_of(child, tmp_path / "leaf.vhd", rng, 2000)
    before, leaf_before = expected_parent(child), disk_of(middle)
    startup = math.inf
    for _ in range(5):
        start = time.monotonic()
        run("query", "-n", child, "-v")
        startup = min(startup, time.monotonic() - start)
    # it takes seven times as long as a start
    env = slowed(tmp_path, "any delay=5")
    killed = 0
    for i in range(12):
        killed += kill_midway(child, startup * (0.5 + i / 2), env)
        assert expected_parent(child) == before
        assert disk_of(middle) == leaf_before
        if not raw:
            after_a_kill(lambda: ok("query", "-n", base, "-v"))
    assert killed
    after_a_kill(lambda: ok("coalesce", "-n", child))
    assert expected_parent(child) == before
    assert disk_of(middle) == leaf_before
    assert (base.read_bytes() if raw else expected_parent(base)) == before


def test_parent_with_hidden_flag_and_other_block_size(tmp_path: Path) -> None:
    base = vhdmake.make(
        tmp_path / "base.vhd", Spec(block_size=512 << 10, hidden=1, blocks={1: {7: b"b" * 512, 8: b"c" * 512}})
    )
    child = tmp_path / "child.vhd"
    ok("snapshot", "-n", child, "-p", base)
    with Disk(f"vhd:{child}") as disk:
        assert disk.write(1024 + 8, 3000, 9) == "ok"
    before = expected_parent(child)
    ok("coalesce", "-n", child)
    assert expected_parent(base) == before
    assert vhdref.Image(base).footer.hidden == 1


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_parent_of_another_child_is_left_alone(tmp_path: Path, raw: bool, elsewhere: bool) -> None:
    rng = random.Random(1)
    base = root(tmp_path / "base", rng, raw=raw)
    home = tmp_path / "sub" if elsewhere else tmp_path
    home.mkdir(exist_ok=True)
    config = tmp_path / "config"
    config.write_text(f"version=1\nimage_dir={tmp_path}\n")
    for name in ("child.vhd", "other.vhd"):
        ok("snapshot", "-n", home / name, "-p", base, "-e", *(["-m"] if raw else []), config=config)
    with Disk(f"vhd:{home / 'child.vhd'}", env={"XENBLK_CONFIG": str(config)}) as disk:
        assert disk.write(5, 5, 5) == "ok"
    before = base.read_bytes()
    message = fails("coalesce", "-n", home / "child.vhd", config=config)
    assert "other.vhd" in message and str(base) in message
    assert base.read_bytes() == before
    (home / "other.vhd").unlink()
    ok("coalesce", "-n", home / "child.vhd", config=config)


@pytest.mark.parametrize("raw", [False, True])
def test_child_in_use_is_refused_with_the_holders_name(tmp_path: Path, raw: bool) -> None:
    """As the leaf of a disk; below one it may be, see test_vhd_live_coalesce.py."""
    rng = random.Random(1)
    base = root(tmp_path / "base", rng, raw=raw)
    child = child_of(base, tmp_path / "child.vhd", rng, 100, raw=raw)
    before = base.read_bytes()
    with Disk(f"vhd:{child}"):
        assert "tool-disk" in fails("coalesce", "-n", child)
    assert base.read_bytes() == before
    ok("coalesce", "-n", child)


def test_smaller_parent_is_refused_with_the_remedy(tmp_path: Path) -> None:
    base = vhdmake.make(tmp_path / "base.vhd", Spec(size=4 * MIB))
    child = vhdmake.make(
        tmp_path / "child.vhd",
        Spec(
            size=8 * MIB,
            kind=vhdmake.DIFFERENCING,
            parent_uuid=Spec().uuid,
            uuid=UUID(int=5),
            parent_name="base.vhd",
            blocks={3: {0: b"x" * 512}},
        ),
    )
    before = base.read_bytes()
    assert "vhd-util resize" in fails("coalesce", "-n", child, status=28)
    assert base.read_bytes() == before


def test_what_coalesce_cannot_do_is_refused(tmp_path: Path) -> None:
    base = root(tmp_path / "base.vhd", random.Random(1), raw=False)
    assert "no parent" in fails("coalesce", "-n", base)
    for option in (["-o", "x"], ["-a"], ["-x"]):
        assert "not supported" in fails("coalesce", "-n", base, *option, status=2)
    assert run("coalesce").returncode == 2


def test_damaged_parent_is_not_written(tmp_path: Path) -> None:
    rng = random.Random(1)
    base = root(tmp_path / "base.vhd", rng, raw=False)
    child = child_of(base, tmp_path / "child.vhd", rng, 100)
    vhdmake.set_footer(base, "checksum", b"1234", fix=False, tail=False)
    before = base.read_bytes()
    assert "repair" in fails("coalesce", "-n", child)
    assert base.read_bytes() == before


# copy and convert


def qemu_equal(a: Path, a_format: str, b: Path, b_format: str) -> None:
    subprocess.run(["qemu-img", "compare", "-f", a_format, "-F", b_format, a, b], check=True, stdout=subprocess.PIPE)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_copy_reads_as_the_chain_and_has_no_parent(tmp_path: Path, seed: int, raw: bool) -> None:
    rng = random.Random(seed)
    base = root(tmp_path / "base", rng, raw=raw)
    middle = child_of(base, tmp_path / "middle.vhd", rng, 1000, raw=raw)
    leaf = child_of(middle, tmp_path / "leaf.vhd", rng, 2000)
    new = tmp_path / "new.vhd"
    ok("copy", "-n", leaf, "-N", new)
    image = vhdref.Image(new)
    assert (image.kind, image.size) == (vhdref.DYNAMIC, 16 * MIB)
    assert disk_of(new) == disk_of(leaf)
    assert ok("check", "-n", new, "-b") == f"{new} is valid\n"
    ok("convert", "-n", f"vhd:{leaf}", "-N", f"raw:{tmp_path / 'new.raw'}")
    data = (tmp_path / "new.raw").read_bytes()
    assert hashlib.sha256(data).hexdigest() == disk_of(leaf)
    qemu_equal(new, "vpc", tmp_path / "new.raw", "raw")
    assert sorted(os.listdir(tmp_path)) == ["base", "leaf.vhd", "middle.vhd", "new.raw", "new.vhd"]


def test_a_raw_copy_is_written_in_whole_units_and_over_small_holes(tmp_path: Path) -> None:
    ok("create", "-n", tmp_path / "base.vhd", "-s", 16)
    child = tmp_path / "child.vhd"
    ok("snapshot", "-n", child, "-p", tmp_path / "base.vhd", "-e")
    written = {3: 1, 9: 2, 30: 3, 31: 4, 157: 5, 300: 6, 5000: 7, SECTORS - 1: 8}
    with Disk(f"vhd:{child}") as disk:
        assert set(disk.batch([f"w {sector} 1 {seed}" for sector, seed in written.items()])) == {"ok"}
    log = tmp_path / "log"
    argv = [str(program("vhd-util")), "convert", "-n", f"vhd:{child}", "-N", f"raw:{tmp_path}/new"]
    subprocess.run(argv, env={**ENV, "XENBLK_ENGINE": f"record:{log}:uring"}, check=True)
    writes = [(c.offset // 512, c.length // 512) for f in read_log(log) for c in f.changes if c.kind == WRITE]
    assert sorted(writes) == [(0, 160), (296, 8), (5000, 8), (SECTORS - 8, 8)]
    assert hashlib.sha256((tmp_path / "new").read_bytes()).hexdigest() == disk_of(child)


def test_size_is_the_sources_to_the_sector(tmp_path: Path) -> None:
    odd = 3 * MIB + 512 * 9
    (tmp_path / "a.raw").write_bytes(bytes(odd - 512) + pattern(1, 1))
    ok("convert", "-n", f"raw:{tmp_path}/a.raw", "-N", f"vhd:{tmp_path}/a.vhd")
    assert vhdref.Image(tmp_path / "a.vhd").size == odd
    ok("convert", "-n", f"vhd:{tmp_path}/a.vhd", "-N", f"raw:{tmp_path}/b.raw")
    assert (tmp_path / "a.raw").read_bytes() == (tmp_path / "b.raw").read_bytes()


def test_holes_and_zeros_take_no_space(tmp_path: Path) -> None:
    write_raw(tmp_path / "a.raw", 200 * MIB // 512, {7: 1, 300_000: 2})
    with (tmp_path / "a.raw").open("r+b") as f:
        f.seek(20 * MIB)
        f.write(bytes(20 * MIB))
    ok("convert", "-n", f"raw:{tmp_path}/a.raw", "-N", f"vhd:{tmp_path}/a.vhd")
    assert ok("query", "-n", tmp_path / "a.vhd", "-a") == "2\n"
    assert (tmp_path / "a.vhd").stat().st_blocks * 512 < MIB
    ok("convert", "-n", f"vhd:{tmp_path}/a.vhd", "-N", f"raw:{tmp_path}/b.raw")
    assert (tmp_path / "b.raw").stat().st_blocks * 512 < MIB
    qemu_equal(tmp_path / "a.raw", "raw", tmp_path / "b.raw", "raw")


def test_fixed_and_foreign_images_are_copied(tmp_path: Path) -> None:
    blocks = {1: {7: b"b" * 512}, 3: {0: b"d" * 512}}
    for i, spec in enumerate(
        [Spec(kind=vhdmake.FIXED, blocks=blocks), Spec(block_size=512 << 10, blocks=blocks), Spec(tail=0, blocks=blocks)]
    ):
        source = vhdmake.make(tmp_path / f"{i}.vhd", spec)
        ok("copy", "-n", source, "-N", tmp_path / f"{i}.new")
        assert disk_of(tmp_path / f"{i}.new") == disk_of(source)


def test_nbd_as_a_source(tmp_path: Path) -> None:
    write_raw(tmp_path / "a.raw", 20 * MIB // 512, {5: 5, 30_000: 6})
    with serve(tmp_path, f"aio:{tmp_path}/a.raw") as server:
        ok("convert", "-n", f"nbd:unix:{server.path}", "-N", f"vhd:{tmp_path}/a.vhd")
        ok("convert", "-n", server.uri, "-N", f"raw:{tmp_path}/b.raw")
    qemu_equal(tmp_path / "a.raw", "raw", tmp_path / "b.raw", "raw")
    qemu_equal(tmp_path / "a.raw", "raw", tmp_path / "a.vhd", "vpc")


def test_relative_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_raw(Path("a.raw"), 4096, {5: 5})
    ok("convert", "-n", "raw:a.raw", "-N", "vhd:a.vhd")
    ok("copy", "-n", "a.vhd", "-N", "b.vhd")
    assert disk_of(tmp_path / "b.vhd") == disk_of(tmp_path / "a.vhd")


def test_nothing_is_replaced_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    source = root(tmp_path / "a.vhd", random.Random(1), raw=False)
    (tmp_path / "there").write_bytes(b"precious")
    assert "exists already" in fails("copy", "-n", source, "-N", tmp_path / "there")
    assert "exists already" in fails("convert", "-n", f"vhd:{source}", "-N", f"raw:{tmp_path}/there")
    assert (tmp_path / "there").read_bytes() == b"precious"
    fails("copy", "-n", tmp_path / "gone", "-N", tmp_path / "new")
    fails("copy", "-n", source, "-N", tmp_path / "no" / "new")
    for spec in ("nbd:unix:/x", "ram:1M", str(tmp_path / "new")):
        fails("convert", "-n", f"vhd:{source}", "-N", spec)
    with (tmp_path / "huge").open("wb") as f:
        f.truncate(2041 << 30)
    message = fails("convert", "-n", f"raw:{tmp_path}/huge", "-N", f"vhd:{tmp_path}/new")
    assert "2040 GiB" in message and f"{tmp_path}/new" in message
    with Disk(f"vhd:{source}"):
        assert "tool-disk" in fails("copy", "-n", source, "-N", tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["a.vhd", "huge", "there"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    write_raw(tmp_path / "a.raw", 64 * MIB // 512, {i: 1 for i in range(0, 64 * MIB // 512, 128)})
    argv = ["prlimit", f"--fsize={32 * MIB}", str(program("vhd-util")), "convert"]
    argv += ["-n", f"raw:{tmp_path}/a.raw", "-N", f"vhd:{tmp_path}/new"]
    result = subprocess.run(argv, env=ENV, capture_output=True, check=False)
    assert result.returncode == 1, result.stderr
    assert b"writing at sector" in result.stderr
    assert os.listdir(tmp_path) == ["a.raw"]


def test_a_file_that_cannot_be_as_large_as_the_disk_grows_by_what_it_needs(tmp_path: Path) -> None:
    write_raw(tmp_path / "a.raw", 2048 * MIB // 512, {7: 1, 300_000: 2})
    argv = ["prlimit", f"--fsize={200 * MIB}", str(program("vhd-util")), "convert"]
    argv += ["-n", f"raw:{tmp_path}/a.raw", "-N", f"vhd:{tmp_path}/new"]
    result = subprocess.run(argv, env=ENV, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    qemu_equal(tmp_path / "a.raw", "raw", tmp_path / "new", "vpc")


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_and_leaves_nothing(tmp_path: Path, sig: signal.Signals) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with (home / "a.raw").open("wb") as f:
        f.write(os.urandom(MIB) * 400)
    process = subprocess.Popen(
        [program("vhd-util"), "convert", "-n", f"raw:{home}/a.raw", "-N", f"vhd:{home}/new", "--progress=1"],
        env=slowed(tmp_path, "write delay=400"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    process.stdout.readline()
    process.send_signal(sig)
    _, message = process.communicate()
    assert process.returncode == 1
    assert b"stopped by a signal" in message and b"/100" in message
    assert os.listdir(home) == ["a.raw"]


def test_progress_is_told_in_lines(tmp_path: Path) -> None:
    source = root(tmp_path / "a.vhd", random.Random(1), raw=False)
    lines = ok("copy", "-n", source, "-N", tmp_path / "b.vhd", "-p", "--progress=1").splitlines()
    numbers = [int(line.removesuffix("/100")) for line in lines]
    assert numbers[-1] == 100 and numbers == sorted(set(numbers))
    for descriptor in ("x", "", "-1", "77", "99999999999999"):
        assert "--progress" in fails("copy", "-n", source, "-N", tmp_path / "c", f"--progress={descriptor}", status=2)
