# SPDX-License-Identifier: LGPL-2.1-only
"""xl is killed at its steps; who then ends what it began, and runs `xenblk gc`, is left with nothing.

A sample of the steps, by a seed; all of them with XENBLK_ALL_STEPS=1. The block script: tests/unit/test_block_xenblk_killed.py.
tapdisk and tap-ctl: tests/vm/test_steps.py.
"""

from collections.abc import Iterator

import pytest

from tests.lib import steps, tapdisks
from tests.lib.guest import Guest
from tests.lib.steps import Step
from tests.lib.vm import Bed, Result

pytestmark = [pytest.mark.slow, pytest.mark.deep]

# Hypercalls and xenstore's ring are ioctl and write
CALLS = f"{steps.CALLS},ioctl"
# So many that steps which do not come again are seldom most of them
SAMPLE = 8
LEAF = "/srv/steps/1.vhd"
SPEC = f"tap2:vhd:{LEAF},xvdm,w"
ATTACH, DETACH = f"block-attach 0 {SPEC}", "block-detach 0 xvdm"
LOG = "/root/trace"
KILLED = 137
# What xl has started goes on without it.
BUSY = "pgrep -x 'xl|tap-ctl|xenblk-vbd|block-xenblk|xenblk'"


@pytest.fixture
def disk(bed: Bed) -> Iterator[Bed]:
    """A bed with a chain of two."""
    tapdisks.make_chain(bed, "/srv/steps", 2, 8)
    bed.run("modprobe xen-blkfront")
    try:
        yield bed
    finally:
        bed.run("rm -r /srv/steps")


def traced(bed: Bed, command: str, step: Step | None = None) -> Result:
    """xl, which is killed before that step."""
    kill = step.kill() if step else ""
    done = bed.run(f"strace -qq -o {LOG} --trace={CALLS} {kill} xl {command}", check=False, timeout=300)
    bed.wait_for(f"! {BUSY}", 120, 0.1)
    return done


def killed(bed: Bed, command: str, step: Step) -> bool:
    """At that step and no other; or, if it had to wait less often than when it was traced, it came to its end."""
    done = traced(bed, command, step)
    assert done.status in (0, KILLED), f"{step}: {done.output}"
    return done.status == KILLED


def sample(bed: Bed) -> list[Step]:
    """Some steps of what was traced last."""
    found = steps.parse(bed.run(f"cat {LOG}").stdout)
    assert len(found) > 50
    return steps.some(found, SAMPLE)


def collect(bed: Bed, step: Step) -> None:
    """What is left is found by gc."""
    said = bed.run("xenblk gc --settle=0", timeout=120).stdout
    assert tapdisks.leftovers(bed) == "", f"{step}: {said}"


def test_xl_is_killed_at_steps_of_an_attach(disk: Bed) -> None:
    assert traced(disk, ATTACH).status == 0
    each = sample(disk)
    disk.run(f"xl {DETACH}")
    kills = 0
    for step in each:
        kills += killed(disk, ATTACH, step)
        if "xvdm" in disk.run("xenstore-ls /local/domain/0/backend/vbd/0", check=False).stdout:
            disk.run(f"xl {DETACH}", check=False)
        collect(disk, step)
    disk.run(f"xl {ATTACH} && xl {DETACH}")
    steps.enough(kills, each)
    disk.run(f"vhd-util check -n {LEAF} -p")


def test_xl_is_killed_at_steps_of_a_detach(disk: Bed) -> None:
    disk.run(f"xl {ATTACH}")
    assert traced(disk, DETACH).status == 0
    each = sample(disk)
    kills = 0
    for step in each:
        disk.run(f"xl {ATTACH}")
        kills += killed(disk, DETACH, step)
        disk.run(f"xl {DETACH}", check=False)
        collect(disk, step)
    steps.enough(kills, each)
    disk.run(f"vhd-util check -n {LEAF} -p")


def domains(bed: Bed) -> list[int]:
    """All but dom0. One may have no name, and no configuration, yet."""
    return [int(line.split()[-5]) for line in bed.run("xl list").stdout.splitlines()[2:]]


def kill_and_destroy(bed: Bed, command: str, each: list[Step], first: str = "true") -> None:
    """At each of the steps, after what comes first: once all domains are destroyed nothing is left."""
    kills = 0
    for step in each:
        bed.run(first, timeout=180)
        kills += killed(bed, command, step)
        for domid in domains(bed):
            bed.run(f"xl destroy {domid}", check=False, timeout=180)
        collect(bed, step)
        assert domains(bed) == [], step
    steps.enough(kills, each)
    bed.run(f"vhd-util check -n {LEAF} -p")


@pytest.fixture
def guest(disk: Bed) -> Iterator[Guest]:
    """With the disk; prepared."""
    guest = Guest(disk, "steps", "echo begun; sleep 1000", [f"tap2:vhd:{LEAF},xvda,w"])
    guest.prepare()
    yield guest
    guest.destroy()


def test_xl_is_killed_at_steps_of_a_create(disk: Bed, guest: Guest) -> None:
    create = f"create -e -p {guest.config_path}"
    assert traced(disk, create).status == 0
    each = sample(disk)
    disk.run("xl destroy steps")
    kill_and_destroy(disk, create, each)


def test_xl_is_killed_at_steps_of_a_destroy(disk: Bed, guest: Guest) -> None:
    create = f"xl create -e -p {guest.config_path}"
    disk.run(create, timeout=180)
    assert traced(disk, "destroy steps").status == 0
    kill_and_destroy(disk, "destroy steps", sample(disk), create)


def test_xl_is_killed_at_steps_of_a_restore(disk: Bed, guest: Guest) -> None:
    """Of one state again and again: the guest stays paused, so its disk is as it was."""
    guest.start(create="xl create")
    guest.wait_text("^begun$")
    restore = "restore -e -p /srv/steps/state"
    disk.run("xl save steps /srv/steps/state", timeout=180)
    assert traced(disk, restore).status == 0
    each = sample(disk)
    disk.run("xl destroy steps")
    kill_and_destroy(disk, restore, each)
