# SPDX-License-Identifier: LGPL-2.1-only
"""Xen's own block-tap scripts, unmodified, drive tap-ctl: that of 4.17 (Debian 12) and that of 4.20 (Debian 13)."""

import pytest

from tests.lib.beds import Beds
from tests.lib.guest import Guest

IMAGE = "/srv/block-tap.img"
PATTERN = b"block-tap\n" * 4096

WRITE = """
wait_for_disk xvda
yes block-tap | head -c 40960 | dd of=/dev/xvda bs=4096 seek=5 conv=fsync 2>/dev/null || exit 1
echo written
read -r told
"""


@pytest.mark.parametrize("release", [12, pytest.param(13, marks=(pytest.mark.slow, pytest.mark.deep))])
def test_a_guests_disk_by_block_tap(beds: Beds, release: int) -> None:
    bed = beds(release=release)
    # the script of 4.17 loads the driver, that of 4.20 leaves it to modules-load.d, which this init does not read
    bed.run(f"modprobe blktap && truncate -s 16M {IMAGE}")
    guest = Guest(bed, "block-tap", WRITE, [f"format=raw,script=block-tap,vdev=xvda,access=w,target=aio:{IMAGE}"])
    try:
        guest.start()
        guest.wait_text("^written$")
        assert f"args=aio:{IMAGE}\n" in bed.run("tap-ctl list").stdout
        guest.say("end")
        guest.wait()
        guest.wait_gone()
        bed.wait_for('test -z "$(tap-ctl list)" && ! pgrep tapdisk', 240)
    finally:
        guest.destroy()
    assert bed.run("ls /sys/class/blktap2 /run/blktap-control | grep -v :", check=False).stdout.strip() == ""
    assert bed.get(IMAGE)[5 * 4096 :][: len(PATTERN)] == PATTERN
