# SPDX-License-Identifier: LGPL-2.1-only
"""The series for qemu-xen-traditional against its source.

    python3 -m tests.ioemu.trad QEMU_TREE [--ends] [--blktaplib=FILE]

QEMU_TREE is a clone of the repository that ioemu-patches/qemu-traditional/base names; it is only read. Each patch must
apply as it is, and what was compiled before the series and still exists must be compiled after it (build.py); then
nothing may name blktap or link with it, and the disks of a guest must be opened as the series says (disks.py). Needs
libxen-dev and zlib1g-dev. Status 1: something was found.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

from tests.ioemu import disks
from tests.ioemu.build import BLKTAPLIB, NEEDED, Build, Xen, build, configure, sources, worse
from tests.ioemu.series import PATCHES, Series, SeriesError, git, report, run, verdict

SERIES = Series(PATCHES / "qemu-traditional")
NAMES_BLKTAP = re.compile(r"blktap|tapdisk", re.IGNORECASE)
# The lines that may, and why.
LEFT = {
    ("block-qcow.c", "/* Try to detect old tapdisk images. They have to be fixed because they"): "a flaw of images",
    ("xenstore.c", "* the guest writes there.  Only tapdisk may open the image."): "the program of today",
}


def clone(source: Path, tree: Path) -> None:
    """The base's files."""
    try:
        git(Path("/"), "clone", "-q", "--no-checkout", str(source.resolve()), str(tree))
        git(tree, "checkout", "-q", "--detach", SERIES.base()["commit"])
    except SeriesError as error:
        raise SeriesError(f"{source} is no clone of {SERIES.base()['repository']} with its commit: {error}") from None


def naming(tree: Path) -> list[str]:
    """What of the tree's files names blktap. The lines of LEFT must be there: else they are out of date."""
    found = []
    seen = set()
    for name in git(tree, "ls-files").splitlines():
        path = tree / name
        if NAMES_BLKTAP.search(name):
            found.append(f"{name} is there")
        if path.is_symlink() or not path.is_file():
            continue
        lines = [line.strip() for line in path.read_bytes().decode("latin-1").splitlines() if NAMES_BLKTAP.search(line)]
        seen |= {(name, line) for line in lines} & set(LEFT)
        found += [f"{name}: {line}" for line in lines if (name, line) not in LEFT]
    return found + [f"{name} no longer has: {line}" for name, line in LEFT if (name, line) not in seen]


def linking(tree: Path, xen: Xen) -> list[str]:
    """What names blktap in the commands that make would run."""
    configure(tree)
    commands = xen.make(tree, "-n", "all").replace(str(tree), "")
    found = [] if re.search(r"-o qemu-dm .*-lxenctrl", commands) else ["make does not say how it links qemu-dm"]
    words = {word for word in commands.split() if NAMES_BLKTAP.search(word)}
    return found + [f"make: {word}" for word in sorted(words)]


def disk_program(tree: Path, xen: Xen) -> Path:
    """disks.c with the xenstore.o that a build has left."""
    (tree / "i386-dm" / "xenblk_disks.c").write_bytes((Path(__file__).parent / "disks.c").read_bytes())
    log = xen.make(tree, "-C", "i386-dm", "xenblk_disks.o")
    program = tree / "disks" / "program"
    objects = ["i386-dm/xenblk_disks.o", "disks/xenstore.o", "cutils.o"]
    try:
        # most of what xenstore.o can call is not called for disks
        run(["gcc", "-no-pie", "-o", str(program), *objects, "-Wl,--unresolved-symbols=ignore-all"], tree)
    except SeriesError as error:
        raise SeriesError(f"disks.c: {log[-2000:]}\n{error}") from None
    return program


def opening(before: Path, after: Path) -> list[str]:
    """Which disks are not opened as expected, and which of them the base does not treat as the case says."""
    found = [text for case in disks.CASES if (text := disks.wrong(case, after))]
    for case in disks.CASES:
        if case.new != bool(disks.wrong(case, before)):
            found.append(f"{case.name}: the base does {'the same' if case.new else 'something else'}")
    return found


def build_base(tree: Path, xen: Xen) -> Build:
    """Compile the base. If too little of it is, that is an error."""
    first = build(tree, xen)
    if missing := [name for name in NEEDED if name not in first.compiled]:
        raise SeriesError(f"the base's {', '.join(missing)} can't be compiled: libxen-dev and zlib1g-dev are needed")
    print(f"{SERIES.base()['commit'][:12]}: {first}", flush=True)
    return first


def check(source: Path, directory: Path, ends: bool, blktaplib: str) -> int:
    """All checks. Returns how much was found."""
    xen = Xen(directory / "xen", blktaplib)
    before, after = directory / "before", directory / "after"
    clone(source, before)
    clone(source, after)
    first = last = build_base(before, xen)
    base_program = disk_program(before, xen)
    count = 0
    for name in SERIES.patches():
        SERIES.apply(name, after)
        whole = name == SERIES.patches()[-1]
        if whole:
            xen.without_blktap()
        if whole or not ends:
            last = build(after, xen)
            count += report(name, worse(first, last, sources(after)), f"applies, {last}")
    gone = ", ".join(name for name in sorted(first.tried) if Path(name).stem not in sources(after))
    print(f"gone with its source: {gone or 'nothing'}")
    same = sum(not case.new for case in disks.CASES)
    good = f"{len(disks.CASES)} cases as expected, {same} of them as without the series"
    count += report("disks", opening(base_program, disk_program(after, xen)), good)
    reasons = "; ".join(f"{name}: {why}" for (name, _), why in LEFT.items())
    count += report("what names blktap", naming(after), f"none but in {len(LEFT)} lines ({reasons})")
    return count + report("commands that link or include it", linking(after, xen), "none")


def main() -> int:
    """The program. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="tests.ioemu.trad", description=__doc__.partition("\n")[0])
    parser.add_argument("tree", type=Path, metavar="QEMU_TREE", help=f"a clone of {SERIES.base()['repository']}")
    parser.add_argument("--ends", action="store_true", help="compile before and after the series, not after each patch")
    parser.add_argument("--blktaplib", type=Path, metavar="FILE", help="Xen 4.2's own blktaplib.h, for the base")
    args = parser.parse_args()

    def look() -> int:
        blktaplib = args.blktaplib.read_text(encoding="utf-8") if args.blktaplib else BLKTAPLIB
        with tempfile.TemporaryDirectory(prefix="xenblk-ioemu-", dir="/var/tmp") as directory:
            return check(args.tree, Path(directory), args.ends, blktaplib)

    return verdict("qemu-traditional", look)


if __name__ == "__main__":
    sys.exit(main())
