# SPDX-License-Identifier: LGPL-2.1-only
"""Guests on disks that tapdisk serves: stock xl and blkback, `xenblk create` and the script form."""

import re
from collections.abc import Iterator

import pytest

from tests.lib import tapdisks
from tests.lib.guest import Guest
from tests.lib.vm import Bed

MEGABYTES = 24

# Every disk: what is there already, a write of its own across a block's border, a flush, and all of it again from
# the device.
USE_DISK = """
use_disk() {
	wait_for_disk $1
	echo "$1 size $(cat /sys/block/$1/size)"
	dd if=/dev/urandom of=/dev/$1 bs=64k count=20 seek=$2 conv=fsync 2>/dev/null || exit 1
	dd if=/dev/urandom of=/dev/$1 bs=512 count=3 seek=40001 conv=fsync 2>/dev/null || exit 2
	echo 3 > /proc/sys/vm/drop_caches
	echo "$1 sum $(dd if=/dev/$1 bs=1M 2>/dev/null | sha256sum | cut -d' ' -f1)"
}
"""


def sums(output: str) -> dict[str, str]:
    return dict(re.findall(r"^(xvd[a-z]) sum ([0-9a-f]{64})$", output, re.M))


@pytest.fixture(params=["no", pytest.param("yes", marks=pytest.mark.deep)], ids=["copy", "kernel_io"])
def kernel_io(bed: Bed, request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the kernel serves by itself what it can."""
    with tapdisks.with_settings(bed, f"kernel_io: {request.param}"):
        yield request.param == "yes"


@pytest.mark.timeout(2700)
def test_two_guests_at_once_on_raw_and_chains_of_one_to_five(bed: Bed, kernel_io: bool) -> None:
    chains = {n: tapdisks.make_chain(bed, f"/srv/chain{n}", n, MEGABYTES) for n in (1, 2, 3, 4, 5)}
    bed.run(f"truncate -s {MEGABYTES}M /srv/raw.img")
    parents = " ".join(path for chain in chains.values() for path in chain[1:])
    before = bed.run(f"sha256sum {parents}").stdout
    first = {"xvda": f"vhd:{chains[5][0]}", "xvdb": "aio:/srv/raw.img", "xvdc": f"vhd:{chains[1][0]}"}
    second = {"xvda": f"vhd:{chains[2][0]}", "xvdb": f"vhd:{chains[3][0]}", "xvdc": f"vhd:{chains[4][0]}"}
    guests = [
        Guest(
            bed,
            name,
            USE_DISK + "use_disk xvda 20; use_disk xvdb 24; use_disk xvdc 31; echo used; read -r told",
            disks=[f"tap2:{spec},{vdev},w" for vdev, spec in specs.items()],
        )
        for name, specs in (("first", first), ("second", second))
    ]
    try:
        for guest in guests:
            guest.start(create="xl create")
        for guest in guests:
            guest.wait_text("^used$")
        counters = list(tapdisks.counters_by_image(bed).values())
        for guest in guests:
            guest.say("end")
        outputs = [guest.wait().output for guest in guests]
        for guest in guests:
            guest.wait_gone()
    finally:
        for guest in guests:
            guest.destroy()
    assert [count["direct_reads"] > 0 for count in counters] == [kernel_io] * 6
    assert sum(count["direct_failed"] for count in counters) == 0
    for output, specs in zip(outputs, (first, second), strict=True):
        assert output.count(f" size {MEGABYTES * 2048}\n") == 3
        assert sums(output) == {vdev: tapdisks.checksum(bed, spec, MEGABYTES) for vdev, spec in specs.items()}
    assert bed.run(f"sha256sum {parents}").stdout == before
    for chain in chains.values():
        bed.run(f"vhd-util check -n {chain[0]} -p -b")
    # QEMU's reader knows no parents, so it sees the chain of one.
    bed.run(f"qemu-img convert -f vpc -O raw {chains[1][0]} /srv/qemu.raw")
    converted = bed.run(f"head -c {MEGABYTES << 20} /srv/qemu.raw | sha256sum").stdout.split()[0]
    assert converted == sums(outputs[0])["xvdc"]
    bed.run("rm -rf /srv/chain* /srv/raw.img /srv/qemu.raw")


def test_disks_come_and_go_while_the_guest_runs(bed: Bed) -> None:
    """xl block-attach and block-detach with the script form, twice, on a guest whose xvda is a tap2 disk."""
    root, extra = (tapdisks.make_chain(bed, f"/srv/{name}", 2, MEGABYTES)[0] for name in ("root", "extra"))
    script = (
        USE_DISK
        + """
for turn in 1 2; do
	echo "ready $turn"
	use_disk xvdb 20
	echo "used $turn"
	tries=0
	while [ -b /dev/xvdb ]; do
		tries=$((tries + 1))
		[ $tries -lt 600 ] || exit 3
		usleep 100000
	done
done
use_disk xvda 25
"""
    )
    spec = f"format=raw,script=block-xenblk,vdev=xvdb,access=rw,target=vhd:{extra}"
    guest = Guest(bed, "hotplug", script, disks=[f"tap2:vhd:{root},xvda,w"])
    try:
        guest.start(create="xl create")
        for turn in (1, 2):
            guest.wait_text(f"^ready {turn}$")
            bed.run(f"xl block-attach {guest.name} '{spec}'")
            guest.wait_text(f"^used {turn}$")
            assert len(tapdisks.served(bed)) == 2
            bed.run(f"xl block-detach {guest.name} xvdb")
            assert [disk.args for disk in tapdisks.served(bed)] == [f"vhd:{root}"]
        output = guest.wait().output
        guest.wait_gone()
    finally:
        guest.destroy()
    assert sums(output)["xvda"] == tapdisks.checksum(bed, f"vhd:{root}", MEGABYTES)
    assert sums(output)["xvdb"] == tapdisks.checksum(bed, f"vhd:{extra}", MEGABYTES)
    bed.run("rm -rf /srv/root /srv/extra")


def test_a_disk_that_cannot_be_opened_fails_the_creation_and_leaves_nothing(bed: Bed) -> None:
    bed.run("mkdir -p /srv/bad && head -c 1M /dev/urandom > /srv/bad/junk.vhd")
    before = bed.run("sha256sum /srv/bad/junk.vhd").stdout
    guest = Guest(bed, "bad", "exit 0", disks=["tap2:vhd:/srv/bad/junk.vhd,xvda,w"])
    guest.prepare()
    result = bed.run(f"xenblk create {guest.config_path}", check=False, timeout=180)
    assert result.status != 0
    assert "/srv/bad/junk.vhd" in result.output
    assert "footer" in result.output
    assert bed.run("sha256sum /srv/bad/junk.vhd").stdout == before
    assert bed.run(f"xl domid {guest.name}", check=False).status != 0
    bed.run("rm -rf /srv/bad")


def test_a_read_only_disk_is_read_only_to_the_guest(bed: Bed) -> None:
    leaf = tapdisks.make_chain(bed, "/srv/ro", 2, MEGABYTES)[0]
    before = bed.run("sha256sum /srv/ro/*").stdout
    script = """
wait_for_disk xvda
cat /sys/block/xvda/ro
dd if=/dev/zero of=/dev/xvda bs=4k count=1 conv=fsync 2>/dev/null && exit 1
echo "xvda sum $(dd if=/dev/xvda bs=1M 2>/dev/null | sha256sum | cut -d' ' -f1)"
"""
    guest = Guest(bed, "readonly", script, disks=[f"tap2:vhd:{leaf},xvda,r"])
    try:
        guest.start(create="xl create")
        output = guest.wait().output
        guest.wait_gone()
    finally:
        guest.destroy()
    assert output.startswith("1\n")
    assert sums(output)["xvda"] == tapdisks.checksum(bed, f"vhd:{leaf}", MEGABYTES)
    assert bed.run("sha256sum /srv/ro/*").stdout == before
    bed.run("rm -rf /srv/ro")
