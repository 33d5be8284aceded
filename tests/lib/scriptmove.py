# SPDX-License-Identifier: LGPL-2.1-only
"""A guest's disk goes back and forth between two hosts as libxl moves it: by block-xenblk, in the order of `xl migrate`.

The destination adds the disk while the guest still writes at the source; the guest stops in the middle of its requests; it goes on
at the destination and asks there again for what was not answered, while the source is still busy with it; the source removes the
disk. The guest is lib/bed/moves.py, in dom0: there is no domain.
"""

import json
import time
from pathlib import Path
from random import Random

from tests.lib import hotplug, tapdisks
from tests.lib.migration import Told
from tests.lib.toytap import wait_for_output
from tests.lib.twohosts import SHARE
from tests.lib.vm import Bed, Process

MEGABYTES = 128
IMAGE = f"{SHARE}/moves.vhd"
PROGRAM = "/root/moves.py"
STATE = "/root/moves.json"
SOURCE = Path(__file__).parent / "bed" / "moves.py"
LONGEST = 1.5
"""Seconds of a stay, from what is known to be whole on, before its disk is wanted elsewhere."""
ARRIVAL_SECONDS = 180.0


class Stay:
    """The guest's disk at a host, and the guest once it has come."""

    def __init__(self, bed: Bed, domid: int, arrives: bool) -> None:
        self.bed = bed
        self.domain = f"/local/domain/{domid}"
        self.node = f"backend/vbd/{domid}/51712"
        self._guest: Process
        self._say(f"xenstore-write {self.domain}/name moves{'--incoming' if arrives else ''}")
        added = hotplug.add(bed, f"vhd:{IMAGE}", node=self.node)
        assert added.status == 0, added.output
        self.device = self._say(f"xenstore-read {self.node}/physical-device-path").strip()

    def _say(self, command: str) -> str:
        return self.bed.run(command).stdout

    def begin(self, state: bytes, seed: int) -> None:
        """The guest is there, with this state."""
        self._say(f"xenstore-write {self.domain}/name moves")
        self.bed.put(STATE, state)
        self._guest = self.bed.popen(f"exec python3 {PROGRAM} {self.device} {STATE} {seed}")

    def wait_whole(self) -> None:
        """Until it has found its disk as it left it. An AssertionError says what differs."""
        wait_for_output(self._guest, "whole\n", ARRIVAL_SECONDS)

    def stop(self) -> bytes:
        """The guest asks for nothing more. Its state."""
        self._guest.stdin(b"")
        wait_for_output(self._guest, "stopped ")
        return self.bed.get(STATE)

    def end(self) -> None:
        """All is answered; the disk is gone from this host."""
        ended = self._guest.wait(check=False)
        assert ended.status == 0 and ended.stdout.endswith("answered\n"), ended.output
        hotplug.remove(self.bed, self.node)
        self._say(f"xenstore-rm {self.domain}")
        assert tapdisks.leftovers(self.bed) == ""


def run(hosts: tuple[Bed, Bed], migrations: int, random: Random, told: Told) -> None:
    """All of the disk is read after each migration, by the destination. The hosts are connected (lib/twohosts.py)."""
    for bed in hosts:
        bed.put(PROGRAM, SOURCE.read_bytes())
    hosts[0].run(f"vhd-util create -n {IMAGE} -s {MEGABYTES}")
    here = Stay(hosts[0], 77, arrives=False)
    empty = {"versions": [0] * (MEGABYTES << 8), "last": 0, "unanswered": []}
    here.begin(json.dumps(empty).encode(), random.randrange(1 << 31))
    here.wait_whole()
    for number in range(1, migrations + 1):
        time.sleep(random.uniform(0, LONGEST))
        there = Stay(hosts[number % 2], 77 + number, arrives=True)
        time.sleep(random.uniform(0, LONGEST))
        state = here.stop()
        unanswered = len(json.loads(state)["unanswered"])
        there.begin(state, random.randrange(1 << 31))
        time.sleep(random.choice((0, random.uniform(0, LONGEST))))
        here.end()
        told.asked_again += unanswered
        told.answered_late += unanswered
        there.wait_whole()
        here = there
        told.migrations += 1
        told.compared += MEGABYTES << 20
    here.stop()
    here.end()
    hosts[0].run(f"vhd-util check -n {IMAGE} -b && rm {IMAGE}")
