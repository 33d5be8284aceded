# SPDX-License-Identifier: LGPL-2.1-only
"""An NBD server whose every byte a test may choose, for tests of the client."""

import ctypes
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

SO_ATTACH_FILTER = 26

READ, WRITE, DISC, FLUSH, TRIM, ZERO, STATUS = 0, 1, 2, 3, 4, 6, 7
ALL_FLAGS = 0x1 | 0x4 | 0x20 | 0x40
READ_ONLY = 0x2

OPT_EXPORT_NAME, OPT_GO, OPT_STRUCTURED, OPT_SET_CONTEXT = 1, 7, 8, 10
REP_ACK, REP_INFO, REP_CONTEXT, ERR_UNSUP = 1, 3, 4, 0x80000001


@dataclass(frozen=True)
class Request:
    """A command as it came. connection counts from 0."""

    connection: int
    flags: int
    type: int
    cookie: int
    offset: int
    length: int
    data: bytes


def simple(request: Request, error: int = 0, data: bytes = b"") -> bytes:
    """A simple reply."""
    return struct.pack(">IIQ", 0x67446698, error, request.cookie) + data


def chunk(request: Request, kind: int, payload: bytes = b"", *, last: bool = True, length: int | None = None) -> bytes:
    """A chunk of a structured reply, with a length that may lie."""
    size = len(payload) if length is None else length
    return struct.pack(">IHHQI", 0x668E33EF, last, kind, request.cookie, size) + payload


def data_chunk(request: Request, offset: int, data: bytes, *, last: bool = True) -> bytes:
    """Data at an offset of the disk."""
    return chunk(request, 1, struct.pack(">Q", offset) + data, last=last)


def option_reply(option: int, kind: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """The reply to an option, with a length that may lie."""
    size = len(payload) if length is None else length
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, size) + payload


def lose_power(connection: socket.socket) -> None:
    """As if the connection's host had: the kernel gets nothing of what comes, and acknowledges nothing."""
    drop_all = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0), 8)
    program = struct.pack("@HP", 1, ctypes.addressof(drop_all))
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


Answer = Callable[[Request], bytes | None]
"""What is sent for a command; None ends the connection."""
OptionAnswer = Callable[[int, bytes], bytes | None]


@dataclass
class FakeServer:
    """Listens at path, or with tcp at a port of 127.0.0.1. size may change between connections.

    answer: of commands; without it they are served from memory. option: of options; None: as usual.
    """

    path: Path
    tcp: bool = False
    port: int = 0
    size: int = 1 << 20
    flags: int = ALL_FLAGS
    greeting: bytes = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)
    structured: bool = True
    has_go: bool = True
    blocks: tuple[int, int, int] | None = None
    answer: Answer | None = None
    option: OptionAnswer | None = None
    memory: bytearray = field(default_factory=bytearray)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    open: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> "FakeServer":
        self.memory = bytearray(self.size)
        self.listener = socket.socket(socket.AF_INET if self.tcp else socket.AF_UNIX)
        self.listener.bind(("127.0.0.1", 0) if self.tcp else str(self.path))
        if self.tcp:
            self.port = self.listener.getsockname()[1]
        self.listener.listen()
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()
        if not self.tcp:
            self.path.unlink()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            number = self.connections
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        self.open.append(connection)
        with connection, connection.makefile("rb") as stream:
            try:
                if self._handshake(connection, stream.read):
                    self._commands(connection, stream.read, number)
            except (OSError, struct.error):
                pass
            self.open.remove(connection)

    def _export(self) -> bytes:
        return struct.pack(">QH", self.size, self.flags)

    def _option(self, option: int, data: bytes) -> bytes | None:
        chosen = self.option(option, data) if self.option else None
        if chosen is not None:
            return chosen
        if option == OPT_STRUCTURED and self.structured:
            return option_reply(option, REP_ACK)
        if option == OPT_SET_CONTEXT and self.structured:
            return option_reply(option, REP_CONTEXT, struct.pack(">I", 7) + b"base:allocation") + option_reply(
                option, REP_ACK
            )
        if option == OPT_GO and self.has_go:
            infos = option_reply(option, REP_INFO, struct.pack(">H", 0) + self._export())
            if self.blocks:
                infos += option_reply(option, REP_INFO, struct.pack(">HIII", 3, *self.blocks))
            return infos + option_reply(option, REP_ACK)
        return option_reply(option, ERR_UNSUP, b"no such option")

    def _handshake(self, connection: socket.socket, read: Callable[[int], bytes]) -> bool:
        connection.sendall(self.greeting)
        (client_flags,) = struct.unpack(">I", read(4))
        while True:
            _, option, length = struct.unpack(">QII", read(16))
            data = read(length)
            if option == OPT_EXPORT_NAME:
                connection.sendall(self._export() + (b"" if client_flags & 2 else bytes(124)))
                return True
            reply = self._option(option, data)
            if not reply:
                return False
            connection.sendall(reply)
            if option == OPT_GO and reply.endswith(option_reply(option, REP_ACK)):
                return True

    def _commands(self, connection: socket.socket, read: Callable[[int], bytes], number: int) -> None:
        while True:
            _, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", read(28))
            data = read(length) if kind == WRITE else b""
            request = Request(number, flags, kind, cookie, offset, length, data)
            self.requests.append(request)
            reply = (self.answer or self.serve)(request)
            if reply is None:
                return
            connection.sendall(reply)

    def serve(self, request: Request) -> bytes | None:
        """The right answer, from memory."""
        part = slice(request.offset, request.offset + request.length)
        match request.type:
            case 0 if self.structured:
                return data_chunk(request, request.offset, bytes(self.memory[part]))
            case 0:
                return simple(request, 0, bytes(self.memory[part]))
            case 1:
                self.memory[part] = request.data
            case 2:
                return None
            case 4 | 6:
                self.memory[part] = bytes(request.length)
            case 7:
                return chunk(request, 5, struct.pack(">III", 7, request.length, 0))
        return simple(request)
