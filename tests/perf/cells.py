# SPDX-License-Identifier: LGPL-2.1-only
"""What is measured: cells, each a medium, a kind of image and a pattern; and which servers meet in a cell."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.perf.fio import PATTERNS, Pattern
from tests.perf.servers import Server

KINDS = {
    "raw": "raw image, all written",
    "full": "VHD or qcow2, all blocks written",
    "fresh": "VHD or qcow2, nothing written: every write allocates",
    "chain5": "chain of 5",
    "chain30": "chain of 30",
}
DEPTHS = {"chain5": 5, "chain30": 30}


@dataclass(frozen=True)
class Cell:
    """One thing that every server does once a round."""

    medium: str
    kind: str
    pattern: Pattern

    @property
    def name(self) -> str:
        """What it is called in the results."""
        return f"{self.medium}/{self.kind}/{self.pattern.name}"


@dataclass(frozen=True)
class Entry:
    """A server in a cell, with the image format that it serves there."""

    server: Server
    image_format: str

    @property
    def name(self) -> str:
        """What it is called in the results: qemu-nbd serves two formats in the same cell."""
        return f"{self.server.name} {self.image_format}"


def formats(kind: str, server: Server) -> list[str]:
    """The formats in which a server takes part in a kind. qemu's vpc ignores parents, so its chains are qcow2."""
    if kind == "raw":
        return [f for f in server.formats if f == "raw"]
    if kind in DEPTHS:
        if not server.parents:
            return []
        return [f for f in ("qcow2", "vpc") if f in server.formats][:1]
    return [f for f in ("vpc", "qcow2") if f in server.formats]


def entries(kind: str, servers: Sequence[Server]) -> list[Entry]:
    """All that take part in the cells of a kind."""
    return [Entry(server, f) for server in servers for f in formats(kind, server)]


def cell(name: str) -> Cell:
    """The cell of a name. Raises KeyError."""
    medium, kind, pattern = name.split("/")
    return Cell(medium, kind, PATTERNS[pattern])


FULL = {
    "raw": ("rr1", "rr32", "rw1", "rw32", "sr", "sw"),
    "full": ("rr1", "rr32", "rw1", "rw32", "sr", "sw"),
    "fresh": ("rw1", "rw32", "sw"),
    "chain5": ("rr1", "rr32", "sr"),
    "chain30": ("rr1", "rr32", "sr"),
}
QUICK = {
    "ram": ("raw/rr32", "raw/rw32", "full/rr32", "chain30/rr32", "full/rw32", "fresh/rw32"),
    "disk": ("raw/rr1", "full/rw32"),
}


def cells(media: Sequence[str], quick: bool) -> list[Cell]:
    """The cells in the order of a round: the same pattern on all kinds in a row, since those are compared too."""
    if quick:
        return [cell(f"{medium}/{name}") for medium in media for name in QUICK[medium]]
    return [
        Cell(medium, kind, pattern)
        for medium in media
        for pattern in PATTERNS.values()
        for kind, names in FULL.items()
        if pattern.name in names
    ]


def rotated(items: Sequence[Entry], round_number: int) -> list[Entry]:
    """The order of a round: another one begins each time, so none is always the first after the others' work."""
    shift = round_number % len(items) if items else 0
    return [*items[shift:], *items[:shift]]


COUNTED = ("raw/rr1", "raw/rr32", "raw/rw32", "full/rr32", "full/rw32", "fresh/rw32", "chain30/rr32")
COUNTED_QUICK = {"ram": ("full/rr32", "full/rw32"), "disk": ("full/rw32",)}


def counted(media: Sequence[str], quick: bool) -> list[Cell]:
    """The cells in which system calls and allocations are counted: an engine may go other ways on other media."""
    return [cell(f"{medium}/{name}") for medium in media for name in (COUNTED_QUICK[medium] if quick else COUNTED)]
