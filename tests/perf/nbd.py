# SPDX-License-Identifier: LGPL-2.1-only
"""As much of an NBD client as the bench needs beside fio: is the server there, how big is its disk, a flush.

The protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, fixed newstyle, NBD_OPT_EXPORT_NAME.
"""

import contextlib
import socket
import struct
from pathlib import Path
from types import TracebackType

MAGIC = b"NBDMAGICIHAVEOPT"
NO_ZEROES = 2
FIXED = 1
OPT_EXPORT_NAME = 1
CMD_READ, CMD_DISC, CMD_FLUSH = 0, 2, 3
FLAG_FLUSH = 4
REQUEST, REPLY = 0x25609513, 0x67446698


class NbdError(Exception):
    """The server does not speak NBD, or refuses."""


class Client:
    """A connection to the unnamed export on a unix socket. Raises OSError or NbdError."""

    def __init__(self, path: Path, timeout: float = 60.0) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(timeout)
            self.sock.connect(str(path))
            hello = self._receive(18)
            if hello[:16] != MAGIC:
                raise NbdError(f"not a newstyle NBD server: {hello!r}")
            (flags,) = struct.unpack(">H", hello[16:])
            self.sock.sendall(struct.pack(">I", flags & (FIXED | NO_ZEROES)))
            self.sock.sendall(b"IHAVEOPT" + struct.pack(">II", OPT_EXPORT_NAME, 0))
            self.size, self.flags = struct.unpack(">QH", self._receive(10))
            if not flags & NO_ZEROES:
                self._receive(124)
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self.sock.sendall(struct.pack(">IHHQQI", REQUEST, 0, CMD_DISC, 0, 0, 0))
        self.sock.close()

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.sock.recv(length - len(data))
            if not part:
                raise NbdError("the server closed the connection")
            data += part
        return data

    def _request(self, command: int, offset: int = 0, length: int = 0) -> None:
        self.sock.sendall(struct.pack(">IHHQQI", REQUEST, 0, command, 1, offset, length))
        magic, error, _handle = struct.unpack(">IIQ", self._receive(16))
        if magic != REPLY:
            raise NbdError(f"bad reply magic {magic:#x}")
        if error:
            raise NbdError(f"command {command}: error {error}")

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk."""
        self._request(CMD_READ, offset, length)
        return self._receive(length)

    def flush(self) -> None:
        """Make all acknowledged writes durable; nothing if the server knows no flush."""
        if self.flags & FLAG_FLUSH:
            self._request(CMD_FLUSH)
