# SPDX-License-Identifier: LGPL-2.1-only
"""vhd-util with all that it does to a file written down (tapdisk-c/tests/preload-record.c), and the states that
a kill or a power loss may leave."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.lib.programs import program
from tests.lib.recordlog import SECTOR, SIZE, WRITE, after_power_loss, read_log


def run_recorded(log: Path, image: Path, *args: str | Path | int) -> None:
    """A command that must succeed. The log must not exist."""
    env = {
        **os.environ,
        "XENBLK_CONFIG": "/nonexistent/xenblk-config",
        "LD_PRELOAD": str(program("tests/preload-record.so", "release")),
        "RECORD_FILE": str(image),
        "RECORD_LOG": str(log),
    }
    argv = [str(program("vhd-util", "release")), *map(str, args)]
    result = subprocess.run(argv, env=env, capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, b""), result.stderr.decode(errors="replace")


def killed_states(log: Path, before: Path, state: Path) -> Iterator[int]:
    """Makes `state` what a kill before each step leaves, and one in the middle of each longer write; counts them."""
    changes = read_log(log)[0].changes[1:]
    number = 0
    for at in range(len(changes) + 1):
        for cut in (False, True):
            if cut and (at == len(changes) or changes[at].kind != WRITE or changes[at].length <= SECTOR):
                continue
            shutil.copyfile(before, state)
            with state.open("r+b") as file:
                for change in changes[: at + cut]:
                    if change.kind == SIZE:
                        os.ftruncate(file.fileno(), change.offset)
                        continue
                    data = change.data if change.kind == WRITE else bytes(change.length)
                    if cut and change is changes[at]:
                        data = data[: len(data) // 2 // SECTOR * SECTOR]
                    os.pwrite(file.fileno(), data, change.offset)
            yield number
            number += 1


def lost_states(log: Path, before: Path, state: Path, count: int, chance: random.Random) -> Iterator[int]:
    """Makes `state` what a power loss at a random moment may leave, count times."""
    size = log.stat().st_size
    for number in range(count):
        files = read_log(log, chance.randint(1024, size))
        if files:
            after_power_loss(files[0], before, state, chance)
            yield number
