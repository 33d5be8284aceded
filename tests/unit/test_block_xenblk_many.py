# SPDX-License-Identifier: LGPL-2.1-only
"""block-xenblk for a hundred disks that are attached at once: none waits for the others, and each costs the same."""

import time
from pathlib import Path

import pytest

from tests.lib.blockscript import Dom0

pytestmark = pytest.mark.unit

DISKS = 100
LIBXL_SECONDS = 40


def nodes(dom0: Dom0, directory: Path, count: int) -> list[str]:
    """Backend nodes of guests with ten disks each, and their images."""
    paths = []
    for number in range(count):
        path = f"backend/vbd/{10 + number // 10}/{51712 + 16 * (number % 10)}"
        image = directory / f"{number}.vhd"
        image.write_bytes(b"x" * 512)
        dom0.vbd(f"vhd:{image}", path)
        paths.append(path)
    return paths


def test_a_hundred_disks_at_once(dom0: Dom0, tmp_path: Path) -> None:
    paths = nodes(dom0, tmp_path, DISKS)
    begun = time.monotonic()
    running = [dom0.start("add", path) for path in paths]
    assert [process.wait(timeout=LIBXL_SECONDS) for process in running] == [0] * DISKS
    print(f"added in {time.monotonic() - begun:.1f} s")
    assert {dom0.key("hotplug-status", path) for path in paths} == {"connected"}
    assert len({dom0.key("tapdisk-minor", path) for path in paths}) == DISKS
    running = [dom0.start("remove", path) for path in paths]
    assert [process.wait(timeout=LIBXL_SECONDS) for process in running] == [0] * DISKS
    assert dom0.disks() == [] and not any((dom0.directory / "lock").iterdir())


def asked(dom0: Dom0, command: str, path: str) -> int:
    """How often a call of the script asks xenstored for anything."""
    before = dom0.store.asked
    assert dom0.run(command, path) == 0
    return dom0.store.asked - before


def test_the_last_of_a_hundred_costs_what_the_first_does(dom0: Dom0, tmp_path: Path) -> None:
    paths = nodes(dom0, tmp_path, DISKS)
    first = asked(dom0, "add", paths[0])
    running = [dom0.start("add", path) for path in paths[1:-1]]
    assert [process.wait(timeout=LIBXL_SECONDS) for process in running] == [0] * (DISKS - 2)
    assert asked(dom0, "add", paths[-1]) == first
    assert asked(dom0, "remove", paths[-1]) == asked(dom0, "remove", paths[0])
