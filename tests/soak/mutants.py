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


@dataclass(frozen=True)
class Mutant:
    """One place of the source, what is put there, and the operations that must show it."""

    file: str
    old: str
    new: str
    operations: tuple[str, ...]


MUTANTS = {
    "extension not synced": Mutant(
        "drivers/vhd-grow.c", "\t\tio->op = IO_SYNC;\n\t\timage_queue(&disk->image, io);\n\t\treturn;\n", "", ("write", "uring")
    ),
    "file not cut before it is extended": Mutant(
        "drivers/vhd-grow.c", "ftruncate(leaf->fd, (off_t)leaf->data_end) < 0", "leaf->fd < 0", ("repair", "write")
    ),
    "flush without a sync": Mutant(
        "drivers/vhd.c", "\treq->image = image;\n\treq->io.op = IO_SYNC;",
        "\treq->done(req, 0);\n\treturn;\n\treq->io.op = IO_SYNC;", ("write",)
    ),
    "all bits of a new block that has a parent": Mutant(
        "drivers/vhd-meta.c", "if (disk->chain->depth == 1) {", "if (disk->chain->depth) {", ("write", "coalesce")
    ),
    "close: bitmaps not synced before the batmap": Mutant(
        "vhd/trailer.c", "\tif (fdatasync(image->fd))\n\t\treturn vhd_fail(image->path, -errno, \"sync\", err);\n\tif (image->footer.type",
        "\tif (image->footer.type", ("write",)
    ),
    "resize: blocks not synced before the BAT leads to them": Mutant(
        "vhd/resize-tables.c", "\trc = sync_image(image, err);\n\tif (!rc)\n\t\timage->data_end", "\tif (!rc)\n\t\timage->data_end",
        ("grow",)
    ),
    "resize: moved blocks' entries not synced before the new tables": Mutant(
        "vhd/resize-tables.c", "\treturn rc ? rc : sync_image(image, err);\n}\n\nstatic int write_tables",
        "\treturn rc;\n}\n\nstatic int write_tables", ("grow",)
    ),
    "resize: tables not synced before the header": Mutant(
        "vhd/resize-tables.c", "\trc = sync_image(image, err);\n\tif (rc)\n\t\treturn rc;\n\trc = vhd_read_at", "\trc = vhd_read_at",
        ("grow",)
    ),
    "resize: blocks dropped before the disk is smaller": Mutant(
        "vhd/resize.c", "\trc = finish(image, size, err);\n\treturn rc ? rc : drop_blocks(image, first, err);",
        "\trc = drop_blocks(image, first, err);\n\treturn rc ? rc : finish(image, size, err);", ("shrink",)
    ),
    "snapshot: renamed before it is synced": Mutant(
        "vhd/create.c", "if (!rc && fsync(fd))", "if (!rc && fd < 0)", ("snapshot", "create", "live snapshot")
    ),
    "snapshot: directory not synced": Mutant(
        "vhd/create.c", "if (fd < 0 || fsync(fd))", "if (fd < 0)", ("snapshot", "create")
    ),
    "live snapshot: directory not synced": Mutant(
        "drivers/vhd-name.c", "if (fsync(disk->unsynced_dir) && errno != EINVAL)", "if (disk->unsynced_dir < 0)",
        ("live snapshot",)
    ),
    "coalesce: answered before the flush": Mutant(
        "jobs/pump.c", "if (!rc && !c->rc)\n\t\trc = flush(c);", "if (rc && !c->rc)\n\t\trc = flush(c);", ("coalesce",)
    ),
    "coalesce: nothing flushed at the end": Mutant(
        "vhd/trailer.c", "\tif (fdatasync(image->fd))\n\t\treturn", "\tif (image->fd < 0)\n\t\treturn", ("coalesce", "copy")
    ),
    "fill: bits before data": Mutant(
        "vhd/fill.c", "if (f->nr && fdatasync(leaf->fd))", "if (f->nr && leaf->fd < 0)", ("fill",)
    ),
    "modify: header not synced": Mutant(
        "vhd/parent.c", "if (!rc && fdatasync(image->fd))", "if (!rc && image->fd < 0)", ("modify",)
    ),
    "modify: cut off before the footer leads away": Mutant(
        "vhd/parent.c", "\trc = vhd_write_trailer(image, err);\n\tif (!rc)\n\t\trc = vhd_find_data_end",
        "\tif (!rc)\n\t\trc = vhd_find_data_end", ("modify",)
    ),
}


def _build(tree: Path) -> None:
    argv: list[str | Path] = ["make", "-s", f"-j{os.cpu_count()}", "-C", tree / "tapdisk-c", "MODE=release", f"BUILD={tree}/build"]
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
        argv = [sys.executable, "-m", "tests.soak.crash", f"--operation={operation}", f"--seed={seed + turn}", "--states=150"]
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
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {'; '.join(MUTANTS)}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--states", type=int, default=4000, help="with so many it must be found")
    args = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory(prefix="xenblk-mutants-") as directory:
        tree = Path(directory)
        _copy(tree)
        for name in args.names or MUTANTS:
            mutant = MUTANTS[name]
            path = tree / "tapdisk-c" / mutant.file
            source = path.read_text(encoding="utf-8")
            assert source.count(mutant.old) >= 1, f"{name}: {mutant.file} has no such place"
            path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
            _build(tree)
            found = _first_loss(tree, mutant, args.seed, args.states)
            print(f"{name}: {found or 'NOT FOUND'}", flush=True)
            missed += not found
            path.write_text(source, encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
