# SPDX-License-Identifier: LGPL-2.1-only
"""An HVM guest of a bed: a BIOS, an IDE disk, and a boot sector that uses the disk and tells the serial port."""

import subprocess
import tempfile
from pathlib import Path

from tests.lib.guest import HOME, Guest, quoted
from tests.lib.initrd import SCRIPTS
from tests.lib.vm import Bed

SECTOR = 512
# What bootsector.S reads and writes: sectors of four different blocks of a VHD.
READ_LEAF, READ_BASE, WRITE_FLUSHED, WRITE_CACHED = 5001, 9001, 13001, 17001


class HvmGuest(Guest):
    """A guest that boots from the first of its `disks`. Its console is its serial port; it never powers off."""

    def __init__(self, bed: Bed, name: str, disks: list[str]) -> None:
        super().__init__(bed, name, "", disks, memory=64)

    @property
    def log(self) -> str:
        """What the guest sends to its serial port."""
        return f"{HOME}/{self.name}.serial"

    @property
    def config_text(self) -> str:
        """Debian's Xen has no shadow paging, so hap is needed."""
        lines = [
            f'name = "{self.name}"',
            'type = "hvm"',
            "hap = 1",
            f"memory = {self.memory}",
            "vcpus = 1",
            'boot = "c"',
            'vga = "none"',
            "nographic = 1",
            "vnc = 0",
            "sdl = 0",
            "usb = 0",
            f'serial = "file:{self.log}"',
            'on_poweroff = "destroy"',
            'on_reboot = "destroy"',
            'on_crash = "destroy"',
            f"disk = [ {', '.join(quoted(disk) for disk in self.disks)} ]",
        ]
        return "\n".join(lines) + "\n"

    def prepare(self) -> None:
        """Put the configuration into the bed."""
        self.bed.put(self.config_path, self.config_text.encode())

    def qemu_arguments(self) -> list[str]:
        """The command line of the guest's QEMU."""
        command = f"xenstore-read /local/domain/$(xl domid {self.name})/image/device-model-pid"
        pid = int(self.bed.run(command).stdout)
        return self.bed.get(f"/proc/{pid}/cmdline").decode().rstrip("\0").split("\0")


def boot_sector() -> bytes:
    """Bootsector.S, assembled."""
    symbols = {
        "READ_LEAF": READ_LEAF,
        "READ_BASE": READ_BASE,
        "WRITE_FLUSHED": WRITE_FLUSHED,
        "WRITE_CACHED": WRITE_CACHED,
    }
    defines = [word for name, value in symbols.items() for word in ("--defsym", f"{name}={value}")]
    with tempfile.TemporaryDirectory() as directory:
        assembled, linked = Path(directory, "boot.o"), Path(directory, "boot.bin")
        source = SCRIPTS / "bootsector.S"
        subprocess.run(["as", "--32", *defines, "-o", str(assembled), str(source)], check=True)
        place = ["-Ttext=0x7c00", "--oformat=binary"]
        subprocess.run(["ld", "-m", "elf_i386", *place, "-o", str(linked), str(assembled)], check=True)
        code = linked.read_bytes()
    if len(code) != SECTOR:
        raise ValueError(f"the boot sector has {len(code)} bytes")
    return code
