# SPDX-License-Identifier: LGPL-2.1-only
"""A kernel's modules: which others a module needs, and where they are."""

import lzma
import re
import shutil
import subprocess
from pathlib import Path

# What a bed may need, in dom0 and in guests. Names without a module (built in, or not in that kernel) are left out.
BED_MODULES = """
    virtio_pci virtio_blk virtio_console virtio_scsi 9p 9pnet_virtio ext4 xfs crc32c_generic crc32c_intel
    xen-blkback xen-blkfront xen-gntdev xen-gntalloc xen-evtchn xen-privcmd xenfs xen-acpi-processor
    loop nbd brd null_blk ublk_drv target_core_mod target_core_user tcm_loop
    dm-mod dm-snapshot dm-thin-pool dm-log-writes dm-flakey dm-delay dm-crypt dm-mirror scsi_debug sd_mod
    xen-netfront tun bridge autofs4 efivarfs configfs fuse overlay
    nfsd nfs nfsv3 nfsv4 virtio_net
""".split()


class KernelModules:
    """The modules under `root`/lib/modules/`version` (or usr/lib)."""

    def __init__(self, root: Path, version: str) -> None:
        self.version = version
        places = [root / "usr/lib/modules" / version, root / "lib/modules" / version]
        self.directory = next((place for place in places if place.is_dir()), places[0])
        self._paths: dict[str, Path] = {}
        self._needs: dict[str, list[str]] = {}
        for line in self._depmod_list():
            path, _, needs = line.partition(":")
            name = module_name(path)
            self._paths[name] = self.directory / path
            self._needs[name] = [module_name(need) for need in needs.split()]

    def _depmod_list(self) -> list[str]:
        """modules.dep, which lists what a module needs, the last to be loaded first."""
        path = self.directory / "modules.dep"
        if not path.exists():
            root = self.directory.parents[2]
            if root.name == "usr":
                root = root.parent
            depmod(root, self.version)
        return path.read_text(encoding="utf-8").splitlines()

    def closure(self, names: list[str]) -> list[Path]:
        """The files of the modules and of all that they need, in the order to load them."""
        order: dict[str, Path] = {}

        def add(name: str) -> None:
            if name in self._paths and name not in order:
                for need in reversed(self._needs[name]):
                    add(need)
                order[name] = self._paths[name]

        for name in names:
            add(module_name(name))
        return list(order.values())


def module_name(path: str) -> str:
    """The name that `modprobe` uses: no directory, no suffix, underscores."""
    return re.sub(r"\.ko(\.xz|\.gz|\.zst)?$", "", path.rpartition("/")[2]).replace("-", "_")


def read_module(path: Path) -> bytes:
    """A module's bytes, unpacked: unpacking under emulation would cost at every boot."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def copy_modules(source: KernelModules, names: list[str], root: Path) -> None:
    """Copy modules and what they need to `root`/usr/lib/modules, unpacked, with an index of their own."""
    target = root / "usr/lib/modules" / source.version
    target.mkdir(parents=True)
    for path in source.closure(names):
        place = (target / path.relative_to(source.directory)).with_name(path.name.removesuffix(".xz"))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(read_module(path))
    for name in ("modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(source.directory / name, target / name)
    (target / "modules.order").touch()
    depmod(root, source.version)


def depmod(root: Path, version: str) -> None:
    """Index the modules under `root`."""
    # depmod wants them in /lib/modules; a root with a merged /usr has that link, a bare directory may not
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    subprocess.run(["/usr/sbin/depmod", "-b", str(root), version], check=True)
