# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk attach of what can't be attached; on Xen: tests/xen/test_hotplug.py."""

import subprocess
from pathlib import Path

import pytest

from tests.lib import bridge

pytestmark = pytest.mark.unit


def refused(command: Path, *arguments: str) -> str:
    """The one line of a command that fails."""
    done = subprocess.run(
        [str(command), *arguments], env=bridge.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
    return done.stderr.removeprefix("xenblk: ").rstrip("\n")


@pytest.mark.usefixtures("libxl_binding")
@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("phy:/dev/a,xvdb,w", "tapdisk has no part in it; use xl block-attach, or write tap2:vhd:/path or tap2:aio:/path"),
        ("tap2:vhd:/a.vhd,xvdb,w,backend=storage", "a driver domain serves it; use xl block-attach"),
        ("tap2:vhd:/a.vhd,xvdb,w,nonsense=1", "not understood by libxl: "),
        ("tap2:ram:64,xvdb,w", "what is in tapdisk's memory is lost"),
    ],
)
def test_a_disk_that_is_not_tapdisks_here_is_refused_with_the_remedy(xenblk_command: Path, spec: str, why: str) -> None:
    said = refused(xenblk_command, "attach", "guest", spec)
    assert said.startswith(f"disk '{spec}': ") and why in said
