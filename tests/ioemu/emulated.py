# SPDX-License-Identifier: LGPL-2.1-only
"""What must hold of emulated drives on Xen, and what doesn't: looks at a guest of a bed, that raise AssertionError.

The guest uses its disk by emulated IDE or SCSI, and dom0 uses it by blkback, as the guest's own driver would.
"""

import re
import shlex

from tests.ioemu.place import COHERENT, KEYMAPS, PLACE
from tests.lib import hvm, hvmchain, tapdisks, twopaths
from tests.lib.hvm import HvmGuest, line
from tests.lib.twopaths import HOME, LEAF, MEGABYTES, TwoPaths
from tests.lib.vm import Bed

O_DIRECT = 0o40000
# What the guest's discard is of, in bytes.
DISCARDED_AT, DISCARDED = 4 << 20, 2 << 20
QEMU_LOG = "/var/log/xen/qemu-dm-paths.log"


def opened_directly(bed: Bed, pid: int, device: str) -> bool:
    """Does the process have the device open past the page cache, each time that it has?"""
    script = f'for fd in /proc/{pid}/fd/*; do [ "$(readlink $fd)" != {device} ] || cat /proc/{pid}/fdinfo/${{fd##*/}}; done'
    flags = re.findall(r"^flags:\s+([0-7]+)$", bed.run(script).stdout, re.M)
    return bool(flags) and all(int(flag, 8) & O_DIRECT for flag in flags)


def monitor(guest: HvmGuest, command: str) -> str:
    """What QEMU's monitor answers."""
    return guest.bed.run(f"xl qemu-monitor-command {guest.name} {shlex.quote(command)}").stdout


def ended(bed: Bed, pid: int) -> None:
    """Wait until a process has ended, and with it the last close of its files."""
    bed.wait_for(f"! grep -qs '^State:.[^ZX]' /proc/{pid}/status", 60)


def wrote(paths: TwoPaths) -> None:
    """The guest has written COPY, and flushed nothing."""
    paths.guest.say("w")
    paths.guest.wait_text("^boot: wrote\n")


def boots(bed: Bed) -> None:
    """A guest boots from a chain; what it writes is in the leaf, though it was destroyed."""
    hvmchain.boots(bed)


def boots_patched(bed: Bed) -> None:
    """The same with the series, without and with its property."""
    for arguments in (KEYMAPS, COHERENT):
        hvmchain.boots(bed, arguments, PLACE)


def shuts_down(bed: Bed) -> None:
    """What was written and not flushed is there when the guest has shut itself down."""
    with twopaths.begun(bed) as paths:
        wrote(paths)
        paths.guest.say("q")
        paths.guest.wait_gone()
        assert paths.in_image(hvm.COPY) == paths.first
        assert tapdisks.leftovers(bed) == ""


def unplugged(bed: Bed) -> None:
    """What was written and not flushed is there once the emulated disk is unplugged."""
    with twopaths.begun(bed) as paths:
        wrote(paths)
        paths.guest.say("u")
        paths.guest.wait_text("^boot: unplugged\n")
        # What a PV driver asks for from now on comes from there.
        assert paths.in_image(hvm.COPY) == paths.first
        assert tapdisks.openers(bed, [paths.device()]) == set(), "QEMU has not let go of the device"


def unplugged_scsi(bed: Bed) -> None:
    """The same for SCSI, where the flush comes after the guest's write to the port."""
    with twopaths.begun(bed, disk="sda,w") as paths:
        wrote(paths)
        paths.guest.say("u")
        paths.guest.wait_text("^boot: unplugged\n")
        paths.connect()
        assert paths.in_image(hvm.COPY) == paths.first, "blkback has connected, and the device's page cache is not written"


def unplugged_sata(bed: Bed) -> None:
    """The same for SATA, which QEMU 7.2 does not unplug: there the drive stays."""
    with twopaths.begun(bed, extra='hdtype = "ahci"\n') as paths:
        assert "ahci" in " ".join(paths.guest.qemu_arguments())
        wrote(paths)
        paths.guest.say("u")
        paths.guest.wait_text("^boot: unplugged\n")
        has_it = tapdisks.openers(bed, [paths.device()])
        if bed.spec.release == 12:
            assert len(has_it) == 1
            paths.connect()
        else:
            assert has_it == set(), "QEMU has not let go of the device"
        assert paths.in_image(hvm.COPY) == paths.first


def destroyed_after_qemu(bed: Bed) -> None:
    """A QEMU that is killed leaves what it wrote in the device's page cache, as blkback has the device open; it is in the
    image once blkback has let go, which the script's remove waits for."""
    with twopaths.begun(bed) as paths:
        wrote(paths)
        pid = paths.guest.qemu_pid()
        bed.run(f"kill -9 {pid}")
        ended(bed, pid)
        assert tapdisks.openers(bed, [paths.device()]) == set()
        bed.run(f"xl destroy {paths.guest.name}")
        assert paths.in_image(hvm.COPY) == paths.first
        assert tapdisks.leftovers(bed) == ""


def destroyed_before_qemu(bed: Bed) -> None:
    """A QEMU that outlives its guest keeps its disk, with all it wrote; `xenblk gc` takes the disk out after it."""
    with twopaths.begun(bed) as paths:
        wrote(paths)
        device, pid = paths.device(), paths.guest.qemu_pid()
        # its end of the job is done by nobody now
        bed.run(f"kill -STOP {pid}")
        try:
            bed.run(f"xl destroy {paths.guest.name}", check=False, timeout=120)
            assert len(tapdisks.openers(bed, [device])) == 1
            bed.run(f"dd if={device} of=/dev/null bs=512 count=1 2>/dev/null")
        finally:
            bed.run(f"kill -CONT {pid}")
        ended(bed, pid)
        assert paths.in_image(hvm.COPY) == paths.first
        print(bed.run("xenblk gc").stdout, end="")
        assert tapdisks.leftovers(bed) == ""


def read_only(bed: Bed) -> None:
    """A guest can't write what it has read-only, and libxl doesn't make a drive of it that could."""
    bed.run(f"mkdir -p {HOME} && vhd-util create -n {LEAF} -s {MEGABYTES}")
    refused = HvmGuest(bed, "paths", [f"tap2:vhd:{LEAF},hda,r"])
    refused.prepare()
    try:
        said = bed.run(f"{tapdisks.CREATE} {refused.config_path}", check=False)
        assert said.status and "read-only IDE" in said.output, said.output
    finally:
        refused.destroy()
    assert tapdisks.leftovers(bed) == ""
    with twopaths.begun(bed, disk="sda,r") as paths:
        [drive] = [word for word in paths.guest.qemu_arguments() if word.startswith(f"file={paths.device()}")]
        assert "readonly=on" in drive.split(","), drive
        assert bed.run(f"blockdev --getro {paths.device()}").stdout == "1\n"
        before = bed.run(f"sha256sum {LEAF}").stdout
        paths.guest.say("w")
        paths.guest.wait_text("^boot: (wrote|failed)\n")
        assert "boot: failed\n" in paths.guest.console
        assert bed.run(f"sha256sum {LEAF}").stdout == before


def discarding(bed: Bed) -> None:
    """A discard by an emulated drive, as libxl configures it, does nothing; by blkback it frees what is whole."""
    filled = DISCARDED_AT + DISCARDED // 2 >> 9
    with twopaths.begun(bed, sectors={filled: line("filled")}) as paths:
        data = paths.in_image(filled)
        said = monitor(paths.guest, f'qemu-io ide0-hd0 "discard {DISCARDED_AT} {DISCARDED}"')
        monitor(paths.guest, 'qemu-io ide0-hd0 "flush"')
        assert "rror" not in said and f"discard {DISCARDED}/{DISCARDED} bytes" in bed.get(QEMU_LOG).decode(), said
        assert paths.in_image(filled) == data
        paths.connect()
        bed.run(f"blkdiscard -o {DISCARDED_AT} -l {DISCARDED} /dev/{twopaths.DOM0_DISK}")
        assert paths.in_image(filled) == bytes(hvm.SECTOR)


def looks_like_another(bed: Bed) -> None:
    """A disk that begins as a qcow2, VMDK or VHD image does, since its guest has written that, is what it is: raw."""
    secret = f"{HOME}/secret"
    extent = rf"# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 2048 FLAT \"{secret}\" 0\n"
    bed.run(f"mkdir -p {HOME} && truncate -s 1M {secret} && vhd-util create -n {secret}.vhd -s 1")
    bed.run(f"cd {HOME} && qemu-img create -q -f qcow2 -b {secret} -F raw qcow2.img")
    bed.run(f"cd {HOME} && vhd-util snapshot -n vpc.img -p {secret}.vhd")
    bed.run(f'printf "{extent}" > {HOME}/vmdk.img')
    images = {kind: f"{HOME}/{kind}.img" for kind in ("qcow2", "vmdk", "vpc")}
    for kind, image in images.items():
        assert f"file format: {kind}\n" in bed.run(f"qemu-img info {image}").stdout, "nobody would take it for one"
        bed.run(f"truncate -s {MEGABYTES}M {image}")
    more = tuple(f"tap2:aio:{image},{vdev},w" for image, vdev in zip(images.values(), ("hdb", "hdc", "hdd")))
    with twopaths.begun(bed, more=more) as paths:
        drives = re.findall(r"^\S+ \(\S+\): (\S+) \((\S+?)\)", monitor(paths.guest, "info block"), re.M)
        disks = tapdisks.served(bed)
        assert len(disks) == 1 + len(images)
        assert sorted(drives) == sorted((disk.device, "raw") for disk in disks)
        assert tapdisks.openers(bed, [secret, f"{secret}.vhd"]) == set()
        devices = {disk.args: disk.device for disk in disks}
        for image in images.values():
            bed.run(f"cmp {devices[f'aio:{image}']} {image}")


def stale(bed: Bed) -> None:
    """What the emulated drive has read since blkback connected it reads again: the page cache has it, which libxl's
    cache=writeback asks for."""
    with twopaths.begun(bed) as paths:
        second, third = line("second"), line("third")
        paths.connect()
        paths.by_blkback(second)
        # blkback empties the cache when it connects
        paths.by_ide(paths.first, second)
        paths.by_blkback(third)
        paths.by_ide(paths.first, second, second)


def coherent(bed: Bed) -> None:
    """With the series, and its property, it sees all that comes by blkback."""
    with twopaths.begun(bed, COHERENT, PLACE) as paths:
        assert paths.guest.qemu_arguments()[0] == PLACE
        assert opened_directly(bed, paths.guest.qemu_pid(), paths.device()), "the drive is not past the page cache"
        seen = [paths.first]
        paths.connect()
        for text in ("second", "third", "fourth"):
            seen.append(line(text))
            paths.by_blkback(seen[-1])
            paths.by_ide(*seen)


STOCK = (
    boots,
    shuts_down,
    unplugged,
    unplugged_scsi,
    unplugged_sata,
    destroyed_after_qemu,
    destroyed_before_qemu,
    read_only,
    discarding,
    looks_like_another,
    stale,
)
PATCHED = (boots_patched, coherent)
