# SPDX-License-Identifier: LGPL-2.1-only
"""The frames that the host and a bed's agent exchange over a virtio-serial port.

A frame is a 9-byte header, big-endian: u32 job, u8 kind, u32 length, then `length` bytes of payload. `job` is
chosen by the host and never reused. The file is used on both sides, so it may import only the standard library.

host to bed: RUN (JSON {"command", "env"}), PUT (JSON {"path", "mode"}, a newline, then the bytes), GET (JSON {"path"}),
             STDIN (bytes for a running command, empty: end of file), KILL (empty)
bed to host: READY (JSON, job 0), OUT and ERR (output as it comes), DATA (pieces of a file), DONE (JSON {"status"}),
             FAILED (JSON {"message"}: the agent could not do it)
"""

import struct

HEADER = struct.Struct(">IBI")
MAX_PAYLOAD = 1 << 20

RUN, PUT, GET, KILL, STDIN = range(1, 6)
READY, OUT, ERR, DATA, DONE, FAILED = range(16, 22)


class FrameError(Exception):
    """The byte stream is not made of frames."""


def encode(job: int, kind: int, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    if len(payload) > MAX_PAYLOAD:
        raise FrameError(f"frame of {len(payload)} bytes, the limit is {MAX_PAYLOAD}")
    return HEADER.pack(job, kind, len(payload)) + payload


class Decoder:
    """Takes bytes as they arrive and gives back whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Add bytes; return the frames (job, kind, payload) that they complete."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= HEADER.size:
            job, kind, length = HEADER.unpack_from(self._buffer)
            if length > MAX_PAYLOAD:
                raise FrameError(f"frame of {length} bytes, the limit is {MAX_PAYLOAD}")
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append((job, kind, bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
        return frames
