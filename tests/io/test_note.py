# SPDX-License-Identifier: LGPL-2.1-only
"""What the next tapdisk finds of a disk, when the run directory does not take it: no disk goes on with what it was."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.io.test_restart import Guarded, nbd_write, wait_for
from tests.io.test_upgrade import upgrade
from tests.lib.faults import Faults
from tests.lib.programs import program
from tests.lib.tapctl import MINOR, Served

REFUSED = f"minor {MINOR}: cannot be noted in "


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Guarded]:
    """A VHD, served without restart."""
    subprocess.run([program("vhd-util"), "create", "-n", tmp_path / "a.vhd", "-s", "16"], check=True)
    disk = Guarded(tmp_path, f"vhd:{tmp_path}/a.vhd")
    nbd_write(disk, disk.pid, "write -P 7 0 64k")
    yield disk
    disk.kill_all()


def note(disk: Served) -> Path:
    return disk.directory / f"disk.{MINOR}"


@contextmanager
def no_notes(disk: Served) -> Iterator[None]:
    """Something is where a note is written before it takes its place."""
    (disk.directory / f"disk.{MINOR}.{disk.pid}").mkdir()
    try:
        yield
    finally:
        (disk.directory / f"disk.{MINOR}.{disk.pid}").rmdir()


def test_a_disk_that_has_moved_is_not_taken_for_what_it_was(served: Guarded, tmp_path: Path) -> None:
    served.ok("pause")
    (tmp_path / "b.vhd").write_bytes((tmp_path / "a.vhd").read_bytes())
    with no_notes(served):
        served.ok("unpause", "-a", f"vhd:{tmp_path}/b.vhd")
        nbd_write(served, served.pid, "write -P 9 0 64k")
        assert not note(served).exists()
        done = upgrade(served)
        assert done.returncode == 1 and f"tapdisk {served.pid} goes on: {REFUSED}" in done.stderr, done
        assert "make room there and try again" in done.stderr
        nbd_write(served, served.pid, "read -P 9 0 64k")
    wait_for(note(served).exists, "it is noted when that can be done")
    assert f"args=vhd:{tmp_path}/b.vhd\n" in note(served).read_text()
    assert upgrade(served).returncode == 0
    [row] = served.rows()
    assert (row["path"], row["state"]) == (f"{tmp_path}/b.vhd", 0)
    nbd_write(served, row["pid"], "read -P 9 0 64k")
    served.finish()


def test_a_pause_that_can_not_be_noted_is_not_undone(served: Guarded) -> None:
    with no_notes(served):
        served.ok("pause")
        assert not note(served).exists()
        assert upgrade(served).returncode == 1
    wait_for(note(served).exists, "it is noted when that can be done")
    assert upgrade(served).returncode == 0
    assert served.rows()[0]["state"] == 0x20
    served.ok("unpause")
    served.finish()


def test_what_still_holds_stays_noted(served: Guarded) -> None:
    """The disk is as it was: whoever comes next may have it so."""
    with no_notes(served):
        assert upgrade(served).returncode == 1
        assert f"args=vhd:{served.directory.parent}/a.vhd\n" in note(served).read_text()
    assert upgrade(served).returncode == 0
    served.finish()


def test_what_can_not_be_noted_is_not_kept(served: Guarded, tmp_path: Path) -> None:
    """The next tapdisk would remove it, as its script has ended."""
    with served.owned(tmp_path / "a.vhd"):
        with no_notes(served):
            assert REFUSED in served.refused("keep", "--for=guest")
        served.ok("keep", "--for=guest")
    assert upgrade(served).returncode == 0
    assert served.rows()[0]["for"] == "guest"
    served.finish()


def test_who_is_refused_to_keep_it_still_owns_it(served: Guarded, tmp_path: Path) -> None:
    with served.owned(tmp_path / "a.vhd") as owner:
        with no_notes(served):
            assert REFUSED in served.refused("keep")
            owner.kill()
            assert served.process.wait(30) == 0
    assert "ended before it kept its disk" in served.log()


def test_what_is_being_closed_is_not_noted_again(tmp_path: Path) -> None:
    """Its storage hangs, an upgrade fails; if tapdisk is killed then, nobody is to serve what was being removed."""
    subprocess.run([program("vhd-util"), "create", "-n", tmp_path / "a.vhd", "-s", "16"], check=True)
    rules = Faults(tmp_path / "rules")
    with Guarded(tmp_path, f"vhd:{tmp_path}/a.vhd", engine=rules.engine()) as disk:
        nbd_write(disk, disk.pid, "write -P 7 0 64k")
        with disk.stuck_read(rules) as reader:
            assert "it is closed when they do" in disk.refused("close", "-t", "1")
            assert not note(disk).exists()
            assert "a close is under way" in upgrade(disk, "-p", str(disk.pid)).stderr
            assert not note(disk).exists()
            rules.off()
            wait_for(lambda: disk.rows()[0]["state"] == 0x40, "it is closed")
            reader.wait(30)
        disk.ok("open", "-a", f"vhd:{tmp_path}/a.vhd")


def test_a_tapdisk_whose_callers_wait_in_line_answers_all_of_them(served: Guarded) -> None:
    """It is busy with an open, say: that is no tapdisk which hangs, and may be killed with all its disks."""
    os.kill(served.pid, signal.SIGSTOP)
    line = []
    while True:
        line.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))
        try:
            line[-1].connect(str(served.directory / f"ctl{served.pid}"))
        except BlockingIOError:
            break
    with served.start("pause") as asking:
        time.sleep(1)
        assert asking.poll() is None
        for waiting in line:
            waiting.close()
        os.kill(served.pid, signal.SIGCONT)
        said = asking.communicate(timeout=60)
    assert asking.returncode == 0, said
    served.ok("unpause")
    served.finish()


def test_others_do_not_cut_off_who_upgrades(served: Guarded) -> None:
    """The old tapdisk has room for so many callers, and would take its disks back."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(served.directory / f"ctl{served.pid}"))
        client.send(f'{{"op": "yield", "heir": {2**22}}}'.encode())
        assert b"true" in client.recv(65536)
        others = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(50)]
        for other in others:
            other.connect(str(served.directory / f"ctl{served.pid}"))
            other.send(b'{"op": "list"}')
            assert other.recv(65536)
        client.send(b'{"op": "list"}')
        assert b"true" in client.recv(65536)
        assert served.rows() == []
        for other in others:
            other.close()
    wait_for(lambda: [row for row in served.rows() if row["state"] == 0], "the disk is back")
    served.finish()


def test_the_word_of_a_tool_that_is_gone_goes_too(served: Guarded) -> None:
    """Of a snapshot of several disks, once nobody can wait for it any more."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
        link = served.directory / f"snapshot.{gone.pid}.0123abcd"
        link.symlink_to("made")
        served.clean()
        assert link.is_symlink()
        os.utime(link, (time.time() - 90000,) * 2, follow_symlinks=False)
        served.clean()
        assert not link.is_symlink()
    served.finish()
