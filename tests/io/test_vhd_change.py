# SPDX-License-Identifier: LGPL-2.1-only
"""vhd-util set, modify, fill, and those that are always refused."""

import os
import random
import shutil
from pathlib import Path
from uuid import UUID

import pytest

from tests.lib import vhdmake, vhdref
from tests.lib.disk import Disk
from tests.lib.recordlog import WRITE, read_log
from tests.lib.vhdlog import killed_states, lost_states, run_recorded
from tests.lib.vhdmake import MIB, Spec
from tests.lib.vhdutil import content, fails, ok, open_refused, run

pytestmark = pytest.mark.io


def create(path: Path, megabytes: int = 6, *args: str) -> Path:
    ok("create", "-n", path, "-s", megabytes, *args)
    return path


def snapshot(path: Path, parent: Path, *args: str) -> Path:
    ok("snapshot", "-n", path, "-p", parent, *args)
    return path


def write(path: Path, *commands: str) -> None:
    with Disk(f"vhd:{path}") as disk:
        assert set(disk.batch(list(commands))) == {"ok"}


def chain(directory: Path) -> tuple[Path, Path, Path]:
    """Three images, each with something of its own."""
    base = create(directory / "base.vhd")
    write(base, "w 0 30 1", "w 9000 5 1")
    middle = snapshot(directory / "middle.vhd", base)
    write(middle, "w 10 10 2")
    leaf = snapshot(directory / "leaf.vhd", middle)
    write(leaf, "w 12 3 3")
    return base, middle, leaf


# set


@pytest.mark.parametrize("fixed", [False, True])
def test_hidden(tmp_path: Path, fixed: bool) -> None:
    path = create(tmp_path / "a.vhd", 4, *(["-r"] if fixed else []))
    ok("set", "--debug", "-n", path, "-f", "hidden", "-v", 1)
    assert ok("query", "-n", path, "-f") == "hidden: 1\n"
    assert vhdref.Image(path).footer.hidden == 1
    assert "hidden" in open_refused(path)
    ok("set", "-n", path, "-f", "hidden", "-v", 0)
    assert ok("query", "-n", path, "-f") == "hidden: 0\n"
    write(path, "w 0 1 1")


def test_marker(tmp_path: Path) -> None:
    path = create(tmp_path / "a.vhd")
    ok("set", "-n", path, "-f", "marker", "-v", 255)
    assert ok("query", "-n", path, "-m") == "marker: 255\n"
    assert ok("check", "-n", path, "-b") == f"{path} is valid\n"
    foreign = vhdmake.make(tmp_path / "b.vhd", Spec())
    before = foreign.read_bytes()
    assert "batmap" in fails("set", "-n", foreign, "-f", "marker", "-v", 1)
    assert foreign.read_bytes() == before


def test_what_cannot_be_set(tmp_path: Path) -> None:
    path = create(tmp_path / "a.vhd")
    before = path.read_bytes()
    wrong = (["-f", "uuid", "-v", "1"], ["-f", "hidden", "-v", "256"], ["-f", "hidden", "-v", "x"], ["-f", "hidden"])
    for args in wrong:
        assert run("set", "-n", path, *args).returncode == 2
    with Disk(f"vhd:{path}", readonly=True):
        assert str(path) in fails("set", "-n", path, "-f", "hidden", "-v", 1)
    assert path.read_bytes() == before


# modify


def test_a_parent_that_was_renamed(tmp_path: Path) -> None:
    base, middle, leaf = chain(tmp_path)
    data = content(leaf)
    moved = tmp_path / "sub" / "m.vhd"
    moved.parent.mkdir()
    middle.rename(moved)
    base.rename(moved.parent / "base.vhd")
    assert run("query", "-n", leaf, "-p").returncode == 1
    ok("modify", "--debug", "-n", leaf, "-p", moved)
    assert ok("query", "-n", leaf, "-pu") == "./sub/m.vhd\n"
    assert content(leaf) == data == vhdref.Chain(leaf).read(0, len(data))
    image = vhdref.Image(leaf)
    assert (image.footer.data_offset, image.parent_name) == (512, "m.vhd")
    assert ok("check", "-n", leaf, "-pb").count("is valid") == 3


def test_an_ancestor_becomes_the_parent(tmp_path: Path) -> None:
    base, middle, leaf = chain(tmp_path)
    os.removexattr(base, "user.xenblk.children")
    ok("coalesce", "-n", middle)
    ok("modify", "-n", leaf, "-p", base)
    assert ok("query", "-n", leaf, "-pd") == f"{base}\nchain depth: 2\n"
    middle.unlink()
    with Disk(f"vhd:{leaf}", readonly=True) as disk:
        assert disk.read(8, 14) == [1] * 2 + [2] * 2 + [3] * 3 + [2] * 5 + [1] * 2
    assert os.getxattr(base, "user.xenblk.children") == b"1"


@pytest.mark.parametrize("options", [[], ["-z"]])
def test_a_parent_that_is_refused_changes_nothing(tmp_path: Path, options: list[str]) -> None:
    """Neither the image, whose data -z would have taken, nor the one that was to be the parent."""
    base, middle, leaf = chain(tmp_path)
    before = leaf.read_bytes()
    assert "No such file" in fails("modify", *options, "-n", leaf, "-p", tmp_path / "none.vhd")
    assert "--force" in fails("modify", *options, "-n", leaf, "-p", create(tmp_path / "other.vhd"))
    raw = tmp_path / os.fsdecode(b"a\xff.img")
    raw.write_bytes(bytes(MIB))
    fails("modify", *options, "-n", leaf, "-m", "-p", raw, "--force")
    assert leaf.read_bytes() == before
    for refused in (raw, tmp_path / "other.vhd"):
        assert "user.xenblk.children" not in os.listxattr(refused)
    ok("modify", *options, "-n", leaf, "-p", middle)


def test_a_size_that_cannot_be_costs_no_data(tmp_path: Path) -> None:
    path = create(tmp_path / "a.vhd")
    write(path, "w 0 9 1")
    before = path.read_bytes()
    assert "777 bytes is not a multiple of 512" in fails("modify", "-n", path, "-z", "-s", 777)
    assert "512 bytes would cut off data" in fails("modify", "-n", path, "-z", "-s", 512)
    assert path.read_bytes() == before


def test_what_an_image_between_holds_is_not_lost(tmp_path: Path) -> None:
    """It has not been coalesced, or not to its end, or was written again; --force is for who means it."""
    base, middle, leaf = chain(tmp_path)
    before = content(leaf)
    said = fails("modify", "-n", leaf, "-p", base)
    assert f"{leaf}: parent {base}: has not what {middle} holds from sector 10 on, which would be lost; coalesce" in said
    assert content(leaf) == before and ok("query", "-n", leaf, "-p") == f"{middle}\n"
    os.removexattr(base, "user.xenblk.children")
    ok("coalesce", "-n", middle)
    os.removexattr(middle, "user.xenblk.children")
    middle.rename(tmp_path / "m")
    leaf.rename(tmp_path / "l")  # or it could not be written
    write(tmp_path / "m", "w 40 1 5")
    (tmp_path / "m").rename(middle)
    (tmp_path / "l").rename(leaf)
    assert "holds from sector 40 on" in fails("modify", "-n", leaf, "-p", base)
    ok("modify", "-n", leaf, "-p", base, "--force")


def test_a_mark_that_an_image_was_coalesced_is_off_the_disk_before_it_is_written(tmp_path: Path) -> None:
    """A power loss that brought it back, and the time with it, would have what was written since believed to be in the parent."""
    (tmp_path / "images").mkdir()
    _, middle, leaf = chain(tmp_path / "images")
    leaf.unlink()

    def syncs_before_the_first_write(name: str) -> int:
        run_recorded(tmp_path / name, middle, "set", "-n", middle, "-f", "marker", "-v", 1)
        [recorded] = read_log(tmp_path / name)
        first = next(change for change in recorded.changes if change.kind == WRITE)
        return sum(sync.begun < first.begun for sync in recorded.syncs)

    without = syncs_before_the_first_write("without")
    ok("coalesce", "-n", middle)
    assert "user.xenblk.coalesced" in os.listxattr(middle)
    assert syncs_before_the_first_write("with") == without + 1
    assert "user.xenblk.coalesced" not in os.listxattr(middle)


@pytest.mark.parametrize("marked", [False, True])
def test_what_the_new_parent_has_already_is_no_loss(tmp_path: Path, marked: bool) -> None:
    """A mark says so, or the data: what the leaf hides of the image between, and what reads the same."""
    base, middle, leaf = chain(tmp_path)
    os.removexattr(base, "user.xenblk.children")
    if marked:
        before = content(leaf)
        ok("coalesce", "-n", middle)
        assert len(os.getxattr(middle, "user.xenblk.coalesced")) > 36
    else:
        write(leaf, "w 10 2 4", "w 15 5 4")
        before = content(leaf)
    ok("modify", "-n", leaf, "-p", base)
    assert content(leaf) == before


def test_a_mark_is_of_the_file_that_has_the_data(tmp_path: Path) -> None:
    """A copy from before the coalesce has the parent's uuid, and not the data."""
    base, middle, leaf = chain(tmp_path)
    (tmp_path / "copy").mkdir()
    copy = Path(shutil.copy(base, tmp_path / "copy" / "base.vhd"))
    os.removexattr(base, "user.xenblk.children")
    ok("coalesce", "-n", middle)
    config = tmp_path / "config"
    config.write_text(f"version=1\nimage_dir={tmp_path}/copy\n")
    said = fails("modify", "-n", leaf, "-p", copy, config=config)
    assert f"parent {copy}: has not what {middle} holds from sector 10 on" in said


def test_a_mark_is_of_the_parent_as_it_was_then(tmp_path: Path) -> None:
    """Who puts a backup of the parent in its place has another file there, or one of another time."""
    base, middle, leaf = chain(tmp_path)
    backup = tmp_path / "backup"
    shutil.copy(base, backup)
    os.removexattr(base, "user.xenblk.children")
    ok("coalesce", "-n", middle)
    held = base.read_bytes()
    for other in (False, True):
        if other:
            base.unlink()
        shutil.copy(backup, base)
        said = fails("modify", "-n", leaf, "-p", base)
        assert f"parent {base}: has not what {middle} holds from sector 10 on" in said
    # the data tells, whatever the file
    base.write_bytes(held)
    ok("modify", "-n", leaf, "-p", base)


def test_a_mark_is_of_what_the_file_held(tmp_path: Path) -> None:
    """Who puts back a copy of the image, or writes it by another program, leaves the mark."""
    base, middle, leaf = chain(tmp_path)
    os.removexattr(base, "user.xenblk.children")
    ok("coalesce", "-n", middle)
    held = middle.read_bytes()
    at = (vhdref.Image(middle).bat[0] + 1 + 10) * 512
    middle.write_bytes(held[:at] + b"x" * 512 + held[at + 512 :])
    assert os.getxattr(middle, "user.xenblk.coalesced")
    assert "parent" in fails("modify", "-n", leaf, "-p", base)


def test_a_parent_that_is_not_looked_at_in_full_may_lack_an_image(tmp_path: Path) -> None:
    base, _, leaf = chain(tmp_path)
    ok("modify", "-n", leaf, "-p", base, "--force")
    with Disk(f"vhd:{leaf}", readonly=True) as disk:
        assert disk.read(8, 10) == [1] * 4 + [3] * 3 + [1] * 3


def test_what_a_smaller_image_between_hides_does_not_come_up(tmp_path: Path) -> None:
    parent, small, between, leaf = (tmp_path / name for name in ("p.vhd", "s.vhd", "k.vhd", "l.vhd"))
    ok("create", "-n", parent, "-s", 20)
    ok("create", "-n", small, "-s", 10)
    ok("snapshot", "-e", "-n", between, "-p", small)
    ok("modify", "-n", between, "-p", parent, "--force")
    ok("snapshot", "-e", "-n", leaf, "-p", between)
    ok("resize", "-n", leaf, "-s", 20)
    said = fails("modify", "-n", leaf, "-p", parent)
    assert f"its size is {20 << 20} bytes; an image between them, of {10 << 20}, hides what it has behind that" in said
    ok("modify", "-n", leaf, "-p", parent, "--force")


def test_a_raw_parent_that_was_renamed(tmp_path: Path) -> None:
    raw = tmp_path / "base.img"
    raw.write_bytes(os.urandom(4 * MIB))
    leaf = snapshot(tmp_path / "a.vhd", raw, "-m")
    raw.rename(tmp_path / "b.img")
    ok("modify", "-n", leaf, "-p", tmp_path / "b.img", "-m")
    assert content(leaf) == (tmp_path / "b.img").read_bytes()


def test_names_longer_than_their_room(tmp_path: Path) -> None:
    base, middle, leaf = chain(tmp_path)
    data, size = content(leaf), leaf.stat().st_size
    for length in (3, 250, 9, 250, 200):
        new = tmp_path / ("m" * length)
        middle.rename(new)
        middle = new
        ok("modify", "-n", leaf, "-p", middle)
        assert content(leaf) == data
        assert ok("check", "-n", leaf, "-b") == f"{leaf} is valid\n"
        assert vhdref.Image(leaf).footer.data_offset == 512
    assert leaf.stat().st_size <= size + 8192


def test_what_cannot_be_a_parent(tmp_path: Path) -> None:
    base, middle, leaf = chain(tmp_path)
    other = create(tmp_path / "other.vhd")
    large = create(tmp_path / "large.vhd", 60)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert "--force" in fails("modify", "-n", leaf, "-p", other)
    assert "loop" in fails("modify", "-n", middle, "-p", leaf, "--force")
    assert "its own parent" in fails("modify", "-n", leaf, "-p", leaf)
    assert "not differencing" in fails("modify", "-n", base, "-p", other)
    assert "No such file" in fails("modify", "-n", leaf, "-p", tmp_path / "no")
    assert "none (raw)" in fails("modify", "-n", leaf, "-p", base, "-m")
    assert "/etc/passwd" in fails("modify", "-n", leaf, "-p", "/etc/passwd", "-m", "--force")
    assert run("modify", "-n", leaf).returncode == 2
    assert {p: p.read_bytes() for p in before} == before
    ok("modify", "-n", leaf, "-p", large, "--force")
    assert ok("query", "-n", leaf, "-p") == f"{large}\n"


def test_what_an_image_above_a_raw_parent_holds_is_not_lost(tmp_path: Path) -> None:
    raw = tmp_path / "root.img"
    raw.write_bytes(bytes(6 * MIB))
    middle = snapshot(tmp_path / "middle.vhd", raw, "-m")
    write(middle, "w 10 10 2")
    leaf = snapshot(tmp_path / "leaf.vhd", middle)
    before = content(leaf)
    said = fails("modify", "-n", leaf, "-p", raw, "-m")
    assert f"{leaf}: parent {raw}: has not what {middle} holds from sector 10 on, which would be lost; coalesce" in said
    assert content(leaf) == before
    ok("coalesce", "-n", middle)
    ok("modify", "-n", leaf, "-p", raw, "-m")
    assert content(leaf) == before


@pytest.mark.parametrize("lost", [False, True])
def test_the_parent_is_the_old_one_or_the_new_one_at_any_step(tmp_path: Path, lost: bool) -> None:
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    base, middle, leaf = chain(tmp_path)
    other = tmp_path / ("o" * 200 + ".vhd")
    shutil.copyfile(middle, other)
    data, before, log = content(leaf), tmp_path / "before", tmp_path / "log"
    shutil.copyfile(leaf, before)
    run_recorded(log, leaf, "modify", "-n", leaf, "-p", other)
    states = lost_states(log, before, leaf, random.Random(seed)) if lost else killed_states(log, before, leaf)
    for _ in states:
        assert content(leaf) == data
        assert ok("query", "-n", leaf, "-p") in (f"{middle}\n", f"{other}\n")
        run("repair", "-n", leaf)
        ok("modify", "-n", leaf, "-p", other)
        assert ok("query", "-n", leaf, "-p") == f"{other}\n"
        assert vhdref.Image(leaf).footer.data_offset == 512
        assert ok("check", "-n", leaf, "-b") == f"{leaf} is valid\n"


def test_an_image_without_gaps_has_its_header_at_any_step(tmp_path: Path) -> None:
    """The second header lies behind the last block, and is cut off again: the locators find room where the old are."""
    base = create(tmp_path / "base.vhd", 4)
    other = tmp_path / ("o" * 200 + ".vhd")
    shutil.copyfile(base, other)
    spec = Spec(
        size=4 * MIB,
        kind=vhdmake.DIFFERENCING,
        block_size=4096,
        parent_uuid=vhdref.Image(base).footer.uuid,
        parent_name="base.vhd",
        locators=tuple(vhdmake.Locator(code, "./base.vhd".encode("utf-16-le")) for code in (b"W2ru", b"W2ku", b"W2ru")),
        uuid=UUID(int=5),
        blocks={1: {3: b"x" * 512}},
    )
    leaf = vhdmake.make(tmp_path / "leaf.vhd", spec)
    data, before, log = content(leaf), tmp_path / "before", tmp_path / "log"
    shutil.copyfile(leaf, before)
    run_recorded(log, leaf, "modify", "-n", leaf, "-p", other)
    for _ in killed_states(log, before, leaf):
        assert content(leaf) == data
    assert vhdref.Image(leaf).footer.data_offset == 512


# fill


def test_fill_takes_all_into_the_image(tmp_path: Path) -> None:
    base, middle, leaf = chain(tmp_path)
    data = content(leaf)
    ok("fill", "-n", leaf)
    assert content(leaf) == data
    assert ok("query", "-n", leaf, "-a") == "3\n"
    assert ok("check", "-n", leaf, "-s").endswith("(100.00%)\n")
    image = vhdref.Image(leaf)
    assert b"".join(image.sector(s) for s in range(len(data) // 512)) == data
    size = leaf.stat().st_size
    ok("fill", "-n", leaf)
    assert (leaf.stat().st_size, content(leaf)) == (size, data)


def test_fill_of_an_odd_size(tmp_path: Path) -> None:
    path = vhdmake.make(tmp_path / "a.vhd", Spec(size=5 * MIB, blocks={1: {7: b"x" * 512}}))
    data = content(path)
    ok("fill", "-n", path)
    assert content(path) == data
    assert ok("query", "-n", path, "-a") == "3\n"


def test_fill_refuses_what_has_children(tmp_path: Path) -> None:
    base, _, _ = chain(tmp_path)
    before = base.read_bytes()
    assert "children" in fails("fill", "-n", base)
    assert base.read_bytes() == before


@pytest.mark.parametrize("lost", [False, True])
def test_fill_cut_off(tmp_path: Path, lost: bool) -> None:
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    _, _, leaf = chain(tmp_path)
    data, before, log = content(leaf), tmp_path / "before", tmp_path / "log"
    shutil.copyfile(leaf, before)
    run_recorded(log, leaf, "fill", "-n", leaf)
    states = lost_states(log, before, leaf, random.Random(seed)) if lost else killed_states(log, before, leaf)
    for _ in states:
        assert content(leaf) == data
        run("repair", "-n", leaf)
        assert run("check", "-n", leaf, "-b").returncode == 0
        ok("fill", "-n", leaf)
        assert content(leaf) == data


# refused


def test_revert_and_key_say_why_not(tmp_path: Path) -> None:
    path = create(tmp_path / "a.vhd")
    before = path.read_bytes()
    assert "no journal" in fails("revert", "-n", path, "-j", tmp_path / "j")
    assert "encrypt" in fails("key", "-n", path, "-s", "-k", tmp_path / "k")
    assert path.read_bytes() == before


@pytest.mark.parametrize("command", ["set", "modify", "fill", "revert", "key"])
def test_a_wrong_call_is_status_2(command: str) -> None:
    wrong: list[list[str]] = [[], ["-n", "x", "extra"], ["-?"]]
    for args in wrong:
        assert run(command, *args).returncode == 2
    assert run(command, "-h").returncode == 0
