# SPDX-License-Identifier: LGPL-2.1-only
"""The kills part: tapdisk is killed under a load, in a bed for each slice; with Xen, under a guest's.

`python3 -m tests.soak.killpart SEED KILLS TASK` is one slice; it prints the result as JSON.
"""

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

from tests.lib import diskload, tapdisks
from tests.lib.guest import Guest
from tests.lib.qemu import BedSpec
from tests.lib.vm import Bed
from tests.soak import killrun
from tests.soak.killrun import Counts, Transport
from tests.soak.state import Finding, Slice
from tests.soak.work import Programs, Task, make, run_slice

PART = "kills"
MARK = "kills slice: "
KILLS = 200
GUEST_KILLS = 40
GUEST = "blkback, "
"""Before the transport's name: beneath a guest's disk."""
SLOW = 0.15
"""Of the boots, those with the image on a slow disk."""
A_BOOT = 50
"""So many kills are worth a boot."""


class KillPart:
    """See the module's text."""

    name = PART
    slice_seconds = 300.0

    def __init__(self, programs: Programs, commit: str) -> None:
        self._programs = programs
        self._commit = commit

    def tasks(self) -> Sequence[Task]:
        return [Task(PART, t.name, KILLS) for t in killrun.ALL] + [
            Task(PART, GUEST + t.name, GUEST_KILLS) for t in killrun.ALL
        ]

    def prepare(self) -> None:
        make(self._programs, "MODE=release")

    def guess(self, task: Task) -> int:
        return A_BOOT if not task.name.startswith(GUEST) else GUEST_KILLS

    def run(self, task: Task, seed: int, count: int, seconds: float) -> tuple[Slice, list[Finding]]:
        argv = [sys.executable, "-m", "tests.soak.killpart", str(seed), str(min(count, self.guess(task))), task.name]
        result, record = run_slice(self._programs, task, seed, argv, MARK, self._commit)
        losses = result.pop("losses")
        done = record(int(result.pop("kills")), result)
        repeat = f"python3 -m tests.soak.killpart {seed} {count} '{task.name}'"
        return done, [Finding(PART, task.name, seed, loss, repeat, self._commit) for loss in losses]


def in_a_guest(bed: Bed, transport: Transport, kills: int, seed: int) -> Counts:
    """The load is a guest's; kills go on for as long as it has its disk."""
    rng = random.Random(seed)
    directory = f"/srv/kills{seed}"
    # xl applies what xenblk.yaml has
    with tapdisks.with_settings(bed, *(line.replace("=", ": ") for line in transport.settings)):
        leaf = killrun.make_leaf(bed, directory)
        script = f"wait_for_disk xvda\n/killload /dev/xvda /model 0 {rng.randrange(1 << 31)} {killrun.WHOLE_BLOCKS} & load=$!\n"
        script += "until [ -b /dev/xvdb ]; do usleep 200000; done\nkill -TERM $load\nwait $load"
        disks = [f"format=raw,script=block-xenblk,vdev=xvda,access=w,target=vhd:{leaf}"]
        guest = Guest(bed, f"kills{seed}", script, disks, files={"killload": diskload.build()})
        losses: list[str] = []
        counts = Counts()
        try:
            # What begins it is what is restarted without a limit.
            guest.start(create="env XENBLK_RESTART_ALWAYS=1 xl create")
            guest.wait_text("^begun$")
            [disk] = [disk for disk in tapdisks.served(bed) if disk.args == f"vhd:{leaf}"]
            counts = killrun.kill(bed, transport, disk.minor, kills, rng.randrange(1 << 31))
            losses += counts.losses
            # The sign to end: another disk.
            sign = f"format=raw,script=block-xenblk,vdev=xvdb,access=r,target=aio:{directory}/sign"
            bed.run(f"truncate -s 1M {directory}/sign && xl block-attach {guest.name} '{sign}'")
            ended = guest.wait()
            if ended.status or "good pieces=" not in ended.output:
                losses.append(f"status {ended.status} of the guest's load: {ended.output[-2000:]}")
            guest.wait_gone()
        finally:
            guest.destroy()
        sound = bed.run(f"vhd-util check -n {leaf} -p -b", check=False)
        if sound.status:
            losses.append(f"of the image: {sound.output[-2000:]}")
    bed.run(f"rm -rf {directory}")
    return replace(counts, losses=tuple(losses))


def one_boot(seed: int, kills: int, name: str) -> Counts:
    """One boot."""
    xen = name.startswith(GUEST)
    [transport] = [t for t in killrun.ALL if t.name == name.removeprefix(GUEST)]
    with Bed(BedSpec(release=transport.release, xen=xen)) as bed:
        if xen:
            counts = in_a_guest(bed, transport, kills, seed)
        else:
            counts = killrun.run(bed, transport, kills, seed, slow=random.Random(seed).random() < SLOW)
        warnings = bed.dmesg_findings()
    return replace(counts, losses=(*counts.losses, *(f"kernel: {line}" for line in warnings)))


def main() -> int:
    """One slice."""
    seed, kills, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    print(f"{MARK}{json.dumps(asdict(one_boot(seed, kills, name)))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
