# SPDX-License-Identifier: LGPL-2.1-only
"""The kernel driver under a toy server (kernel-patches/tests/toy-server.c) in a bed."""

import time
from pathlib import Path

from tests.lib.vm import Bed, Process

SERVER = "/root/toy-server"
HAMMER = "/root/hammer"
HOSTILE = "/root/hostile"
STORM = "/root/storm"
STARVE = "/root/starve"
# What the driver says of a server that does as STORM's and HAMMER's do
REFUSED = r"completion refused|[cs]q_\w+ of task|the buffer of task"
STORM_LOG = rf"blktap2 blktap9: (?:{REFUSED})"
HAMMER_LOG = rf"blktap2 blktap[01]: (?:{REFUSED}|no server: \d+ requests failed)"
START_SECONDS = 60.0
EIO = "Input/output error"


def wait_for_output(process: Process, text: str, seconds: float = START_SECONDS) -> None:
    """Wait until a process has said `text`."""
    deadline = time.monotonic() + seconds * process.bed.slower
    while True:
        # asked first: what it says last comes before its end
        over = process.ended or not process.bed.alive
        if text in process.output():
            return
        assert not over, f"no {text!r}, and no more can come: {process.output()}"
        assert time.monotonic() < deadline, f"no {text!r} but: {process.output()}"
        time.sleep(0.05)


class Tap:
    """A minor in a bed, its image file and its server."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.minor = int(bed.run(f"{SERVER} alloc").stdout)
        self.device = f"/dev/xen/blktap-2/tapdev{self.minor}"
        self.sysfs = f"/sys/class/blktap2/blktap{self.minor}"
        self.file = f"/srv/toy{self.minor}.img"
        self.server: Process | None = None
        self.before = ""
        """What the server's shell does before, ended by `;`."""
        bed.run(f"rm -f {self.file} && truncate -s 400M {self.file}")

    def start(self, **options: int | str) -> None:
        """Start a server and wait until the device is there."""
        words = " ".join(f"{name}={value}" for name, value in options.items())
        self.server = self.bed.popen(f"{self.before}exec {SERVER} serve {self.minor} {self.file} {words}")
        self.expect("ready\n")

    def resume(self, **options: int | str) -> None:
        """Start a server for a device whose server is gone."""
        self.start(resume=1, **options)

    def expect(self, text: str) -> None:
        """Wait until the server has said `text`."""
        assert self.server is not None
        wait_for_output(self.server, text)

    def signal(self, name: str) -> None:
        """Send the server a signal."""
        self.bed.run(f"kill -{name} {self.attribute('task')}")

    def kill(self) -> None:
        """Kill the server as a crash would, and wait until the driver knows."""
        self.signal("KILL")
        assert self.server is not None
        self.server.wait(check=False)
        assert self.attribute("task") == "0"

    def load(self, seed: int, size: str = "256M") -> Process:
        """Start to write at random, and to check it when all is written; less of it in a bed that checkers make slow."""
        if self.bed.slower > 1:
            size = "64M"
        return self.bed.popen(
            f"fio --name=load --filename={self.device} --rw=randwrite --bsrange=4k-256k --size={size} --direct=1"
            f" --iodepth=16 --ioengine=libaio --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed={seed} --minimal"
        )

    def keep_files(self, mkfs: str) -> None:
        """Make a file system, write files, and find them after it was mounted anew."""
        bed = self.bed
        bed.run(f"{mkfs} {self.device} && mount {self.device} /mnt")
        bed.run("cp /root/random /mnt/copied; dd if=/root/random of=/mnt/synced bs=64k conv=fsync status=none")
        bed.run(f"umount /mnt; echo 3 > /proc/sys/vm/drop_caches; mount {self.device} /mnt")
        bed.run("cmp /root/random /mnt/copied; cmp /root/random /mnt/synced; umount /mnt")
        bed.run(f"xfs_repair -n {self.device}" if "xfs" in mkfs else f"e2fsck -fn {self.device}")

    def remove(self) -> None:
        """Have the server remove the device. udev may have it open for a moment: try again."""
        deadline = time.monotonic() + START_SECONDS * self.bed.slower
        while "removed\n" not in (self.server.output() if self.server else ""):
            assert time.monotonic() < deadline, "the device stays busy"
            self.bed.run(f"kill -TERM {self.attribute('task')}", check=False)
            time.sleep(0.1)
        assert self.server is not None
        self.server.wait()

    def force_remove(self) -> None:
        """Have the server remove the device whoever has it open, and wait until the server has let go of the minor."""
        self.signal("USR1")
        self.expect("removed\n")
        assert self.server is not None
        self.server.wait()

    def attribute(self, name: str) -> str:
        """A file of the minor in sysfs."""
        return self.bed.run(f"cat {self.sysfs}/{name}").stdout.strip()

    def count(self, name: str) -> int:
        """A counter of the minor."""
        return int(self.attribute(f"counters/{name}"))

    def queue(self, name: str) -> str:
        """A queue attribute of the device."""
        return self.bed.run(f"cat /sys/block/tapdev{self.minor}/queue/{name}").stdout.strip()

    def close(self) -> None:
        """Free the minor, whatever its state."""
        self.bed.run(f"kill -9 $(cat {self.sysfs}/task)", check=False)
        if self.server is not None:
            self.server.wait(check=False)
        self.bed.run(f"test ! -e {self.sysfs} || {SERVER} free {self.minor}; rm -f {self.file}")


def prepare(bed: Bed, toys: Path) -> Bed:
    """Load the driver and bring what the tests run."""
    if bed.run(f"test -x {SERVER}", check=False).status:
        for program in (SERVER, HAMMER, HOSTILE, STORM, STARVE):
            bed.put(program, (toys / Path(program).name).read_bytes(), mode=0o755)
        bed.run("dd if=/dev/urandom of=/root/random bs=1M count=16 status=none")
    bed.run("modprobe blktap")
    return bed
