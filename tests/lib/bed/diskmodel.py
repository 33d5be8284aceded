#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-only
"""Runs in a bed: random requests to a block device, each read held against what was written. Arguments: device, seed, count.

Past the page cache (O_DIRECT), of one sector to several MiB, so that the kernel splits the long ones. A range that
was discarded may hold what it had or zeros until it is written again. Prints the SHA-256 of the device at the end.
"""

import fcntl
import hashlib
import mmap
import os
import random
import struct
import sys

BLKDISCARD = 0x1277
BLKZEROOUT = 0x127F
BLKSSZGET = 0x1268
LONGEST = 1 << 20


def main() -> None:
    """Do it."""
    path, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    device = os.open(path, os.O_RDWR | os.O_DIRECT)
    size = os.lseek(device, 0, os.SEEK_END)
    [sector] = struct.unpack("i", fcntl.ioctl(device, BLKSSZGET, bytes(4)))
    buffer = mmap.mmap(-1, LONGEST)
    model = bytearray()
    for at in range(0, size, LONGEST):
        length = min(LONGEST, size - at)
        os.preadv(device, [memoryview(buffer)[:length]], at)
        model += buffer[:length]
    loose = bytearray(size // sector)

    def check(at: int, length: int) -> None:
        """Read a range and compare it."""
        got = os.preadv(device, [memoryview(buffer)[:length]], at)
        if got != length:
            raise SystemExit(f"seed {seed}: read of {length} at {at} gave {got}")
        if not any(loose[at // sector : (at + length) // sector]):
            if buffer[:length] != model[at : at + length]:
                raise SystemExit(f"seed {seed}: wrong data in {length} bytes at {at}")
            return
        for place in range(at, at + length, sector):
            data = buffer[place - at : place - at + sector]
            if data != model[place : place + sector] and not (loose[place // sector] and not any(data)):
                raise SystemExit(f"seed {seed}: wrong sector at {place}")

    for _ in range(count):
        longest = rng.choice((1, 8, 64, 512, LONGEST // sector))
        sectors = rng.randint(1, min(longest, LONGEST // sector, size // sector))
        at = rng.randrange(size // sector - sectors + 1) * sector
        length = sectors * sector
        what = rng.random()
        if what < 0.4:
            data = rng.randbytes(length)
            buffer[:length] = data
            if os.pwritev(device, [memoryview(buffer)[:length]], at) != length:
                raise SystemExit(f"seed {seed}: short write at {at}")
            model[at : at + length] = data
            loose[at // sector : at // sector + sectors] = bytes(sectors)
        elif what < 0.5:
            fcntl.ioctl(device, BLKDISCARD, struct.pack("QQ", at, length))
            loose[at // sector : at // sector + sectors] = b"\1" * sectors
        elif what < 0.6:
            fcntl.ioctl(device, BLKZEROOUT, struct.pack("QQ", at, length))
            model[at : at + length] = bytes(length)
            loose[at // sector : at // sector + sectors] = bytes(sectors)
        elif what < 0.65:
            os.fsync(device)
        else:
            check(at, length)
    digest = hashlib.sha256()
    for at in range(0, size, LONGEST):
        length = min(LONGEST, size - at)
        check(at, length)
        digest.update(buffer[:length])
    os.fsync(device)
    print(digest.hexdigest())


main()
