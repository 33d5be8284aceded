# SPDX-License-Identifier: LGPL-2.1-only
"""A program's steps, at each of which a test kills it, by strace: the system calls that change anything or wait for others."""

import os
import random
import re
from dataclasses import dataclass

CALLS = "clone,clone3,vfork,fork,wait4,connect,write,writev,sendto,sendmsg,rename,unlink,mkdir,fcntl,flock,poll,ppoll"
_CALL = re.compile(r"^(\w+)\(")


@dataclass(frozen=True)
class Step:
    """A system call, and the how manieth of that name it is."""

    call: str
    number: int

    def kill(self) -> str:
        """The option by which strace kills the program before this call."""
        return f"--inject={self.call}:signal=KILL:when={self.number}"


def some(each: list[Step], number: int, always: tuple[str, ...] = ()) -> list[Step]:
    """All of some calls, and so many of the others, by a seed that is printed; all with XENBLK_ALL_STEPS=1."""
    others = [step for step in each if step.call not in always]
    if os.environ.get("XENBLK_ALL_STEPS") or number >= len(others):
        return each
    seed = random.randrange(1 << 32)
    chosen = set(random.Random(seed).sample(others, number))
    print(f"seed {seed}: {number} of {len(others)} steps{''.join(f', and all of {call}' for call in always)}")
    return [step for step in each if step.call in always or step in chosen]


def parse(log: str) -> list[Step]:
    """What strace has written of one process."""
    seen: dict[str, int] = {}
    found = []
    for line in log.splitlines():
        if match := _CALL.match(line):
            seen[match[1]] = seen.get(match[1], 0) + 1
            found.append(Step(match[1], seen[match[1]]))
    return found


def enough(kills: int, each: list[Step]) -> None:
    """Many steps of a trace must have come again; how often a program has to wait for others differs from run to run."""
    print(f"killed at {kills} of {len(each)} steps")
    assert kills * 3 > len(each)
