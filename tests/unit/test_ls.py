# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk ls, between a xenstored in memory and a tap-ctl that says what it is told to."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lib import bridge, xenstored
from xenblk.table import human

pytestmark = pytest.mark.unit

GIB = 1 << 30


@dataclass
class Dom0:
    """The store, what tap-ctl lists, and the command."""

    directory: Path
    store: xenstored.Xenstore
    command: Path

    def guest(self, domid: int, name: str) -> None:
        """A guest without disks."""
        self.store.write(f"/local/domain/{domid}/name", name)

    def vbd(self, domid: int, number: int, dev: str, **more: str) -> None:
        """The backend node of a disk, as the block script leaves it."""
        values = {"dev": dev, "mode": "w", "script": "/etc/xen/scripts/block-xenblk"} | more
        for key, value in values.items():
            self.store.write(f"backend/vbd/{domid}/{number}/{key.replace('_', '-')}", value)

    def tapdisks(self, *rows: dict[str, Any], said: str = "", status: int = 0) -> None:
        """What tap-ctl list prints, on both streams, and how it ends."""
        text = json.dumps(rows)
        script = f"#!/bin/sh\n[ \"$*\" = 'list --json' ] || exit 9\ncat <<'END'\n{text}\nEND\n"
        (self.directory / "tap-ctl").write_text(f"{script}echo -n '{said}' >&2\nexit {status}\n", encoding="utf-8")
        (self.directory / "tap-ctl").chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """xenblk ls."""
        usual = {
            "XENSTORED_PATH": str(self.directory / "xenstored"),
            "XENBLK_TAP_CTL": str(self.directory / "tap-ctl"),
        }
        return subprocess.run(
            [str(self.command), "ls", *arguments],
            env=bridge.environment(**usual | environment),
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=60,
            check=False,
        )


@pytest.fixture
def dom0(tmp_path: Path, xenblk_command: Path, libxl_binding: None) -> Iterator[Dom0]:
    with xenstored.running(tmp_path / "xenstored") as store:
        yield Dom0(tmp_path, store, xenblk_command)


def tapdisk(pid: int | None, minor: int | None, **more: Any) -> dict[str, Any]:
    """An object of tap-ctl list --json."""
    image = {"type": "vhd", "path": "/srv/a.vhd", "readonly": False, "size": 20 * GIB, "sector_size": 512, "depth": 2}
    row: dict[str, Any] = {"pid": pid, "minor": minor, "state": 0, **image, "waits_for": None}
    return row | more


def two_guests(dom0: Dom0) -> None:
    dom0.guest(3, "web")
    dom0.guest(12, "db")
    dom0.vbd(12, 51712, "xvda", params="vhd:/srv/db.vhd", tapdisk_minor="1")
    dom0.vbd(3, 51712, "xvda", params="vhd:/srv/a.vhd", tapdisk_minor="0", physical_device_path="/dev/tapdev0")
    dom0.vbd(3, 51728, "xvdb", params="aio:/srv/ü b.img", mode="r", tapdisk_minor="7")
    dom0.vbd(3, 51744, "xvdc", params="/srv/c.img", script="/etc/xen/scripts/block")
    dom0.tapdisks(
        tapdisk(100, 0, transport="blktap"),
        tapdisk(None, 1, state=None, type=None, path=None, readonly=None, size=None, sector_size=None, depth=None),
        tapdisk(102, 7, transport="ublk", type="aio", path="/srv/ü b.img", state=0x2000, size=GIB * 3 // 2, depth=1),
        tapdisk(103, 8, transport="nbd", path="/srv/hand.vhd", state=0x20, readonly=True),
    )


def test_each_disk_is_shown_with_its_guest_and_those_made_by_hand_come_last(dom0: Dom0) -> None:
    two_guests(dom0)
    done = dom0.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "GUEST  VDEV  MODE  SIZE  DEPTH  PID  DEVICE   TRANSPORT  STATE       IMAGE",
        "web    xvda  w      20G      2  100  tapdev0  blktap     running     vhd:/srv/a.vhd",
        "web    xvdb  r     1.5G      1  102  tapdev7  ublk       no space    aio:/srv/ü b.img",
        "db     xvda  w        -      -    -  tapdev1  -          no tapdisk  vhd:/srv/db.vhd",
        "-      -     r      20G      2  103  tapdev8  nbd        paused      vhd:/srv/hand.vhd",
    ]


def test_json_has_all_of_it(dom0: Dom0) -> None:
    two_guests(dom0)
    disks = json.loads(dom0.run("--json").stdout)
    assert disks[0] == {
        "guest": "web",
        "domid": 3,
        "vdev": "xvda",
        "mode": "w",
        "image": "vhd:/srv/a.vhd",
        "device": "/dev/tapdev0",
        "minor": 0,
        "pid": 100,
        "transport": "blktap",
        "depth": 2,
        "size": 20 * GIB,
        "state": "running",
        "error": None,
    }
    assert [(disk["domid"], disk["vdev"], disk["state"]) for disk in disks[1:]] == [
        (3, "xvdb", "no space"),
        (12, "xvda", "no tapdisk"),
        (None, None, "paused"),
    ]
    assert disks[3]["device"] == "/dev/xen/blktap-2/tapdev8"


@pytest.mark.parametrize("guest", ["db", "12"])
def test_a_guest_is_named_by_its_name_or_domid(dom0: Dom0, guest: str) -> None:
    two_guests(dom0)
    assert [disk["guest"] for disk in json.loads(dom0.run(guest, "--json").stdout)] == ["db"]


def test_a_number_is_a_domid_as_for_xl(dom0: Dom0) -> None:
    two_guests(dom0)
    dom0.guest(3, "12")
    assert [disk["guest"] for disk in json.loads(dom0.run("12", "--json").stdout)] == ["db"]


def test_a_disk_that_a_guest_shares_with_its_device_model_is_shown_for_both(dom0: Dom0) -> None:
    for domid, name in ((3, "web-dm"), (4, "web")):
        dom0.guest(domid, name)
        dom0.vbd(domid, 51712, "xvda", params="vhd:/srv/a.vhd", tapdisk_minor="0")
    dom0.tapdisks(tapdisk(100, 0))
    disks = json.loads(dom0.run("--json").stdout)
    assert [(disk["guest"], disk["pid"], disk["state"]) for disk in disks] == [
        ("web-dm", 100, "running"),
        ("web", 100, "running"),
    ]


def test_a_disk_that_waits_for_its_image_says_so(dom0: Dom0) -> None:
    """At a migration's destination, or after a restart without the file server."""
    dom0.guest(3, "web")
    dom0.vbd(3, 51712, "xvda", params="vhd:/srv/a.vhd", tapdisk_minor="0")
    dom0.tapdisks(tapdisk(100, 0, state=0x4000, waits_for="image"))
    assert "  waits for its image  vhd:/srv/a.vhd" in dom0.run().stdout


def test_a_minor_that_another_disk_has_by_now_is_not_taken_for_the_guests(dom0: Dom0) -> None:
    """Its script was killed, or somebody has destroyed the disk behind its back."""
    dom0.guest(3, "web")
    dom0.guest(12, "db")
    dom0.vbd(3, 51712, "xvda", params="vhd:/srv/a.vhd", tapdisk_minor="0")
    dom0.vbd(12, 51712, "xvda", params="vhd:/srv/db.vhd", tapdisk_minor="0")
    dom0.tapdisks(tapdisk(100, 0, path="/srv/db.vhd"))
    assert [line.split(maxsplit=8) for line in dom0.run().stdout.splitlines()[1:]] == [
        ["web", "xvda", "w", "-", "-", "-", "tapdev0", "-", "no tapdisk  vhd:/srv/a.vhd"],
        ["db", "xvda", "w", "20G", "2", "100", "tapdev0", "-", "running     vhd:/srv/db.vhd"],
    ]


def test_a_disk_whose_tapdisk_does_not_answer_says_so_and_an_idle_tapdisk_does_not(dom0: Dom0) -> None:
    dom0.guest(3, "web")
    dom0.vbd(3, 51712, "xvda", params="vhd:/srv/a.vhd", tapdisk_minor="0")
    nothing = dict.fromkeys(("state", "type", "path", "readonly", "size", "sector_size", "depth"))
    dom0.tapdisks(tapdisk(100, 0, state=None, depth=None), tapdisk(101, None, **nothing))
    assert [line.split(maxsplit=8)[5:] for line in dom0.run().stdout.splitlines()[1:]] == [
        ["100", "tapdev0", "-", "not answering  vhd:/srv/a.vhd"],
        ["101", "-", "-", "running        -"],
    ]


def test_a_driver_domain_does_not_see_the_names_of_guests(dom0: Dom0) -> None:
    dom0.store.write("domid", "0")
    two_guests(dom0)
    dom0.store.denied = ("/local/domain/3", "/local/domain/12")
    done = dom0.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split()[:3] == ["3", "xvda", "w"]
    # its own it must see
    dom0.store.denied = ("/local/domain/0/backend/vbd/3/51712",)
    done = dom0.run()
    assert done.returncode == 1
    assert "/local/domain/0/backend/vbd/3/51712/script: not for this domain; run this as root in dom0" in done.stderr


def test_a_guest_without_such_disks_is_an_error(dom0: Dom0) -> None:
    two_guests(dom0)
    done = dom0.run("nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "xenblk: guest nobody: has no disk that tapdisk serves; xenblk ls lists all\n"


def test_a_disk_that_is_not_there_yet_or_has_failed_says_so(dom0: Dom0) -> None:
    dom0.tapdisks()
    dom0.guest(3, "web")
    dom0.vbd(3, 51712, "xvda", params="vhd:/a")
    dom0.vbd(3, 51728, "xvdb", params="vhd:/b", hotplug_error="/b: cookie\nof another kind\033[2J")
    dom0.vbd(3, 51744, "xvdc", params="vhd:/c", tapdisk_minor="5")
    assert dom0.run().stdout.splitlines()[1:] == [
        "web    xvda  w        -      -    -  -        -          attaching   vhd:/a",
        "web    xvdb  w        -      -    -  -        -          failed      vhd:/b",
        "    /b: cookie\\x0aof another kind\\x1b[2J",
        "web    xvdc  w        -      -    -  tapdev5  -          no tapdisk  vhd:/c",
    ]


def test_without_disks_nothing_is_printed(dom0: Dom0) -> None:
    dom0.tapdisks()
    done = dom0.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert dom0.run("--json").stdout == "[]\n"


def test_what_tap_ctl_says_reaches_the_user(dom0: Dom0) -> None:
    dom0.tapdisks(tapdisk(104, None, type=None), said="tap-ctl: pid 104 does not answer\n")
    done = dom0.run()
    assert (done.returncode, done.stderr) == (0, "tap-ctl: pid 104 does not answer\n")
    assert done.stdout.splitlines()[1].split() == ["-", "-", "w", "20G", "2", "104", "-", "-", "running", "-"]
    dom0.tapdisks(said="tap-ctl: no\n", status=1)
    done = dom0.run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[1].endswith("tap-ctl list ended with status 1; run this as root")


def test_a_xenstored_that_is_gone_is_named(dom0: Dom0) -> None:
    dom0.tapdisks()
    done = dom0.run(XENSTORED_PATH=str(dom0.directory / "nothing"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("xenblk: xenstore can't be opened: ")


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, None), (0, "0"), (1023, "1023"), (1024, "1K"), (1536, "1.5K"), (GIB - 1, "1G"), (2040 * GIB, "2T")],
)
def test_sizes_are_short(size: int | None, text: str | None) -> None:
    assert human(size) == text
