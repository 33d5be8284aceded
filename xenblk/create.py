# SPDX-License-Identifier: LGPL-2.1-only
"""`xenblk create`: xl create, with the disks of tapdisk in a form that libxl can carry."""

import errno
import getopt
import os
import stat
from dataclasses import dataclass
from typing import NoReturn

from xenblk import config, diskspec, libxl, probe
from xenblk.errors import UsageError, UserError

XL = "/usr/sbin/xl"
# The options of xl create (main_create in tools/xl/xl_vmcontrol.c of Xen, the same from 4.17 to 4.21)
_SHORT = "AFVcdef:inpqh"
_LONG = ["defconfig=", "dryrun", "ignore-global-affinity-masks", "quiet", "vncviewer", "vncviewer-autopass", "help"]


@dataclass(frozen=True)
class Request:
    """What the arguments of xl create say: the configuration file, if any, and settings that are added to it."""

    config_file: str | None
    settings: tuple[str, ...]
    help: bool = False


def parse_arguments(arguments: list[str]) -> Request:
    """Reads arguments exactly as xl create does. Raises UsageError for what isn't an option of xl create."""
    config_file = None
    rest = arguments
    if rest and not rest[0].startswith("-") and "=" not in rest[0]:
        config_file, rest = rest[0], rest[1:]
    try:
        options, words = getopt.gnu_getopt(rest, _SHORT, _LONG)
    except getopt.GetoptError as error:
        raise UsageError(f"create: {error}; see xl(1)") from None
    for option, value in options:
        if option in ("-f", "--defconfig"):
            config_file = value
        elif option in ("-h", "--help"):
            return Request(None, (), help=True)
    settings = []
    for word in words:
        if "=" in word:
            settings.append(word)
        elif config_file is None:
            config_file = word
        else:
            raise UsageError(f"create: two configuration files, {config_file} and {word}; name one")
    return Request(config_file, tuple(settings))


def read_config(request: Request) -> bytes:
    """The text that xl will parse: the file, then the settings, a line each. Raises UserError if it can't be read."""
    path = request.config_file
    if path is None:
        raise UsageError("create: no configuration file; name one")
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
    if request.settings:
        data += b"\n" + b"".join(os.fsencode(setting) + b"\n" for setting in request.settings) + b"\n"
    return data


def read_disks(request: Request) -> list[diskspec.Disk]:
    """The guest's disks. Raises libxl.GrammarError if libxlutil refuses the configuration or a disk, UserError."""
    data = read_config(request)
    try:
        return [diskspec.read(spec) for spec in libxl.read_disks(str(request.config_file), data)]
    except UserError as error:
        raise UserError(f"{request.config_file}: {error}") from None
    except libxl.GrammarError as error:
        # xl says it itself, in its own words, and starts nothing. But an xl newer than our libxlutil might accept it,
        # so what may hold a tap disk doesn't get that far.
        if b"tap" in data:
            raise UserError(f"{request.config_file}: not understood by libxl, nothing was started: {error}") from None
        raise


def disk_setting(disks: list[diskspec.Disk]) -> str:
    """`disk=[...]` in the syntax of xl.cfg(5). As the last setting it replaces every earlier one."""
    return "disk=[" + ",".join(quote(disk.rewritten) for disk in disks) + "]"


def quote(text: str) -> str:
    """A string of xl.cfg(5)."""
    for plain, escaped in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n")):
        text = text.replace(plain, escaped)
    return f"'{text}'"


def run(arguments: list[str]) -> NoReturn:
    """Becomes xl create. Raises UserError before anything is started."""
    request = parse_arguments(arguments)
    added: list[str] = []
    if not request.help:
        try:
            disks = read_disks(request)
        except libxl.GrammarError:
            disks = []
        if any(disk.driver for disk in disks):
            config.apply_if_changed()
            _probe(str(request.config_file), disks)
            added = [disk_setting(disks)]
    _execute(["create", *arguments, *added])


def _probe(source: str, disks: list[diskspec.Disk]) -> None:
    probe.check_xenstored()
    try:
        probe.check(disks)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _execute(arguments: list[str]) -> NoReturn:
    xl = os.environ.get("XENBLK_XL", XL)
    try:
        os.execv(xl, [xl, *arguments])
    except OSError as error:
        if error.errno == errno.E2BIG:
            raise UserError("create: the disks don't fit on xl's command line; use shorter paths") from None
        raise UserError(f"{xl}: {error.strerror}; install xen-utils-common") from None
