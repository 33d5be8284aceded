# SPDX-License-Identifier: LGPL-2.1-only
"""tapdisk in a bed: images made there, what serves them, and what must not be left."""

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.lib.vm import Bed

END_SECONDS = 60
# How a guest with tap2: disks is created.
CREATE = "xl create"
LOAD_DRIVER = "[ -e /dev/xen/blktap-2/control ] || modprobe blktap"
# Run before and after most tests, so with few forks: what the shell can do itself, it does. {paths}: patterns.
_LEFT = r"""
tap-ctl list
for path in /dev/xen/blktap-2/* /run/blktap-control/* {paths}; do
	case $path in /dev/xen/blktap-2/control | *[*[]*) ;; *) echo "$path" ;; esac
done
for stat in /proc/[0-9]*/stat; do
	read -r line < "$stat" || continue
	case $line in *tapdisk*') Z '*) ;; *'('*tapdisk*')'*) echo "$stat: $line" ;; esac
done 2>/dev/null
"""
NOTHING_LEFT = rf"""
{LOAD_DRIVER}
[ -e /dev/xen/blktap-2/control ] || echo "no /dev/xen/blktap-2/control"
{_LEFT.format(paths="/sys/class/blktap2/*")}
if command -v xenstore-ls >/dev/null; then
	nodes=$(xenstore-ls -f /local/domain/0/backend 2>/dev/null)
	case $nodes in *params* | *tapdisk*) echo "$nodes" ;; esac
fi
true
"""
# The same where our driver isn't: the gendisks that the stock kernel makes.
NO_STOCK_LEFT = _LEFT.format(paths="/dev/ublkb* /dev/ublkc* /sys/block/ublkb* /sys/block/nbd1[0-9][0-9][0-9]") + "true\n"


@dataclass(frozen=True)
class Served:
    """One line of tap-ctl list."""

    pid: int
    minor: int
    state: str
    args: str

    @property
    def device(self) -> str:
        """The path of its gendisk."""
        return f"/dev/xen/blktap-2/tapdev{self.minor}"


def served(bed: Bed) -> list[Served]:
    """What `tap-ctl list` shows."""
    result = []
    for line in bed.run("tap-ctl list").stdout.splitlines():
        head, _, args = line.partition(" args=")
        fields = dict(word.split("=", 1) for word in head.split())
        result.append(Served(int(fields["pid"]), int(fields["minor"]), fields["state"], args))
    return result


def devices(bed: Bed) -> dict[str, dict[str, Any]]:
    """What `tap-ctl list --json` says of each disk, by the image's path."""
    return {disk["path"]: disk for disk in json.loads(bed.run("tap-ctl list --json").stdout)}


OPENERS = """
import os, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        name = open(f"/proc/{pid}/comm").read().strip()
        files = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        continue
    for path in set(files) & set(sys.argv[1:]):
        print(name, path)
"""


def openers(bed: Bed, paths: list[str]) -> set[tuple[str, str]]:
    """Which programs have which of the files open."""
    names = " ".join(map(shlex.quote, paths))
    lines = bed.run(f"python3 - {names}", stdin=OPENERS.encode()).stdout.splitlines()
    return {(name, path) for name, _, path in (line.partition(" ") for line in lines)}


def leftovers(bed: Bed, look: str = NOTHING_LEFT) -> str:
    """Whatever of tapdisk is still there when all of it should be gone; empty if nothing is."""
    return bed.run(look).output


# Whatever state a failed test has left: guests and mounts that hold a disk first, nodes that none of them has last.
WIPE = """
umount -l /mnt 2>/dev/null
if [ -e /proc/xen/capabilities ]; then
	xl list 2>/dev/null | awk 'NR > 2 { print $(NF - 4) }' | while read -r domid; do timeout 60 xl destroy "$domid"; done
fi
pkill -9 -x tapdisk-guard
pkill -9 -x tapdisk
while pgrep -x tapdisk >/dev/null; do sleep 0.2; done
tap-ctl list | sed -n 's/.*minor=\\([0-9]*\\).*/\\1/p' | while read -r minor; do tap-ctl free -m "$minor"; done
rm -f /run/blktap-control/*
if [ -e /proc/xen/capabilities ]; then xenstore-rm /local/domain/0/backend/vbd 2>/dev/null; fi
true
"""


@contextmanager
def clean(bed: Bed, look: str = NOTHING_LEFT) -> Iterator[Bed]:
    """Holds a test to leaving nothing of tapdisk behind, and removes what it leaves, for the next one's sake.

    What is on its way out, on a busy machine, has a minute for it.
    """
    left = leftovers(bed, look)
    assert left == "", left
    yield bed
    deadline = time.monotonic() + END_SECONDS
    while (left := leftovers(bed, look)) and time.monotonic() < deadline:
        time.sleep(0.5)
    if left:
        bed.run(WIPE)
    assert left == "", left


@contextmanager
def configured(bed: Bed, *settings: str) -> Iterator[None]:
    """With these lines, and no others, in what tapdisk reads."""
    config = "/run/xenblk/config"
    before = bed.run(f"mkdir -p /run/xenblk; [ ! -e {config} ] || cat {config}").stdout
    bed.run(f"cat > {config}", stdin="".join(f"{line}\n" for line in settings).encode())
    try:
        yield
    finally:
        bed.run(f"cat > {config}" if before else f"rm {config}", stdin=before.encode())


@contextmanager
def with_settings(bed: Bed, *settings: str) -> Iterator[None]:
    """With these lines more in xenblk.yaml, where Xen is."""
    lines = "\n".join(settings)
    bed.run(f"cp /etc/xen/xenblk.yaml /root/yaml && echo '{lines}' >> /etc/xen/xenblk.yaml && xenblk config apply")
    try:
        yield
    finally:
        bed.run("mv /root/yaml /etc/xen/xenblk.yaml && xenblk config apply")


def counters(bed: Bed, minor: int) -> dict[str, int]:
    """What the driver has counted for a minor."""
    lines = bed.run(f"cd /sys/class/blktap2/blktap{minor}/counters && grep . *").stdout.splitlines()
    return {name: int(value) for name, _, value in (line.partition(":") for line in lines)}


def counters_by_image(bed: Bed) -> dict[str, dict[str, int]]:
    """The same for all that is served, by what that is (TYPE:PATH)."""
    return {disk.args: counters(bed, disk.minor) for disk in served(bed)}


def create(bed: Bed, spec: str, readonly: bool = False) -> str:
    """The device path of a new disk."""
    flag = "-R " if readonly else ""
    return bed.run(f"{LOAD_DRIVER}; tap-ctl create {flag}-a {shlex.quote(spec)}").stdout.strip()


def destroy(bed: Bed, device: str) -> None:
    """End the disk and its tapdisk."""
    minor = int(device.rpartition("tapdev")[2])
    [disk] = [disk for disk in served(bed) if disk.minor == minor]
    bed.run(f"tap-ctl destroy -p {disk.pid} -m {minor}")


def write(bed: Bed, spec: str, sectors: dict[int, bytes]) -> None:
    """Write data (whole sectors) to these sectors of an image, by tapdisk."""
    device = create(bed, spec)
    try:
        for sector, data in sectors.items():
            bed.run(f"dd of={device} bs=512 seek={sector} iflag=fullblock conv=fsync 2>/dev/null", stdin=data)
    finally:
        destroy(bed, device)


def read(bed: Bed, spec: str, sectors: int) -> bytes:
    """The first sectors of an image as tapdisk reads them."""
    device = create(bed, spec, readonly=True)
    try:
        bed.run(f"head -c {sectors * 512} {device} > /srv/read.tmp")
        return bed.get("/srv/read.tmp")
    finally:
        destroy(bed, device)


def checksum(bed: Bed, spec: str, megabytes: int) -> str:
    """SHA-256 of the first MiB of an image as tapdisk reads it."""
    device = create(bed, spec, readonly=True)
    try:
        return bed.run(f"dd if={device} bs=1M count={megabytes} iflag=direct 2>/dev/null | sha256sum").stdout.split()[0]
    finally:
        destroy(bed, device)


def make_chain(bed: Bed, directory: str, depth: int, megabytes: int) -> list[str]:
    """A chain in which every image holds something of its own; paths, leaf first."""
    bed.run(f"mkdir -p {directory}")
    paths: list[str] = []
    for level in range(depth):
        path = f"{directory}/{level}.vhd"
        if level == 0:
            bed.run(f"vhd-util create -n {path} -s {megabytes}")
        else:
            bed.run(f"vhd-util snapshot -n {path} -p {paths[0]}")
        paths.insert(0, path)
        if level < depth - 1:
            device = create(bed, f"vhd:{path}")
            bed.run(
                f"dd if=/dev/urandom of={device} bs=64k count=4 seek={8 + 3 * level} oflag=direct 2>/dev/null"
            )
            destroy(bed, device)
    return paths
