# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk snapshot: a guest's disks by a xenstored in memory, and real tapdisks that have them."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lib import bridge, vhdutil, xenstored
from tests.lib.programs import program
from tests.lib.tapctl import MINOR, Served

pytestmark = pytest.mark.unit


@dataclass
class Dom0:
    """Guest web, which has xvda and xvdb, VHDs, and xvdc, a raw image that it may only read."""

    directory: Path
    store: xenstored.Xenstore
    command: Path
    tapdisks: dict[str, Served]

    def vbd(self, vdev: str, image: str, mode: str, minor: int) -> None:
        """The backend node of a disk."""
        node = f"backend/vbd/3/{51712 + 16 * (ord(vdev[-1]) - ord('a'))}"
        values = {"dev": vdev, "params": image, "mode": mode, "tapdisk-minor": str(minor)}
        for key, value in (values | {"script": "/etc/xen/scripts/block-xenblk"}).items():
            self.store.write(f"{node}/{key}", value)

    def run(self, *arguments: str, ignored: bool = False, tap_ctl: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """xenblk snapshot; ignored: by somebody who ignores the end of children."""
        environment = bridge.environment(
            XENSTORED_PATH=str(self.directory / "xenstored"),
            XENBLK_TAP_CTL=str(tap_ctl or program("tap-ctl")),
            XENBLK_CONTROL_DIR=str(self.directory / "ctl"),
        )
        command = [str(self.command), "snapshot", *arguments]
        if ignored:
            command = ["sh", "-c", 'trap "" CHLD; exec "$@"', "sh", *command]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def refused(self, *arguments: str, tap_ctl: Path | None = None) -> str:
        """The message of one that fails, which has made no file."""
        before = self.images()
        done = self.run(*arguments, tap_ctl=tap_ctl)
        assert (done.returncode, done.stdout) == (1, "")
        assert self.images() == before
        return done.stderr.removeprefix("xenblk: ").rstrip("\n")

    def images(self) -> list[str]:
        """The names of all images."""
        return sorted(path.name for path in (self.directory / "srv").iterdir())


@pytest.fixture
def dom0(tmp_path: Path, xenblk_command: Path, libxl_binding: None) -> Iterator[Dom0]:
    srv = tmp_path / "srv"
    srv.mkdir()
    tapdisks = {}
    for minor, name in ((MINOR, "a"), (MINOR + 1, "b")):
        (tmp_path / name).mkdir()
        vhdutil.ok("create", "-n", srv / f"{name}.vhd", "-s", 4)
        env = {"XENBLK_CONTROL_DIR": str(tmp_path / "ctl")}
        tapdisks[f"xvd{name}"] = Served(tmp_path / name, f"vhd:{srv}/{name}.vhd", env=env, minor=minor)
    with xenstored.running(tmp_path / "xenstored") as store:
        host = Dom0(tmp_path, store, xenblk_command, tapdisks)
        store.write("/local/domain/3/name", "web")
        host.vbd("xvda", f"vhd:{srv}/a.vhd", "w", MINOR)
        host.vbd("xvdb", f"vhd:{srv}/b.vhd", "w", MINOR + 1)
        host.vbd("xvdc", f"aio:{srv}/c.img", "r", 9)
        yield host
    for served in tapdisks.values():
        served.__exit__(None, None, None)


def test_all_that_the_guest_may_write_has_a_snapshot(dom0: Dom0) -> None:
    done = dom0.run("web", "--name", "before upgrade")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    srv = dom0.directory / "srv"
    assert lines[:2] == [f"xvda: {srv}/a.before upgrade.vhd", f"xvdb: {srv}/b.before upgrade.vhd"]
    assert re.fullmatch(r"requests waited at most \d+\.\d ms", lines[2]) and not lines[3:]
    assert dom0.images() == ["a.before upgrade.vhd", "a.vhd", "b.before upgrade.vhd", "b.vhd"]
    for name in "ab":
        assert vhdutil.ok("query", "-n", srv / f"{name}.vhd", "-p").strip() == f"{srv}/{name}.before upgrade.vhd"
    assert "exists; give the parent another name" in dom0.refused("web", "--name", "before upgrade")


def test_a_failure_is_one_whoever_ignores_children(dom0: Dom0) -> None:
    (dom0.directory / "srv" / "b.x.vhd").touch()
    done = dom0.run("web", "--name", "x", ignored=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "b.x.vhd: File exists; give the parent another name" in done.stderr
    assert dom0.images() == ["a.vhd", "b.vhd", "b.x.vhd"]
    (dom0.directory / "srv" / "b.x.vhd").unlink()
    assert dom0.run("web", "--name", "x", ignored=True).returncode == 0


def test_a_disk_that_waits_for_its_image_can_have_none(dom0: Dom0) -> None:
    """Its tapdisk has started again, and somebody else has the image."""
    tap_ctl = dom0.directory / "tap-ctl"
    path = f"{dom0.directory}/srv/a.vhd"
    row = {"pid": 1, "minor": MINOR, "state": 0x4000, "type": "vhd", "path": path, "readonly": False, "size": 1, "depth": 1}
    tap_ctl.write_text(f"#!/bin/sh\necho '{json.dumps([row])}'\n")
    tap_ctl.chmod(0o755)
    refused = dom0.refused("web", "xvda", tap_ctl=tap_ctl)
    assert refused == "guest web: xvda: waits for its image; a disk must run to have a snapshot"


def test_another_disk_that_has_the_minor_by_now_is_left_alone(dom0: Dom0) -> None:
    """The snapshot would be one of that disk, under this one's name."""
    dom0.vbd("xvda", f"vhd:{dom0.directory}/srv/c.vhd", "w", MINOR)
    assert dom0.refused("web", "xvda") == "guest web: xvda: no tapdisk; a disk must run to have a snapshot"
    assert dom0.images() == ["a.vhd", "b.vhd"]


def test_one_disk_by_the_guests_domid_named_by_the_time(dom0: Dom0) -> None:
    shown = json.loads(dom0.run("3", "xvdb", "--json").stdout)
    assert shown["stall_seconds"] > 0
    [one] = shown["snapshots"]
    assert one["vdev"] == "xvdb" and one["leaf"] == f"{dom0.directory}/srv/b.vhd"
    assert re.fullmatch(re.escape(str(dom0.directory)) + r"/srv/b\.\d{8}T\d{6}\.vhd", one["parent"])
    assert dom0.images() == ["a.vhd", os.path.basename(one["parent"]), "b.vhd"]


def test_what_can_have_none_is_named_with_the_reason(dom0: Dom0) -> None:
    assert dom0.refused("db") == "guest db: has no disk that tapdisk serves; xenblk ls lists all"
    assert dom0.refused("web", "hda") == (
        "guest web: tapdisk serves no disk hda of it; there are xvda, xvdb, xvdc"
    )
    assert dom0.refused("web", "xvdc") == "guest web: xvdc is read-only, so it needs none; leave it out"
    dom0.vbd("xvdc", "aio:/srv/c.img", "w", 9)
    assert dom0.refused("web") == (
        "guest web: xvdc is aio:/srv/c.img; only a vhd: can have a snapshot; "
        "name the others: xenblk snapshot web xvda xvdb"
    )
    dom0.tapdisks["xvdb"].ok("pause")
    assert dom0.refused("web", "xvda", "xvdb") == "guest web: xvdb: paused; a disk must run to have a snapshot"
    dom0.tapdisks["xvdb"].ok("unpause")
    done = dom0.run("web", "--name", "a/b")
    assert done.returncode == 2 and "leave out / and control characters" in done.stderr
