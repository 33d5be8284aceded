# SPDX-License-Identifier: LGPL-2.1-only
"""xl restore, save and migrate with a configuration file: xl reads a copy of it, which has the disks' new form."""

import os
from dataclasses import dataclass
from typing import NoReturn

from xenblk import guestconfig, probe, xlcall

# How many words there are with a configuration file, and which of them it is
_PLACES = {"restore": (2, 0), "save": (3, 2)}


@dataclass(frozen=True)
class Override:
    """A configuration file in a call, and the call's parts around it."""

    path: str
    options: tuple[tuple[str, str], ...]
    words: tuple[str, ...]


def find(call: xlcall.Call) -> Override | None:
    """The configuration file that xl will read; None if there is none. Raises UsageError."""
    options, words = call.options()
    if xlcall.wants_help(options):
        return None
    if call.command.name == "migrate":
        paths = [value for option, value in options if option == "-C"]
        return Override(paths[-1], tuple(options), tuple(words)) if paths else None
    count, place = _PLACES[call.command.name]
    return Override(words[place], tuple(options), tuple(words)) if len(words) == count else None


def replace(call: xlcall.Call, override: Override, path: str) -> list[str]:
    """xl's command line with another configuration file."""
    options = [pair for pair in override.options if pair[0] != "-C"]
    words = list(override.words)
    if call.command.name == "migrate":
        options.append(("-C", path))
    else:
        words[_PLACES[call.command.name][1]] = path
    given = [part for option, value in options for part in ((option, value) if option in ("-C", "-s") else (option,))]
    return [*call.head, *given, "--", *words]


def run(call: xlcall.Call) -> NoReturn:
    """Becomes xl. Raises UserError before anything is done."""
    words = [*call.head, *call.arguments]
    override = find(call)
    if override:
        source = guestconfig.Source(override.path)
        data = guestconfig.read_text(source)
        disks = guestconfig.known_disks(source, data)
        if probe.prepare(disks, source.config_file, opened=call.command.name == "restore"):
            # xl takes none but a regular file, which a memfd is; it goes when xl does
            copy = os.memfd_create("xenblk-config", 0)
            with open(copy, "wb", closefd=False) as file:
                file.write(data + b"\n" + os.fsencode(guestconfig.disk_setting(disks)) + b"\n")
            words = replace(call, override, f"/proc/self/fd/{copy}")
    xlcall.become_xl(words)
