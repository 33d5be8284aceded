# SPDX-License-Identifier: LGPL-2.1-only
"""One writer or only readers for an image, whoever they are and by whatever name; the refusal names the guest."""

from collections.abc import Iterator

import pytest

from tests.lib import hotplug, tapdisks
from tests.lib.beds import Beds
from tests.lib.guest import Guest
from tests.lib.vm import Bed

HOME = "/srv/sharing"
CREATE = "xl create"
IDLE = "wait_for_disk xvda; echo up; while true; do sleep 100; done"


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """A bed with nothing of tapdisk in it, before and after."""
    with tapdisks.clean(beds()) as bed:
        yield bed
        bed.run(f"rm -rf {HOME}")


@pytest.fixture
def guests(bed: Bed) -> Iterator[list[Guest]]:
    """Two guests on images of their own.

    ours: xvda writes the leaf 1.vhd of a chain over 0.vhd, xvdb reads read.img. theirs: xvda is QEMU's, xvdb a loop
    device's.
    """
    tapdisks.make_chain(bed, HOME, 2, 16)
    bed.run(f"cd {HOME} && truncate -s 16M read.img qemu.img file.img")
    # with something in the leaf: the snapshot of an empty child is one of its parent
    device = tapdisks.create(bed, f"vhd:{HOME}/1.vhd")
    bed.run(f"dd if=/dev/urandom of={device} bs=64k count=1 oflag=direct 2>/dev/null")
    tapdisks.destroy(bed, device)
    # a child of the leaf that the first guest writes, made of a copy, so that the leaf isn't marked as a parent
    bed.run(f"mkdir {HOME}/else && cd {HOME}/else && cp ../0.vhd ../1.vhd . && vhd-util snapshot -n 2.vhd -p 1.vhd")
    bed.run(f"cd {HOME}/else && ln -sf ../0.vhd ../1.vhd .")
    ours = Guest(bed, "ours", IDLE, [f"tap2:vhd:{HOME}/1.vhd,xvda,w", f"tap2:aio:{HOME}/read.img,xvdb,r"])
    disks = [
        f"format=raw,vdev=xvda,access=w,backendtype=qdisk,target={HOME}/qemu.img",
        f"format=raw,vdev=xvdb,access=w,target={HOME}/file.img",
    ]
    theirs = Guest(bed, "theirs", IDLE, disks)
    try:
        ours.start(create=CREATE)
        theirs.start()
        for guest in (ours, theirs):
            guest.wait_text("^up$")
        yield [ours, theirs]
    finally:
        for guest in (ours, theirs):
            guest.destroy()


@pytest.mark.slow
@pytest.mark.usefixtures("guests")
def test_one_writer_or_only_readers(bed: Bed) -> None:
    """One test, since its guests take most of its time."""
    refusals_name_the_guest(bed)
    readers_share_an_image_and_children_a_parent(bed)


def refusals_name_the_guest(bed: Bed) -> None:
    bed.run(f"cd {HOME} && ln -s 1.vhd symlink.vhd && ln 1.vhd hardlink.vhd && ln -s . here")
    by_tapdisk = "guest ours (xvda); "
    for name in ("1.vhd", "symlink.vhd", "hardlink.vhd", "here/1.vhd"):
        for mode in ("w", "r"):
            assert f": in use by {by_tapdisk}" in hotplug.refused(bed, f"vhd:{HOME}/{name}", mode)
    # along the chain: what is a parent there, and what would be one here
    error = hotplug.refused(bed, f"vhd:{HOME}/0.vhd", "w")
    assert f": in use by {by_tapdisk}{HOME}/0.vhd: in use: tapdisk (pid " in error and "as a parent" in error
    error = hotplug.refused(bed, f"vhd:{HOME}/else/2.vhd", "w")
    assert f"in use by {by_tapdisk}" in error and f"{HOME}/else/1.vhd: in use: tapdisk (pid " in error
    # readers of the same kind, and others
    assert "in use by guest ours (xvdb)" in hotplug.refused(bed, f"aio:{HOME}/read.img", "w")
    assert "in use by guest theirs (xvda)" in hotplug.refused(bed, f"aio:{HOME}/qemu.img", "r")
    assert "of guest theirs (xvdb)" in hotplug.refused(bed, f"aio:{HOME}/file.img", "w")
    # by the number of its device, which is not what its disk is called
    device = bed.run(f"losetup -n -O NAME -j {HOME}/file.img").stdout.strip()
    assert "in use by guest theirs (xvdb)" in hotplug.refused(bed, f"aio:{device}", "w")
    # as the person at xl sees it
    third = Guest(bed, "third", "exit 0", [f"tap2:vhd:{HOME}/symlink.vhd,xvda,w"])
    third.prepare()
    result = bed.run(f"{CREATE} {third.config_path}", check=False, timeout=200)
    assert result.status != 0
    [telling] = [line for line in result.output.splitlines() if "in use" in line]
    assert f"{HOME}/symlink.vhd: in use by guest ours (xvda)" in telling
    assert bed.run("xl domid third", check=False).status != 0
    # and those who would not ask
    for spec in (f"format=raw,vdev=xvda,target={HOME}/read.img", f"format=vhd,vdev=xvda,target={HOME}/hardlink.vhd"):
        bed.put(f"{HOME}/qemu.cfg", f"name = 'third'\nmemory = 64\ndisk = ['{spec}']\n".encode())
        for command in (f"create {HOME}/qemu.cfg", f"block-attach theirs {spec.replace('xvda', 'xvdc')}"):
            result = bed.run(f"xl {command}", check=False)
            assert result.status == 1 and result.output.count("\n") == 1
            vdev = "xvdb" if "read.img" in spec else "xvda"
            assert f"in use by guest ours ({vdev})" in result.output
    # nobody was disturbed
    assert len(tapdisks.served(bed)) == 2


def readers_share_an_image_and_children_a_parent(bed: Bed) -> None:
    bed.run(f"mkdir -p {HOME}/other && vhd-util snapshot -n {HOME}/other/child.vhd -p {HOME}/0.vhd")
    nodes = {}
    for domid, (target, mode) in enumerate(
        [(f"aio:{HOME}/read.img", "r"), (f"vhd:{HOME}/other/child.vhd", "w"), (f"vhd:{HOME}/0.vhd", "r")], 80
    ):
        node = f"backend/vbd/{domid}/51712"
        result = hotplug.add(bed, target, mode, node)
        assert result.status == 0, result.output
        nodes[node] = target
    assert {disk.args for disk in tapdisks.served(bed)} >= set(nodes.values())
    for node in nodes:
        hotplug.remove(bed, node)
    assert len(tapdisks.served(bed)) == 2
