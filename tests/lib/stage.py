# SPDX-License-Identifier: LGPL-2.1-only
"""Our build, as it is laid over a bed's base image: what `make install` installs, and the driver's module."""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from tests.lib import builder, cache, kmod, xentree
from tests.lib.image import BaseImage
from tests.lib.initrd import Overlay

REPOSITORY = Path(__file__).parents[2]
BUILD = REPOSITORY / "build" / "bed"
MODULE = "blktap"
# Given by those who have their own tree to test; "none": nothing but the module
STAGE_VARIABLE = "XENBLK_BED_STAGE"


class StageError(Exception):
    """Our build can't be made or installed."""


def _make(what: str, image: BaseImage, arguments: list[str]) -> None:
    """Run make in the repository: here, or in a root of the image's release if that is another."""
    command = ["make", "-s", *arguments]
    root = builder.builder(image.release) if builder.foreign(image.release) else None
    with cache.step(what):
        if root:
            xen = xentree.given(image.release)
            visible = [REPOSITORY, image.directory, *([xen.directory] if xen else [])]
            command = builder.inside(root, visible, REPOSITORY, command)
        result = builder.run(command, REPOSITORY)
    if result.returncode:
        raise StageError(f"{what}: make {' '.join(arguments)} failed:\n{result.stdout[-6000:]}")


@functools.cache
def stage_tree(image: BaseImage) -> Path:
    """The tree that `make install` made; $XENBLK_BED_STAGE names another one, or is "none"."""
    given = os.environ.get(STAGE_VARIABLE, "")
    if given not in ("", "none"):
        path = Path(given)
        if not path.is_dir():
            raise StageError(f"{STAGE_VARIABLE}={given}: no such directory")
        return path
    xen = xentree.given(image.release)
    name = f"{image.release}-{xentree.prepared(xen)[0].parent.name}" if xen else str(image.release)
    BUILD.mkdir(parents=True, exist_ok=True)
    # This process's own: another one's would go while beds are made of it.
    own = Path(tempfile.mkdtemp(prefix=f"stage-{'none' if given else name}-", dir=BUILD))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    tree = own / "root"
    tree.mkdir()
    with cache.locked("stage"):
        if not given:
            arguments = ["install", f"DESTDIR={tree}", "prefix=/usr", "JOBS=2"]
            if xen or builder.foreign(image.release):
                arguments.append(f"BUILD={BUILD / name}")
            if xen:
                arguments.append(f"CFLAGS={xen.flags()}")
            _make(f"our build for Debian {image.release}", image, arguments)
    return tree


@functools.cache
def built_module(image: BaseImage) -> Path | None:
    """The driver's module for the image's kernel; None as long as the driver has no Makefile."""
    if not (REPOSITORY / "kernel-patches" / "Makefile").exists():
        return None
    out = BUILD / f"module-{image.kernel_version}"
    with cache.locked("stage"):
        out.mkdir(parents=True, exist_ok=True)
        # of W=1, too
        arguments = ["-C", "kernel-patches", f"KDIR={image.headers}", f"OUT={out}", "KCFLAGS=-Werror"]
        _make(f"module for Linux {image.kernel_version}", image, arguments)
    module = out / f"{MODULE}.ko"
    if not module.exists():
        raise StageError(f"kernel-patches/Makefile made no {module}")
    return module


def module_files(image: BaseImage, module: Path) -> dict[str, bytes]:
    """The module in its place, and an index of modules that knows it."""
    version = image.kernel_version
    files = {f"usr/lib/modules/{version}/extra/{module.name}": module.read_bytes()}
    with tempfile.TemporaryDirectory(prefix="xenblk-depmod-", dir="/var/tmp") as directory:
        root = Path(directory)
        place = root / "usr/lib/modules" / version
        shutil.copytree(image.modules().directory, place)
        (place / "extra").mkdir()
        shutil.copy(module, place / "extra" / module.name)
        kmod.depmod(root, version)
        for index in place.glob("modules.*"):
            files[f"usr/lib/modules/{version}/{index.name}"] = index.read_bytes()
    return files


def overlay(image: BaseImage) -> Overlay:
    """What a bed of this image has of ours."""
    module = built_module(image)
    xen = xentree.given(image.release)
    trees = (*([xentree.prepared(xen)[0]] if xen else []), stage_tree(image))
    return Overlay(trees, module_files(image, module) if module else {})
