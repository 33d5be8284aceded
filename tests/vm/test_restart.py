# SPDX-License-Identifier: LGPL-2.1-only
"""Whoever kills a tapdisk, another one takes over what it had; whoever ends it in order, none does."""

import json
import random
from collections.abc import Iterator

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.diskload import DiskLoad
from tests.lib.tapdisks import Served
from tests.lib.vm import Bed


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """A bed with nothing of tapdisk in it, before and after."""
    with tapdisks.clean(beds(xen=False)) as bed, tapdisks.configured(bed, "restart=yes"):
        bed.run("modprobe blktap; mkdir -p /srv/r")
        yield bed
        bed.run("rm -rf /srv/r")


def kill(bed: Bed, disk: Served) -> Served:
    """kill -9, and who has the minor then."""
    bed.run(f"kill -9 {disk.pid}")
    bed.wait_for(
        f"task=$(cat /sys/class/blktap2/blktap{disk.minor}/task); test $task != {disk.pid} -a $task != 0", 30, 0.1
    )
    [now] = [other for other in tapdisks.served(bed) if other.minor == disk.minor]
    assert now.pid != disk.pid and now.args == disk.args
    return now


def test_another_tapdisk_goes_on_with_what_a_killed_one_had(bed: Bed) -> None:
    """Under load, across a snapshot; the pid by which the disk was made still names it."""
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    leaf = tapdisks.make_chain(bed, "/srv/r", 2, 64)[0]
    device = tapdisks.create(bed, f"vhd:{leaf}")
    [first] = tapdisks.served(bed)
    load = DiskLoad(bed, device, seed)
    load.wrote("tapdev0", 60)
    now = kill(bed, first)
    load.wrote("tapdev0", 60)
    bed.run(f"tap-ctl snapshot -p {first.pid} -m {first.minor} -n below.vhd")
    load.wrote("tapdev0", 60)
    now = kill(bed, now)
    load.wrote("tapdev0", 60)
    load.end()
    stats = json.loads(bed.run(f"tap-ctl stats -p {first.pid} -m 0").stdout)
    assert stats["pid"] == now.pid and stats["chain"][:2] == [leaf, "/srv/r/below.vhd"]
    assert bed.run(f"stat -c %F /run/blktap-control/nbd{now.pid}.0").stdout == "socket\n"
    bed.run(f"tap-ctl destroy -p {first.pid} -m 0 && vhd-util check -n {leaf} -p -b")


def test_what_was_set_and_what_was_paused_stays(bed: Bed) -> None:
    bed.run("truncate -s 16M /srv/r/ro.img /srv/r/rw.img && modprobe blktap")
    timeout = "/sys/class/blktap2/blktap1/dead_timeout"
    pid = int(bed.run("tap-ctl spawn").stdout)
    for minor, (name, options) in enumerate((("ro", "-R --retry-then=pause --retry-for=7"), ("rw", ""))):
        assert bed.run("tap-ctl allocate").stdout.endswith(f"tapdev{minor}\n")
        bed.run(f"tap-ctl attach -p {pid} -m {minor}")
        bed.run(f"tap-ctl open -p {pid} -m {minor} -a aio:/srv/r/{name}.img {options}")
    bed.run(f"tap-ctl pause -p {pid} -m 1; echo 3 > {timeout}")
    now = kill(bed, Served(pid, 0, "0", "aio:/srv/r/ro.img"))
    assert [(disk.pid, disk.state) for disk in tapdisks.served(bed)] == [(now.pid, "0"), (now.pid, "0x20")]
    note = dict(line.split("=", 1) for line in bed.run("cat /run/blktap-control/disk.0").stdout.splitlines())
    assert (note["readonly"], note["retry_then"], note["retry_for"]) == ("1", "pause", "7")
    assert bed.run("blockdev --getro /dev/xen/blktap-2/tapdev0").stdout == "1\n"
    bed.run("dd if=/dev/xen/blktap-2/tapdev0 of=/dev/null bs=4k count=1 iflag=direct")
    writer = bed.popen("dd if=/dev/urandom of=/dev/xen/blktap-2/tapdev1 bs=4k count=1 oflag=direct")
    # nor does it count as one without a tapdisk
    assert bed.run(f"cat {timeout}").stdout == "0\n"
    bed.run("mv /srv/r/rw.img /srv/r/moved.img; sleep 6")
    assert not writer.ended
    # paused still, by the next one too, which has no ring of it to begin with
    bed.run("tap-ctl upgrade -m 1")
    now = kill(bed, tapdisks.served(bed)[0])
    bed.run("sleep 6")
    assert not writer.ended
    bed.run(f"tap-ctl unpause -p {pid} -m 1 -a aio:/srv/r/moved.img")
    writer.wait()
    assert bed.run(f"cat {timeout}").stdout == "3\n"
    for minor in range(2):
        bed.run(f"tap-ctl destroy -p {pid} -m {minor}")


def test_an_image_that_is_away_is_waited_for(bed: Bed) -> None:
    """Its disk says so, the other one of the same tapdisk goes on, and it can be destroyed meanwhile."""
    bed.run("truncate -s 16M /srv/r/a.img /srv/r/b.img && modprobe blktap")
    device = tapdisks.create(bed, "aio:/srv/r/a.img")
    [disk] = tapdisks.served(bed)
    bed.run("tap-ctl allocate")
    bed.run(f"tap-ctl attach -p {disk.pid} -m 1 && tap-ctl open -p {disk.pid} -m 1 -a aio:/srv/r/b.img")
    bed.run("mv /srv/r/a.img /srv/r/a.away")
    bed.run(f"kill -9 {disk.pid}")
    bed.run("timeout 20 dd if=/dev/xen/blktap-2/tapdev1 of=/dev/null bs=4k count=1 iflag=direct")
    bed.wait_for("tap-ctl list | grep state=0x4000", 60, 0.1)
    [away, _] = json.loads(bed.run("tap-ctl list --json").stdout)
    assert (away["minor"], away["path"], away["waits_for"]) == (0, "/srv/r/a.img", "image")
    bed.run("mv /srv/r/a.away /srv/r/a.img")
    bed.run(f"timeout 60 dd if={device} of=/dev/null bs=4k count=1 iflag=direct")
    assert tapdisks.served(bed)[0].state == "0"
    bed.run("mv /srv/r/b.img /srv/r/b.away")
    bed.run(f"kill -9 {away['pid']}")
    bed.wait_for("tap-ctl list | grep state=0x4000", 60, 0.1)
    for minor in range(2):
        bed.run(f"tap-ctl destroy -p {disk.pid} -m {minor}")


def test_a_tapdisk_that_dies_again_and_again_is_left_dead(bed: Bed) -> None:
    bed.run("truncate -s 16M /srv/r/a.img")
    device = tapdisks.create(bed, "aio:/srv/r/a.img")
    [disk] = tapdisks.served(bed)
    for _ in range(4):
        disk = kill(bed, disk)
    bed.run(f"kill -9 {disk.pid}; while pgrep -x tapdisk-guard; do sleep 0.1; done")
    assert bed.run("tap-ctl list").stdout == "minor=0 state=0x8000 args=aio:/srv/r/a.img\n"
    reader = bed.popen(f"dd if={device} of=/dev/null bs=4k count=1 iflag=direct")
    pid = int(bed.run("tap-ctl restart -m 0").stdout)
    reader.wait()
    # with a guardian of its own
    disk = kill(bed, Served(pid, 0, "0", "aio:/srv/r/a.img"))
    bed.run(f"tap-ctl destroy -p {disk.pid} -m 0")


def test_a_guardian_that_is_killed_is_replaced(bed: Bed) -> None:
    bed.run("truncate -s 16M /srv/r/a.img")
    device = tapdisks.create(bed, "aio:/srv/r/a.img")
    [disk] = tapdisks.served(bed)
    old = bed.run("pgrep -x tapdisk-guard").stdout.strip()
    bed.run(f"kill -9 {old}; while pgrep -x tapdisk-guard | grep -qx {old}; do sleep 0.1; done")
    bed.wait_for("pgrep -x tapdisk-guard", 30, 0.1)
    assert tapdisks.served(bed) == [disk]
    disk = kill(bed, disk)
    bed.run(f"dd if={device} of=/dev/null bs=4k count=1 iflag=direct && tap-ctl destroy -p {disk.pid} -m 0")


def test_none_is_started_after_an_end_in_order(bed: Bed) -> None:
    """SIGTERM leaves the disk to the next one, by hand; a destroy that comes first goes before the guardian."""
    bed.run("truncate -s 16M /srv/r/a.img")
    tapdisks.create(bed, "aio:/srv/r/a.img")
    [disk] = tapdisks.served(bed)
    bed.run(f"kill {disk.pid}; while pgrep 'tapdisk'; do sleep 0.1; done; sleep 0.5")
    assert bed.run("tap-ctl list; pgrep tapdisk; ls /run/blktap-control", check=False).stdout == "minor=0\n"
    bed.run("tap-ctl free -m 0")
    tapdisks.create(bed, "aio:/srv/r/a.img")
    [disk] = tapdisks.served(bed)
    bed.run("kill -STOP $(pgrep -x tapdisk-guard)")
    bed.run(f"kill -9 {disk.pid}; while kill -0 {disk.pid} 2>/dev/null; do sleep 0.1; done")
    bed.run(f"tap-ctl destroy -p {disk.pid} -m 0 && pkill -CONT -x tapdisk-guard; sleep 0.5")


def test_without_restart_the_disk_waits(bed: Bed) -> None:
    with tapdisks.configured(bed, "restart=no"):
        bed.run("truncate -s 16M /srv/r/a.img")
        tapdisks.create(bed, "aio:/srv/r/a.img")
        [disk] = tapdisks.served(bed)
        bed.run(f"test -z $(pgrep -x tapdisk-guard) && kill -9 {disk.pid}; sleep 1")
        assert bed.run("tap-ctl list").stdout == "minor=0\n"
        bed.run(f"tap-ctl destroy -p {disk.pid} -m 0")


HOLDER = """
import os, sys
while True:
    try:
        os.open("/dev/xen/blktap-2/blktap1", os.O_RDWR)
        break
    except OSError:
        pass
print("held", flush=True)
sys.stdin.read()
"""


def test_one_that_has_yet_to_take_over_a_disk_stays_for_it(bed: Bed) -> None:
    """Of two disks one can't be had yet, as long as the dead tapdisk, or who else has its ring, is not through; the other is removed meanwhile."""
    bed.run("truncate -s 16M /srv/r/0.img /srv/r/1.img")
    pid = int(bed.run("tap-ctl spawn").stdout)
    for minor in (0, 1):
        bed.run(f"tap-ctl allocate && tap-ctl attach -p {pid} -m {minor} && tap-ctl open -p {pid} -m {minor} -a aio:/srv/r/{minor}.img")
    bed.put("/root/holder.py", HOLDER.encode())
    holder = bed.popen("exec python3 /root/holder.py")
    for _ in range(4):
        bed.run(f"kill -9 {pid}")
        bed.wait_for(f"task=$(cat /sys/class/blktap2/blktap0/task); test $task != {pid} -a $task != 0", 30, 0.1)
        if "held" in holder.output():
            break
        # the next tapdisk was faster: once more
        pid = int(bed.run("cat /sys/class/blktap2/blktap0/task").stdout)
    now = int(bed.run("cat /sys/class/blktap2/blktap0/task").stdout)
    refused = bed.run(f"tap-ctl upgrade -p {now}", check=False)
    assert refused.status == 1 and "is taking over disks of a tapdisk that died" in refused.output
    bed.run(f"tap-ctl destroy -p {now} -m 0")
    holder.stdin(b"")
    holder.wait()
    bed.wait_for("test $(cat /sys/class/blktap2/blktap1/task) != 0", 60, 0.2)
    bed.run("dd if=/dev/xen/blktap-2/tapdev1 of=/dev/null bs=4k count=1 iflag=direct", timeout=60)
    bed.run(f"tap-ctl destroy -p {now} -m 1")
