# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk attach, info and detach, on a guest that runs."""

import json
import re
from collections.abc import Iterator

import pytest

from tests.lib import tapdisks
from tests.lib.guest import Guest
from tests.lib.vm import Bed

MEGABYTES = 8
# Attaches by xenblk's own code in a process that has a child which has ended: libxl must not reap that.
WITH_A_CHILD = """
import subprocess, sys, time
sys.path.insert(0, "/usr/lib/xenblk")
from xenblk import hotplug
child = subprocess.Popen(["sh", "-c", "exit 7"])
time.sleep(1)
hotplug.attach("hot", ["tap2:vhd:/srv/more/1.vhd,xvdb,w"], as_json=True)
sys.exit(child.wait())
"""
SCRIPT = """
wait_for_disk xvda
echo started
while read -r word; do
	case $word in
	write)
		wait_for_disk xvdb
		echo "hotplug" | dd of=/dev/xvdb bs=512 seek=77 conv=sync,fsync 2>/dev/null || exit 1
		;;
	gone)
		while [ -b /dev/xvdb ] || [ -e /sys/bus/xen/devices/vbd-51728 ]; do usleep 100000; done
		;;
	end) exit 0 ;;
	esac
	echo "done $word"
done
"""


@pytest.fixture
def guest(bed: Bed) -> Iterator[Guest]:
    """Its xvda is a chain of two in /srv/hot; /srv/more has another."""
    root = tapdisks.make_chain(bed, "/srv/hot", 2, MEGABYTES)[0]
    tapdisks.make_chain(bed, "/srv/more", 2, MEGABYTES)
    guest = Guest(bed, "hot", SCRIPT, [f"tap2:vhd:{root},xvda,w"])
    try:
        guest.start(create=tapdisks.CREATE)
        guest.wait_text("^started$")
        yield guest
        guest.say("end")
        guest.wait()
        guest.wait_gone()
    finally:
        guest.destroy()
        bed.run("rm -rf /srv/hot /srv/more")


def tell(guest: Guest, word: str) -> None:
    done = len(re.findall(f"^done {word}$", guest.console, re.M))
    guest.say(word)
    guest.wait_text(rf"(?s)(^done {word}$.*){{{done + 1}}}")


def refused(bed: Bed, command: str) -> str:
    """The one line of a command that fails and changes no disk of any guest."""
    before = tapdisks.served(bed), bed.run("xl block-list hot").stdout
    result = bed.run(f"xenblk {command}", check=False, timeout=120)
    assert (result.status, result.stdout) == (1, "") and result.stderr.count("\n") == 1
    assert (tapdisks.served(bed), bed.run("xl block-list hot").stdout) == before
    return result.stderr.removeprefix("xenblk: ").rstrip("\n")


def test_a_disk_is_attached_shown_and_detached(bed: Bed, guest: Guest) -> None:
    text = bed.run("xenblk attach --json hot tap2:vhd:/srv/more/1.vhd xvdb w").stdout
    made = json.loads(text)
    disk = next(disk for disk in tapdisks.served(bed) if disk.args == "vhd:/srv/more/1.vhd")
    assert (made["guest"], made["vdev"], made["state"], made["depth"]) == ("hot", "xvdb", "running", 2)
    assert (made["pid"], made["minor"], made["device"]) == (disk.pid, disk.minor, disk.device)
    tell(guest, "write")

    shown = {one["vdev"]: one for one in json.loads(bed.run("xenblk info hot --json").stdout)}
    assert sorted(shown) == ["xvda", "xvdb"]
    assert {key: shown["xvdb"][key] for key in made} == made
    assert shown["xvdb"]["stats"]["chain"] == ["/srv/more/1.vhd", "/srv/more/0.vhd"]
    assert shown["xvdb"]["stats"]["write"]["requests"] >= 1
    page = bed.run("xenblk info hot xvdb").stdout.splitlines()
    assert page[0] == "xvdb"
    assert "    image:     vhd:/srv/more/1.vhd" in page and "    parent:    /srv/more/0.vhd" in page

    assert refused(bed, "attach hot tap2:vhd:/srv/more/1.vhd,xvdb,w").startswith("guest hot: has a disk xvdb already; ")
    bed.run("xl pause hot")
    assert refused(bed, "detach hot xvdb").startswith("guest hot: xvdb not detached: ")
    bed.run("xl unpause hot")
    state = "/local/domain/0/backend/vbd/$(xl domid hot)/51728/state"
    bed.wait_for(f"test $(xenstore-read {state}) = 6", 60)
    assert bed.run("xenblk detach hot xvdb").stdout == f"hot xvdb: vhd:/srv/more/1.vhd by {made['device']}\n"
    assert [disk.args for disk in tapdisks.served(bed)] == ["vhd:/srv/hot/1.vhd"]
    assert tapdisks.read(bed, "vhd:/srv/more/1.vhd", 78)[77 * 512 :].startswith(b"hotplug\n")

    # again, and taken from under it
    tell(guest, "gone")
    again = bed.run("python3 -I -", stdin=WITH_A_CHILD.encode(), check=False, timeout=120)
    assert again.status == 7 and json.loads(again.stdout)["vdev"] == "xvdb", again.output
    tell(guest, "write")
    bed.run("xl pause hot; xenblk detach -f hot xvdb; xl unpause hot", timeout=120)
    assert [disk.args for disk in tapdisks.served(bed)] == ["vhd:/srv/hot/1.vhd"]


@pytest.mark.deep
def test_what_can_not_be_attached_is_one_line_and_leaves_nothing(bed: Bed, guest: Guest) -> None:
    assert refused(bed, "attach nobody tap2:vhd:/srv/more/1.vhd,xvdb,w") == (
        "guest nobody: there is none of this name or domid; xl list shows all"
    )
    assert "/srv/none.vhd" in refused(bed, "attach hot tap2:vhd:/srv/none.vhd,xvdb,w")
    assert "not understood by libxl" in refused(bed, "attach hot tap2:vhd:/srv/more/1.vhd,xvdb,w,nonsense=1")
    assert "tapdisk has no part in it" in refused(bed, "attach hot phy:/dev/vda,xvdb,r")
    assert "a driver domain serves it" in refused(bed, "attach hot tap2:vhd:/srv/more/1.vhd,xvdb,w,backend=other")
    # the script's own word, after libxl has begun
    assert refused(bed, "attach hot tap2:vhd:/srv/hot/1.vhd,xvdb,w").startswith(
        "guest hot: xvdb not attached: vhd:/srv/hot/1.vhd: in use by guest hot (xvda); "
    )
    assert "no disk xvdz" in refused(bed, "detach hot xvdz")
    assert refused(bed, "info nobody").startswith("guest nobody: ")
    # and so the next one works
    tell(guest, "gone")
    bed.run("xenblk attach hot tap2:vhd:/srv/more/1.vhd,xvdb,w")
    tell(guest, "write")
    bed.run("xenblk detach hot xvdb")
