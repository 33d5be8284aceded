# SPDX-License-Identifier: LGPL-2.1-only
"""Figures that are not a cell's: an image's space, memory of a server of a large disk, a snapshot's stall."""

import time
from collections.abc import Iterator, Sequence

from tests.perf import fio, nbd, proc
from tests.perf.bench import Bench, public
from tests.perf.fio import Pattern
from tests.perf.images import GIB, Images
from tests.perf.results import Check
from tests.perf.servers import Running, Server, ServerError
from tests.perf.stall import stall

SPACE_DISK = 10 * GIB
SPACE_WRITES = Pattern("space", "randwrite", 64 << 10, 32, "64 KiB random write QD 32")
SPACE_IOS = 3200
TERABYTE = 1024 * GIB

SPACE, RSS = "space", "rss"


def growing(servers: Sequence[Server]) -> Iterator[tuple[Server, str]]:
    """Servers with the formats that grow."""
    for server in servers:
        for image_format in ("vpc", "qcow2"):
            if image_format in server.formats:
                yield server, image_format


def space(bench: Bench, images: Images, server: Server, image_format: str) -> Check:
    """GB that an image of 10 GiB takes on the disk after 200 MiB of random writes of 64 KiB, closed."""
    path = images.directory / f"space.{image_format}"
    path.unlink(missing_ok=True)
    images.empty(path, image_format, SPACE_DISK)
    try:
        with Running(server, path, image_format, bench.work) as running:
            bench.load(SPACE_WRITES, fio.by_nbd(running.sock), SPACE_DISK, 1, SPACE_IOS)
        return Check(SPACE, f"{server.name} {image_format}", path.stat().st_blocks * 512 / 1e9, "GB")
    finally:
        path.unlink(missing_ok=True)


def rss(bench: Bench, images: Images, server: Server, image_format: str) -> Check:
    """MB resident that a server of an empty 1 TiB image has when its first client has come, read and gone.

    So what a transport keeps for a client is not in it, unless it keeps that for ever.
    """
    path = images.directory / f"terabyte.{image_format}"
    path.unlink(missing_ok=True)
    images.empty(path, image_format, TERABYTE)
    try:
        with Running(server, path, image_format, bench.work) as running:
            with nbd.Client(running.sock) as client:
                client.read(0, 4096)
            time.sleep(0.3)
            return Check(RSS, f"{server.name} {image_format}", proc.rss_kib(running.session) / 1e3 * 1.024, "MB")
    finally:
        path.unlink(missing_ok=True)


def all_checks(bench: Bench, images: Images, quick: bool) -> None:
    """Do them on the images of one medium."""
    for server, image_format in growing(bench.servers):
        for check in (space, rss):
            if quick and server.name != bench.results.judged:
                continue
            try:
                bench.results.checks.append(check(bench, images, server, image_format))
            except (ServerError, fio.FioError, nbd.NbdError, OSError) as error:
                bench.results.failures.append(f"{check.__name__}: {server.name} {image_format}: {public(error)}")
    for server in bench.servers:
        if server.name == bench.results.judged == "tapdisk":
            try:
                bench.results.checks.append(
                    stall(images, f"{server.name} vpc", bench.settings.server_cpus, bench.single_writes)
                )
            except (ServerError, fio.FioError, OSError) as error:
                bench.results.failures.append(f"stall: {public(error)}")
