# SPDX-License-Identifier: LGPL-2.1-only
"""A call of xl: which command it is, its options as xl itself reads them, and how xenblk becomes xl.

The commands are those that may bring a disk, with their options in Xen 4.17 to 4.21 (tools/xl of Xen).
"""

import errno
import getopt
import os
import signal
from dataclasses import dataclass
from typing import NoReturn

from xenblk.errors import UsageError, UserError

# Our front, which goes on to Xen's xl. Without it, Xen's xl
XL = "/usr/sbin/xl"
STOCK_XL = "/usr/sbin/xl"
# For the front: the process that it names has been here already
REWRITTEN = "XENBLK_REWRITTEN"
# As it was handed down to xenblk
_CHILD_SIGNAL = signal.getsignal(signal.SIGCHLD)
_GLOBAL_OPTIONS = "vftTN"


@dataclass(frozen=True)
class Command:
    """A command of xl. shortest: how many letters some xl since 4.7 takes for it; xl itself has the last word."""

    name: str
    shortest: int
    short: str
    long: tuple[str, ...] = ()


_VIEWER = ("vncviewer", "vncviewer-autopass")
COMMANDS = (
    Command(
        "create", 2, "hAFVcdef:inpq", ("defconfig=", "dryrun", "ignore-global-affinity-masks", "quiet", *_VIEWER)
    ),
    Command("config-update", 4, "hdqf:", ("defconfig=",)),
    Command("block-attach", 7, "h"),
    Command("restore", 3, "hFcpdeVA", _VIEWER),
    Command("save", 2, "hcpD"),
    Command("migrate", 7, "hFC:s:eTpD", ("debug", "live")),
)


@dataclass(frozen=True)
class Call:
    """head: the global options and the command's word, as given; arguments: what follows."""

    head: tuple[str, ...]
    command: Command
    arguments: tuple[str, ...]

    def options(self, skip: int = 0) -> tuple[list[tuple[str, str]], list[str]]:
        """The options and the other words, as xl's getopt finds them, without the first `skip` arguments.

        Raises UsageError for an option that isn't known: it may mean another configuration file to a newer xl.
        """
        try:
            return getopt.gnu_getopt(list(self.arguments[skip:]), self.command.short, [*self.command.long, "help"])
        except getopt.GetoptError as error:
            raise UsageError(f"{self.command.name}: {error}; see xl(1)") from None


def wants_help(options: list[tuple[str, str]]) -> bool:
    """Does xl show its help and do nothing?"""
    return any(option in ("-h", "--help") for option, _ in options)


def read(words: list[str]) -> Call | None:
    """The call that a command line of xl is, None if no disk can be in it."""
    try:
        _, rest = getopt.getopt(words, _GLOBAL_OPTIONS)
    except getopt.GetoptError as error:
        raise UsageError(f"xl: {error}; see xl(1)") from None
    if not rest:
        return None
    at = len(words) - len(rest)
    for command in COMMANDS:
        if len(rest[0]) >= command.shortest and command.name.startswith(rest[0]):
            return Call(tuple(words[: at + 1]), command, tuple(rest[1:]))
    return None


def read_own(words: list[str]) -> list[str] | None:
    """The command line of xl in a command line of xenblk: after `xl`, or a whole command of COMMANDS."""
    if words[:1] == ["xl"]:
        return words[1:]
    try:
        _, rest = getopt.getopt(words, _GLOBAL_OPTIONS)
    except getopt.GetoptError:
        return None
    return words if rest and rest[0] in {command.name for command in COMMANDS} else None


def become_xl(words: list[str]) -> NoReturn:
    """Becomes xl with this command line, and with what was handed down. Raises UserError if it can't."""
    signal.signal(signal.SIGCHLD, _CHILD_SIGNAL)
    xl = os.environ.get("XENBLK_XL") or (XL if os.access(XL, os.X_OK) else STOCK_XL)
    environment = _environment()
    environment[REWRITTEN.encode()] = str(os.getpid()).encode()
    try:
        os.execve(xl, [xl, *words], environment)
    except OSError as error:
        if error.errno == errno.E2BIG:
            raise UserError("xl: the disks don't fit on its command line; use shorter paths") from None
        raise UserError(f"{xl}: {error.strerror}; install xen-utils-common") from None


def _environment() -> dict[bytes, bytes]:
    """The environment that xenblk was given: in the C locale Python adds to it."""
    environment = dict(os.environb)
    with open("/proc/self/environ", "rb") as file:
        if not any(entry.startswith(b"LC_CTYPE=") for entry in file.read().split(b"\0")):
            environment.pop(b"LC_CTYPE", None)
    return environment
