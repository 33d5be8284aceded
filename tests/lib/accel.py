# SPDX-License-Identifier: LGPL-2.1-only
"""Which accelerator runs beds on this machine.

/dev/kvm may exist and run a boot sector but no Linux (seen on nested machines), so Linux itself is tried.
"""

import os
import subprocess
import tempfile
from pathlib import Path

from tests.lib import cache
from tests.lib.cpio import Cpio
from tests.lib.image import BaseImage
from tests.lib.initrd import add_busybox

# Natively it takes 1-2 s
PROBE_SECONDS = 15.0
MARK = "bed: the probe runs"
INIT = f"#!/bin/busybox sh\n/bin/busybox echo '{MARK}'\n/bin/busybox poweroff -f\n"


def runs_linux(accel: str, image: BaseImage, timeout: float) -> bool:
    """Does QEMU run Linux and a program with `accel` ("kvm", "tcg") within `timeout` seconds?"""
    with tempfile.TemporaryDirectory(prefix="xenblk-probe-", dir="/var/tmp") as directory:
        initrd = os.path.join(directory, "initrd")
        with open(initrd, "wb") as file:
            archive = Cpio(file)
            add_busybox(archive, image)
            archive.file("init", INIT.encode(), 0o755)
            archive.close()
        command = ["qemu-system-x86_64", "-accel", accel, "-machine", "pc", "-smp", "2", "-m", "256"]
        command += ["-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio", "-kernel", str(image.kernel)]
        command += ["-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1"]
        try:
            result = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return MARK.encode() in result.stdout


def accelerator(image: BaseImage) -> str:
    """The accelerator of beds: "kvm" where it runs Linux, else "tcg".

    Tried once for each boot of this machine; $XENBLK_BED_ACCEL overrides it.
    """
    forced = os.environ.get("XENBLK_BED_ACCEL")
    if forced:
        return forced
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    answer = cache.root() / "kvm-probe"
    with cache.locked("kvm-probe"):
        if answer.exists():
            known, _, accel = answer.read_text(encoding="ascii").strip().partition(" ")
            if known == boot:
                return accel
        with cache.step("trying KVM"):
            accel = "kvm" if runs_linux("kvm", image, PROBE_SECONDS) else "tcg"
        answer.write_text(f"{boot} {accel}\n", encoding="ascii")
        cache.say(f"beds run with {accel}")
    return accel
