# SPDX-License-Identifier: LGPL-2.1-only
"""VHD images on block devices, and on disks with sectors of 4096 bytes."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.vm import Bed


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """A bed with the driver."""
    with tapdisks.clean(beds(xen=False)) as bed:
        bed.run("modprobe blktap; mkdir -p /run/blktap-control")
        yield bed


@contextmanager
def loop_device(bed: Bed, name: str, megabytes: int, sector: int = 512) -> Iterator[str]:
    """A loop device on a new file; sector is its logical sector's size."""
    bed.run(f"truncate -s {megabytes}M /srv/{name}")
    device = bed.run(f"losetup -f --show --sector-size {sector} /srv/{name}").stdout.strip()
    try:
        yield device
    finally:
        bed.run(f"losetup -d {device}; rm -f /srv/{name}")


def test_an_image_on_a_block_device_is_written_and_fills_up(bed: Bed) -> None:
    with loop_device(bed, "lv", 20) as device:
        bed.run(f"tr '\\0' '\\377' < /dev/zero | dd of={device} bs=1M count=20 iflag=fullblock")
        bed.run(f"vhd-util create -n {device} -s 40")
        assert bed.run(f"vhd-util check -n {device}").stdout == f"{device} is valid\n"
        disk = bed.run(f"tap-ctl create --no-space=fail -a vhd:{device}").stdout.strip()
        try:
            # What was on the device before does not show through.
            assert int(bed.run(f"tr -d '\\0' < {disk} | wc -c").stdout) == 0
            bed.run(f"printf hello | dd of={disk} bs=512 seek=20001 conv=sync,fsync oflag=direct")
            assert int(bed.run(f"tr -d '\\0' < {disk} | wc -c").stdout) == 5
            full = bed.run(f"dd if=/dev/zero of={disk} bs=1M count=40 oflag=direct", check=False)
            assert full.status == 1 and "No space left" in full.stderr
        finally:
            minor = disk.removeprefix("/dev/xen/blktap-2/tapdev")
            pid = bed.run(f"tap-ctl list -m {minor}").stdout.split("pid=")[1].split()[0]
            bed.run(f"tap-ctl destroy -p {pid} -m {minor}")
        assert bed.run(f"vhd-util check -n {device} -b").stdout == f"{device} is valid\n"


@pytest.mark.parametrize("where", ["device", "file"])
def test_a_disk_with_sectors_of_4096_bytes_serves_sectors_of_512(bed: Bed, where: str) -> None:
    with loop_device(bed, "4kn", 100, sector=4096) as device:
        path = device
        if where == "file":
            bed.run(f"mkfs.ext4 -q {device} && mkdir -p /srv/mnt && mount {device} /srv/mnt")
            path = "/srv/mnt/a.vhd"
        try:
            bed.run(f"vhd-util create -n {path} -s 40")
            disk = bed.run(f"tap-ctl create -a vhd:{path}").stdout.strip()
            for sector in 1, 8, 9, 5000:
                bed.run(f"printf {sector} | dd of={disk} bs=512 seek={sector} conv=sync,fsync oflag=direct")
            minor = disk.removeprefix("/dev/xen/blktap-2/tapdev")
            pid = bed.run(f"tap-ctl list -m {minor}").stdout.split("pid=")[1].split()[0]
            bed.run(f"tap-ctl destroy -p {pid} -m {minor}")
            assert bed.run(f"vhd-util check -n {path} -b").stdout == f"{path} is valid\n"
            disk = bed.run(f"tap-ctl create -a vhd:{path}").stdout.strip()
            assert bed.run(f"tr -d '\\0' < {disk}").stdout == "1895000"
            pid = bed.run(f"tap-ctl list -m {minor}").stdout.split("pid=")[1].split()[0]
            bed.run(f"tap-ctl destroy -p {pid} -m {minor}")
        finally:
            if where == "file":
                bed.run("umount /srv/mnt")
