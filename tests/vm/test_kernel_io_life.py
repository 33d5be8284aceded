# SPDX-License-Identifier: LGPL-2.1-only
"""What else happens to a disk whose requests the kernel serves by itself: growth, discards, upgrade, a log, a bad medium, no tapdisk."""

import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.diskload import DiskLoad
from tests.lib.nulldisk import null_disk
from tests.lib.tapdisks import Served
from tests.lib.toytap import EIO
from tests.lib.vm import Bed

HOME = "/srv/life"
BOTH_WAYS = pytest.mark.parametrize("kernel_io", ["yes", "no"], ids=["kernel_io", "copy"])


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """A bed with nothing of tapdisk in it, before and after."""
    with tapdisks.clean(beds(xen=False)) as bed:
        bed.run(f"modprobe blktap; mkdir -p {HOME}")
        yield bed
        bed.run(f"rm -rf {HOME}")


@contextmanager
def disk(bed: Bed, spec: str) -> Iterator[Served]:
    """One that is served, until it is destroyed by whoever serves it then."""
    device = tapdisks.create(bed, spec)
    [made] = tapdisks.served(bed)
    try:
        yield made
    finally:
        tapdisks.destroy(bed, device)


def direct_writes(bed: Bed) -> int:
    return tapdisks.counters(bed, 0)["direct_writes"]


def sum_of(bed: Bed, path: str) -> str:
    return bed.run(f"dd if={path} bs=256k iflag=direct 2>/dev/null | sha256sum").stdout.split()[0]


@BOTH_WAYS
def test_a_disk_grows_and_is_written_there(bed: Bed, kernel_io: str) -> None:
    leaf = f"{HOME}/a.vhd"
    bed.run(f"vhd-util create -n {leaf} -s 24")
    with tapdisks.configured(bed, f"kernel_io={kernel_io}"):
        with disk(bed, f"vhd:{leaf}") as served:
            load = DiskLoad(bed, served.device, random.randrange(1 << 31))
            load.wrote("tapdev0", 60)
            at = f"-p {served.pid} -m {served.minor}"
            bed.run(f"tap-ctl pause {at} && vhd-util resize -n {leaf} -s 40 && tap-ctl unpause {at}")
            bed.wait_for(f"test $(blockdev --getsize64 {served.device}) = {40 << 20}", 20, 0.2)
            load.wrote("tapdev0", 60)
            load.end()
            # the second time a whole block is there
            for _ in range(2):
                bed.run(f"dd if=/dev/urandom of={served.device} bs=1M seek=24 count=16 oflag=direct conv=fsync 2>/dev/null")
            assert (direct_writes(bed) > 0) == (kernel_io == "yes")
            shown = sum_of(bed, served.device)
        with disk(bed, f"vhd:{leaf}") as served:
            assert sum_of(bed, served.device) == shown
    bed.run(f"vhd-util check -n {leaf} -p -b")


@pytest.mark.parametrize("kind", ["vhd", "aio"])
def test_what_is_discarded_or_zeroed_is_gone_and_written_again(bed: Bed, kind: str) -> None:
    """Between requests that the kernel serves at the same places."""
    path = f"{HOME}/a.{kind}"
    bed.run(f"vhd-util create -n {path} -s 24" if kind == "vhd" else f"truncate -s 24M {path}")
    with tapdisks.configured(bed, "kernel_io=yes"), disk(bed, f"{kind}:{path}") as served:
        for turn in range(3):
            bed.run(f"dd if=/dev/urandom of={HOME}/data bs=1M count=24 2>/dev/null")
            for _ in range(2):
                bed.run(f"dd if={HOME}/data of={served.device} bs=256k oflag=direct 2>/dev/null")
            bed.run(f"blkdiscard -o 4M -l 6M {served.device} && blkdiscard -z -o 13M -l 64k {served.device}")
            for start, size in ((4 << 20, 6 << 20), (13 << 20, 64 << 10)):
                bed.run(f"dd if=/dev/zero of={HOME}/data bs=64k seek={start >> 16} count={size >> 16} conv=notrunc 2>/dev/null")
            assert sum_of(bed, served.device) == sum_of(bed, f"{HOME}/data"), turn
        counters = tapdisks.counters(bed, 0)
        assert counters["direct_writes"] > 100 and counters["direct_reads"] > 0 and counters["direct_failed"] == 0
        stats = json.loads(bed.run(f"tap-ctl stats -p {served.pid} -m 0").stdout)
        assert stats["discard"]["requests"] >= 3 and stats["discard"]["errors"] == 0
    if kind == "vhd":
        bed.run(f"vhd-util check -n {path} -b")


def test_an_upgrade_under_load_takes_the_kernels_part_over(bed: Bed) -> None:
    leaf = tapdisks.make_chain(bed, HOME, 2, 24)[0]
    with tapdisks.configured(bed, "kernel_io=yes"), disk(bed, f"vhd:{leaf}") as served:
        bed.run(f"dd if=/dev/urandom of={served.device} bs=2M count=12 oflag=direct 2>/dev/null")
        load = DiskLoad(bed, served.device, random.randrange(1 << 31), blocks=8)
        for _ in range(3):
            before = direct_writes(bed)
            bed.wait_for(f"test $(cat /sys/class/blktap2/blktap0/counters/direct_writes) -gt {before + 60}", 60, 0.1)
            said = bed.run("tap-ctl upgrade -m 0", timeout=120).stdout
            assert re.fullmatch(r"pid=\d+ was=\d+ disks=1 stall=\d+\.\d ms\n", said), said
        load.wrote("tapdev0", 60)
        load.end()
        assert tapdisks.counters(bed, 0)["direct_failed"] == 0
        # of the last one
        [now] = tapdisks.served(bed)
        kernel = json.loads(bed.run(f"tap-ctl stats -p {now.pid} -m 0").stdout)["kernel"]
        assert kernel["writes"] == direct_writes(bed) and kernel["reads"] == tapdisks.counters(bed, 0)["direct_reads"]
    bed.run(f"vhd-util check -n {leaf} -p -b")


def test_with_a_log_of_changes_every_write_comes_to_it(bed: Bed) -> None:
    bed.run(f"dd if=/dev/urandom of={HOME}/a.img bs=1M count=16 2>/dev/null")
    write = "dd if=/dev/urandom of={} bs=64k seek=32 count=8 oflag=direct 2>/dev/null"
    with tapdisks.configured(bed, "kernel_io=yes"):
        with disk(bed, f"log:{HOME}/map,aio:{HOME}/a.img") as served:
            for _ in range(3):
                bed.run(write.format(served.device))
            assert direct_writes(bed) == 0
        # a bit for each 64 KiB, or what holds them
        assert any(bed.get(f"{HOME}/map"))
        with disk(bed, f"aio:{HOME}/a.img") as served:
            for _ in range(3):
                bed.run(write.format(served.device))
            assert direct_writes(bed) > 0


def test_what_fails_in_the_kernel_is_tried_again_by_tapdisks_rules(bed: Bed) -> None:
    """A bad place on the medium: with retries the reader waits until it is good again, without it gets the error. All else goes on."""
    bed.expect_log(r"(?:blk_|I/O error, dev|Buffer I/O error on dev)")
    with null_disk(bed, size=64) as bad:
        places = "/sys/kernel/config/nullb/bed/badblocks"
        for settings, waits in (("retry_errors=none", False), ("retry_errors=all", True)):
            with tapdisks.configured(bed, "kernel_io=yes", settings), disk(bed, f"aio:{bad}") as served:
                read = f"dd if={served.device} of=/dev/null bs=4k count=1 iflag=direct skip={{}}"
                bed.run(f"dd if=/dev/urandom of={served.device} bs=1M count=8 oflag=direct 2>/dev/null")
                bed.run(f"echo +2048-2055 > {places}")
                try:
                    reader = bed.popen(read.format(256))
                    if waits:
                        bed.run("sleep 2")
                        assert not reader.ended
                        bed.run(read.format(16))
                    else:
                        assert EIO in reader.wait(check=False).stderr
                        bed.run(read.format(16))
                finally:
                    bed.run(f"echo -2048-2055 > {places}")
                reader.wait(check=waits)
                assert tapdisks.counters(bed, 0)["direct_failed"] > 0


def test_the_dead_timeout_of_the_settings_ends_in_errors_until_a_tapdisk_comes(bed: Bed) -> None:
    bed.expect_log(r"blktap2 blktap0: no server: \d+ requests failed, and so do new ones until there is one$")
    bed.run(f"truncate -s 16M {HOME}/a.img")
    settings = ("dead_timeout=2", "restart=no", "kernel_io=yes")
    with tapdisks.configured(bed, *settings), disk(bed, f"aio:{HOME}/a.img") as served:
        read = f"dd if={served.device} of=/dev/null bs=4k count=1 iflag=direct"
        bed.run(read)
        bed.run(f"kill -9 {served.pid}")
        assert EIO in bed.run(read, check=False, timeout=60).stderr
        bed.run("tap-ctl restart -m 0")
        bed.run(read)
