# SPDX-License-Identifier: LGPL-2.1-only
"""Random images for crash states, and how a state of them is judged."""

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lib import vhdref
from tests.lib.crashstates import Base, Cuts, State
from tests.lib.disk import pattern
from tests.soak.statetool import FOREIGN, Seeds, StateTool, ToolError, numbers

SECTOR = 512
MIB_SECTORS = 2048
FEW = 4


@dataclass(frozen=True)
class Shape:
    """Of an image. block in bytes; 0: fixed."""

    sectors: int
    block: int
    batmap: bool
    spare: int = 0


def random_shape(chance: random.Random, *, whole: bool = False) -> Shape:
    """A small one. `whole`: its size is a multiple of the block."""
    block = chance.choice((4096, 4096, 8192, 16384, 65536, 65536))
    blocks = chance.randint(2, {4096: 120, 8192: 60, 16384: 40, 65536: 14}[block])
    odd = 0 if whole or chance.random() < 0.6 else chance.randrange(8)
    spare = chance.choice((0, 0, 7, 200))
    return Shape(blocks * block // SECTOR + odd, block, chance.random() < 0.5, spare)


class Loss(Exception):
    """A state that breaks what is promised."""


class Bed:
    """A directory of images, all made from one seed, and one for their states."""

    def __init__(self, directory: Path, tool: StateTool, seed: int) -> None:
        self.seed, self.tool, self.chance = seed, tool, random.Random(seed)
        self.work = directory.resolve() / "work"
        self.state = directory.resolve() / "state"
        for path in (self.work, self.state):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        self.log = directory.resolve() / "log"
        self._seed = 0

    def next_seed(self) -> int:
        """No write has had it."""
        self._seed += 1
        return self._seed

    def skip_seeds(self, last: int) -> None:
        """Somebody else has used those up to this."""
        self._seed = max(self._seed, last)

    def path(self, name: str) -> Path:
        """Of an image."""
        return self.work / name

    def spec(self, name: str) -> str:
        """TYPE:PATH; what has no suffix is raw."""
        return spec(self.work, name)

    def raw(self, name: str, sectors: int) -> str:
        """Makes a raw image."""
        with self.path(name).open("wb") as file:
            file.truncate(sectors * SECTOR)
        self.scribble(name, sectors, self.chance.randint(2, 14))
        return name

    def image(self, name: str, shape: Shape, parent: str | None = None, writes: int | None = None) -> str:
        """Makes a VHD and writes to it."""
        self.tool.ask(
            "make",
            self.path(name),
            shape.sectors,
            shape.block,
            int(shape.batmap),
            shape.spare,
            self.path(parent) if parent else "-",
            int(bool(parent) and not str(parent).endswith(".vhd")),
        )
        self.scribble(name, shape.sectors, self.chance.randint(0, 8) if writes is None else writes)
        return name

    def scribble(self, name: str, sectors: int, writes: int) -> None:
        """Some writes at random places."""
        for _ in range(writes):
            start = self.chance.randrange(sectors)
            count = min(self.chance.choice((1, 2, 5, 8, 16, 60, 200)), sectors - start)
            if self.chance.random() < 0.1:
                self.tool.ask("zero", self.spec(name), start, count)
            else:
                self.tool.ask("write", self.spec(name), start, count, self.next_seed())

    def chain(self, leaf: str, *, whole: bool = False, shape: Shape | None = None) -> Shape:
        """A leaf, most often with one or two parents, which may be raw or fixed, and are no larger."""
        shape = shape or random_shape(self.chance, whole=whole)
        parent = None
        depth = self.chance.choice((0, 1, 1, 2)) if shape.block else 0
        if depth:
            sectors = shape.sectors if self.chance.random() < 0.7 else self.chance.randint(1, shape.sectors)
            base = random_shape(self.chance)
            match self.chance.randrange(4):
                case 0:
                    parent = self.raw("base.img", sectors)
                case 1:
                    parent = self.image("base.vhd", Shape(sectors, 0, False), writes=self.chance.randint(2, 14))
                case _:
                    writes = self.chance.randint(2, 14)
                    parent = self.image("base.vhd", Shape(sectors, base.block, base.batmap), writes=writes)
            if depth > 1:
                middle = random_shape(self.chance)
                parent = self.image("middle.vhd", Shape(shape.sectors, middle.block, middle.batmap), parent)
        self.image(leaf, shape, parent)
        return shape

    def read(self, name: str) -> Seeds:
        """The disk as it is."""
        return self.tool.read(self.spec(name))

    def before(self) -> dict[str, Base]:
        """All files."""
        return {path.name: Base.read(path) for path in self.work.iterdir()}

    def holds(self, name: str) -> set[int]:
        """The sectors that the image itself has."""
        image = vhdref.Image(self.path(name))
        return {sector for sector in range(image.size // SECTOR) if image.has_sector(sector)}


def spec(directory: Path, name: str) -> str:
    """TYPE:PATH; what has no suffix .vhd is raw."""
    return f"{'vhd' if name.endswith('.vhd') else 'aio'}:{directory / name}"


def differences(seeds: Seeds, allowed: Sequence[frozenset[int]]) -> str:
    """What is wrong with a disk, or nothing."""
    found = numbers(seeds)
    if len(found) != len(allowed):
        return f"{len(found)} sectors, not {len(allowed)}"
    wrong = [
        f"sector {s} is {'foreign' if seed == FOREIGN else seed}, not of {sorted(ok)}"
        for s, (seed, ok) in enumerate(zip(found, allowed, strict=True))
        if seed not in ok
    ]
    return f"{len(wrong)} wrong: {'; '.join(wrong[:FEW])}" if wrong else ""


class Look:
    """What is asked of the images in a state."""

    def __init__(self, bed: Bed) -> None:
        self.tool, self.chance, self.directory = bed.tool, bed.chance, bed.state

    def path(self, name: str) -> Path:
        """Of an image of the state."""
        return self.directory / name

    def opens(self, name: str) -> None:
        """It is sound, or is after a repair."""
        if not name.endswith(".vhd"):
            return
        try:
            self.tool.ask("check", self.path(name))
        except ToolError:
            self.mend(name)

    def mend(self, name: str) -> None:
        """A repair leaves nothing to complain of, and the next one nothing to do."""
        self.tool.ask("repair", self.path(name))
        warning = self.tool.ask("check", self.path(name))
        if warning:
            raise Loss(f"{name}: after a repair: {warning}")
        if self.chance.random() < 0.25:
            before = self.path(name).read_bytes()
            self.tool.ask("repair", self.path(name))
            if self.path(name).read_bytes() != before:
                raise Loss(f"{name}: a second repair changes it")

    def read(self, name: str) -> Seeds:
        """The disk through its driver."""
        return self.tool.read(spec(self.directory, name))

    def reread(self, name: str, seeds: Seeds) -> None:
        """The disk by the other reader."""
        if not name.endswith(".vhd") or self.path(name).stat().st_size > 16 << 20:
            return
        chain = vhdref.Chain(self.path(name))
        for sector, seed in enumerate(numbers(seeds)):
            if chain.sector(sector) != (pattern(sector, seed) if seed else bytes(SECTOR)):
                raise Loss(f"{name}: vhdref reads another sector {sector} than the driver, which has {seed}")

    def mends(self, name: str, seeds: Seeds) -> None:
        """A repair changes no data."""
        if name.endswith(".vhd"):
            self.mend(name)
            if self.read(name) != seeds:
                raise Loss(f"{name}: a repair has changed the disk")

    def use(self, name: str, seeds: Seeds) -> None:
        """It can be written to, and all else stays."""
        now = numbers(seeds)
        target = spec(self.directory, name)
        for _ in range(self.chance.randint(1, 3)):
            start = self.chance.randrange(len(now))
            count = min(self.chance.choice((1, 8, 100)), len(now) - start)
            seed = self.chance.randint(1 << 20, 1 << 24)
            try:
                self.tool.ask("write", target, start, count, seed)
            except ToolError as error:
                if "vhd-util repair" not in str(error):
                    raise
                self.mend(name)
                continue
            for sector in range(start, start + count):
                now[sector] = seed
        if self.read(name) != now.tobytes():
            raise Loss(f"{name}: after more writes it is not as it should be")
        if name.endswith(".vhd"):
            self.tool.ask("check", self.path(name))

    def more(self, name: str, seeds: Seeds, *, usable: bool = True) -> None:
        """Of each state some of what takes longer."""
        dice = self.chance.random()
        if dice < 0.1:
            self.reread(name, seeds)
        if 0.05 < dice < 0.35:
            self.mends(name, seeds)
        if usable and 0.3 < dice < 0.5:
            self.use(name, seeds)


@dataclass
class Scenario:
    """An operation that has been recorded."""

    operation: str
    bed: Bed
    cuts: Cuts
    first: int = field(default=0, kw_only=True)
    """States of earlier moments are not of interest."""

    def judge(self, state: State) -> None:
        """Raises Loss, or an error of the tool's. The state has been made."""
        raise NotImplementedError

    def label(self, state: State) -> str:
        """The operation that the state counts for."""
        return self.operation


@dataclass
class Job(Scenario):
    """An operation that changes what no disk holds, or makes a new image."""

    views: Mapping[str, Sequence[Seeds]]
    """What the images may hold, whenever it is cut off."""
    again: Sequence[str]
    """Words for tool-state that do it again; {} is the directory."""
    after: Mapping[str, Seeds]
    """What the images hold then."""
    new: str = ""
    """The image that it makes: it is not there, or all of it is."""
    usable: Sequence[str] = ()
    """Those that can be written to."""
    grown: int = 0
    """Bytes that the one image is given after it, of which the new ones are zeros; 0: it is not."""

    def judge(self, state: State) -> None:
        """As above."""
        look = Look(self.bed)
        names = [name for name in self.views if name != self.new or name in state.files]
        for name in names:
            look.opens(name)
            seeds = look.read(name)
            if seeds not in self.views[name]:
                best = differences(seeds, [frozenset({n}) for n in numbers(self.views[name][-1])])
                raise Loss(f"{name} has another content: {best}")
        if state.moment == self.cuts.end:
            self._over(look, state)
        if names and self.bed.chance.random() < 0.5:
            name = self.bed.chance.choice(names)
            look.more(name, look.read(name), usable=False)
        if self.bed.chance.random() < 0.4:
            self._again(look, state)

    def _over(self, look: Look, state: State) -> None:
        """The operation has answered: nothing of it can be lost."""
        for name, want in self.after.items():
            if name not in state.files:
                raise Loss(f"{name}: is not there though it was answered")
            look.opens(name)
            if look.read(name) != want:
                raise Loss(f"{name}: is not what was answered")

    def _again(self, look: Look, state: State) -> None:
        done = bool(self.new) and self.new in state.files
        if self.grown and self.bed.chance.random() < 0.5:
            # Of the new size already: not again.
            done = all(look.read(name) == want for name, want in self.after.items())
        if not done:
            for name in self.cuts.changed() & set(state.files):
                self._writable(look, name)
            look.tool.ask(*(word.format(look.directory) for word in self.again))
        for name, want in self.after.items():
            look.opens(name)
            if look.read(name) != want:
                raise Loss(f"{name}: done again it comes to something else")
        if self.grown and self.bed.chance.random() < 0.5:
            self._grow(look)
        elif self.usable and self.bed.chance.random() < 0.3:
            name = self.bed.chance.choice(self.usable)
            look.use(name, look.read(name))

    def _grow(self, look: Look) -> None:
        [(name, want)] = self.after.items()
        look.tool.ask("resize", look.path(name), self.grown)
        look.opens(name)
        if look.read(name) != want.ljust(4 * self.grown // SECTOR, b"\0"):
            raise Loss(f"{name}: made larger again it has more than zeros at its end")

    def _writable(self, look: Look, name: str) -> None:
        """A damaged footer copy must be repaired before an image is written to."""
        if name.endswith(".vhd") and "repair restores" in look.tool.ask("check", look.path(name)):
            look.tool.ask("repair", look.path(name))
