# SPDX-License-Identifier: LGPL-2.1-only
"""Live migration of a guest with a tap2 disk, by Xen's own xl: to the same host, and between two hosts that share the image."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.guest import Guest
from tests.lib.vm import Bed

MEGABYTES = 8
STEP = 7
"""Sectors between two numbers."""
LAST = MEGABYTES * 2048 // STEP - 1
PVH_CPU = "max,-smap,-rdtscp,-xsave"
"""With xsave a guest loses the contents of its registers on the way, in emulation."""
# Each number goes to a sector of its own, after the one before was found there.
WRITER = f"""
wait_for_disk xvda
number=1
found() {{ dd if=/dev/xvda bs=512 skip=$(($1 * {STEP})) count=1 iflag=direct 2>/dev/null | tr -d '\\0'; }}
while [ $number -lt {LAST} ]; do
	[ $number = 1 ] || [ "$(found $((number - 1)))" = "number $((number - 1))" ] || break
	echo "number $number" | dd of=/dev/xvda bs=512 seek=$((number * {STEP})) conv=sync oflag=direct 2>/dev/null || break
	echo "wrote $number"
	number=$((number + 1))
done
echo "lost" | dd of=/dev/xvda bs=512 seek=0 conv=sync,fsync 2>/dev/null
sleep 1000
"""


def numbers(bed: Bed, spec: str) -> int:
    """How many there are on the disk, one after the other from 1 on. Asserts that there is nothing else."""
    data = tapdisks.read(bed, spec, MEGABYTES * 2048)
    expected = bytearray(len(data))
    number = 1
    while data[number * STEP * 512] if number < LAST else 0:
        text = f"number {number}\n".encode()
        expected[number * STEP * 512 : number * STEP * 512 + len(text)] = text
        number += 1
    assert data == expected, f"after number {number - 1}"
    return number - 1


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """One for PVH guests."""
    with tapdisks.clean(beds(cpu=PVH_CPU)) as bed:
        yield bed


@pytest.mark.slow
def test_a_guest_that_migrates_to_its_own_host_has_its_disk_there(bed: Bed) -> None:
    leaf = "/srv/moves/a.vhd"
    spec = f"vhd:{leaf}"
    bed.run(f"mkdir /srv/moves && vhd-util create -n {leaf} -s {MEGABYTES}")
    guest = Guest(bed, "moves", WRITER, [f"tap2:{spec},xvda,w"], type="pvh")
    try:
        guest.start(create=tapdisks.CREATE)
        guest.wait_text("^wrote 5$")
        [before] = tapdisks.served(bed)
        domid = bed.run("xl domid moves").stdout
        bed.run("xl migrate -s '' moves 'exec xl migrate-receive'", timeout=300)
        at_least = int(re.findall(r"^wrote (\d+)", guest.console, re.M)[-1])
        [after] = tapdisks.served(bed)
        assert bed.run("xl domid moves").stdout != domid
        assert after.pid != before.pid and after.args == before.args == spec
        bed.wait_for(f"grep -a -q '^wrote {at_least + 10}' /var/log/xen/console/guest-moves*.log", 120)
        bed.run("xl destroy moves")
        assert tapdisks.leftovers(bed) == ""
    finally:
        guest.destroy()
    assert numbers(bed, spec) >= at_least + 10
    bed.run(f"vhd-util check -n {leaf} -b && rm -rf /srv/moves")


SHARE = "/srv/share"
PORT = 5000
RECEIVE = f"""
import os, socket
listening = socket.create_server(("", {PORT}))
connection, _ = listening.accept()
for fd in (0, 1):
    os.dup2(connection.fileno(), fd)
os.execvp("xl", ["xl", "migrate-receive"])
"""


def connect(beds: Beds, directory: Path) -> tuple[Bed, Bed]:
    """Two hosts at the ends of a wire; the second has the first one's SHARE by NFS."""
    first, second = (
        beds.fresh(cpu=PVH_CPU, link=directory / "wire", link_first=is_first) for is_first in (True, False)
    )
    for number, bed in enumerate((first, second), 1):
        bed.run(f"modprobe virtio_net && ip addr add 10.9.0.{number}/24 dev eth0 && ip link set eth0 up && mkdir {SHARE}")
        bed.run("modprobe blktap")
    first.run(
        f"modprobe nfsd; mkdir -p /var/lib/nfs/nfsdcltrack /var/lib/nfs/v4recovery; mount -t nfsd nfsd /proc/fs/nfsd;"
        f" echo '{SHARE} 10.9.0.2(rw,fsid=0,no_root_squash,no_subtree_check,insecure)' > /etc/exports && exportfs -ra"
        " && rpc.mountd -N 2 -N 3 && rpc.nfsd -N 3 -G 10 -L 10 2"
    )
    second.run(f"modprobe -a nfs nfsv4; mount -t nfs4 -o vers=4.2 10.9.0.1:/ {SHARE}", timeout=300)
    return first, second


def migrate(source: Bed, destination: Bed, address: str) -> None:
    """The guest "moves", by xl on both sides."""
    destination.put("/root/receive.py", RECEIVE.encode())
    receiving = destination.popen("exec python3 /root/receive.py")
    destination.wait_for(f"grep -q ':{PORT:04X} ' /proc/net/tcp", 60)
    source.run(f"xl migrate -s '' moves 'exec busybox nc {address} {PORT}'", timeout=600)
    receiving.wait(timeout=120)


@pytest.mark.slow
def test_a_guest_migrates_between_two_hosts_and_back(beds: Beds, tmp_path: Path) -> None:
    first, second = connect(beds, tmp_path)
    spec = f"vhd:{SHARE}/a.vhd"
    first.run(f"vhd-util create -n {SHARE}/a.vhd -s {MEGABYTES}")
    guest = Guest(first, "moves", WRITER, [f"tap2:{spec},xvda,w"], type="pvh")
    written = "cat /var/log/xen/console/guest-moves*.log | sed -n 's/^wrote //p' | tail -n 1"
    guest.start(create=tapdisks.CREATE)
    guest.wait_text("^wrote 5$")
    for source, destination, address in ((first, second, "10.9.0.2"), (second, first, "10.9.0.1")):
        # what the guest would do if both could have its image
        [disk] = tapdisks.served(source)
        refused = destination.run(f"tap-ctl create -a {spec}", check=False)
        assert refused.status and "in use: another process, or another host, has it open for writing" in refused.output
        before = int(source.run(written).stdout)
        migrate(source, destination, address)
        assert tapdisks.leftovers(source) == ""
        [disk] = tapdisks.served(destination)
        assert disk.args == spec
        destination.wait_for(f"[ $({written}) -gt {before + 10} ]", 180)
    first.run("xl destroy moves")
    assert tapdisks.leftovers(first) == ""
    assert numbers(first, spec) > 25
    first.run(f"vhd-util check -n {SHARE}/a.vhd -b")
