# SPDX-License-Identifier: LGPL-2.1-only
"""Who may speak to the control socket, when its directory has been opened to all. Needs root."""

import errno
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.lib.programs import program

NOBODY = 65534


def ask_as(uid: int, path: Path) -> dict[str, object]:
    """The answer that a process of that user gets."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(path))
            os.write(writer, connection.recv(65536))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        text = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    return dict(json.loads(text))


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that other users get into; pytest's own they don't."""
    with TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o711)
        yield path


def test_other_users_are_refused_even_if_the_directory_lets_them_in(directory: Path) -> None:
    tap_ctl = str(program("tap-ctl"))
    control = directory / "ctl"
    env = {**os.environ, "XENBLK_CONTROL_DIR": str(control), "TAPDISK": str(program("tests/tool-control"))}
    spawned = subprocess.run([tap_ctl, "spawn"], env=env, stdout=subprocess.PIPE, check=True, timeout=60)
    pid = int(spawned.stdout)
    try:
        control.chmod(0o755)
        (control / f"ctl{pid}").chmod(0o666)
        answer = ask_as(NOBODY, control / f"ctl{pid}")
        assert answer["ok"] is False and answer["errno"] == errno.EPERM
        listed = subprocess.run([tap_ctl, "list"], env=env, stdout=subprocess.PIPE, check=True, timeout=60)
        assert listed.stdout == f"pid={pid}\n".encode()
    finally:
        os.kill(pid, signal.SIGKILL)
