# SPDX-License-Identifier: LGPL-2.1-only
"""Which writes of a log are a VHD's growth ahead of need, for which no request waits."""

from pathlib import Path

from tests.lib.recordlog import SECTOR, SYNC, WRITE, Change, Recorded
from tests.lib.vhdlog import FOOTER_COOKIE, grows_ahead

FOOTER = FOOTER_COOKIE.ljust(SECTOR, b"\1")
BLOCK = b"\2" * 4096
STEP = 1 << 20


def recorded(*steps: tuple[int, bytes] | str) -> Recorded:
    """A file to which these were written, with "sync" between them, one after the other."""
    file = Recorded(Path("a.vhd"))
    for number, step in enumerate(steps):
        begun, ended = 2 * number + 1, 2 * number + 2
        if isinstance(step, str):
            file.syncs.append(Change(SYNC, 0, 0, b"", begun, ended))
        else:
            file.changes.append(Change(WRITE, step[0], len(step[1]), step[1], begun, ended))
    return file


def test_a_footer_beyond_the_one_that_is_durable_is_growth_ahead_and_so_are_the_zeros_in_its_place() -> None:
    file = recorded((STEP, FOOTER), "sync", (4096, BLOCK), "sync", (2 * STEP, FOOTER), (STEP, bytes(SECTOR)))
    assert [grows_ahead(file, change) for change in file.changes] == [True, False, True, True]


def test_growth_that_blocks_need_is_not_ahead() -> None:
    file = recorded((STEP, FOOTER), "sync", (STEP - 512, BLOCK), (2 * STEP, FOOTER))
    assert not grows_ahead(file, file.changes[-1])


def test_a_footer_alone_is_not_ahead_of_anything_durable() -> None:
    file = recorded((4096, BLOCK), "sync", (STEP, FOOTER))
    assert not grows_ahead(file, file.changes[-1])


def test_a_sector_of_zeros_in_a_file_without_footers_is_data() -> None:
    file = recorded((0, bytes(SECTOR)), "sync", (4096, bytes(SECTOR)))
    assert not grows_ahead(file, file.changes[-1])
