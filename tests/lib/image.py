# SPDX-License-Identifier: LGPL-2.1-only
"""The base image of a bed: a Debian root file system, its kernel and Xen, made from Debian's packages and cached.

It holds nothing of ours, so that it need not be made again when our code changes: that is laid over it at boot.
"""

import gzip
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.lib import apt, cache, kernelfile, kmod
from tests.lib.release import RELEASES, Release

# Sparse: room for images under /srv
ROOT_SIZE = "8G"
ROOT_INODES = 200_000
NEEDED = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "depmod": "kmod",
    "qemu-system-x86_64": "qemu-system-x86",
    "dpkg-deb": "dpkg",
    "setpriv": "util-linux",
}


class ImageError(Exception):
    """The base image cannot be made."""


@dataclass(frozen=True)
class BaseImage:
    """The files of a base image, all in `directory`."""

    directory: Path
    release: int
    kernel_version: str

    @property
    def root(self) -> Path:
        """The root file system, ext4, to be used as a snapshot."""
        return self.directory / "root.ext4"

    @property
    def kernel(self) -> Path:
        """Linux, for a bed and for its guests, which find it as /srv/guest/linux."""
        return self.directory / "linux"

    @property
    def xen(self) -> Path:
        """The hypervisor, unpacked."""
        return self.directory / "xen"

    @property
    def busybox(self) -> Path:
        """A static busybox."""
        return self.directory / "busybox"

    @property
    def headers(self) -> Path:
        """The build directory of the kernel's headers, for KDIR."""
        return self.directory / "headers/usr/src" / f"linux-headers-{self.kernel_version}"

    def modules(self) -> kmod.KernelModules:
        """The modules that the image has."""
        return kmod.KernelModules(self.directory / "modules", self.kernel_version)


def check_tools() -> None:
    """Raise ImageError with the remedy if this machine lacks a tool or the right to use it."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = sorted({package for tool, package in NEEDED.items() if not shutil.which(tool, path=path)})
    if missing:
        raise ImageError(f"the test bed lacks tools: apt-get install {' '.join(missing)}")


def base_image(number: int, packages: tuple[str, ...] = ()) -> BaseImage:
    """The base image of release `number` (12, 13) with extra `packages`, made now if it is not in the cache."""
    if number not in RELEASES:
        raise ImageError(f"release {number}: not one of {', '.join(map(str, RELEASES))}")
    release = RELEASES[number]
    wanted = sorted({*release.packages, *packages})
    here = Path(__file__).parent
    inputs = [release.number, release.suite, release.xen, wanted, kmod.BED_MODULES]
    key = cache.key(inputs, [here / "image.py", here / "kmod.py", here / "apt.py", here / "kernelfile.py"])

    def make(directory: Path) -> None:
        cache.say(f"making the Debian {number} image (key {key}); later runs find it in {cache.root()}")
        _make(directory, release, wanted)

    directory = cache.product(f"image-{number}", key, make)
    meta = json.loads((directory / "meta.json").read_text(encoding="ascii"))
    return BaseImage(directory, number, meta["kernel_version"])


def _make(directory: Path, release: Release, packages: list[str]) -> None:
    check_tools()
    if os.geteuid() != 0:
        raise ImageError("the image is made by mmdebstrap as root: run this as root once")
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    work = directory / "work"
    archive = apt.Archive(work / "apt", release.suite)
    with cache.step(f"package lists of {release.suite}"):
        archive.update()
    with cache.step("kernel, its headers and Xen"):
        version = _kernel(directory, work, archive, release)
    with cache.step(f"root file system of {len(packages)} packages and what they need"):
        apt.mmdebstrap(work / "root", release.suite, packages)
    _fill(work / "root", directory, version)
    with cache.step("ext4 image"):
        _ext4(work / "root", directory / "root.ext4")
    shutil.copy(work / "root/usr/bin/busybox", directory / "busybox")
    shutil.rmtree(work)
    meta = {"kernel_version": version, "packages": packages}
    (directory / "meta.json").write_text(json.dumps(meta), encoding="ascii")


def _kernel(directory: Path, work: Path, archive: apt.Archive, release: Release) -> str:
    """Fetch Linux, its headers and Xen. Returns the kernel's version."""
    package = archive.dependency("linux-image-amd64", r"linux-image-[0-9]\S+-amd64")
    version = package.removeprefix("linux-image-")
    archive.unpack(package, work / "kernel")
    packed_kernel = (work / f"kernel/boot/vmlinuz-{version}").read_bytes()
    (directory / "vmlinuz").write_bytes(packed_kernel)
    (directory / "linux").write_bytes(kernelfile.unpacked(packed_kernel))
    modules = kmod.KernelModules(work / "kernel", version)
    kmod.copy_modules(modules, list(kmod.BED_MODULES), directory / "modules")
    archive.unpack(f"xen-hypervisor-{release.xen}-amd64", work / "xen")
    with gzip.open(work / f"xen/boot/xen-{release.xen}-amd64.gz") as packed:
        (directory / "xen").write_bytes(packed.read())
    headers = f"linux-headers-{version}"
    common = archive.dependency(headers, r"linux-headers-\S+-common")
    kbuild = archive.dependency(headers, r"linux-kbuild-\S+")
    for package in (headers, common, kbuild):
        archive.unpack(package, directory / "headers")
    # its Makefile includes the common one by an absolute path
    makefile = directory / "headers/usr/src" / headers / "Makefile"
    here = "$(dir $(abspath $(lastword $(MAKEFILE_LIST))))"
    makefile.write_text(f"include {here}../{common}/Makefile\n", encoding="ascii")
    return version


def _fill(root: Path, directory: Path, version: str) -> None:
    """What the root needs beside its packages. Settings of a running bed are in the overlay."""
    shutil.copytree(directory / "modules/usr/lib/modules", root / "usr/lib/modules", dirs_exist_ok=True)
    (root / f"boot/vmlinuz-{version}").symlink_to("/srv/guest/vmlinuz")
    for name in ("srv/guest", "var/log/xen", "proc", "sys", "dev", "run"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("vmlinuz", "linux"):
        shutil.copy(directory / name, root / "srv/guest" / name)
    (root / "etc/hostname").write_text("bed\n", encoding="ascii")
    (root / "etc/hosts").write_text("127.0.0.1 localhost bed\n", encoding="ascii")
    (root / "etc/fstab").write_text("", encoding="ascii")


def _ext4(root: Path, image: Path) -> None:
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "bed", "-m", "0", "-N", str(ROOT_INODES)]
    command += ["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0", "-d", str(root)]
    command += [str(image), ROOT_SIZE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ImageError(f"mke2fs failed: {result.stderr.strip()}")
