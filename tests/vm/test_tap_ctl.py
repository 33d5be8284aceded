# SPDX-License-Identifier: LGPL-2.1-only
"""tap-ctl with the driver: disks are made from nothing, and nothing is left of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.vm import Bed, Result

IMAGE = "/srv/tap ctl.img"


@dataclass(frozen=True)
class Disk:
    """What tap-ctl list says of a disk that tap-ctl create has made."""

    device: str
    pid: int
    minor: int


def create(bed: Bed, args: str, options: str = "") -> Disk:
    device = bed.run(f"tap-ctl create -a '{args}' {options}").stdout.strip()
    minor = int(device.removeprefix("/dev/xen/blktap-2/tapdev"))
    (row,) = json.loads(bed.run(f"tap-ctl list -m {minor} --json").stdout)
    return Disk(device, row["pid"], minor)


def destroy(bed: Bed, disk: Disk, options: str = "") -> Result:
    return bed.run(f"tap-ctl destroy -p {disk.pid} -m {disk.minor} {options}", check=False)


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """A bed with the driver, a 4 MiB image, and nothing left behind at the end."""
    with tapdisks.clean(beds(xen=False)) as bed:
        bed.run(f"modprobe blktap; mkdir -p /run/blktap-control; head -c 4194304 /dev/urandom > '{IMAGE}'")
        yield bed


def test_check_finds_the_driver(bed: Bed) -> None:
    result = bed.run("tap-ctl check")
    assert result.output == ""


def test_allocate_and_free(bed: Bed) -> None:
    device = bed.run("tap-ctl allocate").stdout.strip()
    minor = int(device.removeprefix("/dev/xen/blktap-2/tapdev"))
    assert bed.run("tap-ctl list").stdout == f"minor={minor}\n"
    assert bed.run(f"tap-ctl list -m {minor} -p 1", check=False).status == 1
    assert json.loads(bed.run("tap-ctl list --json").stdout)[0]["pid"] is None
    bed.run(f"tap-ctl free -m {minor}")
    result = bed.run(f"tap-ctl free -m {minor}", check=False)
    assert (result.status, result.output) == (1, f"tap-ctl: minor {minor}: is not allocated; see `tap-ctl list`\n")


def test_create_makes_a_disk_and_destroy_unmakes_it(bed: Bed) -> None:
    disk = create(bed, f"aio:{IMAGE}")
    assert bed.run("tap-ctl list").stdout == f"pid={disk.pid} minor={disk.minor} state=0 args=aio:{IMAGE}\n"
    assert bed.run(f"blockdev --getsize64 {disk.device}").stdout == "4194304\n"
    bed.run(f"cmp {disk.device} '{IMAGE}'")
    bed.run(f"echo changed | dd of={disk.device} conv=notrunc,fsync bs=4096 count=1 iflag=fullblock")
    assert bed.run(f"head -c 8 '{IMAGE}'").stdout == "changed\n"
    stats = json.loads(bed.run(f"tap-ctl stats -p {disk.pid} -m {disk.minor}").stdout)
    assert stats["chain"] == [IMAGE] and stats["write"]["requests"] > 0 and stats["write"]["errors"] == 0
    assert destroy(bed, disk).output == ""
    assert bed.run(f"test -e {disk.device}", check=False).status == 1


def test_a_disk_outlives_the_session_that_made_it(bed: Bed) -> None:
    """A session's or a service's end is its control group's, at a shutdown while guests still write; guardian and all."""
    group = "/sys/fs/cgroup/session"
    bed.run(f"mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup; mkdir {group}")
    with tapdisks.configured(bed, "restart=yes"):
        bed.run(f"echo 0 > {group}/cgroup.procs; exec tap-ctl create -a 'aio:{IMAGE}'")
        bed.run(f"echo 1 > {group}/cgroup.kill")
        (row,) = json.loads(bed.run("tap-ctl list --json").stdout)
        assert bed.run(f"cat /proc/{row['pid']}/cgroup").stdout == "0::/\n"
        disk = Disk(f"/dev/xen/blktap-2/tapdev{row['minor']}", row["pid"], row["minor"])
        bed.run(f"cmp {disk.device} '{IMAGE}'")
        assert destroy(bed, disk).output == ""
    bed.wait_for(f"rmdir {group}", 30, 0.2)


READ_BY_NBD = """
import socket, struct, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.sendall(struct.pack(">IQII", 3, 0x49484156454F5054, 1, 0))
stream = client.makefile("rb")
size, = struct.unpack(">18xQ2x", stream.read(28))
for at in range(0, size, 1 << 20):
    client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, at, at, 1 << 20))
    assert stream.read(16) == struct.pack(">IIQ", 0x67446698, 0, at)
    sys.stdout.buffer.write(stream.read(1 << 20))
sys.stdout.flush()
if len(sys.argv) > 2:
    open(sys.argv[2], "w").close()
    assert stream.read() == b""
"""


def test_a_disk_is_served_by_nbd_until_it_is_closed(bed: Bed) -> None:
    disk = create(bed, f"aio:{IMAGE}")
    path = f"/run/blktap-control/nbd{disk.pid}.{disk.minor}"
    assert bed.run(f"stat -c %a {path}").stdout == "600\n"
    bed.run(f"echo changed | dd of={disk.device} conv=notrunc,fsync bs=4096 count=1 iflag=fullblock")
    bed.run(f"python3 - {path} > /tmp/nbd.img && cmp /tmp/nbd.img '{IMAGE}'", stdin=READ_BY_NBD.encode())
    # A client that stays does not keep the disk, and is told.
    bed.run("cat > /tmp/client.py", stdin=READ_BY_NBD.encode())
    bed.run(
        f"python3 /tmp/client.py {path} /tmp/served > /dev/null & client=$!;"
        "while [ ! -e /tmp/served ]; do sleep 0.1; done;"
        f"tap-ctl destroy -p {disk.pid} -m {disk.minor} && wait $client && test ! -e {path}"
    )


def test_destroy_leaves_nothing_at_the_moment_it_returns(bed: Bed) -> None:
    traces = "tap-ctl list; ls /sys/class/blktap2 /run/blktap-control | grep -v :; pgrep tapdisk"
    bed.run(
        "for i in 1 2 3 4 5; do"
        f"  tap-ctl create -a 'aio:{IMAGE}' > /dev/null;"
        "  set -- $(tap-ctl list | sed -e 's/pid=//' -e 's/minor=//');"
        "  tap-ctl destroy -p $1 -m $2 || exit 1;"
        f'  test -z "$({traces})" || exit 1;'
        "done"
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("aio:/srv/none.img", "/srv/none.img: No such file or directory"),
        ("qcow3:/srv/none.img", "qcow3"),
        ("vhd:" + IMAGE, IMAGE),
    ],
)
def test_create_that_fails_says_why_and_leaves_nothing(bed: Bed, args: str, says: str) -> None:
    result = bed.run(f"tap-ctl create -a '{args}'", check=False)
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr.startswith("tap-ctl: ") and says in result.stderr and result.stderr.count("\n") == 1


def test_create_without_a_tapdisk_leaves_nothing(bed: Bed) -> None:
    result = bed.run(f"TAPDISK=/bin/false tap-ctl create -a 'aio:{IMAGE}'", check=False)
    assert result.status == 1 and "cannot start" in result.stderr


def test_create_whose_output_is_lost_leaves_nothing(bed: Bed) -> None:
    assert bed.run(f"tap-ctl create -a 'aio:{IMAGE}' > /dev/full", check=False).status == 1


def test_the_image_lock_keeps_a_second_disk_away(bed: Bed) -> None:
    disk = create(bed, f"aio:{IMAGE}")
    result = bed.run(f"tap-ctl create -a 'aio:{IMAGE}'", check=False)
    assert result.status == 1 and f"{IMAGE}: in use" in result.stderr
    assert bed.run("tap-ctl list").stdout.count("\n") == 1
    assert destroy(bed, disk).status == 0


def test_destroy_refuses_an_open_device_unless_forced(bed: Bed) -> None:
    disk = create(bed, f"aio:{IMAGE}")
    holder = bed.popen(f"exec 3<{disk.device}; touch /run/held; read line; rm /run/held")
    bed.wait_for("test -e /run/held", 60)
    result = destroy(bed, disk)
    assert result.status == 1 and result.stderr.count("\n") == 1
    bed.run(f"cmp {disk.device} '{IMAGE}'")
    assert destroy(bed, disk, "-f").output == ""
    holder.stdin(b"\n")
    holder.wait(check=False)


def kill_for_good(bed: Bed, disk: Disk) -> None:
    """kill -9 the tapdisk of a disk that was made with restart: no."""
    bed.run(f"kill -9 {disk.pid}")
    bed.wait_for(f"test $(cat /sys/class/blktap2/blktap{disk.minor}/task) = 0", 30, 0.2)


def test_destroy_cleans_up_after_a_tapdisk_that_was_killed(bed: Bed) -> None:
    with tapdisks.configured(bed, "restart=no"):
        disk = create(bed, f"aio:{IMAGE}")
    kill_for_good(bed, disk)
    assert bed.run("tap-ctl list").stdout == f"minor={disk.minor}\n"
    assert destroy(bed, disk).output == ""


def test_a_new_tapdisk_goes_on_after_one_that_was_killed(bed: Bed) -> None:
    with tapdisks.configured(bed, "restart=no"):
        disk = create(bed, f"aio:{IMAGE}")
    kill_for_good(bed, disk)
    reader = bed.popen(f"dd if={disk.device} bs=65536 iflag=direct status=none | cmp - '{IMAGE}' && echo same")
    pid = int(bed.run("tap-ctl spawn").stdout)
    bed.run(f"tap-ctl attach -p {pid} -m {disk.minor} && tap-ctl open -p {pid} -m {disk.minor} -a 'aio:{IMAGE}'")
    assert reader.wait().stdout == "same\n"
    assert destroy(bed, Disk(disk.device, pid, disk.minor)).output == ""


def test_destroy_by_the_wrong_pid_leaves_the_disk(bed: Bed) -> None:
    disk = create(bed, f"aio:{IMAGE}")
    idle = int(bed.run("tap-ctl spawn").stdout)
    for pid in (idle, 999999):
        assert destroy(bed, Disk(disk.device, pid, disk.minor)).status == 1
        bed.run(f"dd if={disk.device} of=/dev/null bs=4096 count=1 iflag=direct")
    bed.run(f"kill {idle}")
    assert destroy(bed, disk).output == ""


def test_requests_wait_while_paused(bed: Bed) -> None:
    disk = create(bed, f"aio:{IMAGE}")
    at = f"-p {disk.pid} -m {disk.minor}"
    bed.run(f"cp '{IMAGE}' /srv/as-written; tap-ctl pause {at}")
    assert " state=0x20 " in bed.run("tap-ctl list").stdout
    reader = bed.popen(
        f"dd if={disk.device} bs=4096 count=1 iflag=direct status=none | cmp -n 4096 - /srv/as-written && echo same"
    )
    bed.run(f"mv '{IMAGE}' '{IMAGE}.moved'; sleep 1")
    assert reader.output() == ""
    result = bed.run(f"tap-ctl unpause {at}", check=False)
    assert result.status == 1 and "No such file" in result.stderr
    bed.run(f"cp '{IMAGE}.moved' '{IMAGE}'; tap-ctl unpause {at} -a 'aio:{IMAGE}.moved'")
    assert reader.wait().stdout == "same\n"
    assert bed.run("tap-ctl list").stdout.endswith(f" args=aio:{IMAGE}.moved\n")
    assert destroy(bed, disk).output == ""
    bed.run(f"rm '{IMAGE}.moved' /srv/as-written")


def test_two_disks_in_one_tapdisk(bed: Bed) -> None:
    disk = create(bed, f"aio:{IMAGE}")
    bed.run(f"cp '{IMAGE}' /srv/second.img")
    second = int(bed.run("tap-ctl allocate").stdout.strip().removeprefix("/dev/xen/blktap-2/tapdev"))
    bed.run(f"tap-ctl attach -p {disk.pid} -m {second}")
    bed.run(f"tap-ctl open -p {disk.pid} -m {second} -a aio:/srv/second.img -R")
    assert bed.run(f"blockdev --getro /dev/xen/blktap-2/tapdev{second}").stdout == "1\n"
    assert destroy(bed, disk).output == ""
    bed.run(f"cmp /dev/xen/blktap-2/tapdev{second} /srv/second.img")
    assert destroy(bed, Disk("", disk.pid, second)).output == ""


def test_a_minor_that_was_given_to_another_disk_is_not_removed_by_its_earlier_tapdisk(bed: Bed) -> None:
    """Ended by hand, one's backend node still has pid and minor; the other's tapdisk is dead, its requests wait."""
    with tapdisks.configured(bed, "restart=no"):
        earlier = create(bed, f"aio:{IMAGE}")
        assert destroy(bed, earlier).status == 0
        disk = create(bed, f"aio:{IMAGE}")
        assert disk.minor == earlier.minor
        bed.run(f"kill -9 {disk.pid}; while kill -0 {disk.pid} 2>/dev/null; do sleep 0.1; done")
        refused = destroy(bed, earlier)
        assert refused.status == 1
        assert f"is not tapdisk {earlier.pid}'s but that of tapdisk {disk.pid} (aio:{IMAGE})" in refused.output
        pid = int(bed.run(f"tap-ctl restart -m {disk.minor}").stdout)
        bed.run(f"dd if={disk.device} of=/dev/null bs=4k count=1 iflag=direct", timeout=60)
        # the one that has it now goes by the name of the one that it had before, too
        assert destroy(bed, disk).status == 0 and not bed.run(f"kill -0 {pid} 2>/dev/null", check=False).status == 0


def test_a_disk_whose_tapdisks_are_all_dead_is_removed_by_the_first_ones_pid_with_its_note(bed: Bed) -> None:
    """Which is what its backend node has."""
    die = "kill -9 {0}; while kill -0 {0} 2>/dev/null; do sleep 0.1; done"
    with tapdisks.configured(bed, "restart=no"):
        disk = create(bed, f"aio:{IMAGE}")
        bed.run(die.format(disk.pid))
        bed.run(die.format(bed.run(f"tap-ctl restart -m {disk.minor}").stdout.strip()))
        # and its first name goes with the last of them
        bed.run("tap-ctl list")
        note = f"/run/blktap-control/disk.{disk.minor}"
        bed.run(f"test -e {note}")
        assert destroy(bed, disk).status == 0
        bed.run(f"test ! -e {note}")
