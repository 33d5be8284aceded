# SPDX-License-Identifier: LGPL-2.1-only
"""tapdisk lets the kernel serve what lies in a file in one piece: the data is right whoever serves it."""

import random
from collections.abc import Iterator

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.diskload import DiskLoad
from tests.lib.nulldisk import IN_FLIGHT, in_flight, null_disk, start_until_in_flight
from tests.lib.vm import Bed

WRITTEN = "/sys/class/blktap2/blktap0/counters/direct_writes"


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """A bed with nothing of tapdisk in it, before and after."""
    with tapdisks.clean(beds(xen=False)) as bed, tapdisks.configured(bed, "kernel_io=yes"):
        bed.run("modprobe blktap; mkdir -p /srv/k")
        yield bed
        bed.run("rm -rf /srv/k")


def count(bed: Bed, name: str) -> int:
    """A counter of minor 0."""
    return tapdisks.counters(bed, 0)[name]


def sum_of(bed: Bed, path: str) -> str:
    """SHA-256 of all that a disk or file holds, past the page cache."""
    return bed.run(f"dd if={path} bs=256k iflag=direct 2>/dev/null | sha256sum").stdout.split()[0]


def load(device: str, seed: int, **options: object) -> str:
    """A fio command that writes at random and checks what it has written."""
    words = {"rw": "randwrite", "bsrange": "4k-64k", "size": "64M", "io_size": "24M", "iodepth": 16, **options}
    more = " ".join(f"--{name}={value}" for name, value in words.items())
    return (
        f"fio --name=x --filename={device} --direct=1 --ioengine=libaio --verify=crc32c --do_verify=1 --verify_fatal=1"
        f" --randseed={seed} --output=/root/fio.log {more}"
    )


def test_a_raw_image_is_served_by_the_kernel(bed: Bed) -> None:
    bed.run("dd if=/dev/urandom of=/srv/k/a.img bs=1M count=64 status=none")
    device = tapdisks.create(bed, "aio:/srv/k/a.img")
    try:
        assert sum_of(bed, device) == sum_of(bed, "/srv/k/a.img")
        bed.run(load(device, random.randrange(1 << 31)))
        assert sum_of(bed, device) == sum_of(bed, "/srv/k/a.img")
        assert count(bed, "submitted") < 20
        assert count(bed, "direct_writes") > 300 and count(bed, "direct_failed") == 0
    finally:
        tapdisks.destroy(bed, device)


def test_each_image_of_a_chain_is_read_by_the_kernel(bed: Bed) -> None:
    leaf = tapdisks.make_chain(bed, "/srv/k", 4, 64)[0]
    device = tapdisks.create(bed, f"vhd:{leaf}")
    try:
        first = sum_of(bed, device)
        before = count(bed, "direct_reads")
        assert sum_of(bed, device) == first
        assert count(bed, "direct_reads") > before
        assert bed.run(f"vhd-util read -n {leaf} -r 0 -c 131072 | sha256sum").stdout.split()[0] == first
        assert count(bed, "direct_failed") == 0
    finally:
        tapdisks.destroy(bed, device)


def test_what_is_written_over_a_parent_is_read_at_once(bed: Bed) -> None:
    """The kernel was told that the parent has it: it must forget that before the write is answered."""
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    leaf = tapdisks.make_chain(bed, "/srv/k", 3, 64)[0]
    base = tapdisks.create(bed, f"vhd:{leaf}")
    bed.run(f"dd if=/dev/urandom of={base} bs=1M count=64 oflag=direct 2>/dev/null")
    tapdisks.destroy(bed, base)
    bed.run(f"vhd-util snapshot -n /srv/k/top.vhd -p {leaf}")
    device = tapdisks.create(bed, "vhd:/srv/k/top.vhd")
    try:
        sum_of(bed, device)
        sum_of(bed, device)
        reads = count(bed, "direct_reads")
        bed.run(load(device, seed, rw="randrw", verify_backlog=16, numjobs=1))
        assert count(bed, "direct_reads") > reads and count(bed, "direct_failed") == 0
        shown = sum_of(bed, device)
    finally:
        tapdisks.destroy(bed, device)
    assert bed.run("vhd-util read -n /srv/k/top.vhd -r 0 -c 131072 | sha256sum").stdout.split()[0] == shown
    bed.run("vhd-util check -n /srv/k/top.vhd -p -b")


def test_what_is_rewritten_in_a_part_of_a_block_is_written_by_the_kernel(bed: Bed) -> None:
    """A leaf that has a parent seldom has whole blocks."""
    leaf = tapdisks.make_chain(bed, "/srv/k", 2, 64)[0]
    device = tapdisks.create(bed, f"vhd:{leaf}")
    piece = "dd if=/dev/urandom of={} bs=12k seek={} count=1 oflag=direct 2>/dev/null"
    try:
        for seek in (7, 7):
            bed.run(piece.format(device, seek))
            assert count(bed, "direct_writes") == 0
        bed.run(piece.format(device, 7))
        assert count(bed, "direct_writes") == 1
        bed.run(piece.format(device, 8))
        assert count(bed, "direct_writes") == 1
        for seek, writes in ((7, 1), (7, 2), (8, 3)):
            bed.run(piece.format(device, seek))
            assert count(bed, "direct_writes") == writes
        assert count(bed, "direct_failed") == 0
        shown = sum_of(bed, device)
    finally:
        tapdisks.destroy(bed, device)
    assert bed.run(f"vhd-util read -n {leaf} -r 0 -c 131072 | sha256sum").stdout.split()[0] == shown
    bed.run(f"vhd-util check -n {leaf} -p -b")


def test_nothing_reaches_an_image_once_it_is_a_parent(bed: Bed) -> None:
    """Live snapshots under load, while the kernel writes to the leaf: the old leaf does not change any more."""
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    bed.run("vhd-util create -n /srv/k/a.vhd -s 16")
    device = tapdisks.create(bed, "vhd:/srv/k/a.vhd")
    bed.run(f"dd if=/dev/urandom of={device} bs=1M count=16 oflag=direct 2>/dev/null")
    [disk] = tapdisks.served(bed)
    sums = {}
    load = DiskLoad(bed, device, seed)
    try:
        for turn in range(4):
            # once what was new in the last leaf is rewritten
            bed.wait_for(f"test $(cat {WRITTEN}) -gt {count(bed, 'direct_writes') + 20}", 120, 0.2)
            bed.run(f"tap-ctl snapshot -p {disk.pid} -m {disk.minor} -n /srv/k/p{turn}.vhd")
            assert not load.ended
            sums[f"/srv/k/p{turn}.vhd"] = sum_of(bed, f"/srv/k/p{turn}.vhd")
        load.wrote("tapdev0", 60)
        load.end()
        assert count(bed, "direct_failed") == 0
    finally:
        load.kill()
        tapdisks.destroy(bed, device)
    assert {path: sum_of(bed, path) for path in sums} == sums
    bed.run("vhd-util check -n /srv/k/a.vhd -p -b")


def test_a_pause_waits_for_what_the_kernel_writes(bed: Bed) -> None:
    with null_disk(bed, irqmode=2, completion_nsec=4_000_000_000) as slow:
        device = tapdisks.create(bed, f"aio:{slow}")
        [disk] = tapdisks.served(bed)
        try:
            write = f"dd if=/dev/urandom of={device} bs=4k count=1 oflag=direct 2>/dev/null"
            bed.run(write)
            writer = start_until_in_flight(bed, slow, write)
            bed.run(f"tap-ctl pause -p {disk.pid} -m {disk.minor}")
            assert in_flight(bed, slow) == 0
            assert bed.run(f"ls -l /proc/{disk.pid}/fd | grep -c {slow}$", check=False).stdout == "0\n"
            assert count(bed, "direct_writes") == 1
            bed.run(f"tap-ctl unpause -p {disk.pid} -m {disk.minor}")
            writer.wait()
        finally:
            tapdisks.destroy(bed, device)


def open_while_it_writes(bed: Bed, slow: str) -> bool:
    """A tapdisk is killed while the kernel writes for it, and another serves the image no sooner than that has ended: whether
    it was refused."""
    device = tapdisks.create(bed, f"aio:{slow}")
    [disk] = tapdisks.served(bed)
    write = f"dd if=/dev/urandom of={device} bs=4k count=1 oflag=direct 2>/dev/null"
    bed.run(write)
    writer = start_until_in_flight(bed, slow, write)
    writes = f"test $({IN_FLIGHT.format(slow[5:])}) = 1"
    other = bed.run(
        f"kill -9 {disk.pid}; while kill -0 {disk.pid}; do sleep 0.02; done 2>/dev/null;"
        f" /usr/libexec/tapdisk --foreground --nbd=/run/k.sock aio:{slow} &"
        f" while {writes}; do ! test -S /run/k.sock || ! {writes} || echo early; sleep 0.1; done; kill $! 2>/dev/null; wait",
        check=False,
    )
    assert other.stdout == ""
    pid = bed.run("tap-ctl spawn").stdout.strip()
    bed.wait_for(f"test $({IN_FLIGHT.format(slow[5:])}) = 0", 60, 0.2)
    bed.run(f"tap-ctl attach -p {pid} -m 0 && tap-ctl open -p {pid} -m 0 -a aio:{slow}")
    writer.wait()
    assert count(bed, "recovered") == 0
    tapdisks.destroy(bed, device)
    return "in use" in other.stderr


def test_a_killed_tapdisks_lock_holds_until_the_kernel_has_written(bed: Bed) -> None:
    """Otherwise who gets the image next would find late writes in it."""
    bed.run("echo restart=no >> /run/xenblk/config")
    with null_disk(bed, irqmode=2, completion_nsec=4_000_000_000) as slow:
        # a machine that is busy may come when the write is over; with checkers it always does
        refused = any(open_while_it_writes(bed, slow) for _ in range(3))
        assert refused or bed.slower > 1


def fail_while_waiting(bed: Bed, slow: str) -> tuple[int, int]:
    """A tapdisk is killed while the kernel reads for it, the next one waits for that, and the requests are failed: how many
    reads the storage had before and after."""
    device = tapdisks.create(bed, f"aio:{slow}", readonly=True)
    [disk] = tapdisks.served(bed)
    read = f"dd if={device} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null"
    bed.run(read)
    # before the read, which a slow machine's spawn may outlast
    heir = bed.run("tap-ctl spawn").stdout.strip()
    reader = start_until_in_flight(bed, slow, read, "^ *1 ")
    said = bed.run(
        f"kill -9 {disk.pid}; while kill -0 {disk.pid}; do sleep 0.02; done 2>/dev/null;"
        f" tap-ctl attach -p {heir} -m 0; (tap-ctl open -p {heir} -m 0 -a aio:{slow} -R; echo opened) > /root/open &"
        f" sleep 0.5; {IN_FLIGHT.format(slow[5:])}; echo 1 > /sys/class/blktap2/blktap0/fail; {IN_FLIGHT.format(slow[5:])}",
        check=False,
    ).stdout
    bed.wait_for("grep -q opened /root/open", 30, 0.2)
    reader.wait()
    assert count(bed, "direct_reads") == 1
    bed.run(read)
    tapdisks.destroy(bed, device)
    before, after = map(int, said.split())
    return before, after


def test_requests_can_be_failed_while_a_server_waits_for_the_kernel(bed: Bed) -> None:
    """The dead one's last read is on storage that is stuck: who gives up on it is not kept waiting too."""
    bed.expect_log(r"blktap2 blktap0: no server: 0 requests failed, and so do new ones until there is one$")
    bed.run("echo restart=no >> /run/xenblk/config")
    with null_disk(bed, irqmode=2, completion_nsec=4_900_000_000) as slow:
        for _ in range(3):  # a machine that is busy may come when the read is over
            seen = fail_while_waiting(bed, slow)
            if seen == (1, 1):
                break
        assert seen == (1, 1)


@pytest.mark.deep
def test_a_device_that_needs_stable_pages_gets_copies(bed: Bed) -> None:
    """It makes checksums, or parity, of what is written, and a guest may change it meanwhile."""
    with null_disk(bed) as disk:
        # as another table of device mapper does, below a disk in use
        device = tapdisks.create(bed, f"aio:{disk}")
        bed.run(load(device, random.randrange(1 << 31), io_size="4M"))
        before = count(bed, "direct_writes")
        assert before > 50
        bed.run(f"echo 1 > /sys/block/{disk[5:]}/queue/stable_writes")
        bed.run(load(device, random.randrange(1 << 31), io_size="4M"))
        assert count(bed, "direct_writes") == before
        tapdisks.destroy(bed, device)
        device = tapdisks.create(bed, f"aio:{disk}")
        bed.run(load(device, random.randrange(1 << 31), io_size="4M"))
        sum_of(bed, device)
        counters = tapdisks.counters(bed, 0)
        tapdisks.destroy(bed, device)
        assert counters["direct_writes"] == 0 and counters["submitted"] > 50
        device = tapdisks.create(bed, f"aio:{disk}", readonly=True)
        sum_of(bed, device)
        sum_of(bed, device)
        assert count(bed, "direct_reads") > 50
        tapdisks.destroy(bed, device)
