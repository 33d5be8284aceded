# SPDX-License-Identifier: LGPL-2.1-only
"""A plain reader of VHD files and chains, as a second opinion in tests.

Written from Microsoft's "Virtual Hard Disk Image Format Specification" 1.0. It
shares nothing with the C code, favours clarity over speed, and reads nothing
that a footer, header, BAT and bitmap don't say. XenServer's batmap is ignored:
it is only a hint.
"""

import hashlib
import os
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

SECTOR = 512
FOOTER = struct.Struct(">8sIIQI4sIIQQIII16sBB426x")
HEADER = struct.Struct(">8sQQIIII16sI4x512s192s256x")
LOCATOR = struct.Struct(">4sIII Q")
UNUSED = 0xFFFFFFFF
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4


class VhdError(Exception):
    """The file breaks the format."""


def ones_complement(data: bytes, skip: int) -> int:
    """The checksum of a footer or header; the 4 bytes at skip are its own."""
    return ~(sum(data) - sum(data[skip : skip + 4])) & 0xFFFFFFFF


@dataclass(frozen=True)
class Footer:
    """The fields of a footer that reading needs."""

    data_offset: int
    creator: bytes
    original_size: int
    current_size: int
    geometry: int
    kind: int
    uuid: uuid.UUID
    hidden: int

    @classmethod
    def parse(cls, raw: bytes) -> "Footer":
        """Raises VhdError for a wrong cookie, checksum or type. raw is 511 or 512 bytes."""
        raw = raw.ljust(SECTOR, b"\0")
        f = FOOTER.unpack(raw)
        if f[0] != b"conectix":
            raise VhdError("footer cookie")
        if f[12] != ones_complement(raw, 64):
            raise VhdError("footer checksum")
        if f[11] not in (FIXED, DYNAMIC, DIFFERENCING):
            raise VhdError("disk type")
        if not f[9] or f[9] % SECTOR:
            raise VhdError("current size")
        return cls(
            data_offset=f[3],
            creator=f[5],
            original_size=f[8],
            current_size=f[9],
            geometry=f[10],
            kind=f[11],
            uuid=uuid.UUID(bytes=f[13]),
            hidden=f[15],
        )


@dataclass(frozen=True)
class Locator:
    """A parent locator: its code and the path it gives."""

    code: bytes
    path: str


class Image:
    """One VHD file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.data = self.path.read_bytes()
        self.footer = self._footer()
        self.size = self.footer.current_size
        self.kind = self.footer.kind
        self.parent_uuid = uuid.UUID(int=0)
        self.parent_name = ""
        self.locators: list[Locator] = []
        self.bat: tuple[int, ...] = ()
        self.block_size = 0
        if self.kind != FIXED:
            self._header()

    def _footer(self) -> Footer:
        tail = self.data[-511:] if len(self.data) % SECTOR == SECTOR - 1 else self.data[-SECTOR:]
        found: list[Footer] = []
        for raw in (self.data[:SECTOR], tail):
            try:
                found.append(Footer.parse(raw))
            except VhdError:
                continue
        if len({(f.kind, f.uuid, f.data_offset) for f in found}) == 1:
            return found[-1]
        for footer in found:
            if footer.kind != FIXED:
                return footer
        if found:
            return found[-1]
        raise VhdError("no footer")

    def _header(self) -> None:
        at = self.footer.data_offset
        raw = self.data[at : at + HEADER.size]
        h = HEADER.unpack(raw)
        if h[0] != b"cxsparse" or h[6] != ones_complement(raw, 36):
            raise VhdError("header")
        table, entries, self.block_size = h[2], h[4], h[5]
        self.parent_uuid = uuid.UUID(bytes=h[7])
        self.parent_timestamp: int = h[8]
        self.parent_name = h[9].decode("utf-16-be", "replace").split("\0")[0]
        self.max_bat = entries
        self.bat = struct.unpack_from(f">{entries}I", self.data, table)
        if self.kind != DIFFERENCING:
            return
        for i in range(8):
            code, _space, length, _, offset = LOCATOR.unpack_from(h[10], i * LOCATOR.size)
            blob = self.data[offset : offset + length]
            try:
                if code in (b"W2ru", b"W2ku"):
                    path = blob.decode("utf-16-le").split("\0")[0].replace("\\", "/")
                    path = path.removeprefix("//?/")
                    self.locators.append(Locator(code, path[2:] if path[1:2] == ":" else path))
                elif code == b"MacX":
                    url = blob.decode("utf-8").split("\0")[0].removeprefix("file://")
                    self.locators.append(Locator(code, url))
            except UnicodeDecodeError:
                continue

    def bitmap_sectors(self) -> int:
        """Sectors before a block's data."""
        bits = self.block_size // SECTOR
        return -(-bits // (8 * SECTOR))

    def has_sector(self, sector: int) -> bool:
        """Whether the sector is present in this file."""
        if self.kind == FIXED:
            return True
        block, bit = divmod(sector, self.block_size // SECTOR)
        at = self.bat[block]
        return at != UNUSED and bool(self.data[at * SECTOR + bit // 8] & 0x80 >> bit % 8)

    def sector(self, sector: int) -> bytes:
        """The data of a sector that is present."""
        if self.kind == FIXED:
            return self.data[sector * SECTOR : (sector + 1) * SECTOR]
        block, first = divmod(sector, self.block_size // SECTOR)
        at = (self.bat[block] + self.bitmap_sectors() + first) * SECTOR
        return self.data[at : at + SECTOR]

    def untouched(self, block: int) -> bool:
        """Whether no sector of the block is present."""
        return self.kind != FIXED and self.bat[block] == UNUSED

    def parent_paths(self) -> Iterator[Path]:
        """Where the parent may be, the best first."""
        here = self.path.resolve().parent
        for code in (b"W2ru", b"MacX", b"W2ku"):
            for locator in self.locators:
                if locator.code == code:
                    yield here / unquote(locator.path) if code == b"MacX" else here / locator.path
                    yield here / locator.path
        if self.parent_name:
            yield here / self.parent_name.replace("\\", "/").rpartition("/")[2]
        for locator in self.locators:
            if locator.path.startswith("/"):
                yield here / locator.path.rpartition("/")[2]


class Chain:
    """A leaf and its parents; a null parent uuid means a raw parent."""

    def __init__(self, leaf: str | os.PathLike[str]) -> None:
        self.images = [Image(leaf)]
        self.raw: bytes | None = None
        while self.images[-1].kind == DIFFERENCING and self.raw is None:
            self._add_parent(self.images[-1])
        self.size = self.images[0].size

    def _add_parent(self, child: Image) -> None:
        for path in child.parent_paths():
            if not path.is_file():
                continue
            if child.parent_uuid.int == 0:
                self.raw = path.read_bytes()
                return
            parent = Image(path)
            if parent.footer.uuid == child.parent_uuid:
                self.images.append(parent)
                return
        raise VhdError(f"{child.path}: no parent")

    def sector(self, sector: int) -> bytes:
        """What a guest reads there."""
        for image in self.images:
            # A child may be larger than its parent: zeros from there on.
            if sector * SECTOR >= image.size:
                return bytes(SECTOR)
            if image.has_sector(sector):
                return image.sector(sector)
        if self.raw is not None:
            return self.raw[sector * SECTOR : (sector + 1) * SECTOR].ljust(SECTOR, b"\0")
        return bytes(SECTOR)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk."""
        first, last = offset // SECTOR, -(-(offset + length) // SECTOR)
        data = b"".join(self.sector(s) for s in range(first, last))
        return data[offset - first * SECTOR :][:length]

    def sha256(self) -> str:
        """Of the whole disk."""
        digest = hashlib.sha256()
        for sector in range(self.size // SECTOR):
            digest.update(self.sector(sector))
        return digest.hexdigest()
