# SPDX-License-Identifier: LGPL-2.1-only
"""QEMU on real Xen, stock and with the series: `python3 -m tests.ioemu.inbed --release=12|13 [LOOK...]`.

The emulator with the series is the one that tests.ioemu.qemu has built.
"""

import argparse
import sys
import time

from tests.ioemu import backend, emulated, qemusource
from tests.ioemu.place import PLACE
from tests.ioemu.qemu import EMULATOR, SERIES, built
from tests.lib import tapdisks
from tests.lib.qemu import BedSpec
from tests.lib.release import RELEASES
from tests.lib.vm import Bed, BedError

LOOKS = {
    f"{module.__name__.rpartition('.')[2]}.{look.__name__}": look
    for module in (emulated, backend)
    for look in (*getattr(module, "STOCK", ()), *module.PATCHED)
}


def run(number: int, names: list[str]) -> None:
    """Raises AssertionError or BedError."""
    series = SERIES[number]
    emulator = built(number, qemusource.source(series.base(), RELEASES[number].suite)) / "after" / EMULATOR
    with Bed(BedSpec(release=number)) as bed:
        bed.put(PLACE, emulator.read_bytes(), 0o755)
        for name in names:
            start = time.monotonic()
            try:
                with tapdisks.clean(bed):
                    LOOKS[name](bed)
            except (AssertionError, BedError):
                if bed.alive:
                    print(bed.run("tail -n 20 /var/log/xen/qemu-dm-*.log /var/log/xen/xen-hotplug.log", check=False).output)
                raise
            print(f"{series.directory.name} in a bed: {name}: as expected, {time.monotonic() - start:.0f} s", flush=True)


def main() -> int:
    """The program. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="tests.ioemu.inbed", description=__doc__.partition("\n")[0])
    parser.add_argument("--release", type=int, choices=sorted(SERIES), required=True, help="of Debian")
    parser.add_argument("looks", metavar="LOOK", nargs="*", help=f"all if none is named: {', '.join(LOOKS)}")
    options = parser.parse_args()
    if unknown := [name for name in options.looks if name not in LOOKS]:
        parser.error(f"no such look: {', '.join(unknown)}")
    run(options.release, options.looks or list(LOOKS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
