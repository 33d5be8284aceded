# SPDX-License-Identifier: LGPL-2.1-only
"""tap-ctl probe, and xenblk create, which has every image of tapdisk probed before anything is started."""

import hashlib
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock
from uuid import UUID

import pytest

from tests.lib import bridge, vhdmake
from tests.lib.programs import program
from tests.lib.vhdmake import DIFFERENCING, Locator, Spec
from xenblk import patience, probe
from xenblk.diskspec import Disk
from xenblk.errors import UserError

pytestmark = pytest.mark.unit

XL = """#!/bin/sh
: > "$0.called"
"""


def tap_ctl(directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The real one, with the default settings."""
    environment = bridge.environment(XENBLK_CONFIG=str(directory / "none"))
    command = [str(program("tap-ctl")), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def locked(mode: str, image: Path) -> Iterator[int]:
    """Another process has the image; its pid."""
    command = [str(program("tests/tool-lock")), mode, str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == b"locked\n"
        yield process.pid
        process.stdin.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return vhdmake.make(tmp_path / "a.vhd", Spec())


@pytest.mark.parametrize("options", [[], ["-R"]])
def test_a_good_image_is_probed_and_left_as_it_was(image: Path, options: list[str]) -> None:
    before = hashlib.sha256(image.read_bytes()).digest(), image.stat().st_mtime_ns
    done = tap_ctl(image.parent, "probe", "-a", f"vhd:{image}", *options)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (hashlib.sha256(image.read_bytes()).digest(), image.stat().st_mtime_ns) == before


def test_a_raw_image_is_probed(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(bytes(8192))
    assert tap_ctl(tmp_path, "probe", "-a", f"aio:{tmp_path}/a.img").returncode == 0


def test_a_bad_image_is_named_with_the_reason(image: Path) -> None:
    image.write_bytes(bytes(4096))
    done = tap_ctl(image.parent, "probe", "-a", f"vhd:{image}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"tap-ctl: {image}: footer") and done.stderr.count("\n") == 1


def test_an_image_in_use_is_told_from_a_bad_one_by_its_holder(image: Path) -> None:
    with locked("reader", image) as pid:
        assert tap_ctl(image.parent, "probe", "-R", "-a", f"vhd:{image}").returncode == 0
        done = tap_ctl(image.parent, "probe", "-a", f"vhd:{image}")
    assert (done.returncode, done.stdout) == (1, f"holder={pid}\n")
    assert done.stderr == (
        f"tap-ctl: {image}: in use: tool-lock (pid {pid}) reads it; end that use first\n"
    )


def test_a_parent_in_use_has_its_holder_named_too(image: Path) -> None:
    locator = Locator(b"W2ru", ".\\a.vhd".encode("utf-16-le"))
    child = Spec(kind=DIFFERENCING, uuid=UUID(int=1), parent_uuid=Spec().uuid, parent_name="a.vhd", locators=(locator,))
    leaf = vhdmake.make(image.parent / "child.vhd", child)
    with locked("writer", image) as pid:
        done = tap_ctl(image.parent, "probe", "-a", f"vhd:{leaf}")
    assert (done.returncode, done.stdout) == (1, f"holder={pid}\n")
    assert done.stderr.startswith(f"tap-ctl: {leaf}: parent: {image}: in use: tool-lock (pid {pid})")


@pytest.fixture
def create(tmp_path: Path, xenblk_command: Path) -> Iterator["Create"]:
    yield Create(tmp_path, xenblk_command)


class Create:
    """xenblk create with the real tap-ctl, and an xl that notes that it was called."""

    def __init__(self, directory: Path, command: Path) -> None:
        self.directory = directory
        self.command = command
        (directory / "xl").write_text(XL)
        (directory / "xl").chmod(0o755)

    def __call__(self, *disks: str) -> "subprocess.CompletedProcess[str]":
        """The guest with these disks."""
        (self.directory / "guest.cfg").write_text(f"disk = {list(disks)}\n")
        return self.call(["create", str(self.directory / "guest.cfg")])

    def call(self, words: list[str], tap_ctl: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """A call of xl, in its directory."""
        environment = bridge.environment(
            XENBLK_XL=str(self.directory / "xl"),
            XENBLK_TAP_CTL=str(tap_ctl or program("tap-ctl")),
            XENBLK_YAML=str(self.directory / "none"),
            XENBLK_CONFIG=str(self.directory / "none"),
        )
        command = [str(self.command), "xl", *words]
        return subprocess.run(
            command, cwd=self.directory, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    @property
    def started(self) -> bool:
        """Was xl called?"""
        return (self.directory / "xl.called").exists()


def test_a_guest_with_a_bad_image_is_not_started_and_one_line_says_why(create: Create, image: Path) -> None:
    bad = image.parent / "b.vhd"
    bad.write_bytes(bytes(4096))
    done = create(f"tap2:vhd:{image},xvda,w", f"tap2:vhd:{bad},xvdb,r")
    assert done.returncode == 1 and not create.started
    assert done.stderr.startswith(f"xenblk: {image.parent}/guest.cfg: disk 'tap2:vhd:{bad},xvdb,r': {bad}: footer")
    assert done.stderr.count("\n") == 1


def test_a_guest_with_good_images_is_started(create: Create, image: Path) -> None:
    assert create(f"tap2:vhd:{image},xvda,w").returncode == 0
    assert create.started


def test_the_mode_of_the_disk_is_probed(create: Create, image: Path) -> None:
    """An image with the hidden flag is somebody's parent: to be read, not written."""
    vhdmake.set_footer(image, "hidden", b"\1")
    assert create(f"tap2:vhd:{image},xvda,r").returncode == 0
    assert create.started
    assert "hidden" in create(f"tap2:vhd:{image},xvda,w").stderr


def test_who_holds_an_image_is_left_to_the_block_script(create: Create, image: Path) -> None:
    with locked("writer", image):
        assert create(f"tap2:vhd:{image},xvda,w").returncode == 0
    assert create.started


def test_a_guest_that_runs_is_not_given_what_another_process_has(create: Create, image: Path) -> None:
    """xl would leave the device half made."""
    with locked("writer", image) as holder:
        done = create.call(["block-attach", "guest", f"tap2:vhd:{image},xvdb,w"])
    assert done.returncode == 1 and not create.started
    assert done.stderr.startswith(f"xenblk: disk 'tap2:vhd:{image},xvdb,w': in use by process {holder}; {image}: in use: ")
    assert done.stderr.count("\n") == 1


def test_who_only_looks_at_an_image_is_waited_for(tmp_path: Path, image: Path) -> None:
    """As xl create -n does, and whoever has its images probed at the same time."""
    looks = tmp_path / "tap-ctl"
    shutil.copy(program("tests/tool-lock"), looks)
    with subprocess.Popen([looks, "writer", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == b"locked\n"
        end = threading.Timer(0.3, process.stdin.close)
        end.start()
        assert tap_ctl(tmp_path, "probe", "-a", f"vhd:{image}").returncode == 0
        end.join()


def test_storage_that_hangs_is_named_in_time(tmp_path: Path, image: Path) -> None:
    hangs = tmp_path / "hangs"
    hangs.write_text("#!/bin/sh\nexec sleep 100\n")
    hangs.chmod(0o755)
    disk = Disk(f"tap2:vhd:{image},xvda,w", "xvda", "", "vhd", str(image))
    text = f"{image}: not open after 0.2 s; is its file server or disk stuck?"
    with mock.patch.object(patience, "OPEN_SECONDS", 0.2), mock.patch.dict(os.environ, XENBLK_TAP_CTL=str(hangs)):
        with pytest.raises(UserError, match=re.escape(text)):
            probe.check([disk])
        with pytest.raises(UserError, match=re.escape(text)):
            patience.asked(str(image), lambda: time.sleep(3))
        with pytest.raises(FileNotFoundError):
            patience.asked(str(image), lambda: os.stat(tmp_path / "none"))


def test_two_disks_of_one_name_are_refused(create: Create, image: Path) -> None:
    (image.parent / "b.img").write_bytes(bytes(8192))
    done = create(f"tap2:vhd:{image},xvda,w", f"tap2:aio:{image.parent}/b.img,xvda,w")
    assert done.returncode == 1 and not create.started
    assert f"the guest has a disk xvda already, 'tap2:vhd:{image},xvda,w'; give one another vdev" in done.stderr


def test_an_image_in_a_driver_domain_cannot_be_probed(create: Create) -> None:
    assert create("tap2:vhd:/srv/not/here.vhd,xvda,w,backend=storage").returncode == 0
    assert create.started


@pytest.mark.parametrize(
    ("call", "probed"),
    [
        (["block-attach", "dom", "tap2:vhd:{bad},xvdb,w"], True),
        (["restore", "{config}", "/srv/checkpoint"], True),
        (["config-update", "dom", "{config}"], False),
        (["save", "dom", "/srv/checkpoint", "{config}"], False),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_opened_now_is_probed_and_what_is_for_later_is_not(
    create: Create, tmp_path: Path, call: list[str], probed: bool
) -> None:
    bad, config = tmp_path / "b.vhd", tmp_path / "other.cfg"
    bad.write_bytes(bytes(4096))
    config.write_text(f"disk = ['tap2:vhd:{bad},xvda,w']\n")
    done = create.call([word.format(bad=bad, config=config) for word in call])
    assert create.started != probed
    assert (done.returncode != 0) == probed
    assert (f"{bad}: footer" in done.stderr) == probed


@pytest.mark.parametrize(
    ("ours", "theirs", "shared"),
    [("writer", "w", False), ("writer", "r", False), ("reader", "w", False), ("reader", "r", True)],
)
def test_an_image_that_a_tapdisk_has_is_not_given_to_qemu_or_losetup(
    create: Create, image: Path, ours: str, theirs: str, shared: bool
) -> None:
    """They don't ask for the image lock, so it is asked for them, by dev:inode."""
    alias = image.parent / "alias.vhd"
    alias.hardlink_to(image)
    spec = f"format=vhd,vdev=xvda,access={theirs},target={alias}"
    with locked(ours, image) as pid:
        done = create(spec)
        assert create.started == shared
        attached = create.call(["block-attach", "dom", spec])
    for result in (done, attached):
        assert (result.returncode == 0) == shared
        why = f"disk '{spec}': in use by process {pid}; {alias}: in use: tool-lock (pid {pid})"
        assert (why in result.stderr) != shared
    # let go, it is anybody's
    assert create(spec).returncode == 0


def test_an_image_that_another_host_has_is_not_given_to_them_either(create: Create, image: Path) -> None:
    """Nobody here has it, the lock all the same."""
    tap_ctl = create.directory / "tap-ctl"
    tap_ctl.write_text("#!/bin/sh\necho holder=0\necho tap-ctl: it is in use on another host >&2\nexit 1\n")
    tap_ctl.chmod(0o755)
    done = create.call(["block-attach", "dom", f"file:{image},xvda,r"], tap_ctl=tap_ctl)
    assert done.stderr == f"xenblk: disk 'file:{image},xvda,r': it is in use on another host\n"
    assert not create.started


@pytest.mark.parametrize("spec", ["{name},raw,xvda,r", "file:{name},xvda,w", "file:{path},xvda,w,backend=Domain-0"])
def test_by_whatever_words_it_is_the_same_image(create: Create, image: Path, spec: str) -> None:
    """A path may begin where xl is called, and a backend may be this domain."""
    with locked("writer", image):
        words = ["block-attach", "dom", spec.format(name=image.name, path=image)]
        done = create.call(words)
    assert f"{image}: in use: tool-lock" in done.stderr and not create.started


def test_what_a_script_makes_of_its_target_is_not_looked_at(create: Create, image: Path) -> None:
    with locked("writer", image):
        assert create(f"format=raw,script=block-xenblk,vdev=xvda,target={image}").returncode == 0
    assert create.started
