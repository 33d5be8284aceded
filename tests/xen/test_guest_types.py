# SPDX-License-Identifier: LGPL-2.1-only
"""What kinds of guests can use a disk that tapdisk serves: HVM by QEMU's IDE, PVH by blkfront."""

import re

import pytest

from tests.lib import hvmchain, tapdisks
from tests.lib.beds import Beds
from tests.lib.guest import Guest
from tests.lib.pvh import GUEST_EXTRA, PVH_BED, XL
from tests.lib.vm import Bed

MEGABYTES = 10


def test_an_hvm_guest_boots_from_a_chain_through_stock_qemu(bed: Bed) -> None:
    hvmchain.boots(bed)


USE_DISK = """
use_disk() {
	wait_for_disk $1
	dd if=/dev/urandom of=/dev/$1 bs=64k count=20 seek=$2 conv=fsync 2>/dev/null || exit 1
	dd if=/dev/urandom of=/dev/$1 bs=512 count=3 seek=11001 conv=fsync 2>/dev/null || exit 2
	echo 3 > /proc/sys/vm/drop_caches
	echo "$1 sum $(dd if=/dev/$1 bs=1M 2>/dev/null | sha256sum | cut -d' ' -f1)"
}
[ "$(cat /sys/hypervisor/guest_type)" = PVH ] || exit 3
"""


@pytest.mark.deep
@pytest.mark.slow
def test_a_pvh_guest_uses_a_chain_a_raw_file_and_a_device_that_the_kernel_serves(beds: Beds) -> None:
    with tapdisks.clean(beds(**PVH_BED)) as bed:
        leaf, base = tapdisks.make_chain(bed, "/srv/pvh", 2, MEGABYTES)
        bed.run(f"truncate -s {MEGABYTES}M /srv/pvh/raw.img /srv/pvh/device.img; modprobe loop")
        device = bed.run("losetup -f --show /srv/pvh/device.img").stdout.strip()
        before = bed.run(f"sha256sum {base}").stdout
        specs = {"xvda": f"vhd:{leaf}", "xvdb": "aio:/srv/pvh/raw.img", "xvdc": f"aio:{device}"}
        disks = [f"tap2:{spec},{vdev},w" for vdev, spec in specs.items()]
        script = USE_DISK + "use_disk xvda 70; use_disk xvdb 74; use_disk xvdc 78; echo used; read -r line"
        guest = Guest(bed, "pvh", script, disks, memory=384, type="pvh", extra=GUEST_EXTRA)
        try:
            with tapdisks.with_settings(bed, "kernel_io: yes"):
                guest.start(create=f"{XL} create")
            guest.wait_text("^used$")
            counters = tapdisks.counters_by_image(bed)
            guest.say("end")
            output = guest.wait().output
            guest.wait_gone()
        finally:
            guest.destroy()
        assert counters.keys() == set(specs.values())
        for spec, count in counters.items():
            print(spec, count)
            assert count["direct_reads"] > 0 and count["direct_failed"] == 0
            # the leaf of the chain has no whole block
            assert count["direct_writes"] > 0 or spec == specs["xvda"]
        sums = dict(re.findall(r"^(xvd[a-z]) sum ([0-9a-f]{64})$", output, re.M))
        assert sums == {vdev: tapdisks.checksum(bed, spec, MEGABYTES) for vdev, spec in specs.items()}
        assert bed.run(f"sha256sum {base}").stdout == before
        bed.run(f"vhd-util check -n {leaf} -p -b && losetup -d {device} && rm -rf /srv/pvh")
