# SPDX-License-Identifier: LGPL-2.1-only
"""Two hosts that share an image by NFS: a guest with a tap2 disk is migrated live between them, by Xen's own xl."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.lib import hvm, scriptmove, tapdisks, twohosts
from tests.lib.beds import Beds
from tests.lib.guest import Guest
from tests.lib.hvm import HvmGuest, line, text_of
from tests.lib.migration import Told
from tests.lib.pvh import PVH_CPU
from tests.lib.twohosts import ADDRESSES, SHARE
from tests.lib.vm import Bed
from tests.lib.writer import MEGABYTES, WRITER, numbers

LEAF = f"{SHARE}/a.vhd"
SPEC = f"vhd:{LEAF}"
PORT = 5000
SCRIPT_MOVES = 6
RECEIVE = f"""
import os, socket
listening = socket.create_server(("", {PORT}))
connection, _ = listening.accept()
for fd in (0, 1):
    os.dup2(connection.fileno(), fd)
os.execvp("xl", ["xl", "migrate-receive"])
"""


def connect(beds: Beds, directory: Path, **spec: Any) -> tuple[Bed, Bed]:
    """Two hosts, with an image in what they share."""
    first, second = (beds.fresh(**twohosts.wire(directory, is_first), **spec) for is_first in (True, False))
    twohosts.connect(first, second)
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
    for source, destination, address in ((first, second, ADDRESSES[1]), (second, first, ADDRESSES[0])):
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
    for address in reversed(ADDRESSES):
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


@pytest.mark.slow
def test_nothing_is_lost_when_the_script_takes_a_disk_from_host_to_host(beds: Beds, tmp_path: Path) -> None:
    """What xl has the script do, for a guest that writes to the last moment. A hundred times: `make soak`."""
    seed = int(os.environ.get("XENBLK_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"XENBLK_SEED={seed}")
    told = Told()
    scriptmove.run(connect(beds, tmp_path), SCRIPT_MOVES, random.Random(seed), told)
    print(told)
    assert told.migrations == SCRIPT_MOVES and told.asked_again > 0
