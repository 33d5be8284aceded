# SPDX-License-Identifier: LGPL-2.1-only
"""A Xen built from source in the place of a bed's own: $XENBLK_XEN names the tree that its `make install` left.

Its hypervisor is booted, its tools lie over Debian's, and ours are built with its headers and libraries. QEMU and SeaBIOS stay
Debian's, so the tree is configured to use them: docs/testing.md.
"""

import functools
import gzip
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.lib import cache

VARIABLE = "XENBLK_XEN"
PREFIXES = ("usr/local", "usr")
# Searched without a cache of libraries, which the tree's are not in.
SYSTEM_LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
# The hypervisor's directory apart.
LEFT_OUT = ("include", "debug", "doc", "man", "pkgconfig", "xen-shim")


class XenTreeError(Exception):
    """What $XENBLK_XEN names is no such tree."""


@dataclass(frozen=True)
class XenTree:
    """An installed tree. prefix: where its programs are, as "usr/local"."""

    directory: Path
    prefix: Path

    def libraries(self) -> Path:
        """The directory of its libraries."""
        found = sorted((self.directory / self.prefix).glob("lib*/**/libxenlight.so"))
        if not found:
            raise XenTreeError(f"{VARIABLE}={self.directory}: no libxenlight.so in {self.prefix}: `make install-tools` brings it")
        return found[0].parent

    @property
    def version(self) -> str:
        """As in the names of its libraries: 4.23."""
        return os.readlink(self.libraries() / "libxenlight.so").removeprefix("libxenlight.so.")

    def hypervisor(self) -> bytes:
        """Xen, unpacked."""
        packed = sorted(p for p in (self.directory / "boot").glob("xen*.gz") if not p.is_symlink())
        if len(packed) != 1:
            raise XenTreeError(f"{VARIABLE}={self.directory}: {len(packed)} of boot/xen*.gz, not one: `make install-xen` brings it")
        return gzip.decompress(packed[0].read_bytes())

    def flags(self) -> str:
        """What a compiler needs to be told to build with it."""
        lib = self.libraries()
        return f"-O2 -g -I{self.directory / self.prefix / 'include'} -L{lib} -Wl,-rpath-link,{lib}"


@functools.cache
def given(release: int) -> XenTree | None:
    """The tree to be tested in beds of a Debian release, if one is named. It was built for that which tests run on if
    they don't say ($XENBLK_RELEASE): those of others keep their own Xen."""
    value = os.environ.get(VARIABLE, "")
    if not value or release != int(os.environ.get("XENBLK_RELEASE") or 12):
        return None
    directory = Path(value).resolve()
    for prefix in PREFIXES:
        if (directory / prefix / "sbin/xl").exists():
            return XenTree(directory, Path(prefix))
    raise XenTreeError(f"{VARIABLE}={value}: no sbin/xl in {' or '.join(PREFIXES)}; it takes the DESTDIR of Xen's make install")


@functools.cache
def prepared(tree: XenTree) -> tuple[Path, Path]:
    """What lies over a bed's root, and the hypervisor."""
    state = [[str(path), path.stat().st_mtime_ns] for path in (tree.directory / "boot", tree.libraries())]
    place = cache.product("xen", cache.key(state, [Path(__file__)]), lambda directory: _prepare(tree, directory))
    return place / "root", place / "hypervisor"


def strip(root: Path) -> None:
    """It will be in memory."""
    subprocess.run(["find", str(root), "-name", "*.so.*", "-type", "f", "-exec", "strip", "--strip-unneeded", "{}", "+"], check=True)


def _prepare(tree: XenTree, directory: Path) -> None:
    root = directory / "root"

    def left_out(folder: str, names: list[str]) -> set[str]:
        found = {name for name in names if name in LEFT_OUT or name.endswith((".a", ".efi"))}
        return found | {"boot"} if Path(folder) == tree.directory else found

    shutil.copytree(tree.directory, root, symlinks=True, ignore=left_out)
    strip(root)
    # As Debian has them, where the front of xl, the bed and Debian's scripts look by the version that runs.
    programs = root / f"usr/lib/xen-{tree.version}/bin"
    programs.mkdir(parents=True)
    (root / tree.prefix / "sbin/xl").rename(programs / "xl")
    for folder in ("sbin", "lib/xen/bin"):
        for program in (root / tree.prefix / folder).iterdir():
            (programs / program.name).symlink_to("/" / program.relative_to(root))
    if tree.prefix != Path("usr"):
        # Its own scripts, xendomains for one, call xl there: our front, as an administrator has it.
        (root / tree.prefix / "sbin/xl").symlink_to("/usr/sbin/xl")
    for package in (root / tree.prefix).glob("lib*/**/xen/lowlevel"):
        (programs.parent / "lib").mkdir()
        (programs.parent / "lib/python").symlink_to("/" / package.parents[1].relative_to(root))
    for library in (root / tree.libraries().relative_to(tree.directory)).glob("*.so.*"):
        place = root / SYSTEM_LIBRARIES / library.name
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            # no link: Debian has links of the same names, over which none can be laid
            shutil.copy2(library, place)
    (directory / "hypervisor").write_bytes(tree.hypervisor())
