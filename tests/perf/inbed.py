# SPDX-License-Identifier: LGPL-2.1-only
"""What the parts that measure in a virtual machine share: loads, the client, disks in memory, images on them."""

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.lib import tapdisks
from tests.lib.vm import Bed

CLIENT = "/root/aioload"
MIB = 1 << 20
NULL_DIRECTORY = "/sys/kernel/config/nullb"


@dataclass(frozen=True)
class Load:
    """What a client does at random places: size of a transfer in bytes; depth is how many are in flight."""

    name: str
    op: str
    size: int
    depth: int

    @property
    def text(self) -> str:
        """In words."""
        size = f"{self.size >> 20} MiB" if self.size >= MIB else f"{self.size >> 10} KiB"
        return f"{size} random {self.op} QD {self.depth}"


LOADS = {
    load.name: load
    for load in (
        Load("r4k1", "read", 4096, 1),
        Load("r4k16", "read", 4096, 16),
        Load("w4k16", "write", 4096, 16),
        Load("r64k8", "read", 65536, 8),
        Load("w64k8", "write", 65536, 8),
        Load("r1m2", "read", MIB, 2),
        Load("w1m2", "write", MIB, 2),
    )
}


def build_client(directory: Path) -> bytes:
    """The client's program, which needs no libraries."""
    path = directory / "aioload"
    source = Path(__file__).with_name("aioload.c")
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-static"]
    subprocess.run(["gcc", *flags, "-o", path, source], check=True)
    return path.read_bytes()


def arguments(device: str, load: Load, span: int, seed: int, milliseconds: int = 0, ios: int = 0) -> str:
    """The client's command after its name."""
    words = (device, load.op, load.size, load.depth, milliseconds, ios, seed, span)
    return " ".join(shlex.quote(str(word)) for word in words)


def parse(text: str) -> tuple[int, float]:
    """Requests and seconds of what the client prints. Raises ValueError."""
    found = re.search(r"^(\d+) (\d+)\r?$", text, re.M)
    if not found or not int(found[1]):
        raise ValueError(f"the client said: {text[-300:]!r}")
    return int(found[1]), int(found[2]) / 1e9


def null_disk(bed: Bed, name: str, megabytes: int) -> str:
    """A disk in the bed's memory; it stays until the bed ends."""
    directory = f"{NULL_DIRECTORY}/{name}"
    bed.run(f"modprobe null_blk nr_devices=0; mountpoint -q {NULL_DIRECTORY[:-6]} || mount -t configfs none {NULL_DIRECTORY[:-6]}")
    before = set(bed.run("ls /sys/block").stdout.split())
    settings = {"memory_backed": 1, "size": megabytes, "power": 1}
    writes = "; ".join(f"echo {value} > {directory}/{key}" for key, value in settings.items())
    bed.run(f"set -e; mkdir {directory}; {writes}")
    [made] = set(bed.run("ls /sys/block").stdout.split()) - before
    return f"/dev/{made}"


def write_all(bed: Bed, device: str, megabytes: int) -> None:
    """Write every block, and read each once: what the kernel may serve by itself it learns by reads and writes."""
    bed.run(f"dd if=/dev/urandom of={device} bs=1M count={megabytes} oflag=direct conv=fsync 2>/dev/null", timeout=600)
    bed.run(f"dd if={device} of=/dev/null bs=1M count={megabytes} iflag=direct 2>/dev/null", timeout=600)


def counter(bed: Bed, device: str, name: str) -> int:
    """Of the driver, for a disk."""
    minor = device.rpartition("tapdev")[2]
    return tapdisks.counters(bed, int(minor))[name]


EVENT = "/sys/kernel/tracing/events/raw_syscalls/sys_enter"
COUNTED = re.compile(r"\{ id: sys_(\w+)\s+\[\s*\d+\] \} hitcount:\s+(\d+)")


def parse_histogram(text: str) -> dict[str, int]:
    """Of the kernel's histogram of system calls: how many of each."""
    return {name: int(number) for name, number in COUNTED.findall(text)}


def system_calls(bed: Bed, device: str, command: str) -> dict[str, int]:
    """Which system calls the tapdisk of a disk makes while a command runs there.

    The kernel counts: a tracer would stop tapdisk at each, and meanwhile more requests come together.
    """
    minor = int(device.rpartition("tapdev")[2])
    [pid] = [disk.pid for disk in tapdisks.served(bed) if disk.minor == minor]
    trigger = f"hist:keys=id.syscall if common_pid=={pid}"
    bed.run(f"mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing; echo '{trigger}' > {EVENT}/trigger")
    try:
        bed.run(command, timeout=900)
        return parse_histogram(bed.run(f"cat {EVENT}/hist").stdout)
    finally:
        bed.run(f"echo '!{trigger}' > {EVENT}/trigger")
