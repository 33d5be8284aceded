# SPDX-License-Identifier: LGPL-2.1-only
"""The bed with Xen: dom0 and its toolstack."""

import pytest

from tests.lib.beds import Beds
from tests.lib.guest import Guest, GuestLost


def test_dom0_runs_on_xen_with_its_daemons(beds: Beds) -> None:
    bed = beds()
    assert bed.run("xl list | awk 'NR == 2 { print $1, $2 }'").stdout == "Domain-0 0\n"
    assert "control_d" in bed.get("/proc/xen/capabilities").decode()
    bed.run("xenstore-write /tool/bed probe")
    assert bed.run("xenstore-read /tool/bed").stdout == "probe\n"


WRITE_AND_READ_BACK = """
wait_for_disk xvda
yes "a pattern of xenblk" | head -c 1048576 > /tmp/pattern
dd if=/tmp/pattern of=/dev/xvda bs=65536 seek=3 conv=fsync 2>/dev/null || exit 1
echo 3 > /proc/sys/vm/drop_caches
dd if=/dev/xvda bs=65536 skip=3 count=16 2>/dev/null | cmp - /tmp/pattern || exit 2
echo the pattern is back
"""


def test_a_pv_guest_reads_back_what_it_wrote_to_a_loop_device(beds: Beds) -> None:
    bed = beds()
    bed.run("truncate -s 16M /srv/loop.raw && losetup /dev/loop5 /srv/loop.raw")
    guest = Guest(bed, "loop", WRITE_AND_READ_BACK, ["phy:/dev/loop5,xvda,w"])
    try:
        guest.start()
        assert guest.wait().output == "the pattern is back\n"
        guest.wait_gone()
    finally:
        guest.destroy()
        bed.run("losetup -d /dev/loop5")
    written = bed.get("/srv/loop.raw")[3 * 65536 :][: 1 << 20]
    assert written == (b"a pattern of xenblk\n" * 60000)[: 1 << 20]


def test_a_guest_whose_script_fails_fails_the_test_with_its_console(beds: Beds) -> None:
    bed = beds()
    guest = Guest(bed, "fails", "echo words of the guest; exit 9")
    try:
        guest.start()
        with pytest.raises(GuestLost, match=r"status 9\n(.*\n)*.*words of the guest"):
            guest.wait()
        assert guest.wait(check=False).status == 9
        guest.wait_gone()
    finally:
        guest.destroy()


@pytest.mark.deep
@pytest.mark.slow
def test_a_pv_guest_runs_on_debian_13(beds: Beds) -> None:
    bed = beds(release=13)
    bed.run("truncate -s 16M /srv/loop.raw && losetup /dev/loop5 /srv/loop.raw")
    guest = Guest(bed, "loop13", WRITE_AND_READ_BACK, ["phy:/dev/loop5,xvda,w"])
    try:
        guest.start()
        assert guest.wait().output == "the pattern is back\n"
        guest.wait_gone()
    finally:
        guest.destroy()
