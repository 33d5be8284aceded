# SPDX-License-Identifier: LGPL-2.1-only
"""What it takes to attach a disk to a guest that runs: tap2 by our front and in the form of Xen's own xl, beside phy."""

import re
import time
from collections.abc import Sequence

from tests.lib.guest import Guest
from tests.lib.vm import Bed
from tests.perf.bench import say
from tests.perf.guest import spec
from tests.perf.results import AttachRun, Results

PART = "attach on Debian {}"
CELLS = QUICK = ("attach",)
VDEV = "xvdm"
NUMBER = 51712 + 16 * 12
SPECS = {
    "phy": f"phy:/dev/loop0,{VDEV},w",
    "tap2": f"tap2:vhd:/srv/attach/1.vhd,{VDEV},w",
    "script": f"format=raw,vdev={VDEV},access=w,script=block-xenblk,target=vhd:/srv/attach/1.vhd",
}
"""The disk by way."""
XENS_XL = "/usr/lib/xen-*/bin/xl"
# Forks as the kernel counts them, so of all that an attach leads to; the shell's own builtins make none.
MEASURE = """
now() {{ read -r up _ < /proc/uptime; while read -r key value _; do case $key in processes) forks=$value ;; esac; done < /proc/stat; }}
until_path() {{ tries=0; until {test}; do tries=$((tries + 1)); [ $tries -lt 500 ] || exit 3; sleep 0.02; done; }}
now; began=$up; before=$forks
{command} >&2 || exit 4
now; made=$forks
until_path
now; echo "took $began $up $((made - before))"
"""
TOOK = re.compile(r"^took (\S+) (\S+) (\d+)\r?$", re.M)


def timed(bed: Bed, command: str, test: str) -> tuple[float, int]:
    """Seconds of the bed's clock until the test holds, and the processes made by the command's end."""
    output = bed.run(MEASURE.format(command=command, test=test), timeout=300).stdout
    found = TOOK.search(output)
    if not found:
        raise ValueError(f"{command}: the bed said: {output[-300:]!r}")
    return float(found[2]) - float(found[1]), int(found[3])


def attach_once(bed: Bed, guest: Guest, way: str) -> tuple[float, float, int]:
    """Seconds until it is connected, until it is gone again, and the processes that the attach made."""
    domid = bed.run(f"xl domid {guest.name}").stdout.strip()
    backend = f"/local/domain/0/backend/vbd/{domid}/{NUMBER}"
    seconds, forks = timed(
        bed, f"{XENS_XL if way == 'script' else 'xl'} block-attach {guest.name} '{SPECS[way]}'", f'[ "$(xenstore-read {backend}/state)" = 4 ]'
    )
    gone, _ = timed(bed, f"xl block-detach {guest.name} {VDEV}", f"! xenstore-exists {backend}")
    return seconds, gone, forks


def measure(
    found: Results, release: int, rounds: int, _milliseconds: int, _names: Sequence[str], by_instructions: bool
) -> None:
    """All ways in turn, in one guest; a round before them teaches."""
    start = time.monotonic()
    part = PART.format(release)
    say(f"{part}: starting")
    with Bed(spec(release, by_instructions)) as bed:
        found.versions[part] = bed.run("uname -r").stdout.strip()
        bed.run(
            "xenblk config apply; modprobe blktap; modprobe loop; mkdir -p /srv/attach; cd /srv/attach; vhd-util create -n 1.vhd -s 64"
            " && truncate -s 64M raw && losetup /dev/loop0 raw"
        )
        guest = Guest(bed, "attach", "echo ready; read -r line\n")
        try:
            guest.start()
            guest.wait_text("^ready$")
            ways = list(SPECS)
            for number in range(-1, rounds):
                shift = number % len(ways)
                for way in [*ways[shift:], *ways[:shift]]:
                    took = attach_once(bed, guest, way)
                    if number >= 0:
                        found.attaches.append(AttachRun(number, part, way, *took))
        finally:
            guest.destroy()
    say(f"{part}: done, {time.monotonic() - start:.0f} s")
