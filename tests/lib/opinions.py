# SPDX-License-Identifier: LGPL-2.1-only
"""What others than tapdisk read from the files of a chain that nobody has open, held against what they must hold."""

import itertools
import json
import os
from collections import Counter
from pathlib import Path

from tests.lib import vhdi, vhdref
from tests.lib.chainfiles import RAW, ChainFiles, Member
from tests.lib.guestbytes import SECTOR
from tests.lib.vhdutil import ok, run

consulted: Counter[str] = Counter()
"""How often each opinion was asked for; libvhdi also by why it was not."""


OF_KILLED = (
    "bytes after the last block are in no use",
    "the footer at the end is missing (not closed cleanly); vhd-util repair restores it",
)
"""What vhd-util check may say of an image whose tapdisk was killed, and that none has closed since."""


def check(files: ChainFiles) -> None:
    """vhd-util check has nothing to say against any image, its bitmaps included."""
    if files.leaf.kind == RAW:
        return
    done = run("check", "-n", files.leaf.path, "-p", "-b")
    valid = [f"{member.path} is valid" for member in files.members if member.kind != RAW]
    assert (done.returncode, done.stdout.decode().splitlines()) == (0, valid), done
    killed = [f"vhd-util: {member.path}: warning: " for member in files.members if member.killed]
    for line in done.stderr.decode().splitlines():
        assert line.endswith(OF_KILLED) and any(map(line.startswith, killed)), line
    consulted["check"] += 1


def _reference(path: Path, kind: str) -> bytes:
    if kind == RAW:
        return path.read_bytes()
    chain = vhdref.Chain(path)
    return chain.read(0, chain.size)


def reference(files: ChainFiles, *, parents: bool) -> None:
    """The independent reader, of the leaf and perhaps of each parent."""
    for member in files.members if parents else [files.leaf]:
        member.holds.judge_all(_reference(member.path, member.kind), f"vhdref of {member.path.name}")
        consulted["vhdref"] += 1


def mapped(files: ChainFiles) -> None:
    """vhd-util map: data is in the files where it says, and zeros are zeros."""
    if files.leaf.kind == RAW:
        return
    extents = json.loads(ok("map", "-n", files.leaf.path, "--json"))
    data = bytearray(len(files.leaf.holds.data))
    end = 0
    for e in extents:
        assert e["start"] == end, f"an extent at {e['start']} after {end}"
        end += e["length"]
        if e["data"]:
            with Path(e["file"]).open("rb") as file:
                data[e["start"] : end] = os.pread(file.fileno(), e["length"], e["offset"])
    assert end == len(data)
    files.leaf.holds.judge_all(bytes(data), "vhd-util map")
    consulted["map"] += 1


def compared(files: ChainFiles, scratch: Path) -> None:
    """vhd-util compare with a raw file, which now and then differs in its last byte."""
    if files.leaf.kind == RAW or files.leaf.holds.others:
        return
    data = bytearray(files.leaf.holds.data)
    differ = consulted["compare"] % 4 == 0
    data[-1] ^= differ
    scratch.write_bytes(data)
    done = run("compare", "-n", files.leaf.path, "-N", scratch, "-m")
    assert done.returncode == differ, f"compare is wrong: {done}"
    scratch.unlink()
    consulted["compare"] += 1


def has_data_without_bits(image: vhdref.Image) -> bool:
    """A block holds what its bitmap doesn't tell of: a tapdisk was killed between the two."""
    spb = image.block_size // SECTOR
    for sector in range(image.size // SECTOR if image.bat else 0):
        block, number = divmod(sector, spb)
        if image.bat[block] == vhdref.UNUSED or image.has_sector(sector):
            continue
        at = (image.bat[block] + image.bitmap_sectors() + number) * SECTOR
        if any(image.data[at : at + SECTOR]):
            return True
    return False


def why_not_libvhdi(members: list[Member]) -> str:
    """Why libvhdi 20210425 would be wrong about this chain; empty if it is right."""
    if members[-1].kind == RAW:
        return "it has no raw parents"
    images = [vhdref.Image(member.path) for member in members]
    for image in images:
        if image.footer.original_size != image.footer.current_size:
            return "it takes the size before a resize"
        if image.data[-SECTOR:][:8] != b"conectix":
            return "it needs a footer at the end"
    if any(child.size > parent.size for child, parent in itertools.pairwise(images)):
        return "it reads past a parent's end"
    for image in images[:-1]:
        spb = image.block_size // SECTOR
        for block in range(-(-image.size // image.block_size)):
            here = range(block * spb, min((block + 1) * spb, image.size // SECTOR))
            if not image.untouched(block) and not all(map(image.has_sector, here)):
                return "it may be wrong about blocks that a child holds in part"
    if members[-1].killed and has_data_without_bits(images[-1]):
        return "it reads what was written without its bit"
    return ""


def libvhdi(files: ChainFiles) -> None:
    """Where it is right."""
    reason = why_not_libvhdi(files.members)
    if reason:
        consulted[f"not libvhdi: {reason}"] += 1
        return
    paths = [member.path for member in reversed(files.members)]
    size = min([vhdref.Image(path).block_size or 2 * vhdi.MIB for path in paths])
    files.leaf.holds.judge_all(vhdi.read(paths, size), "libvhdi")
    consulted["libvhdi"] += 1
    consulted[f"libvhdi, chains of {min(len(paths), 3)}"] += 1


def judge(files: ChainFiles, *, parents: bool = True) -> None:
    """All of them."""
    check(files)
    reference(files, parents=parents)
    mapped(files)
    compared(files, files.directory / "compare.tmp")
    libvhdi(files)


