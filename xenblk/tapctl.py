# SPDX-License-Identifier: LGPL-2.1-only
"""Calls of tap-ctl(8)."""

import os
from typing import TYPE_CHECKING

from xenblk import config
from xenblk.errors import UserError

if TYPE_CHECKING:
    import subprocess


def run(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """What came of it, whatever its status. Raises UserError if there is no tap-ctl."""
    import subprocess  # noqa: PLC0415 # slow to import, and most guests have no disk of ours

    program = os.environ.get("XENBLK_TAP_CTL", config.TAP_CTL)
    try:
        return subprocess.run([program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise UserError(f"{program}: {error.strerror}; install xenblk completely") from None


def complaint(done: "subprocess.CompletedProcess[bytes]") -> str:
    """What one that failed says, never empty."""
    said = os.fsdecode(done.stderr).strip().removeprefix("tap-ctl: ")
    return said or f"tap-ctl {done.args[1]} ended with status {done.returncode}"
