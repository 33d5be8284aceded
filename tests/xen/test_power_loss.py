# SPDX-License-Identifier: LGPL-2.1-only
"""A guest's fsync reaches the medium: the power is cut, and what the guest synced is found in the chain.

The images lie on disks of the bed whose writes and flushes QEMU logs. From the log is made what the loss of a volatile
write cache leaves; a second machine mounts it, checks the chain and reads the guest's disk.
"""

import random
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lib import logwrites, tapdisks
from tests.lib.beds import Beds
from tests.lib.disk import pattern
from tests.lib.guest import Guest
from tests.lib.logwrites import Entry
from tests.lib.qemu import Disk
from tests.lib.vm import Bed

CREATE = "xl create"
MEGABYTES = 40
SECTORS = MEGABYTES * 2048
SAMPLES = 4

# Nothing but a sync makes these flush during the test.
FILE_SYSTEMS = {
    "ext4": "mkfs.ext4 -q {disk} && mount -o commit=600 {disk} {at}",
    "xfs": "sysctl -qw fs.xfs.xfssyncd_centisecs=720000; mkfs.xfs -q {disk} && mount {disk} {at}",
}

Extent = tuple[int, int]
"""First sector, number of sectors. A block of the VHD has 4096."""

BASE: list[Extent] = [(100, 64), (5000, 200), (9000, 8), (20500, 40)]
LEAF: list[Extent] = [(5050, 20), (30000, 100)]
SYNCED: list[Extent] = [
    (45000, 120),  # two new blocks
    (110, 7),  # of a block that only the parent has: over its data,
    (9001, 1),
    (20540, 9),  # and beside it
    (5040, 33),  # over the leaf's data and the parent's
    (30050, 1),  # over the leaf's
    (30900, 9),  # in a block of the leaf, with new bits
    *((13 + 6700 * i, 1) for i in range(12)),
]
LATER: list[Extent] = [
    (30051, 4),  # over the leaf's data
    (30902, 3),  # over synced data
    (45010, 20),
    (31000, 16),  # new bits in the leaf's block
    (61000, 700),  # a new block
    (75000, 64),
]
SEEDS = {"base": 1, "leaf": 2, "synced": 3, "later": 4}


def content(extent: Extent, seed: int) -> bytes:
    return b"".join(pattern(sector, seed) for sector in range(extent[0], sum(extent)))


def seeds(*layers: tuple[Iterable[Extent], str]) -> dict[int, int]:
    """What each sector holds after these writes; a sector that is not there is zeros."""
    return {
        sector: SEEDS[name]
        for extents, name in layers
        for extent in extents
        for sector in range(extent[0], sum(extent))
    }


LEAFS = seeds((LEAF, "leaf"), (SYNCED, "synced"))
BEFORE = seeds((BASE, "base"), (LEAF, "leaf"))
AFTER = BEFORE | seeds((SYNCED, "synced"))
LATER_ON = seeds((LATER, "later"))

GUEST = """
write() {
	for file in /$1.*; do
		dd if=$file of=/dev/$2 bs=1M seek=${file##*.} oflag=direct,seek_bytes conv=notrunc status=none || exit 1
	done
}
wait_for_disk xvda
wait_for_disk xvdb
write synced xvda
write synced xvdb
for disk in xvda xvdb; do
	dd if=/dev/null of=/dev/$disk conv=notrunc,fsync status=none || exit 2
done
echo "synced"
write later xvda
write later xvdb
echo "later"
sleep 600
"""


@dataclass(frozen=True)
class Image:
    """A disk of the first machine: its file system, and the checksum of the parent in it."""

    file_system: str
    disk: Disk
    parent_sum: str

    @property
    def log(self) -> Path:
        assert self.disk.log
        return self.disk.log


@dataclass(frozen=True)
class Loss:
    """A disk as a loss of power may leave it."""

    name: str
    image: Image
    disk: Disk

    def content(self, out: Path, number: int) -> bytes:
        """The guest's disk, as the second machine has read it."""
        with out.open("rb") as file:
            file.seek(number * SECTORS * 512)
            return file.read(SECTORS * 512)


def make_chain(bed: Bed, device: str, name: str) -> str:
    """A file system with a chain of two; the checksum of the parent."""
    at = f"/srv/{name}"
    bed.run(f"mkdir -p {at}; modprobe {name}; " + FILE_SYSTEMS[name].format(disk=device, at=at))
    bed.run(f"vhd-util create -n {at}/base.vhd -s {MEGABYTES}")
    for path, extents, layer in ((f"{at}/base.vhd", BASE, "base"), (f"{at}/leaf.vhd", LEAF, "leaf")):
        if layer == "leaf":
            bed.run(f"vhd-util snapshot -n {path} -p {at}/base.vhd")
        disk = tapdisks.create(bed, f"vhd:{path}")
        for extent in extents:
            bed.put(f"/root/data.{extent[0]}", content(extent, SEEDS[layer]))
        bed.run(
            "for file in /root/data.*; do dd if=$file of=" + disk + " bs=1M seek=$((${file##*.} * 512))"
            " oflag=direct,seek_bytes status=none || exit 1; rm $file; done"
        )
        tapdisks.destroy(bed, disk)
    return bed.run(f"sync; sha256sum < {at}/base.vhd").stdout.split()[0]


def run_and_cut_the_power(beds: Beds, directory: Path) -> list[Image]:
    """The first machine. A guest writes to a disk on each file system, syncs, and writes on; then nothing is left but
    the logs."""
    disks = {
        name: Disk(directory / f"{name}.raw", size=1 << 30, log=directory / f"{name}.log") for name in FILE_SYSTEMS
    }
    bed = beds.fresh(disks=tuple(disks.values()))
    devices = dict(zip(disks, ("vdb", "vdc"), strict=True))
    for device in devices.values():
        assert bed.run(f"cat /sys/block/{device}/queue/write_cache").stdout == "write back\n"
    sums = {name: make_chain(bed, f"/dev/{device}", name) for name, device in devices.items()}
    files = {
        f"{layer}.{extent[0] * 512}": content(extent, SEEDS[layer])
        for layer, extents in (("synced", SYNCED), ("later", LATER))
        for extent in extents
    }
    specs = [f"tap2:vhd:/srv/{name}/leaf.vhd,{vdev},w" for name, vdev in zip(disks, ("xvda", "xvdb"), strict=True)]
    guest = Guest(bed, "power", GUEST, disks=specs, files=files)
    guest.start(create=CREATE)
    guest.wait_text("^later$")
    # The logs stand still.
    time.sleep(1)
    assert bed.dmesg_findings() == []
    beds.expect_loss(bed)
    bed.stop()
    return [Image(name, disk, sums[name]) for name, disk in disks.items()]


def carriers(image: Image, entries: list[Entry], seed: int) -> list[int]:
    """The entries that write sectors of this seed, by their number."""
    mark = seed.to_bytes(8, "little")
    result = []
    for number, entry in enumerate(entries):
        data = logwrites.data_of(image.log, entry)
        if any(
            data[at + 8 : at + 16] == mark and data[at : at + 512] == data[at : at + 16] * 32
            for at in range(0, entry.length, 512)
        ):
            result.append(number)
    return result


def lose(image: Image, name: str, entries: list[Entry]) -> Loss:
    """The disk with these writes."""
    path = image.disk.path.with_name(f"{image.file_system}-{name}.raw")
    with path.open("wb") as file:
        file.truncate(image.disk.size)
    logwrites.replay(image.log, entries, path)
    return Loss(name, image, Disk(path))


def losses(image: Image, seed: int) -> list[Loss]:
    """The disk at the last flush before all had been written, at the last before the guest wrote on (by then it had
    synced), and samples after that."""
    entries = logwrites.read_log(image.log)
    written = carriers(image, entries, SEEDS["synced"])[-1]
    synced = carriers(image, entries, SEEDS["later"])[0]
    assert written < synced
    result = [
        lose(image, "written", entries[: logwrites.flushed(entries, written)]),
        lose(image, "synced", entries[: logwrites.flushed(entries, synced)]),
    ]
    chance = random.Random(seed)
    for number in range(SAMPLES):
        # the last one when all had been written
        end = len(entries) if number == SAMPLES - 1 else chance.randint(synced, len(entries))
        result.append(lose(image, f"sample-{number}", logwrites.survivors(entries, end, chance)))
    return result


def read_back(bed: Bed, number: int, loss: Loss) -> None:
    """Mount the disk, which replays its journal, check the chain, and copy the guest's disk to the bed's first."""
    device = f"/dev/vd{'cdefghijklmnopqrstuvwxyz'[number]}"
    bed.run(f"modprobe {loss.image.file_system}; mount {device} /mnt")
    assert bed.run("sha256sum < /mnt/base.vhd").stdout.split()[0] == loss.image.parent_sum
    bed.run("vhd-util check -n /mnt/leaf.vhd -p -b")
    disk = tapdisks.create(bed, "vhd:/mnt/leaf.vhd", readonly=True)
    bed.run(f"dd if={disk} of=/dev/vdb bs=1M count={MEGABYTES} seek={number * MEGABYTES} oflag=direct status=none")
    tapdisks.destroy(bed, disk)
    bed.run("umount /mnt")


def differences(data: bytes, allowed: dict[int, set[int]]) -> list[int]:
    """The sectors that hold none of the seeds allowed: of zeros if a sector is not there."""
    return [
        sector
        for sector in range(SECTORS)
        if data[sector * 512 : sector * 512 + 512]
        not in [pattern(sector, seed) if seed else bytes(512) for seed in allowed.get(sector, {0})]
    ]


def judge(loss: Loss, data: bytes) -> None:
    """Hold what was found against what was promised."""
    allowed = {sector: {seed} for sector, seed in AFTER.items()}
    if loss.name.startswith("sample"):
        for sector, seed in LATER_ON.items():
            # Where the leaf holds nothing yet a sector may read as zeros.
            allowed[sector] = allowed.get(sector, {0}) | {seed} | (set() if sector in LEAFS else {0})
    wrong = differences(data, allowed)
    if loss.name == "written":
        # Were it there without the sync, the others would show nothing.
        assert set(wrong) & set(seeds((SYNCED, "synced")))
    else:
        assert wrong == [], [(sector, data[sector * 512 :][:16].hex()) for sector in wrong[:20]]


@pytest.mark.deep
@pytest.mark.slow
def test_what_a_guest_has_synced_survives_a_power_loss(beds: Beds, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    images = run_and_cut_the_power(beds, tmp_path)
    start = time.monotonic()
    found = [loss for image in images for loss in losses(image, seed)]
    print(f"replayed in {time.monotonic() - start:.1f} s")
    out = tmp_path / "out.raw"
    disks = (Disk(out, size=len(found) * SECTORS * 512), *(loss.disk for loss in found))
    bed = beds.fresh(xen=False, disks=disks)
    with tapdisks.clean(bed):
        for number, loss in enumerate(found):
            print(f"{loss.image.file_system} {loss.name}")
            read_back(bed, number, loss)
    assert re.findall(r".*(?:EXT4-fs error|JBD2: .*error|XFS.*[Cc]orrupt).*", bed.dmesg()) == []
    bed.run("sync")
    for number, loss in enumerate(found):
        print(f"judging {loss.image.file_system} {loss.name}")
        judge(loss, loss.content(out, number))
    # Kept after a failure only: a GiB and more.
    for path in tmp_path.iterdir():
        path.unlink()
