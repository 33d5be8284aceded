# SPDX-License-Identifier: LGPL-2.1-only
"""Live migration of a guest with a tap2 disk to its own host, by Xen's own xl."""

import re
from collections.abc import Iterator

import pytest

from tests.lib import hvm, tapdisks, twopaths
from tests.lib.beds import Beds
from tests.lib.guest import Guest
from tests.lib.hvm import line
from tests.lib.pvh import GUEST_EXTRA, PVH_BED, XL
from tests.lib.vm import Bed
from tests.lib.writer import MEGABYTES, WRITER, numbers


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """One for PVH guests."""
    with tapdisks.clean(beds(**PVH_BED)) as bed:
        yield bed


@pytest.mark.deep
@pytest.mark.slow
def test_a_guest_that_migrates_to_its_own_host_has_its_disk_there(bed: Bed) -> None:
    leaf = "/srv/moves/a.vhd"
    spec = f"vhd:{leaf}"
    bed.run(f"mkdir /srv/moves && vhd-util create -n {leaf} -s {MEGABYTES}")
    guest = Guest(bed, "moves", WRITER, [f"tap2:{spec},xvda,w"], type="pvh", extra=GUEST_EXTRA)
    try:
        guest.start(create=tapdisks.CREATE)
        guest.wait_text("^wrote 5$")
        [before] = tapdisks.served(bed)
        domid = bed.run("xl domid moves").stdout
        moved = bed.run(f"{XL} migrate -s '' moves 'exec taskset -c 0 xl migrate-receive'", timeout=300, check=False)
        # a guest that doesn't suspend leaves its reason there
        assert moved.status == 0, f"{moved.output}\n{guest.console[-4000:]}\n{bed.run('xl list; xl dmesg | tail -n 20').output}"
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


# Is killed as soon as the guest's disk is there, and waits for its image
DIES = b"""#!/bin/sh
exec 3<&0
taskset -c 0 xl migrate-receive <&3 3<&- &
until tap-ctl list | grep -q 'state=0x4000 '; do kill -0 $! || exit 1; sleep 0.1; done
kill -9 $!
"""


@pytest.mark.deep
@pytest.mark.slow
def test_a_migration_that_fails_leaves_the_guest_its_disk(bed: Bed) -> None:
    leaf = "/srv/stays/a.vhd"
    spec = f"vhd:{leaf}"
    bed.run(f"mkdir /srv/stays && vhd-util create -n {leaf} -s {MEGABYTES}")
    bed.put("/root/dies", DIES, 0o755)
    guest = Guest(bed, "stays", WRITER, [f"tap2:{spec},xvda,w"], type="pvh", extra=GUEST_EXTRA)
    try:
        guest.start(create=tapdisks.CREATE)
        guest.wait_text("^wrote 5$")
        [before] = tapdisks.served(bed)
        domid = bed.run("xl domid stays").stdout
        assert bed.run(f"{XL} migrate -s '' stays /root/dies", timeout=300, check=False).status != 0
        assert bed.run("xl domid stays").stdout == domid
        wrote = int(re.findall(r"^wrote (\d+)", guest.console, re.M)[-1])
        guest.wait_text(f"^wrote {wrote + 10}$")
        # what xl left when it was killed
        bed.run("xl domid stays--incoming && xl destroy stays--incoming")
        assert tapdisks.served(bed) == [before]
        assert bed.run("xenblk gc -n --settle=0").stdout == ""
        guest.wait_text(f"^wrote {wrote + 20}$")
        bed.run("xl destroy stays")
        assert tapdisks.leftovers(bed) == ""
    finally:
        guest.destroy()
        bed.run("xl destroy stays--incoming 2>/dev/null", check=False)
    assert numbers(bed, spec) >= wrote + 20
    bed.run(f"vhd-util check -n {leaf} -b && rm -rf /srv/stays")


@pytest.mark.deep
@pytest.mark.slow
def test_an_hvm_guest_that_migrates_reads_and_writes_its_disk_by_its_emulated_drive(beds: Beds) -> None:
    """What it wrote before, unflushed, is there; its new QEMU has read the first sector before the old one let go."""
    with tapdisks.clean(beds()) as bed, twopaths.begun(bed) as paths:
        paths.guest.say("w")
        paths.guest.wait_text("^boot: wrote\n")
        [before] = tapdisks.served(bed)
        pid = paths.guest.qemu_pid()
        bed.run(f"xl migrate -s '' {paths.guest.name} 'exec xl migrate-receive'", timeout=300)
        [after] = tapdisks.served(bed)
        assert after.pid != before.pid and paths.guest.qemu_pid() != pid
        assert paths.in_image(hvm.COPY) == paths.first
        paths.guest.follow()
        first, since = hvm.text_of(paths.first), line("since")
        paths.guest.say("r")
        paths.guest.wait_text(f"^boot: wrote\nboot: has {first}\n")
        bed.run(f"dd of={after.device} bs=512 seek={hvm.SHARED} conv=notrunc,fsync 2>/dev/null", stdin=since)
        paths.guest.say("r")
        paths.guest.wait_text(f"^boot: has {hvm.text_of(since)}\n")
        paths.guest.say("w")
        paths.guest.wait_text("^boot: wrote\n(?:.*\n)*boot: wrote\n")
        bed.run(f"xl destroy {paths.guest.name}")
        assert paths.in_image(hvm.COPY) == since
