# SPDX-License-Identifier: LGPL-2.1-only
"""A Xen guest of a bed: Debian's kernel and a busybox initrd that runs one script and powers off.

The script finds its disks as /dev/xvda and so on (`wait_for_disk xvda` waits for one), busybox's commands and the
`files` given. What it prints is the guest's output, its exit status the guest's status; it reads what `say` sends. A file
modules/NAME.ko.options has a module's parameters.
"""

import io
import re
import threading
import time
from dataclasses import dataclass
from typing import Literal

from tests.lib.cpio import Cpio
from tests.lib.initrd import SCRIPTS, add_busybox, add_modules
from tests.lib.vm import Bed, BedError, Process

DISK = ("xen-blkfront",)
DISK_AND_EXT4 = ("xen-blkfront", "crc32c_generic", "ext4")
HOME = "/srv/guest"
# Under emulation the self-tests of ciphers and the protection of the kernel from itself are half of its boot.
KERNEL_ARGUMENTS = (
    "console=hvc0 quiet loglevel=4 mitigations=off panic=1 tsc=reliable cryptomgr.notests rodata=off"
)
CONSOLE_LOG = "/var/log/xen/console/guest-{}.log"
BEGIN = re.compile(r"^bed-guest: begin\r?$", re.M)
STATUS = re.compile(r"^bed-guest: status (\d+)\r?$", re.M)
LOST = re.compile(r"Kernel panic - not syncing|bed-guest: insmod \S+ failed|Oops: ")
# Else each rdtsc is an exit to Xen where the host's TSC is not invariant, as in emulation, and an exit of a guest that migrates is
# a risk there: lib/writer.py.
TSC = 'tsc_mode = "native"'
# Idle: a PV guest is created in 9-13 s and has done its I/O after 15-20 s
CREATE_SECONDS = 180.0
GUEST_SECONDS = 300.0
PRELUDE = """wait_for_disk() {
	tries=0
	until [ -b "/dev/$1" ]; do
		tries=$((tries + 1))
		[ $tries -lt 600 ] || { echo "no /dev/$1"; exit 101; }
		usleep 100000
	done
}
"""


class GuestLost(BedError):
    """A guest did not get to the end of its script."""


@dataclass(frozen=True)
class GuestResult:
    """How the guest's script ended and what it printed (without what the kernel said before it began)."""

    status: int
    output: str


class Guest:
    """One guest. `disks` go into the configuration as they are; `extra` is appended to it. `modules`: of the kernel.

    Name it unlike the other guests of the bed. Its files in the bed are HOME/NAME.* and its console log.
    """

    def __init__(
        self,
        bed: Bed,
        name: str,
        script: str,
        disks: list[str] | None = None,
        type: Literal["pv", "pvh"] = "pv",
        memory: int = 192,
        extra: str = "",
        files: dict[str, bytes] | None = None,
        modules: tuple[str, ...] = DISK,
    ) -> None:
        self.bed = bed
        self.name = name
        self.script = script
        self.disks = disks or []
        self.type = type
        self.memory = memory
        self.extra = extra
        self.files = files or {}
        self.modules = modules
        self.config_path = f"{HOME}/{name}.cfg"
        self._text = ""
        self._changed = threading.Condition()
        self._tail: Process | None = None

    @property
    def log(self) -> str:
        """The file that xenconsoled keeps of its console."""
        return CONSOLE_LOG.format(self.name)

    @property
    def config_text(self) -> str:
        """The domain's configuration."""
        lines = [
            f'name = "{self.name}"',
            f'type = "{self.type}"',
            f'kernel = "{HOME}/linux"',
            f'ramdisk = "{HOME}/{self.name}.initrd"',
            f'extra = "{KERNEL_ARGUMENTS}"',
            f"memory = {self.memory}",
            "vcpus = 1",
            *([TSC] if self.type == "pvh" else []),
            # a guest that crashes must not start again for ever
            'on_poweroff = "destroy"',
            'on_reboot = "destroy"',
            'on_crash = "destroy"',
            f"disk = [ {', '.join(quoted(disk) for disk in self.disks)} ]",
        ]
        return "\n".join(lines) + "\n" + self.extra

    def prepare(self) -> None:
        """Put the configuration and the initrd into the bed."""
        base = f"{HOME}/{'-'.join(self.modules)}.base"
        if self.bed.run(f"test -e {base}", check=False).status:
            self.bed.put(base, base_initrd(self.bed, self.modules))
        with io.BytesIO() as file:
            archive = Cpio(file)
            archive.file("script", (PRELUDE + self.script).encode())
            for name, data in self.files.items():
                archive.file(name, data, 0o755)
            archive.close()
            own = file.getvalue()
        self.bed.put(f"{HOME}/{self.name}.script", own)
        self.bed.run(f"cat {base} {HOME}/{self.name}.script > {HOME}/{self.name}.initrd")
        self.bed.put(self.config_path, self.config_text.encode())

    def start(self, create: str = "xl create", timeout: float = CREATE_SECONDS) -> None:
        """Create the domain by `create CONFIG` and follow its console."""
        self.prepare()
        self.watch()
        self.bed.run(f"{create} {self.config_path}", timeout=timeout)

    def watch(self) -> None:
        """Follow its console, from nothing."""
        self._stop_following()
        self.bed.run(f"mkdir -p {HOME}; rm -f {self.log}; : > {self.log}")
        self._text = ""
        self._tail = self.bed.popen(f"exec tail -F -n +1 {self.log}", relay=self._take)

    def _take(self, is_stderr: bool, data: bytes) -> None:
        if not is_stderr:
            with self._changed:
                self._text += data.decode(errors="replace")
                self._changed.notify_all()

    @property
    def console(self) -> str:
        """All that the guest said so far."""
        with self._changed:
            return self._text.replace("\r", "")

    def wait_text(self, pattern: str, timeout: float = GUEST_SECONDS) -> re.Match[str]:
        """Wait until the guest's console matches `pattern` (a regular expression, multi-line)."""
        wanted = re.compile(pattern, re.M)
        deadline = time.monotonic() + timeout
        while True:
            with self._changed:
                text = self._text.replace("\r", "")
                found = wanted.search(text)
                if found:
                    return found
                why = LOST.search(text)
                if why is None and STATUS.search(text):
                    why = STATUS.search(text)
                if why is None and self.bed.alive:
                    self._changed.wait(min(5.0, max(0.1, deadline - time.monotonic())))
            if why is None and not self.bed.alive:
                raise self.bed.lost(f"guest {self.name}: the bed was lost")
            if why is not None or time.monotonic() > deadline:
                reason = why[0] if why is not None else f"no match in {timeout:.0f} s for {pattern}"
                raise GuestLost(f"guest {self.name}: {reason}\n--- its console\n{text[-4000:]}\n---\n{self._state()}")

    def _state(self) -> str:
        """What dom0 knows, for a message."""
        log = f"/var/log/xen/xl-{self.name}.log"
        return self.bed.run(f"xl list; tail -n 20 {log}; tail -n 20 /var/log/xen/xen-hotplug.log", check=False).output

    def wait(self, timeout: float = GUEST_SECONDS, check: bool = True) -> GuestResult:
        """Wait for the end of the script. With `check`, a status other than 0 is GuestLost."""
        found = self.wait_text(STATUS.pattern.replace("\\r?", ""), timeout)
        text = self.console
        begun = BEGIN.search(text)
        result = GuestResult(int(found[1]), text[begun.end() if begun else 0 : found.start()].lstrip("\n"))
        if check and result.status:
            raise GuestLost(f"guest {self.name}: status {result.status}\n{text[-4000:]}\n{self._state()}")
        return result

    def say(self, line: str) -> None:
        """Send a line to the guest's console."""
        command = f"xenstore-read /local/domain/$(xl domid {self.name})/console/tty"
        self.bed.run(f"cat > $({command})", stdin=f"{line}\n".encode())

    def wait_gone(self, timeout: float = 120.0) -> None:
        """Wait until the domain has been destroyed, by itself after power-off."""
        self.bed.wait_for(f"! xl domid {self.name} 2>/dev/null", timeout)
        self._stop_following()

    def destroy(self) -> None:
        """Destroy the domain if it exists, and don't complain."""
        self.bed.run(f"xl destroy {self.name} 2>/dev/null", check=False)
        self._stop_following()

    def _stop_following(self) -> None:
        if self._tail is not None and self.bed.alive:
            self._tail.kill()
        self._tail = None


def quoted(text: str) -> str:
    """A string of xl.cfg; it has no escapes."""
    if "'" not in text:
        return f"'{text}'"
    if '"' in text:
        raise ValueError(f"xl.cfg can't hold both kinds of quotes: {text}")
    return f'"{text}"'


def base_initrd(bed: Bed, modules: tuple[str, ...]) -> bytes:
    """Busybox, the modules and init: the same for many guests of a bed."""
    with io.BytesIO() as file:
        archive = Cpio(file)
        add_busybox(archive, bed.image)
        add_modules(archive, bed.image.modules(), list(modules))
        archive.file("init", (SCRIPTS / "init-guest").read_bytes(), 0o755)
        archive.close()
        return file.getvalue()
