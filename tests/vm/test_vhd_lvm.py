# SPDX-License-Identifier: LGPL-2.1-only
"""VHD images on the volumes of a real LVM group, as XenServer's storage manager keeps them."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.vm import Bed

GROUP = "vg-xenblk"
MIB = 1 << 20
LVM = "DM_DISABLE_UDEV=1 LVM_SUPPRESS_FD_WARNINGS=1"


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """A bed with the driver and device-mapper."""
    with tapdisks.clean(beds(xen=False)) as bed:
        bed.run("modprobe blktap; modprobe dm-mod; mkdir -p /run/blktap-control")
        yield bed


@contextmanager
def volume_group(bed: Bed, sector: int) -> Iterator[None]:
    """A group on a loop device with stale bytes everywhere."""
    bed.run("tr '\\0' '\\377' < /dev/zero | dd of=/srv/pv bs=1M count=260 iflag=fullblock")
    device = bed.run(f"losetup -f --show --sector-size {sector} /srv/pv").stdout.strip()
    try:
        bed.run(f"{LVM} pvcreate -qq -ff -y {device} && {LVM} vgcreate -qq {GROUP} {device}")
        yield
    finally:
        bed.run(f"{LVM} vgchange -an {GROUP}; {LVM} vgremove -f -y {GROUP}; losetup -d {device}; rm -f /srv/pv", check=False)


def lvm(bed: Bed, command: str) -> None:
    bed.run(f"{LVM} {command}")


def volume(name: str) -> str:
    return f"/dev/{GROUP}/{name}"


@contextmanager
def served(bed: Bed, name: str) -> Iterator[tuple[str, str]]:
    """The disk of a volume, and how tap-ctl is told of it."""
    disk = bed.run(f"tap-ctl create -a vhd:{volume(name)}").stdout.strip()
    minor = disk.removeprefix("/dev/xen/blktap-2/tapdev")
    pid = bed.run(f"tap-ctl list -m {minor}").stdout.split("pid=")[1].split()[0]
    try:
        yield disk, f"-p {pid} -m {minor}"
    finally:
        bed.run(f"tap-ctl destroy -p {pid} -m {minor}")


def write(bed: Bed, disk: str, text: str, *sectors: int) -> None:
    for sector in sectors:
        bed.run(f"printf {text} | dd of={disk} bs=512 seek={sector} conv=sync,fsync oflag=direct")


def checksum(bed: Bed, disk: str) -> str:
    return bed.run(f"dd if={disk} bs=1M iflag=direct | md5sum").stdout.split()[0]


@pytest.mark.parametrize("sector", [512, pytest.param(4096, marks=pytest.mark.deep)])
def test_a_chain_on_volumes(bed: Bed, sector: int) -> None:
    with volume_group(bed, sector):
        names = ["VHD-base", "VHD-mid", "VHD-leaf", "VHD-front"]
        for name in names:
            lvm(bed, f"lvcreate -qq -Wn -Zn -an -L 32M -n {name} {GROUP}")
        # The first volume in two pieces.
        lvm(bed, f"lvextend -qq -L 48M {GROUP}/VHD-base && {LVM} vgchange -qq -ay {GROUP}")
        bed.run(f"vhd-util create -n {volume('VHD-base')} -s 20")
        with served(bed, "VHD-base") as (disk, _):
            write(bed, disk, "base", 1, 9000, 20000)
        bed.run(f"vhd-util snapshot -n {volume('VHD-mid')} -p {volume('VHD-base')}")
        with served(bed, "VHD-mid") as (disk, _):
            write(bed, disk, "mid", 2, 9001, 30000)
        bed.run(f"vhd-util snapshot -n {volume('VHD-leaf')} -p {volume('VHD-mid')}")
        bed.run(f"vhd-util set -n {volume('VHD-base')} -f hidden -v 1")
        bed.run(f"vhd-util create -n {volume('VHD-front')} -s 20")
        bed.run(f"dd if=/dev/zero of={volume('VHD-front')} bs=4096 seek={32 * MIB // 4096 - 1} count=1 conv=fsync")

        def line(name: str, size: int, hidden: int, parent: str) -> str:
            return f"vhd={name} capacity={20 * MIB} size={size * MIB} hidden={hidden} parent={parent}\n"

        lines = {
            "VHD-base": line("VHD-base", 48, 1, "none"),
            "VHD-front": line("VHD-front", 32, 0, "none"),
            "VHD-leaf": line("VHD-leaf", 32, 0, "VHD-mid"),
            "VHD-mid": line("VHD-mid", 32, 0, "VHD-base"),
        }
        scan = f"vhd-util scan -f -l {GROUP} -m"
        steps: list[list[str]] = [[], ["VHD-base", "VHD-front"], names]
        for inactive in steps:
            for name in inactive:
                lvm(bed, f"lvchange -qq -an {GROUP}/{name}")
            assert bed.run(f"{scan} 'VHD-*'").stdout == "".join(lines.values())
            assert bed.run(f"{scan} VHD-leaf -a").stdout == lines["VHD-leaf"] + lines["VHD-mid"] + lines["VHD-base"]
        lvm(bed, f"vgchange -qq -ay {GROUP}")
        query = bed.run(f"vhd-util query -vsafp -n {volume('VHD-leaf')}").stdout.splitlines()
        assert (query[0], query[2], query[3:]) == ("20", volume("VHD-mid"), ["hidden: 0", "0"])
        assert bed.run(f"vhd-util check -p -b -n {volume('VHD-leaf')}").stdout.count("is valid") == 3

        # The middle goes into the base under a disk that is served.
        with served(bed, "VHD-leaf") as (disk, who):
            write(bed, disk, "leaf", 3, 9002)
            before = checksum(bed, disk)
            refused = bed.run(f"vhd-util coalesce -n {volume('VHD-leaf')}", check=False)
            assert refused.status == 1 and "has it open for writing" in refused.stderr
            assert bed.run(f"vhd-util coalesce -n {volume('VHD-mid')}").stdout.startswith("Coalesced ")
            assert checksum(bed, disk) == before
            write(bed, disk, "more", 4)
            before = checksum(bed, disk)
            bed.run(
                f"tap-ctl pause {who} && vhd-util modify -n {volume('VHD-leaf')} -p {volume('VHD-base')}"
                f" && tap-ctl unpause {who}"
            )
            lvm(bed, f"lvremove -qq -f {GROUP}/VHD-mid")
            assert checksum(bed, disk) == before
        assert bed.run(f"vhd-util query -d -n {volume('VHD-leaf')}").stdout == "chain depth: 2\n"

        # The volume grows, then the image in it.
        small = bed.run(f"vhd-util resize -n {volume('VHD-leaf')} -s 4000000", check=False)
        assert small.status in (1, 28) and volume("VHD-leaf") in small.stderr
        lvm(bed, f"lvextend -qq -L 48M {GROUP}/VHD-leaf")
        bed.run(f"vhd-util modify -s {48 * MIB} -n {volume('VHD-leaf')}")
        bed.run(f"vhd-util resize -n {volume('VHD-leaf')} -s 40")
        assert bed.run(f"vhd-util check -p -b -n {volume('VHD-leaf')}").stderr == ""
        with served(bed, "VHD-leaf") as (disk, _):
            read = bed.run(f"dd if={disk} bs=1M count=20 iflag=direct | md5sum; dd if={disk} bs=1M skip=20 | tr -d '\\0'")
            assert read.stdout.split() == [before, "-"]
