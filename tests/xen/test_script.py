# SPDX-License-Identifier: LGPL-2.1-only
"""block-xenblk as libxl calls it, and as libxl kills it: at any moment, and that process alone."""

import time
from collections.abc import Iterator

import pytest

from tests.lib import hotplug, nfs, tapdisks
from tests.lib.beds import Beds
from tests.lib.guest import CREATE_SECONDS, Guest
from tests.lib.hotplug import NODE
from tests.lib.vm import Bed

IMAGE = "/srv/script.vhd"


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """A bed with nothing of tapdisk in it, before and after, and an image."""
    with tapdisks.clean(beds()) as bed:
        bed.run(f"rm -f {IMAGE}; vhd-util create -n {IMAGE} -s 16")
        yield bed
        bed.run(f"xenstore-rm {NODE.rpartition('/')[0]}; rm -f {IMAGE}", check=False)


def gone(bed: Bed, seconds: float = 30) -> None:
    """Waits until nothing of tapdisk runs or is held."""
    bed.wait_for(
        'test -z "$(tap-ctl list)" && ! pgrep tapdisk && ! pgrep -x tap-ctl && ! ls /sys/class/blktap2/* 2>&1',
        seconds,
        interval=0.5,
    )


@pytest.mark.deep
def test_a_script_killed_at_any_moment_leaves_nothing(bed: Bed) -> None:
    """An add takes about a second here: the moments are spread over all of it."""
    bed.run("modprobe blktap")
    took = []
    for _ in range(2):
        hotplug.write_node(bed, f"vhd:{IMAGE}")
        start = time.monotonic()
        bed.run(hotplug.command("add"))
        took.append(time.monotonic() - start)
        bed.run(hotplug.command("remove"))
    # the first one may have had to read all of it from the disk
    whole = min(took)
    finished = 0
    for step in range(1, 13):
        hotplug.write_node(bed, f"vhd:{IMAGE}")
        delay = f"{whole * step / 12:.2f}"
        # the agent's shell becomes the script, so the kill hits the script and nothing else
        bed.run(f"({hotplug.command('add')}) & pid=$!; sleep {delay}; kill -9 $pid; wait $pid; true")
        connected = bed.run(f"xenstore-read {NODE}/hotplug-status", check=False).stdout == "connected\n"
        finished += connected
        if not connected:
            gone(bed)
        bed.run(hotplug.command("remove"))
        gone(bed)
        # and the image is free
        bed.run(f"tap-ctl create -a vhd:{IMAGE} && tap-ctl destroy -p $(pgrep -x tapdisk) -m 0")
    assert finished < 12, "no kill came before the end"


def test_an_image_that_hangs_fails_in_time_with_the_reason_and_is_let_go_later(bed: Bed) -> None:
    """A suspended device-mapper target, as a file server that is gone: tapdisk can't even be killed."""
    bed.run("modprobe -a dm_mod loop blktap; truncate -s 32M /srv/hang.img && losetup /dev/loop6 /srv/hang.img")
    bed.run("echo 0 65536 linear /dev/loop6 0 | dmsetup create hang")
    device = "/dev/dm-" + bed.run("dmsetup info -c --noheadings -o minor hang").stdout.strip()
    bed.run("dmsetup suspend hang")
    try:
        hotplug.write_node(bed, f"vhd:{device}")
        start = time.monotonic()
        assert bed.run(hotplug.command("add"), check=False).status != 0
        assert time.monotonic() - start < 40
        error = bed.run(f"xenstore-read {NODE}/hotplug-error").stdout
        assert error.startswith(f"vhd:{device}: not open after")
    finally:
        bed.run("dmsetup resume hang")
    gone(bed)
    bed.run("dmsetup remove hang && losetup -d /dev/loop6 && rm /srv/hang.img")


@pytest.mark.deep
@pytest.mark.slow
def test_a_script_that_libxl_kills_after_40_s_leaves_nothing(bed: Bed) -> None:
    """It waits for Xen's lock with the image open, until libxl has had enough of it."""
    guest = Guest(bed, "killed", "exit 0", disks=[f"format=raw,script=block-xenblk,vdev=xvda,target=vhd:{IMAGE}"])
    guest.prepare()
    bed.run("mkdir -p /run/xen-hotplug")
    holder = bed.popen("exec flock -x /run/xen-hotplug/block sleep 300")
    try:
        creation = bed.popen(f"xl create {guest.config_path}")
        bed.wait_for("pgrep -x tapdisk", CREATE_SECONDS)
        result = creation.wait(200, check=False)
        assert result.status != 0
        assert "killed" in result.output or "timed out" in result.output
        gone(bed, 180)
    finally:
        holder.kill()
        guest.destroy()
    assert bed.run("pgrep -f '[b]lock-xenblk'", check=False).stdout == ""


def test_add_and_remove_may_be_repeated(bed: Bed) -> None:
    """Twice the same is once, and pygrub has a disk added, removed and added."""
    for _ in range(2):
        hotplug.write_node(bed, f"vhd:{IMAGE}")
        bed.run(hotplug.command("add"))
        device = bed.run(f"xenstore-read {NODE}/physical-device-path").stdout
        bed.run(hotplug.command("add"))
        assert bed.run(f"xenstore-read {NODE}/physical-device-path").stdout == device
        assert len(tapdisks.served(bed)) == 1
        bed.run(hotplug.command("remove"))
        bed.run(hotplug.command("remove"))
        assert tapdisks.served(bed) == []


def test_a_block_device_that_another_backend_has_is_refused(bed: Bed) -> None:
    """Whether or not QEMU serves any disk."""
    bed.run("modprobe loop; truncate -s 8M /srv/dev.img && losetup /dev/loop6 /srv/dev.img")
    other = "backend/vbd/78/51728"
    try:
        bed.run(f"xenstore-write {other}/params /dev/loop6 {other}/mode w {other}/dev xvdb")
        bed.run("xenstore-write /local/domain/78/name neighbour")
        for prepare in ("xenstore-rm backend/qdisk", "xenstore-write backend/qdisk ''"):
            bed.run(prepare, check=False)
            error = hotplug.refused(bed, "aio:/dev/loop6", "r")
            assert error == "aio:/dev/loop6: in use by guest neighbour (xvdb); end that use first"
    finally:
        bed.run("xenstore-rm backend/vbd/78; xenstore-rm /local/domain/78; losetup -d /dev/loop6; rm /srv/dev.img")


def test_a_block_device_that_a_tapdisk_has_is_refused_by_another_name(bed: Bed) -> None:
    """The lock is that of its node, of which there may be two."""
    bed.run("modprobe loop; truncate -s 8M /srv/dev.img && losetup /dev/loop6 /srv/dev.img")
    bed.run("mknod /srv/alias b $(stat -c '0x%t 0x%T' /dev/loop6)")
    other = "backend/vbd/78/51728"
    try:
        assert hotplug.add(bed, "aio:/dev/loop6", "w").status == 0
        for mode in "wr":
            error = hotplug.refused(bed, "aio:/srv/alias", mode, other)
            assert error == f"aio:/srv/alias: in use by the disk {NODE}; end that use first"
        hotplug.remove(bed)
        assert hotplug.add(bed, "aio:/dev/loop6", "r").status == 0
        assert hotplug.add(bed, "aio:/srv/alias", "r", other).status == 0
        hotplug.remove(bed, other)
        hotplug.remove(bed)
    finally:
        bed.run("losetup -d /dev/loop6; rm /srv/dev.img /srv/alias")


def test_a_file_server_that_is_away_holds_up_no_disk_of_another(bed: Bed) -> None:
    """A guest's disk by QEMU lies there."""

    def seconds() -> float:
        """That an add takes; it is removed again."""
        began = float(bed.run("cut -d' ' -f1 /proc/uptime").stdout)
        assert hotplug.add(bed, f"vhd:{IMAGE}").status == 0
        ended = float(bed.run("cut -d' ' -f1 /proc/uptime").stdout)
        hotplug.remove(bed)
        return ended - began

    with nfs.soft_mount(bed):
        bed.run(f"truncate -s 8M {nfs.MOUNT}/q.img")
        bed.run(f"xenstore-write backend/qdisk/78/51728/params aio:{nfs.MOUNT}/q.img backend/qdisk/78/51728/mode w")
        try:
            usual = seconds()
            with nfs.away(bed):
                # what is known of its files is not believed for longer; the mount itself would wait 9 s
                bed.run("sleep 5")
                late = seconds()
        finally:
            bed.run("xenstore-rm backend/qdisk/78")
    print(f"{usual:.1f} s, and {late:.1f} s while it is away")
    assert late - usual < 7
