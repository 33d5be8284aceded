# SPDX-License-Identifier: LGPL-2.1-only
"""What was done to a VHD, as written down: by vhd-util (tapdisk-c/tests/preload-record.c) with the states that a kill or
a power loss may leave, and by tapdisk's record engine."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.lib.programs import program
from tests.lib.recordlog import (
    FILE,
    MAGIC,
    RECORD,
    SECTOR,
    SIZE,
    SYNC,
    WRITE,
    Change,
    Recorded,
    after_power_loss,
    read_log,
)

FOOTER_COOKIE = b"conectix"


def recording(log: Path, directory: Path) -> dict[str, str]:
    """The environment in which a program of the release build writes down what it does to the files of a directory.

    With the posix engine: what io_uring does is not seen.
    """
    log.write_bytes(MAGIC)
    config = log.with_name(f"{log.name}.config")
    config.write_text("version=1\nengine=posix\n", encoding="utf-8")
    return {
        "XENBLK_CONFIG": str(config),
        "XENBLK_ENGINE": "posix",
        "LD_PRELOAD": str(program("tests/preload-record.so", "release")),
        "RECORD_DIR": str(directory.resolve()),
        "RECORD_LOG": str(log),
    }


def run_recorded(log: Path, image: Path, *args: str | Path | int) -> None:
    """A command that must succeed, and change no other file beside the image."""
    env = {**os.environ, **recording(log, image.parent)}
    argv = [str(program("vhd-util", "release")), *map(str, args)]
    result = subprocess.run(argv, env=env, capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, b""), result.stderr.decode(errors="replace")
    assert [str(file.path) for file in read_log(log)] in ([], [image.name])


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


def _syncs(log: Path) -> list[int]:
    """Where in the log each sync has begun: all before it may be lost or not."""
    raw, at, ends = log.read_bytes(), len(MAGIC), []
    while at < len(raw):
        kind, _, _, _, length, _ = RECORD.unpack_from(raw, at)
        at += RECORD.size + (length if kind in (FILE, WRITE) else 0)
        if kind == SYNC:
            ends.append(at)
    return ends


def lost_states(log: Path, before: Path, state: Path, chance: random.Random) -> Iterator[int]:
    """Makes `state` what a power loss during each sync may leave, some of all there are; counts them."""
    for number, end in enumerate(_syncs(log) * 3):
        after_power_loss(read_log(log, end)[0], before, state, chance)
        yield number


def _moves_footer(change: Change) -> bool:
    """A sector with a footer, or with the zeros that take its place."""
    return change.kind == WRITE and change.length == SECTOR and (change.data.startswith(FOOTER_COOKIE) or not any(change.data))


def grows_ahead(file: Recorded, change: Change) -> bool:
    """Is it a VHD's growth, ahead of all its blocks, which end before a footer that is on the medium?"""
    footers = [
        each.offset for each in file.changes if _moves_footer(each) and any(each.data) and file.durable(each)
    ]
    blocks_end = max((c.offset + c.length for c in file.changes if c.kind == WRITE and not _moves_footer(c)), default=0)
    return _moves_footer(change) and blocks_end <= max(footers, default=-1) <= change.offset
