# SPDX-License-Identifier: LGPL-2.1-only
"""vhd-util scan: the lines that XenServer's storage manager takes apart."""

import json
from pathlib import Path
from uuid import UUID

import pytest

from tests.lib import vhdmake, vhdref
from tests.lib.disk import Disk
from tests.lib.vhdmake import MIB, Spec
from tests.lib.vhdutil import fails, ok, run

pytestmark = pytest.mark.io


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A base with two children, and an image alone; the base is hidden."""
    ok("create", "-n", tmp_path / "base.vhd", "-s", 20)
    ok("create", "-n", tmp_path / "alone.vhd", "-s", 6)
    for name in ("a.vhd", "b.vhd"):
        ok("snapshot", "-n", tmp_path / name, "-p", tmp_path / "base.vhd")
    ok("set", "-n", tmp_path / "base.vhd", "-f", "hidden", "-v", 1)
    return tmp_path


def line(path: Path, megabytes: int, hidden: int, parent: str, name: str | None = None) -> str:
    """As the peer prints it."""
    size = path.stat().st_size
    return f"vhd={name or path.name} capacity={megabytes * MIB} size={size} hidden={hidden} parent={parent}\n"


def test_lines_are_the_peers(images: Path) -> None:
    lines = [
        line(images / "a.vhd", 20, 0, "base.vhd"),
        line(images / "alone.vhd", 6, 0, "none"),
        line(images / "b.vhd", 20, 0, "base.vhd"),
        line(images / "base.vhd", 20, 1, "none"),
    ]
    assert ok("scan", "--debug", "-f", "-c", "-m", images / "*.vhd") == "".join(lines)
    assert ok("scan", "-m", images / "*.vhd") == "".join(lines)
    assert ok("scan", images / "alone.vhd", "-M") == lines[1].replace(" parent", " marker=0 keyhash= parent")
    whole = line(images / "a.vhd", 20, 0, str(images / "base.vhd"), str(images / "a.vhd"))
    assert ok("scan", "-v", images / "a.vhd") == whole


def test_patterns(images: Path) -> None:
    assert ok("scan", "-f", "-m", images / "{a,b}.vhd").count("\n") == 2
    assert ok("scan", "-f", "-m", images / "none*") == ""


def test_trees(images: Path) -> None:
    base = line(images / "base.vhd", 20, 1, "none")
    children = [line(images / f"{x}.vhd", 20, 0, "base.vhd") for x in "ab"]
    alone = line(images / "alone.vhd", 6, 0, "none")
    tree = base + "".join("   " + child for child in children) + alone
    assert ok("scan", "-p", "-m", images / "*.vhd") == tree
    lost = children[0].replace("\n", " (not found in scan)\n")
    assert ok("scan", "-p", images / "a.vhd") == lost
    assert ok("scan", "-p", "-a", images / "a.vhd") == base + "   " + children[0]


@pytest.mark.parametrize("fast", [True, False])
def test_parents_too(images: Path, fast: bool) -> None:
    raw = images / "raw.img"
    raw.write_bytes(bytes(MIB))
    ok("snapshot", "-n", images / "r.vhd", "-p", raw, "-m")
    args = ["-f"] if fast else []
    assert ok("scan", "-a", "-c", *args, images / "r.vhd") == line(
        images / "r.vhd", 1, 0, "raw.img"
    ) + line(raw, 1, 1, "none")
    assert ok("scan", "-a", *args, images / "a.vhd", images / "b.vhd").count("vhd=base.vhd") == 1


def test_failures(images: Path) -> None:
    bad = images / "aa.vhd"
    bad.write_bytes(b"x" * 4096)
    result = run("scan", "-f", "-c", "-m", images / "a*.vhd")
    lines = result.stdout.decode().splitlines()
    assert (result.returncode, len(lines)) == (0, 3)
    assert lines[1].startswith(f"vhd={bad} scan-error=-117 error-message='{bad}: ")
    result = run("scan", "-f", "-m", images / "a*.vhd")
    assert (result.returncode, result.stdout.decode().splitlines()) == (1, lines[:2])
    assert run("scan", "-f", images / "no.vhd").stdout.startswith(f"vhd={images}/no.vhd scan-error=-2 ".encode())
    (images / "base.vhd").unlink()
    assert ok("scan", images / "a.vhd").endswith("parent=base.vhd\n")


def test_a_loop_ends(tmp_path: Path) -> None:
    """Each is the other's parent, by its uuid too."""
    one, two = UUID(int=1), UUID(int=2)
    kind = vhdref.DIFFERENCING
    vhdmake.make(tmp_path / "x.vhd", Spec(kind=kind, uuid=one, parent_uuid=two, parent_name="y.vhd"))
    vhdmake.make(tmp_path / "y.vhd", Spec(kind=kind, uuid=two, parent_uuid=one, parent_name="x.vhd"))
    for args in (["-p", "-a"], ["-a"], ["-a", "-f"], ["-p"]):
        lines = ok("scan", *args, tmp_path / "x.vhd").splitlines()
        assert len(lines) == (2 if "-a" in args else 1)
    assert ok("scan", "-p", tmp_path / "y.vhd", tmp_path / "x.vhd").count("vhd=") == 2


def test_json(images: Path) -> None:
    (images / "bad.vhd").write_bytes(b"x" * 4096)
    got = json.loads(ok("scan", "-c", "--json", "-m", images / "*.vhd"))
    by_name = {Path(x["image"]).name: x for x in got}
    assert by_name["a.vhd"]["parent"] == str(images / "base.vhd") and by_name["a.vhd"]["error"] is None
    assert by_name["base.vhd"]["hidden"] is True and by_name["base.vhd"]["virtual_size"] == 20 * MIB
    assert "cookie" in by_name["bad.vhd"]["error"]


def test_images_in_use_are_listed(images: Path) -> None:
    with Disk(f"vhd:{images / 'alone.vhd'}"):
        assert ok("scan", "-f", images / "alone.vhd").startswith("vhd=alone.vhd ")


def test_wrong_calls(tmp_path: Path) -> None:
    assert run("scan").returncode == 2
    assert run("scan", "-?").returncode == 2
    assert run("scan", "-h").returncode == 0
    assert "volume group" in fails("scan", "-l", "../x", "-m", "*")


def test_a_name_in_an_image_makes_no_line(tmp_path: Path) -> None:
    """It is the image's maker who chose it, and storage managers read lines."""
    name = ".\\x\nvhd=victim.vhd capacity=1 size=1 hidden=1 parent=none\nvhd=y"
    spec = Spec(kind=vhdmake.DIFFERENCING, parent_uuid=UUID(int=7), locators=(vhdmake.Locator(b"W2ru", name.encode("utf-16-le")),))
    path = vhdmake.make(tmp_path / "a.vhd", spec)
    calls: list[tuple[str | Path, ...]] = [("scan", path), ("scan", "-f", path), ("scan", "-c", path)]
    calls.append(("query", "-n", path, "-pu"))
    for args in calls:
        text = run(*args).stdout
        assert text.count(b"\n") == 1 and b"?vhd=victim.vhd capacity" in text or b"victim" not in text, args
