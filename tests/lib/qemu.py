# SPDX-License-Identifier: LGPL-2.1-only
"""The QEMU command line of a bed."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from tests.lib import xentree
from tests.lib.image import BaseImage

# The steadiest for Xen under TCG: SMAP crashes dom0, rdtscp crashes PVH guests. PVH guests: lib/pvh.py.
XEN_CPU = "Nehalem,+svm,+npt,-smap,-rdtscp"
# TCG of QEMU 7.2 takes what cmpxchg16b leaves in the flags from an older instruction's operands, NT and VM with them.
# The kernel's allocator has it on each path: an interrupt just behind one is a double fault. Without it SLUB turns
# interrupts off, which costs a guest of Xen a sixth of its IOPS: where instructions are counted it stays.
# On the CPU of PVH guests it stays too: two of them died in migrations without it (Xen 4.20), which is not explained.
TCG_WITHOUT = "-cx16"
AGENT_PORT = "xenblk.agent"
# Units that a bed has no use for, or lacks the modules for
MASKED = (
    "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount",
    "proc-sys-fs-binfmt_misc.mount",
    "e2scrub_reap.service",
    "getty-static.service",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "serial-getty@hvc0.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "nfs-server.service",
    "nfs-client.target",
    "nfs-blkmap.service",
    "rpcbind.service",
    "rpcbind.socket",
)


@dataclass(frozen=True)
class Disk:
    """One more disk of a bed, /dev/vdb and on. The file is made sparse, of `size` bytes, if it does not exist.

    `shared` disks may be given to two beds at once. `log`: a file, made at boot, for a log of the writes and flushes of
    this raw disk (lib/logwrites.py), which has a volatile write cache then.
    """

    path: Path
    size: int = 0
    format: str = "raw"
    shared: bool = False
    options: str = ""
    log: Path | None = None


@dataclass(frozen=True)
class BedSpec:
    """What kind of bed. Beds of equal specs are interchangeable.

    release: 12 or 13; $XENBLK_RELEASE, or 12, if not given. xen: boot Xen and its dom0, else Linux alone. init: "sh" (a short script) or "systemd".
    packages: Debian packages beside those every bed has. cpu: a QEMU CPU model. memory: MiB of the machine (0: 3072
    with Xen, else 1024), dom0_memory: MiB of dom0. disks: extra disks. kernel: one with checkers in it (lib/checkkernel.py) in the
    place of Debian's, without Xen; $XENBLK_KERNEL if not given. link: a socket by which two beds are connected, each by
    a network card (modprobe virtio_net); link_first: it makes the socket. icount: a nanosecond of the bed is half an
    instruction, whatever else this machine does: for figures that can be compared. It takes cpus=1, and emulation.
    """

    release: int = field(default_factory=lambda: int(os.environ.get("XENBLK_RELEASE") or 12))
    xen: bool = True
    init: str = "sh"
    packages: tuple[str, ...] = ()
    cpu: str = ""
    memory: int = 0
    dom0_memory: int = 1024
    cpus: int = 2
    kernel_args: str = ""
    xen_args: str = ""
    disks: tuple[Disk, ...] = field(default=())
    kernel: str = field(default_factory=lambda: os.environ.get("XENBLK_KERNEL", ""))
    icount: bool = False
    link: Path | None = None
    link_first: bool = False

    def __post_init__(self) -> None:
        if self.init not in ("sh", "systemd"):
            raise ValueError(f"init={self.init!r}: not one of sh, systemd")
        if self.xen and self.kernel:
            raise ValueError(f"kernel={self.kernel!r}: it has no Xen in it")
        if self.icount and self.cpus != 1:
            raise ValueError("icount: only with one CPU")
        if self.xen and "," in self.kernel_args:
            raise ValueError(f"kernel_args={self.kernel_args!r}: QEMU ends a multiboot module's arguments at a comma")


def kernel_arguments(spec: BedSpec, accel: str) -> str:
    """Linux's command line."""
    words = ["quiet", "loglevel=4", "mitigations=off", "panic=1", "net.ifnames=0", "cryptomgr.notests", "log_buf_len=1M"]
    words.append("console=hvc0" if spec.xen else "console=ttyS0")
    if not spec.xen and accel == "tcg":
        words += ["tsc=reliable", "no_timer_check"]
    if spec.init == "systemd":
        words += ["bed.init=/usr/lib/systemd/systemd", "systemd.show_status=no", "rw"]
        words += [f"systemd.mask={unit}" for unit in MASKED]
    return " ".join([*words, spec.kernel_args]).strip()


def xen_arguments(spec: BedSpec) -> str:
    """Xen's command line."""
    dom0 = spec.dom0_memory
    words = ["console=com1", "com1=115200", "loglvl=all", f"dom0_mem={dom0}M,max:{dom0}M", "spec-ctrl=no", "smt=1"]
    words += [f"dom0_max_vcpus={spec.cpus}", "no-real-mode", spec.xen_args]
    return " ".join(words).strip()


def command(spec: BedSpec, image: BaseImage, initrd: Path, socket: Path, accel: str) -> list[str]:
    """QEMU's arguments. The console is on stdout; the agent's port connects to `socket`."""
    if spec.icount:
        accel = "tcg"
    cpu = spec.cpu or (XEN_CPU if spec.xen or accel == "tcg" else "host")
    cpu += f",{TCG_WITHOUT}" if accel == "tcg" and not spec.icount and not spec.cpu else ""
    memory = spec.memory or (3072 if spec.xen else 2048 if spec.kernel else 1024)
    args = ["qemu-system-x86_64", "-machine", "pc", "-cpu", cpu, "-smp", str(spec.cpus), "-m", str(memory)]
    threads = "single" if spec.icount else "multi"
    args += ["-accel", f"tcg,thread={threads},tb-size=512" if accel == "tcg" else accel]
    args += ["-icount", "shift=1,sleep=off"] if spec.icount else []
    args += ["-display", "none", "-vga", "none", "-nodefaults", "-no-reboot", "-monitor", "none", "-net", "none"]
    args += ["-serial", "stdio"]
    args += ["-drive", f"file={escaped(image.root)},format=raw,if=none,id=root,snapshot=on,discard=unmap"]
    # else QEMU stops the machine, without a word, when this one's disk is full
    args += ["-device", "virtio-blk-pci,drive=root,werror=report,rerror=report"]
    for number, disk in enumerate(spec.disks):
        if disk.log:
            args += logged(disk, disk.log, f"extra{number}")
            continue
        drive = f"file={escaped(disk.path)},format={disk.format},if=none,id=extra{number}"
        drive += ",file.locking=off" if disk.shared else ""
        args += ["-drive", drive + (f",{disk.options}" if disk.options else "")]
        shared = ",share-rw=on" if disk.shared else ""
        args += ["-device", f"virtio-blk-pci,drive=extra{number},werror=report,rerror=report{shared}"]
    if spec.link:
        server = "on" if spec.link_first else "off"
        args += ["-netdev", f"stream,id=link,server={server},addr.type=unix,addr.path={escaped(spec.link)}"]
        args += ["-device", f"virtio-net-pci,netdev=link,mac=52:54:00:00:00:0{2 - spec.link_first}"]
    args += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={escaped(socket)},server=off"]
    args += ["-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"]
    if spec.xen:
        given = xentree.given(spec.release)
        xen = xentree.prepared(given)[1] if given else image.xen
        args += ["-kernel", str(xen), "-append", xen_arguments(spec)]
        args += ["-initrd", f"{image.kernel} {kernel_arguments(spec, accel)},{initrd}"]
    else:
        args += ["-kernel", str(image.kernel), "-append", kernel_arguments(spec, accel), "-initrd", str(initrd)]
    return args


def logged(disk: Disk, log: Path, name: str) -> list[str]:
    """A disk whose writes and flushes are logged.

    The host's files are not flushed, so that a flush takes no time and the log has no write before it that it does not
    cover. QEMU 7.2 garbles the log when writes of zeros overlap, and loses an entry of more pieces than writev() takes.
    """
    files = {f"{name}-disk": disk.path, f"{name}-log": log}
    args = []
    for node, path in files.items():
        args += ["-blockdev", f"driver=file,node-name={node},cache.no-flush=on,filename={escaped(path)}"]
    disk_node, log_node = files
    args += ["-blockdev", f"driver=blklogwrites,node-name={name},file={disk_node},log={log_node},log-sector-size=512"]
    device = f"virtio-blk-pci,drive={name},write-cache=on,discard=off,write-zeroes=off,request-merging=off"
    return [*args, "-device", device]


def escaped(path: Path) -> str:
    """A path in one of QEMU's comma-separated options."""
    return str(path).replace(",", ",,")
