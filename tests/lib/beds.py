# SPDX-License-Identifier: LGPL-2.1-only
"""The beds of a test session: kept running between tests, as few at a time as the tests allow."""

from typing import Any

from tests.lib.qemu import BedSpec
from tests.lib.vm import Bed, BedError

# Running beds share the cores even when idle, and each has its memory.
KEPT = 2


class BedPool:
    """Running beds by their spec, the least recently used first."""

    def __init__(self) -> None:
        self._beds: dict[tuple[BedSpec, int], Bed] = {}

    def get(self, spec: BedSpec, number: int, in_use: list[Bed]) -> Bed:
        """The running bed `number` of this spec, booted if need be. Beds not `in_use` may be stopped for it."""
        key = (spec, number)
        bed = self._beds.pop(key, None)
        if bed is not None and not bed.alive:
            bed.stop()
            bed = None
        if bed is None:
            self._make_room(in_use)
            bed = Bed(spec)
            bed.start()
        self._beds[key] = bed
        return bed

    def _make_room(self, in_use: list[Bed]) -> None:
        for key, bed in list(self._beds.items()):
            if len(self._beds) < KEPT:
                break
            if bed not in in_use:
                bed.stop()
                del self._beds[key]

    def leaks(self) -> list[str]:
        """What the checkers of their kernels find in those that run, once all of the driver is gone from them."""
        return [line for bed in self._beds.values() if bed.alive for line in bed.leak_findings()]

    def close(self) -> None:
        """Stop all."""
        for bed in self._beds.values():
            bed.stop()
        self._beds.clear()


class Beds:
    """The beds of one test."""

    def __init__(self, pool: BedPool) -> None:
        self._pool = pool
        self._used: list[Bed] = []
        self._own: list[Bed] = []
        self._doomed: list[Bed] = []

    def __call__(self, number: int = 0, **spec: Any) -> Bed:
        """A shared bed; `number` tells beds of equal specs apart. What a test changes in it, the next one finds."""
        bed = self._pool.get(BedSpec(**spec), number, self._used)
        if bed not in self._used:
            self._used.append(bed)
        return bed

    def fresh(self, **spec: Any) -> Bed:
        """A bed of this test's own, stopped when the test ends."""
        bed = Bed(BedSpec(**spec))
        self._own.append(bed)
        bed.start()
        self._used.append(bed)
        return bed

    def expect_loss(self, bed: Bed) -> None:
        """The test is about to wreck this bed: don't judge it."""
        self._doomed.append(bed)

    def finish(self) -> list[str]:
        """After the test: what is to be held against it. Its own beds are stopped."""
        findings = []
        try:
            for bed in self._used:
                if bed in self._doomed:
                    continue
                if not bed.alive:
                    findings.append(f"{bed} was lost: {bed.failure}\n{bed.console.tail()}")
                    continue
                try:
                    lines = bed.dmesg_findings()
                except BedError as error:
                    findings.append(f"{bed}: its kernel's log can't be read: {error}")
                    continue
                if lines:
                    log = f"--- its log\n{bed.log_report}"
                    findings.append("\n".join([f"{bed}: its kernel reports", *lines, log]))
                if bed in self._own:
                    findings += bed.leak_findings()
        finally:
            for bed in self._own:
                bed.stop()
        return findings
