# SPDX-License-Identifier: LGPL-2.1-only
"""Guests' requests that the kernel serves by itself beneath blkback, beside those that tapdisk serves: all data is right."""

import hashlib
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lib import guestio, tapdisks, vhdref
from tests.lib.guest import Guest
from tests.lib.guestio import Use
from tests.lib.vm import Bed

MEGABYTES = 8
SECTORS = MEGABYTES * 2048
HOME = "/srv/kernel-io"
# On a disk whose sectors have 4096 bytes
LARGE = "/srv/kernel-io-4kn"
DEVICES = ("/dev/loop6", "/dev/loop7")
PERSISTENT = "/sys/module/xen_blkback/parameters/feature_persistent"
XVDA = 51712

# Does what the console says.
SERVE = """
sums() {
	for disk in "$@"; do
		echo "$disk sum $(dd if=/dev/$disk bs=1M iflag=direct 2>/dev/null | sha256sum | cut -d' ' -f1)"
	done
}
echo ready
while read -r line; do
	eval "$line"
done
"""


class Serving(Guest):
    """A guest that uses its disks as it is told."""

    def __init__(self, bed: Bed, name: str, disks: list[str], options: str = "") -> None:
        files = {"guestio": guestio.program()}
        if options:
            files["modules/xen-blkfront.ko.options"] = f"{options}\n".encode()
        # blkfront has a page for each segment of each request of each ring that there may be
        super().__init__(bed, name, SERVE, disks, memory=864, extra="vcpus = 2\n", files=files)
        self._told = 0

    def begin(self, line: str) -> str:
        """Have it run a line; what it will say at the end."""
        self._told += 1
        self.say(f"{line}; echo end {self._told}")
        return rf"^end {self._told}\n"

    def run(self, line: str) -> str:
        """What it says meanwhile."""
        before = len(self.console)
        self.wait_text(self.begin(line))
        return self.console[before:]

    def use(self, uses: dict[str, Use]) -> None:
        """Use disks, all at once."""
        lines = [f"({use.command(f'/dev/{vdev}')} || echo wrong $?) &" for vdev, use in uses.items()]
        said = self.run(f"{' '.join(lines)} wait")
        assert not re.search("^wrong", said, re.M), said

    def sums(self, vdevs: list[str]) -> dict[str, str]:
        """SHA-256 of all that it reads."""
        return dict(re.findall(r"^(xvd[a-z]) sum ([0-9a-f]{64})$", self.run(f"sums {' '.join(vdevs)}"), re.M))


@dataclass(frozen=True)
class Backing:
    """A disk of the guest, and what serves it."""

    vdev: str
    spec: str
    kernel: bool = True
    persistent: bool = True


@contextmanager
def places(bed: Bed) -> Iterator[None]:
    """HOME, LARGE, and DEVICES that have zeros."""
    bed.run(f"modprobe -a loop ext4; mkdir -p {HOME} {LARGE} && truncate -s 120M {LARGE}.img")
    loop = bed.run(f"losetup -f --show --sector-size 4096 {LARGE}.img").stdout.strip()
    try:
        bed.run(f"mkfs.ext4 -q {loop} && mount {loop} {LARGE}")
        for device in DEVICES:
            bed.run(f"truncate -s {MEGABYTES}M {HOME}/{device[5:]}.img && losetup {device} {HOME}/{device[5:]}.img")
        yield
    finally:
        bed.run(f"umount {LARGE}; losetup -d {loop} {' '.join(DEVICES)}; rm -rf {HOME} {LARGE} {LARGE}.img", check=False)


def full_chain(bed: Bed, directory: str) -> str:
    """A leaf of some blocks, over a base that is full."""
    base, leaf = f"{directory}/base.vhd", f"{directory}/leaf.vhd"
    bed.run(f"mkdir -p {directory} && head -c {MEGABYTES}M /dev/urandom > {directory}/raw")
    bed.run(f"vhd-util convert -n raw:{directory}/raw -N vhd:{base} && rm {directory}/raw")
    bed.run(f"vhd-util snapshot -n {leaf} -p {base}")
    device = tapdisks.create(bed, f"vhd:{leaf}")
    bed.run(f"dd if=/dev/urandom of={device} bs=1M seek=2 count=4 oflag=direct status=none")
    tapdisks.destroy(bed, device)
    return leaf


def fetched(bed: Bed, leaf: str, directory: Path) -> bytearray:
    """What the disk of a leaf holds, by a reader that shares nothing with ours."""
    folder, _, name = leaf.rpartition("/")
    for file in bed.run(f"ls {folder}").stdout.split():
        if not (directory / file).exists() or file == name:
            (directory / file).write_bytes(bed.get(f"{folder}/{file}"))
    return bytearray(vhdref.Chain(directory / name).read(0, MEGABYTES << 20))


def sum_in_dom0(bed: Bed, spec: str) -> str:
    """SHA-256 of the disk of an image, past any tapdisk."""
    kind, _, path = spec.partition(":")
    read = f"cat {path}" if kind == "aio" else f"vhd-util read -n {path} -r 0 -c {SECTORS}"
    return bed.run(f"{read} | sha256sum").stdout.split()[0]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.deep
@pytest.mark.timeout(2700)
def test_a_guests_data_is_right_whoever_serves_it(bed: Bed, tmp_path: Path) -> None:
    """Requests of 512 bytes to 1 MiB from anywhere in a page, in files, on block devices, and on disks with sectors of 512 and of
    4096 bytes, with and without persistent grants, with indirect segments, rings of two pages and two queues."""
    seed = random.randrange(1, 1 << 24)
    print(f"seed {seed}")
    options = "max_indirect_segments=256 max_ring_page_order=1"
    with places(bed):
        first = full_chain(bed, f"{HOME}/a")
        for copy in (f"{LARGE}/b", f"{HOME}/c", f"{HOME}/e", f"{HOME}/f"):
            bed.run(f"cp -r {HOME}/a {copy}")
        # who opens a leaf syncs its directory, and with that all of this: the block scripts have 40 s
        bed.run(f"head -c {MEGABYTES}M /dev/zero > {HOME}/d.img; sync", timeout=300)
        backings = [
            Backing("xvda", f"vhd:{first}"),
            Backing("xvdb", f"vhd:{LARGE}/b/leaf.vhd"),
            Backing("xvdc", f"aio:{DEVICES[0]}"),
            Backing("xvdd", f"vhd:{HOME}/c/leaf.vhd", persistent=False),
            Backing("xvde", f"aio:{HOME}/d.img", persistent=False),
            Backing("xvdf", f"aio:{DEVICES[1]}", persistent=False),
            Backing("xvdg", f"vhd:{HOME}/e/leaf.vhd", persistent=False, kernel=False),
            Backing("xvdh", f"vhd:{HOME}/f/leaf.vhd", kernel=False),
        ]
        initial = fetched(bed, first, tmp_path)
        model = {b.vdev: bytearray(initial) if b.spec.startswith("vhd:") else bytearray(len(initial)) for b in backings}
        made = [b for b in backings if b.persistent and b.kernel]
        guest = Serving(bed, "grid", [f"tap2:{b.spec},{b.vdev},w" for b in made], options)
        try:
            with tapdisks.with_settings(bed, "kernel_io: yes"):
                guest.start(create=tapdisks.CREATE)
                guest.wait_text("^ready$")
            for backing in (b for b in backings if b not in made):
                bed.run(f"echo {int(backing.persistent)} > {PERSISTENT}")
                script = f"format=raw,script=block-xenblk,vdev={backing.vdev},access=rw,target={backing.spec}"
                with tapdisks.with_settings(bed, f"kernel_io: {'yes' if backing.kernel else 'no'}"):
                    bed.run(f"xl block-attach {guest.name} '{script}'")
                guest.run(f"wait_for_disk {backing.vdev}")
            domid = bed.run(f"xl domid {guest.name}").stdout.strip()
            for number, backing in enumerate(backings):
                back, front = f"backend/vbd/{domid}/{XVDA + 16 * number}", f"/local/domain/{domid}/device/vbd/{XVDA + 16 * number}"
                assert bed.run(f"xenstore-read {back}/feature-persistent").stdout == f"{int(backing.persistent)}\n"
                assert bed.run(f"xenstore-read {front}/multi-queue-num-queues").stdout == "2\n"
                assert bed.run(f"xenstore-read {front}/ring-page-order").stdout == "1\n"
            shots = []
            for turn in range(2):
                uses = {b.vdev: Use(seed + 10 * turn + n, operations=60) for n, b in enumerate(backings)}
                guest.use(uses)
                for vdev, use in uses.items():
                    use.apply(model[vdev])
                shots.append(tapdisks.counters_by_image(bed))
            assert guest.sums(list(model)) == {vdev: sha(data) for vdev, data in model.items()}
            guest.say("exit 0")
            guest.wait()
            guest.wait_gone()
        finally:
            bed.run(f"echo 1 > {PERSISTENT}")
            guest.destroy()
        for backing in backings:
            before, after = (shot[backing.spec] for shot in shots)
            direct = [after[name] - before[name] for name in ("direct_reads", "direct_writes")]
            print(backing, before, after)
            assert after["direct_failed"] == 0
            assert all(direct) if backing.kernel else after["direct_reads"] == after["direct_writes"] == 0
            if LARGE in backing.spec or not backing.kernel:
                # what a disk with large sectors can't take
                assert after["submitted"] - before["submitted"] > 100
            assert sum_in_dom0(bed, backing.spec) == sha(model[backing.vdev])
            if backing.spec.startswith("vhd:"):
                bed.run(f"vhd-util check -n {backing.spec[4:]} -p -b")
        assert fetched(bed, backings[1].spec[4:], tmp_path) == model["xvdb"]
