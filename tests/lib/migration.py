# SPDX-License-Identifier: LGPL-2.1-only
"""A guest that moves between two hosts, one tapdisk on each, while it writes to the last moment."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.lib.guestbytes import GuestBytes, Op
from tests.lib.nbdguest import Guest
from tests.lib.tapctl import Served
from tests.lib.vhdutil import ok

MEGABYTES = 16
SECTORS = MEGABYTES << 11
LOAD = 60
"""Requests of a stay at a host."""


@dataclass
class Told:
    """What came of it. A difference is an AssertionError."""

    migrations: int = 0
    asked_again: int = 0
    """Requests that the source had not answered when the guest stopped."""
    answered_late: int = 0
    """Those of them that it answered all the same, while the destination had been asked again."""
    compared: int = 0
    """Bytes."""


def load(random: Random, number: int) -> list[Op]:
    """Requests, many of them to new blocks."""
    ops = []
    for i in range(LOAD):
        start = random.randrange(SECTORS - 300)
        kind = random.choice(["write"] * 8 + ["zero", "flush"])
        count = random.choice([1, 3, 8, 8, 16, 129, 300])
        ops.append(Op("flush") if kind == "flush" else Op(kind, start, count, number + i, fua=random.random() < 0.1))
    return ops


def move(source: Served, here: Guest, model: GuestBytes, destination: Served, ops: list[Op], random: Random, told: Told) -> Guest:
    """The guest's stay at the source ends in the middle of these requests; it is returned at the destination."""
    requests = here.start(ops)
    here.wait(requests, enough=random.randrange(len(ops)))
    stopped = [request.done for request in requests]
    model.apply([op for op, done in zip(ops, stopped, strict=True) if done])
    rest = [op for op, done in zip(ops, stopped, strict=True) if not done]
    there = Guest(destination.socket)
    again = there.start(rest)
    source.end()
    here.wait(requests)
    told.answered_late += sum(request.done for request in requests) - sum(stopped)
    here.close()
    there.wait(again)
    assert all(request.done for request in again)
    model.apply(rest)
    told.asked_again += len(rest)
    return there


def run(directory: Path, migrations: int, random: Random, told: Told) -> None:
    """All of the disk is read after each migration, by the destination."""
    image = directory / "shared.vhd"
    ok("create", "-n", image, "-s", MEGABYTES)
    model = GuestBytes(SECTORS)
    hosts = [directory / "host0", directory / "host1"]
    for path in hosts:
        path.mkdir()
    with contextlib.ExitStack() as running:
        served = running.enter_context(Served(hosts[0], f"vhd:{image}"))
        guest = Guest(served.socket)
        for number in range(migrations):
            destination = running.enter_context(Served(hosts[(number + 1) % 2], f"vhd:{image}", "--inactive"))
            guest = move(served, guest, model, destination, load(random, number * LOAD + 1), random, told)
            served = destination
            model.judge_all(guest.read(0, SECTORS), f"migration {number}")
            told.migrations += 1
            told.compared += SECTORS * 512
        guest.close()
    ok("check", "-n", image)
