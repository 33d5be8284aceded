# SPDX-License-Identifier: LGPL-2.1-only
"""The image lock against QEMU's own, in both directions.

QEMU's tools share what they read through the raw driver with writers, so
qemu-img info of a raw image is not refused, whoever writes it; through vpc it is.
"""

import fcntl
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lib import vhdutil
from tests.lib.disk import Disk
from tests.lib.programs import program

SIZE = 1 << 20
OUR_BYTE = 300
"""The one that only our programs lock: docs/architecture.md, "Image lock"."""
LOCKED = b"locked\n"
PROMPT = b"qemu-io> "


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A raw image full of zeros."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def vhd(tmp_path: Path) -> Path:
    path = tmp_path / "disk.vhd"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vpc", path, str(SIZE)], check=True, timeout=60)
    return path


@contextmanager
def holding(argv: list[str], ready: bytes) -> Iterator[int]:
    """Runs argv, which says `ready` when it has the image, and ends with its standard input. Gives its pid."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.read(len(ready)) == ready
        yield process.pid
        process.stdin.close()
        assert process.wait(60) == 0


@contextmanager
def ours(mode: str, image: Path) -> Iterator[int]:
    with holding([str(program("tests/tool-lock")), mode, str(image)], LOCKED) as pid:
        yield pid


@contextmanager
def qemu(mode: str, image: Path) -> Iterator[int]:
    form = "vpc" if image.suffix == ".vhd" else "raw"
    readonly = ["-r"] if mode == "reader" else []
    with holding(["qemu-io", "-f", form, *readonly, str(image)], PROMPT) as pid:
        yield pid


def take_lock(mode: str, image: Path) -> tuple[int, str]:
    """Exit status and message of one attempt of ours."""
    done = subprocess.run(
        [program("tests/tool-lock"), mode, image],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def run_qemu(*argv: str) -> tuple[int, str]:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


REFUSED = {
    "write": "qemu-io -f raw -c 'write -P 1 0 512' disk.img",
    "resize": "qemu-img resize -f raw disk.img 2M",
    "nbd": "qemu-nbd -f raw -k $PWD/nbd.sock disk.img",
    "nbd-readonly": "qemu-nbd -r -f raw -k $PWD/nbd.sock disk.img",
    "vhd-write": "qemu-io -f vpc -c 'write -P 1 0 512' disk.vhd",
    "vhd-read": "qemu-io -r -f vpc -c 'read 0 512' disk.vhd",
    "vhd-info": "qemu-img info -f vpc disk.vhd",
    "vhd-convert": "qemu-img convert -f vpc -O raw disk.vhd out.img",
}


@pytest.mark.parametrize("command", REFUSED.values(), ids=REFUSED.keys())
def test_qemu_is_refused_an_image_that_we_write(
    image: Path, vhd: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image.parent)
    before = image.read_bytes(), vhd.read_bytes()
    with ours("writer", image), ours("writer", vhd):
        status, output = run_qemu("sh", "-c", command)
    assert status != 0
    assert "Failed to get" in output and "lock" in output
    assert (image.read_bytes(), vhd.read_bytes()) == before


@pytest.mark.parametrize("mode", ["reader", "writer"])
def test_we_are_refused_an_image_that_qemu_writes(image: Path, mode: str) -> None:
    with qemu("writer", image) as pid:
        status, message = take_lock(mode, image)
    assert status == 1
    assert message == f"{image}: in use: qemu-io (pid {pid}) has it open for writing; end that use first\n"
    assert take_lock(mode, image) == (0, "")


def test_we_do_not_write_an_image_that_qemu_reads(vhd: Path) -> None:
    with qemu("reader", vhd):
        status, message = take_lock("writer", vhd)
    assert status == 1
    assert "forbids all others to write" in message


def test_qemu_does_not_write_an_image_that_we_read(image: Path) -> None:
    with ours("reader", image):
        status, output = run_qemu("qemu-io", "-f", "raw", "-c", "write 0 512", str(image))
    assert status != 0
    assert 'Failed to get "write" lock' in output


def test_readers_of_both_kinds_share_an_image(vhd: Path) -> None:
    with ours("reader", vhd), qemu("reader", vhd), ours("reader", vhd):
        assert take_lock("reader", vhd) == (0, "")
        status, output = run_qemu("qemu-io", "-r", "-f", "vpc", "-c", "read 0 512", str(vhd))
        assert status == 0, output
        assert take_lock("writer", vhd)[0] == 1


def test_lock_goes_with_a_killed_holder(image: Path) -> None:
    argv = [str(program("tests/tool-lock")), "writer", str(image)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.read(len(LOCKED)) == LOCKED
        assert take_lock("reader", image)[0] == 1
        holder.kill()
        holder.wait(60)
        assert take_lock("writer", image) == (0, "")


def test_an_image_opens_at_once_after_its_process_was_killed(image: Path) -> None:
    """io_uring lets go of a dead process's files a moment after its death."""
    for _ in range(15):
        Disk(f"aio:{image}").crash()
    with Disk(f"aio:{image}") as disk:
        assert disk.read(0, 1) == [0]


@contextmanager
def locked_by_nobody(path: Path, seconds: float) -> Iterator[None]:
    """Its lock is held for so long, by no process: the open file is on its way through a socket, as in a dead tapdisk's ring."""
    near, far = socket.socketpair()
    with near, far:
        with path.open("r+b") as file:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, OUR_BYTE, 1, 0))
            socket.send_fds(near, [b"x"], [file.fileno()])
        timer = threading.Timer(seconds, far.close)
        timer.start()
        try:
            yield
        finally:
            timer.join()


def test_a_tool_waits_for_the_lock_of_the_dead_without_a_word(vhd: Path) -> None:
    assert run_qemu("qemu-io", "-f", "vpc", "-c", "write 0 512", str(vhd))[0] == 0
    begin = time.monotonic()
    with locked_by_nobody(vhd, 0.3):
        vhdutil.ok("repair", "-n", vhd)
        assert time.monotonic() - begin > 0.2


@pytest.mark.parametrize(
    ("theirs", "use"),
    [("writer", "has it open for writing"), ("reader", "reads it")],
)
def test_the_refusal_names_the_process_that_holds_the_lock(image: Path, theirs: str, use: str) -> None:
    """And no other that only has the file open."""
    with image.open("r+b"), ours(theirs, image) as pid, image.open("r+b"):
        assert take_lock("writer", image) == (
            1,
            f"{image}: in use: tool-lock (pid {pid}) {use}; end that use first\n",
        )
