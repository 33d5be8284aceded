# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk gc after programs that had to remove a guest's disks were killed, or could not."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.guest import Guest
from tests.lib.vm import Bed

MEGABYTES = 8
SCRIPT = "/etc/xen/scripts/block-xenblk"
# What ends a domain without a word to xl: XEN_DOMCTL_destroydomain.
HYPERCALL = """
import glob, sys
sys.path[:0] = sorted(glob.glob("/usr/lib/xen-*/lib/python"))[-1:]
from xen.lowlevel import xc
xc.xc().domain_destroy(int(sys.argv[1]))
"""
USE = "wait_for_disk xvda; dd if=/dev/urandom of=/dev/xvda bs=64k count=9 conv=fsync 2>/dev/null; echo used; sleep 1000"


@contextmanager
def used(bed: Bed) -> Iterator[Guest]:
    """A guest that has written to its disk, a chain of two in /srv/gc."""
    leaf = tapdisks.make_chain(bed, "/srv/gc", 2, MEGABYTES)[0]
    guest = Guest(bed, "leaves", USE, [f"tap2:vhd:{leaf},xvda,w"])
    try:
        guest.start(create=tapdisks.CREATE)
        guest.wait_text("^used$")
        yield guest
    finally:
        guest.destroy()
        bed.run("rm -rf /srv/gc /srv/hangs /run/hangs")


@pytest.fixture
def guest(bed: Bed) -> Iterator[Guest]:
    with used(bed) as guest:
        yield guest


def end_behind_xl(bed: Bed, guest: Guest) -> str:
    """The domain is gone, and nobody has removed its disk. Its id."""
    domid = bed.run(f"xl domid {guest.name}").stdout.strip()
    bed.run("pkill -9 -x xl")
    bed.run(f"python3 - {domid}", stdin=HYPERCALL.encode())
    return domid


def gc(bed: Bed) -> list[str]:
    """The lines of one that succeeds."""
    return bed.run("xenblk gc --settle=1", timeout=120).stdout.splitlines()


@pytest.mark.deep
def test_xl_and_the_script_are_killed_while_they_remove(bed: Bed, guest: Guest) -> None:
    """The domain is still there, so that is for xl to end."""
    [disk] = tapdisks.served(bed)
    bed.put("/srv/hangs", b"#!/bin/sh\ntouch /run/hangs\nexec sleep 1000\n")
    bed.run(f"chmod +x /srv/hangs; mount --bind /srv/hangs {SCRIPT}")
    try:
        destroy = bed.popen(f"exec xl destroy {guest.name}")
        bed.wait_for("test -e /run/hangs && pgrep -f '^sleep 1000'", 120)
        bed.run("pkill -9 -x xl; pkill -9 -f '^sleep 1000'")
        destroy.wait(check=False)
    finally:
        bed.run(f"umount {SCRIPT}")
    assert gc(bed) == []
    assert tapdisks.served(bed) == [disk]
    bed.run(f"xl destroy {guest.name}")
    assert tapdisks.leftovers(bed) == ""


def test_the_domain_is_gone_and_nobody_has_removed_its_disk(bed: Bed, guest: Guest) -> None:
    [disk] = tapdisks.served(bed)
    assert gc(bed) == []
    domid = end_behind_xl(bed, guest)
    node = f"/local/domain/0/backend/vbd/{domid}/51712"
    bed.run(f"xenstore-exists {node}")
    assert tapdisks.served(bed) == [disk]
    assert gc(bed) == [f"removed: {node} {disk.args}: domain {domid} is gone"]
    assert tapdisks.leftovers(bed) == ""
    bed.wait_for(f"! xl list {domid}", 30)
    for path in (node, f"/libxl/{domid}/device/vbd/51712", f"/local/domain/{domid}/device/vbd/51712"):
        assert bed.run(f"xenstore-exists {path}", check=False).status != 0
    bed.run("vhd-util check -n /srv/gc/1.vhd -p -b")
    assert gc(bed) == []


@pytest.mark.deep
def test_a_device_that_is_open_in_dom0_outlives_its_guest_and_goes_when_it_is_closed(bed: Bed, guest: Guest) -> None:
    [disk] = tapdisks.served(bed)
    domid = bed.run(f"xl domid {guest.name}").stdout.strip()
    bed.run(f"sleep 1000 < {disk.device} > /dev/null 2>&1 & echo $! > /run/hangs")
    bed.run(f"xl destroy {guest.name}", check=False, timeout=120)
    node = f"/local/domain/0/backend/vbd/{domid}/51712"
    assert bed.run(f"xenstore-exists {node}", check=False).status != 0
    assert tapdisks.served(bed) == [disk]
    done = bed.run("xenblk gc --settle=0", check=False, timeout=120)
    assert done.status == 1 and f"not removed: {node}: " in done.stderr
    assert tapdisks.served(bed) == [disk]
    bed.run("kill $(cat /run/hangs)")
    assert gc(bed) == [
        f"removed: tapdisk pid={disk.pid} minor={disk.minor} {disk.args}: was of {node}, which is gone or has another disk"
    ]
    assert tapdisks.leftovers(bed) == ""


@pytest.mark.deep
def test_the_units_remove_it_too_and_the_journal_says_what(beds: Beds) -> None:
    with tapdisks.clean(beds(init="systemd", packages=("cron", "sudo"))) as bed:
        bed.run("systemctl enable --now xenblk.service xenblk-gc.timer")
        try:
            with used(bed) as guest:
                [disk] = tapdisks.served(bed)
                bed.run("systemctl start xenblk-gc.service", timeout=120)
                assert tapdisks.served(bed) == [disk]
                domid = end_behind_xl(bed, guest)
                bed.run("systemctl start xenblk-gc.service", timeout=120)
                said = bed.run("journalctl -o cat -u xenblk-gc.service").stdout.splitlines()
                removed = f"removed: /local/domain/0/backend/vbd/{domid}/51712 {disk.args}: domain {domid} is gone"
                assert [line for line in said if "emoved" in line] == [removed]
                assert tapdisks.leftovers(bed) == ""
                bed.run("vhd-util check -n /srv/gc/1.vhd -p -b")
        finally:
            bed.run("systemctl disable --now xenblk.service xenblk-gc.timer; rm -f /run/xenblk/config")
