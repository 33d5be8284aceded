# SPDX-License-Identifier: LGPL-2.1-only
"""A disk of a guest that arrives: its device is there while another tapdisk still has the image, by each transport."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lib import tapdisks
from tests.lib.beds import Beds
from tests.lib.vm import Bed

IMAGE = "/srv/inactive/a.vhd"
REOPENING = 0x4000


@dataclass(frozen=True)
class Host:
    """A bed, and the transport of its disks."""

    bed: Bed
    transport: str

    def create(self, *options: str, spec: str = f"vhd:{IMAGE}", check: bool = True) -> str:
        """The device, or what tap-ctl says."""
        command = " ".join((f"tap-ctl create -a {spec} --transport={self.transport}", *options))
        return self.bed.run(command, check=check, timeout=60).output.strip()

    def states(self) -> dict[str, int]:
        """By device."""
        rows = json.loads(self.bed.run("tap-ctl list --json").stdout)
        return {f"/dev/xen/blktap-2/tapdev{row['minor']}": row["state"] for row in rows}


@pytest.fixture(params=[(12, "blktap"), (13, "blktap"), (12, "nbd"), (13, "ublk")], ids=lambda p: f"{p[1]}-{p[0]}")
def host(request: pytest.FixtureRequest, beds: Beds) -> Iterator[Host]:
    release, transport = request.param
    bed = beds(release=release, xen=False)
    with tapdisks.clean(bed, tapdisks.NOTHING_LEFT if transport == "blktap" else tapdisks.NO_STOCK_LEFT):
        bed.run(f"mkdir -p /srv/inactive && vhd-util create -n {IMAGE} -s 8")
        yield Host(bed, transport)
        bed.run("rm -rf /srv/inactive")


def test_requests_wait_for_the_image_and_then_find_what_was_written_last(host: Host) -> None:
    bed = host.bed
    source = host.create()
    destination = host.create("--inactive")
    assert host.states()[destination] & REOPENING
    assert bed.run(f"blockdev --getsize64 {destination}").stdout == f"{8 << 20}\n"
    bed.run(f"(dd if={destination} bs=4k skip=9 count=1 iflag=direct 2>/dev/null | md5sum > /srv/inactive/sum) &")
    bed.run("dd if=/dev/urandom of=/srv/inactive/last bs=4k count=1; sleep 1; test ! -s /srv/inactive/sum")
    bed.run(f"dd if=/srv/inactive/last of={source} bs=4k seek=9 oflag=direct 2>/dev/null")
    tapdisks.destroy(bed, source)
    bed.wait_for("test -s /srv/inactive/sum", 60)
    assert bed.run("cat /srv/inactive/sum").stdout == bed.run("md5sum < /srv/inactive/last").stdout
    assert not host.states()[destination]
    tapdisks.destroy(bed, destination)


def test_it_goes_without_a_trace_if_its_guest_does_not_come(host: Host) -> None:
    source = host.create()
    destination = host.create("--inactive")
    tapdisks.destroy(host.bed, destination)
    assert list(host.states()) == [source]
    tapdisks.destroy(host.bed, source)


def test_a_vhd_on_a_block_device_has_to_be_held_on_this_host(host: Host) -> None:
    bed = host.bed
    bed.run("truncate -s 16M /srv/inactive/lv && losetup /dev/loop5 /srv/inactive/lv && vhd-util create -n /dev/loop5 -s 8")
    try:
        said = host.create("--inactive", spec="vhd:/dev/loop5", check=False)
        assert "locks on a block device don't tell whether another host has" in said
        assert host.states() == {}
        source = host.create(spec="vhd:/dev/loop5")
        destination = host.create("--inactive", spec="vhd:/dev/loop5")
        tapdisks.destroy(bed, source)
        bed.run(f"dd if={destination} of=/dev/null bs=4k count=1 iflag=direct", timeout=60)
        tapdisks.destroy(bed, destination)
    finally:
        bed.run("losetup -d /dev/loop5")
