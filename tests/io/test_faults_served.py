# SPDX-License-Identifier: LGPL-2.1-only
"""Faults under a whole tapdisk that serves by NBD: what its clients see, and what it costs them."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.io.test_faults import ENGINES, KINDS, RANDOM, SIZE, Image, settle
from tests.lib.disk import write_raw
from tests.lib.expected import Expected, random_batch
from tests.lib.faults import Faults
from tests.lib.nbddisk import LOST, NbdDisk, Tapdisk
from tests.lib.waiting import after_a_kill

FAIL = ["retry_errors=none", "no_space=fail"]


@contextmanager
def raw(directory: Path, *settings: str) -> Iterator[tuple[NbdDisk, Expected, Faults]]:
    """A raw image, served with these settings."""
    path = directory / "a.img"
    write_raw(path, SIZE, dict.fromkeys(range(100), 5))
    rules = Faults(directory / "rules")
    expected = Expected(SIZE, dict.fromkeys(range(100), 5), holds_all=True)
    with (
        Tapdisk(directory, f"aio:{path}", engine=rules.engine(), settings=settings) as tapdisk,
        NbdDisk(tapdisk.socket) as disk,
    ):
        yield disk, expected, rules
        rules.off()
        expected.check(disk)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_clients_amid_random_faults(tmp_path: Path, kind: str, engine: str) -> None:
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    chance = random.Random(seed)
    image = Image(tmp_path, kind)
    rules = Faults(tmp_path / "rules")
    rules.set(*RANDOM["all"](seed))
    spec = f"{'aio' if kind == 'raw' else 'vhd'}:{image.leaf}"
    with Tapdisk(tmp_path, spec, engine=rules.engine(engine), settings=FAIL) as tapdisk:
        with NbdDisk(tapdisk.socket, 3) as disk:
            for _ in range(20):
                image.expected.run(disk, random_batch(image.expected, chance, 24), faults=True)
            hits = settle(image.expected, disk, rules, errors=True)
        assert len(hits) > 10
    image.check()


@pytest.mark.parametrize("engine", ENGINES)
def test_neighbours_that_went_to_the_kernel_as_one_have_verdicts_of_their_own(tmp_path: Path, engine: str) -> None:
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    chance = random.Random(seed)
    image = Image(tmp_path, "raw")
    rules = Faults(tmp_path / "rules")
    rules.set(
        f"read+write chance=15 seed={seed} errno=EIO short=7168",
        f"read+write chance=40 seed={seed + 1} short=5120",
        f"read+write chance=5 seed={seed + 2} errno=EIO",
    )
    with Tapdisk(tmp_path, f"aio:{image.leaf}", engine=rules.engine(engine), settings=FAIL) as tapdisk:
        with NbdDisk(tapdisk.socket, 1) as disk:
            for _ in range(30):
                first = chance.randrange(0, SIZE - 256, 8)
                places = range(first, first + 256, 8)
                writes = [image.expected.write_command(start, 8) for start in places]
                image.expected.run(disk, writes[chance.randrange(16) :], faults=True)
                image.expected.run(disk, [f"r {start} 8" for start in places], faults=True)
            rules.off()
            image.expected.check(disk)
        sizes = [int(hit.split()[2]) for hit in rules.take_hits()]
        assert max(sizes) > 4096, "nothing was merged"
    image.check()


def test_a_stuck_request_stalls_no_other(tmp_path: Path) -> None:
    with raw(tmp_path) as (disk, expected, rules):
        rules.set("write from=1048576 to=1052672 stuck")
        command = expected.write_command(2048, 8)
        [stuck] = disk.start([command])
        begin = time.monotonic()
        for start in range(3000, 3400, 8):
            expected.run(disk, [expected.write_command(start, 8), "r 0 100"])
        assert time.monotonic() - begin < 20
        assert not stuck.look()
        rules.off()
        assert disk.wait([stuck]) == ["ok"]
        expected.acknowledged(command)


@contextmanager
def lifted_after(rules: Faults, seconds: float) -> Iterator[None]:
    """The rules end while what is inside goes on."""
    timer = threading.Timer(seconds, rules.off)
    timer.start()
    yield
    timer.join()


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("any errno=ETIMEDOUT", []),
        ("any errno=ESTALE", []),
        ("read+write errno=EIO", ["retry_errors=all"]),
        ("write errno=ENOSPC", []),
        ("write errno=EDQUOT", []),
    ],
)
def test_an_outage_costs_the_client_time_and_no_error(tmp_path: Path, rule: str, settings: list[str]) -> None:
    """2 s here for minutes: how long it may be is a setting."""
    with raw(tmp_path, *settings, "retry_interval=1") as (disk, expected, rules):
        rules.set(rule)
        begin = time.monotonic()
        with lifted_after(rules, 2):
            expected.run(disk, [expected.write_command(start, 16) for start in range(1000, 2000, 16)] + ["r 0 100"])
            expected.run(disk, ["f"])
        assert time.monotonic() - begin >= 2
        expected.run(disk, [expected.write_command(0, 8)])


def test_reads_go_on_while_writes_lack_space(tmp_path: Path) -> None:
    with raw(tmp_path) as (disk, expected, rules):
        rules.set("write errno=ENOSPC")
        commands = [expected.write_command(start, 8) for start in range(0, 800, 8)]
        waiting = disk.start(commands)
        for _ in range(10):
            expected.run(disk, ["r 2000 64"])
        assert not any(request.look() for request in waiting)
        rules.off()
        assert set(disk.wait(waiting)) == {"ok"}
        for command in commands:
            expected.acknowledged(command)


@pytest.mark.parametrize("size", [8, 512])
def test_what_a_client_left_waiting_does_not_land_on_what_its_successor_writes(tmp_path: Path, size: int) -> None:
    """`size`: sectors of each of its writes; the larger ones fill the memory that a client has."""
    path = tmp_path / "a.img"
    write_raw(path, SIZE, {})
    rules = Faults(tmp_path / "rules")
    expected = Expected(SIZE, {}, holds_all=True)
    settings = ["retry_interval=1"]
    places = range(0, 12 * size, size)
    with Tapdisk(tmp_path, f"aio:{path}", engine=rules.engine(), settings=settings) as tapdisk:
        rules.set("write errno=ETIMEDOUT")
        with NbdDisk(tapdisk.socket, 1) as disk:
            waiting = disk.start([f"w {start} {size} 77" for start in places])
            with pytest.raises(TimeoutError):
                disk.wait(waiting, 0.5)
            disk.vanish()
        with NbdDisk(tapdisk.socket, 1) as disk:
            rules.off()
            expected.run(disk, [expected.write_command(start, size) for start in places])
            time.sleep(1.5)
            expected.check(disk)


@pytest.mark.parametrize("size", [8, 512])
def test_sigterm_ends_a_server_whose_writes_wait(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.img"
    write_raw(path, SIZE, {})
    rules = Faults(tmp_path / "rules")
    with Tapdisk(tmp_path, f"aio:{path}", engine=rules.engine()) as tapdisk:
        rules.set("write errno=ENOSPC")
        with NbdDisk(tapdisk.socket, 1) as disk:
            waiting = disk.start([f"w {start} {size} 77" for start in range(0, 12 * size, size)])
            with pytest.raises(TimeoutError):
                disk.wait(waiting, 0.5)
            begin = time.monotonic()
            tapdisk.stop()
            assert time.monotonic() - begin < 40
            assert set(disk.wait(waiting)) == {LOST}
    assert not tapdisk.socket.exists()


@pytest.mark.parametrize(
    ("rule", "settings", "number"),
    [
        ("any errno=EIO", [], 5),
        ("any errno=ETIMEDOUT", ["retry_interval=1", "retry_for=1"], 5),
        ("write errno=ENOSPC", ["no_space=fail"], 28),
    ],
)
def test_an_outage_beyond_what_is_allowed_is_an_error(
    tmp_path: Path, rule: str, settings: list[str], number: int
) -> None:
    with raw(tmp_path, *settings) as (disk, expected, rules):
        rules.set(rule)
        commands = [expected.write_command(start, 16) for start in range(1000, 1100, 16)]
        assert set(expected.run(disk, commands, faults=True)) == {f"err {number}"}
        rules.off()
        expected.run(disk, commands)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_acknowledged_survives_a_killed_tapdisk(tmp_path: Path, kind: str, engine: str) -> None:
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    chance = random.Random(seed)
    image = Image(tmp_path, kind)
    spec = f"{'aio' if kind == 'raw' else 'vhd'}:{image.leaf}"
    for _ in range(4):
        with after_a_kill(lambda: Tapdisk(tmp_path, spec, engine=engine)) as tapdisk, NbdDisk(tapdisk.socket) as disk:
            image.expected.check(disk)
            killer = threading.Timer(chance.uniform(0.01, 0.3), tapdisk.kill)
            killer.start()
            while tapdisk.process.returncode is None:
                image.expected.run(disk, random_batch(image.expected, chance, 24), faults=True)
            killer.join()
    with after_a_kill(lambda: Tapdisk(tmp_path, spec, engine=engine)) as tapdisk, NbdDisk(tapdisk.socket) as disk:
        image.expected.check(disk)
    image.check(surplus=True)
