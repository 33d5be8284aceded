# SPDX-License-Identifier: LGPL-2.1-only
"""xenblk detach, with libxl and tapdisk played here: it says that it is done if it is."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from xenblk import guestdisks, hotplug, toolstack
from xenblk.errors import UserError
from xenblk.guestdisks import GuestDisk

pytestmark = pytest.mark.unit

DISK = GuestDisk("web", 5, "xvdb", "w", "vhd:/srv/a.vhd", "/dev/xen/blktap-2/tapdev3", 3, 77, "blktap", 1, 1 << 20, "running")
BY_HAND = replace(DISK, guest=None, domid=None, vdev=None)


class FakeToolstack:
    """Has the disk removed, and says so, or else."""

    def __init__(self, said: str | None | UserError) -> None:
        self.said = said

    def domain(self, _guest: str) -> tuple[int, str]:
        return 5, "web"

    def remove_disk(self, _domid: int, _vdev: str, *, force: bool) -> str | None:
        if isinstance(self.said, UserError):
            raise self.said
        return self.said


def detach(monkeypatch: pytest.MonkeyPatch, said: str | None | UserError, after: list[GuestDisk], force: bool = False) -> None:
    """`after`: what tapdisk has then."""

    @contextlib.contextmanager
    def opened() -> Iterator[FakeToolstack]:
        yield FakeToolstack(said)

    monkeypatch.setattr(toolstack, "opened", opened)
    monkeypatch.setattr(guestdisks, "named", lambda *_: [DISK])
    monkeypatch.setattr(guestdisks, "find", lambda: after)
    hotplug.detach("web", "xvdb", force=force, as_json=False)


@pytest.mark.parametrize(
    "after",
    [
        [],
        [replace(DISK, domid=6, guest="other")],
        [replace(DISK, domid=6, guest="other"), replace(BY_HAND, minor=4)],
        [replace(BY_HAND, image="vhd:/srv/b.vhd")],
    ],
    ids=["nothing", "shared", "its minor is another's", "another image"],
)
def test_a_detached_disk_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], after: list[GuestDisk]) -> None:
    detach(monkeypatch, None, after)
    assert capsys.readouterr().out == "web xvdb: vhd:/srv/a.vhd by /dev/xen/blktap-2/tapdev3\n"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("said", "why"),
    [("pid=77 minor=3 is still there: busy", "pid=77 minor=3 is still there: busy"), (None, "minor 3 with vhd:/srv/a.vhd is still there, .*")],
    ids=["told", "killed"],
)
def test_a_disk_that_its_script_left_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str | None, why: str, force: bool
) -> None:
    """libxl takes its nodes away all the same, and calls that a success."""
    with pytest.raises(UserError, match=f"^guest web: it has xvdb no more, but {why}; when that is mended, xenblk gc removes it$"):
        detach(monkeypatch, said, [BY_HAND], force)
    assert not capsys.readouterr().out


def test_a_guest_that_does_not_let_go_may_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="^guest web: xvdb not detached: it is so; .* or now with -f$"):
        detach(monkeypatch, UserError("it is so"), [DISK])
