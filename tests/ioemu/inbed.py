# SPDX-License-Identifier: LGPL-2.1-only
"""QEMU on real Xen, stock and with the series: `python3 -m tests.ioemu.inbed --release=12|13`.

An HVM guest uses its disk by emulated IDE, and dom0 uses it by blkback, as the guest's own driver would. The emulator with
the series is the one that tests.ioemu.qemu has built.
"""

import argparse
import re
import sys

from tests.ioemu import qemusource
from tests.ioemu.qemu import EMULATOR, SERIES, built
from tests.lib import hvm, tapdisks, twopaths
from tests.lib.qemu import BedSpec
from tests.lib.hvm import line
from tests.lib.release import RELEASES
from tests.lib.vm import Bed, BedError

PLACE = f"/srv/{EMULATOR}"
# Debian's keymaps, which the built one looks for elsewhere
COHERENT = ("-L", "/usr/share/qemu", "-global", "ide-hd.direct-host-device=on")
O_DIRECT = 0o40000


def opened_directly(bed: Bed, pid: int, device: str) -> bool:
    """Does the process have the device open past the page cache, each time that it has?"""
    script = f'for fd in /proc/{pid}/fd/*; do [ "$(readlink $fd)" != {device} ] || cat /proc/{pid}/fdinfo/${{fd##*/}}; done'
    flags = re.findall(r"^flags:\s+([0-7]+)$", bed.run(script).stdout, re.M)
    return bool(flags) and all(int(flag, 8) & O_DIRECT for flag in flags)


def unplugged(bed: Bed) -> None:
    """What was written and not flushed is there once the emulated disk is unplugged."""
    with twopaths.begun(bed) as paths:
        paths.guest.say("w")
        paths.guest.wait_text("^boot: wrote\n")
        paths.guest.say("u")
        paths.guest.wait_text("^boot: unplugged\n")
        # What a PV driver asks for from now on comes from there.
        assert paths.in_image(hvm.COPY) == paths.first
        assert tapdisks.openers(bed, [paths.device()]) == set(), "QEMU has not let go of the device"


def stale(bed: Bed) -> None:
    """What the emulated drive has read since blkback connected it reads again: the page cache has it, which libxl's
    cache=writeback asks for."""
    with twopaths.begun(bed) as paths:
        second, third = line("second"), line("third")
        paths.connect()
        paths.by_blkback(second)
        # blkback empties the cache when it connects
        paths.by_ide(paths.first, second)
        paths.by_blkback(third)
        paths.by_ide(paths.first, second, second)


def coherent(bed: Bed) -> None:
    """With the series, and its property, it sees all that comes by blkback."""
    with twopaths.begun(bed, COHERENT, PLACE) as paths:
        assert paths.guest.qemu_arguments()[0] == PLACE
        assert opened_directly(bed, paths.guest.qemu_pid(), paths.device()), "the drive is not past the page cache"
        seen = [paths.first]
        paths.connect()
        for text in ("second", "third", "fourth"):
            seen.append(line(text))
            paths.by_blkback(seen[-1])
            paths.by_ide(*seen)


def run(number: int) -> None:
    """Raises AssertionError or BedError."""
    series = SERIES[number]
    emulator = built(number, qemusource.source(series.base(), RELEASES[number].suite)) / "after" / EMULATOR
    with Bed(BedSpec(release=number)) as bed:
        bed.put(PLACE, emulator.read_bytes(), 0o755)
        try:
            for look in (unplugged, stale, coherent):
                look(bed)
                print(f"{series.directory.name} in a bed: {look.__name__}: as expected", flush=True)
        except BedError:
            if bed.alive:
                print(bed.run("tail -n 20 /var/log/xen/qemu-dm-paths.log*", check=False).output)
            raise


def main() -> int:
    """The program. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="tests.ioemu.inbed", description=__doc__.partition("\n")[0])
    parser.add_argument("--release", type=int, choices=sorted(SERIES), required=True, help="of Debian")
    run(parser.parse_args().release)
    return 0


if __name__ == "__main__":
    sys.exit(main())
