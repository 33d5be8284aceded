# SPDX-License-Identifier: LGPL-2.1-only
"""tap-ctl and tapdisk are killed at each step of a disk's life, tapdisk at some of its many, at all with XENBLK_ALL_STEPS=1.

The block script: tests/unit/test_block_xenblk_killed.py.
"""

import re
from collections.abc import Iterator

import pytest

from tests.lib import steps, tapdisks
from tests.lib.beds import Beds
from tests.lib.steps import Step
from tests.lib.vm import Bed, Result
from tests.lib.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.deep]

CALLS = (
    f"{steps.CALLS},openat,ioctl,ftruncate,fallocate,bind,listen,accept4,recvfrom,"
    "io_uring_setup,io_uring_register,io_uring_enter,mlockall,prctl,fgetxattr,fsync,fdatasync"
)
LEAF = "/srv/steps/1.vhd"
LOG = "/root/trace"
TAPDISK = "/root/tapdisk"
# Its pid is the tapdisk's.
TRACED = f'#!/bin/sh\nexec strace -D -qq -o {LOG} --trace={CALLS} $KILL /usr/libexec/tapdisk "$@"\n'
KILLED = 137
SAMPLE = 30
# What it has done so far shows then: a note of the disk, and no answer yet.
ALWAYS = ("io_uring_enter",)


@pytest.fixture
def bed(beds: Beds) -> Iterator[Bed]:
    """One with a chain of two, no guardians, and nothing left at the end."""
    with tapdisks.clean(beds(xen=False)) as bed, tapdisks.configured(bed, "version=1", "restart=no"):
        tapdisks.make_chain(bed, "/srv/steps", 2, 8)
        bed.put(TAPDISK, TRACED.encode(), 0o755)
        try:
            yield bed
        finally:
            bed.run("rm -r /srv/steps")


def traced(bed: Bed, command: str, step: Step | None = None) -> Result:
    """A command, which is killed before that step."""
    return bed.run(f"strace -qq -o {LOG} --trace={CALLS} {step.kill() if step else ''} {command}", check=False)


def seen(bed: Bed) -> list[Step]:
    """The steps of what was traced last."""
    return steps.parse(bed.run(f"cat {LOG}").stdout)


def rows(bed: Bed) -> list[str]:
    """The lines of tap-ctl list."""
    return bed.run("tap-ctl list").stdout.splitlines()


def remove(bed: Bed) -> None:
    """The disk that is there, as who finds it by tap-ctl list does; another tapdisk may just be coming."""

    def removed() -> bool:
        for row in rows(bed):
            match = re.match(r"(pid=(?P<pid>\d+) )?minor=(?P<minor>\d+)", row)
            assert match, row
            if match["pid"]:
                bed.run(f"tap-ctl destroy -p {match['pid']} -m {match['minor']}", check=False)
            else:
                bed.run(f"tap-ctl free -m {match['minor']}", check=False)
        return rows(bed) == []

    wait_for(removed, "the disk is removed", 20)


def busy(bed: Bed) -> bool:
    """A tapdisk is there, or what makes one."""
    return bed.run("pgrep -x 'tapdisk|tap-ctl'", check=False).status == 0


def nothing_left(bed: Bed, step: Step) -> None:
    """Of itself, in a while."""
    wait_for(lambda: tapdisks.leftovers(bed) == "", f"nothing is left after {step}", 20)


def test_tap_ctl_is_killed_at_each_step_of_a_create(bed: Bed) -> None:
    create = f"tap-ctl create -a vhd:{LEAF}"
    assert traced(bed, create).status == 0
    each = seen(bed)
    remove(bed)
    killed = numbers = disks = 0
    for step in each:
        if traced(bed, create, step).status != KILLED:
            remove(bed)  # it had to wait less often
            continue
        killed += 1
        # A tapdisk that has no disk may know of its creator's end a moment later, or not have begun.
        wait_for(lambda: all("args=" in row for row in rows(bed)) or not busy(bed), f"{step}: no idle tapdisk", 20)
        left = rows(bed)
        numbers += left == ["minor=0"]
        disks += any("args=" in row for row in left)
        assert left == [] or len(left) == 1, left
        remove(bed)
        nothing_left(bed, step)
    print(f"{killed} of {len(each)} steps: a minor was left after {numbers}, a disk after {disks}")
    # Between the driver's answer and tapdisk's start, and between tapdisk's answer and the end.
    assert killed > 20 and numbers <= 4 and 1 <= disks <= 3
    bed.run(f"vhd-util check -n {LEAF} -p")


def test_tap_ctl_is_killed_at_each_step_of_a_destroy_and_another_ends_it(bed: Bed) -> None:
    def destroy() -> str:
        tapdisks.create(bed, f"vhd:{LEAF}")
        [disk] = tapdisks.served(bed)
        return f"tap-ctl destroy -p {disk.pid} -m {disk.minor}"

    assert traced(bed, destroy()).status == 0
    each = seen(bed)
    killed = 0
    for step in each:
        killed += traced(bed, destroy(), step).status == KILLED
        remove(bed)
        nothing_left(bed, step)
    print(f"{killed} of {len(each)} steps")
    assert killed > 15
    bed.run(f"vhd-util check -n {LEAF} -p")


def test_tap_ctl_is_killed_at_each_step_of_a_pause_and_an_unpause(bed: Bed) -> None:
    device = tapdisks.create(bed, f"vhd:{LEAF}")
    [disk] = tapdisks.served(bed)
    at = f"-p {disk.pid} -m {disk.minor}"
    for verb in ("pause", "unpause"):
        bed.run(f"tap-ctl pause {at}" if verb == "unpause" else "true")
        assert traced(bed, f"tap-ctl {verb} {at}").status == 0
        each = seen(bed)
        kills = 0
        for step in each:
            bed.run(f"tap-ctl {'unpause' if verb == 'pause' else 'pause'} {at}", check=False)
            done = traced(bed, f"tap-ctl {verb} {at}", step)
            assert done.status in (0, KILLED), f"{step}: {done.output}"
            kills += done.status == KILLED
            bed.wait_for("! tap-ctl list | grep -q state=0x10", 20, 0.1)  # it may still be on its way to one or the other
            bed.run(f"tap-ctl pause {at}", check=False)
            bed.run(f"tap-ctl unpause {at} && timeout 20 dd if={device} of=/dev/null bs=4k count=1 iflag=direct")
        steps.enough(kills, each)
    remove(bed)


@pytest.mark.parametrize("restart", ["no", "yes"])
def test_tapdisk_is_killed_at_steps_from_create_to_destroy(bed: Bed, restart: str) -> None:
    """That reads and writes outlive it: tests/vm/test_kills.py."""
    bed.run(f"echo restart={restart} >> /run/xenblk/config")

    def live(step: Step | None) -> Result:
        kill = step.kill() if step else ""
        created = bed.run(f"TAPDISK={TAPDISK} KILL='{kill}' tap-ctl create -a vhd:{LEAF}", check=False)
        if created.status:
            return created
        pid = re.match(r"pid=(\d+) ", bed.run("tap-ctl list").stdout)
        return bed.run(f"tap-ctl destroy -p {pid[1]} -m 0" if pid else "tap-ctl free -m 0", check=False)

    assert live(None).status == 0
    each = steps.some(seen(bed), SAMPLE, ALWAYS)
    failed = 0
    for step in each:
        done = live(step)
        if done.status:
            failed += 1
            assert done.output.startswith("tap-ctl: ") and done.output.count("\n") == 1, f"{step}: {done.output}"
            # A create leaves nothing, a destroy may.
            if "destroy" in done.command or "free" in done.command:
                remove(bed)
        nothing_left(bed, step)
    print(f"{failed} of {len(each)} steps failed a command")
    assert failed > len(each) // 2
    bed.run(f"vhd-util check -n {LEAF} -p")
