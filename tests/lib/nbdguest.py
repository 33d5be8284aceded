# SPDX-License-Identifier: LGPL-2.1-only
"""A guest's requests over NBD: with flags, many at a time, and with what a death of the server leaves unanswered."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbd

from tests.lib.guestbytes import SECTOR, Op

SECONDS = 60
CHUNK = 4096
"""Sectors of a large read."""


class Request:
    """One that was sent. Neither done nor lost: under way."""

    def __init__(self, connection: Any, op: Op) -> None:
        self.connection, self.op = connection, op
        self.done = self.lost = False
        place, length = op.start * SECTOR, op.count * SECTOR
        flags = nbd.CMD_FLAG_FUA if op.fua else 0
        with self._losing():
            match op.kind:
                case "write":
                    self.buffer = bytearray(op.content())
                    self.cookie = connection.aio_pwrite(self.buffer, place, flags=flags)
                case "read":
                    # libnbd 1.14 never frees an nbd.Buffer
                    self.buffer = bytearray(length)
                    self.cookie = connection.aio_pread(self.buffer, place)
                case "zero":
                    flags |= nbd.CMD_FLAG_NO_HOLE if op.no_hole else 0
                    self.cookie = connection.aio_zero(length, place, flags=flags)
                case "trim":
                    self.cookie = connection.aio_trim(length, place, flags=flags)
                case "flush":
                    self.cookie = connection.aio_flush()
                case other:
                    raise ValueError(other)

    @contextlib.contextmanager
    def _losing(self) -> Any:
        try:
            yield
        except nbd.Error as error:
            # A dead connection is not the server's answer.
            assert not self.connection.aio_is_ready(), f"{self.op}: {error}"
            self.lost = True

    def look(self) -> bool:
        """Is it no longer under way?"""
        if not (self.done or self.lost):
            with self._losing():
                self.done = bool(self.connection.aio_command_completed(self.cookie))
        return self.done or self.lost

    def data(self) -> bytes:
        """What was read."""
        return bytes(self.buffer)


class Guest:
    """Connections to one server, over which requests are spread."""

    def __init__(self, path: Path, connections: int = 2) -> None:
        self._connections = []
        for _ in range(connections):
            connection = nbd.NBD()
            connection.add_meta_context("base:allocation")
            connection.connect_unix(str(path))
            self._connections.append(connection)

    @property
    def sectors(self) -> int:
        """The disk's size as the server told it."""
        return int(self._connections[0].get_size()) // SECTOR

    def start(self, ops: Sequence[Op]) -> list[Request]:
        """Without waiting for them."""
        count = len(self._connections)
        return [Request(self._connections[i % count], op) for i, op in enumerate(ops)]

    def wait(self, requests: Sequence[Request], enough: int | None = None) -> None:
        """Until so many, or all, aren't under way. An error of the server raises, its death doesn't."""
        end = time.monotonic() + SECONDS
        while True:
            waiting = [request for request in requests if not request.look()]
            if not waiting or (enough is not None and len(requests) - len(waiting) >= enough):
                return
            assert time.monotonic() < end, f"no answer to {[request.op for request in waiting]}"
            # The requests themselves see what becomes of their connection.
            with contextlib.suppress(nbd.Error):
                waiting[0].connection.poll(20)

    def run(self, ops: Sequence[Op]) -> list[Request]:
        """Together, all of them answered well."""
        requests = self.start(ops)
        self.wait(requests)
        assert not [request.op for request in requests if request.lost], "the connection is gone"
        return requests

    def read(self, start: int, count: int) -> bytes:
        """In several requests if it is long."""
        ops = [Op("read", s, min(CHUNK, start + count - s)) for s in range(start, start + count, CHUNK)]
        return b"".join(request.data() for request in self.run(ops))

    def status(self, start: int, count: int) -> list[tuple[int, int, int]]:
        """Extents (start, count, NBD's flags) of what was asked for, asking on until all are told."""
        extents: list[tuple[int, int, int]] = []
        end = start + count
        while start < end:
            entries: list[int] = []

            def told(_context: str, _offset: int, numbers: list[int], _error: int, to: list[int] = entries) -> int:
                to += numbers
                return 0

            self._connections[0].block_status((end - start) * SECTOR, start * SECTOR, told)
            assert entries and len(entries) % 2 == 0, "no extents"
            for length, flags in zip(entries[::2], entries[1::2], strict=True):
                assert length and length % SECTOR == 0, f"an extent of {length} bytes"
                extents.append((start, min(length // SECTOR, end - start), flags))
                start += length // SECTOR
        return extents

    def close(self) -> None:
        """Whether or not the server is still there."""
        for connection in self._connections:
            with contextlib.suppress(nbd.Error):
                connection.shutdown()
        self._connections.clear()
