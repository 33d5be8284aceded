# SPDX-License-Identifier: LGPL-2.1-only
"""What the tests of the Xen bridge run on, on a machine without Xen: the binding to libxl, Xen's scripts and tools."""

import functools
import os
import subprocess
from pathlib import Path

from tests.lib import cache

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"
PACKAGES = ("xen-utils-common", "xenstore-utils")


@functools.cache
def binding() -> Path:
    """The directory that has the compiled `_libxl`, for a package path."""
    build = ROOT / "xenblk" / "_libxl_build.py"
    header = Path("/usr/include/libxl.h").read_bytes() + Path("/usr/include/_libxl_types.h").read_bytes()

    def make(directory: Path) -> None:
        subprocess.run([PYTHON, "-m", "xenblk._libxl_build", str(directory)], cwd=ROOT, check=True, timeout=120)

    return cache.product("libxl-binding", cache.key(header.hex(), [build]), make)


def stage(directory: Path) -> Path:
    """Lays the package out as it is installed, in `directory`, and returns the command xenblk."""
    package = directory / "lib" / "xenblk"
    package.mkdir(parents=True)
    for source in [*(ROOT / "xenblk").glob("*.py"), *binding().glob("*.so")]:
        (package / source.name).symlink_to(source)
    command = directory / "xenblk"
    wrapper = (ROOT / "hotplug-scripts" / "xenblk.in").read_text(encoding="utf-8")
    command.write_text(wrapper.replace("@pkglib@", str(directory / "lib")), encoding="utf-8")
    command.chmod(0o755)
    return command


@functools.cache
def xen_files() -> Path:
    """Debian's own files of PACKAGES, unpacked and not installed: etc/xen/scripts, usr/bin/xenstore-*."""
    versions = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", *PACKAGES], capture_output=True, check=True, timeout=60
    ).stdout

    def make(directory: Path) -> None:
        download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *PACKAGES]
        subprocess.run(download, cwd=directory, check=True, timeout=300)
        for package in directory.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(package), str(directory)], check=True, timeout=60)
            package.unlink()

    return cache.product("xen-files", cache.key(versions.decode(), []), make)


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what would reach xenblk's own files, plus more."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("XENBLK_")}
    return kept | more
