# SPDX-License-Identifier: LGPL-2.1-only
"""How far the long commands of vhd-util say they are, and how a signal ends them."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lib import vhdref
from tests.lib.disk import Disk
from tests.lib.programs import program
from tests.lib.vhdmake import MIB
from tests.lib.vhdutil import FOUND, fails, ok

pytestmark = pytest.mark.io

ENV = dict(os.environ, XENBLK_CONFIG="/nonexistent/xenblk-config", ASAN_OPTIONS=f"exitcode={FOUND}")
BLOCKS = 32


def image(path: Path, seed: int = 1) -> Path:
    """A dynamic image with data in every second block."""
    ok("create", "-n", path, "-s", 2 * BLOCKS)
    with Disk(f"vhd:{path}") as disk:
        assert set(disk.batch([f"w {4096 * i + 5} 9 {seed}" for i in range(0, BLOCKS, 2)])) == {"ok"}
    return path


def child(tmp_path: Path) -> Path:
    path = tmp_path / "child.vhd"
    ok("snapshot", "-n", path, "-p", image(tmp_path / "base.vhd"))
    with Disk(f"vhd:{path}") as disk:
        assert set(disk.batch([f"w {4096 * i} 9 2" for i in range(BLOCKS)])) == {"ok"}
    return path




COMMANDS: dict[str, Callable[[Path], list[str | Path | int]]] = {
    "coalesce": lambda d: ["coalesce", "-n", child(d)],
    "copy": lambda d: ["copy", "-n", image(d / "a.vhd"), "-N", d / "new.vhd"],
    "convert": lambda d: ["convert", "-n", f"vhd:{image(d / 'a.vhd')}", "-N", f"raw:{d / 'new.raw'}"],
    "fill": lambda d: ["fill", "-n", image(d / "a.vhd")],
    "resize": lambda d: ["resize", "-n", image(d / "a.vhd"), "-s", 2_000_000],
    "check": lambda d: ["check", "-b", "-n", image(d / "a.vhd")],
}

STEPWISE = ("fill", "resize", "check")
"""They tell of each block; the others when their engine has waited."""


@pytest.mark.parametrize("name", COMMANDS)
def test_progress_is_told_in_lines_that_grow_to_the_end(tmp_path: Path, name: str) -> None:
    lines = [line for line in ok(*COMMANDS[name](tmp_path), "--progress=1").splitlines() if "/100" in line]
    numbers = [int(line.removesuffix("/100")) for line in lines]
    assert numbers[-1] == 100 and numbers == sorted(set(numbers))
    if name in STEPWISE:
        assert len(numbers) > 2


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "check"])
def test_a_bar_is_shown_on_a_terminal_alone(tmp_path: Path, name: str) -> None:
    argv = [str(arg) for arg in COMMANDS[name](tmp_path)]
    ours, theirs = pty.openpty()
    done = subprocess.run([program("vhd-util"), *argv, "-p"], env=ENV, stderr=theirs, stdout=subprocess.PIPE, check=False)
    os.close(theirs)
    text = os.read(ours, 65536)
    os.close(ours)
    assert done.returncode == 0
    assert done.stdout.startswith(b"Coalesced ") if name == "coalesce" else done.stdout == b""
    assert text.endswith(b"\r100 %\r\n")
    # ok(): nothing on stderr
    (tmp_path / "off").mkdir()
    ok(*COMMANDS[name](tmp_path / "off"), "-p")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("descriptor", ["x", "77"])
def test_a_descriptor_that_is_none_is_refused(tmp_path: Path, name: str, descriptor: str) -> None:
    argv = COMMANDS[name](tmp_path)
    assert "--progress" in fails(*argv, f"--progress={descriptor}", status=1 if name == "check" else 2)


def signalled(argv: list[str | Path | int], sig: signal.Signals) -> tuple[int, str]:
    """The status and the message of a command that gets a signal behind its first line.

    Its pipe has no room for the second one until then.
    """
    read, write = os.pipe()
    filled = os.write(write, bytes(fcntl.fcntl(write, fcntl.F_GETPIPE_SZ) - len("100/100\n")))
    process = subprocess.Popen(
        [program("vhd-util"), *map(str, argv), f"--progress={write}"],
        env=ENV,
        pass_fds=[write],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    os.close(write)
    while fcntl.ioctl(read, termios.FIONREAD, bytes(4)) == struct.pack("i", filled) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(sig)
    while os.read(read, 65536):
        pass
    _, text = process.communicate()
    os.close(read)
    return process.returncode, text.decode()


@pytest.mark.parametrize("name", STEPWISE)
def test_sigusr1_asks_how_far_it_is(tmp_path: Path, name: str) -> None:
    status, text = signalled(COMMANDS[name](tmp_path), signal.SIGUSR1)
    assert status == 0
    assert 0 <= int(text.removesuffix("/100\n")) <= 100


@pytest.mark.parametrize("name", STEPWISE)
def test_a_signal_stops_it_and_the_image_is_whole(tmp_path: Path, name: str) -> None:
    argv = COMMANDS[name](tmp_path)
    path = tmp_path / "a.vhd"
    before = vhdref.Chain(path).read(0, 2 * BLOCKS * MIB)
    status, text = signalled(argv, signal.SIGTERM)
    assert status == 1 and "stopped by a signal" in text
    assert vhdref.Chain(path).read(0, 2 * BLOCKS * MIB) == before
    assert ok("check", "-n", path, "-b") == f"{path} is valid\n"
    ok(*argv)
    assert vhdref.Chain(path).read(0, 2 * BLOCKS * MIB) == before
    ok("check", "-n", path, "-b")
