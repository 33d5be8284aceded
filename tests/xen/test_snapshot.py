# SPDX-License-Identifier: LGPL-2.1-only
"""A guest that has a snapshot of all its disks, by the old command's name, and each later life of it: all go on with the new leaves."""

import json
import re
import shlex
from dataclasses import dataclass

import pytest

from tests.lib import tapdisks
from tests.lib.guest import Guest
from tests.lib.vm import Bed

MEGABYTES = 8
HOME = "/srv/snap"
# What a path has that a disk's spec, xenstore or a shell might take for its own
ODD = f"{HOME}/a, b:c'd.vhd"
LEAVES = {"xvda": f"{HOME}/1.vhd", "xvdb": ODD}
# Counts on both disks, from what it finds there.
COUNT = """
# what the kernel runs for xl reboot; there is no init that busybox could ask
rm -f /sbin/reboot
printf '#!/bin/sh\\nexec /bin/busybox reboot -f\\n' > /sbin/reboot
chmod 755 /sbin/reboot
wait_for_disk xvda
wait_for_disk xvdb
found() { dd if=/dev/$1 bs=512 skip=9001 count=1 iflag=direct 2>/dev/null | tr -d '\\0'; }
tick=$(found xvda)
# a shell of its own: one that reads for a second at a time loses a word of which half has come
exec 3<&0
while read -r word; do
	case $word in
	reboot) /sbin/reboot ;;
	crash) echo c > /proc/sysrq-trigger ;;
	esac
done <&3 &
echo "found ${tick:-0} $(found xvdb)"
while :; do
	tick=$((tick + 1))
	for disk in xvda xvdb; do
		echo $tick | dd of=/dev/$disk bs=512 seek=9001 conv=sync,fsync 2>/dev/null || exit 1
	done
	echo "tick $tick"
	sleep 1
done
"""
LIFE_SECONDS = 300


@dataclass
class Life:
    """What the console has of all lives of the guest."""

    guest: Guest

    def said(self, pattern: str) -> list[str]:
        """All matches of a line."""
        log = self.guest.bed.get(self.guest.log).decode(errors="replace").replace("\r", "")
        return re.findall(f"^{pattern}$", log, re.M)

    def ticks(self) -> int:
        """The last number that both disks have."""
        return int((self.said(r"tick (\d+)") or ["0"])[-1])

    def goes_on(self) -> int:
        """Wait until it has counted on; its number then."""
        wanted = self.ticks() + 2
        self.guest.bed.wait_for(f"grep -q '^tick {wanted}' {self.guest.log}", LIFE_SECONDS)
        return self.ticks()

    def begins(self, number: int) -> None:
        """Wait for a life's first word, and hold it to what was durable before."""
        before = self.ticks()
        self.guest.bed.wait_for(f"test $(grep -c '^found' {self.guest.log}) = {number}", LIFE_SECONDS)
        found = self.said(r"found (\d+) ?(\d*)")[-1]
        assert int(found[0]) >= before and int(found[1] or 0) in (int(found[0]), int(found[0]) - 1)
        self.goes_on()


def chains(bed: Bed) -> dict[str, list[str]]:
    """The images of each disk, the leaf first, of what its tapdisk has open."""
    return {disk["vdev"]: disk["stats"]["chain"] for disk in json.loads(bed.run("xenblk info snap --json").stdout)}


@pytest.mark.deep
@pytest.mark.slow
def test_each_life_after_a_snapshot_has_the_new_leaves(bed: Bed) -> None:
    odd = shlex.quote(ODD)
    for directory, leaf in (("", "1.vhd"), ("/other", "1.vhd")):
        tapdisks.make_chain(bed, f"{HOME}{directory}", 2, MEGABYTES)
    bed.run(f"mv {HOME}/other/0.vhd {HOME}/base.vhd; rm {HOME}/other/1.vhd; vhd-util snapshot -n {odd} -p {HOME}/base.vhd")
    spec = {"xvda": f"tap2:vhd:{LEAVES['xvda']},xvda,w", "xvdb": f"tap2:vhd:vdev=xvdb,access=w,target={ODD}"}
    guest = Guest(bed, "snap", COUNT, list(spec.values()), extra='on_reboot = "restart"\non_crash = "restart"\n')
    life = Life(guest)
    before = {"xvda": [LEAVES["xvda"], f"{HOME}/0.vhd"], "xvdb": [ODD, f"{HOME}/base.vhd"]}
    try:
        guest.start(create=tapdisks.CREATE)
        life.goes_on()
        assert chains(bed) == before
        listed = json.loads(bed.run("xenblk ls snap --json").stdout)
        assert [(disk["vdev"], disk["image"], disk["transport"]) for disk in listed] == [
            (vdev, f"vhd:{leaf}", "blktap") for vdev, leaf in LEAVES.items()
        ]

        made = bed.run("xmsnap snap --name=s").stdout.splitlines()
        kept = {vdev: leaf.removesuffix(".vhd") + ".s.vhd" for vdev, leaf in LEAVES.items()}
        assert made[:2] == [f"{vdev}: {parent}" for vdev, parent in kept.items()]
        assert re.fullmatch(r"requests waited at most [\d.]+ ms", made[2])
        now = {vdev: [images[0], kept[vdev], images[1]] for vdev, images in before.items()}
        assert chains(bed) == now
        sums = f"sha256sum {' '.join(map(shlex.quote, [*kept.values(), f'{HOME}/0.vhd', f'{HOME}/base.vhd']))}"
        unchanged = bed.run(sums).stdout
        life.goes_on()
        shown = bed.run("xenblk chain snap xvdb").stdout
        assert [line for line in now["xvdb"] if line not in shown] == []

        domid = bed.run("xl domid snap").stdout
        for number, end in enumerate(("say reboot", "xl reboot snap", "say crash"), 2):
            if end.startswith("say "):
                guest.say(end.removeprefix("say "))
            else:
                bed.run(end)
            life.begins(number)
            assert chains(bed) == now, end
        assert bed.run("xl domid snap").stdout != domid

        bed.run("xl save snap /srv/snap/saved", timeout=240)
        assert tapdisks.served(bed) == []
        bed.run("xl restore /srv/snap/saved", timeout=240)
        life.goes_on()
        assert chains(bed) == now
        assert len(life.said("found .*")) == 4, "it was restored, not started"

        # one disk alone, of a guest that was restored
        bed.run("xenblk snapshot snap xvdb --name=t")
        now["xvdb"].insert(1, kept["xvdb"].replace(".s.", ".t."))
        assert chains(bed) == now
        life.goes_on()
        bed.run("xl destroy snap")
        assert tapdisks.leftovers(bed) == ""
        bed.run(f"xl create {guest.config_path}", timeout=240)
        life.begins(5)
        assert chains(bed) == now
        bed.run("xl destroy snap")
        assert bed.run(sums).stdout == unchanged
    finally:
        guest.destroy()
    for leaf in map(shlex.quote, LEAVES.values()):
        bed.run(f"xenblk check {leaf} && vhd-util check -n {leaf} -p -b")
    bed.run(f"rm -rf {HOME}")
