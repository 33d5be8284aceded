# SPDX-License-Identifier: LGPL-2.1-only
"""Kills tapdisks in a bed, under a load (tests/lib/diskload.py) on the disk that notices whatever is lost.

What runs in the bed is one script there: a command of the bed takes longer than the moments that are of interest.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from tests.lib import diskload, tapdisks
from tests.lib.diskload import DiskLoad
from tests.lib.nulldisk import null_disk
from tests.lib.vm import Bed

DISK_MIB = 65536
WHOLE_BLOCKS = 32
"""At the disk's beginning, so many are all written before the load begins: its writes there are the kernel's own, with kernel_io."""
SLOW_MS = 3000
"""So late a slow disk begins to write: a killed tapdisk's writes come when the next one is there."""
KEPT_SECONDS = 1
"""A killed tapdisk that is there for longer is kept by the kernel: it writes for it."""
SECONDS_A_KILL = 20


@dataclass(frozen=True)
class Transport:
    """How requests get from the disk to tapdisk: lines of the configuration, options of tap-ctl create."""

    name: str
    settings: tuple[str, ...] = ("restart=yes",)
    options: str = ""
    release: int = 12
    gendisk: str = "tapdev"
    """What its gendisks are called, without their number."""


TRANSPORTS = (Transport("blktap"), Transport("blktap, kernel_io", ("kernel_io=yes", "restart=yes")))
STOCK = (
    Transport("nbd", ("restart=yes", "transport=nbd"), "--transport=nbd", gendisk="nbd"),
    Transport("ublk", ("restart=yes", "transport=ublk"), "--transport=ublk", release=13, gendisk="ublkb"),
)
"""Of kernels without our driver."""
ON_13 = tuple(replace(transport, name=f"{transport.name}, 13", release=13) for transport in TRANSPORTS)
"""Our driver on Debian 13's kernel."""
ALL = (*TRANSPORTS, *STOCK, *ON_13)


@dataclass(frozen=True)
class Counts:
    """Of so many kills. held: requests that the device had when its tapdisk died; fenced: kills after which the image was
    still locked; kept: kills after which the kernel kept the tapdisk, and what it had open, until its writes were over; slow:
    kills with the image on a slow disk. As our driver counts them, else 0, reissued: of those held the ones that tapdisk
    had; outlived: those that the kernel did by itself; direct: all that it did by itself, between kills too."""

    kills: int = 0
    allocating: int = 0
    held: int = 0
    reissued: int = 0
    outlived: int = 0
    fenced: int = 0
    kept: int = 0
    direct: int = 0
    slow: int = 0
    longest_ms: int = 0
    losses: tuple[str, ...] = field(default=())


# A log that counts, since nothing else of a bed listens at /dev/log; kills; then the counts as JSON.
KILLER = r"""
import json, os, random, re, signal, socket, subprocess, sys, threading, time

minor, kills, seed, load = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
kept_seconds = float(sys.argv[7])
lives = (0.02, 0.5) if sys.argv[6] == "0" else (0.5, 2.5)
rng = random.Random(seed)
disk = os.path.basename(os.path.realpath(f"/dev/xen/blktap-2/tapdev{minor}"))
if disk.rstrip("0123456789") != sys.argv[5]:
    sys.exit(f"the disk is {disk}, of another transport")
debug = "/sys/kernel/debug"
if not os.path.ismount(debug):
    subprocess.run(["mount", "-t", "debugfs", "none", debug], check=True)
ours = disk.startswith("tapdev")
sysfs = f"/sys/class/blktap2/blktap{minor}"
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
try:
    os.unlink("/dev/log")
except OSError:
    pass
log.bind("/dev/log")
turn = 0
fenced = set()
lines = []

def listen():
    while True:
        line = log.recv(8192).decode(errors="replace")
        lines.append(line)
        # by a tapdisk that has the lock in the end, or by one that is to try again
        if "lock of a process that is gone" in line or ": in use: " in line:
            fenced.add(turn)

threading.Thread(target=listen, daemon=True).start()

def number(path):
    with open(path) as file:
        return sum(map(int, file.read().split()))

def counted(name):
    return number(f"{sysfs}/counters/{name}") if ours else 0

def served():
    # the pid of the tapdisk that serves the disk; 0: none does
    if ours:
        task = number(f"{sysfs}/task")
        return task if open(f"{sysfs}/state").read().strip() == "live" else 0
    listed = subprocess.run(["tap-ctl", "list", "--json"], stdout=subprocess.PIPE, check=True).stdout
    return next((row["pid"] for row in json.loads(listed) if row["pid"] and row["minor"] == minor and not row["state"]), 0)

def held_now():
    # ublk takes its requests back when its server dies: only their tags say that they are there
    if not disk.startswith("ublk"):
        return number(f"/sys/block/{disk}/inflight")
    queue = f"{debug}/block/{disk}/hctx0"
    # without a scheduler, its tags are an empty file
    tags = open(f"{queue}/sched_tags").read() or open(f"{queue}/tags").read()
    return sum(map(int, re.findall("^busy=([0-9]+)", tags, re.M)))

def gone(task):
    return number(f"{sysfs}/task") != task if ours else not os.path.exists(f"/proc/{task}")

held = allocating = kept = longest = 0
NAMES = {"reissued": ["recovered"], "outlived": ["outlived"], "direct": ["direct_reads", "direct_writes"]}
before = {name: sum(map(counted, counters)) for name, counters in NAMES.items()}
done = 0
for turn in range(kills):
    if load:
        allocate = turn % 2 == 0
        os.kill(load, signal.SIGUSR1 if allocate else signal.SIGUSR2)
        allocating += allocate
    time.sleep(rng.uniform(*lives))
    task = served()
    begun = time.monotonic()
    os.kill(task, signal.SIGKILL)
    while not gone(task):
        time.sleep(0.001)
    kept += time.monotonic() - begun > kept_seconds
    held += held_now()
    while not served():
        if time.monotonic() - begun > 60:
            print(json.dumps({"stuck": turn, "log": lines[-20:]}))
            sys.exit(1)
        time.sleep(0.005)
    longest = max(longest, int((time.monotonic() - begun) * 1000))
    done += 1
time.sleep(0.2)
print(json.dumps({
    "kills": done, "allocating": allocating if load else 0, "held": held, "fenced": len(fenced), "kept": kept, "longest_ms": longest,
    **{name: sum(map(counted, counters)) - before[name] for name, counters in NAMES.items()},
}))
"""


def make_leaf(bed: Bed, directory: str) -> str:
    """A leaf that has its first blocks, over a base that has something in one which the leaf hasn't."""
    bed.run(f"mkdir -p {directory} && vhd-util create -n {directory}/base.vhd -s {DISK_MIB}")
    device = tapdisks.create(bed, f"vhd:{directory}/base.vhd")
    bed.run(f"dd if=/dev/urandom of={device} bs=64k count=16 seek={32 * WHOLE_BLOCKS + 8} oflag=direct 2>/dev/null")
    tapdisks.destroy(bed, device)
    bed.run(f"vhd-util snapshot -n {directory}/leaf.vhd -p {directory}/base.vhd")
    device = tapdisks.create(bed, f"vhd:{directory}/leaf.vhd")
    bed.run(f"dd if=/dev/zero of={device} bs=2M count={WHOLE_BLOCKS} oflag=direct 2>/dev/null")
    tapdisks.destroy(bed, device)
    return f"{directory}/leaf.vhd"


@contextmanager
def slow_storage(bed: Bed, directory: str) -> Iterator[Callable[[int], None]]:
    """A file system there, for the images; what is called with milliseconds has its disk write so late from then on."""
    with null_disk(bed, size=2048) as disk:
        sectors = int(bed.run(f"blockdev --getsz {disk}").stdout)

        def begin_late(milliseconds: int) -> None:
            table = f"0 {sectors} delay {disk} 0 0 {disk} 0 {milliseconds}\n"
            bed.run("dmsetup suspend slow && dmsetup load slow && dmsetup resume slow", stdin=table.encode())

        bed.run("modprobe dm-mod; modprobe dm-delay; dmsetup create slow", stdin=f"0 {sectors} linear {disk} 0\n".encode())
        bed.run(f"set -e; dmsetup mknodes; mkfs.ext4 -q -E nodiscard /dev/mapper/slow; mkdir -p {directory}; mount /dev/mapper/slow {directory}")
        try:
            yield begin_late
        finally:
            bed.run(f"umount {directory} && dmsetup remove slow")


def kill(bed: Bed, transport: Transport, minor: int, kills: int, seed: int, load: int = 0, slow: bool = False) -> Counts:
    """Kills the minor's tapdisks. load: the pid of the load in this bed, 0 for none. slow: its disk is."""
    bed.put("/root/killer.py", KILLER.encode())
    command = f"python3 /root/killer.py {minor} {kills} {seed} {load} {transport.gendisk} {slow:d} {KEPT_SECONDS}"
    result = bed.run(command, timeout=60 + SECONDS_A_KILL * kills, check=False)
    if result.status:
        return Counts(kills=kills, losses=(f"no tapdisk came back: {result.output[-2000:]}",))
    return Counts(**json.loads(result.stdout.splitlines()[-1]))


def run(bed: Bed, transport: Transport, kills: int, seed: int, slow: bool = False) -> Counts:
    """Kills under a load on tapdev, and what became of the data: a loss is what the load, or a look at the image, says."""
    rng = random.Random(seed)
    directory = f"/srv/kills{seed}"
    with ExitStack() as stack:
        begin_late = stack.enter_context(slow_storage(bed, directory)) if slow else None
        stack.enter_context(tapdisks.configured(bed, *transport.settings))
        leaf = make_leaf(bed, directory)
        create = f"{tapdisks.LOAD_DRIVER}; tap-ctl create {transport.options} -a vhd:{leaf}"
        device = bed.run(create, env={"XENBLK_RESTART_ALWAYS": "1"}).stdout.strip()
        minor = int(device.rpartition("tapdev")[2])
        if begin_late:
            begin_late(SLOW_MS)
        load = DiskLoad(bed, device, rng.randrange(1 << 31), WHOLE_BLOCKS)
        counts = kill(bed, transport, minor, kills, rng.randrange(1 << 31), load.pid, slow)
        if begin_late:
            begin_late(0)
        losses = list(counts.losses)
        ended = load.end(check=False)
        if not diskload.good(ended):
            losses.append(f"status {ended.status} of the load: {ended.output[-2000:]}")
        tapdisks.destroy(bed, device)
        if not losses:
            losses += look(bed, leaf)
        bed.run(f"rm -rf {directory}/*")
    bed.run(f"rmdir {directory}")
    return replace(counts, slow=kills if slow else 0, losses=tuple(losses))


def look(bed: Bed, leaf: str) -> Sequence[str]:
    """What is wrong with an image, by itself and by what the load remembers of it."""
    device = tapdisks.create(bed, f"vhd:{leaf}", readonly=True)
    held = diskload.check(bed, device)
    tapdisks.destroy(bed, device)
    sound = bed.run(f"vhd-util check -n {leaf} -p -b", check=False)
    return [f"of the image: {result.output[-2000:]}" for result in (held, sound) if result.status]
