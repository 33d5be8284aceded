# SPDX-License-Identifier: LGPL-2.1-only
"""Runs in a bed: random requests on a block device, each read held against a model.

    python3 blockmodel.py DEVICE SEED REQUESTS BLOCK_SIZE MODEL

The disk reads as zeros at first. What it holds at the end goes to the file MODEL. Prints how many requests of each kind there were.
"""

import fcntl
import mmap
import os
import random
import struct
import sys
from collections import Counter

BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F
MAX_BYTES = 1 << 20


class Model:
    """The device and what it must hold."""

    def __init__(self, path: str, block: int) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.size = os.lseek(self.fd, 0, os.SEEK_END)
        self.block = block
        self.data = bytearray(self.size)
        self.buffer = mmap.mmap(-1, MAX_BYTES + 4096)
        self.done: Counter[str] = Counter()

    def read(self, start: int, length: int, shift: int) -> bytes:
        view = memoryview(self.buffer)[shift : shift + length]
        assert os.preadv(self.fd, [view], start) == length
        return bytes(view)

    def check(self, start: int, length: int, shift: int) -> None:
        got = self.read(start, length, shift)
        if got != self.data[start : start + length]:
            bad = next(i for i in range(length) if got[i] != self.data[start + i])
            sys.exit(f"byte {start + bad} is {got[bad]:#x}, not {self.data[start + bad]:#x}; {dict(self.done)}")

    def write(self, rng: random.Random, start: int, length: int, shift: int, durable: bool) -> None:
        data = rng.randbytes(length)
        view = memoryview(self.buffer)[shift : shift + length]
        view[:] = data
        assert os.pwritev(self.fd, [view], start, os.RWF_DSYNC if durable else 0) == length
        self.data[start : start + length] = data

    def zero(self, start: int, length: int) -> None:
        fcntl.ioctl(self.fd, BLKZEROOUT, struct.pack("QQ", start, length))
        self.data[start : start + length] = bytes(length)

    def discard(self, start: int, length: int) -> None:
        """Each sector has what it had, or zeros."""
        fcntl.ioctl(self.fd, BLKDISCARD, struct.pack("QQ", start, length))
        for at in range(start, start + length, MAX_BYTES):
            got = self.read(at, min(MAX_BYTES, start + length - at), 0)
            for sector in range(at, at + len(got), 512):
                now = got[sector - at : sector - at + 512]
                if now != self.data[sector : sector + 512] and any(now):
                    sys.exit(f"the discarded sector {sector // 512} has neither what it had nor zeros")
            self.data[at : at + len(got)] = got

    def step(self, rng: random.Random) -> None:
        blocks = min(1 << rng.randrange(12), MAX_BYTES // self.block)
        length = rng.randint(1, blocks) * self.block
        start = rng.randrange((self.size - length) // self.block + 1) * self.block
        shift = rng.randrange(4096 // self.block) * self.block
        kind = rng.choices(
            ("read", "write", "durable write", "flush", "zero", "discard"), (30, 40, 10, 6, 7, 7)
        )[0]
        self.done[kind] += 1
        if kind == "read":
            self.check(start, length, shift)
        elif kind == "flush":
            os.fsync(self.fd)
        elif kind == "zero":
            self.zero(start, length)
        elif kind == "discard":
            self.discard(start, length)
        else:
            self.write(rng, start, length, shift, kind == "durable write")


def main() -> None:
    device, seed, requests, block, result = sys.argv[1:]
    model = Model(device, int(block))
    rng = random.Random(int(seed))
    for _ in range(int(requests)):
        model.step(rng)
    for start in range(0, model.size, MAX_BYTES):
        model.check(start, min(MAX_BYTES, model.size - start), 0)
    os.fsync(model.fd)
    with open(result, "wb") as file:
        file.write(model.data)
    print(dict(model.done))


if __name__ == "__main__":
    main()
