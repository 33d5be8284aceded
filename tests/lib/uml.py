# SPDX-License-Identifier: LGPL-2.1-only
"""User-mode Linux: the kernel as a process, whose root is this host's, read-only, and whose disks are null_blk's, in memory.

A program runs in it as init's child; its output, its status and the kernel's log come back.
"""

import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.lib import builder, checkkernel

REPOSITORY = Path(__file__).parents[2]
MEMORY = "512M"
END_SECONDS = 600.0
_BEGIN, _STATUS, _LOG = "uml: begin", "uml: status ", "uml: log"
# /srv is a file system with direct I/O. The reboot is that of reboot(2): there is no init to ask.
_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/
mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount -t devtmpfs devtmpfs /dev && mount -t tmpfs tmpfs /run || exit 1
mkdir /dev/shm && mount -t tmpfs tmpfs /dev/shm || exit 1
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/nullb0 && mount /dev/nullb0 /srv || exit 1
insmod {module} || exit 1
dmesg -C
echo "{begin}"
sh {script} 2>&1
echo "{status}$?"
rmmod blktap
echo "{log}"
dmesg --color=never
exec /usr/bin/python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)'
"""


class UmlError(Exception):
    """It did not get to the end of the script."""


@dataclass(frozen=True)
class Ended:
    """The script's status and output, and the kernel's log from the driver's loading on: before, UML complains of itself."""

    status: int
    output: str
    log: str


def module(out: Path) -> Path:
    """The driver, built for it in a directory."""
    made = checkkernel.built("uml")
    command = ["make", "-s", "-C", str(REPOSITORY / "kernel-patches"), f"KDIR={made / 'build'}", f"OUT={out}", "ARCH=um"]
    done = builder.run(command, REPOSITORY)
    if done.returncode:
        raise UmlError(f"{shlex.join(command)} failed:\n{done.stdout[-6000:]}")
    return out / "blktap.ko"


def run(module: Path, script: str) -> Ended:
    """Boots it, runs a shell script and ends it. Raises UmlError, with all that it said."""
    made = checkkernel.built("uml")
    with tempfile.TemporaryDirectory(prefix="xenblk-uml-") as name:
        directory = Path(name)
        (directory / "script").write_text(script, encoding="utf-8")
        init = directory / "init"
        init.write_text(
            _INIT.format(module=module, begin=_BEGIN, status=_STATUS, log=_LOG, script=directory / "script"), encoding="utf-8"
        )
        init.chmod(0o755)
        command = [str(made / "linux"), f"mem={MEMORY}", f"uml_dir={directory}", "umid=uml", "root=/dev/root"]
        command += ["rootfstype=hostfs", "rootflags=/", "ro", f"init={init}", "con=null", "con0=null,fd:2", "quiet", "panic=1"]
        command += ["null_blk.nr_devices=1", "null_blk.gb=1", "null_blk.memory_backed=1"]
        # its I/O ends in an interrupt, as a disk's does
        command += ["null_blk.irqmode=2", "null_blk.completion_nsec=20000"]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=END_SECONDS,
                check=False,
            )
            said = done.stdout
        except subprocess.TimeoutExpired as late:
            said = late.stdout or b""
        text = said.decode(errors="replace").replace("\r", "")
    before, begun, rest = text.partition(f"{_BEGIN}\n")
    output, ended, rest = rest.partition(_STATUS)
    status, _, rest = rest.partition("\n")
    unloading, last, log = rest.partition(f"{_LOG}\n")
    if not begun or not ended or not last or unloading:
        raise UmlError(f"user-mode Linux, or the driver in it, did not end:\n{text[-8000:]}")
    return Ended(int(status), output, log)
