# SPDX-License-Identifier: LGPL-2.1-only
"""Disks that are attached at the same time: of ours no fewer than of phy:, in the same bed. A hundred, with a fake xenstored:
tests/unit/test_block_xenblk_many.py."""

from collections.abc import Iterator

import pytest

from tests.lib import tapdisks
from tests.lib.vm import Bed

NUMBER = 16
VDEVS = [f"xvd{chr(ord('a') + n)}" for n in range(NUMBER)]
HOME = "/srv/many"
# All at once, to dom0 itself; what each ended with, and the seconds until the last one.
ATTACH = """
cd {home} && rm -f status.*
began=$(cut -d' ' -f1 /proc/uptime)
for vdev in {vdevs}; do
	(xl block-attach 0 "$(cat spec.{kind}.$vdev)" > said.$vdev 2>&1; echo $? > status.$vdev) &
done
wait
echo "$began $(cut -d' ' -f1 /proc/uptime)"
cat status.*
"""


@pytest.fixture
def images(bed: Bed) -> Iterator[Bed]:
    """A VHD and a loop device for each vdev, and their specs."""
    bed.run(f"modprobe -a xen-blkfront loop; mkdir -p {HOME}")
    for number, vdev in enumerate(VDEVS):
        bed.run(
            f"cd {HOME}; vhd-util create -n {vdev}.vhd -s 8; truncate -s 8M {vdev}.img; losetup /dev/loop{number} {vdev}.img;"
            f" echo tap2:vhd:{HOME}/{vdev}.vhd,{vdev},w > spec.tap2.{vdev}; echo phy:/dev/loop{number},{vdev},w > spec.phy.{vdev}"
        )
    try:
        yield bed
    finally:
        bed.run(f"for n in $(seq 0 {NUMBER - 1}); do losetup -d /dev/loop$n; done; rm -rf {HOME}", check=False)


def attached(bed: Bed, kind: str) -> tuple[int, float]:
    """How many of all were, and in how many seconds; they are detached again."""
    script = ATTACH.format(home=HOME, vdevs=" ".join(VDEVS), kind=kind)
    times, *statuses = bed.run(script, timeout=600).stdout.splitlines()
    assert len(statuses) == NUMBER
    began, ended = map(float, times.split())
    # libxl waits 10 s for a frontend to let go, which may do so later; what was not attached may be half made
    detach = f"for vdev in {' '.join(VDEVS)}; do xl block-detach 0 $vdev || xl block-detach -f 0 $vdev; done 2>/dev/null"
    bed.wait_for(f"test $(xl block-list 0 | wc -l) -le 1 || {{ {detach}; false; }}", 600)
    return statuses.count("0"), ended - began


@pytest.mark.deep
@pytest.mark.timeout(1800)
def test_as_many_disks_are_attached_at_once_as_with_phy(images: Bed) -> None:
    phy, phy_seconds = attached(images, "phy")
    ours, seconds = attached(images, "tap2")
    print(f"of {NUMBER} at once: phy {phy} in {phy_seconds:.1f} s, tap2 {ours} in {seconds:.1f} s")
    assert ours >= max(phy, 1)
    assert tapdisks.leftovers(images) == ""
