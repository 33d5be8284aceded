# SPDX-License-Identifier: LGPL-2.1-only
"""tap-ctl upgrade, without the driver: one tapdisk in the place of another, or the old one goes on."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.io.test_restart import Guarded, nbd_write, note, wait_for
from tests.lib.faults import Faults
from tests.lib.guestbytes import SECTOR
from tests.lib.nbdguest import Guest
from tests.lib.programs import program
from tests.lib.tapctl import MINOR, Served


@pytest.fixture(params=["yes", "no"])
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Guarded]:
    """A VHD with something in it, served with a guardian and without: a new program's guardian starts no third one."""
    leaf = tmp_path / "a.vhd"
    subprocess.run([program("vhd-util"), "create", "-n", leaf, "-s", "16"], check=True)
    disk = Guarded(tmp_path, f"vhd:{leaf}", "--retry-for=7", settings=(f"restart={request.param}",))
    nbd_write(disk, disk.pid, "write -P 7 0 64k")
    yield disk
    disk.kill_all()


def upgrade(served: Served, *args: str, tapdisk: str | None = None) -> "subprocess.CompletedProcess[str]":
    env = served._env | {"TAPDISK": tapdisk or str(program("tests/tool-vbd"))}
    command = [str(program("tap-ctl")), "upgrade", *(args or ("-m", str(MINOR)))]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_another_process_has_the_disk_afterwards(served: Guarded) -> None:
    done = upgrade(served)
    found = re.fullmatch(rf"pid=(\d+) was={served.pid} disks=1 stall=\d+\.\d ms\n", done.stdout)
    assert found and done.stderr == "" and done.returncode == 0, done
    assert served.process.wait(60) == 0
    nbd_write(served, int(found[1]), "read -P 7 0 64k")
    # again, by the first one's name, and all there are
    assert upgrade(served, "-p", str(served.pid)).returncode == 0
    assert upgrade(served, "--all").stdout.count("pid=") == 1
    nbd_write(served, int(served.rows()[0]["pid"]), "read -P 7 0 64k")
    served.finish()


def test_what_is_paused_stays_paused(served: Guarded) -> None:
    served.ok("pause")
    assert upgrade(served).returncode == 0
    assert served.rows()[0]["state"] == 0x20
    served.ok("unpause")
    served.finish()


def test_a_program_that_does_not_start_changes_nothing(served: Guarded) -> None:
    done = upgrade(served, tapdisk="/bin/false")
    assert done.returncode == 1 and f"tapdisk {served.pid} goes on: tapdisk: cannot start" in done.stderr
    nbd_write(served, served.pid, "read -P 7 0 64k")
    served.finish()


def new_program(directory: Path, line: str) -> str:
    """A tapdisk of another release: this one, after a line of shell."""
    script = directory / "new tapdisk"
    script.write_text(f"#!/bin/sh\n{line}\nexec {program('tests/tool-vbd')} \"$@\"\n")
    script.chmod(0o755)
    return str(script)


def test_one_that_cannot_open_the_image_gives_it_back(served: Guarded, tmp_path: Path) -> None:
    done = upgrade(served, tapdisk=new_program(tmp_path, "export NO_DEVICE=1"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"tap-ctl: tapdisk {served.pid} goes on: ") and done.stdout == ""
    assert served.rows()[0]["pid"] == served.pid and served.rows()[0]["state"] == 0
    nbd_write(served, served.pid, "read -P 7 0 64k")
    served.finish()


def test_one_that_dies_while_it_takes_over_leaves_the_old_one(served: Guarded, tmp_path: Path) -> None:
    done = upgrade(served, tapdisk=new_program(tmp_path, "export DIE_AT_START=1"))
    assert done.returncode == 1 and f"tapdisk {served.pid} goes on: " in done.stderr
    nbd_write(served, served.pid, "read -P 7 0 64k")
    served.finish()


def test_of_all_one_that_can_not_be_asked_is_told(served: Guarded) -> None:
    """The others are upgraded, and the status says that not all were."""
    with subprocess.Popen(["sleep", "100"]) as other, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        name = served.directory / f"ctl{other.pid}"
        listener.bind(str(name))
        listener.listen()

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        done = upgrade(served, "--all")
        assert done.returncode == 1 and done.stdout.count("pid=") == 1 and str(other.pid) in done.stderr, done
        done = upgrade(served, "-m", "77")
        assert f"minor 77: tapdisk {other.pid} may have it, and does not answer" in done.stderr, done
        listener.shutdown(socket.SHUT_RDWR)
        other.kill()
        name.unlink()
    served.finish()


def test_no_third_one_comes_for_a_new_one_that_dies(served: Guarded) -> None:
    """Not while the old one is there, which takes back what it had: its own guardian and the new one's would be at odds."""
    env = served._env | {"DIE_AT_START": "1"}
    with subprocess.Popen([program("tests/tool-vbd")], env=env) as new:
        name = served.directory / f"ctl{new.pid}"
        wait_for(name.exists, "the new one's socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as old:
            old.connect(str(served.directory / f"ctl{served.pid}"))
            assert b"true" in ask(old, f'{{"op": "yield", "heir": {new.pid}}}')
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client, contextlib.suppress(ConnectionError):
                client.connect(str(name))
                assert ask(client, f'{{"op": "succeed", "heir": {served.pid}}}') == b""
            assert new.wait() == -signal.SIGABRT
            time.sleep(2)
            assert note(served)["pid"] == str(new.pid)
    wait_for(lambda: [row for row in served.rows() if (row["pid"], row["state"]) == (served.pid, 0)], "the disk is back")
    nbd_write(served, served.pid, "read -P 7 0 64k")
    served.finish()


def test_an_upgrade_that_is_killed_leaves_no_tapdisk_without_disks(served: Guarded, tmp_path: Path) -> None:
    def there() -> set[str]:
        return {path.name for path in served.directory.glob("ctl*") if path.is_socket()}

    command = [str(program("tap-ctl")), "upgrade", "-m", str(MINOR)]
    # the old one stops before it is asked to let go
    env = served._env | {"TAPDISK": new_program(tmp_path, f"kill -STOP {served.pid}")}
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as upgrading:
        wait_for(lambda: len(there()) == 2, "the new one's socket")
        time.sleep(0.2)
        upgrading.kill()
    wait_for(lambda: there() == {f"ctl{served.pid}"}, "the new one has ended")
    os.kill(served.pid, signal.SIGCONT)
    wait_for(lambda: [row for row in served.rows() if (row["pid"], row["state"]) == (served.pid, 0)], "the disk goes on")
    nbd_write(served, served.pid, "read -P 7 0 64k")
    served.finish()


def test_a_disk_that_does_not_drain_goes_on(served: Guarded, tmp_path: Path) -> None:
    served.finish()
    rules = Faults(tmp_path / "rules")
    with Guarded(tmp_path, f"vhd:{tmp_path}/a.vhd", engine=rules.engine()) as disk:
        reader = disk.stuck_read(rules)
        done = upgrade(disk, "-m", str(MINOR), "-t", "1")
        assert done.returncode == 1 and f"tapdisk {disk.pid} goes on: " in done.stderr
        rules.off()
        assert "requests wait for" not in disk.log(), "none was paused"
        assert "read 65536/65536" in reader.communicate(timeout=30)[0]


def ask(client: socket.socket, text: str) -> bytes:
    client.send(text.encode())
    return client.recv(65536)


def test_the_old_one_takes_back_what_nobody_came_for(served: Guarded) -> None:
    """tap-ctl may be killed at any moment of it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(served.directory / f"ctl{served.pid}"))
        assert b"true" in ask(client, f'{{"op": "yield", "heir": {2**22}}}')
        assert served.rows() == []
    wait_for(lambda: [row for row in served.rows() if row["state"] == 0], "the disk is back")
    nbd_write(served, served.pid, "read -P 7 0 64k")
    served.finish()


def test_clients_are_hung_up_on(served: Guarded) -> None:
    """The old one, which may take its disks back, has nothing more of them."""
    with socket.socket(socket.AF_UNIX) as idle, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        idle.settimeout(30)
        idle.connect(str(served.socket))
        assert idle.recv(18)  # and says no more
        client.connect(str(served.directory / f"ctl{served.pid}"))
        assert b"true" in ask(client, f'{{"op": "yield", "heir": {2**22}}}')
        assert idle.recv(18) == b""
    wait_for(lambda: [row for row in served.rows() if row["state"] == 0], "the disk is back")
    nbd_write(served, served.pid, "read -P 7 0 64k")
    served.finish()


def spawn(served: Guarded) -> int:
    """The pid of a new tapdisk without disks."""
    env = served._env | {"TAPDISK": str(program("tests/tool-vbd"))}
    return int(subprocess.run([program("tap-ctl"), "spawn"], env=env, capture_output=True, text=True, check=True).stdout)


def test_the_old_one_does_not_take_back_what_the_new_one_has(served: Guarded) -> None:
    """As when tap-ctl is killed right before it says so."""
    new = spawn(served)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(served.directory / f"ctl{served.pid}"))
        assert b"true" in ask(client, f'{{"op": "yield", "heir": {new}}}')
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            other.connect(str(served.directory / f"ctl{new}"))
            assert b"true" in ask(other, f'{{"op": "succeed", "heir": {served.pid}}}')
    nbd_write(served, new, "read -P 7 0 64k")
    time.sleep(1.5)
    assert [row["pid"] for row in served.rows()] == [new]
    served.finish()


def test_one_that_finds_no_disks_where_it_is_sent_says_so(served: Guarded) -> None:
    """Another upgrade was faster; tap-ctl would have the old one end, and nobody would serve the disks."""
    new = spawn(served)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            other.connect(str(served.directory / f"ctl{new}"))
            answer = ask(other, f'{{"op": "succeed", "heir": {2**22}}}')
        assert b"false" in answer and f"tapdisk {2**22} has left no disks".encode() in answer
    finally:
        os.kill(new, signal.SIGKILL)
    served.finish()


def test_of_two_upgrades_at_once_one_has_the_disk(served: Guarded) -> None:
    env = served._env | {"TAPDISK": str(program("tests/tool-vbd"))}
    command = [str(program("tap-ctl")), "upgrade", "-m", str(MINOR)]
    for _ in range(4):
        both = [subprocess.Popen(command, env=env, stdout=-1, stderr=-1, text=True) for _ in range(2)]
        said = [upgrading.communicate(timeout=120) for upgrading in both]
        assert 0 in [upgrading.returncode for upgrading in both], said
        wait_for(lambda: [row for row in served.rows() if row["state"] == 0], "the disk is served")
        assert len(served.rows()) == 1
        nbd_write(served, int(served.rows()[0]["pid"]), "read -P 7 0 64k")
    served.finish()


def test_of_two_upgrades_that_fail_neither_ends_the_old_one(served: Guarded, tmp_path: Path) -> None:
    """The second finds no disks while the first one's new tapdisk has them for a moment."""
    env = served._env | {"TAPDISK": new_program(tmp_path, "export NO_DEVICE=1")}
    command = [str(program("tap-ctl")), "upgrade", "-p", str(served.pid)]
    for _ in range(6):
        both = [subprocess.Popen(command, env=env, stdout=-1, stderr=-1, text=True) for _ in range(2)]
        said = [upgrading.communicate(timeout=120) for upgrading in both]
        wait_for(lambda: [row for row in served.rows() if row["state"] == 0], f"the disk is served: {said}")
        assert [row["pid"] for row in served.rows()] == [served.pid], said
    nbd_write(served, served.pid, "read -P 7 0 64k")
    served.finish()


def test_what_is_left_is_left_by_one_and_nothing_new_begins_there(served: Guarded) -> None:
    """It would keep the old one, and with it what the kernel keeps for it."""
    new = spawn(served)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as second,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other,
    ):
        client.connect(str(served.directory / f"ctl{served.pid}"))
        second.connect(str(served.directory / f"ctl{served.pid}"))
        other.connect(str(served.directory / f"ctl{new}"))
        assert b"true" in ask(client, f'{{"op": "yield", "heir": {new}}}')
        assert b"an upgrade is under way" in ask(second, '{"op": "attach", "minor": 9}')
        assert b"left already" in ask(second, f'{{"op": "yield", "heir": {2**22}}}')
        assert b"true" in ask(other, f'{{"op": "succeed", "heir": {served.pid}}}')
        assert b"true" in ask(client, '{"op": "leave"}')
    assert served.process.wait(60) == 0
    nbd_write(served, new, "read -P 7 0 64k")
    served.finish()


def test_a_disk_without_an_image_is_not_lost(served: Guarded) -> None:
    served.ok("close")
    done = upgrade(served, "-p", str(served.pid))
    assert done.returncode == 1
    assert f"tapdisk {served.pid} goes on: minor {MINOR}: is attached without an image; open or detach it" in done.stderr
    served.ok("open", "-a", f"vhd:{served.directory.parent}/a.vhd")
    nbd_write(served, served.pid, "read -P 7 0 64k")
    served.finish()


@pytest.mark.parametrize("moment", [0.05, 0.2, 0.3, 0.34, 0.38])
def test_a_disk_is_destroyed_while_its_tapdisk_is_upgraded(tmp_path: Path, moment: float) -> None:
    """It is found at the old one, that has it no more when it is to be closed, and then at the new one, by the same name."""
    subprocess.run([program("vhd-util"), "create", "-n", tmp_path / "a.vhd", "-s", "16"], check=True)
    rules = Faults(tmp_path / "rules")
    with Guarded(tmp_path, f"vhd:{tmp_path}/a.vhd", engine=rules.engine()) as disk:
        nbd_write(disk, disk.pid, "write -P 7 0 64k")
        reader = disk.stuck_read(rules)
        env = disk._env | {"TAPDISK": new_program(tmp_path, "sleep 0.2")}
        command = [str(program("tap-ctl")), "upgrade", "-m", str(MINOR), "-t", "50"]
        with subprocess.Popen(command, env=env, stdout=-1, stderr=-1) as upgrading:
            wait_for(lambda: disk.rows()[0]["state"] & 0x30, "the disk is being paused")
            with disk.start("destroy") as destroying:
                time.sleep(moment)
                rules.off()
                said = destroying.communicate(timeout=100)
                assert destroying.returncode == 0, said
            upgrading.communicate(timeout=100)
        reader.communicate(timeout=60)
        wait_for(lambda: disk.rows() == [], "no tapdisk has it")
        assert not (disk.directory / f"disk.{MINOR}").exists()


def test_one_that_is_told_to_leave_by_a_tool_that_is_gone_leaves(served: Guarded) -> None:
    new = spawn(served)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(served.directory / f"ctl{served.pid}"))
        assert b"true" in ask(client, f'{{"op": "yield", "heir": {new}}}')
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            other.connect(str(served.directory / f"ctl{new}"))
            assert b"true" in ask(other, f'{{"op": "succeed", "heir": {served.pid}}}')
        os.kill(served.pid, signal.SIGSTOP)
        client.send(b'{"op": "leave"}')
    os.kill(served.pid, signal.SIGCONT)
    assert served.process.wait(60) == 0
    nbd_write(served, new, "read -P 7 0 64k")
    served.finish()


def test_what_is_kept_while_it_is_left_is_not_paused_for_the_next_one(
    two: tuple[Guarded, Faults, Callable[..., "subprocess.CompletedProcess[str]"]], tmp_path: Path
) -> None:
    """Who had it made says so while its tapdisk already has closed the image, and still waits for the other disk."""
    disk, rules, _ = two
    with disk.owned(tmp_path / "a.vhd"):
        env = disk._env | {"TAPDISK": str(program("tests/tool-vbd"))}
        command = [str(program("tap-ctl")), "upgrade", "-m", str(MINOR), "-t", "50"]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as upgrading:
            wait_for(lambda: disk.rows()[0]["state"] == 0x20, "the first disk is paused")
            disk.ok("keep")
            rules.off()
            assert "disks=2" in upgrading.communicate(timeout=60)[0]
        assert disk.rows()[0]["state"] == 0
    nbd_write(disk, int(disk.rows()[0]["pid"]), "write -P 3 0 64k")


def test_what_is_kept_while_no_tapdisk_has_it_is_kept_by_the_next_one(served: Guarded) -> None:
    with served.owned(served.directory.parent / "a.vhd"):
        new = spawn(served)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(served.directory / f"ctl{served.pid}"))
            assert b"true" in ask(client, f'{{"op": "yield", "heir": {new}}}')
            keeping = served.start("keep", "--for=guest")
            time.sleep(0.5)
            assert keeping.poll() is None
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
                other.connect(str(served.directory / f"ctl{new}"))
                assert b"true" in ask(other, f'{{"op": "succeed", "heir": {served.pid}}}')
            client.send(b'{"op": "leave"}')
        said = keeping.communicate(timeout=60)
        assert keeping.returncode == 0, said
        assert served.process.wait(60) == 0
    nbd_write(served, new, "read -P 7 0 64k")
    assert served.rows()[0]["for"] == "guest"
    served.finish()


def test_a_disk_that_waits_for_its_image_is_not_left(served: Guarded, tmp_path: Path) -> None:
    """What its guest may read of it before is known to this tapdisk alone."""
    (tmp_path / "there").mkdir()
    with Guarded(tmp_path / "there", f"vhd:{tmp_path}/a.vhd", "--suspended") as there:
        done = upgrade(there)
        assert done.returncode == 1
        assert f"tapdisk {there.pid} goes on: minor {MINOR}: is inactive, it waits for its image" in done.stderr
        guest = Guest(there.socket)
        assert guest.read(0, 8) == bytes([7]) * 8 * SECTOR
        guest.close()
        served.finish()
        wait_for(lambda: there.rows()[0]["state"] == 0, "it has its image")


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Guarded, Faults, Callable[..., "subprocess.CompletedProcess[str]"]]]:
    """A tapdisk with two disks, of which the second one's reads don't come back; and tap-ctl for the second."""
    for name in "ab":
        subprocess.run([program("vhd-util"), "create", "-n", tmp_path / f"{name}.vhd", "-s", "16"], check=True)
    rules = Faults(tmp_path / "rules")
    with Guarded(tmp_path, f"vhd:{tmp_path}/a.vhd", engine=rules.engine()) as disk:

        def other(verb: str, *args: str) -> "subprocess.CompletedProcess[str]":
            command = [str(program("tap-ctl")), verb, "-p", str(disk.pid), "-m", str(MINOR + 1), *args]
            return subprocess.run(command, env=disk._env, capture_output=True, text=True, timeout=60, check=True)

        other("attach")
        other("open", "-a", f"vhd:{tmp_path}/b.vhd")
        uri = f"nbd+unix:///?socket={disk.directory}/nbd{disk.pid}.{MINOR + 1}"
        subprocess.run(["qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", uri], check=True, capture_output=True)
        rules.set("read file=b.vhd stuck")
        reader = subprocess.Popen(["qemu-io", "-f", "raw", "-c", "read -P 7 0 64k", uri], stdout=-1, text=True)
        wait_for(lambda: json.loads(other("stats", "--json").stdout)["inflight"], "the read is under way")
        yield disk, rules, other
        rules.off()
        reader.communicate(timeout=60)
        wait_for(lambda: not json.loads(other("stats", "--json").stdout)["inflight"], "the read is done")
        other("close")
        other("detach")


@pytest.mark.parametrize("verb", ["open", "snapshot"])
def test_while_the_disks_are_left_nothing_else_begins(
    two: tuple[Guarded, Faults, Callable[..., "subprocess.CompletedProcess[str]"]], tmp_path: Path, verb: str
) -> None:
    """The next tapdisk would not know of it: a pause would be undone, and who has unpaused keep the image."""
    disk, rules, _ = two
    env = disk._env | {"TAPDISK": str(program("tests/tool-vbd"))}
    command = [str(program("tap-ctl")), "upgrade", "-m", str(MINOR), "-t", "50"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as upgrading:
        wait_for(lambda: disk.rows()[0]["state"] & 0x30, "the first disk is paused")
        args = {"open": ("-a", f"vhd:{tmp_path}/a.vhd"), "snapshot": ("-n", "base.vhd")}[verb]
        assert f"minor {MINOR}: an upgrade is under way; try again" in disk.refused(verb, *args)
        rules.off()
        assert "disks=2" in upgrading.communicate(timeout=60)[0]
    assert disk.rows()[0]["state"] == 0
    nbd_write(disk, int(disk.rows()[0]["pid"]), "write -P 3 0 64k")
    assert sorted(path.name for path in tmp_path.glob("*.vhd")) == ["a.vhd", "b.vhd"]


def test_a_disk_that_is_being_paused_stays_so_and_no_other_is_closed_for_it(
    two: tuple[Guarded, Faults, Callable[..., "subprocess.CompletedProcess[str]"]], tmp_path: Path
) -> None:
    """Which may not be to be opened again."""
    disk, rules, other = two
    env = disk._env | {"TAPDISK": str(program("tests/tool-vbd"))}
    command = [str(program("tap-ctl")), "pause", "-p", str(disk.pid), "-m", str(MINOR + 1), "-t", "50"]
    with subprocess.Popen(command, env=env) as pausing:
        wait_for(lambda: json.loads(other("stats", "--json").stdout)["state"] & 0x10, "it is being paused")
        (tmp_path / "a.vhd").rename(tmp_path / "away")
        done = upgrade(disk, "-m", str(MINOR), "-t", "5")
        assert done.returncode == 1 and f"tapdisk {disk.pid} goes on: minor {MINOR + 1}: a pause is under way" in done.stderr
        assert disk.rows()[0]["state"] == 0
        (tmp_path / "away").rename(tmp_path / "a.vhd")
        rules.off()
        assert pausing.wait(60) == 0
    assert json.loads(other("stats", "--json").stdout)["state"] == 0x20
    assert "paused=1" in (disk.directory / f"disk.{MINOR + 1}").read_text()
    other("unpause")


def test_disks_that_can_not_be_opened_at_once_when_an_upgrade_is_called_off_go_on_later(
    two: tuple[Guarded, Faults, Callable[..., "subprocess.CompletedProcess[str]"]], tmp_path: Path
) -> None:
    disk, _, other = two
    env = disk._env | {"TAPDISK": str(program("tests/tool-vbd"))}
    command = [str(program("tap-ctl")), "upgrade", "-m", str(MINOR), "-t", "3"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as upgrading:
        wait_for(lambda: disk.rows()[0]["state"] == 0x20, "the first disk is paused")
        (tmp_path / "a.vhd").rename(tmp_path / "away")
        assert f"tapdisk {disk.pid} goes on: minor {MINOR + 1}: not done" in upgrading.communicate(timeout=60)[1]
    [row] = disk.rows()
    assert (row["pid"], row["state"], row["waits_for"]) == (disk.pid, 0x4000, "image")
    assert "paused=0\n" in (disk.directory / f"disk.{MINOR}").read_text()
    (tmp_path / "away").rename(tmp_path / "a.vhd")
    wait_for(lambda: disk.rows()[0]["state"] == 0, "the image is open")
    nbd_write(disk, disk.pid, "write -P 3 0 64k")
    assert json.loads(other("stats", "--json").stdout)["state"] == 0


@pytest.mark.parametrize("verb", ["pause", "unpause"])
def test_a_verb_that_meets_an_upgrade_waits_for_its_end(
    two: tuple[Guarded, Faults, Callable[..., "subprocess.CompletedProcess[str]"]], verb: str
) -> None:
    """A script pauses a disk, and must be able to unpause it."""
    disk, rules, other = two
    if verb == "unpause":
        disk.ok("pause")
    env = disk._env | {"TAPDISK": str(program("tests/tool-vbd"))}
    command = [str(program("tap-ctl")), "upgrade", "-m", str(MINOR), "-t", "50"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as upgrading:
        wait_for(lambda: json.loads(other("stats", "--json").stdout)["state"] & 0x10, "the second disk is being paused")
        with disk.start(verb) as asking:
            time.sleep(0.5)
            assert asking.poll() is None
            rules.off()
            assert "disks=2" in upgrading.communicate(timeout=60)[0]
            assert asking.communicate(timeout=30)[1] == "" and asking.returncode == 0
    assert disk.rows()[0]["state"] == (0x20 if verb == "pause" else 0)
    if verb == "pause":
        disk.ok("unpause")
