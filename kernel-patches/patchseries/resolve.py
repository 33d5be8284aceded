# SPDX-License-Identifier: GPL-2.0-only
"""The driver's sources as one kernel has them: unifdef decides what they ask of the kernel's version."""

import re
import subprocess
from pathlib import Path

from patchseries import SeriesError
from patchseries.base import version_code

UAPI = "include/uapi/linux/blktap.h"
DRIVER = "drivers/block/blktap"

# Where a file of src/ goes if not to the driver's directory
ELSEWHERE = {
    "blktap.h": UAPI,
    "blktap.rst": "Documentation/admin-guide/blockdev/blktap.rst",
    "sysfs-class-blktap2": "Documentation/ABI/testing/sysfs-class-blktap2",
    "Kbuild": f"{DRIVER}/Makefile",
}

_VERSION = re.compile(r"KERNEL_VERSION\((\d+), *(\d+), *(\d+)\)")


def resolve(name: str, text: str, code: int) -> str:
    """A source without a question about the kernel's version or about user space."""
    text = "".join(
        _VERSION.sub(lambda found: str(version_code(*(int(part) for part in found.groups()))), line)
        if line.startswith("#")
        else line
        for line in text.splitlines(keepends=True)
    )
    command = ["unifdef", "-B", f"-DLINUX_VERSION_CODE={code}", "-D__KERNEL__"]
    try:
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise SeriesError("unifdef: not there; install Debian's package unifdef") from error
    if result.returncode not in (0, 1):  # 1: something was left out
        raise SeriesError(f"src/{name}: unifdef: {result.stderr.strip()}")
    text = result.stdout.replace("#include <linux/version.h>\n", "")
    for left in ("LINUX_VERSION_CODE", "KERNEL_VERSION", "__KERNEL__"):
        if left in text:
            raise SeriesError(
                f"src/{name}: {left} is used where unifdef can't decide it: ask in an #if that has nothing else in it"
            )
    return text


def _header_in_place(text: str) -> str:
    return re.sub(r'\n+#include "blktap\.h"\n', "\n#include <linux/blktap.h>\n", text)


def objects(src: Path) -> list[str]:
    """The objects that src/Kbuild makes the module of."""
    text = (src / "Kbuild").read_text(encoding="utf-8")
    found = re.findall(r"^blktap-y [:+]= (.*)$", text, re.M)
    if not found or re.sub(r"^(#.*|obj-m := blktap\.o|blktap-y [:+]= .*)\n", "", text, flags=re.M):
        raise SeriesError("src/Kbuild: has more than `obj-m := blktap.o` and `blktap-y := ...`: teach resolve.py that")
    names = " ".join(found).split()
    sources = {path.name.removesuffix(".c") + ".o" for path in src.glob("*.c")}
    if set(names) != sources:
        raise SeriesError(f"src/Kbuild: {' '.join(sorted(set(names) ^ sources))}: an object without a source, or the reverse")
    return names


def makefile(names: list[str]) -> str:
    """The driver's Makefile with those objects."""
    lines = ["# SPDX-License-Identifier: GPL-2.0-only", "obj-$(CONFIG_BLKTAP) += blktap.o"]
    return "".join(f"{line}\n" for line in [*lines, *(f"blktap-y += {name}" for name in names)])


def tree_path(name: str) -> str:
    """Where a kernel has a file of src/."""
    return ELSEWHERE.get(name, f"{DRIVER}/{name}")


def new_files(src: Path, code: int, additions: set[str]) -> dict[str, str]:
    """All files of src/ but those that are additions, by their path in the kernel."""
    result = {}
    for path in sorted(src.iterdir()):
        text = path.read_text(encoding="utf-8")
        if path.name in additions:
            continue
        if not text.endswith("\n"):
            raise SeriesError(f"src/{path.name}: does not end with the end of a line: add one")
        if path.name == "Kbuild":
            text = makefile(objects(src))
        elif (path.suffix in (".c", ".h") and path.name != "blktap.h") or path.name == "Kconfig":
            text = _header_in_place(resolve(path.name, text, code))
        result[tree_path(path.name)] = text
    return result
