# SPDX-License-Identifier: LGPL-2.1-only
"""Makes VHD files that vhd-util wouldn't: other creators, block sizes, faults.

Like vhdref, written from the format's description; for tests only.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from tests.lib.vhdref import DIFFERENCING, DYNAMIC, FIXED, SECTOR, UNUSED, ones_complement

MIB = 1 << 20
NO_UUID, SOME_UUID = UUID(int=0), UUID(int=0x1234)

# Offsets of fields in a footer, and in a header.
FOOTER_FIELDS = {
    "cookie": (0, 8),
    "features": (8, 4),
    "version": (12, 4),
    "data offset": (16, 8),
    "timestamp": (24, 4),
    "creator": (28, 4),
    "creator version": (32, 4),
    "original size": (40, 8),
    "current size": (48, 8),
    "geometry": (56, 4),
    "type": (60, 4),
    "checksum": (64, 4),
    "uuid": (68, 16),
    "saved": (84, 1),
    "hidden": (85, 1),
}
HEADER_FIELDS = {
    "cookie": (0, 8),
    "data offset": (8, 8),
    "table offset": (16, 8),
    "version": (24, 4),
    "max bat": (28, 4),
    "block size": (32, 4),
    "checksum": (36, 4),
    "parent uuid": (40, 16),
    "parent timestamp": (56, 4),
    "parent name": (64, 512),
    "locators": (576, 192),
}


@dataclass(frozen=True)
class Locator:
    """A parent locator to be written; space None: as many bytes as whole sectors take."""

    code: bytes
    data: bytes
    space: int | None = None


@dataclass(frozen=True)
class Spec:
    """An image to be made. blocks: data by block number, each a whole block; a sector of None is absent."""

    size: int = 8 * MIB
    kind: int = DYNAMIC
    block_size: int = 2 * MIB
    creator: bytes = b"win "
    creator_version: int = 0x000A0000
    blocks: Mapping[int, Mapping[int, bytes]] = field(default_factory=dict)
    max_bat: int | None = None
    parent_uuid: UUID = NO_UUID
    parent_name: str = ""
    locators: tuple[Locator, ...] = ()
    uuid: UUID = SOME_UUID
    hidden: int = 0
    tail: int = SECTOR
    """Bytes of the footer at the end: 512, 511, or 0 for none."""


def footer(spec: Spec) -> bytes:
    """The footer's 512 bytes."""
    raw = struct.pack(
        ">8sIIQI4sIIQQIII16sBB426x",
        b"conectix",
        2,
        0x00010000,
        2**64 - 1 if spec.kind == FIXED else SECTOR,
        0,
        spec.creator,
        spec.creator_version,
        0x5769326B,
        spec.size,
        spec.size,
        0,
        spec.kind,
        0,
        spec.uuid.bytes,
        0,
        spec.hidden,
    )
    return fix_checksum(raw, 64)


def fix_checksum(raw: bytes, at: int) -> bytes:
    """raw with the checksum at offset at made right."""
    return raw[:at] + struct.pack(">I", ones_complement(raw, at)) + raw[at + 4 :]


def sectors_of(spec: Spec, block: int) -> tuple[bytes, bytes]:
    """The bitmap and data of a block."""
    per_block = spec.block_size // SECTOR
    bitmap = bytearray(-(-per_block // (8 * SECTOR)) * SECTOR)
    data = bytearray(spec.block_size)
    for sector, content in spec.blocks[block].items():
        bitmap[sector // 8] |= 0x80 >> sector % 8
        data[sector * SECTOR : (sector + 1) * SECTOR] = content
    return bytes(bitmap), bytes(data)


def image(spec: Spec) -> bytes:
    """The file's bytes."""
    tail = footer(spec)[: spec.tail]
    if spec.kind == FIXED:
        disk = bytearray(spec.size)
        for block in spec.blocks:
            disk[block * spec.block_size : (block + 1) * spec.block_size] = sectors_of(spec, block)[1]
        return bytes(disk) + tail
    entries = spec.max_bat if spec.max_bat is not None else -(-spec.size // spec.block_size)
    table_size = -(-entries * 4 // SECTOR) * SECTOR
    at = 3 * SECTOR + table_size
    locators, blobs = b"", b""
    for locator in spec.locators:
        padded = locator.data.ljust(-(-len(locator.data) // SECTOR) * SECTOR, b"\0")
        space = len(padded) if locator.space is None else locator.space
        locators += struct.pack(">4sIIIQ", locator.code, space, len(locator.data), 0, at + len(blobs))
        blobs += padded
    bat, body = [UNUSED] * entries, b""
    for block in spec.blocks:
        bat[block] = (at + len(blobs) + len(body)) // SECTOR
        body += b"".join(sectors_of(spec, block))
    header = struct.pack(
        ">8sQQIIII16sII512s192s256x",
        b"cxsparse",
        2**64 - 1,
        3 * SECTOR,
        0x00010000,
        entries,
        spec.block_size,
        0,
        spec.parent_uuid.bytes,
        0,
        0,
        spec.parent_name.encode("utf-16-be"),
        locators,
    )
    table = struct.pack(f">{entries}I", *bat).ljust(table_size, b"\xff")
    return footer(spec) + fix_checksum(header, 36) + table + blobs + body + tail


def make(path: Path, spec: Spec) -> Path:
    """Writes the image to path."""
    path.write_bytes(image(spec))
    return path


def set_footer(path: Path, name: str, value: bytes, *, fix: bool = True, front: bool = True, tail: bool = True) -> None:
    """Changes a field of one or both footers of a file whose tail has 512 bytes."""
    data = bytearray(path.read_bytes())
    offset, length = FOOTER_FIELDS[name]
    assert len(value) == length
    for at, wanted in ((0, front), (len(data) - SECTOR, tail)):
        if not wanted:
            continue
        raw = bytearray(data[at : at + SECTOR])
        raw[offset : offset + length] = value
        data[at : at + SECTOR] = fix_checksum(bytes(raw), 64) if fix else raw
    path.write_bytes(data)


def set_header(path: Path, name: str, value: bytes, *, fix: bool = True, offset: int = 0) -> None:
    """Changes (a part at offset of) a field of the header at its usual place."""
    data = bytearray(path.read_bytes())
    at, length = HEADER_FIELDS[name]
    assert offset + len(value) <= length
    raw = bytearray(data[SECTOR : 3 * SECTOR])
    raw[at + offset : at + offset + len(value)] = value
    data[SECTOR : 3 * SECTOR] = fix_checksum(bytes(raw), 36) if fix else raw
    path.write_bytes(data)


def set_bat(path: Path, entry: int, sector: int) -> None:
    """Changes an entry of the BAT at its usual place."""
    data = bytearray(path.read_bytes())
    struct.pack_into(">I", data, 3 * SECTOR + 4 * entry, sector)
    path.write_bytes(data)


__all__ = ["DIFFERENCING", "DYNAMIC", "FIXED", "MIB", "Locator", "Spec", "image", "make"]
