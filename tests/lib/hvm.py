# SPDX-License-Identifier: LGPL-2.1-only
"""An HVM guest of a bed: a BIOS, an IDE disk, and a boot sector that uses the disk and tells the serial port."""

import secrets
import subprocess
import tempfile
from pathlib import Path

from tests.lib.guest import CREATE_SECONDS, HOME, Guest, quoted
from tests.lib.initrd import SCRIPTS
from tests.lib.vm import Bed

SECTOR = 512
# What bootsector.S reads and writes: sectors of four different blocks of a VHD.
READ_LEAF, READ_BASE, WRITE_FLUSHED, WRITE_CACHED = 5001, 9001, 13001, 17001
# What twopaths.S does.
SHARED, COPY = 5001, 13001


def line(text: str) -> bytes:
    """A sector with a line of text that no test has had before."""
    return f"{text} {secrets.token_hex(8)}\n".encode().ljust(SECTOR, b"\0")


def text_of(sector: bytes) -> str:
    """That line."""
    return sector.rstrip(b"\0\n").decode()


def in_image(bed: Bed, leaf: str, number: int) -> bytes:
    """What a guest would read there, by vhd-util, which needs no tapdisk."""
    bed.run(f"vhd-util read -n {leaf} -r {number} > /srv/sector")
    data = bed.get("/srv/sector")
    bed.run("rm /srv/sector")
    return data


class HvmGuest(Guest):
    """A guest that boots from the first of its `disks`. Its console is its serial port; it never powers off. `arguments`:
    more of QEMU's. `emulator`: another QEMU than the bed's. With `hears`, `say` sends to its serial port. `extra` is
    appended to the configuration."""

    def __init__(
        self,
        bed: Bed,
        name: str,
        disks: list[str],
        arguments: tuple[str, ...] = (),
        *,
        hears: bool = False,
        emulator: str = "",
        extra: str = "",
    ) -> None:
        super().__init__(bed, name, "", disks, memory=64, extra=extra)
        self.arguments = arguments
        self.hears = hears
        self.emulator = emulator

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
            'serial = "pty"' if self.hears else f'serial = "file:{self.log}"',
            'on_poweroff = "destroy"',
            'on_reboot = "destroy"',
            'on_crash = "destroy"',
            f"disk = [ {', '.join(quoted(disk) for disk in self.disks)} ]",
        ]
        if self.arguments:
            lines.append(f"device_model_args = [ {', '.join(map(quoted, self.arguments))} ]")
        if self.emulator:
            lines.append(f'device_model_override = "{self.emulator}"')
        return "\n".join(lines) + "\n" + self.extra

    def prepare(self) -> None:
        """Put the configuration into the bed."""
        self.bed.put(self.config_path, self.config_text.encode())

    def start(self, create: str = "xl create", timeout: float = CREATE_SECONDS) -> None:
        """Create the domain and follow its serial port."""
        super().start(f"{create} -p" if self.hears else create, timeout)
        if self.hears:
            # before its first word, which nothing keeps
            self.follow()
            self.bed.run(f"sleep 1; xl unpause {self.name}")

    def follow(self) -> None:
        """Keep what it sends from now on, when it has been created or has migrated."""
        self.bed.run(
            f"tty=$({self._tty}); stty -F $tty raw -echo || exit 1; setsid cat $tty >> {self.log} & cat=$!;"
            ' until [ "$(readlink /proc/$cat/fd/3)" = $tty ]; do kill -0 $cat || exit 1; sleep 0.1; done'
        )

    @property
    def _tty(self) -> str:
        return f"xenstore-read /local/domain/$(xl domid {self.name})/serial/0/tty"

    def say(self, line: str) -> None:
        """Send some characters to the guest's serial port."""
        self.bed.run(f"printf %s {line} > $({self._tty})")

    def qemu_pid(self) -> int:
        """Of the guest's QEMU."""
        return int(self.bed.run(f"xenstore-read /local/domain/$(xl domid {self.name})/image/device-model-pid").stdout)

    def qemu_arguments(self) -> list[str]:
        """The command line of the guest's QEMU."""
        return self.bed.get(f"/proc/{self.qemu_pid()}/cmdline").decode().rstrip("\0").split("\0")


def boot_sector() -> bytes:
    """Bootsector.S, assembled."""
    return _assembled(
        "bootsector.S",
        READ_LEAF=READ_LEAF,
        READ_BASE=READ_BASE,
        WRITE_FLUSHED=WRITE_FLUSHED,
        WRITE_CACHED=WRITE_CACHED,
    )


def two_paths() -> bytes:
    """Twopaths.S, assembled."""
    return _assembled("twopaths.S", SHARED=SHARED, COPY=COPY)


def _assembled(name: str, **symbols: int) -> bytes:
    defines = [word for name, value in symbols.items() for word in ("--defsym", f"{name}={value}")]
    with tempfile.TemporaryDirectory() as directory:
        assembled, linked = Path(directory, "boot.o"), Path(directory, "boot.bin")
        source = SCRIPTS / name
        subprocess.run(["as", "--32", f"-I{SCRIPTS}", *defines, "-o", str(assembled), str(source)], check=True)
        place = ["-Ttext=0x7c00", "--oformat=binary"]
        subprocess.run(["ld", "-m", "elf_i386", *place, "-o", str(linked), str(assembled)], check=True)
        code = linked.read_bytes()
    if len(code) != SECTOR:
        raise ValueError(f"the boot sector has {len(code)} bytes")
    return code
