# SPDX-License-Identifier: LGPL-2.1-only
"""A guest's disk goes from one host to another: two tapdisks on one image, each with a run directory of its own.

The order is xl's: the guest stops, the destination makes its disk, the guest goes on there and asks again for what was not
answered, the source closes.
"""

import os
import random
import time
from pathlib import Path

import pytest

from tests.lib import migration
from tests.lib.disk import Disk
from tests.lib.guestbytes import Op
from tests.lib.nbdguest import Guest
from tests.lib.tapctl import Served
from tests.lib.vhdutil import ok
from tests.lib.waiting import wait_for

pytestmark = pytest.mark.io

MIGRATIONS = 10
PAUSED, REOPENING = 0x20, 0x4000
"""Of a disk's state; the second: it waits for its image."""
FIRST = 128
"""So many sectors of a suspended guest's disk are known before; FAR is not one of them."""
FAR = 1009


@pytest.fixture(params=["--inactive", "--suspended"])
def waits(request: pytest.FixtureRequest) -> str:
    """How the destination makes its disk."""
    return str(request.param)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A VHD with nothing in it."""
    path = tmp_path / "a.vhd"
    ok("create", "-n", path, "-s", 8)
    return path


def host(directory: Path, name: str, spec: str, *options: str) -> Served:
    """A tapdisk there."""
    (directory / name).mkdir(exist_ok=True)
    return Served(directory / name, spec, *options)


def state(served: Served) -> int:
    """Of the disk."""
    vbds = served.call({"op": "list"})["vbds"]
    assert isinstance(vbds, list)
    return int(vbds[0]["state"])


@pytest.mark.parametrize("kind", ["vhd", "aio"])
def test_the_destination_has_the_disk_when_the_source_has_let_it_go(tmp_path: Path, kind: str, waits: str) -> None:
    path = tmp_path / "image"
    if kind == "vhd":
        ok("create", "-n", path, "-s", 8)
    else:
        path.write_bytes(bytes(8 << 20))
    spec = f"{kind}:{path}"
    with host(tmp_path, "source", spec) as source, host(tmp_path, "destination", spec, waits) as destination:
        there = Guest(destination.socket)
        assert there.sectors == 8 << 11
        waiting = there.start([Op("read", FAR, 5)])
        here = Guest(source.socket)
        here.run([Op("write", FAR, 5, 1)])
        time.sleep(0.5)
        assert not waiting[0].look() and state(destination) & REOPENING
        here.run([Op("write", FAR, 5, 2)])
        here.close()
        source.end()
        there.wait(waiting)
        assert waiting[0].data() == Op("write", FAR, 5, 2).content()
        assert not state(destination) & REOPENING
        there.close()


@pytest.mark.parametrize("kind", ["vhd", "aio"])
def test_the_beginning_of_a_suspended_guests_disk_is_read_at_once(tmp_path: Path, kind: str) -> None:
    """In a chain it may be in any image; and QEMU reads it at the destination before the source closes."""
    path = tmp_path / "image"
    if kind == "vhd":
        ok("create", "-n", tmp_path / "base", "-s", 8)
        with Disk(f"vhd:{tmp_path}/base") as disk:
            disk.write(0, 9, 3)
        ok("snapshot", "-n", path, "-p", tmp_path / "base")
    else:
        path.write_bytes(Op("write", 0, 9, 3).content() + bytes((8 << 20) - 9 * 512))
    spec = f"{kind}:{path}"
    with host(tmp_path, "source", spec) as source:
        here = Guest(source.socket)
        here.run([Op("write", 9, 5, 1)])
        with host(tmp_path, "destination", spec, "--suspended") as destination:
            there = Guest(destination.socket)
            content = Op("write", 0, 9, 3).content() + Op("write", 9, 5, 1).content()
            assert there.read(0, FIRST) == content.ljust(FIRST * 512, b"\0")
            assert there.read(9, 5) == Op("write", 9, 5, 1).content()
            waiting = there.start([Op("read", FIRST - 1, 2), Op("read", FIRST, 1), Op("write", 9, 1, 2), Op("flush")])
            time.sleep(0.5)
            assert not any(request.look() for request in waiting) and state(destination) & REOPENING
            here.close()
            source.end()
            there.wait(waiting)
            assert there.read(9, 1) == Op("write", 9, 1, 2).content()
            there.close()


def test_a_disk_that_is_all_beginning_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(content := Op("write", 0, 8, 1).content())
    with host(tmp_path, "source", f"aio:{path}"), host(tmp_path, "destination", f"aio:{path}", "--suspended") as destination:
        there = Guest(destination.socket)
        assert there.read(0, 8) == content
        there.close()


def test_without_a_word_of_migration_an_image_in_use_is_refused(tmp_path: Path, image: Path) -> None:
    with host(tmp_path, "source", f"vhd:{image}"), pytest.raises(AssertionError, match="has it open for writing"):
        host(tmp_path, "destination", f"vhd:{image}")


def test_an_image_that_nobody_has_is_open_at_once(tmp_path: Path, image: Path, waits: str) -> None:
    with host(tmp_path, "destination", f"vhd:{image}", waits) as destination:
        assert not state(destination) & REOPENING


def test_one_that_can_never_be_opened_is_not_waited_for(tmp_path: Path, image: Path, waits: str) -> None:
    ok("snapshot", "-n", tmp_path / "child.vhd", "-p", image)
    with pytest.raises(AssertionError, match="having children"):
        host(tmp_path, "destination", f"vhd:{image}", waits)


def test_a_migration_that_failed_leaves_the_source_alone(tmp_path: Path, image: Path, waits: str) -> None:
    with host(tmp_path, "source", f"vhd:{image}") as source:
        here = Guest(source.socket)
        with host(tmp_path, "destination", f"vhd:{image}", waits):
            here.run([Op("write", 0, 9, 1)])
        here.run([Op("write", 9, 9, 2)])
        here.close()
    with Disk(f"vhd:{image}", readonly=True) as disk:
        assert disk.read(0, 18) == [1] * 9 + [2] * 9


def test_a_source_that_died_is_no_obstacle(tmp_path: Path, image: Path, waits: str) -> None:
    with host(tmp_path, "source", f"vhd:{image}") as source:
        here = Guest(source.socket)
        here.run([Op("write", 3, 2, 1)])
        with host(tmp_path, "destination", f"vhd:{image}", waits) as destination:
            source.kill()
            there = Guest(destination.socket)
            assert there.read(3, 2) == Op("write", 3, 2, 1).content()
            there.close()


def test_of_two_that_want_it_one_has_it_and_the_other_is_told(tmp_path: Path, image: Path, waits: str) -> None:
    """A source that goes on after all, when its image is elsewhere."""
    with host(tmp_path, "source", f"vhd:{image}") as source:
        with host(tmp_path, "destination", f"vhd:{image}", waits) as destination:
            source.ok("pause")
            wait_for(lambda: not state(destination) & REOPENING, "the destination has the image", 60)
            assert "has it open for writing; end that use first" in source.refused("unpause")
        source.ok("unpause")


def test_a_disk_that_waits_can_be_paused_and_goes_on(tmp_path: Path, image: Path, waits: str) -> None:
    with host(tmp_path, "source", f"vhd:{image}") as source:
        with host(tmp_path, "destination", f"vhd:{image}", waits) as destination:
            destination.ok("pause")
            source.ok("pause")
            time.sleep(0.5)
            assert state(destination) & PAUSED
            destination.ok("unpause")
            there = Guest(destination.socket)
            assert there.read(0, 1) == bytes(512)
            there.close()
        source.ok("unpause")


def test_an_image_that_has_grown_meanwhile_is_seen_so(tmp_path: Path, image: Path, waits: str) -> None:
    with host(tmp_path, "source", f"vhd:{image}") as source:
        with host(tmp_path, "destination", f"vhd:{image}", waits) as destination:
            destination.ok("pause")
            source.ok("pause")
            ok("resize", "-n", image, "-s", 10)
            destination.ok("unpause")
            there = Guest(destination.socket)
            assert there.sectors == 10 << 11
            there.close()
        source.ok("unpause")


def test_nothing_is_lost_on_the_way(tmp_path: Path) -> None:
    seed = int(os.environ.get("XENBLK_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"XENBLK_SEED={seed}")
    told = migration.Told()
    migration.run(tmp_path, MIGRATIONS, random.Random(seed), told)
    print(told)
    assert told.migrations == MIGRATIONS and told.asked_again > 0
