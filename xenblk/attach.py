# SPDX-License-Identifier: LGPL-2.1-only
"""xl block-attach: the disk may be spread over several arguments, which xl reads one after the other."""

import os
from typing import NoReturn

from xenblk import diskspec, libxl, probe, xlcall
from xenblk.errors import UserError


def read(specs: list[str]) -> diskspec.Disk | None:
    """The disk of these words; None if xl will refuse it. Raises UserError."""
    try:
        return diskspec.read(*specs)
    except libxl.GrammarError as error:
        # as with a configuration: a newer xl might accept it
        if diskspec.may_be_ours(os.fsencode(" ".join(specs))):
            raise UserError(f"disk '{' '.join(specs)}': not understood by libxl, not attached: {error}") from None
        return None


def run(call: xlcall.Call) -> NoReturn:
    """Becomes xl. Raises UserError before anything is attached."""
    words = [*call.head, *call.arguments]
    options, rest = call.options()
    if len(rest) > 1 and not xlcall.wants_help(options):
        disk = read(rest[1:])
        if disk and probe.prepare([disk], runs=True):
            words = [*call.head, "--", rest[0], disk.rewritten]
    xlcall.become_xl(words)
