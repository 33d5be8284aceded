# SPDX-License-Identifier: LGPL-2.1-only
"""`make demo`: the main job on real Xen, step by step, for a person to watch.

A PV guest whose only disk is a tap2: VHD snapshot of a base image mounts it, writes a file, syncs and powers off. The
file is then read out of the chain in dom0, and the base image must not have changed.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.lib.apt import AptError
from tests.lib.guest import DISK_AND_EXT4, Guest
from tests.lib.image import ImageError
from tests.lib.qemu import BedSpec
from tests.lib.stage import StageError
from tests.lib.vm import Bed, BedError

BASE = "/srv/base.vhd"
LEAF = "/srv/guest.vhd"
BACKEND = "/local/domain/0/backend/vbd/{domid}/51712"

SCRIPT = """
wait_for_disk xvda
echo "the kernel says: /dev/xvda has $(cat /sys/block/xvda/size) sectors"
mount -t ext4 /dev/xvda /mnt
echo "the base image's file: $(cat /mnt/base.txt)"
echo "written by the guest on its tap2 disk" > /mnt/guest.txt
dd if=/dev/urandom of=/mnt/random bs=64k count=64 2>/dev/null
sync
echo "sha256 of what it wrote: $(cat /mnt/guest.txt /mnt/random | sha256sum | cut -d' ' -f1)"
umount /mnt
"""


class DemoFailed(Exception):
    """The guest's data is not what it should be."""


class Screen:
    """What the person sees: numbered steps, the commands and what they print, the time of each step."""

    def __init__(self) -> None:
        self.times: list[tuple[str, float]] = []
        tty = sys.stdout.isatty()
        self.bold, self.dim, self.plain = ("\033[1m", "\033[2m", "\033[0m") if tty else ("", "", "")

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One step: its title before, its time after."""
        print(f"\n{self.bold}{len(self.times) + 1}. {title}{self.plain}", flush=True)
        start = time.monotonic()
        yield
        self.times.append((title, time.monotonic() - start))
        print(f"   {self.dim}{self.times[-1][1]:.1f} s{self.plain}", flush=True)

    def show(self, text: str) -> None:
        """Some lines, indented."""
        for line in text.rstrip("\n").split("\n"):
            print(f"   {line}", flush=True)

    def summary(self) -> None:
        """The time of each step."""
        print(f"\n{self.bold}Time{self.plain}")
        for number, (title, seconds) in enumerate(self.times, 1):
            print(f"   {number}. {title:<72} {seconds:6.1f} s")
        print(f"      {'in all':<72} {sum(seconds for _, seconds in self.times):6.1f} s")


class Demo:
    """The demo on a bed that runs."""

    def __init__(self, bed: Bed, screen: Screen) -> None:
        self.bed = bed
        self.screen = screen

    def run(self, command: str, show: bool = True) -> str:
        """A command in dom0, shown with its output."""
        if show:
            self.screen.show(f"{self.screen.dim}dom0#{self.screen.plain} {command}")
        output = self.bed.run(command).stdout
        if show and output.strip():
            self.screen.show(output)
        return output.strip()

    def make_images(self) -> str:
        """A base image with a file system and a file, and the guest's snapshot of it. Returns the base's checksum."""
        self.run("modprobe blktap")
        self.run(f"vhd-util create -n {BASE} -s 256")
        device = self.run(f"tap-ctl create -a vhd:{BASE}")
        self.run(f"mkfs.ext4 -q {device} && mount {device} /mnt && echo 'from the base' > /mnt/base.txt && umount /mnt")
        self.destroy_all()
        self.run(f"vhd-util snapshot -n {LEAF} -p {BASE}")
        return self.run(f"sha256sum {BASE}").split()[0]

    def destroy_all(self) -> None:
        """Ends every tapdisk that `tap-ctl list` shows."""
        for line in self.run("tap-ctl list", show=False).splitlines():
            fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
            self.run(f"tap-ctl destroy -p {fields['pid']} -m {fields['minor']}")

    def show_path(self, guest: Guest) -> None:
        """From the image to the guest: tapdisk, the gendisk, what blkback exports."""
        domid = self.run(f"xl domid {guest.name}", show=False)
        backend = BACKEND.format(domid=domid)
        self.screen.show("tapdisk (pid, minor) and the image it serves:")
        self.run("tap-ctl list")
        self.screen.show("its chain, leaf first:")
        self.screen.show(f"{LEAF}\n{self.run(f'vhd-util query -n {LEAF} -p', show=False)}")
        self.screen.show("the gendisk in dom0:")
        self.run("lsblk -o NAME,MAJ:MIN,SIZE,RO,TYPE /dev/xen/blktap-2/tapdev*")
        self.screen.show("what blkback exports:")
        for key in ("params", "mode", "physical-device-path", "physical-device"):
            self.screen.show(f"{backend}/{key} = {self.run(f'xenstore-read {backend}/{key}', show=False)}")

    def read_back(self) -> str:
        """The checksum of the guest's files, read from the chain in dom0."""
        device = self.run(f"tap-ctl create -R -a vhd:{LEAF}")
        self.run(f"mount -o ro,noload {device} /mnt && cat /mnt/guest.txt")
        found = self.run("cat /mnt/guest.txt /mnt/random | sha256sum").split()[0]
        self.run("umount /mnt")
        self.destroy_all()
        return found

    def play(self) -> None:
        """All steps after the boot. Raises DemoFailed if data was lost or changed."""
        step = self.screen.step
        with step("Make a base image with a file system, and the guest's snapshot of it"):
            base = self.make_images()
        guest = Guest(self.bed, "demo", SCRIPT, disks=[f"tap2:vhd:{LEAF},xvda,w"], modules=DISK_AND_EXT4)
        with step("The guest's configuration, and the disk as libxl is to get it"):
            guest.prepare()
            self.run(f"grep -E '^(name|type|disk)' {guest.config_path}")
            self.run(f"xenblk rewrite {guest.config_path}")
        with step("xl create: the guest starts"):
            self.screen.show(f"{self.screen.dim}dom0#{self.screen.plain} xl create {guest.config_path}")
            guest.start()
        with step("Between the image and the guest"):
            self.show_path(guest)
        with step("What the guest saw"):
            seen = guest.wait().output
            self.screen.show(seen)
        with step("The guest powers off: nothing of it is left behind"):
            guest.wait_gone()
            left = self.bed.run("tap-ctl list; ls /dev/xen/blktap-2/ | grep tapdev; pgrep -a tapdisk", check=False)
            if left.output.strip():
                raise DemoFailed(f"left behind:\n{left.output}")
            self.screen.show("no tapdisk, no gendisk")
        with step("The same files, read from the chain in dom0; the base is as it was"):
            found = self.read_back()
            if f"sha256 of what it wrote: {found}" not in seen:
                raise DemoFailed(f"dom0 read {found}, the guest wrote something else")
            after = self.run(f"sha256sum {BASE}").split()[0]
            if after != base:
                raise DemoFailed(f"{BASE} has changed: {base} before, {after} after")
            self.screen.show("what the guest wrote is in the chain; the base is unchanged, byte for byte")


def main() -> int:
    """The program. 0 if the data is right."""
    screen = Screen()
    try:
        with screen.step("Boot a Debian 12 dom0 on real Xen, in emulation"):
            bed = Bed(BedSpec(release=12, xen=True))
            bed.start()
            facts = bed.run("xl info | grep -E '^(release|xen_version)'; uname -r; modinfo -F version blktap || true")
            screen.show(facts.stdout)
        with bed:
            Demo(bed, screen).play()
    except (AptError, BedError, DemoFailed, ImageError, StageError, OSError) as error:
        print(f"\nmake demo: {error}", file=sys.stderr)
        return 1
    screen.summary()
    print("\nIt works: plain xl create, a stock libxl and blkback, and a disk that tapdisk serves from a VHD chain.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
