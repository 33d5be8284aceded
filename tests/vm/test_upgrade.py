# SPDX-License-Identifier: LGPL-2.1-only
"""tap-ctl upgrade on each transport, under load: the guest sees nothing of it, whether it succeeds or not.

Without a gendisk: tests/io/test_upgrade.py.
"""

import re
from collections.abc import Iterator

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.stock import Stock, clean

ON_EACH = pytest.mark.parametrize(
    "disk_bed", [(12, "blktap"), (12, "nbd"), (13, "ublk")], ids=["blktap", "nbd", "ublk"], indirect=True
)
NEW = "/root/tapdisk of another release"


@pytest.fixture
def disk_bed(request: pytest.FixtureRequest, beds: Beds) -> Iterator[Stock]:
    release, transport = request.param
    with clean(beds(release=release, xen=False), transport) as stock:
        yield stock
        stock.bed.run(f"rm -f '{NEW}'")


@ON_EACH
def test_a_disk_is_upgraded_under_load(disk_bed: Stock) -> None:
    bed = disk_bed.bed
    leaf = disk_bed.image("up", 24, depth=2)
    device = disk_bed.create(f"vhd:{leaf}")
    name = disk_bed.kernel_name(device)
    disk_bed.resend_sooner(name)
    load = disk_bed.load(device)
    [disk] = tapdisks.served(bed)
    for _ in range(3):
        load.wrote(name, 60)
        said = bed.run(f"tap-ctl upgrade -m {disk.minor}", timeout=120).stdout
        found = re.fullmatch(rf"pid=(\d+) was={disk.pid} disks=1 stall=(\d+\.\d) ms\n", said)
        assert found, said
        print(f"stall {found[2]} ms")
        bed.wait_for(f"! kill -0 {disk.pid}", 20, 0.1)
        [disk] = tapdisks.served(bed)
        assert (disk.pid, disk.state) == (int(found[1]), "0")
        disk_bed.resend_sooner(name)
    load.wrote(name, 60)
    load.end()
    assert disk_bed.kernel_name(device) == name
    tapdisks.destroy(bed, device)
    bed.run(f"vhd-util check -n {leaf} -p")


@pytest.mark.parametrize("disk_bed", [(13, "nbd")], ids=["nbd"], indirect=True)
def test_a_disk_that_is_larger_by_now_keeps_its_tapdisks_other_one_from_nothing(disk_bed: Stock) -> None:
    """The kernel shows the new size when the requests are through, for which the next tapdisk has to have all disks."""
    bed = disk_bed.bed
    image = "/srv/stock/up.raw"
    bed.run(f"truncate -s 24M {image} {image}.2")
    device = disk_bed.create(f"aio:{image}")
    [disk] = tapdisks.served(bed)
    other = bed.run("tap-ctl allocate --transport=nbd").stdout.strip()
    at = f"-p {disk.pid} -m {other.rpartition('tapdev')[2]}"
    bed.run(f"tap-ctl attach {at} && tap-ctl open {at} -a aio:{image}.2")
    load = disk_bed.load(device)
    load.wrote(disk_bed.kernel_name(device), 60)
    bed.run(f"truncate -s 32M {image}")
    said = bed.run(f"tap-ctl upgrade -m {disk.minor}", timeout=120).stdout
    assert f" was={disk.pid} disks=2 " in said
    bed.wait_for(f"test $(blockdev --getsize64 {device}) = {32 << 20}", 20, interval=0.2)
    load.wrote(disk_bed.kernel_name(device), 60)
    load.end()
    disk_bed.sha256(other)
    for one in (device, other):
        tapdisks.destroy(bed, one)


@ON_EACH
def test_the_old_tapdisk_goes_on_if_the_new_one_cannot_open_the_image(disk_bed: Stock) -> None:
    """Again and again: it has all that it had."""
    bed = disk_bed.bed
    leaf = disk_bed.image("up", 24, depth=2)
    hidden = f"mount --bind /dev/null {leaf} && exec /usr/libexec/tapdisk \"$@\""
    bed.put(NEW, f"#!/bin/sh\nexec unshare -m sh -c '{hidden}' tapdisk \"$@\"\n".encode(), 0o755)
    device = disk_bed.create(f"vhd:{leaf}")
    name = disk_bed.kernel_name(device)
    disk_bed.resend_sooner(name)
    load = disk_bed.load(device)
    [disk] = tapdisks.served(bed)
    for _ in range(3):
        load.wrote(name, 60)
        done = bed.run(f"TAPDISK='{NEW}' tap-ctl upgrade -m {disk.minor}", check=False, timeout=120)
        assert done.status == 1 and done.stderr.startswith(f"tap-ctl: tapdisk {disk.pid} goes on: "), done
        assert tapdisks.served(bed) == [disk]
        disk_bed.resend_sooner(name)
    load.wrote(name, 60)
    load.end()
    bed.run(f"tap-ctl upgrade -m {disk.minor}", timeout=120)
    disk_bed.sha256(device)
    tapdisks.destroy(bed, device)
    bed.run(f"vhd-util check -n {leaf} -p")
