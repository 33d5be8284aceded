# SPDX-License-Identifier: LGPL-2.1-only
"""Whether crash states find what they are for: the programs are built with one order of writes broken, and the runner
must find a loss. The images are judged by the build as it is.

    python3 -m tests.soak.mutants [NAME ...]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.lib.programs import ROOT


Edit = tuple[str, str, str]
"""A file, what is in it, and what is put in its place."""


@dataclass(frozen=True)
class Mutant:
    """What is broken, and the operations that must show it."""

    operations: tuple[str, ...]
    edits: tuple[Edit, ...]


NO_FLUSH: Edit = (
    "drivers/vhd.c",
    "\treq->image = image;\n\treq->io.op = IO_SYNC;",
    "\treq->done(req, 0);\n\treturn;\n\treq->io.op = IO_SYNC;",
)
NO_SYNC_AT_CLOSE: Edit = (
    "vhd/trailer.c",
    '\tif (fdatasync(image->fd))\n\t\treturn vhd_fail(image->path, -errno, "sync", err);\n\tif (image->footer.type',
    "\tif (image->footer.type",
)
BITS_WITH_DATA: Edit = (
    "drivers/vhd-write.c",
    "\top->first = first;\n",
    "\top->first = first;\n\tif (op->bitmap && vhd_bitmap_set(op->bitmap->map, first, count)) {\n"
    "\t\top->bitmap->dirty = true;\n\t\tvhd_map_set(disk, block, first, count);\n\t}\n",
)
TABLES, SYNC = "vhd/resize-tables.c", "\trc = sync_image(image, err);\n"
MUTANTS = {
    "write: the file's extension is not synced": Mutant(
        ("write", "uring"),
        (("drivers/vhd-grow.c", "\t\tio->op = IO_SYNC;\n\t\timage_queue(&disk->image, io);\n\t\treturn;\n", ""),),
    ),
    "write: the file is not cut before it is extended": Mutant(
        ("write",), (("drivers/vhd-grow.c", "ftruncate(leaf->fd, (off_t)leaf->data_end) < 0", "leaf->fd < 0"),)
    ),
    "write: bits may be there before their data": Mutant(("write", "uring"), (BITS_WITH_DATA,)),
    "flush: no sync": Mutant(("write",), (NO_FLUSH,)),
    "close: bitmaps are not synced before the batmap": Mutant(("write",), (NO_SYNC_AT_CLOSE,)),
    "resize: moved blocks are not synced before the BAT leads to them": Mutant(
        ("grow",),
        ((TABLES, f"{SYNC}\tif (!rc)\n\t\timage->data_end", "\tif (!rc)\n\t\timage->data_end"),),
    ),
    "resize: their entries are not synced before the new tables": Mutant(
        ("grow",),
        (
            (
                TABLES,
                "\treturn rc ? rc : sync_image(image, err);\n}\n\nstatic int write",
                "\treturn rc;\n}\n\nstatic int write",
            ),
        ),
    ),
    "resize: tables are not synced before the header": Mutant(
        ("grow",), ((TABLES, f"{SYNC}\tif (rc)\n\t\treturn rc;\n\trc = vhd_read_at", "\trc = vhd_read_at"),)
    ),
    "resize: blocks are dropped before the disk is smaller": Mutant(
        ("shrink",),
        (
            (
                "vhd/resize.c",
                "\trc = finish(image, size, err);\n\treturn rc ? rc : drop_blocks(image, first, err);",
                "\trc = drop_blocks(image, first, err);\n\treturn rc ? rc : finish(image, size, err);",
            ),
        ),
    ),
    "snapshot: the child is renamed before it is synced": Mutant(
        ("snapshot", "create"), (("vhd/create.c", "if (!rc && fsync(fd))", "if (!rc && fd < 0)"),)
    ),
    "snapshot: the directory is not synced": Mutant(
        ("snapshot", "create"), (("vhd/create.c", "if (fd < 0 || fsync(fd))", "if (fd < 0)"),)
    ),
    "live snapshot: the directory is not synced": Mutant(
        ("live snapshot",),
        (("drivers/vhd-name.c", "if (fsync(disk->unsynced_dir) && errno != EINVAL)", "if (disk->unsynced_dir < 0)"),),
    ),
    "coalesce: nothing is synced at the end": Mutant(("coalesce",), (NO_FLUSH, NO_SYNC_AT_CLOSE)),
    "fill: bits may be there before their data": Mutant(
        ("fill",), (("vhd/fill.c", "if (f->nr && fdatasync(leaf->fd))", "if (f->nr && leaf->fd < 0)"),)
    ),
    "modify: the second header is cut off before no footer leads to it": Mutant(
        ("modify",),
        (
            (
                "vhd/parent.c",
                "\trc = vhd_write_trailer(image, err);\n\tif (!rc)\n\t\trc = vhd_find_data_end",
                "\tif (!rc)\n\t\trc = vhd_find_data_end",
            ),
        ),
    ),
}


def _build(tree: Path) -> None:
    argv: list[str | Path] = ["make", "-s", f"-j{os.cpu_count()}", "-C", tree / "tapdisk-c"]
    argv += ["MODE=release", f"BUILD={tree}/build"]
    done = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _copy(tree: Path) -> None:
    shutil.copytree(ROOT / "tapdisk-c", tree / "tapdisk-c")
    shutil.copytree(ROOT / "kernel-patches", tree / "kernel-patches")
    shutil.copy(ROOT / "VERSION", tree)


def _first_loss(tree: Path, mutant: Mutant, seed: int, states: int) -> str:
    """What is found first, or nothing."""
    env = {**os.environ, "XENBLK_RECORDED": str(tree / "build" / "release")}
    tried = 0
    for turn in range(1000):
        operation = mutant.operations[turn % len(mutant.operations)]
        argv = [sys.executable, "-m", "tests.soak.crash"]
        argv += [f"--operation={operation}", f"--seed={seed + turn}", "--states=150"]
        done = subprocess.run(argv, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        lines = done.stdout.splitlines()
        tried += next((int(line.split()[0]) for line in lines if " states, " in line), 0)
        if done.returncode:
            return f"within {tried} states of {turn + 1} logs: {lines[-1][:200]}"
        if tried >= states:
            break
    return ""


def main() -> int:
    """Ends with 1 if one has not been found."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.soak.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="as a run prints them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--states", type=int, default=4000, help="with so many it must be found")
    args = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory(prefix="xenblk-mutants-") as directory:
        tree = Path(directory)
        _copy(tree)
        for name in args.names or MUTANTS:
            mutant = MUTANTS[name]
            for file, old, new in mutant.edits:
                path = tree / "tapdisk-c" / file
                source = path.read_text(encoding="utf-8")
                assert old in source, f"{name}: {file} has no such place"
                path.write_text(source.replace(old, new), encoding="utf-8")
            _build(tree)
            found = _first_loss(tree, mutant, args.seed, args.states)
            print(f"{name}: {found or 'NOT FOUND'}", flush=True)
            missed += not found
            for file, _, _ in mutant.edits:
                shutil.copyfile(ROOT / "tapdisk-c" / file, tree / "tapdisk-c" / file)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
