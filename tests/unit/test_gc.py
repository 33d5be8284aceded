# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk gc, between a xenstored in memory and a tap-ctl that keeps books."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lib import bridge, xenstored

pytestmark = pytest.mark.unit

HOME = "/local/domain/0"
VBD = f"{HOME}/backend/vbd"

# disks: a JSON list as tap-ctl list has it. A destroy or free takes the disk out, unless it is busy.
TAP_CTL = r"""#!/usr/bin/python3
import json, pathlib, sys
here = pathlib.Path(__file__).parent
disks = json.loads((here / "disks").read_text())
if sys.argv[1] != "list":
    with (here / "calls").open("a") as calls:
        print(*sys.argv[1:], file=calls)
    if (here / "busy").exists():
        sys.exit("tap-ctl: minor 3: is open; end who has it")
    minor = int(sys.argv[sys.argv.index("-m") + 1])
    (here / "disks").write_text(json.dumps([disk for disk in disks if disk["minor"] != minor]))
else:
    print(json.dumps(disks))
    if (here / "next").exists():
        (here / "next").rename(here / "disks")
"""


@dataclass
class Dom0:
    """The store, the disks, and the command."""

    directory: Path
    store: xenstored.Xenstore
    command: Path

    def vbd(self, domid: int, number: int, **more: str) -> str:
        """The backend node of a disk, as libxl and the block script leave it."""
        values = {"script": "/etc/xen/scripts/block-xenblk", "params": "vhd:/srv/a.vhd", "state": "4", "online": "1"}
        for key, value in (values | more).items():
            self.store.write(f"{VBD}/{domid}/{number}/{key.replace('_', '-')}", value)
        self.store.write(f"/local/domain/{domid}/device/vbd/{number}/state", "4")
        self.store.write(f"/libxl/{domid}/device/vbd/{number}/frontend", "x")
        return f"{VBD}/{domid}/{number}"

    def disks(self, *rows: dict[str, Any], then: bool = False) -> None:
        """What tap-ctl lists; then: only from its second call on."""
        (self.directory / ("next" if then else "disks")).write_text(json.dumps(rows))

    def calls(self) -> list[str]:
        """What was done to disks, in order."""
        path = self.directory / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def run(self, *arguments: str, settle: str = "0") -> "subprocess.CompletedProcess[str]":
        """xenblk gc."""
        environment = bridge.environment(
            XENSTORED_PATH=str(self.directory / "xenstored"), XENBLK_TAP_CTL=str(self.directory / "tap-ctl")
        )
        command = [str(self.command), "gc", f"--settle={settle}", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def dom0(tmp_path: Path, xenblk_command: Path, libxl_binding: None) -> Iterator[Dom0]:
    (tmp_path / "tap-ctl").write_text(TAP_CTL)
    (tmp_path / "tap-ctl").chmod(0o755)
    with xenstored.running(tmp_path / "xenstored") as store:
        host = Dom0(tmp_path, store, xenblk_command)
        host.disks()
        yield host


def disk(pid: int | None, minor: int | None, node: str | None = None, path: str | None = "/srv/a.vhd") -> dict[str, Any]:
    """An object of tap-ctl list --json."""
    whom = node and node.removeprefix(f"{HOME}/")  # libxl's XENBUS_PATH
    return {"pid": pid, "minor": minor, "for": whom, "type": path and "vhd", "path": path, "state": 0}


def test_disks_of_guests_and_those_made_by_hand_stay(dom0: Dom0) -> None:
    dom0.store.domains.add(3)
    node = dom0.vbd(3, 51712, tapdisk_minor="0")
    others = dom0.vbd(9, 51712, script="/etc/xen/scripts/block")
    dom0.disks(
        disk(100, 0, node),
        disk(101, 1),
        disk(102, 2, "a word of somebody else's"),
        disk(103, None),
        disk(None, 4, None, None),
        # a migration to this host: one tapdisk, two domains, and the first has ended
        disk(105, 0, f"{VBD}/2/51712"),
    )
    done = dom0.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert dom0.calls() == []
    assert dom0.store.read(f"{node}/state") == dom0.store.read(f"{others}/state") == "4"


def test_a_guests_disk_that_tap_ctl_has_moved_to_another_image_stays(dom0: Dom0) -> None:
    dom0.store.domains.add(3)
    node = dom0.vbd(3, 51712, tapdisk_minor="0", params="vhd:/srv/a.vhd")
    dom0.disks(disk(100, 0, node, "/new/a.vhd"))
    assert (dom0.run().stdout, dom0.calls()) == ("", [])


def test_a_tapdisk_whose_node_is_gone_is_ended(dom0: Dom0) -> None:
    dom0.store.domains.add(3)
    dom0.vbd(3, 51712, tapdisk_minor="7")
    dom0.disks(
        disk(100, 3, f"{VBD}/3/51712"),
        disk(None, 4, f"{VBD}/2/51712", None),
        disk(102, 7, f"{VBD}/3/51712"),
    )
    done = dom0.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"removed: tapdisk pid=100 minor=3 vhd:/srv/a.vhd: was of {VBD}/3/51712, which is gone or has another disk",
        f"removed: minor=4 without a tapdisk: was of {VBD}/2/51712, which is gone or has another disk",
    ]
    assert dom0.calls() == ["destroy -p 100 -m 3 -t 25", "free -m 4"]


def test_a_guests_stale_minor_keeps_no_other_disk(dom0: Dom0) -> None:
    dom0.store.domains.add(3)
    dom0.vbd(3, 51712, tapdisk_minor="7", params="vhd:/srv/b.vhd")
    dom0.disks(disk(102, 7, f"{VBD}/2/51712"))
    assert dom0.run().returncode == 0
    assert dom0.calls() == ["destroy -p 102 -m 7 -t 25"]


def test_a_node_whose_domain_is_gone_is_removed_and_then_its_tapdisk(dom0: Dom0) -> None:
    dom0.store.domains.add(4)
    dom0.vbd(4, 51712, tapdisk_minor="1")
    node = dom0.vbd(3, 51712, tapdisk_minor="0", tapdisk_pid="100")
    dead = dom0.vbd(3, 51728, tapdisk_minor="2", tapdisk_pid="99")
    dom0.disks(disk(200, 0, node), disk(101, 1, f"{VBD}/4/51712"), disk(None, 2, dead, None))
    dom0.store.log.clear()
    done = dom0.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"removed: {node} vhd:/srv/a.vhd: domain 3 is gone",
        f"removed: {dead} vhd:/srv/a.vhd: domain 3 is gone",
    ]
    assert dom0.store.log == [
        ("/local/domain/3/device/vbd/51712", "(rm)"),
        ("/libxl/3/device/vbd/51712", "(rm)"),
        (node, "(rm)"),
        ("/local/domain/3/device/vbd/51728", "(rm)"),
        ("/libxl/3/device/vbd/51728", "(rm)"),
        (dead, "(rm)"),
        (f"{VBD}/3", "(rm)"),
    ]
    assert dom0.calls() == ["destroy -p 200 -m 0 -t 25", "free -m 2"]


def test_in_a_driver_domain_the_nodes_of_others_are_left_to_dom0(dom0: Dom0) -> None:
    node = dom0.vbd(3, 51712, tapdisk_minor="0")
    dom0.disks(disk(100, 0, node))
    dom0.store.denied = ("/local/domain/3", "/libxl")
    done = dom0.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert dom0.store.read(f"{node}/state") is None and dom0.calls() == ["destroy -p 100 -m 0 -t 25"]


def test_a_driver_domain_knows_by_their_frontends_which_domains_are_gone(dom0: Dom0) -> None:
    """It may not ask xenstored."""
    dom0.store.privileged = False
    dom0.store.write("domid", "7")
    home = "/local/domain/7/backend/vbd"
    for domid in (3, 4):
        for key, value in {"script": "/etc/xen/scripts/block-xenblk", "params": "vhd:/srv/a.vhd", "state": "4"}.items():
            dom0.store.write(f"{home}/{domid}/51712/{key}", value)
        dom0.store.write(f"{home}/{domid}/51712/tapdisk-minor", str(domid))
        dom0.store.write(f"{home}/{domid}/51712/frontend", f"/local/domain/{domid}/device/vbd/51712")
    dom0.store.write("/local/domain/4/device/vbd/51712/backend", f"{home}/4/51712")
    dom0.disks(disk(100, 3, f"{VBD}/3/51712"), disk(101, 4, f"{VBD}/4/51712"))
    done = dom0.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"removed: {home}/3/51712 vhd:/srv/a.vhd: domain 3 is gone\n"
    assert dom0.calls() == ["destroy -p 100 -m 3 -t 25"]
    assert dom0.store.read(f"{home}/4/51712/state") == "4"


def test_one_that_can_not_be_removed_does_not_keep_the_others(dom0: Dom0) -> None:
    first = dom0.vbd(3, 51712, tapdisk_minor="0")
    dom0.disks(disk(100, 0, first), disk(101, 1, f"{VBD}/2/51712"))
    # it can be seen, and not removed
    dom0.store.kept = (first,)
    done = dom0.run()
    assert done.returncode == 1 and f"not removed: {first}: xenstore: {first}: not for this domain" in done.stderr
    assert dom0.calls() == ["destroy -p 101 -m 1 -t 25"]


def test_a_minor_that_another_disk_has_by_now_stays(dom0: Dom0) -> None:
    node = dom0.vbd(3, 51712, tapdisk_minor="0")
    dom0.disks(disk(100, 0))
    assert dom0.run().returncode == 0
    assert dom0.store.read(f"{node}/state") is None and dom0.calls() == []


def test_other_disks_of_a_domain_that_is_gone_stay_in_the_store(dom0: Dom0) -> None:
    dom0.vbd(3, 51712, tapdisk_minor="0")
    other = dom0.vbd(3, 51728, script="/etc/xen/scripts/block")
    assert dom0.run().returncode == 0
    assert dom0.store.children(f"{VBD}/3") == {"51728": ""}
    assert dom0.store.read(f"{other}/state") == "4"


def test_what_xl_removes_meanwhile_is_not_touched(dom0: Dom0) -> None:
    dom0.disks(disk(100, 3, f"{VBD}/3/51712"))
    dom0.disks(then=True)
    done = dom0.run()
    assert (done.returncode, done.stdout, dom0.calls()) == (0, "", [])


@pytest.mark.parametrize("there", [True, False])
def test_what_can_not_be_removed_is_an_error_and_stays(dom0: Dom0, there: bool) -> None:
    node = dom0.vbd(3, 51712, tapdisk_minor="3") if there else f"{VBD}/3/51712"
    dom0.disks(disk(100, 3, node))
    (dom0.directory / "busy").touch()
    done = dom0.run()
    assert done.returncode == 1
    assert done.stdout.startswith("left over: ")
    why = "minor 3: is open; end who has it"
    assert done.stderr == f"xenblk: not removed: {node}: {why}; run xenblk gc again when that is mended\n"
    (dom0.directory / "busy").unlink()
    assert dom0.run().stdout.startswith("removed: tapdisk pid=100 minor=3 ")
    assert dom0.run().stdout == ""


def test_a_dry_run_changes_nothing(dom0: Dom0) -> None:
    node = dom0.vbd(3, 51712, tapdisk_minor="0")
    dom0.disks(disk(100, 0, node), disk(101, 1, f"{VBD}/2/51712"))
    dom0.store.log.clear()
    done = dom0.run("-n", "--json")
    assert [(one["node"], one["there"], one["minor"], one["error"]) for one in json.loads(done.stdout)] == [
        (node, True, 0, None),
        (f"{VBD}/2/51712", False, 1, None),
    ]
    assert dom0.run("-n").stdout.count("left over: ") == 2
    assert dom0.store.log == [] and dom0.calls() == []


def test_without_a_xenstored_that_knows_domains_nothing_is_left_over(dom0: Dom0) -> None:
    node = dom0.vbd(3, 51712, tapdisk_minor="0")
    dom0.disks(disk(100, 0, node), disk(101, 1, f"{VBD}/2/51712"))
    dom0.store.domains.clear()
    done = dom0.run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "xenblk: xenstore: does not know domain 0; see that xenstored runs\n"
    assert dom0.calls() == []


@pytest.mark.parametrize("wrong", ["-1", "x", "nan", "1e9"])
def test_a_wrong_time_is_refused(dom0: Dom0, wrong: str) -> None:
    assert dom0.run(settle=wrong).returncode == 2
