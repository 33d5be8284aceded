# SPDX-License-Identifier: LGPL-2.1-only
"""tap-ctl snapshot of several disks: they have it of one moment, or none has it, whoever is killed in between."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.lib import vhdutil
from tests.lib.disk import Disk
from tests.lib.nbddisk import NbdDisk
from tests.lib.tapctl import MINOR, Served

MIB = 12


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[list[Served]]:
    """Three tapdisks with a VHD each, in one control directory."""
    served = []
    for name in "abc":
        (tmp_path / name).mkdir()
        vhdutil.ok("create", "-n", tmp_path / name / "disk.vhd", "-s", MIB)
        served.append(
            Served(tmp_path / name, f"vhd:{leaf(tmp_path, name)}", env={"XENBLK_CONTROL_DIR": str(tmp_path / "ctl")})
        )
    yield served
    for disk in served:
        disk.__exit__(None, None, None)


def leaf(directory: Path, name: str) -> Path:
    return directory / name / "disk.vhd"


def names(directory: Path) -> list[str]:
    """The images of each disk."""
    return [" ".join(sorted(path.name for path in (directory / name).glob("*.vhd"))) for name in "abc"]


def also(disks: list[Served], parent: str = "base.vhd") -> list[str]:
    """The options that name all disks but the first."""
    return [f"--also={disk.pid}:{MINOR}:{parent}" for disk in disks[1:]]


ALL = ["base.vhd disk.vhd"] * 3
NONE = ["disk.vhd"] * 3


def write(disk: NbdDisk, sector: int, seed: int) -> None:
    assert disk.batch([f"w {sector} 1 {seed}"]) == ["ok"]


def read(disk: NbdDisk | Disk, sector: int) -> int:
    return int(disk.batch([f"r {sector} 1"])[0])


@pytest.fixture
def written(disks: list[Served]) -> None:
    """A sector of each disk has been written."""
    for number, served in enumerate(disks):
        with NbdDisk(served.socket) as disk:
            write(disk, 0, number + 1)


def test_all_disks_have_what_was_there_at_one_moment(tmp_path: Path, disks: list[Served]) -> None:
    stop = threading.Event()
    last = 0

    def write_in_turn() -> None:
        """Each number goes to the first disk, then to the second, then to the third: none is ever behind the next."""
        nonlocal last
        while not stop.is_set():
            last += 1
            for one in opened:
                write(one, 0, last)

    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(NbdDisk(disk.socket)) for disk in disks]
        writer = threading.Thread(target=write_in_turn)
        writer.start()
        try:
            for i in range(8):
                before = last
                output = disks[0].ok("snapshot", "-n", f"base{i}.vhd", *also(disks, f"base{i}.vhd"))
                assert int(output.removeprefix("stall_us=")) > 0
                while last < before + 3:
                    time.sleep(0.01)
        finally:
            stop.set()
            writer.join()
    seen = []
    for i in range(8):
        found = []
        for name in "abc":
            with Disk(f"vhd:{tmp_path}/{name}/base{i}.vhd", readonly=True) as base:
                found.append(read(base, 0))
        assert found == sorted(found, reverse=True) and found[0] - found[2] <= 1, found
        seen.append(found[0])
    assert seen == sorted(set(seen)) and seen[-1] <= last
    assert os.listdir(tmp_path / "ctl") and not list((tmp_path / "ctl").glob("snapshot.*"))


@pytest.mark.parametrize("obstacle", ["a name that is taken", "a disk that is paused", "a disk that is not there"])
def test_if_one_can_not_have_it_none_has_it(tmp_path: Path, disks: list[Served], obstacle: str) -> None:
    options = also(disks)
    if obstacle == "a name that is taken":
        (tmp_path / "c" / "base.vhd").write_text("mine")
    elif obstacle == "a disk that is paused":
        disks[2].ok("pause")
    else:
        options[1] = options[1].replace(f":{MINOR}:", f":{MINOR + 1}:")
    before = names(tmp_path)
    message = disks[0].refused("snapshot", "-n", "base.vhd", *options)
    assert {
        "a name that is taken": "c/base.vhd: File exists; give the parent another name",
        "a disk that is paused": "is paused; unpause it first",
        "a disk that is not there": "is not attached to tapdisk",
    }[obstacle] in message
    assert names(tmp_path) == before
    assert [path.name for path in tmp_path.rglob(".xenblk-*")] == []
    with NbdDisk(disks[0].socket) as disk:
        write(disk, 0, 9)
    if obstacle == "a disk that is paused":
        disks[2].ok("unpause")


def test_a_wrong_disk_is_a_clear_error(tmp_path: Path, disks: list[Served]) -> None:
    for text in ("", "1", f"{disks[1].pid}:{MINOR}", f"{disks[1].pid}:{MINOR}:", "0:0:x", "a:b:c"):
        message = disks[0].refused("snapshot", "-n", "base.vhd", f"--also={text}")
        assert message == f"--also={text}: must be PID:MINOR:PARENT"
    assert names(tmp_path) == NONE


class Between:
    """Stands between tap-ctl and the tapdisks, and kills tap-ctl or calls `at` at one message."""

    def __init__(self, directory: Path, disks: list[Served], at: Callable[[int, str, str], bool]) -> None:
        """at(number of the disk, operation, "before" or "after" the tapdisk does it): true kills tap-ctl."""
        self.directory = directory / "between"
        self.directory.mkdir()
        self._at = at
        self._killed = threading.Event()
        self._acceptors: list[threading.Thread] = []
        self._relays: list[threading.Thread] = []
        self._listeners = [self._listen(number, disk) for number, disk in enumerate(disks)]
        environment = {**os.environ, "XENBLK_CONTROL_DIR": str(self.directory)}
        command = disks[0].command("snapshot", "-n", "base.vhd", *also(disks))
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def _listen(self, number: int, disk: Served) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(self.directory / f"ctl{disk.pid}"))
        listener.listen()
        thread = threading.Thread(target=self._accept, args=(number, disk, listener), daemon=True)
        self._acceptors.append(thread)
        thread.start()
        return listener

    def _accept(self, number: int, disk: Served, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                thread = threading.Thread(target=self._relay, args=(number, disk, client))
                self._relays.append(thread)
                thread.start()

    def _relay(self, number: int, disk: Served, client: socket.socket) -> None:
        tapdisk = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        tapdisk.connect(str(disk.socket.parent / f"ctl{disk.pid}"))
        with client, tapdisk:
            with contextlib.suppress(OSError):
                while (message := client.recv(65536)) and not self._killed.is_set():
                    op = json.loads(message)["op"]
                    self._cut(number, op, "before")
                    if self._killed.is_set():
                        break
                    tapdisk.send(message)
                    answer = tapdisk.recv(65536)
                    self._cut(number, op, "after")
                    if disk.process.poll() is not None:
                        break  # killed before it could answer
                    client.send(answer)
            # what tapdisk does when it is left alone is done when it closes its end
            with contextlib.suppress(OSError):
                tapdisk.shutdown(socket.SHUT_WR)
                while tapdisk.recv(65536):
                    pass

    def _cut(self, number: int, op: str, when: str) -> None:
        if self._at(number, op, when):
            self._killed.set()
            self.process.kill()

    def wait(self) -> str:
        """What tap-ctl said, once nobody has a connection any more."""
        message = self.process.communicate(timeout=60)[1]
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for thread in self._acceptors:  # who add relays
            thread.join(60)
        for thread in self._relays:
            thread.join(60)
        return message


def check_running(directory: Path, disks: list[Served], alive: Iterable[int] = (0, 1, 2)) -> None:
    """Each disk goes on, with what was written before, and its chain is what is on the file system."""
    for number in alive:
        with NbdDisk(disks[number].socket) as disk:
            assert read(disk, 0) == number + 1
            write(disk, 8, 77)
            assert read(disk, 8) == 77
        depth = len(names(directory)[number].split())
        assert disks[number].ok("list", "--json").count(f'"depth": {depth}') == 1


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("op", ["snapshot", "hold", "switch", "take"])
def test_a_maker_that_is_killed_leaves_all_or_none(
    tmp_path: Path, disks: list[Served], op: str, number: int, when: str
) -> None:
    between = Between(tmp_path, disks, lambda *now: now == (number, op, when))
    between.wait()
    assert between.process.returncode == -signal.SIGKILL
    # A tapdisk that has not been asked for anything removes nothing: its leaf has a second name.
    left = [path.parent for path in tmp_path.rglob(".xenblk-*")]
    assert not left or op == "snapshot"
    assert left or (op, when) != ("snapshot", "before")
    for directory in left:
        assert (directory / "base.vhd").samefile(directory / "disk.vhd")
    if not left:
        assert names(tmp_path) == (ALL if op == "take" else NONE)
    # which is no hindrance to the same once more
    if op != "take":
        disks[0].ok("snapshot", "-n", "base.vhd", *also(disks))
    assert names(tmp_path) == ALL and not list(tmp_path.rglob(".xenblk-*"))
    check_running(tmp_path, disks)


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("op", ["snapshot", "hold", "switch"])
def test_a_tapdisk_that_is_killed_leaves_the_others_as_they_were(
    tmp_path: Path, disks: list[Served], op: str
) -> None:
    def kill_second(number: int, now: str, when: str) -> bool:
        if (number, now, when) == (1, op, "before"):
            disks[1].kill()
        return False

    assert f"tapdisk {disks[1].pid}: no answer" in Between(tmp_path, disks, kill_second).wait()
    assert names(tmp_path) == NONE
    check_running(tmp_path, disks, alive=(0, 2))
    with Disk(f"vhd:{leaf(tmp_path, 'b')}") as disk:
        assert read(disk, 0) == 2


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize(
    ("op", "when", "left", "says"),
    [
        ("switch", "after", ["disk.vhd", "base.vhd disk.vhd", "disk.vhd"], "and others have none: "),
        ("take", "before", ALL, "tap-ctl: the snapshots are made: "),
    ],
)
def test_what_a_tapdisk_had_done_when_it_was_killed_is_said(
    tmp_path: Path, disks: list[Served], op: str, when: str, left: list[str], says: str
) -> None:
    def kill_second(*now: object) -> bool:
        if now == (1, op, when):
            disks[1].kill()
        return False

    message = Between(tmp_path, disks, kill_second).wait()
    assert says in message and f"tapdisk {disks[1].pid}: no answer" in message
    if op == "switch":
        parent = tmp_path / "b" / "base.vhd"
        assert message.startswith(f"tap-ctl: {leaf(tmp_path, 'b')} has its snapshot, {parent}, and others")
    assert names(tmp_path) == left
    check_running(tmp_path, disks, alive=(0, 2))
    with Disk(f"vhd:{leaf(tmp_path, 'b')}") as disk:
        assert read(disk, 0) == 2


@pytest.mark.usefixtures("written")
def test_a_maker_that_hangs_is_not_waited_for(tmp_path: Path, disks: list[Served]) -> None:
    def hang(number: int, op: str, when: str) -> bool:
        if (number, op, when) == (1, "switch", "after"):
            time.sleep(12)
        return False

    message = Between(tmp_path, disks, hang).wait()
    assert message == "tap-ctl: a disk waited for too long; no snapshot was made\n"
    assert names(tmp_path) == NONE
    check_running(tmp_path, disks)
