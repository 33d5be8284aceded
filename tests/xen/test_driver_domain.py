# SPDX-License-Identifier: LGPL-2.1-only
"""A driver domain: `xl devd` in a guest runs our script there, and another domain has a disk from it."""

import hashlib
import re
import secrets

import pytest

from tests.lib import tapdisks
from tests.lib.guest import Guest
from tests.lib.vm import Bed

MEGABYTES = 8
SECTOR = 512
PLACES = (0, 5001, 12007)
"""Of the sectors that dom0, as the frontend, writes."""
MODULES = ("xen-blkfront", "crc32c_generic", "ext4", "overlay")
VDEV = "xvdq"

# The bed's own root, as it was, with what the guest writes in memory; its images are on a disk of its own.
DRIVER = f"""
wait_for_disk xvda; wait_for_disk xvdb
mkdir -p /ro /rw /root
mount -t ext4 -o ro,noload /dev/xvda /ro || exit 2
mount -t tmpfs tmpfs /rw && mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work overlay /root || exit 3
for dir in proc sys dev; do mount -o bind /$dir /root/$dir; done
mount -t tmpfs tmpfs /root/run
mkdir -p /root/run/lock /root/run/xen
mount -t ext4 /dev/xvdb /root/srv || exit 4
ln -sfn /proc/self/fd /dev/fd
inside() {{ chroot /root /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }}
inside modprobe -a xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xen-blkback blktap || exit 5
inside xl devd || exit 6
echo "serves"
read -r line
inside tap-ctl list 2>&1
inside xenblk gc --settle=0 2>&1 && echo "nothing left over"
echo "served"
read -r line
tries=0
until [ -z "$(inside tap-ctl list)" ]; do
	tries=$((tries + 1))
	[ $tries -lt 240 ] || {{ inside tap-ctl list; exit 7; }}
	usleep 500000
done
inside vhd-util check -n /srv/leaf.vhd -p -b || exit 8
for place in {" ".join(map(str, PLACES))}; do
	echo "sector $place $(inside vhd-util read -n /srv/leaf.vhd -r $place | sha256sum | cut -d' ' -f1)"
done
"""


@pytest.mark.deep
@pytest.mark.slow
def test_a_disk_of_a_driver_domain_is_served_there(bed: Bed) -> None:
    bed.run(
        f"mkdir -p /srv/driver && cd /srv/driver && truncate -s 64M images && mkfs.ext4 -q images && mount -o loop images /mnt && "
        f"vhd-util create -n /mnt/base.vhd -s {MEGABYTES} && vhd-util snapshot -n /mnt/leaf.vhd -p /mnt/base.vhd && umount /mnt"
    )
    # all that the bed's root has is where another can read it without a journal
    root = bed.run("fsfreeze -f / && fsfreeze -u /; losetup -r -f --show /dev/vda").stdout.strip()
    disks = [f"phy:{root},xvda,r", "tap2:aio:/srv/driver/images,xvdb,w"]
    driver = Guest(bed, "driver", DRIVER, disks, memory=512, extra="driver_domain = 1\n", modules=MODULES)
    spec = f"format=raw,vdev={VDEV},access=w,script=block-xenblk,backend=driver,target=vhd:/srv/leaf.vhd"
    written = {place: secrets.token_bytes(SECTOR) for place in PLACES}
    try:
        driver.start()
        driver.wait_text("^serves$")
        before = tapdisks.served(bed)
        bed.run("modprobe xen-blkfront")
        bed.run(f"xl block-attach 0 '{spec}'", timeout=120)
        bed.wait_for(f"test -b /dev/{VDEV}", 120)
        for place, data in written.items():
            bed.run(f"dd of=/dev/{VDEV} bs={SECTOR} seek={place} oflag=direct 2>/dev/null", stdin=data)
        for place, data in written.items():
            command = f"dd if=/dev/{VDEV} bs={SECTOR} skip={place} count=1 iflag=direct 2>/dev/null | sha256sum"
            assert bed.run(command).stdout.split()[0] == hashlib.sha256(data).hexdigest()
        # none of it is here
        assert tapdisks.served(bed) == before
        driver.say("look")
        driver.wait_text("^served$")
        # libxl waits 10 s for what the driver domain does, which may be done later
        bed.run(f"xl block-detach 0 {VDEV}", timeout=120, check=False)
        bed.wait_for(f"test $(xl block-list 0 | wc -l) -le 1 || {{ xl block-detach 0 {VDEV}; false; }}", 120)
        driver.say("end")
        ended = driver.wait().output
        driver.wait_gone()
    finally:
        bed.run(f"xl block-detach 0 {VDEV} 2>/dev/null", check=False)
        driver.destroy()
        bed.run(f"losetup -d {root}; rm -rf /srv/driver", check=False)
    assert re.search(r"^ *\d+ +0 +0 +vhd /srv/leaf.vhd$", ended, re.M)
    assert re.search(r"vhd /srv/leaf.vhd\nnothing left over\n", ended), "xenblk gc, while the disk is there"
    for place, data in written.items():
        assert f"sector {place} {hashlib.sha256(data).hexdigest()}\n" in ended
