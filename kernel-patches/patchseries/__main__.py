# SPDX-License-Identifier: GPL-2.0-only
"""`python3 -m patchseries`: what `make -C kernel-patches series` runs."""

import argparse
import shutil
import sys
from pathlib import Path

from patchseries import HERE, KERNELS, SeriesError
from patchseries.make import make_series


def write_all(output: Path) -> None:
    """Write all series below `output`."""
    made = {kernel: make_series(kernel) for kernel in KERNELS}
    for kernel, files in made.items():
        directory = output / f"series-{kernel}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")


def main() -> int:
    """Write the series."""
    parser = argparse.ArgumentParser(
        "python3 -m patchseries", description="Make kernel-patches/series-* of kernel-patches/src. Needs no network."
    )
    parser.add_argument("--output", type=Path, default=HERE, metavar="DIR", help="where series-* go")
    args = parser.parse_args()
    try:
        write_all(args.output)
    except SeriesError as error:
        print(f"patchseries: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
