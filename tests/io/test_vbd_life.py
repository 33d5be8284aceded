# SPDX-License-Identifier: LGPL-2.1-only
"""A disk whose storage is full, away or stuck, as tap-ctl shows and steers it."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.lib.disk import write_raw
from tests.lib.expected import Expected
from tests.lib.faults import Faults
from tests.lib.nbddisk import LOST, NbdDisk
from tests.lib.tapctl import MINOR, Served

SIZE = 2048
UNTIL_TOLD = ("retry_interval=3600",)
"""What waits does not go on by itself while a test lasts."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    write_raw(path, SIZE, {})
    return path


@pytest.fixture
def rules(tmp_path: Path) -> Faults:
    return Faults(tmp_path / "rules")


def shown(served: Served) -> dict[str, object]:
    """What tap-ctl list says of the disk."""
    [row] = json.loads(served.ok("list", "--json"))
    return dict(row)


def wait_until(served: Served, waits_for: str | None) -> None:
    end = time.monotonic() + 20
    while shown(served)["waits_for"] != waits_for:
        assert time.monotonic() < end, served.log()
        time.sleep(0.05)


def test_a_disk_is_shown_while_its_tapdisk_does_not_answer(tmp_path: Path, image: Path) -> None:
    with Served(tmp_path, f"aio:{image}") as served:
        before = shown(served)
        assert before["state"] == 0
        os.kill(served.pid, signal.SIGSTOP)
        try:
            silent = served.list_all("--json")
            text = served.list_all("-t", "aio", "-f", str(image))
        finally:
            os.kill(served.pid, signal.SIGCONT)
        assert json.loads(silent.stdout) == [before | {"state": None, "depth": None}]
        assert text.stdout == f"pid={served.pid} minor={MINOR} args=aio:{image}\n"
        assert f"tapdisk {served.pid}: no answer" in silent.stderr
        assert shown(served) == before


@pytest.mark.parametrize("rule", ["write errno=ENOSPC", "write errno=EDQUOT"])
def test_a_disk_without_space_says_so_and_goes_on_when_told(
    tmp_path: Path, image: Path, rules: Faults, rule: str
) -> None:
    expected = Expected(SIZE, holds_all=True)
    with (
        Served(tmp_path, f"aio:{image}", engine=rules.engine(), settings=UNTIL_TOLD) as served,
        NbdDisk(served.socket) as disk,
    ):
        marker = served.directory / f"nospace.{MINOR}"
        rules.set(rule)
        command = expected.write_command(0, 8)
        [waiting] = disk.start([command])
        wait_until(served, "space")
        assert f"state={0x2000:#x} " in served.ok("list")
        assert marker.read_text() == f"pid={served.pid} minor={MINOR} args=aio:{image}\n"
        assert json.loads(served.ok("stats"))["waiting"] == 1
        expected.run(disk, ["r 100 8"])
        rules.off()
        served.ok("unpause")
        assert disk.wait([waiting]) == ["ok"]
        expected.acknowledged(command)
        wait_until(served, None)
        assert not marker.exists()
        expected.check(disk)
        assert served.log().count("no space left for writes") == 1
        assert "goes on after" in served.log()


def test_a_disk_without_space_may_be_moved(tmp_path: Path, image: Path, rules: Faults) -> None:
    """Paused while a write waits, opened where there is room, and larger: the write is done there."""
    expected = Expected(SIZE, holds_all=True)
    with (
        Served(tmp_path, f"aio:{image}", engine=rules.engine(), settings=UNTIL_TOLD) as served,
        NbdDisk(served.socket) as disk,
    ):
        rules.set("write errno=ENOSPC")
        command = expected.write_command(0, 8)
        [waiting] = disk.start([command])
        wait_until(served, "space")
        served.ok("pause", "-t", 5)
        assert shown(served)["state"] == 0x2020
        rules.off()
        larger = tmp_path / "b.img"
        write_raw(larger, 2 * SIZE, {})
        small = tmp_path / "c.img"
        write_raw(small, SIZE // 2, {})
        message = served.refused("unpause", "-a", f"aio:{small}")
        assert message.startswith(f"aio:{small}: its disk has 524288 bytes, that of minor 3 has 1048576")
        served.ok("unpause", "-a", f"aio:{larger}")
        assert disk.wait([waiting]) == ["ok"]
        expected.acknowledged(command)
        expected.check(disk)
        with NbdDisk(served.socket) as late:
            assert late.batch([f"r {2 * SIZE - 8} 8"]) == ["0 0 0 0 0 0 0 0"]
        assert shown(served)["size"] == 2 * SIZE * 512


def test_settings_of_one_disk_go_before_the_configuration(tmp_path: Path, image: Path, rules: Faults) -> None:
    served = Served(tmp_path, f"aio:{image}", "--no-space=fail", "--retry-errors=none", engine=rules.engine())
    with served, NbdDisk(served.socket) as disk:
        for error, number in (("ENOSPC", 28), ("ETIMEDOUT", 5)):
            rules.set(f"write errno={error}")
            assert disk.batch(["w 0 8 1"]) == [f"err {number}"]
        rules.off()


def test_an_open_that_is_refused_changes_no_setting(tmp_path: Path, image: Path, rules: Faults) -> None:
    with (
        Served(tmp_path, f"aio:{image}", "--retry-errors=none", engine=rules.engine()) as served,
        NbdDisk(served.socket) as disk,
    ):
        assert "already has" in served.refused("open", "-a", f"aio:{image}", "--retry-errors=all")
        rules.set("write errno=ETIMEDOUT")
        assert disk.batch(["w 0 8 1"]) == ["err 5"]


def test_after_its_time_a_request_may_wait_for_unpause(tmp_path: Path, image: Path, rules: Faults) -> None:
    options = ["--retry-for=0", "--retry-then=pause"]
    with (
        Served(tmp_path, f"aio:{image}", *options, engine=rules.engine()) as served,
        NbdDisk(served.socket) as disk,
    ):
        rules.set("write errno=ESTALE")
        waiting = disk.start(["w 0 8 1"])
        wait_until(served, "storage")
        rules.off()
        with pytest.raises(TimeoutError):
            disk.wait(waiting, 2)
        served.ok("unpause")
        assert disk.wait(waiting) == ["ok"]
        assert "wait for `tap-ctl unpause`" in served.log()


def test_a_pause_over_stuck_io_is_called_off(tmp_path: Path, image: Path, rules: Faults) -> None:
    with Served(tmp_path, f"aio:{image}", engine=rules.engine()) as served, NbdDisk(served.socket) as disk:
        rules.set("write from=0 to=4096 stuck")
        stuck = disk.start(["w 0 8 1"])
        begin = time.monotonic()
        message = served.refused("pause", "-t", 1)
        assert time.monotonic() - begin < 40, "the default is 60 s"
        assert message.startswith(f"minor {MINOR}: not done, the disk goes on: 1 requests did not come back from")
        assert shown(served)["state"] == 0
        assert disk.batch(["w 100 8 2", "f"]) == ["ok", "ok"]
        rules.off()
        assert disk.wait(stuck) == ["ok"]
        served.ok("pause", "-t", 5)
        served.ok("unpause")


def test_an_unpause_calls_off_a_pause_whose_caller_is_gone(tmp_path: Path, image: Path, rules: Faults) -> None:
    """As a script that has had enough of it does: the disk must not be paused by and by."""
    with Served(tmp_path, f"aio:{image}", engine=rules.engine()) as served, NbdDisk(served.socket) as disk:
        rules.set("write from=0 to=4096 stuck")
        stuck = disk.start(["w 0 8 1"])
        with served.start("pause", "-t", 50) as pausing:
            while not shown(served)["state"] == 0x10:
                time.sleep(0.05)
            pausing.kill()
        served.ok("unpause")
        assert shown(served)["state"] == 0
        assert disk.batch(["w 100 8 2", "f"]) == ["ok", "ok"]
        rules.off()
        assert disk.wait(stuck) == ["ok"]
        assert disk.batch(["w 200 8 2", "f"]) == ["ok", "ok"]
        assert shown(served)["state"] == 0
        served.ok("pause", "-t", 5)
        served.ok("unpause")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_flush_that_was_lost_is_told_to_who_opens_the_disk_by_hand(
    tmp_path: Path, image: Path, rules: Faults, end: signal.Signals
) -> None:
    with Served(tmp_path, f"aio:{image}", engine=rules.engine()) as served, NbdDisk(served.socket) as disk:
        assert disk.batch(["w 0 8 1"]) == ["ok"]
        rules.set("sync errno=EIO")
        if end == signal.SIGKILL:
            served.refused("pause")
        served.process.send_signal(end)
        served.process.wait(20)
        assert "lost=1\n" in (served.directory / f"disk.{MINOR}").read_text()
    rules.off()
    with Served(tmp_path, f"aio:{image}", engine=rules.engine()) as served, NbdDisk(served.socket) as disk:
        assert disk.batch(["f"]) == ["err 5"]
        assert disk.batch(["f"]) == ["ok"]
        served.ok("close")
        served.ok("open", "-a", f"aio:{image}")
    with Served(tmp_path, f"aio:{image}") as served, NbdDisk(served.socket) as disk:
        assert disk.batch(["f"]) == ["ok"]


@pytest.mark.parametrize("engine", ["uring", "posix"])
def test_sigterm_amid_clients(tmp_path: Path, image: Path, rules: Faults, engine: str) -> None:
    """One of them waits for space, one has only just connected."""
    with Served(tmp_path, f"aio:{image}", engine=rules.engine(engine)) as served, NbdDisk(served.socket) as disk:
        rules.set("write errno=ENOSPC")
        [waiting] = disk.start(["w 0 8 1"])
        wait_until(served, "space")
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(served.socket))
            assert silent.recv(100)
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(20) == 0, served.log()
        assert disk.wait([waiting]) == [LOST]
        assert not list(served.directory.iterdir())


def test_pauses_under_a_load_that_never_stops(tmp_path: Path, image: Path) -> None:
    with Served(tmp_path, f"aio:{image}") as served, NbdDisk(served.socket, 4) as disk:
        for i in range(10):
            pause = served.start("pause", "-t", 10)
            requests = disk.start([f"w {start} 8 {i + 1}" for start in range(0, 512, 8)])
            while pause.poll() is None:
                for at, request in enumerate(requests):
                    if request.look():
                        [requests[at]] = disk.start([f"w {at * 8} 8 {i + 1}"])
            assert pause.communicate()[1] == "" and pause.returncode == 0
            assert shown(served)["state"] == 0x20
            served.ok("unpause")
            assert set(disk.wait(requests)) == {"ok"}


def test_statistics_of_a_tapdisk_that_is_stuck(tmp_path: Path, image: Path) -> None:
    with Served(tmp_path, f"aio:{image}") as served, NbdDisk(served.socket) as disk:
        assert set(disk.batch([f"w {start} 8 1" for start in range(0, 800, 8)])) == {"ok"}
        os.kill(served.pid, signal.SIGSTOP)
        begin = time.monotonic()
        stats = json.loads(served.ok("stats", "--json"))
        assert time.monotonic() - begin < 40, "an answer is waited for for 60 s"
        os.kill(served.pid, signal.SIGCONT)
        write = stats["write"]
        assert (write["requests"], write["bytes"], write["errors"], stats["inflight"]) == (100, 100 * 4096, 0, 0)
        assert sum(count for _, count in write["latency"]) == 100
        assert 0 < write["p50_ns"] <= write["p99_ns"] <= write["max_ns"] <= write["total_ns"]
        assert (stats["path"], stats["chain"], stats["state"]) == (str(image), [str(image)], 0)


def test_what_a_killed_tapdisk_leaves_is_removed(tmp_path: Path, image: Path, rules: Faults) -> None:
    with Served(tmp_path, f"aio:{image}", engine=rules.engine()) as served, NbdDisk(served.socket) as disk:
        rules.set("write errno=ENOSPC")
        disk.start(["w 0 8 1"])
        wait_until(served, "space")
        served.kill()
        early = f"nbd{served.pid}.{MINOR}.{served.pid}"
        (served.directory / early).touch()
        unheard = f"ctl{served.pid}.{served.pid}"
        (served.directory / unheard).touch()
        left = {f"stats{served.pid}.{MINOR}", f"nospace.{MINOR}", f"nbd{served.pid}.{MINOR}", early, unheard}
        assert left <= {entry.name for entry in served.directory.iterdir()}
        # io_uring holds the control socket a moment longer than the process lives.
        end = time.monotonic() + 20
        while "is not running" not in (text := served.refused("stats")):
            assert "no answer" in text
            assert time.monotonic() < end
        served.clean()
        assert not left & {entry.name for entry in served.directory.iterdir()}


def test_a_client_that_was_idle_is_no_hindrance_to_detaching(tmp_path: Path, image: Path) -> None:
    """That it has gone is the first that is heard from it for 2 s, after the socket was closed."""
    with Served(tmp_path, f"aio:{image}") as served, NbdDisk(served.socket) as disk:
        assert disk.batch(["r 0 1"]) == ["0"]
        time.sleep(2.5)
        served.ok("close", "-f")
        served.ok("detach")
        assert served.process.wait(timeout=60) == 0, served.log()


def test_a_tapdisk_answers_as_soon_as_its_control_socket_is_there(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_LATE", "200000")
    with Served(tmp_path, f"aio:{image}"):
        pass
