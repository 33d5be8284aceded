# SPDX-License-Identifier: LGPL-2.1-only
"""Xen's own block-tap scripts, unmodified, drive tap-ctl: that of 4.17 (Debian 12) and that of 4.20 (Debian 13)."""

import re

import pytest

from tests.lib import tapdisks
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


# Reboots once, then makes numbers durable, each in a sector of its own, and shows another disk while it has one.
LIFE = """
wait_for_disk xvda
boots=$(dd if=/dev/xvda bs=512 skip=9001 count=1 2>/dev/null | tr -d '\\0')
echo "boot ${boots:-none}"
case $boots in
'')
	echo first | dd of=/dev/xvda bs=512 seek=9001 conv=sync,fsync 2>/dev/null || exit 1
	reboot -f
	sleep 1000
	;;
esac
number=1
while :; do
	echo "number $number" | dd of=/dev/xvda bs=512 seek=$((number * 7)) conv=sync,fsync 2>/dev/null || exit 2
	echo "durable $number"
	number=$((number + 1))
	[ ! -b /dev/xvdb ] || [ "$more" ] || more=$(head -n 1 /dev/xvdb)
	[ -b /dev/xvdb ] || more=
	[ -z "$more" ] || echo "more $more"
	usleep 100000
done
"""
SAVE_SECONDS = 240


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.parametrize("release", [12, 13])
def test_a_guests_life_by_block_tap(beds: Beds, release: int) -> None:
    """It reboots, gets a disk and loses it, is saved and restored, and is destroyed while it writes."""
    bed = beds(release=release)
    bed.run("modprobe blktap")
    leaf, base = tapdisks.make_chain(bed, "/srv/life", 2, 8)
    bed.run("echo spare > /srv/life/more.img && truncate -s 1M /srv/life/more.img")
    unchanged = bed.run(f"sha256sum {base}").stdout
    own, more = (f"format=raw,script=block-tap,vdev={vdev},access=w,target={target}" for vdev, target in (("xvda", f"vhd:{leaf}"), ("xvdb", "aio:/srv/life/more.img")))
    guest = Guest(bed, "life", LIFE, [own], extra='on_reboot = "restart"\n')
    pids = set()

    def at(number: int) -> None:
        """It has made this one durable, by a tapdisk that it did not have before."""
        guest.wait_text(f"^durable {number}$")
        [disk] = tapdisks.served(bed)
        assert disk.args == f"vhd:{leaf}" and disk.pid not in pids
        pids.add(disk.pid)

    def last() -> int:
        return int(re.findall(r"^durable (\d+)\n", guest.console, re.M)[-1])

    try:
        guest.start()
        guest.wait_text("^boot first$")
        at(5)
        bed.run(f"xl block-attach {guest.name} {more}")
        guest.wait_text("^more spare$")
        bed.run(f"xl block-detach {guest.name} xvdb")
        bed.wait_for("[ $(tap-ctl list | wc -l) = 1 ]", 60)
        bed.run(f"xl save {guest.name} /srv/life/save", timeout=SAVE_SECONDS)
        assert tapdisks.leftovers(bed) == ""
        saved = last()
        bed.run("xl restore /srv/life/save", timeout=SAVE_SECONDS)
        at(saved + 5)
        bed.run(f"xl destroy {guest.name}")
        assert tapdisks.leftovers(bed) == ""
        durable = last()
    finally:
        guest.destroy()
    data = tapdisks.read(bed, f"vhd:{leaf}", 7 * durable + 1)
    assert [data[n * 7 * 512 :][:512].rstrip(b"\0") for n in range(1, durable + 1)] == [f"number {n}\n".encode() for n in range(1, durable + 1)]
    assert bed.run(f"sha256sum {base}").stdout == unchanged
    bed.run(f"vhd-util check -n {leaf} -p -b && rm -rf /srv/life")
