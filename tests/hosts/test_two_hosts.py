# SPDX-License-Identifier: LGPL-2.1-only
"""Two hosts that share an image by NFS: a guest with a tap2 disk is migrated live between them, by Xen's own xl."""

from pathlib import Path
from typing import Any

import pytest

from tests.lib import hvm, tapdisks
from tests.lib.beds import Beds
from tests.lib.guest import Guest
from tests.lib.hvm import HvmGuest, line, text_of
from tests.lib.pvh import PVH_CPU
from tests.lib.vm import Bed
from tests.lib.writer import MEGABYTES, WRITER, numbers

SHARE = "/srv/share"
LEAF = f"{SHARE}/a.vhd"
SPEC = f"vhd:{LEAF}"
PORT = 5000
RECEIVE = f"""
import os, socket
listening = socket.create_server(("", {PORT}))
connection, _ = listening.accept()
for fd in (0, 1):
    os.dup2(connection.fileno(), fd)
os.execvp("xl", ["xl", "migrate-receive"])
"""


def connect(beds: Beds, directory: Path, **spec: Any) -> tuple[Bed, Bed]:
    """Two hosts at the ends of a wire; the second has the first one's SHARE by NFS."""
    first, second = (beds.fresh(link=directory / "wire", link_first=is_first, **spec) for is_first in (True, False))
    for number, bed in enumerate((first, second), 1):
        bed.run(f"modprobe virtio_net && ip addr add 10.9.0.{number}/24 dev eth0 && ip link set eth0 up && mkdir {SHARE}")
        bed.run("modprobe blktap")
    first.run(
        f"modprobe nfsd; mkdir -p /var/lib/nfs/nfsdcltrack /var/lib/nfs/v4recovery; mount -t nfsd nfsd /proc/fs/nfsd;"
        f" echo '{SHARE} 10.9.0.2(rw,fsid=0,no_root_squash,no_subtree_check,insecure)' > /etc/exports && exportfs -ra"
        " && rpc.mountd -N 2 -N 3 && rpc.nfsd -N 3 -G 10 -L 10 2"
    )
    second.run(f"modprobe -a nfs nfsv4; mount -t nfs4 -o vers=4.2 10.9.0.1:/ {SHARE}", timeout=300)
    first.run(f"vhd-util create -n {LEAF} -s {MEGABYTES}")
    return first, second


def migrate(source: Bed, destination: Bed, address: str) -> None:
    """The guest "moves", by xl on both sides."""
    destination.put("/root/receive.py", RECEIVE.encode())
    receiving = destination.popen("exec python3 /root/receive.py")
    destination.wait_for(f"grep -q ':{PORT:04X} ' /proc/net/tcp", 60)
    sent = source.run(f"xl migrate -s '' moves 'exec busybox nc {address} {PORT}'", timeout=600, check=False)
    received = receiving.wait(timeout=120, check=False)
    assert (sent.status, received.status) == (0, 0), f"{sent.output}\n{received.output}"


@pytest.mark.slow
def test_a_guest_migrates_between_two_hosts_and_back(beds: Beds, tmp_path: Path) -> None:
    first, second = connect(beds, tmp_path, cpu=PVH_CPU)
    guest = Guest(first, "moves", WRITER, [f"tap2:{SPEC},xvda,w"], type="pvh")
    written = "cat /var/log/xen/console/guest-moves*.log | sed -n 's/^wrote //p' | sort -n | tail -n 1"
    guest.start(create=tapdisks.CREATE)
    guest.wait_text("^wrote 5$")
    for source, destination, address in ((first, second, "10.9.0.2"), (second, first, "10.9.0.1")):
        # what the guest would do if both could have its image
        [disk] = tapdisks.served(source)
        refused = destination.run(f"tap-ctl create -a {SPEC}", check=False)
        assert refused.status and "in use: another process, or another host, has it open for writing" in refused.output
        told = destination.run(f"xl block-attach 0 format=raw,vdev=xvdz,target={LEAF}", check=False)
        assert told.status and LEAF in told.output and "in use" in told.output, "by QEMU, which would not ask"
        before = int(source.run(written).stdout)
        migrate(source, destination, address)
        assert tapdisks.leftovers(source) == ""
        [disk] = tapdisks.served(destination)
        assert disk.args == SPEC
        destination.wait_for(f"[ $({written}) -gt {before + 10} ]", 180)
    first.run("xl destroy moves")
    assert tapdisks.leftovers(first) == ""
    assert numbers(first, SPEC) > 25
    first.run(f"vhd-util check -n {LEAF} -b")


@pytest.mark.slow
def test_an_hvm_guest_migrates_between_two_hosts_and_back(beds: Beds, tmp_path: Path) -> None:
    """What it wrote by its emulated drive, unflushed, is there; its new QEMU reads the first sector before the old one lets go."""
    first, second = connect(beds, tmp_path)
    has = line("first")
    tapdisks.write(first, SPEC, {0: hvm.two_paths(), hvm.SHARED: has})
    source, destination = (HvmGuest(bed, "moves", [f"tap2:{SPEC},hda,w"], hears=True) for bed in (first, second))
    source.start(create=tapdisks.CREATE)
    source.wait_text("^boot: begin\n")
    for address in ("10.9.0.2", "10.9.0.1"):
        source.say("r")
        source.wait_text(f"^boot: has {text_of(has)}\n")
        source.say("w")
        source.wait_text("^boot: wrote\n")
        migrate(source.bed, destination.bed, address)
        assert tapdisks.leftovers(source.bed) == ""
        [disk] = tapdisks.served(destination.bed)
        assert hvm.in_image(destination.bed, LEAF, hvm.COPY) == has
        has = line("since")
        destination.bed.run(f"dd of={disk.device} bs=512 seek={hvm.SHARED} conv=notrunc,fsync 2>/dev/null", stdin=has)
        destination.watch()
        destination.follow()
        source, destination = destination, source
    source.say("r")
    source.wait_text(f"^boot: has {text_of(has)}\n")
    source.destroy()
    assert tapdisks.leftovers(first) == ""
    first.run(f"vhd-util check -n {LEAF} -b")
