# SPDX-License-Identifier: GPL-2.0-only
"""Files that the kernel has already, and the lines that a series adds to them.

So that a series can be made without the kernel's source, `base/linux-6.1.json` and so on hold what a patch shows of these
files: where the lines go, and the three lines before and behind. `read_base` reads that, `write_base` makes it from a
kernel's source.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from patchseries import HERE, SeriesError

CONTEXT = 3


@dataclass(frozen=True)
class Addition:
    """Lines for a file of the kernel, before or behind the one line of it that is `anchor`."""

    path: str
    anchor: str
    behind: bool
    text: str | None  # None: src/ has a file of that name


ADDITIONS = (
    Addition("MAINTAINERS", "BLOCK LAYER", False, None),
    Addition(
        "Documentation/userspace-api/ioctl/ioctl-number.rst",
        "'t'   00-7F  linux/ppp-ioctl.h",
        True,
        "'t'   40-6F  linux/blktap.h" + 46 * " " + "conflict!\n",
    ),
    Addition("Documentation/admin-guide/blockdev/index.rst", "   floppy", False, "   blktap\n"),
    Addition(
        "drivers/block/Kconfig",
        'source "drivers/block/rnbd/Kconfig"',
        True,
        '\nsource "drivers/block/blktap/Kconfig"\n',
    ),
    Addition(
        "drivers/block/Makefile",
        "obj-$(CONFIG_BLK_DEV_RNBD)\t+= rnbd/",
        True,
        "obj-$(CONFIG_BLKTAP)\t\t+= blktap/\n",
    ),
)


@dataclass(frozen=True)
class Place:
    """Where lines go: behind the line of that number, whose last three are `before`."""

    line: int
    before: tuple[str, ...]
    behind: tuple[str, ...]


@dataclass(frozen=True)
class Base:
    """What a series is made against."""

    linux: str
    debian: str
    places: dict[str, Place]

    @property
    def version_code(self) -> int:
        """LINUX_VERSION_CODE of this kernel."""
        return version_code(*(int(part) for part in self.linux.split(".")))


def version_code(version: int, patchlevel: int, sublevel: int) -> int:
    """What KERNEL_VERSION() makes of the three numbers."""
    return version << 16 | patchlevel << 8 | min(sublevel, 255)


def base_file(kernel: str, here: Path = HERE) -> Path:
    """What holds a kernel's base."""
    return here / "base" / f"linux-{kernel}.json"


def added_text(addition: Addition, src: Path) -> str:
    """The lines of an addition."""
    return addition.text if addition.text is not None else (src / addition.path).read_text(encoding="utf-8")


def read_base(kernel: str, here: Path = HERE) -> Base:
    """The base of the series for that kernel."""
    path = base_file(kernel, here)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        places = {
            name: Place(int(place["line"]), tuple(place["before"]), tuple(place["behind"]))
            for name, place in data["places"].items()
        }
        result = Base(str(data["linux"]), str(data["debian"]), places)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SeriesError(f"{path}: {error!r}; make it again with `check-series UPDATE=1`") from error
    if not re.fullmatch(re.escape(kernel) + r"\.\d+", result.linux):
        raise SeriesError(f"{path}: linux is {result.linux}, which is no {kernel}")
    missing = [addition.path for addition in ADDITIONS if addition.path not in places]
    if missing:
        raise SeriesError(f"{path}: has no place in {missing[0]}; make it again with `check-series UPDATE=1`")
    return result


def _place(path: Path, addition: Addition) -> Place:
    lines = path.read_text(encoding="utf-8").splitlines()
    # what an entry of a table says behind its name differs between kernels, and may be nothing
    found = [number for number, line in enumerate(lines) if line.rstrip() == addition.anchor]
    if len(found) != 1:
        raise SeriesError(f"{path}: {len(found)} lines are {addition.anchor!r}: give base.py another anchor")
    line = found[0] + addition.behind
    return Place(line, tuple(lines[max(line - CONTEXT, 0) : line]), tuple(lines[line : line + CONTEXT]))


def linux_version(tree: Path) -> str:
    """The version of a kernel's source, like 6.1.192."""
    text = (tree / "Makefile").read_text(encoding="utf-8")
    found = re.match(r"(?:#.*\n)*VERSION = (\d+)\nPATCHLEVEL = (\d+)\nSUBLEVEL = (\d+)\n", text)
    if not found:
        raise SeriesError(f"{tree}/Makefile: no version at its start: is this a kernel's source?")
    return ".".join(found.groups())


def write_base(kernel: str, tree: Path, debian: str, here: Path = HERE) -> None:
    """Note where additions go in the kernel's source in `tree`, of Debian's version `debian`."""
    data = {
        "linux": linux_version(tree),
        "debian": debian,
        "places": {
            addition.path: {"line": place.line, "before": place.before, "behind": place.behind}
            for addition in ADDITIONS
            for place in [_place(tree / addition.path, addition)]
        },
    }
    base_file(kernel, here).write_text(json.dumps(data, indent="\t") + "\n", encoding="utf-8")
