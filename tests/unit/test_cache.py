# SPDX-License-Identifier: LGPL-2.1-only
"""What the cache keeps, and the room that a run asks for."""

import os
import time
from pathlib import Path

import pytest

from tests.lib import cache, room


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache.root()


def make(name: str, key: str) -> Path:
    return cache.product(name, key, lambda directory: (directory / "made").touch())


def used(path: Path, days_ago: float) -> None:
    then = time.time() - days_ago * 24 * 3600
    os.utime(path, (then, then))


def there(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


@pytest.mark.usefixtures("root")
def test_a_product_is_made_once() -> None:
    path = make("image-12", "1")
    assert (path / "made").exists()
    assert cache.product("image-12", "1", lambda _: pytest.fail("made again")) == path


def test_those_last_used_are_kept(root: Path) -> None:
    for number in range(4):
        used(make("image-12", str(number)), 0.5 - number * 0.1)
    used(root / "image-12-1", 0.01)
    make("image-13", "1")
    make("image-12", "4")
    assert there(root) == ["image-12-1", "image-12-3", "image-12-4", "image-13-1"]


def test_what_was_not_used_for_long_goes(root: Path) -> None:
    used(make("image-12", "1"), 8)
    make("image-12", "2")
    assert there(root) == ["image-12-2"]


def test_a_product_that_fails_leaves_nothing_and_removes_nothing(root: Path) -> None:
    used(make("image-12", "1"), 8)

    def fail(_: Path) -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        cache.product("image-12", "2", fail)
    assert there(root) == ["image-12-1"]


def test_a_run_without_room_is_told_where_and_how_much(tmp_path: Path) -> None:
    room.check({tmp_path: 0})
    with pytest.raises(room.RoomError, match=rf"{tmp_path} and {tmp_path.parent}: .* GiB left, the tests need 3000000 GiB: make room"):
        room.check({tmp_path: 1_000_000, tmp_path.parent: 2_000_000})
