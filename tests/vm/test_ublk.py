# SPDX-License-Identifier: LGPL-2.1-only
"""What is ublk's own of the disks that the stock kernel makes; what all have is in test_stock_transport.py."""

import json
import math
import random
import time
from collections.abc import Iterator

import pytest

from tests.lib import tapdisks, ublk
from tests.lib.beds import Beds
from tests.lib.nulldisk import null_disk
from tests.lib.ublk import Disk, create, take_over, taking_over
from tests.lib.vm import Bed, Process

LOG = "/root/fio.log"


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """Debian 13 without our driver, and with nothing of tapdisk before and after."""
    with ublk.clean(beds(release=13, xen=False)) as bed:
        yield bed


@pytest.fixture
def seed() -> int:
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    return seed


def load(device: str, seed: int, **options: object) -> str:
    """A fio command that writes at random and checks what it has written."""
    words = {"rw": "randwrite", "bsrange": "4k-64k", "size": "48M", "io_size": "24M", "iodepth": 16, **options}
    more = " ".join(f"--{name}={value}" for name, value in words.items())
    return (
        f"fio --name=x --filename={device} --direct=1 --ioengine=libaio --verify=crc32c --do_verify=1 --verify_fatal=1"
        f" --randseed={seed} --output={LOG} {more}"
    )


def requests_begun(disk: Disk, number: int) -> None:
    """Wait until the disk has answered so many writes."""
    disk.bed.wait_for(f"awk '{{ exit $5 < {number} }}' /sys/block/{disk.name}/stat", 60, 0.1)


def requeued(disk: Disk) -> int:
    """How many requests the kernel has taken back from a dead tapdisk, once it has."""
    path = f"/sys/kernel/debug/block/{disk.name}/requeue_list"
    disk.bed.run("mount -t debugfs none /sys/kernel/debug 2>/dev/null; true")
    return int(disk.bed.wait_for(f"grep -c . {path}", 20, 0.1).stdout)


def ended_well(bed: Bed, writer: Process) -> None:
    writer.wait(240)
    assert "err= 0" in bed.run(f"cat {LOG}").stdout


def test_a_disk_is_what_its_image_can(bed: Bed) -> None:
    # A partition table, of one partition: what is in the disk is the guest's
    table = bytes(446) + bytes([0, 0, 2, 0, 0x83, 0, 2, 0, 8, 0, 0, 0, 0, 16, 0, 0]) + bytes(48) + b"\x55\xaa"
    bed.run("truncate -s 16M /srv/u/a.img")
    bed.run("dd of=/srv/u/a.img conv=notrunc status=none", stdin=table)
    disk = create(bed, "aio:/srv/u/a.img")
    queue = {
        "fua": "1", "write_cache": "write back", "logical_block_size": "512", "physical_block_size": "4096",
        "max_sectors_kb": "256", "discard_granularity": "4096", "discard_max_bytes": str(1 << 30),
        "write_zeroes_max_bytes": str(1 << 30), "io_timeout": "2000", "nr_requests": "64",
    }  # fmt: skip
    lines = bed.run(f"cd /sys/block/{disk.name}/queue; cat {' '.join(queue)} scheduler").stdout.splitlines()
    assert dict(zip(queue, lines, strict=False)) == queue
    assert "[none]" in lines[-1]
    seen = f"stat -Lc '%a %U %G' {disk.device}; ls /sys/block/{disk.name} | grep ublkb; readlink {disk.device}"
    names = bed.run(seen)
    assert names.stdout == f"600 root root\n../../{disk.name}\n"
    disk.destroy()


def test_requests_wait_while_paused_and_end_with_the_disk(bed: Bed) -> None:
    bed.run("head -c 4M /dev/urandom > /srv/u/a.img; cp /srv/u/a.img /srv/u/same.img")
    disk = create(bed, "aio:/srv/u/a.img")
    read = f"dd if={disk.device} bs=64k count=4 iflag=direct status=none"
    bed.run(f"tap-ctl pause {disk.at}")
    reader = bed.popen(f"{read} | cmp -n 262144 - /srv/u/same.img && echo same")
    bed.wait_for(f"grep -q '[1-9]' /sys/block/{disk.name}/inflight", 30, 0.1)
    bed.run("mv /srv/u/a.img /srv/u/b.img")
    missing = bed.run(f"tap-ctl unpause {disk.at}", check=False)
    assert missing.status == 1 and "No such file" in missing.stderr
    assert reader.output() == ""
    bed.run(f"tap-ctl unpause {disk.at} -a aio:/srv/u/b.img")
    assert reader.wait().stdout == "same\n"
    # Nobody will answer it any more.
    bed.run(f"tap-ctl pause {disk.at}")
    reader = bed.popen(read)
    bed.wait_for(f"grep -q '[1-9]' /sys/block/{disk.name}/inflight", 30, 0.1)
    assert bed.run(f"tap-ctl destroy {disk.at}", check=False).status == 1
    bed.run(f"tap-ctl destroy -f {disk.at}")
    assert "Input/output error" in reader.wait(check=False).output


def test_a_device_that_there_is_keeps_its_size(bed: Bed) -> None:
    """Until Linux 6.16. The error says so, and the disk goes on with what it had."""
    bed.run("truncate -s 4M /srv/u/a.img")
    disk = create(bed, "aio:/srv/u/a.img")
    bed.run(f"tap-ctl pause {disk.at}; truncate -s 8M /srv/u/a.img")
    refused = bed.run(f"tap-ctl unpause {disk.at}", check=False)
    assert refused.status == 1
    assert "has 8388608 bytes, the device 4194304" in refused.stderr and "Linux 6.16" in refused.stderr
    bed.run(f"truncate -s 4M /srv/u/a.img; tap-ctl unpause {disk.at}")
    bed.run(f"dd if={disk.device} of=/dev/null iflag=direct bs=1M")
    disk.destroy()


def test_killed_tapdisks_lose_nothing(bed: Bed, seed: int) -> None:
    """kill -9, again and again, under load on slow storage: what the dead ones had is asked for again."""
    with null_disk(bed, irqmode=2, completion_nsec=100_000_000, size=64) as slow:
        spec = f"aio:{slow}"
        disk = create(bed, spec)
        writer = bed.popen(load(disk.device, seed, size="60M", iodepth=24, io_size="48M"))
        held: list[int] = []
        for turn in range(1, 4):
            requests_begun(disk, 50 * turn)
            bed.run(f"kill -9 {disk.pid}; while kill -0 {disk.pid}; do sleep 0.05; done 2>/dev/null")
            held.append(requeued(disk))
            assert not writer.ended, "the load ended before the last kill"
            disk = take_over(disk, spec)
        print(f"requests that the dead ones had, issued again: {held}")
        ended_well(bed, writer)
        disk.destroy()


def test_a_tapdisk_that_has_all_requests_is_succeeded(bed: Bed, seed: int) -> None:
    """As many as the device takes: by none of its slots can the kernel see that it is dead."""
    with null_disk(bed, irqmode=2, completion_nsec=2_000_000_000, size=64) as slow:
        disk = create(bed, f"aio:{slow}")
        writer = bed.popen(load(disk.device, seed, size="60M", iodepth=100, io_size="2M", bsrange="4k-4k", do_verify=0))
        bed.wait_for(f"awk '{{ exit $2 < 64 }}' /sys/block/{disk.name}/inflight", 30, 0.1)
        bed.run(f"kill -9 {disk.pid}; while kill -0 {disk.pid}; do sleep 0.05; done 2>/dev/null")
        start = time.monotonic()
        disk = take_over(disk, f"aio:{slow}")
        seconds = time.monotonic() - start
        print(f"taken over after {seconds:.1f} s")
        assert seconds < 28, "by the kernel's own time limit of 30 s"
        ended_well(bed, writer)
        disk.destroy()


def test_a_tapdisk_that_has_just_taken_over_is_succeeded(bed: Bed, seed: int) -> None:
    """It is killed while what it took over is in its hands, and when it might still be setting up the queue."""
    with null_disk(bed, irqmode=2, completion_nsec=4_000_000_000, size=64) as slow:
        spec = f"aio:{slow}"
        disk = create(bed, spec)
        writer = bed.popen(load(disk.device, seed, size="60M", iodepth=24, io_size="512k", bsrange="4k-4k", do_verify=0))
        bed.wait_for(f"awk '{{ exit $2 < 24 }}' /sys/block/{disk.name}/inflight", 30, 0.1)
        bed.run(f"kill -9 {disk.pid}; while kill -0 {disk.pid}; do sleep 0.05; done 2>/dev/null")
        second = bed.popen(taking_over(disk, spec))
        # The dead one's requests hold the image for up to four seconds, and the second's own last four more.
        bed.wait_for("test -n \"$(pgrep -x tapdisk)\"", 30, 0.1)
        time.sleep(6)
        bed.run("pid=$(pgrep -x tapdisk) && kill -9 $pid && for i in $(seq 100); do kill -0 $pid || exit 0; sleep 0.1; done; exit 1")
        second.wait(30, check=False)
        disk = take_over(disk, spec)
        ended_well(bed, writer)
        disk.destroy()


def test_a_disk_in_use_is_not_removed(bed: Bed) -> None:
    bed.run("vhd-util create -n /srv/u/a.vhd -s 32")
    disk = create(bed, "vhd:/srv/u/a.vhd")
    bed.run(f"mkfs.ext4 -q {disk.device}; mount {disk.device} /mnt; echo kept > /mnt/file; sync")
    mounted = bed.run(f"tap-ctl destroy {disk.at}", check=False)
    assert mounted.status == 1 and f"{disk.device} is in use: unmount it" in mounted.stderr
    assert bed.run("cat /mnt/file; umount /mnt").stdout == "kept\n"
    read = "dd bs=4k count=1 iflag=direct <&3"
    holder = bed.popen(f"exec 3<{disk.device}; touch /run/held; read line; {read}; rm /run/held")
    bed.wait_for("test -e /run/held", 60)
    opened = bed.run(f"tap-ctl destroy {disk.at}", check=False)
    assert opened.status == 1 and f"{disk.device} is in use by sh, pid " in opened.stderr
    # By force its opener gets errors, and the minor is another disk's only when that has let go.
    bed.run(f"tap-ctl destroy -f {disk.at}")
    other = create(bed, "vhd:/srv/u/a.vhd")
    assert other.minor != disk.minor
    holder.stdin(b"\n")
    assert "0 bytes" in (output := holder.wait(check=False).output) or "error" in output
    other.destroy()


def test_what_a_killed_tapdisk_has_left_is_removed(bed: Bed) -> None:
    bed.run("truncate -s 4M /srv/u/a.img")
    disk = create(bed, "aio:/srv/u/a.img")
    bed.run(f"kill -9 {disk.pid}; while kill -0 {disk.pid}; do sleep 0.05; done 2>/dev/null")
    reader = bed.popen(f"dd if={disk.device} of=/dev/null bs=4k count=1 iflag=direct")
    bed.wait_for(f"ls -l /proc/*/fd 2>/dev/null | grep -q '/dev/{disk.name}$'", 20, 0.1)
    assert bed.run("sleep 0.5; tap-ctl list").stdout == f"minor={disk.minor}\n"
    assert not reader.ended
    disk.destroy()
    assert "Input/output error" in reader.wait(check=False).output


def test_a_kernel_without_ublk_is_named(beds: Beds) -> None:
    bed = beds(xen=False)
    bed.run("truncate -s 4M /srv/none.img")
    refused = bed.run("tap-ctl create -a aio:/srv/none.img --transport=ublk", check=False)
    assert refused.status == 1 and refused.stdout == ""
    assert refused.stderr.startswith("tap-ctl: transport ublk: this kernel has no ublk (modprobe: ")
    assert refused.stderr.endswith("; Debian 13's has it, Debian 12's has not\n")
    bed.run("rm /srv/none.img")


def test_without_io_uring_another_transport_is_tried(bed: Bed) -> None:
    bed.run("truncate -s 4M /srv/u/a.img; echo engine=posix >> /run/xenblk/config")
    refused = bed.run("tap-ctl create -a aio:/srv/u/a.img", check=False)
    assert refused.stderr == "tap-ctl: transport ublk: ublk needs the engine uring, posix is configured\n"
    bed.run("sed -i s/posix/uring/ /run/xenblk/config; sysctl -q kernel.io_uring_disabled=2")
    try:
        refused = bed.run("tap-ctl create -a aio:/srv/u/a.img", check=False)
        assert "transport ublk: ublk needs io_uring: Operation not permitted" in refused.stderr
        device = bed.run("tap-ctl create -a aio:/srv/u/a.img --transport=ublk,nbd").stdout.strip()
        assert json.loads(bed.run("tap-ctl list --json").stdout)[0]["transport"] == "nbd"
        tapdisks.destroy(bed, device)
    finally:
        bed.run("sysctl -q kernel.io_uring_disabled=0")


def test_another_programs_device_is_left_alone(bed: Bed) -> None:
    """The ublk devices of a dom0 need not all be tapdisk's: a minor whose place is taken is passed over."""
    bed.run("truncate -s 4M /srv/u/a.img; modprobe ublk_drv")
    bed.put("/root/foreign.py", FOREIGN.encode())
    bed.run("python3 /root/foreign.py 4")
    disk = create(bed, "aio:/srv/u/a.img")
    assert disk.minor == 1
    disk.destroy()
    bed.run("test -e /dev/ublkc0 && python3 /root/foreign.py 5")


def test_system_calls(bed: Bed) -> None:
    """All that a round brings goes in one: two for each request where each waits for the last, else less.

    On a machine that is busy elsewhere, rounds bring less: the best of some counts.
    """
    bed.run("mount -t tracefs none /sys/kernel/tracing 2>/dev/null; head -c 64M /dev/zero > /srv/u/a.img")
    disk = create(bed, "aio:/srv/u/a.img")
    trigger = "/sys/kernel/tracing/events/raw_syscalls/sys_enter"
    calls = {1: math.inf, 16: math.inf}
    for depth in (1, 16) * 10:
        if calls[1] < 2.5 and calls[16] < 1.2:
            break
        bed.run(f"echo 'hist:keys=id if common_pid=={disk.pid}' > {trigger}/trigger")
        bed.run(
            f"fio --name=x --filename={disk.device} --direct=1 --ioengine=libaio --rw=randrw --bs=4k --size=64M"
            f" --number_ios=3000 --iodepth={depth} --output=/dev/null"
        )
        text = bed.run(f"cat {trigger}/hist; echo '!hist:keys=id if common_pid=={disk.pid}' > {trigger}/trigger").stdout
        lines = [line for line in text.splitlines() if line.startswith("{ id")]
        counts = {int(line.split()[2]): int(line.rpartition(":")[2]) for line in lines}
        once = sum(counts.values()) / 3000
        print(f"iodepth {depth}: {once:.2f} system calls a request, of these {counts}")
        calls[depth] = min(calls[depth], once)
    disk.destroy()
    assert calls[1] < 2.5
    assert calls[16] < 1.2


FOREIGN = '''
"""Adds or deletes ublk device 0, without a mark of tapdisk's, by io_uring's system calls."""
import ctypes, mmap, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
params = ctypes.create_string_buffer(struct.pack("<III", 0, 0, 1 << 10).ljust(120, b"\\0"))
ring = libc.syscall(425, 4, params)
(sq_entries, cq_entries) = struct.unpack_from("<II", params.raw, 0)
sq = struct.unpack_from("<IIIIIIIIQ", params.raw, 40)
rings = mmap.mmap(ring, 4096, offset=0)
sqes = mmap.mmap(ring, 4096, offset=0x10000000)
control = os.open("/dev/ublk-control", os.O_RDWR)
info = ctypes.create_string_buffer(struct.pack("<HHHHIIiIQ", 1, 4, 0, 0, 4096, 0, -1, 0, 1 << 6).ljust(64, b"\\0"))
number = int(sys.argv[1])
sqes[0:128] = struct.pack("<BBHiII", 46, 0, 0, control, 0xC0207500 | number, 0).ljust(48, b"\\0") + struct.pack(
    "<IHHQQHHI", 0, 0xFFFF, 64, ctypes.addressof(info), 0, 0, 0, 0
).ljust(80, b"\\0")
struct.pack_into("<I", rings, sq[6], 0)
struct.pack_into("<I", rings, sq[1], 1)
assert libc.syscall(426, ring, 1, 1, 1, None, 0) == 1
'''
