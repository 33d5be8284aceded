# SPDX-License-Identifier: LGPL-2.1-only
"""block-xenblk is killed at each step, by strace: before each system call by which it changes anything or waits for others.

That tapdisk ends with its owner is in tests/io/test_restart.py: here the owner is only noted.
"""

import itertools
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib import steps
from tests.lib.blockscript import Dom0
from tests.lib.steps import Step

pytestmark = [pytest.mark.unit, pytest.mark.slow]

LEAKS = "detect_leaks=0"
"""The checker of leaks can't work in a process that is traced."""


def trace(dom0: Dom0, vbd: str, command: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """The script under strace, without its children."""
    log = dom0.directory / "trace"
    return subprocess.run(
        ["strace", "-qq", "-o", str(log), "-e", f"trace={steps.CALLS}", *options, str(dom0.script), command],
        env={**dom0.environment(vbd), "ASAN_OPTIONS": LEAKS},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        timeout=60,
        check=False,
    )


def seen(dom0: Dom0, vbd: str, command: str) -> list[Step]:
    """Its steps."""
    done = trace(dom0, vbd, command)
    assert done.returncode == 0, done.stderr
    found = steps.parse((dom0.directory / "trace").read_text())
    assert len(found) > 20, found
    return found


def killed(dom0: Dom0, vbd: str, command: str, step: Step) -> bool:
    """Whether it was killed before this step; else it had to wait less often, and came to its end."""
    done = trace(dom0, vbd, command, step.kill())
    assert done.returncode in (0, -signal.SIGKILL), done
    return done.returncode != 0


def nodes(dom0: Dom0, image: Path) -> Iterator[str]:
    """Disks that libxl has just noted."""
    for number in itertools.count():
        vbd = f"backend/vbd/5/{51712 + 16 * number}"
        dom0.vbd(f"vhd:{image}", vbd)
        yield vbd


def test_add_is_killed_at_each_step_and_remove_leaves_nothing(dom0: Dom0, image: Path) -> None:
    each = nodes(dom0, image)
    to_kill = seen(dom0, first := next(each), "add")
    assert dom0.run("remove", first) == 0
    owner = dom0.directory / "fake" / "owner"
    orphans = kills = 0
    for step, vbd in zip(to_kill, each, strict=False):
        kills += killed(dom0, vbd, "add", step)
        disks = dom0.disks()
        if disks and not owner.exists():
            # Nobody's but the node's: there it can be found.
            assert f"minor={dom0.key('tapdisk-minor', vbd)} " in disks[0], step
        assert dom0.run("remove", vbd) == 0, step
        left = dom0.disks()
        if left and owner.exists():
            # Its owner is dead and the node doesn't have it: it ends by itself.
            orphans += 1
            pid, minor = (word.partition("=")[2] for word in left[0].split()[:2])
            tap_ctl = [str(dom0.directory / "bin/tap-ctl"), "destroy", "-p", pid, "-m", minor]
            subprocess.run(tap_ctl, env=dom0.environment(), check=True)
        assert dom0.disks() == [], step
        assert dom0.key("tapdisk-pid", vbd) is None and dom0.key("tapdisk-minor", vbd) is None, step
        owner.unlink(missing_ok=True)
    steps.enough(kills, to_kill)
    print(f"{orphans} after which tapdisk was left to its owner's end")
    assert orphans
    # What was killed holds no lock.
    assert dom0.run("add", last := next(each)) == 0 and dom0.run("remove", last) == 0


def test_remove_is_killed_at_each_step_and_another_remove_ends_it(dom0: Dom0, image: Path) -> None:
    each = nodes(dom0, image)
    assert dom0.run("add", first := next(each)) == 0
    to_kill = seen(dom0, first, "remove")
    kills = 0
    for step, vbd in zip(to_kill, each, strict=False):
        assert dom0.run("add", vbd) == 0, step
        kills += killed(dom0, vbd, "remove", step)
        if dom0.disks():
            assert f"minor={dom0.key('tapdisk-minor', vbd)} " in dom0.disks()[0], step
        assert dom0.run("remove", vbd) == 0, step
        assert dom0.disks() == [], step
        assert dom0.key("tapdisk-pid", vbd) is None and dom0.key("tapdisk-minor", vbd) is None, step
    steps.enough(kills, to_kill)
