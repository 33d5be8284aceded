# SPDX-License-Identifier: LGPL-2.1-only
"""What must hold of QEMU's xen-block on Xen: looks at disks of dom0's own in a bed, that raise AssertionError.

The emulator with the series serves them as Debian's xen-qemu-dom0-disk-backend.service would, to Linux's blkfront.
"""

import contextlib
from collections.abc import Iterator

from tests.ioemu.place import KEYMAPS, PLACE
from tests.lib import tapdisks
from tests.lib.hvm import SECTOR, in_image, line
from tests.lib.vm import Bed, BedError
from tests.lib.waiting import wait_for

HOME = "/srv/backend"
LEAF, RAW, LOG = f"{HOME}/leaf.vhd", f"{HOME}/raw.img", f"{HOME}/log"
MEGABYTES = 10
DISK, NUMBER = "xvdp", 51952
NODES = f"/local/domain/0/backend/qdisk/0/{NUMBER}"
FRONTEND = f"/local/domain/0/device/vbd/{NUMBER}"
STATE = "/local/domain/0/device-model/0/state"
PID = "/local/domain/0/image/device-model-pid"
# Ours asks for the lock itself.
XENS_XL = "/usr/libexec/xl"
LOCKING = ("-global", "xen-disk.locking=auto")
# As Debian's service does, but for the log.
SERVES = ("-M", "xenpv", "-xen-domid", "0", "-xen-attach", "-name", "dom0", "-nographic", "-nodefaults", "-no-user-config")
SILENT = ("-monitor", "none", "-serial", "none", "-parallel", "none")


@contextlib.contextmanager
def serving(bed: Bed, arguments: tuple[str, ...] = ()) -> Iterator[None]:
    """Dom0 has a QEMU for its qdisks, a VHD and a raw image of nothing."""
    bed.run(f"modprobe xen-blkfront; mkdir -p {HOME}")
    bed.run(f"vhd-util create -n {LEAF} -s {MEGABYTES} && truncate -s {MEGABYTES}M {RAW}")
    command = " ".join((PLACE, *KEYMAPS, *SERVES, *SILENT, *arguments))
    pid = int(bed.run(f"setsid {command} > {LOG} 2>&1 < /dev/null & echo $!").stdout)
    try:
        bed.wait_for(f'[ "$(xenstore-read {STATE})" = running ] || ! kill -0 {pid}', 120)
        bed.run(f"kill -0 {pid} || {{ cat {LOG}; false; }}")
        # what libxl takes for a QEMU of dom0's, and the service writes
        bed.run(f"xenstore-write {PID} {pid}")
        yield
    except (AssertionError, BedError):
        if bed.alive:
            print(bed.run(f"cat {LOG}; xenstore-ls -f {NODES}", check=False).output)
        raise
    finally:
        bed.run(f"xl block-detach 0 {DISK} 2>/dev/null", check=False)
        bed.run(f"kill {pid}", check=False)
        bed.wait_for(f"! kill -0 {pid} 2>/dev/null", 30)
        bed.run(f"for node in {PID} {STATE} {NODES} {FRONTEND}; do xenstore-rm $node 2>/dev/null; done; rm -rf {HOME}", check=False)


def attach(bed: Bed, target: str, access: str = "w") -> None:
    """A qdisk for dom0, by xl."""
    bed.run(f"xl block-attach 0 'vdev={DISK},backendtype=qdisk,format=raw,access={access},target={target}'", timeout=120)
    bed.wait_for(f"test -b /dev/{DISK}", 60)


def detach(bed: Bed) -> None:
    """Take it out."""
    bed.run(f"xl block-detach 0 {DISK}", timeout=120)
    bed.wait_for(f"! test -b /dev/{DISK}", 60)


def closed(bed: Bed, path: str) -> None:
    """Wait until nobody has the file open."""
    wait_for(lambda: not tapdisks.openers(bed, [path]), f"{path} is closed", 60)


def put(bed: Bed, device: str, sector: int, data: bytes) -> None:
    """Write a sector, and flush: xen-block itself goes through the page cache of what it has open."""
    bed.run(f"dd of={device} bs={SECTOR} seek={sector} oflag=direct conv=fsync 2>/dev/null", stdin=data)


def has(bed: Bed, device: str, sector: int) -> bytes:
    """Read a sector past the page cache."""
    bed.run(f"dd if={device} of=/srv/sector bs={SECTOR} skip={sector} count=1 iflag=direct 2>/dev/null")
    return bed.get("/srv/sector")


def both_ways(bed: Bed, device: str) -> None:
    """What dom0 writes by the qdisk is in the image, and it reads what came by tapdisk's device."""
    here, there = line("by xen-block"), line("by the device")
    put(bed, f"/dev/{DISK}", 5001, here)
    assert in_image(bed, LEAF, 5001) == here
    put(bed, device, 9001, there)
    assert has(bed, f"/dev/{DISK}", 9001) == there


def nbd(bed: Bed) -> None:
    """The NBD socket that tapdisk has for each disk, by URI."""
    with serving(bed):
        device = tapdisks.create(bed, f"vhd:{LEAF}")
        [disk] = tapdisks.served(bed)
        attach(bed, f"nbd+unix:///?socket=/run/blktap-control/nbd{disk.pid}.{disk.minor}")
        both_ways(bed, device)
        detach(bed)
        tapdisks.destroy(bed, device)


def tap(bed: Bed) -> None:
    """A spec that only a block script understands, and the device that the script names, here a moment later."""
    with serving(bed):
        device = tapdisks.create(bed, f"vhd:{LEAF}")
        nodes = {f"{FRONTEND}/backend": NODES, f"{FRONTEND}/backend-id": "0", f"{FRONTEND}/virtual-device": str(NUMBER)}
        nodes |= {f"{FRONTEND}/device-type": "disk", f"{FRONTEND}/state": "1"}
        own = {"frontend": FRONTEND, "frontend-id": "0", "online": "1", "removable": "1", "dev": DISK, "mode": "w"}
        own |= {"type": "qdisk", "device-type": "disk", "params": f"aio:tap2:vhd:{LEAF}"}
        nodes |= {f"{NODES}/{name}": value for name, value in (own | {"state": "1"}).items()}
        bed.run("xenstore-write " + " ".join(f"'{path}' '{value}'" for path, value in nodes.items()))
        bed.wait_for(f"grep -q 'no physical-device-path' {LOG}", 60)
        bed.run(f"xenstore-write {NODES}/physical-device-path {device}")
        bed.wait_for(f"test -b /dev/{DISK}", 60)
        assert tapdisks.openers(bed, [LEAF]) == {("tapdisk", LEAF)}
        both_ways(bed, device)
        bed.run(f"xenstore-write {NODES}/online 0 {NODES}/state 5")
        bed.wait_for(f"! test -b /dev/{DISK}", 60)
        closed(bed, device)
        tapdisks.destroy(bed, device)


def read_only(bed: Bed) -> None:
    """A qdisk that is to be read only can be had, and can't be written."""
    with serving(bed):
        put(bed, RAW, 7, data := line("raw"))
        before = bed.run(f"sha256sum {RAW}").stdout
        attach(bed, RAW, "r")
        assert bed.run(f"blockdev --getro /dev/{DISK}").stdout == "1\n"
        assert has(bed, f"/dev/{DISK}", 7) == data
        assert bed.run(f"dd if=/dev/zero of=/dev/{DISK} bs=4096 count=1 oflag=direct", check=False).status
        detach(bed)
        assert bed.run(f"sha256sum {RAW}").stdout == before


def locked(bed: Bed) -> None:
    """With the property, an image is tapdisk's or xen-block's, and whoever comes second is told."""
    with serving(bed, LOCKING):
        device = tapdisks.create(bed, f"aio:{RAW}")
        second = bed.run(f"{XENS_XL} block-attach 0 'vdev={DISK},backendtype=qdisk,format=raw,access=w,target={RAW}'", check=False)
        bed.wait_for(f"""grep -q 'Failed to get "write" lock' {LOG}""", 60)
        assert bed.run(f"test -b /dev/{DISK}", check=False).status, second.output
        tapdisks.destroy(bed, device)
        # libxl leaves those of a backend that never connected
        bed.run(f"xl block-detach 0 {DISK}; xenstore-rm {NODES}; xenstore-rm {FRONTEND}", check=False)
        attach(bed, RAW)
        said = bed.run(f"tap-ctl create -a aio:{RAW}", check=False)
        assert said.status and RAW in said.output, said.output
        detach(bed)
        tapdisks.destroy(bed, tapdisks.create(bed, f"aio:{RAW}"))


PATCHED = (nbd, tap, read_only, locked)
