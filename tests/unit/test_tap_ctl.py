# SPDX-License-Identifier: LGPL-2.1-only
"""tap-ctl against a tapdisk that has a control socket and nothing behind it.

What the stand-in does is said in tapdisk-c/tests/fake-server.h.
"""

import json
import os
import pty
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lib import waiting
from tests.lib.programs import program


@dataclass(frozen=True)
class Done:
    """What a command gave."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class TapCtl:
    """tap-ctl with a control directory of its own."""

    control_dir: Path
    images: Path

    @property
    def env(self) -> dict[str, str]:
        """Where tap-ctl finds its sockets and its tapdisk."""
        return {
            **os.environ,
            "XENBLK_CONTROL_DIR": str(self.control_dir),
            "TAPDISK": str(program("tests/tool-control")),
        }

    def run(self, *args: str | int, **env: str) -> Done:
        """Runs a verb."""
        done = subprocess.run(
            [program("tap-ctl"), *map(str, args)],
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def ok(self, *args: str | int) -> str:
        """The output of a verb that succeeds and says nothing else."""
        done = self.run(*args)
        assert (done.status, done.err) == (0, "")
        return done.out

    def refused(self, *args: str | int) -> str:
        """The message of a verb that fails: one line."""
        done = self.run(*args)
        assert (done.status, done.out) == (1, "")
        assert done.err.startswith("tap-ctl: ") and done.err.count("\n") == 1
        return done.err.removeprefix("tap-ctl: ").rstrip("\n")

    def spawn(self) -> int:
        """The pid of a new tapdisk."""
        return int(self.ok("spawn"))

    def open(self, minor: int, name: str, *options: str) -> int:
        """The pid of a new tapdisk with one image of that name open."""
        (self.images / name).touch()
        pid = self.spawn()
        self.ok("attach", "-p", pid, "-m", minor)
        self.ok("open", "-p", pid, "-m", minor, "-a", f"vhd:{self.images}/{name}", *options)
        return pid


def wait_for(condition: Callable[[], bool], what: str) -> None:
    waiting.wait_for(condition, what, 60)


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def tap(tmp_path: Path) -> Iterator[TapCtl]:
    images = tmp_path / "images dir"
    images.mkdir()
    ctl = TapCtl(tmp_path / "ctl", images)
    yield ctl
    for entry in ctl.control_dir.glob("ctl*") if ctl.control_dir.exists() else []:
        pid = int(entry.name.removeprefix("ctl"))
        if pid != os.getpid():
            os.kill(pid, signal.SIGKILL)


# list


def test_list_of_nothing_is_empty(tap: TapCtl) -> None:
    assert tap.ok("list") == ""
    assert json.loads(tap.ok("list", "--json")) == []


def test_list_prints_the_lines_that_block_tap_parses(tap: TapCtl) -> None:
    idle = tap.spawn()
    assert tap.ok("list") == f"pid={idle}\n"
    tap.ok("attach", "-p", idle, "-m", 9)
    assert tap.ok("list") == f"pid={idle} minor=9 state=0x40\n"
    pid = tap.open(3, "a:b.vhd")
    lines = tap.ok("list").splitlines()
    assert sorted(lines) == sorted(
        [
            f"pid={idle} minor=9 state=0x40",
            f"pid={pid} minor=3 state=0 args=vhd:{tap.images}/a:b.vhd",
        ]
    )
    tap.ok("pause", "-p", pid, "-m", 3)
    assert tap.ok("list", "-p", pid).startswith(f"pid={pid} minor=3 state=0x20 args=")


def test_list_filters(tap: TapCtl) -> None:
    a, b = tap.open(1, "a"), tap.open(2, "b")
    path = f"{tap.images}/a"
    line = f"pid={a} minor=1 state=0 args=vhd:{path}\n"
    assert tap.ok("list", "-t", "vhd", "-f", path) == line
    assert tap.ok("list", "-m", 1) == line
    assert tap.ok("list", "-p", a) == line
    assert tap.ok("list", "-p", b, "-m", 1) == ""
    assert tap.ok("list", "-t", "aio") == ""
    assert tap.ok("list", "-t", "vhd").count("\n") == 2
    assert tap.ok("list", "-f", "/none") == ""
    assert "not running" in tap.refused("list", "-p", 999999)


def test_list_on_a_terminal_has_columns(tap: TapCtl) -> None:
    pid = tap.open(1, "a")
    master, slave = pty.openpty()
    with os.fdopen(master, "rb", buffering=0) as reader:
        subprocess.run([program("tap-ctl"), "list"], env=tap.env, stdout=slave, check=True)
        os.close(slave)
        line = reader.read(4096).decode().rstrip("\r\n")
    assert line == f"{pid:8} {1:4} {0:4} {'vhd':>10} {tap.images}/a"


def test_list_as_json_has_null_for_what_is_absent(tap: TapCtl) -> None:
    pid = tap.open(1, "a", "-R")
    tap.ok("attach", "-p", pid, "-m", 2)
    assert json.loads(tap.ok("list", "--json")) == [
        {
            "pid": pid,
            "minor": 1,
            "state": 0,
            "type": "vhd",
            "path": f"{tap.images}/a",
            "for": None,
            "readonly": True,
            "size": 1 << 20,
            "sector_size": 512,
            "depth": 2,
            "transport": None,
            "waits_for": None,
        },
        {
            "pid": pid,
            "minor": 2,
            "state": 0x40,
            "type": None,
            "path": None,
            "for": None,
            "readonly": None,
            "size": None,
            "sector_size": None,
            "depth": None,
            "transport": None,
            "waits_for": None,
        },
    ]


def test_list_says_the_transport_and_shows_minors_without_a_tapdisk(tap: TapCtl) -> None:
    pid = tap.open(1, "a")
    (tap.control_dir / "minor1").write_text("nbd\n")
    (tap.control_dir / "minor7").write_text("nbd\n")
    # what a killed tap-ctl left, and what is no minor
    (tap.control_dir / "minor8").touch()
    (tap.control_dir / "minor9x").write_text("nbd\n")
    rows = json.loads(tap.ok("list", "--json"))
    assert [(row["pid"], row["minor"], row["transport"]) for row in rows] == [(pid, 1, "nbd"), (None, 7, "nbd")]
    assert json.loads(tap.ok("stats", "-p", pid, "-m", 1))["transport"] == "nbd"
    for name in ("minor1", "minor7", "minor8", "minor9x"):
        (tap.control_dir / name).unlink()


def test_list_shows_more_vbds_than_fit_one_message(tap: TapCtl) -> None:
    pid = tap.spawn()
    name = "n" * 200
    (tap.images / name).touch()
    for minor in range(20, 100):
        tap.ok("attach", "-p", pid, "-m", minor)
        tap.ok("open", "-p", pid, "-m", minor, "-a", f"aio:{tap.images}/{name}")
    rows = json.loads(tap.ok("list", "--json"))
    assert [row["minor"] for row in rows] == list(range(20, 100))


def test_list_removes_the_sockets_of_the_dead_only(tap: TapCtl) -> None:
    pid = tap.open(1, "a")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the killed tapdisk is gone")
    stranger = tap.control_dir / f"ctl{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bound:
        bound.bind(str(stranger))
    others = [tap.control_dir / name for name in ("nbd1.2", f"nbd{pid}", f"nbd{pid}.x")]
    dead = tap.control_dir / f"nbd{pid}.1"
    for path in (*others, dead):
        path.touch()
    assert tap.ok("list") == ""
    assert not (tap.control_dir / f"ctl{pid}").exists() and not dead.exists()
    assert stranger.exists() and all(path.exists() for path in others)
    stranger.unlink()


def test_a_tapdisk_that_hangs_does_not_hide_the_others(tap: TapCtl) -> None:
    hung, pid = tap.open(1, "a"), tap.open(2, "b")
    os.kill(hung, signal.SIGSTOP)
    done = tap.run("list")
    assert done.status == 0
    assert f"tapdisk {hung}: no answer in 5 s" in done.err
    assert f"pid={hung}\n" in done.out
    assert f"pid={pid} minor=2 " in done.out


# spawn


def test_spawned_tapdisk_holds_nothing_of_its_caller(tap: TapCtl) -> None:
    with (tap.images / "lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        done = subprocess.run(
            [program("tap-ctl"), "spawn"],
            env=tap.env,
            pass_fds=[lock.fileno()],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    pid = int(done.stdout)
    held = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert str(tap.images / "lock") not in held
    assert not any(link.startswith(("pipe:", "/dev/pts")) for link in held)
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


def run_without(tap: TapCtl, closed: str, **env: str) -> Done:
    """Spawns with standard descriptors closed, as the shell writes it."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" spawn {closed}', program("tap-ctl")],
        env=tap.env | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_spawn_without_standard_descriptors(tap: TapCtl) -> None:
    pid = int(run_without(tap, "<&- 2>&-").out)
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    assert tap.ok("list") == f"pid={pid}\n"
    failed = run_without(tap, "<&-", TOOL_CONTROL_FAIL="reason")
    assert failed.err == "tap-ctl: cannot start: tapdisk: reason\n"


def test_spawn_says_why_tapdisk_does_not_start(tap: TapCtl) -> None:
    done = tap.run("spawn", TOOL_CONTROL_FAIL="/run/xenblk/config: line 2: bad")
    assert (done.status, done.out) == (1, "")
    assert done.err == "tap-ctl: cannot start: tapdisk: /run/xenblk/config: line 2: bad\n"
    assert "exit status 1" in tap.run("spawn", TAPDISK="/bin/false").err
    assert "/none" in tap.run("spawn", TAPDISK="/none").err
    assert tap.ok("list") == ""


# the verbs of one tapdisk


def test_the_life_of_a_vbd(tap: TapCtl) -> None:
    pid = tap.open(4, "slow.vhd")
    at = ("-p", pid, "-m", 4)
    tap.ok("pause", *at)
    (tap.images / "leaf.vhd").touch()
    tap.ok("unpause", *at, "-a", f"vhd:{tap.images}/leaf.vhd")
    assert f"args=vhd:{tap.images}/leaf.vhd\n" in tap.ok("list")
    tap.ok("pause", *at)
    tap.ok("unpause", *at)
    assert "is open; close it first" in tap.refused("detach", *at)
    tap.ok("close", *at)
    assert tap.ok("list") == f"pid={pid} minor=4 state=0x40\n"
    tap.ok("detach", *at)
    wait_for(lambda: has_ended(pid), "tapdisk has exited")
    assert tap.ok("list") == ""
    assert list(tap.control_dir.iterdir()) == []


def test_several_vbds_in_one_tapdisk(tap: TapCtl) -> None:
    pid = tap.open(1, "a")
    tap.ok("attach", "-p", pid, "-m", 2)
    tap.ok("close", "-p", pid, "-m", 1)
    tap.ok("detach", "-p", pid, "-m", 1)
    assert tap.ok("list") == f"pid={pid} minor=2 state=0x40\n"


def test_messages_of_tapdisk_reach_stderr(tap: TapCtl) -> None:
    pid = tap.open(1, "a")
    at = ("-p", pid, "-m", 1)
    assert tap.refused("open", *at, "-a", "aio:/x") == (f"minor 1: already has vhd:{tap.images}/a open")
    assert tap.refused("attach", "-p", pid, "-m", 13) == "minor 13 has no ring"
    assert tap.refused("close", "-p", pid, "-m", 7) == "minor 7 is not attached to this tapdisk"
    assert "not running" in tap.refused("close", "-p", 999999, "-m", 7)


def test_a_device_that_stays_open_is_not_closed_without_force(tap: TapCtl) -> None:
    pid = tap.open(1, "busy")
    began = time.monotonic()
    assert tap.refused("close", "-p", pid, "-m", 1) == "minor 1: the device is open"
    assert 2 < time.monotonic() - began < 20
    tap.ok("close", "-p", pid, "-m", 1, "-f")


def test_time_limit_of_a_verb(tap: TapCtl) -> None:
    pid = tap.open(1, "stuck")
    message = tap.refused("pause", "-p", pid, "-m", 1, "-t", 1)
    assert message.startswith(f"tapdisk {pid}: no answer in 6 s")
    assert tap.ok("list").startswith(f"pid={pid} minor=1 state=0x10 ")


@pytest.mark.parametrize("path", ["/srv/x\ny", "/srv/\x1b[31m", "/srv/\x7f"])
def test_paths_with_control_characters_are_refused(tap: TapCtl, path: str) -> None:
    pid = tap.spawn()
    tap.ok("attach", "-p", pid, "-m", 1)
    assert "control character" in tap.refused("open", "-p", pid, "-m", 1, "-a", "aio:" + path)


def test_a_path_that_is_not_utf8_is_refused(tap: TapCtl) -> None:
    pid = tap.spawn()
    tap.ok("attach", "-p", pid, "-m", 1)
    args = os.fsdecode(b"aio:/srv/\xe4")
    assert "not UTF-8" in tap.refused("open", "-p", pid, "-m", 1, "-a", args)


def test_paths_in_utf8_and_of_any_length_work(tap: TapCtl) -> None:
    long = tap.images
    for _ in range(15):
        long = long / ("ä" * 120)
    long.mkdir(parents=True)
    image = long / "disk.vhd"
    image.touch()
    pid = tap.spawn()
    tap.ok("attach", "-p", pid, "-m", 1)
    tap.ok("open", "-p", pid, "-m", 1, "-a", f"vhd:{image}")
    assert tap.ok("list", "-f", str(image)).endswith(f"args=vhd:{image}\n")


def test_stats_is_one_json_object(tap: TapCtl) -> None:
    pid = tap.open(1, "a")
    stats = json.loads(tap.ok("stats", "-p", pid, "-m", 1))
    assert stats["pid"] == pid and stats["minor"] == 1 and stats["size"] == 1 << 20
    assert stats["chain"] == [f"{tap.images}/a", "/srv/b?se.vhd"]
    assert (stats["inflight"], stats["merged"], stats["waiting"]) == (15, 16, 17)
    assert stats["read"] == {
        "requests": 1,
        "sectors": 2,
        "bytes": 1024,
        "errors": 3,
        "retries": 0,
        "total_ns": 4,
        "max_ns": 5,
        "p50_ns": 3,
        "p99_ns": 3,
        "latency": [[4, 1]],
    }
    assert stats["write"]["requests"] == 6 and stats["flush"]["max_ns"] == 14


def test_stats_on_a_terminal_are_a_table(tap: TapCtl) -> None:
    pid = tap.open(1, "a")
    master, terminal = os.openpty()
    with open(master, "rb") as screen, open(terminal, "wb") as out:
        subprocess.run([program("tap-ctl"), "stats", "-p", str(pid), "-m", "1"], env=tap.env, stdout=out, check=True)
        lines = os.read(screen.fileno(), 65536).decode().splitlines()
    assert lines[0].endswith("/a: 15 in flight, 17 waiting, 16 merged")
    assert lines[1].split() == "requests bytes errors retries mean us p50 us p99 us max us".split()
    assert lines[4].split() == ["flush", "11", "0", "12", "18", "0.0", "0.0", "0.0", "0.0"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--retry-errors=some", "retry_errors=some: must be none, transient or all"),
        ("--retry-interval=0", "retry_interval=0: must be 1 to 3600 seconds"),
        ("--retry-for=x", "retry_for=x: must be 0 to 31536000 seconds"),
        ("--retry-then=stop", "retry_then=stop: must be fail or pause"),
        ("--no-space=", "no_space=: must be fail or wait"),
    ],
)
def test_a_wrong_setting_for_errors_opens_nothing(tap: TapCtl, option: str, message: str) -> None:
    (tap.images / "a").touch()
    pid = tap.spawn()
    tap.ok("attach", "-p", pid, "-m", 1)
    assert tap.refused("open", "-p", pid, "-m", 1, "-a", f"vhd:{tap.images}/a", option) == message
    assert "state=0x40" in tap.ok("list")


def test_settings_for_errors_are_those_of_one_disk(tap: TapCtl) -> None:
    options = ["--retry-errors=all", "--retry-interval=2", "--retry-for=0", "--retry-then=pause", "--no-space=fail"]
    assert tap.open(1, "a", *options)


# a tapdisk that is not ours


@pytest.mark.parametrize(
    "answer",
    [b"", b"{", b"[]", b"{}", b'{"ok": 1}', b'{"ok": false, "errno": 0, "message": "x"}', b"\xff"],
)
def test_an_answer_that_makes_no_sense_is_an_error(tap: TapCtl, answer: bytes) -> None:
    tap.control_dir.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tap.control_dir / f"ctl{os.getpid()}"))
        listener.listen()
        with subprocess.Popen(
            [program("tap-ctl"), "detach", "-p", str(os.getpid()), "-m", "1"],
            env=tap.env,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            connection, _ = listener.accept()
            with connection:
                request = json.loads(connection.recv(65536))
                if answer:
                    connection.send(answer)
            assert process.wait(30) == 1
            assert process.stderr is not None
            assert process.stderr.read().startswith(f"tap-ctl: tapdisk {os.getpid()}: ")
    assert request == {"op": "detach", "minor": 1}
    (tap.control_dir / f"ctl{os.getpid()}").unlink()


def test_a_message_for_the_terminal_has_no_control_characters(tap: TapCtl) -> None:
    tap.control_dir.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tap.control_dir / f"ctl{os.getpid()}"))
        listener.listen()
        with subprocess.Popen(
            [program("tap-ctl"), "detach", "-p", str(os.getpid()), "-m", "1"],
            env=tap.env,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            connection, _ = listener.accept()
            with connection:
                connection.send(b'{"ok": false, "errno": 5, "message": "a\\u001b[2Jb\\nc"}')
                assert process.wait(30) == 1
            assert process.stderr is not None
            assert process.stderr.read() == "tap-ctl: a?[2Jb?c\n"
    (tap.control_dir / f"ctl{os.getpid()}").unlink()


# usage


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["reboot"],
        ["list", "extra"],
        ["list", "-x"],
        ["attach", "-p", "1"],
        ["attach", "-m", "1"],
        ["attach", "-p", "0", "-m", "1"],
        ["attach", "-p", "1x", "-m", "1"],
        ["attach", "-p", "1", "-m", "4096"],
        ["attach", "-p", "1", "-m", "-1"],
        ["attach", "-p", "1", "-m"],
        ["attach", "-p", "1", "-m", "1", "--json"],
        ["open", "-p", "1", "-m", "1"],
        ["close", "-p", "1", "-m", "1", "-t", "0"],
        ["free"],
        ["create"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(tap: TapCtl, args: list[str]) -> None:
    done = tap.run(*args)
    assert (done.status, done.out) == (2, "")
    assert "usage: tap-ctl" in done.err
    # what was wrong, before what would be right
    assert done.err.startswith("tap-ctl: ") == bool(args)


@pytest.mark.parametrize(
    "args",
    [
        *(["create", "-a", "vhd:/x", *more] for more in (["-D"], ["-e", "1"], ["-d", "x"])),
        *(["create", "-a", "vhd:/x", *more] for more in (["-r"], ["-2", "x"], ["-s"])),
        *(["create", "-a", "vhd:/x", *more] for more in (["-C", "x"], ["-t", "9"])),
        ["open", "-p", "1", "-m", "1", "-a", "vhd:/x", "-E"],
        ["unpause", "-p", "1", "-m", "1", "-c", "/log"],
    ],
    ids=" ".join,
)
def test_options_of_the_peer_that_we_lack_are_refused_by_name(tap: TapCtl, args: list[str]) -> None:
    done = tap.run(*args)
    assert done.status == 2
    assert done.err.splitlines()[0].endswith("is not implemented")


def test_help_goes_to_stdout(tap: TapCtl) -> None:
    for args in (["--help"], ["help"], ["list", "-h"], ["open", "--help"]):
        done = tap.run(*args)
        assert (done.status, done.err) == (0, "")
        assert done.out.startswith("usage: tap-ctl")
    assert tap.ok("--version").startswith("tap-ctl ")


# An owner: whoever has the disk made, until it is kept


def ask(tap: TapCtl, pid: int, **request: object) -> dict[str, object]:
    """The answer of a tapdisk to a control message."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(60)
        connection.connect(str(tap.control_dir / f"ctl{pid}"))
        connection.send(json.dumps(request).encode())
        answer: dict[str, object] = json.loads(connection.recv(1 << 16))
        return answer


@pytest.fixture
def owner() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that lives until it is killed."""
    with subprocess.Popen(["sleep", "100"]) as process:
        yield process
        process.kill()


def open_for(tap: TapCtl, owner: int, minor: int, name: str = "a.vhd", pid: int = 0) -> tuple[int, dict[str, object]]:
    """A tapdisk with an image opened for a process; its pid and the answer."""
    (tap.images / name).touch()
    pid = pid or tap.spawn()
    tap.ok("attach", "-p", pid, "-m", minor)
    return pid, ask(tap, pid, op="open", minor=minor, args=f"vhd:{tap.images}/{name}", owner=owner)


@pytest.mark.parametrize("name", ["a.vhd", "slow.vhd", "busy.vhd"])
def test_a_disk_goes_with_its_owner(tap: TapCtl, owner: "subprocess.Popen[bytes]", name: str) -> None:
    pid, answer = open_for(tap, owner.pid, 3, name)
    assert answer == {"ok": True}
    owner.kill()
    wait_for(lambda: has_ended(pid), "the end of a tapdisk whose only disk has lost its owner")
    assert list(tap.control_dir.iterdir()) == []


def test_a_disk_that_was_kept_outlives_its_owner(tap: TapCtl, owner: "subprocess.Popen[bytes]") -> None:
    pid, _ = open_for(tap, owner.pid, 3)
    tap.ok("keep", "-p", pid, "-m", 3)
    owner.kill()
    owner.wait()
    time.sleep(0.3)
    assert tap.ok("list") == f"pid={pid} minor=3 state=0 args=vhd:{tap.images}/a.vhd\n"
    assert "no owner" in tap.refused("keep", "-p", pid, "-m", 3)


def test_whom_a_disk_was_kept_for_is_shown_until_it_is_closed(tap: TapCtl, owner: "subprocess.Popen[bytes]") -> None:
    pid, _ = open_for(tap, owner.pid, 3)
    assert json.loads(tap.ok("list", "--json"))[0]["for"] is None
    whom = "backend/vbd/5/51712 ü \\"
    tap.ok("keep", "-p", pid, "-m", 3, f"--for={whom}")
    [row] = json.loads(tap.ok("list", "--json"))
    assert (row["pid"], row["minor"], row["for"]) == (pid, 3, whom)
    assert tap.ok("list") == f"pid={pid} minor=3 state=0 args=vhd:{tap.images}/a.vhd\n"
    tap.ok("close", "-p", pid, "-m", 3)
    assert json.loads(tap.ok("list", "--json"))[0]["for"] is None
    tap.ok("open", "-p", pid, "-m", 3, "-a", f"vhd:{tap.images}/a.vhd")
    assert json.loads(tap.ok("list", "--json"))[0]["for"] is None


@pytest.mark.parametrize("wrong", ["", "a\nb", "\x1b[2J", "x" * 1025])
def test_for_whom_is_a_line_of_text(tap: TapCtl, owner: "subprocess.Popen[bytes]", wrong: str) -> None:
    pid, _ = open_for(tap, owner.pid, 3)
    answer = ask(tap, pid, op="keep", minor=3, **{"for": wrong})
    assert answer["message"] == "keep: for: wrong type or out of range"
    tap.ok("keep", "-p", pid, "-m", 3, "--for=" + "x" * 1024)


def test_a_disk_without_an_owner_is_not_kept(tap: TapCtl) -> None:
    pid = tap.open(3, "a.vhd")
    assert tap.refused("keep", "-p", pid, "-m", 3) == "minor 3 has no owner, or lost it"


def test_other_disks_of_the_tapdisk_stay(tap: TapCtl, owner: "subprocess.Popen[bytes]") -> None:
    pid = tap.open(1, "a.vhd")
    open_for(tap, owner.pid, 2, "b.vhd", pid)
    owner.kill()
    wait_for(lambda: "minor=2" not in tap.ok("list"), "the end of the disk without an owner")
    assert tap.ok("list") == f"pid={pid} minor=1 state=0 args=vhd:{tap.images}/a.vhd\n"


def test_an_owner_that_has_ended_already_gets_no_disk(tap: TapCtl, owner: "subprocess.Popen[bytes]") -> None:
    owner.kill()
    owner.wait()
    pid, answer = open_for(tap, owner.pid, 3)
    assert (answer["ok"], answer["errno"]) == (False, 3)
    assert tap.ok("list") == f"pid={pid} minor=3 state=0x40\n"


def test_a_disk_that_was_closed_and_opened_again_has_no_owner(tap: TapCtl, owner: "subprocess.Popen[bytes]") -> None:
    pid, _ = open_for(tap, owner.pid, 3)
    tap.ok("close", "-p", pid, "-m", 3)
    tap.ok("open", "-p", pid, "-m", 3, "-a", f"vhd:{tap.images}/a.vhd")
    owner.kill()
    owner.wait()
    time.sleep(0.3)
    assert "state=0 " in tap.ok("list")


def test_an_open_that_fails_leaves_no_owner(tap: TapCtl, owner: "subprocess.Popen[bytes]") -> None:
    pid, _ = open_for(tap, owner.pid, 3)
    answer = ask(tap, pid, op="open", minor=4, args="vhd:/none", owner=owner.pid)
    assert answer["ok"] is False
    assert tap.refused("keep", "-p", pid, "-m", 4)
    for wrong in (0, -1, "1", True, 1 << 31):
        answer = ask(tap, pid, op="open", minor=3, args="vhd:/none", owner=wrong)
        assert "owner: wrong type or out of range" in str(answer["message"])
