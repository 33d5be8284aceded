# SPDX-License-Identifier: LGPL-2.1-only
"""The initrd of a bed: mounts the base image and lays our build, the module and the bed's own scripts over it."""

from dataclasses import dataclass, field
from pathlib import Path

from tests.lib import kmod
from tests.lib.cpio import Cpio
from tests.lib.image import BaseImage

BOOT_MODULES = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"]
SCRIPTS = Path(__file__).parent / "bed"
HOME = "usr/lib/xenblk-bed"


@dataclass(frozen=True)
class Overlay:
    """What lies over the base image: trees (as `make install DESTDIR=` leaves them) and single files."""

    trees: tuple[Path, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)


def write_initrd(path: Path, image: BaseImage, overlay: Overlay) -> None:
    """Write the initrd of a bed to `path`."""
    with open(path, "wb") as file:
        archive = Cpio(file)
        add_busybox(archive, image)
        archive.file("init", (SCRIPTS / "init-initrd").read_bytes(), 0o755)
        add_modules(archive, image.modules(), BOOT_MODULES)
        for name in ("init", "xen-start", "agent.py", "frames.py"):
            archive.file(f"overlay/{HOME}/{name}", (SCRIPTS / name).read_bytes(), 0o755)
        archive.tree(SCRIPTS / "systemd", "overlay/etc/systemd/system")
        # as xen-start has it for the other init
        archive.file("overlay/etc/default/xen", b'XENCONSOLED_ARGS="--log=guest"\n')
        archive.directory("overlay/var/log/xen/console")
        for tree in overlay.trees:
            archive.tree(tree, "overlay")
        for name, data in overlay.files.items():
            archive.file(f"overlay/{name}", data)
        archive.close()


def add_busybox(archive: Cpio, image: BaseImage) -> None:
    """Add bin/busybox and the directories that an init mounts on."""
    archive.file("bin/busybox", image.busybox.read_bytes(), 0o755)
    for name in ("proc", "sys", "dev", "mnt", "tmp"):
        archive.directory(name)


def add_modules(archive: Cpio, modules: kmod.KernelModules, names: list[str]) -> None:
    """Add modules, what they need, and /modules.list, which says in what order to load them."""
    places = []
    for path in modules.closure(names):
        place = f"modules/{path.name.removesuffix('.xz')}"
        archive.file(place, kmod.read_module(path))
        places.append(f"/{place}\n")
    archive.file("modules.list", "".join(places).encode())
