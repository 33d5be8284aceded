# SPDX-License-Identifier: LGPL-2.1-only
"""Parents: how they are found, which are admitted, and that children protect them."""

import os
import shutil
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from tests.lib import vhdi, vhdmake, vhdref
from tests.lib.disk import Disk
from tests.lib.programs import program
from tests.lib.vhdmake import DIFFERENCING, FIXED, MIB, Locator, Spec, make
from tests.lib.vhdutil import content, fails, ok, open_refused, run

pytestmark = pytest.mark.io

BASE_ID = UUID(int=9)
BASE = Spec(uuid=BASE_ID, blocks={1: {7: b"b" * 512}})


def w2ru(path: str) -> Locator:
    return Locator(b"W2ru", path.encode("utf-16-le"))


def w2ku(path: str) -> Locator:
    return Locator(b"W2ku", path.encode("utf-16-le"))


def macx(url: str) -> Locator:
    return Locator(b"MacX", url.encode())


def child(*locators: Locator, parent: UUID = BASE_ID, name: str = "", uuid: int = 0x1234, size: int = 8 * MIB) -> Spec:
    return Spec(
        kind=DIFFERENCING, parent_uuid=parent, parent_name=name, locators=locators, uuid=UUID(int=uuid), size=size
    )


def parent_of(path: Path, config: Path | None = None) -> str:
    return ok("query", "-n", path, "-p", config=config).rstrip("\n")


def allow(tmp_path: Path, *dirs: Path) -> Path:
    """A configuration with these image directories."""
    config = tmp_path / "config"
    config.write_text("version=1\n" + "".join(f"image_dir={d}\n" for d in dirs))
    return config


# Finding


@pytest.mark.parametrize(
    ("locators", "name"),
    [
        ((w2ru(".\\base.vhd"),), ""),
        ((w2ru("base.vhd"),), ""),
        ((macx("file://./base.vhd"),), ""),
        ((macx("file://base.vhd"),), ""),
        ((w2ku(".\\base.vhd"),), ""),
        ((w2ku("C:\\Images\\base.vhd"),), "base.vhd"),
        ((w2ku("C:\\Images\\base.vhd"),), "C:\\Images\\base.vhd"),
        ((), "base.vhd"),
        ((w2ru(".\\gone.vhd"), macx("file://./base.vhd")), ""),
        ((Locator(b"Mac ", b"\1\2\3"), w2ru(".\\base.vhd")), ""),
        ((Locator(b"W2ru", b"\0\xd8\0\xd8"), macx("file://./base.vhd")), ""),
        ((Locator(b"W2ru", ".\\base.vhd".encode("utf-16-le"), space=1),), ""),
        ((w2ru(".\\base.vhd\0\0\0"),), ""),
    ],
)
def test_parent_is_found(tmp_path: Path, locators: tuple[Locator, ...], name: str) -> None:
    base = make(tmp_path / "base.vhd", BASE)
    leaf = make(tmp_path / "leaf.vhd", child(*locators, name=name))
    assert parent_of(leaf) == str(base)
    assert content(leaf) == vhdref.Chain(base).read(0, 8 * MIB)


@pytest.mark.parametrize("url", ["file://{}", "file://localhost{}"])
def test_parent_by_absolute_url(tmp_path: Path, url: str) -> None:
    (tmp_path / "x").mkdir()
    base = make(tmp_path / "base.vhd", BASE)
    leaf = make(tmp_path / "x" / "leaf.vhd", child(macx(url.format(base))))
    assert parent_of(leaf, allow(tmp_path, tmp_path)) == str(base)


@pytest.mark.parametrize("name", ["größe ü.vhd", "日本 𝄞.vhd", "with space.vhd", "50%41.vhd", "100%.vhd", "a,b:c.vhd"])
def test_names_beyond_ascii(tmp_path: Path, name: str) -> None:
    base = make(tmp_path / name, BASE)
    leaf = tmp_path / "leaf.vhd"
    ok("snapshot", "-n", leaf, "-p", base)
    assert parent_of(leaf) == str(base)
    assert vhdref.Image(leaf).parent_name == name
    by_url = [x for x in vhdref.Image(leaf).locators if x.code == b"MacX"]
    only = make(tmp_path / "only.vhd", child(macx("file://" + by_url[0].path)))
    assert parent_of(only) == str(base)


def test_percent_encoded_url(tmp_path: Path) -> None:
    base = make(tmp_path / "a b.vhd", BASE)
    assert parent_of(make(tmp_path / "leaf.vhd", child(macx("file://./a%20b.vhd")))) == str(base)


def test_unencoded_url_as_xenserver_writes_it(tmp_path: Path) -> None:
    base = make(tmp_path / "a%20b.vhd", BASE)
    assert parent_of(make(tmp_path / "leaf.vhd", child(macx("file://./a%20b.vhd")))) == str(base)


def test_relative_comes_before_absolute(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    make(tmp_path / "old" / "base.vhd", BASE)
    here = make(tmp_path / "new" / "base.vhd", BASE)
    leaf = make(tmp_path / "new" / "leaf.vhd", child(w2ku(f"{tmp_path}/old/base.vhd"), w2ru(".\\base.vhd")))
    assert parent_of(leaf, allow(tmp_path, tmp_path)) == str(here)


def test_a_chain_moves_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "one" / "sub").mkdir(parents=True)
    config = allow(tmp_path, tmp_path)
    base = make(tmp_path / "one" / "base.vhd", BASE)
    ok("snapshot", "-n", tmp_path / "one" / "sub" / "leaf.vhd", "-p", base, config=config)
    before = content(tmp_path / "one" / "sub" / "leaf.vhd", config=config)
    (tmp_path / "one").rename(tmp_path / "two")
    assert content(tmp_path / "two" / "sub" / "leaf.vhd", config=config) == before


def test_leaf_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    base = make(tmp_path / "real" / "base.vhd", BASE)
    make(tmp_path / "real" / "leaf.vhd", child(w2ru(".\\base.vhd")))
    (tmp_path / "link.vhd").symlink_to("real/leaf.vhd")
    assert parent_of(tmp_path / "link.vhd") == str(base)


def test_parent_of_another_uuid_is_not_taken(tmp_path: Path) -> None:
    make(tmp_path / "base.vhd", Spec(uuid=UUID(int=10)))
    leaf = make(tmp_path / "leaf.vhd", child(w2ru(".\\base.vhd")))
    message = fails("check", "-n", leaf, "-t", status=2)
    assert str(UUID(int=10)) in message and str(BASE_ID) in message
    right = make(tmp_path / "right.vhd", BASE)
    leaf = make(tmp_path / "leaf.vhd", child(w2ru(".\\base.vhd"), macx("file://right.vhd")))
    assert parent_of(leaf) == str(right)


def test_a_copy_does_not_stand_in_for_a_parent_that_cannot_be_opened(tmp_path: Path) -> None:
    """It has the parent's uuid and name, and what the parent had when it was copied."""
    parent, child = tmp_path / "below" / "base.vhd", tmp_path / "leaf.vhd"
    parent.parent.mkdir()
    ok("create", "-n", parent, "-s", 8)
    ok("snapshot", "-n", child, "-p", parent)
    shutil.copy(parent, tmp_path)
    whole = parent.read_bytes()
    parent.write_bytes(bytes(len(whole)))
    said = fails("copy", "-n", child, "-N", tmp_path / "copy.vhd")
    assert str(parent) in said and not (tmp_path / "copy.vhd").exists()
    parent.write_bytes(whole)
    ok("copy", "-n", child, "-N", tmp_path / "copy.vhd")


def test_missing_parent(tmp_path: Path) -> None:
    leaf = make(tmp_path / "leaf.vhd", child(w2ru(".\\base.vhd")))
    message = fails("check", "-n", leaf, status=2)
    assert "'./base.vhd'" in message and str(tmp_path) in message


def test_child_larger_than_its_parent_reads_zeros_beyond(tmp_path: Path) -> None:
    make(tmp_path / "base.vhd", BASE)
    leaf = make(tmp_path / "leaf.vhd", child(w2ru(".\\base.vhd"), size=11 * MIB))
    assert content(leaf) == vhdref.Chain(tmp_path / "base.vhd").read(0, 8 * MIB) + bytes(3 * MIB)


def test_fixed_parent(tmp_path: Path) -> None:
    base = make(tmp_path / "base.vhd", Spec(kind=FIXED, uuid=BASE_ID, blocks={2: {3: b"f" * 512}}))
    leaf = tmp_path / "leaf.vhd"
    ok("snapshot", "-n", leaf, "-p", base)
    assert content(leaf) == base.read_bytes()[: 8 * MIB]


def test_chain_reads_as_libvhdi_and_our_reader_say(tmp_path: Path) -> None:
    paths = [tmp_path / "0.vhd"]
    ok("create", "-n", paths[0], "-s", 8)
    for i in range(1, 5):
        with Disk(f"vhd:{paths[-1]}") as disk:
            assert disk.batch([f"w {i * 4096 - 4096} 4096 {i}", f"w {i * 1000} 64 {i + 10}"][: 1 + i % 2])
        paths.append(tmp_path / f"{i}.vhd")
        ok("snapshot", "-n", paths[-1], "-p", paths[-2])
    data = content(paths[-1])
    assert data == vhdref.Chain(paths[-1]).read(0, 8 * MIB)
    assert vhdi.read(paths) == data


# Depth and loops


def test_thirty_images_and_not_one_more(tmp_path: Path) -> None:
    make(tmp_path / "0.vhd", Spec(uuid=UUID(int=100)))
    for i in range(1, 31):
        make(tmp_path / f"{i}.vhd", child(w2ru(f"{i - 1}.vhd"), parent=UUID(int=99 + i), uuid=100 + i))
    assert ok("query", "-n", tmp_path / "29.vhd", "-d") == "chain depth: 30\n"
    assert "more than 30" in fails("query", "-n", tmp_path / "30.vhd", "-v", "-d")
    assert "more than 30" in fails("read", "-n", tmp_path / "30.vhd", "-r", 0)
    assert run("check", "-n", tmp_path / "30.vhd", "-pt").returncode == 2
    assert "30 images" in fails("snapshot", "-n", tmp_path / "x", "-p", tmp_path / "29.vhd", "-e")


def test_loops_end(tmp_path: Path) -> None:
    make(tmp_path / "a.vhd", child(w2ru("b.vhd"), parent=UUID(int=2), uuid=1))
    make(tmp_path / "b.vhd", child(w2ru("a.vhd"), parent=UUID(int=1), uuid=2))
    make(tmp_path / "self.vhd", child(w2ru("self.vhd"), parent=UUID(int=3), uuid=3))
    for name in ("a.vhd", "self.vhd"):
        assert "form a loop" in fails("query", "-n", tmp_path / name, "-v", "-d")
        assert "form a loop" in fails("check", "-n", tmp_path / name, "-pt", status=2).splitlines()[-1]
        assert "form a loop" in fails("snapshot", "-n", tmp_path / "x", "-p", tmp_path / name)
        assert "form a loop" in open_refused(tmp_path / name, readonly=True)


# Admission


@pytest.mark.parametrize("target", ["/etc/shadow", "/etc/passwd"])
def test_files_of_the_host_are_not_served_as_parents(tmp_path: Path, target: str) -> None:
    for locator in (w2ku(target), macx(f"file://{target}"), w2ru("..\\" * 20 + target[1:].replace("/", "\\"))):
        leaf = make(tmp_path / "leaf.vhd", child(locator, parent=UUID(int=0)))
        message = fails("read", "-n", leaf, "-r", 0)
        assert target in message and str(leaf) in message
        assert target in open_refused(leaf, readonly=True)


def test_a_file_outside_is_no_parent_though_it_could_be_one(tmp_path: Path) -> None:
    secret, inside = tmp_path / "secret.img", tmp_path / "in"
    secret.write_bytes(b"s" * 4096)
    inside.mkdir()
    text = str(secret)
    for locator in (w2ku(text), w2ru("..\\secret.img"), w2ru("..\\" * 20 + text[1:]), macx(f"file://{text}")):
        leaf = make(inside / "leaf.vhd", child(locator, parent=UUID(int=0), size=4096))
        result = run("read", "-n", leaf, "-r", 0)
        assert (result.returncode, result.stdout) == (1, b"")
        assert b"image director" in result.stderr
        assert "image director" in open_refused(leaf, readonly=True)
    assert run("read", "-n", leaf, "-r", 0, config=allow(tmp_path, tmp_path)).stdout == b"s" * 512


def test_a_link_does_not_lead_out(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    make(outside / "base.vhd", BASE)
    (inside / "base.vhd").symlink_to(outside / "base.vhd")
    leaf = make(inside / "leaf.vhd", child(w2ru(".\\base.vhd")))
    assert "base.vhd" in fails("read", "-n", leaf, "-r", 0)
    assert run("read", "-n", leaf, "-r", 0, config=allow(tmp_path, outside)).returncode == 0


def test_snapshot_refuses_a_parent_that_it_could_not_open(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    base = make(tmp_path / "a" / "base.vhd", BASE)
    assert str(base) in fails("snapshot", "-n", tmp_path / "b" / "leaf.vhd", "-p", base)
    assert os.listdir(tmp_path / "b") == []
    ok("snapshot", "-n", tmp_path / "b" / "leaf.vhd", "-p", base, config=allow(tmp_path, tmp_path / "a"))


def test_raw_parent_is_the_one_named_or_none(tmp_path: Path) -> None:
    """Without a uuid to tell, a file that merely has the name is not taken."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "base.img").write_bytes(b"\1" * MIB)
    leaf = make(tmp_path / "x" / "leaf.vhd", child(w2ru("..\\base.img"), parent=UUID(int=0), name="base.img"))
    assert "missing" in fails("read", "-n", leaf, "-r", 0)
    (tmp_path / "base.img").write_bytes(b"\2" * MIB)
    assert "base.img" in fails("read", "-n", leaf, "-r", 0)
    config = allow(tmp_path, tmp_path)
    assert run("read", "-n", leaf, "-r", 0, config=config).stdout == b"\2" * 512


def test_a_fifo_as_parent_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "base.vhd")
    leaf = make(tmp_path / "leaf.vhd", child(w2ru(".\\base.vhd")))
    assert "FIFO" in fails("check", "-n", leaf, "-t")


# Children protect their parent


def test_image_with_a_child_beside_it_is_not_written(tmp_path: Path) -> None:
    base = make(tmp_path / "base.vhd", BASE)
    leaf = make(tmp_path / "leaf", child(w2ru(".\\base.vhd")))
    before = base.read_bytes()
    assert str(leaf) in open_refused(base)
    with Disk(f"vhd:{base}", readonly=True) as disk:
        assert disk.sectors == 8 * MIB // 512
    assert base.read_bytes() == before
    leaf.unlink()
    with Disk(f"vhd:{base}") as disk:
        assert disk.write(0, 1, 1) == "ok"


def test_child_of_another_image_of_that_name_does_not_matter(tmp_path: Path) -> None:
    """After a live snapshot the leaf has the name that its parent had."""
    base = make(tmp_path / "base.vhd", BASE)
    make(tmp_path / "stale.vhd", child(w2ru(".\\base.vhd"), parent=UUID(int=77)))
    shutil.copy(base, tmp_path / "copy.vhd")
    with Disk(f"vhd:{base}") as disk:
        assert disk.write(0, 1, 1) == "ok"
    make(tmp_path / "leaf.vhd", child(w2ru(".\\base.vhd")))
    with Disk(f"vhd:{tmp_path / 'copy.vhd'}") as disk:
        assert disk.write(0, 1, 1) == "ok"


def test_raw_image_with_a_child_beside_it_is_not_written(tmp_path: Path) -> None:
    raw = tmp_path / "base.img"
    raw.write_bytes(bytes(MIB))
    make(tmp_path / "leaf.vhd", child(w2ru(".\\base.img"), parent=UUID(int=0)))
    assert "leaf.vhd" in open_refused(raw, kind="aio")


def test_a_guest_cannot_make_its_fixed_disk_pass_for_a_child(tmp_path: Path) -> None:
    raw = tmp_path / "base.img"
    raw.write_bytes(bytes(MIB))
    fixed = make(tmp_path / "guest.vhd", Spec(kind=FIXED))
    with fixed.open("r+b") as f:
        f.write(vhdmake.image(child(w2ru(".\\base.img"), parent=UUID(int=0), size=2 * MIB)))
    with Disk(f"aio:{raw}") as disk:
        assert disk.write(0, 1, 1) == "ok"


def test_what_keeps_from_looking_for_children_keeps_from_writing(tmp_path: Path) -> None:
    """The mark of a parent is not everywhere; here no more files may be opened than the image itself takes."""
    base = make(tmp_path / "base.vhd", BASE)
    ok("snapshot", "-n", tmp_path / "child.vhd", "-p", base)
    os.removexattr(base, "user.xenblk.children")
    said = []
    for files in range(4, 12):
        argv = ["prlimit", f"--nofile={files}", str(program("tests/tool-disk")), f"vhd:{base}"]
        done = subprocess.run(argv, input=b"", capture_output=True, timeout=120, check=False)
        assert done.returncode == 1
        said.append(done.stderr.decode())
    assert any(f"looking for its children: {tmp_path}/child.vhd: Too many open files" in line for line in said), said
    assert f"is the parent of {tmp_path}/child.vhd" in said[-1]
