# SPDX-License-Identifier: LGPL-2.1-only
"""The guardian and who takes over, without the driver: the disk is reached by NBD. With it: tests/vm/test_restart.py."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lib import waiting
from tests.lib.faults import Faults
from tests.lib.programs import program
from tests.lib.tapctl import MINOR, Served


def wait_for(condition: Callable[[], object], what: str) -> None:
    waiting.wait_for(condition, what, 30)


class Guarded(Served):
    """A tapdisk with a guardian, and those that come after it."""

    def rows(self) -> list[dict[str, Any]]:
        """What tap-ctl list says of the disk; nothing while no tapdisk has it."""
        rows: list[dict[str, Any]] = json.loads(self.list_all("--json").stdout)
        return [row for row in rows if row["minor"] == self.minor]

    def kill_now(self, number: int = signal.SIGKILL) -> int:
        """Ends whoever has the disk; the pid of the next one, once it has it."""
        [row] = self.rows()
        os.kill(row["pid"], number)
        if row["pid"] == self.process.pid:
            self.process.wait()
        wait_for(lambda: [now for now in self.rows() if now["pid"] != row["pid"] and now["path"]], "another tapdisk")
        return int(self.rows()[0]["pid"])

    def guardians(self) -> list[int]:
        """Their pids, of this directory's tapdisks."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/comm"):
            try:
                if stat.read_text() != "tapdisk-guard\n":
                    continue
                environment = (stat.parent / "environ").read_bytes()
            except OSError:
                continue
            if f"XENBLK_CONTROL_DIR={self.directory}\0".encode() in environment:
                found.append(int(stat.parent.name))
        return found

    @contextmanager
    def owned(self, leaf: Path) -> "Iterator[subprocess.Popen[bytes]]":
        """The disk closed, and open anew for a process that has yet to keep it, which is given and ends after."""
        self.ok("close")
        with subprocess.Popen(["sleep", "300"]) as owner:
            try:
                assert self.call({"op": "open", "minor": MINOR, "args": f"vhd:{leaf}", "owner": owner.pid})["ok"]
                yield owner
            finally:
                owner.kill()

    def stuck_read(self, rules: Faults) -> "subprocess.Popen[str]":
        """A client that reads 64 KiB of 7, which is under way until the rules are off."""
        rules.set("read stuck")
        uri = f"nbd+unix:///?socket={self.socket}"
        reader = subprocess.Popen(["qemu-io", "-f", "raw", "-c", "read -P 7 0 64k", uri], stdout=-1, stderr=-1, text=True)
        wait_for(lambda: json.loads(self.ok("stats", "--json"))["inflight"], "the read is under way")
        return reader

    def kill_all(self) -> None:
        """Guardians, and whoever has the disk; then shows the log."""
        for pid in self.guardians():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for row in self.rows():
            if row["pid"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(row["pid"], signal.SIGKILL)
        self.kill()
        print(self.log())
        self._errors.close()

    def finish(self) -> None:
        """Ends all in order: nothing is left."""
        self.ok("close")
        self.ok("detach")
        self.clean()
        wait_for(lambda: not self.guardians(), "the guardian's end")
        wait_for(lambda: os.listdir(self.directory) == [], f"no file is left: {os.listdir(self.directory)}")


@contextmanager
def guarded(tmp_path: Path, env: dict[str, str] | None = None, over: str = "") -> Iterator[Guarded]:
    """A VHD, served with restart: yes. over: what its name begins with."""
    leaf = tmp_path / "a.vhd"
    subprocess.run([program("vhd-util"), "create", "-n", leaf, "-s", "16"], check=True)
    disk = Guarded(tmp_path, f"{over}vhd:{leaf}", "--retry-for=7", settings=("restart=yes",), env=env)
    try:
        yield disk
    finally:
        disk.kill_all()


class Created(Guarded):
    """One that tap-ctl create has started, and got as far as done: a verb."""

    def __init__(self, directory: Path, spec: str, *, options: list[str], done: str = "") -> None:
        self._done = done
        super().__init__(directory, spec, tapdisk_options=options)

    def _open(self, spec: str, *options: str) -> None:
        wait_for(lambda: (self.directory / f"ctl{self.pid}").exists() or self.process.poll() is not None, "its socket")
        if self._done:
            self.ok("attach")
        if self._done == "open":
            self.ok("open", "-a", spec)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Guarded]:
    """See guarded()."""
    with guarded(tmp_path) as disk:
        yield disk


def note(served: Guarded) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (served.directory / f"disk.{MINOR}").read_text().splitlines())


def nbd_write(served: Guarded, pid: int, text: str) -> None:
    uri = f"nbd+unix:///?socket={served.directory}/nbd{pid}.{MINOR}"
    done = subprocess.run(["qemu-io", "-f", "raw", "-c", text, uri], capture_output=True, text=True, check=True)
    assert "error" not in done.stdout + done.stderr and "failed" not in done.stdout, done.stdout


def restart(served: Guarded, tapdisk: str = "") -> int:
    """The pid that tap-ctl restart prints."""
    env = served._env | {"TAPDISK": tapdisk or str(program("tests/tool-vbd"))}
    command = [str(program("tap-ctl")), "restart", "-m", str(MINOR)]
    return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


def test_another_one_takes_over(served: Guarded) -> None:
    nbd_write(served, served.pid, "write -P 7 0 64k")
    for _ in range(3):
        pid = served.kill_now()
        nbd_write(served, pid, "read -P 7 0 64k")
    # by the name under which it was made
    assert json.loads(served.ok("stats"))["pid"] == pid
    assert note(served)["retry_for"] == "7"
    assert not [name for name in os.listdir(served.directory) if re.search(rf"(nbd|stats){served.pid}\.", name)]
    served.finish()


def test_its_old_names_lead_to_it_while_others_list(tmp_path: Path) -> None:
    over = threading.Event()

    def list_them(served: Guarded) -> None:
        while not over.is_set():
            served.rows()

    with guarded(tmp_path, {"XENBLK_RESTART_ALWAYS": "1"}) as served:
        listers = [threading.Thread(target=list_them, args=[served]) for _ in range(4)]
        for lister in listers:
            lister.start()
        try:
            for _ in range(12):
                pid = served.kill_now()
                # the test's own command goes by the first name
                assert json.loads(served.ok("stats"))["pid"] == pid
        finally:
            over.set()
            for lister in listers:
                lister.join()
        served.finish()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_is_no_end_in_order(served: Guarded, number: int) -> None:
    served.kill_now(number)
    served.finish()


def test_a_snapshot_and_a_pause_are_kept(served: Guarded, tmp_path: Path) -> None:
    served.ok("snapshot", "-n", "below.vhd")
    served.ok("pause")
    assert served.kill_now() and served.rows()[0]["state"] == 0x20
    (tmp_path / "a.vhd").rename(tmp_path / "moved.vhd")
    assert served.kill_now() and served.rows()[0]["state"] == 0x20
    served.ok("unpause", "-a", f"vhd:{tmp_path}/moved.vhd")
    assert served.kill_now()
    wait_for(lambda: served.rows()[0]["state"] == 0, "it has the image")  # its lock may be the dead one's for a second
    assert json.loads(served.ok("stats"))["chain"] == [f"{tmp_path}/moved.vhd", f"{tmp_path}/below.vhd"]
    served.finish()


def test_whom_it_was_kept_for_is_known_to_the_next_one_and_to_list(served: Guarded, tmp_path: Path) -> None:
    served.ok("close")
    with subprocess.Popen(["sleep", "100"]) as owner:
        request = {"op": "open", "minor": MINOR, "args": f"vhd:{tmp_path}/a.vhd", "owner": owner.pid}
        assert served.call(request)["ok"]
        served.ok("keep", "--for=backend/vbd/5/51712")
        owner.kill()
    for _ in range(2):
        served.kill_now()
        assert served.rows()[0]["for"] == note(served)["for"] == "backend/vbd/5/51712"
    served.finish()


def test_an_image_that_is_away_is_waited_for(served: Guarded, tmp_path: Path) -> None:
    (tmp_path / "a.vhd").rename(tmp_path / "away")
    served.kill_now()
    [row] = served.rows()
    assert (row["state"], row["waits_for"], row["path"]) == (0x4000, "image", f"{tmp_path}/a.vhd")
    (tmp_path / "away").rename(tmp_path / "a.vhd")
    wait_for(lambda: served.rows()[0]["state"] == 0, "the image is open")
    assert "requests wait until it can be opened" in served.log()
    served.finish()


def test_with_a_log_of_changes_too_a_disk_does_not_go_on_after_another_one_has_written(tmp_path: Path) -> None:
    with guarded(tmp_path, over=f"log:{tmp_path}/changes,") as served:
        after_another_one_has_written(served, tmp_path)


def test_a_disk_does_not_go_on_by_itself_after_another_one_has_written_to_its_image(served: Guarded, tmp_path: Path) -> None:
    after_another_one_has_written(served, tmp_path)


def after_another_one_has_written(served: Guarded, tmp_path: Path) -> None:
    """Its guest may have gone on there: what waits here is older than what it has written since."""
    leaf, there = tmp_path / "a.vhd", tmp_path / "there"
    nbd_write(served, served.pid, "write -P 7 0 64k")
    leaf.rename(tmp_path / "away")
    served.kill_now()
    there.mkdir()
    with Served(there, f"vhd:{tmp_path}/away", minor=MINOR + 1) as other:
        wait_for(other.socket.exists, "its socket")
    (tmp_path / "away").rename(leaf)
    wait_for(lambda: "another disk has written to it since" in served.log(), "it is seen")
    assert served.rows()[0]["state"] == 0x4000
    # nor does the next one, nor one that takes its place
    served.kill_now()
    wait_for(lambda: served.log().count("another disk has written to it since") > 1, "it is seen again")
    assert served.rows()[0]["state"] == 0x4000
    served.ok("unpause")
    assert served.rows()[0]["state"] == 0
    nbd_write(served, served.rows()[0]["pid"], "read -P 7 0 64k")
    served.kill_now()
    wait_for(lambda: served.rows()[0]["state"] == 0, "it goes on by itself again")
    served.finish()


def test_one_that_has_not_had_its_image_yet_waits_for_who_has_written_to_it(tmp_path: Path) -> None:
    """As a guest's that arrives from another host."""
    leaf, there = tmp_path / "a.vhd", tmp_path / "there"
    there.mkdir()
    with guarded(tmp_path) as served:
        inactive = Guarded(there, f"vhd:{leaf}", "--inactive", settings=("restart=yes",), minor=MINOR + 1)
        try:
            os.kill(inactive.pid, signal.SIGKILL)
            inactive.process.wait()
            wait_for(lambda: f"disk.{MINOR + 1}" in os.listdir(inactive.directory), "its note")
            nbd_write(served, served.pid, "write -P 7 0 64k")
            served.finish()
            wait_for(lambda: '"state": 0,' in inactive.list_all("--json").stdout, "it has its image")
            inactive.ok("close")
            inactive.ok("detach")
        finally:
            inactive.kill_all()


def test_five_deaths_within_a_minute_are_enough(served: Guarded) -> None:
    for _ in range(4):
        served.kill_now()
    [row] = served.rows()
    os.kill(row["pid"], signal.SIGKILL)
    wait_for(lambda: not served.guardians(), "the guardian's end")
    assert note(served)["given_up"] == "1" and served.rows() == []
    assert "requests wait for `tap-ctl restart` minor=3" in served.log()
    pid = restart(served)
    assert served.rows()[0]["pid"] == pid
    served.kill_now()
    served.finish()


def test_a_guardian_that_is_killed_is_replaced(served: Guarded) -> None:
    [old] = served.guardians()
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: [pid for pid in served.guardians() if pid != old], "another guardian")
    assert served.rows()[0]["pid"] == served.pid
    served.kill_now()
    served.kill_now()
    served.finish()


def test_none_comes_after_an_end_in_order(served: Guarded) -> None:
    served.process.terminate()
    assert served.process.wait() == 0
    assert served.guardians() == [] and served.rows() == []
    assert os.listdir(served.directory) == []


def test_none_comes_after_an_end_in_order_that_was_cut_short(tmp_path: Path) -> None:
    """SIGTERM, and SIGKILL for what does not end in time, as when a host stops: the disk is there for tap-ctl restart."""
    rules = Faults(tmp_path / "rules")
    subprocess.run([program("vhd-util"), "create", "-n", tmp_path / "a.vhd", "-s", "16"], check=True)
    disk = Guarded(tmp_path, f"vhd:{tmp_path}/a.vhd", settings=("restart=yes",), engine=rules.engine())
    try:
        nbd_write(disk, disk.pid, "write -P 7 0 64k")
        reader = disk.stuck_read(rules)
        disk.process.terminate()
        wait_for(lambda: not disk.guardians(), "the guardian's end")
        time.sleep(1.5)  # another would be there, had it been missed
        assert disk.guardians() == [] and disk.process.poll() is None
        disk.process.kill()
        disk.process.wait()
        reader.communicate()
        time.sleep(1)
        assert disk.rows() == [] and note(disk)["pid"] == str(disk.pid)
        rules.off()
        restart(disk)
        disk.finish()
    finally:
        disk.kill_all()


def test_starts_that_fail_are_no_deaths(served: Guarded, tmp_path: Path) -> None:
    """A full run directory, no memory, a setting that is wrong: that passes, and the disk waits for it."""
    config = tmp_path / "config"
    settings = config.read_text()
    config.write_text("engine=none\n")
    os.kill(served.pid, signal.SIGKILL)
    served.process.wait()
    wait_for(lambda: served.log().count("ended with status 75") >= 3, "three starts fail")
    config.write_text(settings)
    wait_for(lambda: [row for row in served.rows() if row["state"] == 0], "another tapdisk")
    for _ in range(3):
        served.kill_now()
    served.finish()


def test_a_restart_by_hand_may_be_second(served: Guarded, tmp_path: Path) -> None:
    """The guardian's tapdisk has the disk before the one that tap-ctl starts: that is said, and no error."""
    [guardian] = served.guardians()
    os.kill(guardian, signal.SIGSTOP)
    served.process.kill()
    served.process.wait()
    script, disk = tmp_path / "slow tapdisk", served.directory / f"disk.{MINOR}"
    script.write_text(f"#!/bin/sh\nkill -CONT {guardian}\nwhile grep -qx pid={served.pid} {disk}; do sleep 0.1; done\nexec {program('tests/tool-vbd')} \"$@\"\n")
    script.chmod(0o755)
    pid = restart(served, str(script))
    [row] = served.rows()
    assert (row["pid"], row["state"]) == (pid, 0) and f"takes over from tapdisk {served.pid}" in served.log()
    served.finish()


def test_what_is_being_closed_is_not_taken_over(served: Guarded) -> None:
    served.ok("close")
    os.kill(served.pid, signal.SIGKILL)
    served.process.wait()
    wait_for(lambda: not served.guardians(), "the guardian's end")
    assert served.rows() == []


def test_a_disk_whose_owner_is_gone_is_undone(tmp_path: Path) -> None:
    """It was killed while the script that had it made still ran; that script ends before the next one looks."""
    leaf = tmp_path / "a.vhd"
    subprocess.run([program("vhd-util"), "create", "-n", leaf, "-s", "16"], check=True)
    disk = Guarded(tmp_path, f"vhd:{leaf}", settings=("restart=yes",))
    disk.ok("close")
    with subprocess.Popen(["sleep", "100"]) as owner:
        request = {"op": "open", "minor": MINOR, "args": f"vhd:{leaf}", "owner": owner.pid}
        assert disk.call(request)["ok"]
        [guardian] = disk.guardians()
        os.kill(guardian, signal.SIGSTOP)
        disk.process.kill()
        disk.process.wait()
        owner.kill()
    os.kill(guardian, signal.SIGCONT)
    wait_for(lambda: not disk.guardians(), "the end of the one that took over")
    assert "ended before it kept its disk" in disk.log()
    assert not (disk.directory / f"disk.{MINOR}").exists()
    disk._errors.close()


@pytest.mark.parametrize("kept", [False, True])
def test_a_close_that_is_refused_leaves_the_disk_its_owner(tmp_path: Path, kept: bool) -> None:
    leaf = tmp_path / "a.vhd"
    subprocess.run([program("vhd-util"), "create", "-n", leaf, "-s", "16"], check=True)
    rules = Faults(tmp_path / "rules")
    disk = Guarded(tmp_path, f"vhd:{leaf}", engine=rules.engine())
    try:
        nbd_write(disk, disk.pid, "write -P 7 0 64k")
        with disk.owned(leaf):
            reader = disk.stuck_read(rules)
            with disk.start("pause", "-t", "20") as pausing:
                wait_for(lambda: disk.rows()[0]["state"] & 0x10, "it is being paused")
                assert disk.call({"op": "close", "minor": MINOR})["message"] == f"minor {MINOR}: a pause is under way"
                rules.off()
                assert pausing.wait(30) == 0
            disk.ok("unpause")
            reader.communicate(timeout=30)
            if kept:
                disk.ok("keep")
        if kept:
            time.sleep(1)
            disk.finish()
        else:
            assert disk.process.wait(30) == 0
            assert "ended before it kept its disk" in disk.log()
            assert not (disk.directory / f"disk.{MINOR}").exists()
    finally:
        disk.kill_all()


@pytest.mark.parametrize("done", ["", "attach", "open"])
def test_a_tapdisk_ends_with_who_creates_its_disk_unless_that_is_open(tmp_path: Path, done: str) -> None:
    leaf = tmp_path / "a.vhd"
    subprocess.run([program("vhd-util"), "create", "-n", leaf, "-s", "16"], check=True)
    with subprocess.Popen(["sleep", "100"]) as creator:
        options = [f"--creates={creator.pid},{MINOR}"]
        with Created(tmp_path, f"vhd:{leaf}", options=options, done=done) as disk:
            creator.kill()
            if done == "open":
                assert disk.rows()[0]["path"] == str(leaf)
                disk.ok("close")
                disk.ok("detach")
            assert disk.process.wait(20) == 0
            assert os.listdir(disk.directory) == []


def test_a_tapdisk_whose_creator_has_ended_ends(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as creator:
        creator.wait()
    with Created(tmp_path, "", options=[f"--creates={creator.pid},{MINOR}"]) as disk:
        assert disk.process.wait(20) == 0
