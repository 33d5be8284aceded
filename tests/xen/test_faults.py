# SPDX-License-Identifier: LGPL-2.1-only
"""Faults at run time under a guest's disk: tapdisk is killed, the image's file system is full, the image is deleted,
the medium has a bad place."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lib import tapdisks
from tests.lib.guest import GUEST_SECONDS, Guest
from tests.lib.vm import Bed

CREATE = "xl create"
MEGABYTES = 24

# Writes a piece and reads it back from the device, again and again, and tells of each.
LOAD = """
wait_for_disk xvda
turn=0
while [ $turn -lt %d ]; do
	turn=$((turn + 1))
	dd if=/dev/urandom of=/piece bs=64k count=4 status=none
	dd if=/piece of=/dev/xvda bs=64k seek=$((turn * 4 %% 320)) conv=notrunc,fsync status=none || exit 1
	echo 3 > /proc/sys/vm/drop_caches
	dd if=/dev/xvda bs=64k skip=$((turn * 4 %% 320)) count=4 status=none | cmp - /piece || exit 2
	echo "turn $turn"
	usleep 200000
done
echo "sum $(dd if=/dev/xvda bs=1M status=none | sha256sum | cut -d' ' -f1)"
"""

# A little every second.
TICK = """
wait_for_disk xvda
turn=0
while [ $turn -lt 500 ]; do
	turn=$((turn + 1))
	dd if=/dev/urandom of=/dev/xvda bs=4k seek=$turn count=1 oflag=direct conv=notrunc status=none || exit 1
	echo "turn $turn"
	sleep 1
done
"""


@contextmanager
def running(bed: Bed, name: str, script: str, spec: str) -> Iterator[Guest]:
    """A guest whose xvda is this disk."""
    guest = Guest(bed, name, script, disks=[f"tap2:{spec},xvda,w"])
    try:
        guest.start(create=CREATE)
        yield guest
    finally:
        guest.destroy()


@contextmanager
def small_file_system(bed: Bed, at: str, megabytes: int) -> Iterator[None]:
    """An ext4 of that size on a loop device."""
    bed.run(
        f"modprobe -a loop ext4; mkdir -p {at} && truncate -s {megabytes}M {at}.img"
        f" && mkfs.ext4 -q -m 0 -O ^has_journal {at}.img && mount -o loop {at}.img {at}"
    )
    try:
        yield
    finally:
        bed.run(f"umount {at} && rmdir {at} && rm {at}.img")


def kill_tapdisk(bed: Bed, leaf: str, condition: str) -> None:
    """kill -9 the tapdisk that serves the leaf, and wait for a condition on the $task that the driver names then."""
    [disk] = [disk for disk in tapdisks.served(bed) if disk.args == f"vhd:{leaf}"]
    bed.run(f"kill -9 {disk.pid}")
    bed.wait_for(
        f"task=$(cat /sys/class/blktap2/blktap{disk.minor}/task); test $task != {disk.pid} -a {condition}", 30, 0.2
    )


NONE = "$task = 0"
ANOTHER = "$task != 0"


def turns(guest: Guest) -> int:
    """How far the load is."""
    return max((int(turn) for turn in re.findall(r"^turn (\d+)$", guest.console, re.M)), default=0)


def test_a_guest_goes_on_with_another_tapdisk_when_its_own_is_killed(bed: Bed) -> None:
    leaf, other = (tapdisks.make_chain(bed, f"/srv/{name}", 2, MEGABYTES)[0] for name in ("killed", "other"))
    with (
        tapdisks.with_settings(bed, "restart: yes"),
        running(bed, "neighbour", TICK, f"vhd:{other}") as neighbour,
        running(bed, "killed", LOAD % 20, f"vhd:{leaf}") as guest,
    ):
        neighbour.wait_text("^turn 1$")
        guest.wait_text("^turn 3$")
        kill_tapdisk(bed, leaf, ANOTHER)
        neighbour.wait_text(f"^turn {turns(neighbour) + 2}$")
        output = guest.wait().output
        guest.wait_gone()
    assert "error" not in output
    [found] = re.findall(r"^sum ([0-9a-f]{64})$", output, re.M)
    assert found == tapdisks.checksum(bed, f"vhd:{leaf}", MEGABYTES)
    bed.run(f"vhd-util check -n {leaf} -p -b && rm -rf /srv/killed /srv/other")


def test_a_guest_whose_tapdisk_was_killed_can_be_destroyed(bed: Bed) -> None:
    leaf = tapdisks.make_chain(bed, "/srv/destroyed", 2, MEGABYTES)[0]
    with tapdisks.with_settings(bed, "restart: no"), running(bed, "destroyed", LOAD % 500, f"vhd:{leaf}") as guest:
        guest.wait_text("^turn 3$")
        kill_tapdisk(bed, leaf, NONE)
        # libxl waits 10 s for the backend to close before it forces it
        bed.run(f"xl destroy {guest.name}", timeout=180)
        assert bed.run(f"xl domid {guest.name}", check=False).status != 0
        # nor is it a zombie, whose pages blkback still has
        bed.wait_for("test $(xl list | wc -l) = 2", 120)
    assert tapdisks.leftovers(bed) == ""
    bed.run(f"vhd-util check -n {leaf} -p -b && rm -rf /srv/destroyed")


@pytest.mark.parametrize("option", ["", "-f"])
def test_the_disk_of_a_killed_tapdisk_can_be_detached(bed: Bed, option: str) -> None:
    leaf = tapdisks.make_chain(bed, "/srv/detached", 2, MEGABYTES)[0]
    with tapdisks.with_settings(bed, "restart: no"), running(bed, f"detached{option}", LOAD % 500, f"vhd:{leaf}") as guest:
        guest.wait_text("^turn 3$")
        kill_tapdisk(bed, leaf, NONE)
        bed.run(f"xl block-detach {guest.name} xvda {option}", timeout=180)
        assert tapdisks.leftovers(bed) == ""
        assert bed.run(f"xl block-list {guest.name}").stdout.count("\n") <= 1
    bed.run(f"vhd-util check -n {leaf} -p -b && rm -rf /srv/detached")


FILL = """
wait_for_disk xvda
wait_for_disk xvdb
write() { dd if=/piece of=/dev/$1 bs=1M seek=$2 oflag=direct conv=notrunc status=none; }
flush() { dd if=/dev/null of=/dev/$1 conv=notrunc,fsync status=none; }
dd if=/dev/urandom of=/piece bs=1M count=1 status=none
write xvdb 0 || exit 1
n=0
while write xvda $n; do
	n=$((n + 1))
	[ $n -lt 24 ] || exit 2
done
echo "full after $n"
write xvdb 8 && exit 3
for disk in xvda xvdb; do
	flush $disk || exit 4
done
echo 3 > /proc/sys/vm/drop_caches
i=0
while [ $i -lt $n ]; do
	dd if=/dev/xvda bs=1M skip=$i count=1 status=none | cmp - /piece || exit 5
	i=$((i + 1))
done
dd if=/dev/xvdb bs=1M count=1 status=none | cmp - /piece || exit 6
echo "waiting"
until write xvda $n 2>/dev/null; do usleep 500000; done
while [ $n -lt 24 ]; do
	write xvda $n || exit 7
	n=$((n + 1))
done
flush xvda || exit 8
echo "sum $(sha256sum < /piece | cut -d' ' -f1)"
"""


@contextmanager
def nearly_full(bed: Bed) -> Iterator[list[str]]:
    """Two disks, as a guest has them, on a file system with room for 10 MiB beside /srv/small/filler."""
    with small_file_system(bed, "/srv/small", 40):
        for name in ("a", "b"):
            bed.run(f"vhd-util create -n /srv/small/{name}.vhd -s {MEGABYTES}")
        bed.run("fallocate -l $(($(df --output=avail -B1 /srv/small | tail -n 1) - (10 << 20))) /srv/small/filler")
        yield [f"tap2:vhd:/srv/small/{name}.vhd,xvd{name},w" for name in ("a", "b")]


# The sum of each MiB: one process, where dd and sha256sum for each take a minute on a busy machine.
SUMS = """
import hashlib, sys
with open(sys.argv[1], "rb", buffering=0) as device:
    while piece := device.read(1 << 20):
        print(hashlib.sha256(piece).hexdigest())
"""


def check_filled(bed: Bed, output: str) -> None:
    """Every MiB of the first disk is the piece whose sum the guest gave."""
    [piece] = re.findall(r"^sum ([0-9a-f]{64})$", output, re.M)
    bed.run("vhd-util check -n /srv/small/a.vhd -b")
    device = tapdisks.create(bed, "vhd:/srv/small/a.vhd", readonly=True)
    sums = bed.run(f"python3 -S -c '{SUMS}' {device}").stdout
    tapdisks.destroy(bed, device)
    assert sums == f"{piece}\n" * MEGABYTES


@pytest.mark.deep
def test_a_full_file_system_may_be_an_error_to_the_guest_until_there_is_room(bed: Bed) -> None:
    with tapdisks.with_settings(bed, "no_space: fail"), nearly_full(bed) as disks:
        guest = Guest(bed, "full", FILL, disks)
        try:
            guest.start(create=CREATE)
            guest.wait_text("^waiting$")
            assert 0 < int(guest.wait_text(r"^full after (\d+)$")[1]) < 10
            bed.run(f"xl block-detach {guest.name} xvdb")
            bed.run("vhd-util check -n /srv/small/b.vhd -b")
            bed.run("rm /srv/small/filler")
            output = guest.wait().output
            guest.wait_gone()
        finally:
            guest.destroy()
        check_filled(bed, output)


WAIT = """
wait_for_disk xvda
wait_for_disk xvdb
dd if=/dev/urandom of=/piece bs=1M count=1 status=none
fill() {
	n=0
	while [ $n -lt 24 ]; do
		dd if=/piece of=/dev/xvda bs=1M seek=$n oflag=direct conv=notrunc status=none || exit 1
		n=$((n + 1))
	done
	dd if=/dev/null of=/dev/xvda conv=notrunc,fsync status=none || exit 1
}
fill &
writer=$!
turn=0
while kill -0 $writer 2>/dev/null; do
	dd if=/dev/xvdb of=/dev/null bs=4k count=1 iflag=direct status=none || exit 2
	dd if=/dev/xvda of=/dev/null bs=4k count=1 iflag=direct status=none || exit 3
	turn=$((turn + 1))
	echo "turn $turn"
	usleep 300000
done
wait $writer || exit 4
echo "sum $(sha256sum < /piece | cut -d' ' -f1)"
"""


def test_a_full_file_system_is_time_to_the_guest(bed: Bed) -> None:
    """Its write waits, its reads go on, and the disk says so, until there is room."""
    with nearly_full(bed) as disks:
        guest = Guest(bed, "waits", WAIT, disks)
        try:
            guest.start(create=CREATE)
            bed.wait_for("ls /run/blktap-control/nospace.*", GUEST_SECONDS)
            [full] = [disk for disk in tapdisks.served(bed) if disk.args == "vhd:/srv/small/a.vhd"]
            assert full.state == "0x2000"
            assert f"minor={full.minor} " in bed.run(f"cat /run/blktap-control/nospace.{full.minor}").stdout
            guest.wait_text(f"^turn {turns(guest) + 5}$")
            bed.run("rm /srv/small/filler")
            output = guest.wait().output
            guest.wait_gone()
        finally:
            guest.destroy()
        assert "error" not in output
        assert "nospace" not in bed.run("ls /run/blktap-control").stdout
        check_filled(bed, output)


def test_a_guest_goes_on_when_its_image_is_deleted(bed: Bed) -> None:
    leaf = tapdisks.make_chain(bed, "/srv/deleted", 2, MEGABYTES)[0]
    with running(bed, "deleted", LOAD % 12, f"vhd:{leaf}") as guest:
        guest.wait_text("^turn 3$")
        bed.run(f"rm {leaf}")
        assert "sum" in guest.wait().output
        guest.wait_gone()
    assert tapdisks.leftovers(bed) == ""
    bed.run("rm -rf /srv/deleted")


MEDIUM = """
wait_for_disk xvda
# Half a block each: 0 to 23
is() { dd if=/dev/xvda bs=1M skip=$1 count=1 iflag=direct status=none | cmp - /data; }
write() { dd if=/data of=/dev/xvda bs=1M seek=$1 oflag=direct conv=notrunc status=none; }
read4k() { dd if=/dev/xvda of=/dev/null bs=4k skip=$1 count=1 iflag=direct status=none; }
for i in 0 1 2 3 4 5 7 8 9; do
	is $i || exit 1
done
is 6 && exit 2
read4k $((6 * 256 + 1)) && exit 3
read4k $((6 * 256 + 9)) || exit 4
write 6 && exit 5
for i in 5 7 20; do
	write $i && is $i || exit 6
done
dd if=/dev/null of=/dev/xvda conv=notrunc,fsync status=none || exit 7
read4k $((6 * 256 + 9)) || exit 8
echo done
"""


def test_a_bad_place_of_the_medium_is_an_error_there_and_nowhere_else(bed: Bed) -> None:
    bed.run("truncate -s 60M /srv/medium && modprobe -a loop dm-mod")
    loop = bed.run("losetup -f --show /srv/medium").stdout.strip()
    good = f"0 {60 * 2048} linear {loop} 0\n"
    bed.run("dmsetup create medium", stdin=good.encode())
    try:
        # Without udev there is no /dev/mapper/medium.
        image = "/dev/" + bed.run("dmsetup info -c --noheadings -o blkdevname medium").stdout.strip()
        bed.run(f"vhd-util create -n {image} -s {MEGABYTES}")
        data = bytes(range(256)) * 4096
        bed.put("/root/data", data)
        device = tapdisks.create(bed, f"vhd:{image}")
        bed.run(f"for i in 0 1 2 3 4 5 6 7 8 9; do dd if=/root/data of={device} bs=1M seek=$i oflag=direct; done")
        tapdisks.destroy(bed, device)
        # The second and third 4 KiB of the block
        bad = int(bed.run(f"vhd-util read -n {image} -t {6 * 2048 + 8}").stdout.split()[-1]) // 512
        table = f"0 {bad} linear {loop} 0\n{bad} 16 error\n"
        table += f"{bad + 16} {60 * 2048 - bad - 16} linear {loop} {bad + 16}\n"
        bed.run("dmsetup suspend medium && dmsetup load medium && dmsetup resume medium", stdin=table.encode())
        guest = Guest(bed, "medium", MEDIUM, [f"tap2:vhd:{image},xvda,w"], files={"data": data})
        try:
            guest.start(create=CREATE)
            assert guest.wait().output.endswith("done\n")
            guest.wait_gone()
        finally:
            guest.destroy()
        assert tapdisks.leftovers(bed) == ""
        bed.run(f"vhd-util check -n {image} -b")
        bed.run("dmsetup suspend medium && dmsetup load medium && dmsetup resume medium", stdin=good.encode())
        device = tapdisks.create(bed, f"vhd:{image}", readonly=True)
        for piece in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 20):
            bed.run(f"dd if={device} bs=1M skip={piece} count=1 status=none | cmp - /root/data")
        tapdisks.destroy(bed, device)
    finally:
        bed.run(f"dmsetup remove medium; losetup -d {loop}; rm /srv/medium /root/data")
