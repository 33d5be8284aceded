# SPDX-License-Identifier: LGPL-2.1-only
"""`python3 -m tests.series`: what `make -C kernel-patches check-series` runs."""

import argparse
import sys

from patchseries import HERE, KERNELS, SeriesError
from patchseries.__main__ import write_all

from tests.lib import cache
from tests.lib.apt import AptError
from tests.series import source
from tests.series.steps import STEPS


def check(kernel: str, steps: list[str]) -> int:
    """Check the series for one kernel. Returns the number of findings."""
    with cache.locked(f"linux-{kernel}-tree"):
        place = source.find(kernel)
        count = 0
        for name in STEPS:
            # the first one brings the tree to where all others expect it
            if name != "apply" and steps and name not in steps:
                continue
            try:
                found = STEPS[name](place)
            except SeriesError as error:
                found = [str(error)]
            print(f"{kernel} {name}: {'ok' if not found else f'{len(found)} found'}", flush=True)
            for text in found:
                print(f"  {text}", flush=True)
            count += len(found)
            if found and name == "apply":
                break
    return count


def main() -> int:
    """Check all series, or those asked for."""
    parser = argparse.ArgumentParser(
        "python3 -m tests.series",
        description="Apply the patch series to Debian's kernels, build and check them. Status 1: something was found.",
    )
    parser.add_argument("--kernel", choices=KERNELS, action="append", help="only this one (repeats)")
    parser.add_argument("--step", choices=STEPS, action="append", help="only this one, after apply (repeats)")
    parser.add_argument("--update", action="store_true", help="make the series for the kernels that Debian has now")
    args = parser.parse_args()
    kernels = args.kernel or list(KERNELS)
    try:
        if args.update:
            for kernel in kernels:
                source.update(kernel)
            write_all(HERE)
        found = sum(check(kernel, args.step or []) for kernel in kernels)
    except (SeriesError, AptError) as error:
        print(f"check-series: {error}", file=sys.stderr)
        return 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
