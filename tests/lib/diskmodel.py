# SPDX-License-Identifier: LGPL-2.1-only
"""Random use of a disk that changes, zeroes and discards, against a model of it."""

import random

from tests.lib.disk import Disk


def exercise(disk: Disk, rng: random.Random, rounds: int, *, large: int = 1000) -> None:
    """Writes, zeroes, discards and reads, then reads the whole disk, which begins as zeros.

    large: sectors of the largest request. A discarded sector reads as it did or as zeros.
    """
    seeds = [{0}] * disk.sectors
    for seed in range(1, rounds + 1):
        start = rng.randrange(disk.sectors)
        count = min(rng.choice([1, 8, 9, 128, large]), disk.sectors - start)
        op = rng.choice("wwzZdrr")
        match op:
            case "w":
                assert disk.write(start, count, seed) == "ok"
                seeds[start : start + count] = [{seed}] * count
            case "z" | "Z":
                assert disk.zero(start, count, keep_space=op == "Z") == "ok"
                seeds[start : start + count] = [{0}] * count
            case "d":
                assert disk.discard(start, count) == "ok"
                seeds[start : start + count] = [s | {0} for s in seeds[start : start + count]]
            case _:
                got = disk.read(start, count)
                assert all(g in s for g, s in zip(got, seeds[start : start + count], strict=True))
    for start in range(0, disk.sectors, 2000):
        got = disk.read(start, min(2000, disk.sectors - start))
        assert all(g in s for g, s in zip(got, seeds[start : start + 2000], strict=True))
