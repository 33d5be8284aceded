# SPDX-License-Identifier: LGPL-2.1-only
"""Kernels with the kernel's own checkers in them, built from Debian's linux-source and cached.

A bed boots one in the place of Debian's kernel when $XENBLK_KERNEL names it (lib/qemu.py). All that a bed needs is built
in, but for the driver, which is built against the tree that is kept beside the kernel. That of user-mode Linux runs as a
process instead (lib/uml.py).
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.lib import apt, builder, cache, kmod
from tests.lib.image import BaseImage
from tests.lib.release import RELEASES

CONFIGS = Path(__file__).parents[1] / "kernels"
# What `make M=` reads of a source tree
NOT_FOR_MODULES = ("Documentation", "drivers", "fs", "net", "sound", "samples", "rust", "crypto", "security", "mm")
JOBS = 2


@dataclass(frozen=True)
class CheckKernel:
    """A kernel: the Debian release whose source it is made of, that source's package, and parts of its configuration."""

    name: str
    release: int
    source: str
    parts: tuple[str, ...]
    arch: str = "x86"

    @property
    def fragments(self) -> list[Path]:
        """The files of its configuration, in their order."""
        return [CONFIGS / f"{part}.config" for part in self.parts]


KERNELS = {
    kernel.name: kernel
    for kernel in (
        CheckKernel("kasan", 12, "linux-source-6.1", ("base", "pc", "kasan")),
        CheckKernel("kcsan", 12, "linux-source-6.1", ("base", "pc", "kcsan")),
        CheckKernel("kasan-13", 13, "linux-source-6.12", ("base", "pc", "kasan")),
        CheckKernel("uml", 12, "linux-source-6.1", ("uml",), "um"),
    )
}
# What of a build boots, by architecture: the target, and its file
BOOTS = {"x86": ("bzImage", "arch/x86/boot/bzImage"), "um": ("linux", "linux")}


class KernelError(Exception):
    """A kernel can't be made."""


@dataclass(frozen=True)
class CheckedImage(BaseImage):
    """A base image with another kernel, all that was made of which is in `made`."""

    made: Path

    @property
    def kernel(self) -> Path:
        """The kernel to boot."""
        return self.made / "linux"

    @property
    def headers(self) -> Path:
        """The build directory, for KDIR."""
        return self.made / "build"

    def modules(self) -> kmod.KernelModules:
        """The names of what is built in; there are no modules."""
        return kmod.KernelModules(self.made / "modules", self.kernel_version)


def with_kernel(image: BaseImage, name: str) -> CheckedImage:
    """The image with the kernel of that name."""
    made = built(name)
    version = (made / "version").read_text(encoding="ascii").strip()
    return CheckedImage(image.directory, image.release, version, made)


def built(name: str) -> Path:
    """What was made of the kernel of that name, made now if it is not in the cache."""
    if name not in KERNELS:
        raise KernelError(f"XENBLK_KERNEL={name}: not one of {', '.join(KERNELS)}")
    kernel = KERNELS[name]
    here = Path(__file__).parent
    key = cache.key([kernel.name, kernel.source, kernel.release], [here / "checkkernel.py", *kernel.fragments])
    return cache.product(f"kernel-{name}", key, lambda directory: _make(directory, kernel))


def _tool(what: str, command: list[str], directory: Path) -> str:
    result = builder.run(["nice", *command], directory)
    if result.returncode:
        raise KernelError(f"{what}: {' '.join(command)} failed:\n{result.stdout[-6000:]}")
    return result.stdout


def _make(directory: Path, kernel: CheckKernel) -> None:
    source, build = directory / "source", directory / "build"
    with cache.step(f"source of {kernel.source}"):
        _unpack(directory, kernel, source)
    build.mkdir()
    make = ["make", "-s", "-C", str(source), f"O={build}", f"ARCH={kernel.arch}"]
    wanted = wanted_lines(kernel)
    (build / "wanted").write_text("".join(f"{line}\n" for line in wanted), encoding="ascii")
    _tool("configuration", [*make, f"KCONFIG_ALLCONFIG={build}/wanted", "allnoconfig"], directory)
    missing = unmet(wanted, (build / ".config").read_text(encoding="ascii"))
    if missing:
        raise KernelError(f"kernel {kernel.name}: its source does not take {', '.join(missing)}")
    with cache.step(f"kernel {kernel.name}, about 5 minutes on two idle cores"):
        _tool("kernel", [*make, f"-j{JOBS}", BOOTS[kernel.arch][0], "modules_prepare"], directory)
    version = _tool("version", [*make, "kernelrelease"], directory).split()[-1]
    shutil.copy(build / BOOTS[kernel.arch][1], directory / "linux")
    _keep(directory, source, build, version)


def _unpack(directory: Path, kernel: CheckKernel, source: Path) -> None:
    work = directory / "work"
    archive = apt.Archive(work / "apt", RELEASES[kernel.release].suite)
    archive.update()
    archive.unpack(kernel.source, work / "package")
    source.mkdir()
    packed = work / f"package/usr/src/{kernel.source}.tar.xz"
    _tool("source", ["tar", "-xf", str(packed), "-C", str(source), "--strip-components=1"], directory)
    shutil.rmtree(work)


def wanted_lines(kernel: CheckKernel) -> list[str]:
    """The configuration: its lines, later ones in the place of earlier ones."""
    lines = {"CONFIG_LOCALVERSION": f'CONFIG_LOCALVERSION="-{kernel.name}"'}
    for path in kernel.fragments:
        for line in path.read_text(encoding="ascii").splitlines():
            if line and not line.startswith("#"):
                lines[line.partition("=")[0]] = line
    return list(lines.values())


def unmet(wanted: list[str], config: str) -> list[str]:
    """Those of the wanted lines that Kconfig did not take: it says nothing when it drops one."""
    have = set(config.splitlines())
    missing = []
    for line in wanted:
        name, _, value = line.partition("=")
        met = not any(f"{name}={yes}" in have for yes in "ym") if value == "n" else line in have
        if not met:
            missing.append(line)
    return missing


def _keep(directory: Path, source: Path, build: Path, version: str) -> None:
    """Keep what a module's build needs."""
    (directory / "version").write_text(f"{version}\n", encoding="ascii")
    modules = directory / "modules/usr/lib/modules" / version
    modules.mkdir(parents=True)
    for name in ("modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(build / name, modules / name)
    (modules / "modules.order").touch()
    kmod.depmod(directory / "modules", version)
    # it names its source by an absolute path, of a directory that is about to be renamed
    here = "$(dir $(abspath $(lastword $(MAKEFILE_LIST))))"
    (build / "Makefile").write_text(f"include {here}../source/Makefile\n", encoding="ascii")
    (build / "source").unlink(missing_ok=True)
    (build / "source").symlink_to("../source")
    # what else a module may be linked with is in vmlinux
    shutil.copy(build / "vmlinux.symvers", build / "Module.symvers")
    for part in NOT_FOR_MODULES:
        shutil.rmtree(source / part, ignore_errors=True)
        shutil.rmtree(build / part, ignore_errors=True)
    subprocess.run(
        ["find", str(build), "-not", "-path", "*/scripts/*", "-not", "-path", "*/tools/*", "-name", "*.[oa]", "-delete"],
        check=True,
    )
    for name in ("vmlinux", "vmlinux.unstripped", "linux"):
        (build / name).unlink(missing_ok=True)
