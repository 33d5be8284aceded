# SPDX-License-Identifier: LGPL-2.1-only
"""tapdisk serving one image by NBD, and a client that speaks as tests/lib/disk.py does."""

import contextlib
import errno
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import nbd

from tests.lib.disk import pattern
from tests.lib.programs import program

START_SECONDS = 20
LOST = "err lost"
"""The answer to a request whose server has gone."""


class Tapdisk:
    """`tapdisk --nbd=SOCKET SPEC`, which has its files beside the socket."""

    def __init__(
        self, directory: Path, spec: str, *, engine: str = "uring", settings: Sequence[str] = ()
    ) -> None:
        """`settings`: lines of the configuration, "key=value"."""
        self.socket = directory / "nbd.sock"
        self.socket.unlink(missing_ok=True)
        config = directory / "config"
        config.write_text("".join(f"{line}\n" for line in ("version=1", *settings)), encoding="utf-8")
        env = {**os.environ, "XENBLK_ENGINE": engine, "XENBLK_CONFIG": str(config)}
        argv = [str(program("tapdisk")), f"--nbd={self.socket}", "--foreground", spec]
        self._errors = (directory / "tapdisk.err").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(argv, env=env, stderr=self._errors)
        end = time.monotonic() + START_SECONDS
        while not self.socket.exists():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise OSError(f"{argv}: {self.log()}")
            time.sleep(0.01)

    def log(self) -> str:
        """What it has written to its standard error."""
        self._errors.seek(0)
        return self._errors.read()

    def kill(self) -> None:
        """As the kernel would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """By SIGTERM, upon which it closes its image; a failure or a sanitizer's finding raises."""
        self.process.terminate()
        status = self.process.wait(timeout=60)
        if status:
            raise OSError(f"tapdisk ended with {status}: {self.log()}")

    def __enter__(self) -> "Tapdisk":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self.process.poll() is None:
            self.stop()
        else:
            self.kill()
            print(self.log())
        self._errors.close()


class _Request:
    """One command on its connection."""

    def __init__(self, connection: Any, command: str) -> None:
        self.connection = connection
        self.words = command.split()
        self.answer = ""
        place = [int(word) * 512 for word in self.words[1:3]]
        with self._errors():
            match self.words[0]:
                case "w":
                    seed = int(self.words[3])
                    first = int(self.words[1])
                    data = b"".join(pattern(first + i, seed) for i in range(int(self.words[2])))
                    self.buffer = nbd.Buffer.from_bytearray(bytearray(data))
                    self.cookie = connection.aio_pwrite(self.buffer, place[0])
                case "r":
                    self.buffer = nbd.Buffer(place[1])
                    self.cookie = connection.aio_pread(self.buffer, place[0])
                case "f":
                    self.cookie = connection.aio_flush()
                case "z":
                    self.cookie = connection.aio_zero(place[1], place[0])
                case "d":
                    self.cookie = connection.aio_trim(place[1], place[0])
                case other:
                    raise ValueError(f"no such command: {other}")

    @contextlib.contextmanager
    def _errors(self) -> Any:
        try:
            yield
        except nbd.Error as error:
            number = error.errnum
            self.answer = f"err {number}" if number and number != errno.ENOTCONN else LOST

    def look(self) -> bool:
        """Has it been answered?"""
        if not self.answer:
            with self._errors():
                if self.connection.aio_command_completed(self.cookie):
                    self.answer = self._seeds() if self.words[0] == "r" else "ok"
        return bool(self.answer)

    def _seeds(self) -> str:
        data = bytes(self.buffer.to_bytearray())
        words = []
        for i in range(len(data) // 512):
            sector = data[i * 512 : i * 512 + 512]
            seed = int.from_bytes(sector[8:16], "little")
            if sector == bytes(512):
                words.append("0")
            else:
                words.append(str(seed) if sector == pattern(int(self.words[1]) + i, seed) else "?")
        return " ".join(words)


def _connect(path: Path) -> Any:
    connection = nbd.NBD()
    connection.connect_unix(str(path))
    return connection


class NbdDisk:
    """Several connections to one server, over which the commands of a batch are spread."""

    def __init__(self, path: Path, connections: int = 2) -> None:
        self._connections = []
        for _ in range(connections):
            self._connections.append(_connect(path))

    def start(self, commands: Sequence[str]) -> list[_Request]:
        """Without waiting for them."""
        count = len(self._connections)
        return [_Request(self._connections[i % count], command) for i, command in enumerate(commands)]

    def wait(self, requests: Sequence[_Request], seconds: float = 60) -> list[str]:
        """The answers; TimeoutError if some don't come."""
        end = time.monotonic() + seconds
        while waiting := [request for request in requests if not request.look()]:
            if time.monotonic() > end:
                raise TimeoutError(f"no answer to {[' '.join(request.words) for request in waiting]}")
            # An error is that of all requests, which see it themselves.
            with contextlib.suppress(nbd.Error):
                waiting[0].connection.poll(20)
        return [request.answer for request in requests]

    def batch(self, commands: Sequence[str]) -> list[str]:
        """Runs the commands concurrently; their answers as those of tests/lib/disk.py, or LOST."""
        return self.wait(self.start(commands))

    def vanish(self) -> None:
        """As the end of the client's process would: no word to the server."""
        for connection in self._connections:
            with socket.socket(fileno=os.dup(connection.aio_get_fd())) as end:
                end.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def __enter__(self) -> "NbdDisk":
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            with contextlib.suppress(nbd.Error):
                connection.shutdown()
        self._connections.clear()
