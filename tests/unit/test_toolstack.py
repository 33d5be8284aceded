# SPDX-License-Identifier: LGPL-2.1-only
"""Disks that come and go by libxl, which is played here: what is made is undone, and nothing else."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from xenblk import libxl, toolstack
from xenblk.errors import UserError

pytestmark = pytest.mark.unit


class FakeLib:
    """libxl, whose add ends with that; it says what it is called for."""

    ERROR_DEVICE_EXISTS, ERROR_LOCK_FAIL = -17, -15

    def __init__(self, status: int) -> None:
        self.status = status
        self.calls: list[str] = []

    def libxl_device_disk_add(self, *_: Any) -> int:
        self.calls.append("add")
        return self.status

    def libxl_device_disk_destroy(self, *_: Any) -> int:
        self.calls.append("destroy")
        return 0

    def libxl_device_disk_safe_remove(self, *_: Any) -> int:
        return 0

    def libxl_vdev_to_device_disk(self, *_: Any) -> int:
        return 0


class FakeModule:
    """The binding."""

    class ffi:  # noqa: N801 # as cffi has it
        NULL = None

    def __init__(self, status: int) -> None:
        self.lib = FakeLib(status)


class FakeLog:
    def __init__(self, text: str = "libxl: error: libxl_disk.c:1:f: it is so\n") -> None:
        self.text = text

    def take(self) -> str:
        return self.text


@contextlib.contextmanager
def no_disk() -> Iterator[None]:
    """In the place of a libxl_device_disk."""
    yield None


@pytest.mark.parametrize(
    ("status", "calls"), [(0, ["add"]), (-3, ["add", "destroy"]), (-17, ["add"]), (-15, ["add"])]
)
def test_only_what_was_half_made_is_removed(monkeypatch: pytest.MonkeyPatch, status: int, calls: list[str]) -> None:
    """Who was faster has the name: that disk is not ours to remove."""

    monkeypatch.setattr(libxl, "device_disk", no_disk)
    monkeypatch.setattr(libxl, "fill_disk", lambda *_: None)
    module = FakeModule(status)
    stack = toolstack.Toolstack(module, None, FakeLog())  # type: ignore[arg-type]
    if status:
        with pytest.raises(UserError, match="it is so"):
            stack.add_disk(5, "vdev=xvdb")
    else:
        stack.add_disk(5, "vdev=xvdb")
    assert module.lib.calls == calls


@pytest.mark.parametrize("force", [False, True])
def test_what_the_script_said_of_a_disk_that_it_could_not_remove_is_told(monkeypatch: pytest.MonkeyPatch, force: bool) -> None:
    """libxl takes its nodes away all the same, and says that all is well."""
    monkeypatch.setattr(libxl, "device_disk", no_disk)
    log = FakeLog("libxl: error: libxl_device.c:1:f: script: pid=1 minor=0 is still there: Device or resource busy\n")
    stack = toolstack.Toolstack(FakeModule(0), None, log)  # type: ignore[arg-type]
    assert stack.remove_disk(5, "xvdb", force=force) == "pid=1 minor=0 is still there: Device or resource busy"
    log.text = ""
    assert stack.remove_disk(5, "xvdb", force=force) is None
