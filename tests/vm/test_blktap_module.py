# SPDX-License-Identifier: LGPL-2.1-only
"""The kernel driver under a toy server: data, recovery, removal, bad servers.

After each test the bed's kernel log is judged, so that a WARNING fails the test that caused it.
"""

import random
import struct
import time
from pathlib import Path

import pytest

from tests.lib.beds import Beds
from tests.lib.toytap import EIO, HAMMER, HAMMER_LOG, SERVER, Tap, prepare, wait_for_output
from tests.lib.vm import Bed

# a completion that must be refused, whose request then waits for the right one
REFUSED = (
    "id", "zeroid", "tag", "othertag", "code", "positive", "toolow", "reserved", "file", "remapfile", "remapoffset", "double"
)

# Debian 12 has Linux 6.1, 13 has 6.12, whose block layer asks for other calls
ON_BOTH_KERNELS = pytest.mark.parametrize(
    "release", [12, pytest.param(13, marks=(pytest.mark.slow, pytest.mark.deep))], ids="debian{}".format, scope="session"
)


@ON_BOTH_KERNELS
def test_what_is_written_directly_is_read_back(tap: Tap) -> None:
    tap.start()
    for size, count in (("512", 64), ("4k", 512), ("44k", 93), ("1M", 16)):
        tap.bed.run(f"dd if=/root/random of={tap.device} bs={size} count={count} oflag=direct status=none")
        tap.bed.run(f"dd if={tap.device} of=/root/got bs={size} count={count} iflag=direct status=none")
        tap.bed.run("cmp -n $(stat -c %s /root/got) /root/got /root/random")
    tap.bed.run(f"cmp -n 16777216 /root/random {tap.file}")


def test_buffered_writes_reach_the_image_by_fsync(tap: Tap) -> None:
    tap.start()
    tap.bed.run(f"dd if=/root/random of={tap.device} bs=4k seek=512 conv=fsync status=none")
    tap.bed.run(f"cmp -i 0:2M -n 16777216 /root/random {tap.file}")
    tap.bed.run(f"echo 3 > /proc/sys/vm/drop_caches; cmp -i 0:2M -n 16777216 /root/random {tap.device}")


@ON_BOTH_KERNELS
@pytest.mark.parametrize("mkfs", ["mkfs.ext4 -q -b 1024", "mkfs.ext4 -q -b 4096", "mkfs.xfs -q -f"])
def test_a_file_system_keeps_its_files(tap: Tap, mkfs: str) -> None:
    """XFS writes from slab pages, ext4 with 1 KiB blocks from parts of pages."""
    tap.start(maxio=1 << 20, entries=256)
    tap.keep_files(mkfs)


@ON_BOTH_KERNELS
def test_the_device_has_the_limits_the_server_gave(tap: Tap) -> None:
    tap.start(maxio=1 << 20, block=4096, fua=1, discard=1, zeroes=1)
    assert tap.queue("max_hw_sectors_kb") == "1024"
    assert int(tap.queue("max_segments")) >= 256
    assert tap.queue("logical_block_size") == "4096"
    assert tap.queue("write_cache") == "write back"
    assert tap.queue("fua") == "1"
    assert tap.queue("discard_granularity") == "4096"
    assert int(tap.queue("write_zeroes_max_bytes")) > 0
    assert tap.bed.run(f"dd if={tap.device} of=/dev/null bs=512 count=1 iflag=direct", check=False).status == 1


@ON_BOTH_KERNELS
def test_a_hint_of_the_server_does_not_fill_memory_with_what_is_read_ahead(tap: Tap) -> None:
    tap.start(ioopt=1 << 30)
    assert tap.queue("optimal_io_size") == str(16 << 20)
    assert int(tap.queue("read_ahead_kb")) <= 32 << 10


def test_a_partition_table_is_left_to_the_guest(tap: Tap) -> None:
    """Its scan would be by dom0, of what a guest wrote, and wait for the server that makes the device."""
    entry = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", 2048, 20480)
    tap.bed.put(tap.file, entry.rjust(446 + len(entry), b"\0").ljust(510, b"\0") + b"\x55\xaa")
    tap.bed.run(f"truncate -s 400M {tap.file}")
    tap.start()
    tap.bed.run(f"blockdev --rereadpt {tap.device}", check=False)
    assert tap.bed.run(f"grep -c tapdev{tap.minor} /proc/partitions").stdout == "1\n"


def test_nodes_are_for_root_alone_and_need_the_capability(tap: Tap) -> None:
    tap.start()
    nodes = f"control blktap{tap.minor} tapdev{tap.minor}"
    modes = tap.bed.run(f"cd /dev/xen/blktap-2 && stat -c '%a %u %g' {nodes}")
    assert modes.stdout == "600 0 0\n" * 3
    result = tap.bed.run(f"setpriv --bounding-set -sys_admin --inh-caps -sys_admin {SERVER} alloc", check=False)
    assert "Operation not permitted" in result.stderr


def test_a_second_server_is_turned_away(tap: Tap) -> None:
    tap.start()
    result = tap.bed.run(f"{SERVER} serve {tap.minor} {tap.file} resume=1", check=False)
    assert "Device or resource busy" in result.stderr
    assert "Device or resource busy" in tap.bed.run(f"{SERVER} free {tap.minor}", check=False).stderr
    tap.bed.run(f"dd if={tap.device} of=/dev/null bs=4k count=1 iflag=direct status=none")


@ON_BOTH_KERNELS
def test_read_only_refuses_writers(tap: Tap) -> None:
    tap.start(ro=1)
    result = tap.bed.run(f"dd if=/root/random of={tap.device} bs=4k count=1", check=False)
    assert "Read-only file system" in result.stderr
    assert tap.bed.run(f"blockdev --getro {tap.device}").stdout == "1\n"
    tap.bed.run(f"cmp -n 65536 {tap.device} /dev/zero")


@ON_BOTH_KERNELS
def test_a_device_grows_and_does_not_shrink(tap: Tap) -> None:
    tap.start()
    tap.bed.run(f"truncate -s 500M {tap.file}")
    tap.signal("HUP")
    tap.expect("resized\n")
    assert tap.bed.run(f"blockdev --getsize64 {tap.device}").stdout == f"{500 << 20}\n"
    tap.bed.run(f"truncate -s 450M {tap.file}")
    tap.signal("HUP")
    tap.expect("SET_DEVICE: Invalid argument\n")
    assert tap.bed.run(f"blockdev --getsize64 {tap.device}").stdout == f"{500 << 20}\n"


@ON_BOTH_KERNELS
def test_discard_and_zeroes_touch_their_range_alone(tap: Tap) -> None:
    tap.start(discard=1, zeroes=1, fua=1)
    tap.bed.run(f"dd if=/root/random of={tap.device} bs=1M oflag=direct,sync status=none")
    tap.bed.run(f"blkdiscard -o 1M -l 2M {tap.device} && blkdiscard -z -o 8M -l 64k {tap.device}")
    tap.bed.run("cp /root/random /root/want")
    for place in ("bs=1M seek=1 count=2", "bs=64k seek=128 count=1"):
        tap.bed.run(f"dd if=/dev/zero of=/root/want {place} conv=notrunc status=none")
    tap.bed.run(f"cmp -n 16777216 /root/want {tap.device}")


@ON_BOTH_KERNELS
def test_requests_of_a_killed_server_are_answered_by_the_next(tap: Tap) -> None:
    tap.start(hold=1)
    writer = tap.bed.popen(f"dd if=/root/random of={tap.device} bs=64k count=64 oflag=direct status=none")
    reader = tap.bed.popen(f"cmp -i 200M:0 -n 1048576 {tap.device} /dev/zero")
    tap.bed.wait_for(f"test $(cat {tap.sysfs}/counters/submitted) -ge 2", 60, 0.2)
    tap.kill()
    assert tap.attribute("state") == "quiesced"
    tap.resume()
    assert tap.attribute("state") == "live"
    writer.wait()
    reader.wait()
    assert tap.count("recovered") >= 2
    tap.bed.run(f"cmp -n 4194304 /root/random {tap.file}")


@ON_BOTH_KERNELS
@pytest.mark.parametrize("scheduler", ["none", pytest.param("mq-deadline", marks=(pytest.mark.slow, pytest.mark.deep))])
def test_nothing_is_lost_when_servers_are_killed_under_load(tap: Tap, scheduler: str) -> None:
    """A scheduler has tags of its own: a request's driver tag then changes when it is put off."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    tap.start(delay=40, evil="requeue")
    tap.bed.run(f"echo {scheduler} > /sys/block/tapdev{tap.minor}-queue/queue/scheduler")
    fio = tap.load(seed)
    for _ in range(8):
        time.sleep(rng.uniform(0.1, 0.8))
        tap.kill()
        time.sleep(rng.uniform(0, 0.2))
        tap.resume(delay=rng.choice((0, 40, 80)))
    fio.wait(timeout=300)
    assert tap.count("recovered") > 0
    assert tap.count("refused") == 0


def test_a_server_with_other_ring_sizes_does_not_get_the_device(tap: Tap) -> None:
    tap.start(entries=64)
    tap.kill()
    result = tap.bed.run(f"{SERVER} serve {tap.minor} {tap.file} resume=1 entries=32", check=False)
    assert "Numerical result out of range" in result.stderr
    assert "File exists" in tap.bed.run(f"{SERVER} serve {tap.minor} {tap.file}", check=False).stderr
    result = tap.bed.run(f"{SERVER} serve {tap.minor} {tap.file} resume=1 ro=1", check=False)
    assert "RESUME_DEVICE: Invalid argument" in result.stderr
    tap.resume(entries=64)
    tap.bed.run(f"cmp -n 65536 {tap.device} /dev/zero")


@ON_BOTH_KERNELS
def test_free_fails_what_nobody_will_answer(tap: Tap) -> None:
    """The disk goes although a process has it open, which gets EIO, and so does blkback then."""
    tap.start(hold=1)
    reader = tap.bed.popen(f"dd if={tap.device} of=/dev/null bs=4k count=1 iflag=direct")
    keeper = tap.bed.popen(f"exec 7< {tap.device}; echo open; read line; dd bs=4k count=1 iflag=direct <&7")
    wait_for_output(keeper, "open\n")
    tap.bed.wait_for(f"test $(cat {tap.sysfs}/counters/submitted) -ge 1", 60, 0.2)
    tap.kill()
    tap.bed.run(f"{SERVER} free {tap.minor}", timeout=30)
    assert EIO in reader.wait(check=False).stderr
    assert tap.bed.run(f"test -e {tap.device} -o -e {tap.sysfs}", check=False).status == 1
    assert tap.bed.run("modprobe -r blktap", check=False).status == 1, "a disk is still open"
    keeper.stdin(b"\n")
    result = keeper.wait(check=False)
    assert result.status == 1 or "0+0 records in" in result.stderr
    tap.bed.wait_for("modprobe -r blktap", 30, 0.2)


@ON_BOTH_KERNELS
@pytest.mark.parametrize(
    ("mkfs", "options"),
    # nothing that it does by itself may have the server's lack get in the way of those who write
    [("mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0", "commit=600"), ("mkfs.xfs -q -f", "defaults")],
    ids=["ext4", "xfs"],
)
def test_free_ends_a_mounted_file_system_that_has_dirty_pages(tap: Tap, mkfs: str, options: str) -> None:
    """Removal flushes the file system: it must get errors then, not wait for a server."""
    tap.start()
    tap.bed.run(f"{mkfs} {tap.device} && mount -o {options} {tap.device} /mnt && cp /root/random /mnt/synced && sync /mnt/synced")
    tap.kill()
    tap.bed.run("dd if=/root/random of=/mnt/dirty bs=64k count=64 status=none")
    syncer = tap.bed.popen("sync /mnt/dirty")
    tap.bed.wait_for("grep -q '^State:.D' /proc/$(pgrep -x sync)/status", 30, 0.2)
    tap.bed.run(f"{SERVER} free {tap.minor}", timeout=30)
    assert EIO in syncer.wait(check=False).stderr
    tap.bed.run("umount /mnt", timeout=30)
    tap.bed.wait_for("modprobe -r blktap", 30, 0.2)


def test_a_disk_in_use_is_not_removed(tap: Tap) -> None:
    tap.start()
    keeper = tap.bed.popen(f"exec 7< {tap.device}; echo open; read line")
    wait_for_output(keeper, "open\n")
    tap.signal("TERM")
    tap.expect("busy\n")
    tap.bed.run(f"cmp -n 65536 {tap.device} /dev/zero")
    keeper.stdin(b"\n")
    keeper.wait()
    tap.remove()
    assert tap.attribute("state") == "new"


@ON_BOTH_KERNELS
def test_force_removes_a_disk_in_use(tap: Tap) -> None:
    tap.start(hold=1)
    reader = tap.bed.popen(f"dd if={tap.device} of=/dev/null bs=4k count=1 iflag=direct")
    tap.bed.wait_for(f"test $(cat {tap.sysfs}/counters/submitted) -ge 1", 60, 0.2)
    tap.force_remove()
    assert EIO in reader.wait(check=False).stderr
    assert tap.attribute("state") == "new"
    tap.start()
    tap.bed.run(f"cmp -n 65536 {tap.device} /dev/zero")


@pytest.mark.parametrize("mode", REFUSED)
def test_a_wrong_completion_is_refused_and_the_request_still_waits(tap: Tap, mode: str) -> None:
    tap.bed.run(f"cp /root/random {tap.file} && truncate -s 400M {tap.file}")
    tap.bed.expect_log(r"blktap2 blktap\d+: completion refused: ")
    tap.start(evil=mode)
    tap.bed.run(f"cmp -n 1048576 {tap.device} /root/random", timeout=60)
    tap.expect(f"evil {mode} ret=0")
    assert tap.count("refused") == 1
    # reading ahead may still be under way
    counters = f"{tap.sysfs}/counters"
    tap.bed.wait_for(f"test $(cat {counters}/completed) = $(cat {counters}/submitted)", 30, 0.2)


@pytest.mark.parametrize(("mode", "errno"), [("cqtail", 71), ("sqhead", 71), ("scribble", 0), ("child", 1)])
def test_nonsense_in_the_ring_harms_nobody(tap: Tap, mode: str, errno: int) -> None:
    tap.bed.run(f"cp /root/random {tap.file} && truncate -s 400M {tap.file}")
    tap.bed.expect_log(r"blktap2 blktap\d+: \w+ of task \d+ is beyond the ring$")
    tap.start(evil=mode)
    # one request at a time: the scribbler overwrites what waits in the ring
    tap.bed.run(f"dd if={tap.device} of=/root/got bs=64k count=16 iflag=direct status=none", timeout=60)
    tap.expect(f"evil {mode} ret={-errno if errno else 0}")
    tap.bed.run("cmp -n 1048576 /root/got /root/random")


def test_the_server_may_put_a_request_off(tap: Tap) -> None:
    tap.start(evil="requeue")
    tap.bed.run(f"cmp -n 65536 {tap.device} /dev/zero")
    assert tap.count("requeued") == 1


def test_an_error_of_the_server_reaches_the_reader(tap: Tap) -> None:
    tap.start(evil="error")
    result = tap.bed.run(f"dd if={tap.device} of=/dev/null bs=4k count=1 iflag=direct", check=False)
    assert "No space left on device" in result.stderr
    tap.bed.run(f"cmp -n 65536 {tap.device} /dev/zero")


def test_a_word_of_the_block_layer_is_an_error_like_others(tap: Tap) -> None:
    """EREMCHG tells device mapper to issue the request again."""
    tap.start(evil="eremchg")
    assert EIO in tap.bed.run(f"dd if={tap.device} of=/dev/null bs=4k count=1 iflag=direct", check=False).stderr


def test_a_server_without_its_buffer_fails_requests_and_can_be_replaced(tap: Tap) -> None:
    tap.bed.expect_log(r"blktap2 blktap\d+: the buffer of task \d+ cannot be (?:read|written): request failed$")
    tap.start(evil="nobuffer")
    read = f"dd if={tap.device} of=/dev/null bs=4k count=1 iflag=direct"
    assert EIO in tap.bed.run(read, check=False).stderr
    result = tap.bed.run(f"dd if=/root/random of={tap.device} bs=4k count=1 oflag=direct", check=False)
    assert EIO in result.stderr
    assert tap.count("faults") == 2
    tap.kill()
    tap.resume()
    tap.bed.run(f"cmp -n 65536 {tap.device} /dev/zero")


def test_a_disk_whose_server_hangs_leaves_others_alone(tap: Tap) -> None:
    tap.start(hold=1)
    stuck = tap.bed.popen(f"dd if={tap.device} of=/dev/null bs=4k count=1 iflag=direct")
    other = Tap(tap.bed)
    try:
        other.start()
        other.bed.run(f"dd if=/root/random of={other.device} bs=64k oflag=direct status=none", timeout=60)
        other.bed.run(f"cmp -n 16777216 /root/random {other.device}")
        other.remove()
    finally:
        other.close()
    tap.kill()
    tap.resume()
    stuck.wait()


@ON_BOTH_KERNELS
def test_removal_races_with_openers(tap: Tap) -> None:
    """Openers, a killer and a remover at once: each open is served, refused or failed, and nothing hangs."""
    openers = [
        tap.bed.popen(
            "while [ ! -e /root/enough ]; do"
            f" dd if={tap.device} of=/dev/null bs=64k count=2 status=none 2>/dev/null;"
            f" dd if=/root/random of={tap.device} bs=64k count=2 conv=nocreat status=none 2>/dev/null; done"
        )
        for _ in range(2)
    ]
    try:
        for round_number in range(12):
            tap.start()
            time.sleep(0.2)
            if round_number % 3 == 0:
                tap.kill()
                tap.resume()
            if round_number % 2:
                tap.force_remove()
            else:
                tap.remove()
    finally:
        tap.bed.run("touch /root/enough")
    for opener in openers:
        opener.wait(check=False)
    tap.bed.run("rm /root/enough")


def test_minors_come_and_go(bed: Bed) -> None:
    bed.wait_for("modprobe -r blktap", 30, 0.2)
    bed.run("modprobe blktap max_minors=2")
    try:
        assert bed.run(f"{SERVER} alloc 1").stdout == "1\n"
        assert "Device or resource busy" in bed.run(f"{SERVER} alloc 1", check=False).stderr
        assert bed.run(f"{SERVER} alloc").stdout == "0\n"
        assert "No space left on device" in bed.run(f"{SERVER} alloc", check=False).stderr
        assert "Invalid argument" in bed.run(f"{SERVER} alloc 2", check=False).stderr
        assert bed.run("modprobe -r blktap", check=False).status == 1, "minors hold the module"
        bed.run(f"{SERVER} free 0 && {SERVER} free 1")
        assert "No such device" in bed.run(f"{SERVER} free 0", check=False).stderr
        assert bed.run("modprobe -r blktap; ls /dev/xen/blktap-2 2>/dev/null", check=False).stdout == ""
        bed.expect_log(r"blktap: parameter max_minors=5000 is out of range: give 1 to 4096$")
        assert bed.run("modprobe blktap max_minors=5000", check=False).status == 1
    finally:
        bed.run("modprobe blktap")


@pytest.mark.deep
@ON_BOTH_KERNELS
@pytest.mark.slow
def test_calls_from_everywhere_at_once_leave_nothing_behind(beds: Beds, toys: Path, release: int) -> None:
    """Freed memory is poisoned and checked in this kernel: what is used after its end shows in the log."""
    bed = prepare(beds.fresh(release=release, xen=False, kernel_args="slub_debug=FZPU"), toys)
    bed.expect_log(HAMMER_LOG)
    assert bed.run("cat /sys/kernel/slab/kmalloc-8k/poison").stdout == "1\n"
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    assert bed.run(f"{HAMMER} {20 * bed.slower} {seed}", timeout=240).stdout.endswith("quiet\n")
    bed.wait_for("modprobe -r blktap && test ! -e /dev/xen/blktap-2/control", 30, 0.2)
