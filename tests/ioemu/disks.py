# SPDX-License-Identifier: LGPL-2.1-only
"""What ioemu opens for a guest's disks, asked of its own xenstore.o (disks.c)."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

GUEST = 7
FRONTEND = f"/local/domain/{GUEST}/device/vbd/768"
TAPDEV, OTHER = "/dev/xen/blktap-2/tapdev0", "/dev/xen/blktap-2/tapdev1"
IMAGE = "/srv/a.vhd"
VOLUME = "/dev/vg/lv"
# the last two are names of one
DEVICES = {TAPDEV: 1, OTHER: 2, VOLUME: 3, "/dev/dm-7": 3}


@dataclass(frozen=True)
class Case:
    """A disk, what is expected, and whether ioemu without the series does something else.

    device: physical-device-path. change: new params, of a drive for CDs. said: what standard error must name.
    """

    name: str
    type: str
    params: str
    opened: tuple[str, ...]
    new: bool = True
    kind: str = "vbd"
    mode: str = "w"
    device: str = ""
    change: tuple[str, ...] = ()
    guest: tuple[tuple[str, str], ...] = ()
    said: str = ""

    @property
    def backend(self) -> str:
        """The directory of the backend."""
        return f"/local/domain/0/backend/{self.kind}/{GUEST}/768"

    def orders(self) -> str:
        """The input of disks.c."""
        nodes = {
            f"{FRONTEND}/backend": self.backend,
            f"{FRONTEND}/device-type": "cdrom" if self.change else "disk",
            f"{self.backend}/frontend": FRONTEND,
            f"{self.backend}/dev": "hda",
            f"{self.backend}/type": self.type,
            f"{self.backend}/params": self.params,
            f"{self.backend}/mode": self.mode,
        }
        if self.device:
            nodes[f"{self.backend}/physical-device-path"] = self.device
        nodes |= {f"{FRONTEND}/{name}": value for name, value in self.guest}
        lines = [f"device {path}={number}" for path, number in DEVICES.items()]
        lines += [f"node {path}={value}" for path, value in nodes.items()]
        lines += ["start", *(f"change {self.backend}/params={value}" for value in self.change)]
        return "".join(f"{line}\n" for line in lines)


RAW = (f"open {TAPDEV} raw rw",)
CD = f"open {TAPDEV} raw ro"
CASES = (
    Case("blktap2's device as libxl gives it", "phy", TAPDEV, RAW, new=False),
    Case("a volume without /dev", "phy", "vg/lv", (f"open {VOLUME} raw rw",), new=False),
    Case(
        "a volume, which the script calls otherwise",
        "phy",
        VOLUME,
        (f"open {VOLUME} raw rw",),
        new=False,
        device="/dev/dm-7",
    ),
    Case("a file of type phy, as before", "phy", "/srv/a.img", ("open /srv/a.img raw rw",), new=False),
    Case("a file of type file, as before", "file", "/srv/a.img", ("open /srv/a.img raw rw",), new=False),
    Case("qdisk, aio", "qdisk", "aio:/srv/a.img", ("open /srv/a.img raw rw",), new=False, kind="qdisk"),
    Case("qdisk, qcow2", "qdisk", "qcow2:/srv/a", ("open /srv/a qcow2 rw",), new=False, kind="qdisk"),
    Case("qdisk, of a device", "qdisk", f"aio:{TAPDEV}", RAW, new=False, kind="qdisk", device=OTHER),
    Case("tap, a device", "tap", TAPDEV, RAW, kind="tap"),
    Case("tap of a vbd, a device", "tap", TAPDEV, RAW),
    Case("tap2, a device", "tap2", TAPDEV, RAW, kind="tap2"),
    Case("tap2, read-only", "tap2", TAPDEV, (f"open {TAPDEV} raw ro",), kind="tap2", mode="r"),
    Case("tap, a device by the script", "tap", f"vhd:{IMAGE}", RAW, kind="tap", device=TAPDEV),
    Case("tap, a device by the script, read-only", "tap", f"vhd:{IMAGE}", (CD,), kind="tap", device=TAPDEV, mode="r"),
    Case("tap, a volume with an image for the script", "tap", VOLUME, RAW, kind="tap", device=TAPDEV),
    Case("tap, an image for the script", "tap", IMAGE, RAW, kind="tap", device=TAPDEV),
    Case("tap, no device", "tap", "aio:/srv/a.img", (), kind="tap", said="/local/domain/0/backend/tap/7/768"),
    Case("tap, no device, to be probed", "tap", "qcow:/srv/a", (), kind="tap", said="type tap"),
    Case("tap2, an image", "tap2", IMAGE, (), new=False, said=IMAGE),
    Case(
        "tap, the script's node names a file",
        "tap",
        f"vhd:{IMAGE}",
        (),
        new=False,
        kind="tap",
        device=IMAGE,
        said=IMAGE,
    ),
    Case("a script's disk", "phy", f"vhd:{IMAGE}", RAW, device=TAPDEV),
    Case("a script's disk, read-only", "phy", f"vhd:{IMAGE}", (CD,), device=TAPDEV, mode="r"),
    Case("a script's disk, a path", "phy", IMAGE, RAW, device=TAPDEV),
    Case("a script's disk, a volume with an image", "phy", VOLUME, RAW, device=TAPDEV),
    Case(
        "nodes of the guest",
        "tap",
        f"aio:{IMAGE}",
        (),
        kind="tap",
        guest=(
            ("params", VOLUME),
            ("physical-device-path", VOLUME),
            ("phantom_vbd", "/local/domain/0/backend/vbd/1/768"),
        ),
        said="/local/domain/0/backend/tap/7/768",
    ),
    Case(
        "another guest's backend",
        "phy",
        TAPDEV,
        (),
        new=False,
        guest=(("backend", "/local/domain/0/backend/vbd/8/768"),),
        said="ignoring",
    ),
    Case(
        "tap, a new medium",
        "tap",
        TAPDEV,
        (CD, "close", f"open {OTHER} raw ro"),
        kind="tap",
        mode="r",
        change=(OTHER,),
    ),
    Case(
        "tap, no device in the drive",
        "tap",
        TAPDEV,
        (CD, "close"),
        kind="tap",
        mode="r",
        change=(IMAGE,),
        said=IMAGE,
    ),
    Case("tap, out", "tap", TAPDEV, (CD, "close"), kind="tap", mode="r", change=("",)),
    Case(
        "tap, out and in",
        "tap",
        IMAGE,
        (CD, "close", "close", CD),
        kind="tap",
        mode="r",
        device=TAPDEV,
        change=("", IMAGE),
    ),
    Case("tap, other words", "tap", IMAGE, (CD,), kind="tap", mode="r", device=TAPDEV, change=("/srv/b.vhd", VOLUME)),
    Case(
        "phy, a new medium, the script's node left behind",
        "phy",
        TAPDEV,
        (CD, "close", f"open {OTHER} raw ro"),
        new=False,
        mode="r",
        device=TAPDEV,
        change=(OTHER,),
    ),
    Case(
        "tap, a new medium, the script's node left behind",
        "tap",
        TAPDEV,
        (CD, "close", f"open {OTHER} raw ro"),
        mode="r",
        device=TAPDEV,
        change=(OTHER,),
    ),
    Case("a script's CD", "phy", f"vhd:{IMAGE}", (CD,), mode="r", device=TAPDEV, change=(f"vhd:{IMAGE}", VOLUME)),
    Case(
        "a CD drive",
        "phy",
        "/dev/cdrom",
        ("open /dev/cdrom host_device ro",),
        new=False,
        mode="r",
        change=("/dev/cdrom",),
    ),
    Case("a file in the CD drive", "phy", "/a.iso", ("open /a.iso raw ro",), new=False, mode="r", change=("/a.iso",)),
)


def wrong(case: Case, program: Path) -> str:
    """What is not as expected, or nothing."""
    result = subprocess.run([program], input=case.orders(), capture_output=True, text=True, timeout=30, check=False)
    if result.returncode:
        return f"{case.name}: status {result.returncode}: {result.stderr.strip()}"
    did = tuple(result.stdout.splitlines())
    if did != case.opened:
        return f"{case.name}: {', '.join(did) or 'nothing'}; expected: {', '.join(case.opened) or 'nothing'}"
    if case.said not in result.stderr:
        return f"{case.name}: nothing said of {case.said}: {result.stderr.strip()}"
    return ""
