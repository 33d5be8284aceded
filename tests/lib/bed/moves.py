# SPDX-License-Identifier: LGPL-2.1-only
"""A guest's requests to its disk while it is at one host: `moves.py DEVICE STATE SEED`, by direct I/O, eight at a time.

STATE, JSON, is what it comes with: "versions": of each 4 KiB block the number of the write that it holds, 0: none; "last": of the
last write; "unanswered": [block, count, number] of the writes that it had no answer to. First it asks for these again, then it
holds all of the disk against the versions and says "whole". From then on it writes, reads and flushes until its stdin ends. In that
moment it asks for no more, writes to STATE what it goes with, and says "stopped"; it ends, with "answered", when the rest has been
answered. What is not as it was written, and an error, is said, with status 1.
"""

import json
import mmap
import os
import random
import struct
import sys
import threading
from typing import Any

BLOCK = 4096
THREADS = 8
MOST = 16
"""Blocks of a request."""
HOT = 1024
"""Blocks at the disk's beginning that most requests are for."""
MIB = 1 << 20


def content(block: int, version: int) -> bytes:
    """What a block holds."""
    return struct.pack("<QQ", block, version) * (BLOCK // 16) if version else bytes(BLOCK)


def fail(what: str) -> None:
    """At once, whatever is under way."""
    print(f"bad: {what}", flush=True)
    os._exit(1)


class Guest:
    """What it knows; `busy`: blocks that requests are under way for."""

    def __init__(self, device: str, path: str, seed: int) -> None:
        with open(path, encoding="ascii") as file:
            state: dict[str, Any] = json.load(file)
        self.path = path
        self.versions: list[int] = state["versions"]
        self.last: int = state["last"]
        self.again: list[tuple[int, int, int]] = [(block, count, number) for block, count, number in state["unanswered"]]
        self.fd = os.open(device, os.O_RDWR | os.O_DIRECT)
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.busy: set[int] = set()
        self.unanswered: set[tuple[int, int, int]] = set()
        self.stopped = False

    def write(self, buffer: mmap.mmap, write: tuple[int, int, int]) -> None:
        """Write blocks; when that is answered they hold it."""
        block, count, version = write
        buffer[: count * BLOCK] = b"".join(content(block + i, version) for i in range(count))
        done = os.pwritev(self.fd, [memoryview(buffer)[: count * BLOCK]], block * BLOCK)
        if done != count * BLOCK:
            fail(f"{done} bytes of {count * BLOCK} were written at block {block}")
        with self.lock:
            self.unanswered.discard(write)
            for i in range(block, block + count):
                self.versions[i] = version

    def compare(self, buffer: mmap.mmap, block: int, count: int, when: str) -> None:
        """Hold blocks that nothing is under way for against what they have to hold."""
        length = count * BLOCK
        if os.preadv(self.fd, [memoryview(buffer)[:length]], block * BLOCK) != length:
            fail(f"a short read at block {block}")
        versions = self.versions[block : block + count]
        wanted = b"".join(content(block + i, v) for i, v in enumerate(versions)) if any(versions) else bytes(length)
        if buffer[:length] != wanted:
            for i, version in enumerate(versions):
                has = buffer[i * BLOCK : (i + 1) * BLOCK]
                if has != content(block + i, version):
                    fail(f"{when}: block {block + i} has not version {version} but {struct.unpack('<QQ', has[:16])}")

    def one(self, buffer: mmap.mmap) -> bool:
        """A request of any kind. False: no more are wanted."""
        with self.lock:
            if self.stopped:
                return False
            count = self.random.randrange(MOST) + 1
            size = len(self.versions) if self.random.random() < 1 / 16 else HOT
            block = self.random.randrange(size - count)
            wanted = range(block, block + count)
            if not self.busy.isdisjoint(wanted):
                return True
            self.busy.update(wanted)
            kind = self.random.random()
            write = (block, count, self.last + 1)
            if kind < 0.75:
                self.last += 1
                self.unanswered.add(write)
        if kind < 0.75:
            self.write(buffer, write)
        else:
            self.compare(buffer, block, count, "while it writes")
        if kind > 0.95:
            os.fdatasync(self.fd)
        with self.lock:
            self.busy.difference_update(wanted)
        return True

    def stop(self) -> None:
        """Ask for no more, and pack."""
        with self.lock:
            self.stopped = True
            unanswered = sorted(self.unanswered)
            state = {"versions": self.versions, "last": self.last, "unanswered": unanswered}
        with open(self.path, "w", encoding="ascii") as file:
            json.dump(state, file)
        print(f"stopped {len(unanswered)}", flush=True)


def asked(guest: Guest) -> None:
    """A thread that asks for what is asked again."""
    with mmap.mmap(-1, MOST * BLOCK) as buffer:
        while True:
            with guest.lock:
                if not guest.again:
                    return
                write = guest.again.pop()
            guest.write(buffer, write)


def requests(guest: Guest) -> None:
    """A thread of the load."""
    with mmap.mmap(-1, MOST * BLOCK) as buffer:
        while guest.one(buffer):
            pass


def guarded(work: Any, guest: Guest) -> None:
    """No thread ends for a reason that is not said."""
    try:
        work(guest)
    except BaseException as error:  # pylint: disable=broad-except
        fail(repr(error))


def at_once(work: Any, guest: Guest) -> list[threading.Thread]:
    """So many threads of it."""
    threads = [threading.Thread(target=guarded, args=(work, guest)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    return threads


def main() -> None:
    """A stay at a host."""
    guest = Guest(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    for thread in at_once(asked, guest):
        thread.join()
    with mmap.mmap(-1, MIB) as buffer:
        for block in range(0, len(guest.versions), MIB // BLOCK):
            guest.compare(buffer, block, MIB // BLOCK, "on arrival")
    print("whole", flush=True)
    threads = at_once(requests, guest)
    sys.stdin.read()
    guest.stop()
    for thread in threads:
        thread.join()
    print("answered", flush=True)


main()
