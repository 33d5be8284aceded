# SPDX-License-Identifier: LGPL-2.1-only
"""The kernel driver's own I/O: requests inside extents are served in files, the others by the server."""

import random
import re
import time

import pytest

from tests.lib.nulldisk import in_flight, null_disk, start_until_in_flight
from tests.lib.toytap import EIO, SERVER, Tap, wait_for_output

# Debian 12 has Linux 6.1, 13 has 6.12
ON_BOTH_KERNELS = pytest.mark.parametrize(
    "release", [12, pytest.param(13, marks=(pytest.mark.slow, pytest.mark.deep))], ids="debian{}".format, scope="session"
)


def direct(tap: Tap) -> tuple[int, int, int]:
    """How much the kernel has read, written, and failed."""
    return tap.count("direct_reads"), tap.count("direct_writes"), tap.count("direct_failed")


@ON_BOTH_KERNELS
@pytest.mark.parametrize("how", ["extents", "remap"])
def test_what_the_kernel_writes_it_reads_back(tap: Tap, how: str) -> None:
    tap.start(**{how: 1}, maxio=1 << 20)
    for size, count in (("512", 64), ("4k", 512), ("44k", 93), ("1M", 16)):
        tap.bed.run(f"dd if=/root/random of={tap.device} bs={size} count={count} oflag=direct status=none")
        tap.bed.run(f"dd if={tap.device} of=/root/got bs={size} count={count} iflag=direct status=none")
        tap.bed.run("cmp -n $(stat -c %s /root/got) /root/got /root/random")
    tap.bed.run(f"cmp -n 16777216 /root/random {tap.file}")
    reads, writes, failed = direct(tap)
    # one of 44 KiB lies in two extents
    assert reads >= 684 and writes >= 684 and failed == 0
    if how == "extents":
        assert tap.count("submitted") < 50, "the server hears of nothing but flushes and of what crosses extents"


@ON_BOTH_KERNELS
@pytest.mark.parametrize("mkfs", ["mkfs.ext4 -q -b 1024", "mkfs.ext4 -q -b 4096", "mkfs.xfs -q -f"])
def test_a_file_system_keeps_its_files(tap: Tap, mkfs: str) -> None:
    """XFS writes from slab pages, ext4 with 1 KiB blocks from parts of pages."""
    tap.start(extents=1, fua=1)
    tap.keep_files(mkfs)
    reads, writes, failed = direct(tap)
    assert reads and writes and failed == 0


def test_a_write_to_an_extent_for_reads_goes_to_the_server(tap: Tap) -> None:
    tap.start(extents=2)
    tap.bed.run(f"dd if=/root/random of={tap.device} bs=64k oflag=direct status=none")
    tap.bed.run(f"dd if={tap.device} of=/root/got bs=64k count=256 iflag=direct status=none; cmp /root/got /root/random")
    reads, writes, failed = direct(tap)
    assert (writes, failed) == (0, 0)
    assert reads >= 256


def test_discard_flush_and_zeroes_go_to_the_server(tap: Tap) -> None:
    tap.start(extents=1, discard=1, zeroes=1)
    tap.bed.run(f"dd if=/root/random of={tap.device} bs=1M oflag=direct conv=fsync status=none")
    before = tap.count("submitted")
    tap.bed.run(f"blkdiscard -o 1M -l 1M {tap.device} && blkdiscard -z -o 8M -l 64k {tap.device}")
    assert tap.count("submitted") >= before + 2
    tap.bed.run(f"cmp -i 1M:0 -n 1048576 {tap.device} /dev/zero; cmp -i 8M:0 -n 65536 {tap.device} /dev/zero")


@ON_BOTH_KERNELS
def test_nothing_is_lost_while_extents_come_and_go(tap: Tap) -> None:
    """Where they were there is nothing any more: what went there after they were withdrawn would be lost."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    tap.start(extents=1, hop=1)
    fio = tap.load(seed, "128M")
    tap.bed.wait_for(f"test $(cat {tap.sysfs}/counters/direct_writes) -gt 0", 60, 0.1)
    said = "ready\n"
    for word in ("withdrawn\n", "added\n") * 5:
        time.sleep(rng.uniform(0, 0.5))
        tap.signal("USR2")
        said += word
        tap.expect(said)
    fio.wait(timeout=300)
    # it has moved five times
    tap.bed.run(f"cmp -n $((128 << 20)) -i 0:$((200 << 20)) {tap.device} {tap.file}")
    _, writes, failed = direct(tap)
    assert writes > 0 and failed == 0
    assert tap.count("submitted") > 0


@ON_BOTH_KERNELS
@pytest.mark.parametrize("how", ["extents", "remap"])
def test_nothing_is_lost_when_servers_are_killed_under_load(tap: Tap, how: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    tap.start(**{how: 1})
    fio = tap.load(seed)
    # the last has it, for writes where the kernel was too slow for any before
    for with_it in (*rng.choices((0, 1, 1), k=5), 1):
        time.sleep(rng.uniform(0.1, 0.8))
        tap.kill()
        assert tap.attribute("extents") == "0"
        time.sleep(rng.uniform(0, 0.2))
        tap.resume(**{how: with_it})
    fio.wait(timeout=300)
    _, writes, failed = direct(tap)
    assert writes > 0 and failed == 0
    assert tap.count("refused") == 0


def test_a_withdrawal_waits_for_what_runs(tap: Tap) -> None:
    """Otherwise a late write would land where something else is by then."""
    with null_disk(tap.bed, irqmode=2, completion_nsec=4_000_000_000) as slow:
        tap.start(extents=1, place=slow)
        write = start_until_in_flight(tap.bed, slow, f"dd if=/root/random of={tap.device} bs=4k count=1 oflag=direct status=none")
        tap.signal("USR2")
        tap.expect("withdrawn\n")
        assert in_flight(tap.bed, slow) == 0
        assert tap.attribute("extents") == "0"
        write.wait()
        assert direct(tap) == (0, 1, 0)
        tap.remove()


def test_the_next_server_waits_for_what_the_kernel_does_for_the_last(tap: Tap) -> None:
    with null_disk(tap.bed, irqmode=2, completion_nsec=4_000_000_000) as slow:
        tap.start(extents=1, place=slow)
        write = start_until_in_flight(tap.bed, slow, f"dd if=/root/random of={tap.device} bs=4k count=1 oflag=direct status=none")
        tap.kill()
        tap.resume()
        assert in_flight(tap.bed, slow) == 0
        write.wait()
        assert direct(tap) == (0, 1, 0)
        assert tap.count("recovered") == 0, "what the kernel runs is never given to a server"
        tap.remove()


def test_a_disk_is_freed_when_what_runs_has_ended(tap: Tap) -> None:
    with null_disk(tap.bed, irqmode=2, completion_nsec=4_000_000_000) as slow:
        tap.start(extents=1, place=slow)
        read = start_until_in_flight(tap.bed, slow, f"dd if={tap.device} of=/dev/null bs=4k count=1 iflag=direct", "[1-9]")
        tap.kill()
        tap.bed.run(f"{SERVER} free {tap.minor}", timeout=30)
        read.wait(check=False)
    tap.bed.wait_for("modprobe -r blktap", 30, 0.2)


def test_a_minor_that_gets_a_server_while_it_is_freed_stays(tap: Tap) -> None:
    """Its device, which had none, is gone by then. Who frees and who opens is there before, since the time is short."""
    freeing = tap.bed.popen(f"read go; exec {SERVER} free {tap.minor}")
    ring = tap.bed.popen(f"read go; exec 5<>/dev/xen/blktap-2/blktap{tap.minor}; echo open; read x")
    with null_disk(tap.bed, irqmode=2, completion_nsec=4_000_000_000) as slow:
        tap.start(extents=1, place=slow)
        read = start_until_in_flight(tap.bed, slow, f"dd if={tap.device} of=/dev/null bs=4k count=1 iflag=direct", "[1-9]")
        tap.kill()
        freeing.stdin(b"\n")
        time.sleep(0.3)
        ring.stdin(b"\n")
        wait_for_output(ring, "open\n")
        assert in_flight(tap.bed, slow) == 1, "too late to show anything"
        freed = freeing.wait(check=False)
        assert freed.status and "Device or resource busy" in freed.output
        read.wait(check=False)
        assert tap.attribute("state") == "new"
        ring.stdin(b"\n")
        ring.wait()
    tap.bed.run(f"{SERVER} free {tap.minor}")


@ON_BOTH_KERNELS
def test_the_server_gets_what_an_extent_fails(tap: Tap) -> None:
    tap.bed.run(f"cp /root/random {tap.file} && truncate -s 400M {tap.file}")
    with null_disk(tap.bed, badblocks="+0-7") as bad:
        tap.start(extents=1, place=bad)
        tap.bed.run(f"dd if={tap.device} of=/root/got bs=4k count=1 iflag=direct status=none")
        tap.bed.run("cmp -n 4096 /root/got /root/random")
        assert direct(tap) == (0, 0, 1)
        assert tap.count("completed") == 1
        tap.bed.run(f"dd if={tap.device} of=/root/got bs=4k skip=1 count=1 iflag=direct status=none")
        tap.bed.run("cmp -n 4096 /root/got /dev/zero")
        tap.remove()


def test_a_file_that_is_too_short_is_left_to_the_server(tap: Tap) -> None:
    tap.bed.run(f"cp /root/random {tap.file}; cp {tap.file} /srv/short; truncate -s 5000 /srv/short")
    tap.bed.run(f"truncate -s 400M {tap.file}")
    tap.start(extents=2, place="/srv/short")
    tap.bed.run(f"dd if={tap.device} of=/root/got bs=64k count=2 iflag=direct status=none; cmp -n 131072 /root/got /root/random")
    assert tap.count("direct_failed") == 2


def test_requests_that_a_disk_cannot_take_are_copied(tap: Tap) -> None:
    """A guest may send sectors of 512 bytes where the image's disk has 4096."""
    tap.bed.run(f"cp /root/random {tap.file} && truncate -s 400M {tap.file}")
    with null_disk(tap.bed, blocksize=4096) as disk:
        tap.start(extents=1, place=disk)
        tap.bed.run(f"dd if={tap.device} of=/root/got bs=512 count=3 iflag=direct status=none")
        tap.bed.run("cmp -n 1536 /root/got /root/random")
        assert direct(tap) == (0, 0, 0)
        tap.bed.run(f"dd if={tap.device} of=/root/got bs=4k count=3 iflag=direct status=none")
        tap.bed.run("cmp -n 12288 /root/got /dev/zero")
        assert direct(tap) == (3, 0, 0)
        tap.remove()


@ON_BOTH_KERNELS
def test_a_disk_that_has_no_room_for_more_requests_is_waited_for(tap: Tap) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    with null_disk(tap.bed, hw_queue_depth=1, irqmode=2, completion_nsec=300_000) as disk:
        tap.start(extents=1, place=disk)
        tap.load(seed, "64M").wait(timeout=300)
        _, writes, failed = direct(tap)
        assert writes > 0 and failed == 0
        assert tap.count("submitted") < writes // 4  # flushes, and what came first
        tap.remove()


@ON_BOTH_KERNELS
def test_more_than_is_passed_on_at_a_time_goes_by_the_queue(tap: Tap) -> None:
    """There is memory for 256."""
    with null_disk(tap.bed, hw_queue_depth=1024, irqmode=2, completion_nsec=2_000_000_000) as slow:
        tap.start(extents=1, place=slow)
        tap.bed.run(
            f"fio --name=many --filename={tap.device} --rw=randread --bs=4k --size=16M --direct=1 --ioengine=libaio"
            " --iodepth=600 --iodepth_batch=600 --number_ios=600 --minimal",
            timeout=120,
        )
        reads, _, failed = direct(tap)
        assert reads >= 600 and failed == 0
        tap.remove()


@ON_BOTH_KERNELS
def test_what_fails_waits_for_a_server_and_no_withdrawal_waits_for_it(tap: Tap) -> None:
    """There are more than the server can hold, and it answers nothing."""
    tap.bed.run(f"cp /root/random {tap.file} && truncate -s 400M {tap.file}")
    with null_disk(tap.bed, badblocks="+0-511") as bad:
        tap.start(extents=1, place=bad, entries=32, hold=1)
        reader = tap.bed.popen(
            f"fio --name=many --filename={tap.device} --rw=randread --norandommap --bs=4k --size=256K --direct=1 --ioengine=libaio"
            " --iodepth=64 --minimal"
        )
        tap.bed.wait_for(f"test $(cat {tap.sysfs}/counters/direct_failed) -ge 64", 60, 0.2)
        tap.signal("USR2")
        tap.expect("withdrawn\n")
        tap.bed.wait_for(f"test $(cat {tap.sysfs}/counters/submitted) = 32", 60, 0.2)
        assert not reader.ended
        tap.kill()
        tap.resume(entries=32)
        reader.wait()
        assert tap.count("recovered") == 32
        tap.remove()


@ON_BOTH_KERNELS
def test_a_write_of_several_parts_fails_when_one_of_them_does(tap: Tap) -> None:
    """Their bios are chained: the last one, which is written, must not hide that the first is not."""
    with null_disk(tap.bed, badblocks="+0-7") as bad:
        tap.before = "trap '' XFSZ; ulimit -f 0; "
        tap.start(extents=1, place=bad)
        result = tap.bed.run(f"blkdiscard -f -z -l 4M {tap.device}", check=False)
        assert result.status and direct(tap)[2] == 1
        tap.bed.run(f"blkdiscard -f -z -o 1M -l 4M {tap.device}")
        tap.remove()


@ON_BOTH_KERNELS
@pytest.mark.parametrize("fua", [0, 1])
def test_the_server_hears_of_each_write_that_must_last(tap: Tap, fua: int) -> None:
    """What leads to its place must last too, and only the server knows that."""
    with null_disk(tap.bed) as disk:
        tap.start(extents=1, place=disk, fua=fua)
        tap.bed.run(f"dd if=/root/random of={tap.device} bs=4k count=4 oflag=direct,dsync status=none")
        assert direct(tap) == (0, 0 if fua else 4, 0)
        # as writes with FUA, or as the flushes behind them; and one that the kernel sends after each
        assert tap.count("submitted") == 8
        tap.remove()


@ON_BOTH_KERNELS
def test_all_that_is_done_is_in_the_statistics_of_the_disk(tap: Tap) -> None:
    def statistics() -> list[int]:
        return [int(word) for word in tap.bed.run(f"cat /sys/block/tapdev{tap.minor}/stat").stdout.split()]

    with null_disk(tap.bed) as disk:
        tap.start(extents=1, place=disk, discard=1)
        before = statistics()
        tap.bed.run(f"dd if={tap.device} of=/dev/null bs=64k count=10 iflag=direct status=none")
        tap.bed.run(f"dd if=/root/random of={tap.device} bs=64k count=6 oflag=direct conv=fsync status=none")
        tap.bed.run(f"blkdiscard -f -o 1M -l 64k {tap.device}")
        after = statistics()
        done = [new - old for old, new in zip(before, after)]
        assert (done[0], done[2], done[4], done[6], done[11], done[13], done[15]) == (10, 1280, 6, 768, 1, 128, 1)
        assert after[8] == 0, "none is in flight"
        tap.remove()


@ON_BOTH_KERNELS
def test_the_page_cache_of_a_disk_has_nothing_that_is_older_than_the_disk(tap: Tap) -> None:
    with null_disk(tap.bed) as disk:
        tap.start(extents=1, place=disk)
        for turn in range(3):
            read = f"dd if={disk} bs=4k skip={turn} count=2 status=none"
            tap.bed.run(f"{read} of=/dev/null")
            tap.bed.run(f"dd if=/root/random of={tap.device} bs=4k skip={9 * turn} seek={turn} count=2 oflag=direct status=none")
            tap.bed.run(f"{read} of=/root/got; dd if=/root/random of=/root/want bs=4k skip={9 * turn} count=2 status=none")
            tap.bed.run("cmp /root/got /root/want")
        assert direct(tap) == (0, 6, 0)
        tap.remove()


@ON_BOTH_KERNELS
def test_a_disk_may_lie_on_another_of_ours(tap: Tap) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    upper = Tap(tap.bed)
    with null_disk(tap.bed) as disk:
        tap.start(extents=1, place=disk)
        try:
            upper.start(extents=1, place=tap.device)
            upper.load(seed, "64M").wait(timeout=300)
            assert min(direct(upper)[1], direct(tap)[1]) > 100 and direct(upper)[2] == direct(tap)[2] == 0
            upper.remove()
        finally:
            upper.close()
        tap.remove()


REFUSED = r"blktap2 blktap\d+: completion refused: file not registered for it"


def test_a_place_in_a_file_that_was_not_registered_is_refused(tap: Tap) -> None:
    """And logged; the request waits for another answer."""
    tap.bed.expect_log(REFUSED)
    tap.bed.run(f"cp /root/random {tap.file} && truncate -s 400M {tap.file}")
    tap.start(evil="remapnone")
    tap.bed.run(f"cmp -n 1048576 {tap.device} /root/random", timeout=60)
    tap.expect("evil remapnone ret=0 completed=1 refused=1\n")
    assert tap.count("refused") == 1
    assert re.search(REFUSED, tap.bed.dmesg())


def test_a_write_to_a_file_that_was_registered_for_reading_is_refused(tap: Tap) -> None:
    tap.bed.expect_log(REFUSED)
    tap.start(evil="remapwrite")
    tap.bed.run(f"dd if=/root/random of={tap.device} bs=4k count=256 oflag=direct status=none", timeout=60)
    tap.expect("evil remapwrite ret=0 completed=1 refused=1\n")
    assert tap.count("refused") == 1
    tap.bed.run(f"cmp -n 1048576 {tap.file} /root/random && cmp -n 1048576 -i $((300 << 20)):0 {tap.file} /dev/zero")
    assert re.search(REFUSED, tap.bed.dmesg())


@ON_BOTH_KERNELS
def test_wrong_files_and_extents_are_refused(tap: Tap) -> None:
    tap.start(bad=1)
    assert tap.server is not None
    said = dict(line.split(": ", 1) for line in tap.server.output().splitlines() if ": " in line)
    invalid = "Invalid argument"
    assert said == {
        "not open": "Bad file descriptor",
        "buffered": invalid,
        "appending": invalid,
        "read-only to write": "Bad file descriptor",
        "write-only": "Bad file descriptor",
        "directory": invalid,
        "character device": invalid,
        "not on a disk": invalid,
        "unknown flags": invalid,
        "number": invalid,
        "number taken": "File exists",
        "flags": invalid,
        "no sectors": invalid,
        "behind the disk": invalid,
        "over the end of the disk": invalid,
        "wraps": invalid,
        "file number": invalid,
        "no such file": "No such file or directory",
        "offset odd": invalid,
        "offset too large": invalid,
        "file not for writing": "Bad file descriptor",
        "good": "Success",
        "overlaps": "File exists",
        "withdraw flags": invalid,
        "remove no file": "No such file or directory",
        "too many": invalid,
        "bad address": "Bad address",
    }
    assert tap.attribute("extents") == "0"
    tap.bed.run(f"cmp -n 65536 {tap.device} /dev/zero")


def test_a_disk_is_not_under_itself(tap: Tap) -> None:
    result = tap.bed.run(f"{SERVER} serve {tap.minor} {tap.file} extents=1 place={tap.device}", check=False)
    assert "ADD_FILE" in result.stderr and "Invalid argument" in result.stderr
    assert EIO not in result.stderr
