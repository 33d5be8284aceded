# SPDX-License-Identifier: LGPL-2.1-only
"""What QEMU opens for a guest's disks: a built QEMU on a xenstored of ours (fakexen.c), asked by its monitor."""

import fcntl
import json
import os
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ioemu.series import SeriesError
from tests.lib import builder, xenstored
from tests.lib.nbdfake import FakeServer
from tests.lib.vhdmake import Spec, image

GUEST = 7
VDEV = "xvda"
BACKEND = f"/local/domain/0/backend/qdisk/{GUEST}/51712"
FRONTEND = f"/local/domain/{GUEST}/device/vbd/51712"
INIT_WAIT = "2"
SIZE = 1 << 20
START_SECONDS = 120.0
# The bytes that QEMU and tapdisk lock in an image: what they do, what others may not.
DOES, FORBIDS = 100, 200
READ, WRITE, RESIZE = 0, 1, 3
LOCK = struct.Struct("hhqqi4x")


@dataclass(frozen=True)
class Case:
    """A disk, what is expected of it, and whether QEMU without the series does something else.

    params, device: of the backend. {dir} stands for the directory with the files. said: what standard error has.
    drive: an emulated drive in place of a backend. options: more of QEMU's. locked: the image is, by tapdisk.
    """

    name: str
    params: str | None
    opened: str
    new: bool = True
    device: str = ""
    mode: str = "w"
    said: str = ""
    nodes: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()
    drive: bool = False
    locked: bool = False


TAPDEV, IMAGE, QCOW2, VHD = "{dir}/tapdev0", "{dir}/a.img", "{dir}/qcow2dev", "{dir}/a.vhd"
RAW = f"raw over host_device {TAPDEV} rw"
REFUSED = "nothing"
SCRIPT = "no physical-device-path"
NBD = "raw over nbd nbd+unix:///disk?socket={dir}/nbd rw"
LOCKING = ("-global", "xen-disk.locking=auto")
DIRECT = ("-global", "ide-hd.direct-host-device=on", "-global", "scsi-hd.direct-host-device=on")
IDE = ("-drive", "file={file},if=ide,index=0,media=disk,format=raw,cache=writeback")
SCSI = (
    *("-device", "lsi53c895a,id=scsi0"),
    *("-drive", "file={file},if=none,id=d,format=raw,cache=writeback"),
    *("-device", "scsi-hd,drive=d,bus=scsi0.0"),
)


def at(options: tuple[str, ...], file: str) -> tuple[str, ...]:
    """The options for a drive of this file."""
    return tuple(option.replace("{file}", file) for option in options)


CASES = (
    Case("a file", f"aio:{IMAGE}", f"raw over file {IMAGE} rw", new=False),
    Case("a file without a format", IMAGE, f"raw over file {IMAGE} rw", new=False),
    Case("a block device", f"aio:{TAPDEV}", RAW, new=False),
    Case("a block device that has a script's node", f"aio:{TAPDEV}", RAW, new=False, device=QCOW2),
    Case("a file, read-only", f"aio:{IMAGE}", f"raw over file {IMAGE} ro", mode="r"),
    Case("a VHD for QEMU's own driver", f"vhd:{VHD}", f"vpc over file {VHD} rw", new=False),
    Case("a file that isn't there", "aio:{dir}/none", REFUSED, new=False, said="Could not stat file"),
    Case("no params", None, REFUSED, said="no params"),
    *(
        Case(f"a tap disk, {params}", params, RAW, device=TAPDEV)
        for params in (
            "tap:aio:/srv/a.img",
            "tap2:vhd:/srv/a.vhd",
            "tap:tapdisk:vhd:/srv/a.vhd",
            "tapdisk:/srv/a.vhd",
            "aio:tap2:vhd:/srv/a.vhd",
            "vhd:tap:/srv/a.vhd",
        )
    ),
    Case("a tap disk, of which QEMU could open the image", f"tap:{IMAGE}", RAW, device=TAPDEV),
    Case("a tap disk whose device looks like qcow2", "tap:qcow2:/a", RAW.replace(TAPDEV, QCOW2), device=QCOW2),
    Case("a tap disk, read-only", "tap2:vhd:/srv/a.vhd", RAW.replace("rw", "ro"), device=TAPDEV, mode="r"),
    Case("a tap disk without a script", "tap2:vhd:/srv/a.vhd", REFUSED, said=SCRIPT),
    Case("a tap disk, of a file", "tap:vhd:/srv/a.vhd", REFUSED, device=IMAGE, said="is no block device"),
    Case("a tap disk, the device gone", "tap:/a", REFUSED, device="{dir}/none", said="Could not stat physical-device"),
    Case(
        "a tap disk, the node is the guest's",
        "tap2:vhd:/srv/a.vhd",
        REFUSED,
        said=SCRIPT,
        nodes=((f"{FRONTEND}/physical-device-path", TAPDEV),),
    ),
    Case("NBD, a socket", "nbd+unix:///disk?socket={dir}/nbd", NBD),
    Case("NBD, a socket, as libxl writes it", "aio:nbd+unix:///disk?socket={dir}/nbd", NBD),
    Case("NBD, a port", "nbd://127.0.0.1:{port}/disk", "raw over nbd nbd://127.0.0.1:{port}/disk rw"),
    Case("NBD, read-only", "nbd+unix:///disk?socket={dir}/nbd", NBD.replace(" rw", " ro"), mode="r"),
    Case("NBD, no path of a socket", "nbd+unix:///disk", REFUSED, said="is not understood"),
    Case("NBD, with TLS", "nbds://127.0.0.1/disk", REFUSED, said="is not understood"),
    Case("NBD, nobody there", "aio:nbd+unix:///disk?socket={dir}/none", REFUSED, said="Failed to connect"),
    Case("an image that tapdisk writes", f"aio:{IMAGE}", f"raw over file {IMAGE} rw", new=False, locked=True),
    Case("the same, locking", f"aio:{IMAGE}", REFUSED, options=LOCKING, locked=True, said='"write" lock'),
    Case("an image, locking", f"aio:{IMAGE}", f"raw over file {IMAGE} rw, locked", options=LOCKING),
    Case("an IDE drive", None, RAW, new=False, drive=True, options=at(IDE, TAPDEV)),
    Case("an IDE drive, direct", None, f"{RAW} direct", drive=True, options=(*DIRECT, *at(IDE, TAPDEV))),
    Case(
        "an IDE drive, direct, of a guest that is restored",
        None,
        f"{RAW} direct",
        drive=True,
        options=("-incoming", "defer", *DIRECT, *at(IDE, TAPDEV)),
    ),
    Case("a SCSI drive, direct", None, f"{RAW} direct", drive=True, options=(*DIRECT, *at(SCSI, TAPDEV))),
    Case(
        "an IDE drive of a file, to be direct if it were a device",
        None,
        f"raw over file {IMAGE} rw",
        drive=True,
        options=(*DIRECT, *at(IDE, IMAGE)),
    ),
)


class Monitor:
    """QEMU's monitor."""

    def __init__(self, connection: socket.socket) -> None:
        self.stream = connection.makefile("rwb")
        json.loads(self.stream.readline())
        self.execute("qmp_capabilities")

    def execute(self, command: str) -> Any:
        """What a command returns."""
        self.stream.write(json.dumps({"execute": command}).encode() + b"\n")
        self.stream.flush()
        while True:
            answer = json.loads(self.stream.readline())
            if "error" in answer:
                raise SeriesError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]


@dataclass(frozen=True)
class Program:
    """A QEMU and the library for it, in the root that they were built in."""

    root: Path
    qemu: Path
    fakexen: Path

    def command(self, directory: Path, options: list[str]) -> list[str]:
        """The command that runs it."""
        environment = [f"LD_PRELOAD={self.fakexen}", f"XENSTORED_PATH={directory}/xenstored"]
        visible = list({self.qemu.parent, self.fakexen.parent, directory})
        return builder.inside(self.root, visible, directory, ["env", *environment, str(self.qemu), *options])


def files(directory: Path) -> None:
    """The disks."""
    for name in ("tapdev0", "a.img"):
        (directory / name).write_bytes(bytes(SIZE))
    (directory / "qcow2dev").write_bytes(struct.pack(">4sI", b"QFI\xfb", 3) + bytes(SIZE - 8))
    (directory / "bios").write_bytes(bytes(1 << 16))
    (directory / "a.vhd").write_bytes(image(Spec()))
    for name in ("tapdev0", "qcow2dev"):
        (directory / name).chmod(0o1644)


def lock(fd: int, command: int, kind: int, byte: int) -> int:
    """A call for a lock on one byte that belongs to the open file. Returns the kind in its answer."""
    answer = fcntl.fcntl(fd, command, LOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
    return int(LOCK.unpack(answer)[0])


@contextmanager
def tapdisk_writes(path: Path) -> Iterator[None]:
    """The bytes that tapdisk locks in an image that it writes, of those that QEMU knows."""
    fd = os.open(path, os.O_RDWR)
    try:
        for byte in (DOES + READ, DOES + WRITE, DOES + RESIZE, FORBIDS + WRITE, FORBIDS + RESIZE):
            lock(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, byte)
        yield
    finally:
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Does someone else forbid to write it?"""
    fd = os.open(path, os.O_RDWR)
    try:
        return lock(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, FORBIDS + WRITE) != fcntl.F_UNLCK
    finally:
        os.close(fd)


def described(nodes: list[dict[str, Any]]) -> list[str]:
    """The monitor's nodes, a format with what it is on in one line each."""
    below = {node["file"]: node for node in nodes if node["drv"] in ("file", "host_device", "nbd")}
    lines = []
    for node in nodes:
        if node["drv"] in ("file", "host_device", "nbd") or node["file"] not in below:
            continue
        protocol = below[node["file"]]
        both = (node, protocol)
        direct = " direct" if all(one["cache"]["direct"] for one in both) else ""
        mode = "ro" if any(one["ro"] for one in both) else "rw"
        lines.append(f"{node['drv']} over {protocol['drv']} {protocol['file']} {mode}{direct}")
    return lines


def options_of(case: Case, directory: Path) -> list[str]:
    """QEMU's command line."""
    common = ["-nodefaults", "-display", "none", "-S", "-qmp", f"unix:{directory}/qmp,server=on,wait=off"]
    if case.drive:
        machine = ["-machine", "pc,accel=qtest,usb=off", "-m", "8", "-bios", f"{directory}/bios"]
    else:
        machine = ["-machine", "xenpv,accel=xen", "-m", "8", "-xen-domid", str(GUEST), "-xen-attach"]
    return [*machine, *common, *case.options]


def backend(case: Case, store: xenstored.Xenstore) -> None:
    """The nodes that a toolstack writes."""
    nodes = {"frontend": FRONTEND, "frontend-id": str(GUEST), "online": "1", "state": "1", "dev": VDEV}
    nodes |= {"type": "qdisk", "mode": case.mode, "device-type": "disk"}
    nodes |= {"params": case.params} if case.params is not None else {}
    nodes |= {"physical-device-path": case.device} if case.device else {}
    for name, value in nodes.items():
        store.write(f"{BACKEND}/{name}", value)
    for path, value in case.nodes:
        store.write(path, value)
    for name, value in (("backend", BACKEND), ("backend-id", "0"), ("state", "1")):
        store.write(f"{FRONTEND}/{name}", value)


def filled(case: Case, directory: Path, port: int) -> Case:
    """The case with its placeholders filled in."""

    def fill(text: str) -> str:
        return text.replace("{dir}", str(directory)).replace("{port}", str(port))

    return Case(
        case.name,
        None if case.params is None else fill(case.params),
        fill(case.opened),
        device=fill(case.device),
        mode=case.mode,
        said=case.said,
        nodes=tuple((path, fill(value)) for path, value in case.nodes),
        options=tuple(fill(option) for option in case.options),
        drive=case.drive,
        locked=case.locked,
    )


def asked(process: "subprocess.Popen[bytes]", case: Case, directory: Path, store: xenstored.Xenstore) -> list[str]:
    """What a started QEMU has open, once it is through with its disks."""
    deadline = time.monotonic() + START_SECONDS
    errors = directory / "stderr"
    with socket.socket(socket.AF_UNIX) as connection:
        while True:
            try:
                connection.connect(str(directory / "qmp"))
                break
            except OSError:
                if process.poll() is not None:
                    return []
                if time.monotonic() > deadline:
                    raise SeriesError("QEMU does not start") from None
                time.sleep(0.02)
        try:
            monitor = Monitor(connection)
            while not case.drive and store.read(f"{BACKEND}/state") != INIT_WAIT and not errors.stat().st_size:
                if process.poll() is not None:
                    return []
                if time.monotonic() > deadline:
                    raise SeriesError("QEMU does nothing about the backend")
                time.sleep(0.02)
            lines = described(monitor.execute("query-named-block-nodes"))
            if is_locked(directory / "a.img") and not case.locked and not case.drive:
                lines = [f"{line}, locked" for line in lines]
            monitor.execute("quit")
            return lines
        except (ValueError, OSError):  # it ended
            return []


def wrong(case: Case, program: Program) -> str:
    """What is not as expected, or nothing."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xenblk-drives-", dir="/var/tmp")))
        files(directory)
        stack.enter_context(FakeServer(directory / "nbd", size=SIZE))
        port = stack.enter_context(FakeServer(directory / "unused", tcp=True, size=SIZE)).port
        case = filled(case, directory, port)
        store = stack.enter_context(xenstored.running(directory / "xenstored"))
        backend(case, store)
        if case.locked:
            stack.enter_context(tapdisk_writes(directory / "a.img"))
        command = program.command(directory, options_of(case, directory))
        with open(directory / "stderr", "wb") as errors:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        try:
            lines = asked(process, case, directory, store)
            status = process.wait(START_SECONDS)
        finally:
            process.kill()
            process.wait()
        said = (directory / "stderr").read_text(encoding="utf-8", errors="replace").strip()
    if status and not case.drive:
        return f"{case.name}: QEMU ended with {status}: {said}"
    if (", ".join(lines) or REFUSED) != case.opened:
        return f"{case.name}: {', '.join(lines) or REFUSED}; expected: {case.opened}; {said}"
    if case.opened != REFUSED and "failed" in said:
        return f"{case.name}: {said}"
    if case.said not in said:
        return f"{case.name}: nothing said of {case.said}: {said or 'nothing at all'}"
    return ""
