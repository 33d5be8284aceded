# SPDX-License-Identifier: LGPL-2.1-only
"""Memory that can only be had by writing to a disk of tapdisk's: who serves it must not wait for that."""

import shlex
from collections.abc import Iterator

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.vm import Bed

MEGABYTES = 400
"""Of the disk."""
BEYOND = 100
"""MiB that the hog takes beyond what is free."""

# Takes more than is free, of bytes that tell where they belong, and looks whether they are still there: what came last and is
# in memory still first, so that each page is read back once.
HOG = """
import hashlib, random, sys
free = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemAvailable"))
count = free // 1024 + int(sys.argv[1])
one = random.Random(int(sys.argv[2])).randbytes(1 << 20)
memory = []
for number in range(count):
    chunk = bytearray(one)
    for page in range(0, 1 << 20, 4096):
        chunk[page : page + 8] = (number << 20 | page).to_bytes(8, "little")
    memory.append(chunk)
    if number == count // 2:
        open("/run/hog", "w").write("half")
for number in reversed(range(count)):
    chunk = memory[number]
    for page in range(0, 1 << 20, 4096):
        assert chunk[page : page + 8] == (number << 20 | page).to_bytes(8, "little"), (number, page)
        assert chunk[page + 8 : page + 4096] == one[page + 8 : page + 4096], (number, page)
"""


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """A bed with nothing of tapdisk in it, before and after."""
    with tapdisks.clean(beds(xen=False)) as bed:
        yield bed


def swapped_out(bed: Bed) -> int:
    """Pages since boot."""
    return int(bed.run("awk '$1 == \"pswpout\" { print $2 }' /proc/vmstat").stdout)


@pytest.mark.parametrize("kernel_io", ["no", pytest.param("yes", marks=pytest.mark.deep)])
def test_pages_that_were_swapped_out_come_back(bed: Bed, kernel_io: str) -> None:
    """The image has its blocks, and tapdisk lives: docs/architecture.md says why."""
    leaf = tapdisks.make_chain(bed, "/srv/swap", 1, MEGABYTES)[0]
    bed.run(f"vhd-util fill -n {leaf}", timeout=300)
    with tapdisks.configured(bed, f"kernel_io={kernel_io}"):
        device = tapdisks.create(bed, f"vhd:{leaf}")
    bed.run(f"mkswap {device} && swapon {device}")
    before = swapped_out(bed)
    bed.run(f"python3 -c {shlex.quote(HOG)} {BEYOND} 1", timeout=300)
    assert swapped_out(bed) - before > BEYOND << 6
    bed.run(f"swapoff {device}", timeout=200)
    counters = tapdisks.counters(bed, 0)
    assert (counters["direct_writes"] > 100) == (kernel_io == "yes")
    assert counters["direct_failed"] == 0
    tapdisks.destroy(bed, device)
    bed.run("vhd-util check -n /srv/swap/0.vhd -b && rm -rf /srv/swap")


@pytest.mark.deep
def test_a_file_system_is_written_while_there_is_no_memory(bed: Bed) -> None:
    """Much of it is dirty pages of the disk, others want it, and tapdisk is killed."""
    leaf = tapdisks.make_chain(bed, "/srv/dirty", 2, MEGABYTES)[0]
    with tapdisks.configured(bed, "restart=yes"):
        device = tapdisks.create(bed, f"vhd:{leaf}")
    bed.run(f"mkfs.ext4 -q {device} && mount {device} /mnt && sysctl -q vm.dirty_ratio=90 vm.dirty_background_ratio=80")
    try:
        writer = bed.popen(
            "for i in 1 2 3 4 5; do dd if=/dev/urandom bs=1M count=60 2>/dev/null | tee /mnt/$i | sha256sum | sed s/-/$i/; done"
            " > /root/sums"
        )
        bed.run("rm -f /run/hog")
        bed.wait_for("test -s /mnt/3", 300, interval=0.2)
        hog = bed.popen(f"python3 -c {shlex.quote(HOG)} -60 2")
        bed.wait_for("test -s /run/hog", 300, interval=0.2)
        bed.run("kill -9 $(pgrep -x tapdisk)")
        writer.wait(300)
        hog.wait(300)
    finally:
        bed.run("sysctl -q vm.dirty_ratio=20 vm.dirty_background_ratio=10")
    bed.run("umount /mnt", timeout=120)
    tapdisks.destroy(bed, device)
    device = tapdisks.create(bed, f"vhd:{leaf}", readonly=True)
    bed.run(f"mount -o ro,noload {device} /mnt && cd /mnt && sha256sum -c /root/sums; cd / && umount /mnt", timeout=120)
    tapdisks.destroy(bed, device)
    bed.run("vhd-util check -n /srv/dirty/1.vhd -p && rm -rf /srv/dirty")
