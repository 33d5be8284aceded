# SPDX-License-Identifier: LGPL-2.1-only
"""A Xen built from source is found in its tree, and laid out as the beds look for it."""

import gzip
from pathlib import Path

import pytest

from tests.lib import xentree
from tests.lib.xentree import VARIABLE, XenTree, XenTreeError


LOWLEVEL = "lib/python3.13/dist-packages/xen/lowlevel/xc.so"


def make(directory: Path, prefix: str = "usr/local") -> Path:
    """What Xen's make install leaves, in small."""
    for name in ("sbin/xl", "sbin/xenstored", "lib/xen/bin/xen-init-dom0", "lib/libxenlight.so.4.23.0", "include/libxl.h", "lib/xen/boot/hvmloader", LOWLEVEL):
        path = directory / prefix / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    library = directory / prefix / "lib"
    (library / "libxenlight.so.4.23").symlink_to("libxenlight.so.4.23.0")
    (library / "libxenlight.so").symlink_to("libxenlight.so.4.23")
    (library / "libxenlight.a").write_text("an archive")
    (directory / "boot").mkdir()
    (directory / "boot/xen-4.23.gz").write_bytes(gzip.compress(b"the hypervisor"))
    (directory / "boot/xen.gz").symlink_to("xen-4.23.gz")
    return directory


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is remembered from one test to the next, and the cache is the test's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XENBLK_RELEASE", "12")
    xentree.given.cache_clear()
    xentree.prepared.cache_clear()


@pytest.mark.parametrize("prefix", ["usr/local", "usr"])
def test_it_is_found_where_it_was_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prefix: str) -> None:
    directory = make(tmp_path / "xen", prefix)
    monkeypatch.setenv(VARIABLE, str(directory))
    tree = xentree.given(12)
    assert tree == XenTree(directory, Path(prefix))
    assert tree.version == "4.23" and tree.hypervisor() == b"the hypervisor"
    assert xentree.given(13) is None
    assert f"-I{directory}/{prefix}/include -L{directory}/{prefix}/lib" in tree.flags()


def test_nothing_is_given_unless_it_is_said() -> None:
    assert xentree.given(12) is None


def test_what_is_no_such_tree_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(XenTreeError, match=f"{VARIABLE}={tmp_path}: no sbin/xl in usr/local or usr"):
        xentree.given(12)
    tree = XenTree(make(tmp_path / "xen"), Path("usr/local"))
    (tree.directory / "boot/xen-4.23.gz").unlink()
    with pytest.raises(XenTreeError, match=r"0 of boot/xen\*.gz, not one"):
        tree.hypervisor()
    (tree.directory / "usr/local/lib/libxenlight.so").unlink()
    with pytest.raises(XenTreeError, match="no libxenlight.so"):
        tree.libraries()


def test_its_programs_are_where_debians_would_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(xentree, "strip", lambda root: None)
    root, hypervisor = xentree.prepared(XenTree(make(tmp_path / "xen"), Path("usr/local")))
    programs = root / "usr/lib/xen-4.23/bin"
    assert (programs / "xl").read_text() == "sbin/xl"
    assert (root / "usr/local/lib/xen/boot/hvmloader").exists() and not (root / "boot").exists()
    # xenblk's own is the one that is found by name
    assert not (root / "usr/local/sbin/xl").exists()
    assert (programs / "xenstored").readlink() == Path("/usr/local/sbin/xenstored")
    assert (programs / "xen-init-dom0").readlink() == Path("/usr/local/lib/xen/bin/xen-init-dom0")
    assert (root / "usr/lib/xen-4.23/lib/python").readlink() == Path("/usr/local/lib/python3.13/dist-packages")
    library = root / "usr/lib/x86_64-linux-gnu/libxenlight.so.4.23"
    assert library.is_file() and not library.is_symlink()
    assert not list(root.rglob("*.a")) and not list(root.rglob("include")) and not (root / "boot").exists()
    assert hypervisor.read_bytes() == b"the hypervisor"
