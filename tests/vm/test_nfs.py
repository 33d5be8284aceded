# SPDX-License-Identifier: LGPL-2.1-only
"""An image on a soft NFS mount whose server goes away and comes back.

The outage is 25 s here. How long one may last is a setting, retry_for, which is 10 minutes.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib import nfs, tapdisks
from tests.lib.beds import Beds
from tests.lib.toytap import SERVER, Tap, prepare
from tests.lib.vm import Bed

OUTAGE_SECONDS = 25
LEAF = f"{nfs.MOUNT}/1.vhd"


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """A bed with a soft mount."""
    with tapdisks.clean(beds(xen=False)) as bed, nfs.soft_mount(bed):
        yield bed


def wait_for_retries(bed: Bed) -> None:
    """Until requests of the disk wait to be tried again."""
    [disk] = tapdisks.served(bed)
    end = time.monotonic() + 60
    while not json.loads(bed.run(f"tap-ctl stats --json -p {disk.pid} -m {disk.minor}").stdout)["waiting"]:
        assert time.monotonic() < end, "no request waits"


def test_a_server_that_is_away_costs_the_guest_time_and_no_error(bed: Bed) -> None:
    tapdisks.make_chain(bed, nfs.MOUNT, 2, 100)
    with tapdisks.configured(bed, "kernel_io=yes"):
        bed.popen("exec /usr/libexec/tapdisk --foreground 2> /root/tapdisk.log")
        bed.wait_for("test -e /run/blktap-control/ctl$(pgrep -x tapdisk)", 30, 0.2)
        device = bed.run("tap-ctl allocate").stdout.strip()
        bed.run(f"pid=$(pgrep -x tapdisk); tap-ctl attach -p $pid -m 0 && tap-ctl open -p $pid -m 0 -a vhd:{LEAF}")
    writer = bed.popen(
        f"fio --name=x --filename={device} --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=16k"
        " --size=100M --io_size=24M --rate_iops=60 --fsync=64 --verify=crc32c --do_verify=1 --output=/root/fio.log"
    )
    bed.wait_for("awk '{ exit $5 < 50 }' /sys/block/tapdev0/stat", 60, interval=0.2)
    with nfs.away(bed):
        begin = time.monotonic()
        # The mount itself does fail, so that it is tapdisk who keeps the guest from it.
        failed = bed.run(f"dd if={nfs.MOUNT}/0.vhd of=/dev/null bs=4k count=1 iflag=direct", check=False)
        assert "Input/output error" in failed.output
        wait_for_retries(bed)
        time.sleep(max(0, OUTAGE_SECONDS - (time.monotonic() - begin)))
        assert not writer.ended, "the load has not seen the outage"
    writer.wait(300)
    assert "err= 0" in bed.run("cat /root/fio.log").stdout
    # the driver takes no files of a network's, which is nothing to warn of
    assert bed.run("cd /sys/class/blktap2/blktap0/counters && cat direct_reads direct_writes").stdout == "0\n0\n"
    [told] = re.findall(r": (\w+): the kernel does no I/O by itself", bed.run("cat /root/tapdisk.log").stdout)
    assert told == "info"
    tapdisks.destroy(bed, device)
    bed.run(f"vhd-util check -n {LEAF} -p -b")


def test_an_outage_beyond_what_is_allowed_is_an_error(bed: Bed) -> None:
    bed.run(f"vhd-util create -n {LEAF} -s 100")
    bed.run("printf 'version=1\\nretry_interval=1\\nretry_for=2\\n' > /root/config")
    env = {"XENBLK_CONFIG": "/root/config"}
    device = bed.run(f"modprobe blktap; tap-ctl create -a vhd:{LEAF}", env=env).stdout.strip()
    write = f"dd if=/dev/zero of={device} bs=64k count=1 oflag=direct"
    bed.run(write)
    with nfs.away(bed):
        failed = bed.run(write, check=False)
        assert "Input/output error" in failed.output
    bed.wait_for(write, 120)
    tapdisks.destroy(bed, device)
    bed.run(f"vhd-util check -n {LEAF} -p -b")


def test_the_driver_takes_no_file_of_the_network(bed: Bed, toys: Path) -> None:
    """Pages may be sent after the request has ended."""
    tap = Tap(prepare(bed, toys))
    bed.run(f"truncate -s 1M {nfs.MOUNT}/file")
    result = bed.run(f"{SERVER} serve {tap.minor} {tap.file} extents=1 place={nfs.MOUNT}/file", check=False)
    assert f"ADD_FILE {nfs.MOUNT}/file: Operation not supported" in result.stderr
    tap.close()
