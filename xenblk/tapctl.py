# SPDX-License-Identifier: LGPL-2.1-only
"""Calls of tap-ctl(8)."""

import contextlib
import os
from typing import TYPE_CHECKING

from xenblk import config
from xenblk.errors import UserError

if TYPE_CHECKING:
    import subprocess


def run(*arguments: str, seconds: float | None = None) -> "subprocess.CompletedProcess[bytes]":
    """What came of it, whatever its status. Raises UserError if there is no tap-ctl, TimeoutError if it does not end in so many
    seconds."""
    import subprocess  # noqa: PLC0415 # slow to import, and most guests have no disk of ours

    program = os.environ.get("XENBLK_TAP_CTL", config.TAP_CTL)
    try:
        process = subprocess.Popen([program, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise UserError(f"{program}: {error.strerror}; install xenblk completely") from None
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        # what hangs in the kernel ends when it no longer does, and is not waited for
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        raise TimeoutError from None
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def complaint(done: "subprocess.CompletedProcess[bytes]") -> str:
    """What one that failed says, never empty."""
    said = os.fsdecode(done.stderr).strip().removeprefix("tap-ctl: ")
    return said or f"tap-ctl {done.args[1]} ended with status {done.returncode}"
