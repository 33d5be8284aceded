# SPDX-License-Identifier: LGPL-2.1-only
"""tap-ctl snapshot: a new leaf under a disk in use, and what is there if it fails or is cut off."""

import errno
import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.lib import vhdutil
from tests.lib.disk import Disk, write_raw
from tests.lib.expected import Expected, random_batch
from tests.lib.faults import Faults
from tests.lib.nbddisk import NbdDisk
from tests.lib.tapctl import MINOR, Served
from tests.lib.waiting import wait_for

SIZE = 12 * 2048


@pytest.fixture
def leaf(tmp_path: Path) -> Path:
    (tmp_path / "srv").mkdir()
    path = tmp_path / "srv" / "disk.vhd"
    vhdutil.ok("create", "-n", path, "-s", 12)
    return path


def names(leaf: Path) -> list[str]:
    return sorted(entry.name for entry in leaf.parent.iterdir())


def test_snapshots_under_load_lose_nothing(tmp_path: Path, leaf: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    chance = random.Random(seed)
    expected = Expected(SIZE)
    with Served(tmp_path, f"vhd:{leaf}") as served, NbdDisk(served.socket, 3) as disk:
        for i in range(6):
            snapshot = served.start("snapshot", "-n", f"base{i}.vhd")
            batches = 0
            while snapshot.poll() is None or not batches:
                expected.run(disk, random_batch(expected, chance, 16))
                batches += 1
            assert (snapshot.communicate()[1], snapshot.returncode) == ("", 0)
            expected.run(disk, random_batch(expected, chance, 16))
        expected.check(disk)
        assert served.log().count("requests waited at most") == 6
    assert names(leaf) == sorted(["disk.vhd", *(f"base{i}.vhd" for i in range(6))])
    assert "is valid" in vhdutil.ok("check", "-n", leaf, "-p", "-b")
    with Disk(f"vhd:{leaf}") as disk:
        assert (disk.sectors, disk.depth) == (SIZE, 7)
        expected.check(disk)


def test_the_parent_keeps_what_was_there(tmp_path: Path, leaf: Path) -> None:
    expected = Expected(SIZE)
    with Served(tmp_path, f"vhd:{leaf}") as served, NbdDisk(served.socket) as disk:
        expected.run(disk, [expected.write_command(100, 64), expected.write_command(5000, 8)])
        then = list(expected.now)
        served.ok("snapshot", "-n", "base.vhd")
        expected.run(disk, [expected.write_command(100, 8)])
        # The new leaf is locked for writing, the parent for reading.
        assert "in use" in vhdutil.fails("repair", "-n", leaf)
        with Disk(f"vhd:{leaf.parent}/base.vhd", readonly=True) as base:
            was = Expected(SIZE)
            was.now = then
            was.check(base)
    # It is a parent from now on.
    with pytest.raises(OSError, match="is marked as having children"):
        Disk(f"vhd:{leaf.parent}/base.vhd").close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("taken.vhd", "taken.vhd: File exists; give the parent another name"),
        ("{elsewhere}/base.vhd", "base.vhd: must be in the directory of the leaf, "),
        ("./base.vhd", "./base.vhd: must be absolute, or a mere name"),
        (".xenblk-base.vhd", ".xenblk-base.vhd: names that begin with .xenblk- are for files that are not whole yet"),
        ("a" * 300, "File name too long"),
    ],
)
def test_a_wrong_name_changes_nothing(tmp_path: Path, leaf: Path, name: str, message: str) -> None:
    (leaf.parent / "taken.vhd").touch()
    before = names(leaf)
    expected = Expected(SIZE)
    with Served(tmp_path, f"vhd:{leaf}") as served, NbdDisk(served.socket) as disk:
        expected.run(disk, [expected.write_command(0, 8)])
        assert message in served.refused("snapshot", "-n", name.format(elsewhere=tmp_path))
        assert names(leaf) == before
        expected.run(disk, [expected.write_command(8, 8)])
        expected.check(disk)
    with Disk(f"vhd:{leaf}") as disk:
        expected.check(disk)


def test_only_a_vhd_that_is_open_has_snapshots(tmp_path: Path, leaf: Path) -> None:
    image = tmp_path / "a.img"
    write_raw(image, SIZE, {})
    with Served(tmp_path, f"aio:{image}") as served:
        assert served.refused("snapshot", "-n", "b") == f"minor 3: aio:{image}: only a vhd: can have a snapshot"
    with Served(tmp_path, f"vhd:{leaf}") as served:
        served.ok("pause")
        assert "minor 3: is paused; unpause it first" in served.refused("snapshot", "-n", "base.vhd")
        assert names(leaf) == ["disk.vhd"]
    with Served(tmp_path, f"vhd:{leaf}", "-R") as served:
        assert "is read-only" in served.refused("snapshot", "-n", "base.vhd")
        assert names(leaf) == ["disk.vhd"]


def test_a_leaf_that_is_another_file_now_is_left_alone(tmp_path: Path, leaf: Path) -> None:
    with Served(tmp_path, f"vhd:{leaf}") as served:
        os.rename(leaf, f"{leaf}.moved")
        vhdutil.ok("create", "-n", leaf, "-s", 12)
        assert "is not the file that is served any more" in served.refused("snapshot", "-n", "base.vhd")
        assert names(leaf) == ["disk.vhd", "disk.vhd.moved"]


def slow_snapshot(served: Served, leaf: Path, rules: Faults) -> "subprocess.Popen[str]":
    """One whose flush is not over before the rules are off, and which has its child by now."""
    rules.set(f"sync file={leaf.name} stuck")
    made = served.start("snapshot", "-n", "one.vhd")

    def opened() -> bool:
        """By tapdisk."""
        return any("/.xenblk-snapshot-" in os.path.realpath(fd) for fd in Path(f"/proc/{served.pid}/fd").iterdir())

    wait_for(opened, "the child is open", 20)
    return made


def test_a_disk_has_one_snapshot_at_a_time(tmp_path: Path, leaf: Path) -> None:
    expected = Expected(SIZE)
    rules = Faults(tmp_path / "rules")
    with Served(tmp_path, f"vhd:{leaf}", engine=rules.engine()) as served, NbdDisk(served.socket) as disk:
        expected.run(disk, [expected.write_command(0, 64)])
        made = slow_snapshot(served, leaf, rules)
        said = served.refused("snapshot", "-n", "two.vhd")
        assert said == "minor 3: another snapshot of it is being made; try again when that is done"
        rules.off()
        assert (made.communicate()[1], made.returncode) == ("", 0)
        assert names(leaf) == ["disk.vhd", "one.vhd"]
        expected.run(disk, [expected.write_command(0, 8)])
    with Disk(f"vhd:{leaf}") as disk_again:
        expected.check(disk_again)


def test_a_snapshot_whose_new_leaf_is_another_file_is_called_off(tmp_path: Path, leaf: Path) -> None:
    """As a second tap-ctl could make it when the first was killed; written to would be what nobody can open again."""
    expected = Expected(SIZE)
    rules = Faults(tmp_path / "rules")
    with Served(tmp_path, f"vhd:{leaf}", engine=rules.engine()) as served, NbdDisk(served.socket) as disk:
        expected.run(disk, [expected.write_command(0, 64)])
        made = slow_snapshot(served, leaf, rules)
        [child] = leaf.parent.glob(".xenblk-snapshot-*")
        child.unlink()
        vhdutil.ok("create", "-n", child, "-s", 12)
        rules.off()
        assert "leads to another file meanwhile" in made.communicate()[1]
        assert names(leaf) == ["disk.vhd"]
        expected.run(disk, [expected.write_command(0, 8)])
    with Disk(f"vhd:{leaf}") as disk_again:
        expected.check(disk_again)


def test_a_snapshot_over_stuck_io_is_called_off(tmp_path: Path, leaf: Path) -> None:
    expected = Expected(SIZE)
    rules = Faults(tmp_path / "rules")
    with Served(tmp_path, f"vhd:{leaf}", engine=rules.engine()) as served, NbdDisk(served.socket) as disk:
        expected.run(disk, [expected.write_command(0, 64)])
        rules.set("write stuck")
        command = expected.write_command(0, 8)
        stuck = disk.start([command])
        message = served.refused("snapshot", "-n", "base.vhd", "-t", 1)
        assert message.startswith("minor 3: not done, the disk goes on: 1 requests did not come back from")
        assert names(leaf) == ["disk.vhd"]
        rules.off()
        assert disk.wait(stuck) == ["ok"]
        expected.acknowledged(command)
        served.ok("snapshot", "-n", "base.vhd")
        expected.check(disk)
    assert vhdutil.ok("query", "-n", leaf, "-d") == "chain depth: 2\n"


@pytest.mark.parametrize("error", [errno.EIO, errno.EAGAIN])
def test_no_flush_succeeds_before_the_new_leaf_has_its_name_for_good(tmp_path: Path, leaf: Path, error: int) -> None:
    """A power loss would bring back the old leaf: an error for the guest, or, if it may pass, time."""
    fails = tmp_path / "fails"
    base = leaf.with_name("base.vhd")
    expected = Expected(SIZE)
    with (
        Served(tmp_path, f"vhd:{leaf}", dir_sync_fails=fails) as served,
        NbdDisk(served.socket) as disk,
    ):
        expected.run(disk, [expected.write_command(100, 64)])
        fails.write_text(str(error))
        message = served.refused("snapshot", "-n", "base.vhd")
        assert f"the snapshot is made and the disk goes on, but the sync of its directory failed: {os.strerror(error)};" in message
        assert names(leaf) == ["base.vhd", "disk.vhd"]
        # Else the old leaf, back at the disk's name, could not be opened.
        assert "user.xenblk.children" not in os.listxattr(base)
        expected.run(disk, [expected.write_command(100, 8)])
        flushes = disk.start(["f"])
        if error == errno.EIO:
            assert disk.wait(flushes) == ["err 5"]
            flushes = disk.start(["f"])
            assert disk.wait(flushes) == ["err 5"]
            fails.unlink()
            flushes = disk.start(["f"])
        else:
            time.sleep(1.5)
            assert not flushes[0].look()
            fails.unlink()
        assert disk.wait(flushes) == ["ok"]
        assert "user.xenblk.children" in os.listxattr(base)
        served.ok("snapshot", "-n", "again.vhd")
        expected.check(disk)
    assert vhdutil.ok("query", "-n", leaf, "-d") == "chain depth: 3\n"
    with Disk(f"vhd:{leaf}") as disk:
        expected.check(disk)


def test_a_sync_that_failed_is_the_guests_to_know(tmp_path: Path, leaf: Path) -> None:
    """The kernel may have dropped what it could not write: the next sync would succeed."""
    fails = tmp_path / "fails"
    with Served(tmp_path, f"vhd:{leaf}", dir_sync_fails=fails) as served, NbdDisk(served.socket) as disk:
        fails.write_text(str(errno.EIO))
        assert "Input/output error" in served.refused("snapshot", "-n", "base.vhd")
        fails.unlink()
        assert disk.batch(["f"]) == ["err 5"]
        assert disk.batch(["f"]) == ["ok"]


def test_closing_a_disk_says_that_its_name_may_be_lost(tmp_path: Path, leaf: Path) -> None:
    fails = tmp_path / "fails"
    with Served(tmp_path, f"vhd:{leaf}", dir_sync_fails=fails) as served:
        fails.write_text(str(errno.ENOMEM))
        assert "the snapshot is made" in served.refused("snapshot", "-n", "base.vhd")
        assert "the flush before the snapshot failed" in served.refused("snapshot", "-n", "again.vhd")
        assert names(leaf) == ["base.vhd", "disk.vhd"]
        assert "the last flush failed: Cannot allocate memory" in served.refused("close")
        # Nor is it durable because another opens it.
        served.ok("open", "-a", f"vhd:{leaf}", "-R")
        served.ok("close")
        served.ok("open", "-a", f"vhd:{leaf}")
        assert "the sync of a leaf's directory failed" in served.log()
        assert "the last flush failed: Cannot allocate memory" in served.refused("close")
        fails.unlink()
        served.ok("open", "-a", f"vhd:{leaf}")


@pytest.mark.parametrize("renamed", [False, True])
def test_a_snapshot_that_is_cut_off_leaves_the_disk(tmp_path: Path, leaf: Path, renamed: bool) -> None:
    """Made by hand, what is there before and after the one step; tapdisk was killed then."""
    expected = Expected(SIZE)
    with Served(tmp_path, f"vhd:{leaf}") as served, NbdDisk(served.socket) as disk:
        expected.run(disk, [expected.write_command(100, 64)])
        served.kill()
    base, child = leaf.with_name("base.vhd"), leaf.with_name(f".xenblk-snapshot-{served.pid}-{MINOR}")
    os.link(leaf, base)
    vhdutil.ok("snapshot", "-n", child, "-p", base)
    os.removexattr(base, "user.xenblk.children")
    if renamed:
        child.rename(leaf)
    with Served(tmp_path, f"vhd:{leaf}") as served, NbdDisk(served.socket) as disk:
        expected.check(disk)
        expected.run(disk, [expected.write_command(100, 8)])
        # A later one does not stumble over what was left.
        served.ok("snapshot", "-n", "again.vhd")
        expected.check(disk)
    # A warning of what the killed one left is no error.
    assert vhdutil.run("check", "-n", leaf, "-p", "-b").returncode == 0
    if renamed:
        with pytest.raises(OSError, match="is the parent of"):
            Disk(f"vhd:{base}").close()


def test_a_chain_of_thirty_takes_no_more(tmp_path: Path, leaf: Path) -> None:
    with Served(tmp_path, f"vhd:{leaf}") as served:
        for i in range(29):
            served.ok("snapshot", "-n", f"{i}.vhd")
        assert "has 30 images, the most there may be; coalesce it first" in served.refused("snapshot", "-n", "29.vhd")
        assert "29.vhd" not in names(leaf)
        assert f"args=vhd:{leaf}\n" in served.ok("list")
    assert vhdutil.ok("query", "-n", leaf, "-d") == "chain depth: 30\n"
