# SPDX-License-Identifier: LGPL-2.1-only
"""block-xenblk beside other users of a block device: the rest is in tests/unit/test_block_xenblk.py."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib import blockscript

pytestmark = pytest.mark.io


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A loop device."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    command = ["losetup", "--show", "-f", str(tmp_path / "disk")]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    yield Path(name)
    subprocess.run(["losetup", "-d", name], check=True)


def test_a_parent_on_a_device_that_another_guest_writes_is_refused(tmp_path: Path, device: Path) -> None:
    """Which shows when the chain is open: its leaf is a file."""
    image = tmp_path / "a.vhd"
    image.write_bytes(bytes(512))
    other = "backend/vbd/9/51744"
    with blockscript.running(tmp_path) as dom0:
        dom0.set("parent", str(device))
        dom0.store.write("/local/domain/9/name", "other")
        for key, value in {"params": str(device), "mode": "w", "dev": "xvdc", "script": "/etc/xen/scripts/block"}.items():
            dom0.store.write(f"{other}/{key}", value)
        dom0.vbd(f"vhd:{image}")
        assert dom0.run("add") != 0
        assert dom0.key("hotplug-error") == f"vhd:{image}: in use by guest other (xvdc); end that use first"
        assert dom0.key("hotplug-status") == "busy" and dom0.disks() == []
        dom0.store.write(f"{other}/mode", "r")
        assert dom0.run("add") == 0
        assert dom0.run("remove") == 0


def test_a_device_costs_one_question_for_each_of_our_disks(tmp_path: Path, device: Path) -> None:
    """It is looked for among all disks of guests, twice; of those that tapdisk has only the script is read."""
    guests, disks = 4, 40
    with blockscript.running(tmp_path) as dom0:

        def asked() -> int:
            dom0.vbd(f"aio:{device}")
            before = dom0.store.asked
            assert dom0.run("add") == 0
            after = dom0.store.asked
            assert dom0.run("remove") == 0
            return after - before

        alone = asked()
        for number in range(disks):
            dom0.vbd(f"vhd:{tmp_path}/{number}.vhd", f"backend/vbd/{20 + number % guests}/{51712 + 16 * (number // guests)}")
        assert asked() - alone <= 2 * (guests + disks)
