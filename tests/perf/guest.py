# SPDX-License-Identifier: LGPL-2.1-only
"""What a Xen guest gets: disks by tap2 beside a disk by phy, through the same blkback, over disks in dom0's memory."""

import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lib import tapdisks
from tests.lib.guest import Guest
from tests.lib.qemu import BedSpec
from tests.lib.vm import Bed
from tests.perf.bench import say
from tests.perf.inbed import LOADS, MIB, Load, arguments, build_client, null_disk
from tests.perf.results import Results, VmRun

PART = "guest of Debian {}"
MEGABYTES = 64
MEASURED = "measured"
CELLS = ("r4k16", "w4k16", "r64k8", "w64k8", "r1m2", "w1m2")
QUICK = ("r4k16", "r1m2")
RUN = re.compile(r"^run (\d+) (\S+) (xvd[a-z]) (\d+) (\d+)\r?$", re.M)
WAYS = {
    "xvda": ("disk", "phy"),
    "xvdb": ("disk", "tap2"),
    "xvdc": ("file", "phy"),
    "xvdd": ("file", "tap2"),
    "xvde": ("file", "loop"),
}
"""The guest's disks: backing and way. phy has no files: it is the disk beneath, in both. loop is xl's way to a raw file."""


def script(names: Sequence[str], rounds: int, milliseconds: int) -> str:
    """What the guest does: writes each disk whole, then the rounds."""
    lines = [f"for disk in {' '.join(WAYS)}; do wait_for_disk $disk; done"]
    lines += [f"dd if=/dev/urandom of=/dev/{disk} bs=1M count={MEGABYTES} conv=fsync 2>/dev/null || exit 1" for disk in WAYS]
    lines += ["echo 3 > /proc/sys/vm/drop_caches"]
    # the first round teaches: it is not printed
    for number in range(-1, rounds):
        for name in names:
            lines += [one_run(number, LOADS[name], disk, milliseconds) for disk in order(max(0, number))]
    # the disks stay until their counters are read
    return "\n".join([*lines, f"echo {MEASURED}; read -r line"]) + "\n"


def order(number: int) -> list[str]:
    """The disks, another one first each round."""
    disks = list(WAYS)
    shift = number % len(disks)
    return [*disks[shift:], *disks[:shift]]


def one_run(number: int, load: Load, disk: str, milliseconds: int) -> str:
    """A line of the script."""
    command = f"/aioload {arguments(f'/dev/{disk}', load, MEGABYTES * MIB, number + 2, milliseconds)}"
    if number < 0:
        return f"{command} >/dev/null || exit 2"
    return f'echo "run {number} {load.name} {disk} $({command} || echo failed)"'


def spec(release: int, by_instructions: bool) -> BedSpec:
    """One CPU: dom0 and the guest take turns on it."""
    return BedSpec(release=release, xen=True, cpus=1, icount=by_instructions)


def measure(
    found: Results, release: int, rounds: int, milliseconds: int, names: Sequence[str], by_instructions: bool
) -> None:
    """All cells, in one guest."""
    start = time.monotonic()
    part = PART.format(release)
    with tempfile.TemporaryDirectory(prefix="xenblk-bench-") as directory:
        client = build_client(Path(directory))
    say(f"{part}: making disks")
    with Bed(spec(release, by_instructions)) as bed, tapdisks.with_settings(bed, "kernel_io: yes"):
        found.versions[part] = bed.run("uname -r").stdout.strip()
        run(found, bed, part, client, script(names, rounds, milliseconds))
    say(f"{part}: done, {time.monotonic() - start:.0f} s")


def run(found: Results, bed: Bed, part: str, client: bytes, text: str) -> None:
    """The guest, from its start to its end."""
    bed.run("modprobe blktap; modprobe loop; mkdir -p /srv/bench")
    place = null_disk(bed, "files", 3 * MEGABYTES)
    bed.run(f"mkfs.ext4 -q {place} && mount {place} /srv/bench && vhd-util create -n /srv/bench/a.vhd -s {MEGABYTES}")
    raw = "/srv/bench/a.img"
    loop = bed.run(f"truncate -s {MEGABYTES}M {raw} && losetup -f --show --direct-io=on {raw}").stdout.strip()
    whole = null_disk(bed, "vhd", MEGABYTES + 16)
    bed.run(f"vhd-util create -n {whole} -s {MEGABYTES}")
    paths = {
        "xvda": "phy:" + null_disk(bed, "phya", MEGABYTES),
        "xvdb": f"tap2:vhd:{whole}",
        "xvdc": "phy:" + null_disk(bed, "phyc", MEGABYTES),
        "xvdd": "tap2:vhd:/srv/bench/a.vhd",
        "xvde": f"phy:{loop}",
    }
    guest = Guest(
        bed, "bench", text, disks=[f"{path},{disk},w" for disk, path in paths.items()], files={"aioload": client}
    )
    try:
        guest.start()
        guest.wait_text(f"^{MEASURED}$", timeout=3600)
        counters = tapdisks.counters_by_image(bed)
        guest.say("end")
        output = guest.wait().output
    finally:
        guest.destroy()
    for path in (path.removeprefix("tap2:") for path in paths.values() if path.startswith("tap2:")):
        if not counters[path]["direct_reads"]:
            found.failures.append(f"{part}: the kernel served no read of {path}")
    for number, load, disk, ios, nanoseconds in RUN.findall(output):
        backing, way = WAYS[disk]
        found.vm_runs.append(VmRun(int(number), part, f"{backing}/{load}", way, int(ios), int(nanoseconds) / 1e9))
    if not found.vm_runs:
        found.failures.append(f"{part}: the guest said: {output[-300:]!r}")
