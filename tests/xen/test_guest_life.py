# SPDX-License-Identifier: LGPL-2.1-only
"""The lives of guests with tap2 disks: reboot, a sudden end under load, many disks, dom0 as the frontend, pygrub."""

import re
import time

import pytest

from tests.lib import tapdisks
from tests.lib.guest import DISK_AND_EXT4, HOME, KERNEL_ARGUMENTS, Guest
from tests.lib.vm import Bed

MEGABYTES = 8
LOADED = 24
# Of dom0 as a frontend; libxl's own for a bootloader is xvda.
DOM0_DISK = "xvdj"


REBOOT = """
wait_for_disk xvda
wait_for_disk xvdb
boots=$(dd if=/dev/xvda bs=512 skip=9001 count=1 2>/dev/null | tr -d '\\0')
echo "boot ${boots:-none}"
case $boots in
'')
	dd if=/dev/urandom of=/dev/xvdb bs=64k count=20 seek=70 conv=fsync 2>/dev/null || exit 1
	echo first | dd of=/dev/xvda bs=512 seek=9001 conv=sync,fsync 2>/dev/null || exit 2
	echo "before $(sha256sum < /dev/xvdb)"
	read -r told
	reboot -f
	sleep 1000
	;;
esac
echo "after $(sha256sum < /dev/xvdb)"
read -r told
"""


@pytest.mark.deep
def test_a_guest_that_reboots_finds_its_disks_as_it_left_them(bed: Bed) -> None:
    leaf, base = tapdisks.make_chain(bed, "/srv/reboot", 2, MEGABYTES)
    bed.run(f"truncate -s {MEGABYTES}M /srv/reboot/raw.img")
    disks = [f"tap2:vhd:{leaf},xvda,w", "tap2:aio:/srv/reboot/raw.img,xvdb,w"]
    guest = Guest(bed, "reboots", REBOOT, disks, extra='on_reboot = "restart"\n')
    try:
        guest.start(create=tapdisks.CREATE)
        before = guest.wait_text(r"^before ([0-9a-f]{64})  -$")[1]
        first = {disk.pid for disk in tapdisks.served(bed)}
        domid = bed.run(f"xl domid {guest.name}").stdout
        guest.say("reboot")
        after = guest.wait_text(r"^after ([0-9a-f]{64})  -$")[1]
        assert bed.run(f"xl domid {guest.name}").stdout != domid
        second = {disk.pid for disk in tapdisks.served(bed)}
        guest.say("end")
        guest.wait()
        guest.wait_gone()
    finally:
        guest.destroy()
    assert re.findall(r"^boot (\S+)$", guest.console, re.M) == ["none", "first"]
    assert before == after == tapdisks.checksum(bed, "aio:/srv/reboot/raw.img", MEGABYTES)
    # The script let go of the disks and opened them anew.
    assert len(first) == len(second) == 2 and not first & second
    bed.run(f"vhd-util check -n {leaf} -p -b && rm -rf /srv/reboot")


# Each disk: writers that never stop, past its first 8 MiB, and one that says what it has made durable, a sector of its
# own for each number.
LOAD = """
for disk in xvda xvdb; do
	wait_for_disk $disk
	for writer in 0 1 2 3; do
		while dd if=/dev/zero of=/dev/$disk bs=64k count=56 seek=$((128 + 56 * writer)) oflag=direct 2>/dev/null; do
			:
		done &
	done
done
number=1
while :; do
	for disk in xvda xvdb; do
		echo "number $number" | dd of=/dev/$disk bs=512 seek=$((number * 7)) conv=sync,fsync 2>/dev/null || exit 1
		echo "durable $disk $number"
	done
	number=$((number + 1))
done
"""
DURABLE = 10


@pytest.mark.slow
def test_a_destroyed_guest_leaves_nothing_but_what_it_made_durable(bed: Bed) -> None:
    leaf, base = tapdisks.make_chain(bed, "/srv/load", 2, LOADED)
    bed.run(f"truncate -s {LOADED}M /srv/load/raw.img")
    specs = {"xvda": f"vhd:{leaf}", "xvdb": "aio:/srv/load/raw.img"}
    before = bed.run(f"sha256sum {base}").stdout
    guest = Guest(bed, "load", LOAD, [f"tap2:{spec},{vdev},w" for vdev, spec in specs.items()])
    try:
        guest.start(create=tapdisks.CREATE)
        guest.wait_text(f"^durable xvdb {DURABLE}$")
        served = tapdisks.served(bed)
        assert len(served) == 2
        for disk in served:
            bed.wait_for(f"awk '{{ exit $1 + $2 < 2 }}' /sys/block/tapdev{disk.minor}/inflight", 60, interval=0.0)
        begun = time.monotonic()
        bed.run(f"xl destroy {guest.name}")
        took = time.monotonic() - begun
        assert tapdisks.leftovers(bed) == ""
        assert bed.run(f"xl domid {guest.name}", check=False).status != 0
        console = guest.console
    finally:
        guest.destroy()
    assert took < 60, "libxl gives a script 40 s"
    for vdev, spec in specs.items():
        numbers = [int(number) for number in re.findall(rf"^durable {vdev} (\d+)\n", console, re.M)]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= DURABLE
        data = tapdisks.read(bed, spec, 7 * len(numbers) + 1)
        for number in numbers:
            sector = data[number * 7 * 512 :][:512]
            assert sector.rstrip(b"\0") == f"number {number}\n".encode()
    assert bed.run(f"sha256sum {base}").stdout == before
    bed.run(f"vhd-util check -n {leaf} -p -b && rm -rf /srv/load")


# Says for each disk whether it is read-only, and its sum; what is to be read-only is written to in vain.
SHOW = """
show() {
	wait_for_disk $1
	echo "$1 ro $(cat /sys/block/$1/ro)"
	if [ $2 = r ]; then
		dd if=/dev/zero of=/dev/$1 bs=4k count=1 conv=fsync 2>/dev/null && exit 1
	else
		dd if=/dev/urandom of=/dev/$1 bs=64k count=3 seek=70 conv=fsync 2>/dev/null || exit 2
	fi
	echo 3 > /proc/sys/vm/drop_caches
	echo "$1 sum $(sha256sum < /dev/$1 | cut -d' ' -f1)"
}
"""


def shown(guest: Guest, what: str) -> dict[str, str]:
    """What the guest said of its disks."""
    return dict(re.findall(rf"^(xvd[a-z]) {what} (\S+)$", guest.console, re.M))


@pytest.mark.deep
@pytest.mark.slow
def test_five_disks_keep_their_modes_and_two_guests_share_what_is_read_only(bed: Bed) -> None:
    own, shared = (tapdisks.make_chain(bed, f"/srv/many/{name}", 2, MEGABYTES) for name in ("own", "shared"))
    bed.run(f"cd /srv/many && truncate -s {MEGABYTES}M w.img && head -c {MEGABYTES}M /dev/urandom > r.img")
    bed.run(f"vhd-util create -n /srv/many/fixed.vhd -s {MEGABYTES} -r")
    fixed = "/srv/many/fixed.vhd"
    writable = {"xvda": f"vhd:{own[0]}", "xvdb": "aio:/srv/many/w.img", "xvde": f"vhd:{fixed}"}
    readonly = {"xvdc": "aio:/srv/many/r.img", "xvdd": f"vhd:{shared[0]}"}
    specs = {**writable, **readonly}
    modes = {vdev: "w" if vdev in writable else "r" for vdev in sorted(specs)}
    unchanged = f"sha256sum /srv/many/r.img {' '.join(shared)} {own[1]}"
    before = bed.run(unchanged).stdout

    shows = "; ".join(f"show {vdev} {mode}" for vdev, mode in modes.items())
    disks = [f"tap2:{specs[vdev]},{vdev},{mode}" for vdev, mode in modes.items()]
    one = Guest(bed, "many", f"{SHOW}{shows}\necho ready; sleep 1000", disks)
    two = Guest(bed, "reader", SHOW + "show xvdc r; show xvdd r", [d for d in disks if d.endswith(",r")])
    try:
        one.start(create=tapdisks.CREATE)
        one.wait_text("^ready$")
        check_modes(bed, {specs[vdev]: mode for vdev, mode in modes.items()})
        two.start(create=tapdisks.CREATE)
        two.wait()
        two.wait_gone()
        assert {disk.args for disk in tapdisks.served(bed)} == set(specs.values())
        bed.run(f"xl destroy {one.name}")
    finally:
        one.destroy()
        two.destroy()
    sums = {vdev: tapdisks.checksum(bed, spec, MEGABYTES) for vdev, spec in specs.items()}
    assert shown(one, "ro") == {vdev: "1" if mode == "r" else "0" for vdev, mode in modes.items()}
    assert shown(one, "sum") == sums
    assert shown(two, "ro") == {vdev: "1" for vdev in readonly}
    assert shown(two, "sum") == {vdev: sums[vdev] for vdev in readonly}
    assert bed.run(unchanged).stdout == before
    bed.run(f"for leaf in {own[0]} {shared[0]} {fixed}; do vhd-util check -n $leaf -p -b || exit; done")
    bed.run("rm -rf /srv/many")


def check_modes(bed: Bed, modes: dict[str, str]) -> None:
    """Holds tapdisk and the device of each spec to its mode: dom0 can't open for writing what is read-only."""
    disks = {f"{disk['type']}:{path}": disk for path, disk in tapdisks.devices(bed).items()}
    assert {spec: "r" if disk["readonly"] else "w" for spec, disk in disks.items()} == modes
    for spec, mode in modes.items():
        minor = disks[spec]["minor"]
        assert bed.get(f"/sys/block/tapdev{minor}/ro") == (b"1\n" if mode == "r" else b"0\n")
        result = bed.run(f": 1<> /dev/xen/blktap-2/tapdev{minor}", check=False)
        assert (result.status == 0) == (mode == "w"), result.output
        assert mode == "w" or "Read-only file system" in result.output


AFTER = """
wait_for_disk xvda
echo "xvda sum $(sha256sum < /dev/xvda | cut -d' ' -f1)"
dd if=/dev/xvda bs=512 skip=9001 count=1 2>/dev/null | tr -d '\\0'
"""


@pytest.mark.deep
@pytest.mark.slow
def test_dom0_uses_a_disk_as_a_frontend_before_the_guest_does(bed: Bed) -> None:
    """As a bootloader does: add, remove, add of the same image."""
    leaf, base = tapdisks.make_chain(bed, "/srv/dom0", 2, MEGABYTES)
    spec = f"format=raw,script=block-xenblk,vdev={DOM0_DISK},access=w,target=vhd:{leaf}"
    before = tapdisks.checksum(bed, f"vhd:{leaf}", MEGABYTES)
    bed.run("modprobe xen-blkfront")
    guest = Guest(bed, "after", AFTER, [f"tap2:vhd:{leaf},xvda,w"])
    try:
        bed.run(f"xl block-attach 0 '{spec}'")
        bed.wait_for(f"test -b /dev/{DOM0_DISK}", 60)
        assert bed.run(f"sha256sum < /dev/{DOM0_DISK}").stdout.split()[0] == before
        bed.run(f"echo from dom0 | dd of=/dev/{DOM0_DISK} bs=512 seek=9001 conv=sync,fsync 2>/dev/null")
        bed.run(f"xl block-detach 0 {DOM0_DISK}")
        assert tapdisks.leftovers(bed) == ""
        after = tapdisks.checksum(bed, f"vhd:{leaf}", MEGABYTES)
        assert after != before
        guest.start(create=tapdisks.CREATE)
        guest.wait()
        guest.wait_gone()
    finally:
        guest.destroy()
        bed.run(f"xl block-detach 0 {DOM0_DISK} 2>/dev/null", check=False)
    assert shown(guest, "sum") == {"xvda": after}
    assert "\nfrom dom0\n" in guest.console
    bed.run("rm -rf /srv/dom0")


GIVEN = ("kernel", "ramdisk", "extra")
MENU = f"""default 0
timeout 1
title bed
	kernel /boot/vmlinuz {KERNEL_ARGUMENTS}
	initrd /boot/initrd
"""


@pytest.mark.deep
@pytest.mark.slow
def test_pygrub_boots_a_guest_from_the_file_system_on_its_chain(bed: Bed) -> None:
    base, leaf = "/srv/grub/base.vhd", "/srv/grub/leaf.vhd"
    script = "wait_for_disk xvda\nmount -t ext4 /dev/xvda /mnt && echo grown > /mnt/guest && cat /mnt/boot/menu.lst"
    script += "\nstat=$?; umount /mnt; exit $stat"
    guest = BootedGuest(bed, "grub", script, [f"tap2:vhd:{leaf},xvda,w"], modules=DISK_AND_EXT4)
    guest.prepare()
    bed.run(f"mkdir -p /srv/grub && vhd-util create -n {base} -s 64")
    device = tapdisks.create(bed, f"vhd:{base}")
    try:
        bed.run(f"mkfs.ext4 -q {device} && mount {device} /mnt && mkdir -p /mnt/boot/grub")
        bed.put("/mnt/boot/grub/menu.lst", MENU.encode())
        bed.run(f"cp {HOME}/vmlinuz /mnt/boot/vmlinuz; cp {HOME}/{guest.name}.initrd /mnt/boot/initrd")
        bed.run("ln /mnt/boot/grub/menu.lst /mnt/boot/menu.lst && umount /mnt")
    finally:
        bed.run("umount /mnt 2>/dev/null", check=False)
        tapdisks.destroy(bed, device)
    bed.run(f"vhd-util snapshot -n {leaf} -p {base}; modprobe xen-blkfront")
    before = bed.run(f"sha256sum {base}").stdout
    try:
        guest.start(create=tapdisks.CREATE)
        assert guest.wait().output == MENU
        guest.wait_gone()
    finally:
        guest.destroy()
    assert bed.run(f"sha256sum {base}").stdout == before
    device = tapdisks.create(bed, f"vhd:{leaf}")
    try:
        assert bed.run(f"e2fsck -fn {device} >&2 && mount -o ro {device} /mnt && cat /mnt/guest").stdout == "grown\n"
    finally:
        bed.run("umount /mnt 2>/dev/null", check=False)
        tapdisks.destroy(bed, device)
    bed.run("rm -rf /srv/grub")


class BootedGuest(Guest):
    """A guest whose kernel pygrub takes from its first disk."""

    @property
    def config_text(self) -> str:
        lines = [line for line in super().config_text.splitlines() if line.split(" ")[0] not in GIVEN]
        return "\n".join([*lines, 'bootloader = "pygrub"\n'])
