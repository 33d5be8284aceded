# SPDX-License-Identifier: LGPL-2.1-only
"""Crash states of what vhd-util does."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lib import vhdmake
from tests.lib.crashstates import Cuts
from tests.lib.disk import Disk
from tests.lib.expected import Expected, random_batch
from tests.lib.programs import RECORDED, program
from tests.lib.recordlog import read_whole
from tests.lib.vhdlog import recording
from tests.soak.crashbed import MIB_SECTORS, Bed, Job, Loss, Shape, random_shape
from tests.soak.statetool import Seeds


def _record(bed: Bed, operation: str, *argv: str | Path | int, changes: Sequence[str] = ()) -> Cuts:
    """What vhd-util does, which must succeed and change these images alone."""
    before = bed.before()
    env = {**os.environ, **recording(bed.log, bed.work)}
    command = [str(program("vhd-util", RECORDED)), *map(str, argv)]
    result = subprocess.run(command, env=env, capture_output=True, timeout=300, check=False)
    if result.returncode or result.stderr:
        raise Loss(f"{operation} fails: {result.stderr.decode(errors='replace')}")
    cuts = Cuts(read_whole(bed.log), before, bed.chance)
    if cuts.changed() - set(changes):
        raise Loss(f"{operation} has changed {cuts.changed() - set(changes)}")
    return cuts


def _cut(seeds: Seeds, sectors: int) -> Seeds:
    """Of another size: without its end, or with zeros behind it."""
    return seeds[: 4 * sectors].ljust(4 * sectors, b"\0")


def _views(bed: Bed, *names: str) -> dict[str, Sequence[Seeds]]:
    return {name: (bed.read(name),) for name in names}


def _stay(views: Mapping[str, Sequence[Seeds]]) -> dict[str, Seeds]:
    return {name: seeds[-1] for name, seeds in views.items()}


def coalesce(bed: Bed) -> Job:
    """A child, perhaps with one of its own, into its parent, which is raw, fixed, or not the root."""
    shape = random_shape(bed.chance)
    kind = bed.chance.choice(("raw", "fixed", "vhd", "vhd", "middle", "middle"))
    other = random_shape(bed.chance)
    larger = bed.chance.choice((0, 0, 64))
    parent = "parent.vhd"
    if kind == "raw":
        parent = bed.raw("parent.img", shape.sectors + larger)
    elif kind == "fixed":
        bed.image(parent, Shape(shape.sectors + larger, 0, False))
    else:
        base = None
        if kind == "middle":
            base = bed.chance.choice(("base.vhd", "base.img"))
            if base == "base.img":
                bed.raw(base, shape.sectors)
            else:
                bed.image(base, Shape(shape.sectors, other.block, other.batmap))
        bed.image(parent, Shape(shape.sectors, other.block, other.batmap), base)
    bed.image("child.vhd", shape, parent, writes=bed.chance.randint(1, 10))
    names = ["child.vhd"]
    if bed.chance.random() < 0.5:
        bed.image("leaf.vhd", random_shape(bed.chance), "child.vhd")
        names.append("leaf.vhd")
    views = _views(bed, *names)
    sectors = len(bed.read(parent)) // 4
    after = _stay(views)
    if sectors == shape.sectors:
        after[parent] = views["child.vhd"][0]
    cuts = _record(bed, "coalesce", "coalesce", "-n", bed.path("child.vhd"), changes=(parent,))
    return Job("coalesce", bed, cuts, views, ("coalesce", "{}/child.vhd"), after, usable=(names[-1],))


def _resize(bed: Bed, operation: str, megabytes: int, name: str = "a.vhd") -> Job:
    old = bed.read(name)
    new = _cut(old, megabytes * MIB_SECTORS)
    cuts = _record(bed, operation, "resize", "-n", bed.path(name), "-s", megabytes, "--force", changes=(name,))
    again = ("resize", f"{{}}/{name}", str(megabytes << 20))
    grown = max(len(old), len(new)) // 4 * 512 + (2 << 20)
    return Job(operation, bed, cuts, {name: (old, new)}, again, {name: new}, usable=(name,), grown=grown)


def grow(bed: Bed) -> Job:
    """With room in the BAT or without, into the way of blocks or not."""
    shape = bed.chain("a.vhd")
    least = shape.sectors // MIB_SECTORS + 1
    bed.scribble("a.vhd", shape.sectors, bed.chance.choice((0, 20)))
    return _resize(bed, "resize, larger", bed.chance.randint(least, least + bed.chance.choice((0, 1, 3))))


def shrink(bed: Bed) -> Job:
    """Without a parent."""
    shape = random_shape(bed.chance, whole=True)
    shape = Shape(bed.chance.choice((3, 4)) * MIB_SECTORS // 2, shape.block, shape.batmap, shape.spare)
    bed.image("a.vhd", shape, writes=14)
    return _resize(bed, "resize, smaller", 1)


def resize_fixed(bed: Bed) -> Job:
    """Larger or smaller."""
    bed.image("a.vhd", Shape(bed.chance.randint(MIB_SECTORS + 1, 3 * MIB_SECTORS - 1), 0, False), writes=8)
    return _resize(bed, "resize, fixed", bed.chance.choice((1, 3, 4)))


def fill(bed: Bed) -> Job:
    """All into the leaf."""
    bed.chain("a.vhd")
    views = _views(bed, "a.vhd")
    cuts = _record(bed, "fill", "fill", "-n", bed.path("a.vhd"), changes=("a.vhd",))
    return Job("fill", bed, cuts, views, ("fill", "{}/a.vhd"), _stay(views), usable=("a.vhd",))


def modify(bed: Bed) -> Job:
    """Another parent, the same under another name."""
    shape = random_shape(bed.chance)
    raw = bed.chance.random() < 0.3
    parent = bed.raw("parent.img", shape.sectors) if raw else bed.image("parent.vhd", random_shape(bed.chance))
    bed.image("a.vhd", shape, parent, writes=6)
    other = "o" * bed.chance.choice((1, 20, 200)) + Path(parent).suffix
    shutil.copyfile(bed.path(parent), bed.path(other))
    views = _views(bed, "a.vhd")
    options: list[str | Path | int] = ["-m"] if raw else []
    if not raw and len(bed.read(parent)) > len(bed.read("a.vhd")):
        options.append("--force")
    argv: list[str | Path | int] = ["modify", "-n", bed.path("a.vhd"), "-p", bed.path(other), *options]
    cuts = _record(bed, "modify", *argv, changes=("a.vhd",))
    again: Sequence[str] = ("modify", "{}/a.vhd", f"{{}}/{other}", str(int(raw)))
    if "--force" in options:
        again = ("check", "{}/a.vhd")
    return Job("modify", bed, cuts, views, again, _stay(views), usable=("a.vhd",))


def set_field(bed: Bed) -> Job:
    """The hidden flag."""
    shape = random_shape(bed.chance)
    bed.image("a.vhd", Shape(shape.sectors, bed.chance.choice((0, shape.block, shape.block)), shape.batmap))
    views = _views(bed, "a.vhd")
    cuts = _record(bed, "set", "set", "-n", bed.path("a.vhd"), "-f", "hidden", "-v", 1, changes=("a.vhd",))
    return Job("set", bed, cuts, views, ("hide", "{}/a.vhd", "1"), _stay(views))


def repair(bed: Bed) -> Job:
    """Of an image that was in use when its tapdisk was killed, or that lacks a footer."""
    shape = bed.chain("a.vhd")
    dice = bed.chance.random()
    if dice < 0.7:
        disk = Disk(bed.spec("a.vhd"), mode=RECORDED, engine="posix")
        expected = Expected(shape.sectors, {0: bed.next_seed() + 1000})
        for _ in range(3):
            commands = [c for c in random_batch(expected, bed.chance, 8, "wwz", shape.block // 512) if c != "f"]
            disk.batch([*commands] or ["f"])
        disk.crash()
    else:
        vhdmake.set_footer(bed.path("a.vhd"), "checksum", b"1234", fix=False, front=dice < 0.85, tail=dice >= 0.85)
    views = _views(bed, "a.vhd")
    cuts = _record(bed, "repair", "repair", "-n", bed.path("a.vhd"), changes=("a.vhd",))
    return Job("repair", bed, cuts, views, ("repair", "{}/a.vhd"), _stay(views), usable=("a.vhd",))


def create(bed: Bed) -> Job:
    """A new image."""
    fixed = bed.chance.random() < 0.3
    megabytes = 2 if fixed else 2 * bed.chance.randint(1, 3)
    options = ["-r"] if fixed else ["-S", "100"] if bed.chance.random() < 0.5 else []
    cuts = _record(bed, "create", "create", "-n", bed.path("new.vhd"), "-s", megabytes, *options)
    zeros = bytes(4 * megabytes * MIB_SECTORS)
    bed.raw("beside.img", 64)
    again = ("create", "{}/new.vhd", str(megabytes << 20), str(int(fixed)))
    after = {"new.vhd": zeros}
    return Job("create", bed, cuts, {"new.vhd": (zeros,)}, again, after, new="new.vhd", usable=("new.vhd",))


def snapshot(bed: Bed) -> Job:
    """A new child."""
    bed.chain("a.vhd")
    bed.scribble("a.vhd", len(bed.read("a.vhd")) // 4, 1)
    views = _views(bed, "a.vhd")
    cuts = _record(bed, "snapshot", "snapshot", "-n", bed.path("new.vhd"), "-p", bed.path("a.vhd"))
    views["new.vhd"] = views["a.vhd"]
    again = ("snapshot", "{}/new.vhd", "{}/a.vhd", "0")
    return Job("snapshot", bed, cuts, views, again, _stay(views), new="new.vhd", usable=("new.vhd",))


def copy(bed: Bed) -> Job:
    """A whole new image of a chain."""
    bed.chain("a.vhd")
    views = _views(bed, "a.vhd")
    cuts = _record(bed, "copy", "copy", "-n", bed.path("a.vhd"), "-N", bed.path("new.vhd"))
    views["new.vhd"] = views["a.vhd"]
    again = ("convert", "vhd:{}/a.vhd", "vhd:{}/new.vhd")
    return Job("copy", bed, cuts, views, again, _stay(views), new="new.vhd", usable=("new.vhd",))


def convert(bed: Bed) -> Job:
    """To raw or from it."""
    if bed.chance.random() < 0.5:
        bed.chain("a.vhd")
        source, new = "a.vhd", "new.img"
    else:
        source, new = bed.raw("a.img", 1 + bed.chance.randrange(1500)), "new.vhd"
    views = _views(bed, source)
    kinds = {name: "vhd" if name.endswith(".vhd") else "raw" for name in (source, new)}
    argv = ["-n", f"{kinds[source]}:{bed.path(source)}", "-N", f"{kinds[new]}:{bed.path(new)}"]
    cuts = _record(bed, "convert", "convert", *argv)
    views[new] = views[source]
    again = ("convert", f"{kinds[source]}:{{}}/{source}", f"{kinds[new]}:{{}}/{new}")
    return Job("convert", bed, cuts, views, again, _stay(views), new=new, usable=(new,))
