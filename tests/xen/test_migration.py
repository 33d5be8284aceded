# SPDX-License-Identifier: LGPL-2.1-only
"""Live migration of a guest with a tap2 disk to its own host, by Xen's own xl."""

import re
from collections.abc import Iterator

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.guest import Guest
from tests.lib.vm import Bed
from tests.lib.writer import MEGABYTES, PVH_CPU, WRITER, numbers


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
