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
    geometry: int = 0
    features: int = 2
    saved: int = 0
    fixed_data_offset: int = 2**64 - 1
    parts: tuple[str, ...] = ("header", "table", "locators", "blocks")
    """What follows the footer copy, in this order; "batmap" is two sectors of zeros for one."""
    gap: int = 0
    """Sectors left empty before each part."""
    descending: bool = False
    """The first block of `blocks` is the last in the file."""
    junk: bytes = b"\xff"
    """Fills the table's last sector."""
    padding: int = 0
    """Zeros behind the footer at the end."""


def footer(spec: Spec, data_offset: int = SECTOR) -> bytes:
    """The footer's 512 bytes."""
    raw = struct.pack(
        ">8sIIQI4sIIQQIII16sBB426x",
        b"conectix",
        spec.features,
        0x00010000,
        spec.fixed_data_offset if spec.kind == FIXED else data_offset,
        0,
        spec.creator,
        spec.creator_version,
        0x5769326B,
        spec.size,
        spec.size,
        spec.geometry,
        spec.kind,
        0,
        spec.uuid.bytes,
        spec.saved,
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


def to_sectors(length: int) -> int:
    """The length rounded up to whole sectors."""
    return -(-length // SECTOR) * SECTOR


def image(spec: Spec) -> bytes:
    """The file's bytes."""
    if spec.kind == FIXED:
        disk = bytearray(spec.size)
        for block in spec.blocks:
            disk[block * spec.block_size : (block + 1) * spec.block_size] = sectors_of(spec, block)[1]
        return bytes(disk) + footer(spec)[: spec.tail] + bytes(spec.padding)
    entries = spec.max_bat if spec.max_bat is not None else -(-spec.size // spec.block_size)
    blobs = [x.data.ljust(to_sectors(len(x.data)), b"\0") for x in spec.locators]
    bodies = [b"".join(sectors_of(spec, block)) for block in spec.blocks]
    lengths = {
        "header": 2 * SECTOR,
        "table": to_sectors(entries * 4),
        "locators": sum(map(len, blobs)),
        "blocks": sum(map(len, bodies)),
        "batmap": 2 * SECTOR,
    }
    at, where = SECTOR, {}
    for part in spec.parts:
        at += spec.gap * SECTOR
        where[part] = at
        at += lengths[part]
    locators, place = b"", where["locators"]
    for locator, blob in zip(spec.locators, blobs, strict=True):
        space = len(blob) if locator.space is None else locator.space
        locators += struct.pack(">4sIIIQ", locator.code, space, len(locator.data), 0, place)
        place += len(blob)
    bat, place = [UNUSED] * entries, where["blocks"]
    order = list(zip(spec.blocks, bodies, strict=True))
    for block, body in reversed(order) if spec.descending else order:
        bat[block] = place // SECTOR
        place += len(body)
    header = struct.pack(
        ">8sQQIIII16sII512s192s256x",
        b"cxsparse",
        2**64 - 1,
        where["table"],
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
    content = {
        "header": fix_checksum(header, 36),
        "table": struct.pack(f">{entries}I", *bat).ljust(lengths["table"], spec.junk),
        "locators": b"".join(blobs),
        "blocks": b"".join(bodies[::-1] if spec.descending else bodies),
        "batmap": bytes(2 * SECTOR),
    }
    foot = footer(spec, where["header"])
    body = b"".join(bytes(spec.gap * SECTOR) + content[part] for part in spec.parts)
    return foot + body + foot[: spec.tail] + bytes(spec.padding)


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
