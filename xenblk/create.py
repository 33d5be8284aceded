# SPDX-License-Identifier: LGPL-2.1-only
"""xl create and config-update: settings may follow the configuration file, and the disks become one more of them."""

from typing import NoReturn

from xenblk import guestconfig, probe, xlcall
from xenblk.errors import UsageError


def source(call: xlcall.Call) -> guestconfig.Source | None:
    """Where xl takes the configuration from; None if it shows its help instead. Raises UsageError."""
    name = call.command.name
    skip = 1 if name == "config-update" else 0  # the domain
    config_file = None
    if call.arguments[skip:] and not call.arguments[skip].startswith("-") and "=" not in call.arguments[skip]:
        config_file = call.arguments[skip]
        skip += 1
    options, words = call.options(skip)
    if xlcall.wants_help(options):
        return None
    for option, value in options:
        if option in ("-f", "--defconfig"):
            config_file = value
    settings = []
    for word in words:
        if "=" in word:
            settings.append(word)
        elif config_file is None:
            config_file = word
        else:
            raise UsageError(f"{name}: two configuration files, {config_file} and {word}; name one")
    if config_file is None:
        raise UsageError(f"{name}: no configuration file; name one")
    return guestconfig.Source(config_file, tuple(settings))


def run(call: xlcall.Call) -> NoReturn:
    """Becomes xl. Raises UserError before anything is started."""
    words = [*call.head, *call.arguments]
    found = source(call)
    if found:
        disks = guestconfig.known_disks(found, guestconfig.read_text(found))
        if probe.prepare(disks, found.config_file, opened=call.command.name == "create"):
            words.append(guestconfig.disk_setting(disks))
    xlcall.become_xl(words)
