# SPDX-License-Identifier: LGPL-2.1-only
"""A guest's configuration (xl.cfg(5)): its text, its disks, and the setting that takes their place."""

import os
import stat
from dataclasses import dataclass

from xenblk import diskspec, libxl
from xenblk.errors import UserError


@dataclass(frozen=True)
class Source:
    """What xl takes a configuration from: a file, and settings that are added to it."""

    config_file: str
    settings: tuple[str, ...] = ()


def read_text(source: Source) -> bytes:
    """The text that xl will parse: the file, then the settings, a line each. Raises UserError if it can't be read."""
    path = source.config_file
    data = b""
    if path != "/dev/null":
        try:
            with open(path, "rb") as file:
                # xl would find a pipe empty after us
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise UserError(f"{path}: not a regular file; write the configuration to one")
                data = file.read()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; name a configuration file that can be read") from None
    if source.settings:
        data += b"\n" + b"".join(os.fsencode(setting) + b"\n" for setting in source.settings) + b"\n"
    return data


def read_disks(source: Source, data: bytes) -> list[diskspec.Disk]:
    """The guest's disks in the text. Raises libxl.GrammarError if libxlutil refuses it or a disk, UserError."""
    try:
        return [diskspec.read(spec) for spec in libxl.read_disks(source.config_file, data)]
    except UserError as error:
        raise UserError(f"{source.config_file}: {error}") from None
    except libxl.GrammarError as error:
        # xl says it itself, in its own words, and starts nothing. But an xl newer than our libxlutil might accept it,
        # so what may hold a disk of ours doesn't get that far.
        if diskspec.may_be_ours(data):
            raise UserError(f"{source.config_file}: not understood by libxl, nothing was started: {error}") from None
        raise


def known_disks(source: Source, data: bytes) -> list[diskspec.Disk]:
    """All disks in the text; none if libxlutil refuses it, which is xl's to report. Raises UserError."""
    try:
        return read_disks(source, data)
    except libxl.GrammarError:
        return []


def disk_setting(disks: list[diskspec.Disk]) -> str:
    """`disk=[...]` in the syntax of xl.cfg(5). As the last setting it replaces every earlier one."""
    return "disk=[" + ",".join(quote(disk.rewritten) for disk in disks) + "]"


def quote(text: str) -> str:
    """A string of xl.cfg(5)."""
    for plain, escaped in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n")):
        text = text.replace(plain, escaped)
    return f"'{text}'"
