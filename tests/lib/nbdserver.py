# SPDX-License-Identifier: LGPL-2.1-only
"""tapdisk as an NBD server of one image, and its clients."""

import importlib
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lib.programs import program

ENGINES = ["uring", "posix"]


def environment(directory: Path, engine: str) -> dict[str, str]:
    """The environment in which tapdisk uses that engine."""
    config = directory / "config"
    config.write_text(f"version=1\nengine={engine}\n")
    return {**os.environ, "XENBLK_CONFIG": str(config)}


@dataclass(frozen=True)
class Server:
    """A running tapdisk."""

    process: subprocess.Popen[bytes]
    path: Path

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.path}"

    def rss(self) -> int:
        """KiB in memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))

    def connect(self, *, structured: bool = True, status: bool = True) -> Any:
        """A connected libnbd handle."""
        handle = importlib.import_module("nbd").NBD()
        handle.set_request_structured_replies(structured)
        if status and structured:
            handle.add_meta_context("base:allocation")
        handle.connect_unix(str(self.path))
        return handle

    def raw(self) -> socket.socket:
        """A connection on which nothing has been said."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(60)
        connection.connect(str(self.path))
        return connection

    def serving(self) -> socket.socket:
        """A connection after NBD_OPT_EXPORT_NAME, with simple replies."""
        connection = self.raw()
        connection.sendall(struct.pack(">IQII", 3, 0x49484156454F5054, 1, 0))
        answer = b""
        while len(answer) < 28:
            answer += connection.recv(28 - len(answer))
        return connection


def request(kind: int, cookie: int, offset: int, length: int, flags: int = 0) -> bytes:
    """A request as on the wire."""
    return struct.pack(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length)


@contextmanager
def serve(
    directory: Path,
    spec: str,
    engine: str = "uring",
    *,
    readonly: bool = False,
    said: bytes = b"",
    mode: str | None = None,
    env: dict[str, str] | None = None,
) -> Iterator[Server]:
    """Serve an image; it must end with status 0 when told to, and say that or nothing on standard error."""
    path = directory / "socket"
    command = [str(program("tapdisk", mode)), f"--nbd={path}", *(["--read-only"] if readonly else []), spec]
    with subprocess.Popen(
        command, env={**environment(directory, engine), **(env or {})}, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr
        try:
            end = time.monotonic() + 30
            while not path.exists():
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < end
                time.sleep(0.01)
            yield Server(process, path)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            words = process.stderr.read()
            assert said in words and bool(said) == bool(words), words
            assert not path.exists()
        finally:
            if process.poll() is None:
                process.kill()
