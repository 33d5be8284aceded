# SPDX-License-Identifier: LGPL-2.1-only
"""The files of one disk's chain, what each of them must read as, and what vhd-util and others make of them.

Nothing has them open meanwhile. The leaf's name is always the same, as it is for a guest (docs/architecture.md,
contract 4).
"""

import contextlib
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4

from tests.lib import vhdmake, vhdref
from tests.lib.disk import pattern
from tests.lib.guestbytes import SECTOR, GuestBytes
from tests.lib.programs import program
from tests.lib.vhdmake import MIB, Locator, Spec
from tests.lib.vhdutil import ok
from tests.lib.waiting import after_a_kill

MARK = "user.xenblk.children"
RAW = "raw"
CREATORS = {b"tap\0": 0x00010003, b"win ": 0x000A0000, b"qemu": 0x00050003}


@dataclass
class Member:
    """One image. kind: "raw", "fixed", "dynamic" or "differencing"."""

    path: Path
    kind: str
    block_size: int
    holds: GuestBytes
    killed: bool = False
    """Who had it for writing was: what lies behind its end stays until it is changed again."""

    @property
    def spec(self) -> str:
        """As tapdisk takes it."""
        return f"{'aio' if self.kind == RAW else 'vhd'}:{self.path}"

    @property
    def block_sectors(self) -> int:
        """Sectors of a block."""
        return self.block_size // SECTOR

    def whole_blocks(self, megabytes: int) -> int:
        """Bytes that it gets by a resize to so much."""
        unit = MIB if self.kind in (RAW, "fixed") else max(self.block_size, MIB)
        return -(-megabytes * MIB // unit) * unit


def _raw_flag(parent: Member) -> list[str]:
    return ["-m"] if parent.kind == RAW else []


def created(path: Path, kind: str, megabytes: int) -> Member:
    """By vhd-util, or an empty raw file."""
    if kind == RAW:
        path.write_bytes(b"")
        os.truncate(path, megabytes * MIB)
        return Member(path, RAW, 2 * MIB, GuestBytes(megabytes * MIB // SECTOR))
    ok("create", "-n", path, "-s", megabytes, *(["-r"] if kind == "fixed" else []))
    return Member(path, kind, 2 * MIB, GuestBytes(vhdref.Image(path).size // SECTOR))


def foreign(path: Path, sectors: int, block_size: int, creator: bytes, blocks: tuple[int, ...]) -> Member:
    """A dynamic image without a batmap, some blocks of which hold some sectors."""
    holds = GuestBytes(sectors)
    spb = block_size // SECTOR
    data: dict[int, dict[int, bytes]] = {}
    for block in sorted({number % -(-sectors // spb) for number in blocks}):
        here = range(block * spb, min((block + 1) * spb, sectors), 3)
        data[block] = {sector % spb: pattern(sector, 1) for sector in here}
        for sector in here:
            holds.written(sector, pattern(sector, 1))
    spec = Spec(
        size=sectors * SECTOR,
        block_size=block_size,
        creator=creator,
        creator_version=CREATORS[creator],
        blocks=data,
        uuid=uuid4(),
    )
    return Member(vhdmake.make(path, spec), "dynamic", block_size, holds)


class ChainFiles:
    """The images, leaf first."""

    def __init__(self, directory: Path, root: Member) -> None:
        self.directory = directory
        self.members = [root]
        self._count = 0

    @property
    def leaf(self) -> Member:
        """What the guest reads is what it must read as."""
        return self.members[0]

    def new_name(self) -> Path:
        """Of a parent to be."""
        self._count += 1
        return self.directory / f"base{self._count}.img"

    def grew(self, parent: Path, block_size: int, then: GuestBytes) -> None:
        """The leaf's file has the parent's name now, and held `then`; an empty child has the leaf's."""
        old = self.leaf
        child = Member(old.path, "differencing", block_size, old.holds)
        self.members[0] = replace(old, path=parent, holds=then)
        self.members.insert(0, child)

    def _leaf_to_parent(self) -> Member:
        parent = replace(self.leaf, path=self.new_name(), holds=self.leaf.holds.copy())
        self.leaf.path.rename(parent.path)
        return parent

    def snapshot(self, *, skip_empty: bool = False, hide: bool = False) -> None:
        """By vhd-util. skip_empty: a leaf that holds nothing is left out."""
        parent, path = self._leaf_to_parent(), self.leaf.path
        if hide and parent.kind != RAW:
            ok("set", "-n", parent.path, "-f", "hidden", "-v", 1)
        ok("snapshot", "-n", path, "-p", parent.path, *_raw_flag(parent), *([] if skip_empty else ["-e"]))
        self.grew(parent.path, 2 * MIB, parent.holds)
        if skip_empty:
            self._drop_skipped()

    def _drop_skipped(self) -> None:
        found = Path(ok("query", "-n", self.leaf.path, "-p").rstrip("\n"))
        while self.members[1].path != found:
            member = self.members[1]
            assert member.kind == "differencing", f"{member.path} was left out, but has no parent"
            used = set(vhdref.Image(member.path).bat) - {vhdref.UNUSED}
            assert not used, f"{member.path} was left out, but holds something"
            member.path.unlink()
            del self.members[1]

    def foreign_snapshot(self, block_size: int, creator: bytes) -> None:
        """A child as others make them, without a batmap."""
        parent, path = self._leaf_to_parent(), self.leaf.path
        name = parent.path.name
        spec = Spec(
            size=len(self.leaf.holds.data),
            kind=vhdmake.DIFFERENCING,
            block_size=block_size,
            creator=creator,
            creator_version=CREATORS[creator],
            parent_uuid=UUID(int=0) if parent.kind == RAW else vhdref.Image(parent.path).footer.uuid,
            parent_name=name,
            locators=(Locator(b"W2ru", f".\\{name}".encode("utf-16-le")),),
            uuid=uuid4(),
        )
        vhdmake.make(path, spec)
        self.grew(parent.path, block_size, parent.holds)

    def coalesce(self, number: int, kill_after: float | None = None) -> None:
        """A member into its parent, which is made as large first; neither leaves the chain.

        kill_after: a first attempt is killed after so many seconds.
        """
        child, parent = self.members[number : number + 2]
        if parent.holds.sectors < child.holds.sectors:
            self.grow(number + 1, -(-len(child.holds.data) // MIB))
        before = child.path.read_bytes()
        if kill_after is not None:
            env = {**os.environ, "XENBLK_CONFIG": "/nonexistent"}
            process = subprocess.Popen([program("vhd-util"), "coalesce", "-n", child.path], env=env)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(kill_after)
            process.kill()
            parent.killed |= process.wait() < 0
        after_a_kill(lambda: ok("coalesce", "-n", child.path))
        assert child.path.read_bytes() == before, "coalesce has changed the child"
        tail = parent.holds
        parent.holds = child.holds.copy()
        if tail.sectors > parent.holds.sectors:
            parent.holds.resize(tail.sectors)
            parent.holds.written(child.holds.sectors, bytes(tail.data[len(child.holds.data) :]))

    def take_out(self, number: int) -> None:
        """A member that reads as its parent does: its child gets that as its parent; of a leaf, the parent the name."""
        member, parent = self.members[number : number + 2]
        if number:
            child = self.members[number - 1]
            # Made as large as the member, it may have been rounded up to a block.
            force = ["--force"] if parent.holds.sectors > min(child.holds.sectors, member.holds.sectors) else []
            ok("modify", "-n", child.path, "-p", parent.path, *_raw_flag(parent), *force)
            member.path.unlink()
        else:
            parent.path.rename(member.path)
            parent.path = member.path
            self._no_child_left(parent)
        del self.members[number]

    def _no_child_left(self, member: Member) -> None:
        with contextlib.suppress(OSError):
            os.removexattr(member.path, MARK)
        if member.kind != RAW and vhdref.Image(member.path).footer.hidden:
            ok("set", "-n", member.path, "-f", "hidden", "-v", 0)

    def _new_size(self, member: Member, megabytes: int) -> None:
        size = member.whole_blocks(megabytes)
        # A last block that is used in part leaves no way between.
        if megabytes * MIB > len(member.holds.data) or size < len(member.holds.data):
            member.holds.resize(size // SECTOR)

    def grow(self, number: int, megabytes: int) -> None:
        """To at least so much."""
        member = self.members[number]
        if member.kind == RAW:
            os.truncate(member.path, megabytes * MIB)
        else:
            ok("resize", "-n", member.path, "-s", megabytes)
        self._new_size(member, megabytes)

    def shrink(self, megabytes: int) -> None:
        """The leaf, whatever it holds past its new end."""
        ok("resize", "-n", self.leaf.path, "-s", megabytes, "--force")
        self._new_size(self.leaf, megabytes)

    def fill(self) -> None:
        """All of the disk into the leaf."""
        ok("fill", "-n", self.leaf.path)

    def flatten(self) -> None:
        """The leaf becomes a copy that has no parent."""
        new, path = self.new_name(), self.leaf.path
        ok("copy", "-n", path, "-N", new)
        for member in self.members:
            member.path.unlink()
        new.rename(path)
        self.members = [Member(path, "dynamic", 2 * MIB, self.leaf.holds)]
