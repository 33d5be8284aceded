# SPDX-License-Identifier: LGPL-2.1-only
"""tapdisk on the driver's ring, without Xen: what it costs, and what it survives."""

import json
import random
import sys
from collections.abc import Iterator

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.diskload import DiskLoad
from tests.lib.programs import program
from tests.lib.vm import Bed


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """A bed with nothing of tapdisk in it, before and after."""
    with tapdisks.clean(beds(xen=False)) as bed:
        yield bed


def test_no_allocation_from_the_ring_to_the_files(bed: Bed) -> None:
    """Reads, writes to present and to new blocks, and flushes through the gendisk: the counter stands still."""
    bed.put("/root/count.so", program("tests/preload-malloc.so", "release").read_bytes(), 0o755)
    tapdisks.make_chain(bed, "/srv/alloc", 2, 400)
    env = {"LD_PRELOAD": "/root/count.so", "MALLOC_COUNT": "/root/count"}
    bed.run("modprobe blktap")
    device = bed.run("tap-ctl create -a vhd:/srv/alloc/1.vhd", env=env).stdout.strip()
    io = (
        f"fio --name=x --filename={device} --direct=1 --ioengine=libaio --iodepth=32 --rw=randrw --bs=16k"
        " --size={} --io_size={} --fsync=16 --randseed=1 --output=/dev/null"
    )
    try:
        bed.run(io.format("400M", "8M"))
        before = bed.get("/root/count")
        bed.run(io.format("400M", "32M").replace("randseed=1", "randseed=2"))
        after = bed.get("/root/count")
        requests = bed.run("tap-ctl stats -p $(pgrep -x tapdisk) -m 0 | grep -c requests").stdout.strip()
    finally:
        tapdisks.destroy(bed, device)
    assert requests == "6"
    assert int.from_bytes(before, sys.byteorder) > 0
    assert after == before
    bed.run("vhd-util check -n /srv/alloc/1.vhd -p -b && rm -rf /srv/alloc")


def test_a_file_system_survives_the_death_of_tapdisk(bed: Bed) -> None:
    """kill -9 under load: the device holds its requests, and another tapdisk goes on; what was written is there."""
    leaf = tapdisks.make_chain(bed, "/srv/death", 2, 200)[0]
    device = tapdisks.create(bed, f"vhd:{leaf}")
    bed.run(f"mkfs.ext4 -q {device} && mount {device} /mnt")
    writer = bed.popen(
        "for i in 1 2 3 4 5 6; do dd if=/dev/urandom of=/mnt/$i bs=64k count=80 conv=fsync 2>/dev/null || exit 1; done;"
        " cd /mnt && sha256sum 1 2 3 4 5 6 > /root/sums"
    )
    bed.wait_for("test -s /mnt/2", 60, interval=0.2)
    bed.run("kill -9 $(pgrep -x tapdisk)")
    writer.wait(120)
    bed.run("umount /mnt")
    tapdisks.destroy(bed, device)
    device = tapdisks.create(bed, f"vhd:{leaf}", readonly=True)
    bed.run(f"mount -o ro,noload {device} /mnt && cd /mnt && sha256sum -c /root/sums; cd / && umount /mnt")
    tapdisks.destroy(bed, device)
    bed.run("vhd-util check -n /srv/death/1.vhd -p && rm -rf /srv/death")


def test_pause_and_unpause_under_load(bed: Bed) -> None:
    """Paused, the image is closed and may be snapshotted; unpaused, the device goes on with the new leaf."""
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    leaf = tapdisks.make_chain(bed, "/srv/pause", 1, 200)[0]
    device = tapdisks.create(bed, f"vhd:{leaf}")
    [disk] = tapdisks.served(bed)
    load = DiskLoad(bed, device, seed)
    for turn in range(1, 5):
        load.wrote("tapdev0", 60)
        bed.run(f"timeout 60 tap-ctl pause -p {disk.pid} -m {disk.minor}")
        assert tapdisks.served(bed)[0].state == "0x20"
        new = f"/srv/pause/new{turn}.vhd"
        bed.run(f"vhd-util snapshot -n {new} -p {leaf}")
        bed.run(f"tap-ctl unpause -p {disk.pid} -m {disk.minor} -a vhd:{new}")
        leaf = new
    load.wrote("tapdev0", 60)
    load.end()
    tapdisks.destroy(bed, device)
    bed.run(f"vhd-util check -n {leaf} -p && rm -rf /srv/pause")


def test_discards_and_zeroing_reach_the_image(bed: Bed) -> None:
    """The device offers both, and to a tapdisk that takes it over; the file loses the space."""
    bed.run("modprobe blktap; dd if=/dev/urandom of=/srv/trim.img bs=1M count=16 status=none")
    device = tapdisks.create(bed, "aio:/srv/trim.img")
    try:
        queue = "/sys/block/tapdev0/queue"
        assert bed.run(f"cat {queue}/fua {queue}/discard_granularity").stdout.split() == ["1", "4096"]
        bed.run(f"blkdiscard -o 4M -l 4M {device} && blkdiscard -z -o 9M -l 1M {device}")
        old = bed.run("pgrep -x tapdisk").stdout.strip()
        bed.run(f"kill -9 {old}")
        bed.wait_for(f"task=$(cat /sys/class/blktap2/blktap0/task); test $task != 0 -a $task != {old}", 30, interval=0.2)
        bed.run(f"blkdiscard -o 12M -l 1M {device} && dd if=/dev/urandom of={device} bs=4k count=1 oflag=direct,sync")
        [disk] = tapdisks.served(bed)
        stats = json.loads(bed.run(f"tap-ctl stats -p {disk.pid} -m 0").stdout)
        assert stats["discard"]["bytes"] == 1 << 20 and stats["discard"]["errors"] == 0
    finally:
        tapdisks.destroy(bed, device)
    assert bed.get("/srv/trim.img")[9 << 20 : 10 << 20] == bytes(1 << 20)
    # 16 MiB without 4, and 1; the zeroed one may have kept its space. The file system's own blocks count too.
    assert int(bed.run("du -k /srv/trim.img").stdout.split()[0]) < 12 << 10
    bed.run("rm /srv/trim.img")


def test_one_process_serves_several_disks(bed: Bed) -> None:
    bed.run("modprobe blktap; truncate -s 16M /srv/one.img /srv/two.img")
    pid = bed.run("tap-ctl spawn").stdout.strip()
    devices = [bed.run("tap-ctl allocate").stdout.strip() for _ in range(2)]
    for minor, (device, name) in enumerate(zip(devices, ("one", "two"), strict=True)):
        bed.run(f"tap-ctl attach -p {pid} -m {minor} && tap-ctl open -p {pid} -m {minor} -a aio:/srv/{name}.img")
        bed.run(f"yes {name} | dd of={device} bs=64k count=100 iflag=fullblock oflag=direct 2>/dev/null")
    assert [(disk.pid, disk.minor) for disk in tapdisks.served(bed)] == [(int(pid), 0), (int(pid), 1)]
    for minor in range(len(devices)):
        bed.run(f"tap-ctl close -p {pid} -m {minor} && tap-ctl detach -p {pid} -m {minor} && tap-ctl free -m {minor}")
    for name in ("one", "two"):
        assert bed.get(f"/srv/{name}.img")[:4] == name.encode() + b"\n"
    bed.run("rm /srv/one.img /srv/two.img")
