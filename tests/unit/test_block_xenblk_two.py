# SPDX-License-Identifier: LGPL-2.1-only
"""block-xenblk for disks that two domains have: a guest that migrates, and a device model in a domain of its own."""

from pathlib import Path

import pytest

from tests.lib.blockscript import VBD, Dom0

pytestmark = pytest.mark.unit

THERE = "backend/vbd/6/51712"


def held(dom0: Dom0, pid: object) -> None:
    """The image is, by this process."""
    dom0.set("held", f"holder={pid}\ntap-ctl: a.vhd: in use: tapdisk (pid {pid}) has it open for writing; end that use first\n")


def stubdomain(dom0: Dom0) -> None:
    """Domain 6 runs the device model of domain 5."""
    dom0.store.write("/local/domain/6/target", "5")
    dom0.store.write("/local/domain/5/image/device-model-domid", "6")


# Migration


@pytest.mark.parametrize(("kind", "option"), [("pv", "--inactive"), ("pvh", "--inactive"), ("hvm", "--suspended"), (None, "--inactive")])
def test_the_disk_of_a_guest_that_arrives_waits_for_its_image(dom0: Dom0, image: Path, kind: str | None, option: str) -> None:
    dom0.vbd(f"vhd:{image}")
    dom0.store.write("/local/domain/5/name", "debian--incoming")
    if kind:
        dom0.store.write("/libxl/5/type", kind)
    held(dom0, 4711)
    assert dom0.run("add") == 0
    assert dom0.created() == ["-a", f"vhd:{image}", option]
    assert dom0.key("hotplug-status") == "connected"


@pytest.mark.parametrize("name", ["debian", "--incoming-", "incoming", None])
def test_no_other_disk_waits(dom0: Dom0, image: Path, name: str | None) -> None:
    dom0.vbd(f"vhd:{image}")
    if name:
        dom0.store.write("/local/domain/5/name", name)
    held(dom0, 4711)
    assert dom0.run("add") == 1
    assert dom0.created() == ["-a", f"vhd:{image}"]
    assert dom0.key("hotplug-status") == "busy"


# A device model's domain


def test_a_guest_and_its_device_model_have_one_tapdisk_until_both_let_go(dom0: Dom0, image: Path) -> None:
    stubdomain(dom0)
    dom0.vbd(f"vhd:{image}", THERE)
    assert dom0.run("add", THERE) == 0
    held(dom0, dom0.key("tapdisk-pid", THERE))
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") == 0
    for key in ("tapdisk-pid", "tapdisk-minor", "physical-device", "physical-device-path", "hotplug-status"):
        assert dom0.key(key) == dom0.key(key, THERE)
    assert dom0.run("remove", THERE) == 0
    assert len(dom0.disks()) == 1 and dom0.key("tapdisk-pid", THERE) is None
    assert dom0.run("remove") == 0
    assert dom0.disks() == []
    assert not any((dom0.directory / "lock").iterdir())


def test_the_guest_may_come_first(dom0: Dom0, image: Path) -> None:
    stubdomain(dom0)
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") == 0
    held(dom0, dom0.key("tapdisk-pid"))
    dom0.vbd(f"vhd:{image}", THERE, mode="r")
    assert dom0.run("add", THERE) == 0
    assert dom0.run("remove") == 0
    assert len(dom0.disks()) == 1
    assert dom0.run("remove", THERE) == 0
    assert dom0.disks() == []


@pytest.mark.parametrize("first", ["guest", "its device model"])
def test_both_arrive_with_one_tapdisk_which_has_no_image_yet(dom0: Dom0, image: Path, first: str) -> None:
    """The source's has it: who holds the lock says nothing of whom to join."""
    stubdomain(dom0)
    dom0.store.write("/local/domain/5/name", "debian--incoming")
    dom0.store.write("/local/domain/6/name", "debian--incoming-dm")
    dom0.store.write("/libxl/5/type", "hvm")
    held(dom0, 4711)
    nodes = (VBD, THERE) if first == "guest" else (THERE, VBD)
    for node in nodes:
        dom0.vbd(f"vhd:{image}", node)
        assert dom0.run("add", node) == 0, dom0.log()
    assert dom0.created() == ["-a", f"vhd:{image}", "--suspended"]
    assert len(dom0.disks()) == 1
    assert dom0.key("tapdisk-pid") == dom0.key("tapdisk-pid", THERE)
    for node in nodes:
        assert dom0.run("remove", node) == 0
    assert dom0.disks() == [] and not any((dom0.directory / "lock").iterdir())


@pytest.mark.parametrize(
    ("mine", "theirs", "why"),
    [
        ({"mode": "w"}, {"mode": "r"}, "only to read"),
        ({"params": "aio:"}, {}, "another type"),
    ],
)
def test_what_the_other_does_not_have_is_not_shared(
    dom0: Dom0, image: Path, mine: dict[str, str], theirs: dict[str, str], why: str
) -> None:
    stubdomain(dom0)
    dom0.vbd(f"vhd:{image}", THERE, mode=theirs.get("mode", "w"))
    assert dom0.run("add", THERE) == 0
    held(dom0, dom0.key("tapdisk-pid", THERE))
    dom0.vbd(f"{mine.get('params', 'vhd:')}{image}", mode=mine.get("mode", "w"))
    assert dom0.run("add") == 1, why
    assert dom0.key("hotplug-status") == "busy"
    assert len(dom0.disks()) == 1


def test_two_guests_share_nothing(dom0: Dom0, image: Path) -> None:
    dom0.store.write("/local/domain/6/target", "7")
    dom0.store.write("/local/domain/5/image/device-model-domid", "0")
    dom0.store.write("/local/domain/6/name", "other")
    dom0.vbd(f"vhd:{image}", THERE)
    assert dom0.run("add", THERE) == 0
    held(dom0, dom0.key("tapdisk-pid", THERE))
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") == 1
    assert "in use by guest other" in str(dom0.key("hotplug-error"))


def test_a_tapdisk_that_the_other_has_just_left_is_not_joined(dom0: Dom0, image: Path) -> None:
    stubdomain(dom0)
    dom0.vbd(f"vhd:{image}", THERE)
    assert dom0.run("add", THERE) == 0
    pid = dom0.key("tapdisk-pid", THERE)
    held(dom0, pid)
    dom0.set("disks", "")
    dom0.vbd(f"vhd:{image}")
    assert dom0.run("add") == 1
    assert dom0.key("tapdisk-pid") is None


def test_one_that_can_not_join_leaves_the_others_disk(dom0: Dom0, image: Path) -> None:
    stubdomain(dom0)
    dom0.vbd(f"vhd:{image}", THERE)
    assert dom0.run("add", THERE) == 0
    held(dom0, dom0.key("tapdisk-pid", THERE))
    dom0.store.write(f"{THERE}/physical-device-path", "/dev/nothing-there")
    dom0.vbd(f"vhd:{image}", VBD)
    assert dom0.run("add") == 1
    assert "there is no /dev/nothing-there" in str(dom0.key("hotplug-error"))
    assert len(dom0.disks()) == 1
