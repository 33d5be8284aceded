# SPDX-License-Identifier: LGPL-2.1-only
"""ioemu compiled with what Debian has now in place of the Xen that it is for.

Not all of it can be: what is compared is what is compiled before and after a change.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.ioemu.series import git, run

# Of these objects the series changes the sources, so that a comparison without them would be void.
NEEDED = ("i386-dm/xenstore.o", "i386-dm/vl.o", "i386-dm/xen_machine_pv.o")
CONFIGURE = ("--disable-sdl", "--disable-vnc-tls", "--disable-bluez", "--disable-brlapi", "--disable-vde")
# Old C for a compiler of today, and what libxenctrl has kept of its old self.
FLAGS = ["-fcommon", "-fgnu89-inline"]
FLAGS += [f"-DXC_WANT_COMPAT_{name}_API" for name in ("EVTCHN", "GNTTAB", "MAP_FOREIGN", "DEVICEMODEL")]
HEADERS = "xenctrl.h sys/param.h sys/user.h xen/xen.h xen/io/blkif.h xen/io/ring.h xenstore.h sys/types.h unistd.h"
# By way of it each file of the base has these, and could depend on them.
BLKTAPLIB = "".join(f"#include <{name}>\n" for name in HEADERS.split())
RULES = "cc-option = $(shell $(CC) $(1) -E -x c /dev/null > /dev/null 2>&1 && echo $(1) || echo $(2))\n"
# For a stub domain the files are compiled on mini-os, which has other headers than glibc.
HOSTED = "#include <sys/uio.h>\n#include <sys/socket.h>\n#define iovec minios_iovec\n#define XBT_NIL 0\n"
SPINLOCK = "typedef struct { int locked; } spinlock_t;\n#define SPIN_LOCK_UNLOCKED {0}\n"


@dataclass(frozen=True)
class Build:
    """What came of a tree. unresolved: what objects want and none has."""

    tried: frozenset[str]
    compiled: frozenset[str]
    warnings: Counter[tuple[str, str]]
    unresolved: frozenset[str]

    def __str__(self) -> str:
        missing = ", ".join(sorted(self.tried - self.compiled))
        return f"{len(self.compiled)} of {len(self.tried)} objects compile" + (f" (not: {missing})" if missing else "")


class Xen:
    """A directory that ioemu takes for Xen's tree."""

    def __init__(self, path: Path, blktaplib: str) -> None:
        self.path = path
        self._blktap = path / "tools" / "blktap"
        (self._blktap / "lib").mkdir(parents=True)
        (path / "minios").mkdir()
        (self._blktap / "lib" / "blktaplib.h").write_text(blktaplib, encoding="utf-8")
        (path / "tools" / "Rules.mk").write_text(RULES, encoding="ascii")
        (path / "minios" / "hosted.h").write_text(HOSTED, encoding="ascii")
        (path / "minios" / "spinlock.h").write_text(SPINLOCK, encoding="ascii")

    def without_blktap(self) -> None:
        """What Xen's tree is today."""
        (self._blktap / "lib" / "blktaplib.h").unlink()
        (self._blktap / "lib").rmdir()
        self._blktap.rmdir()

    def make(self, tree: Path, *arguments: str, stubdom: bool = False) -> str:
        """Make's output; it goes on where it can."""
        flags = [*FLAGS, *(("-DCONFIG_STUBDOM", f"-I{self.path}/minios", "-include", "hosted.h") if stubdom else ())]
        jobs = f"-j{len(os.sched_getaffinity(0))}"
        command = ["make", "-k", jobs, f"XEN_ROOT={self.path}", f"CMDLINE_CFLAGS={' '.join(flags)}", *arguments]
        return run(command, tree, check=False)


def configure(tree: Path) -> None:
    """As Xen's build does."""
    git(tree, "clean", "-q", "-xfd")
    run(["./xen-setup", *CONFIGURE], tree)


def build(tree: Path, xen: Xen) -> Build:
    """Compile what can be compiled, and the needed ones for a stub domain too. Those for ioemu are left in disks/."""
    configure(tree)
    log = xen.make(tree, "all")
    compiled = {str(path.relative_to(tree)) for path in tree.rglob("*.o")}
    tried = set(re.findall(r"^  CC +(\S+\.o)$", log, re.MULTILINE))
    warnings = Counter(
        (Path(file).name, text) for file, text in re.findall(r"^(\S+?):\d+:\d+: warning: (.*)$", log, re.MULTILINE)
    )
    unresolved = _unresolved(tree, compiled)
    (tree / "disks").mkdir()
    for path in (tree / name for name in NEEDED):
        if path.exists():
            path.rename(tree / "disks" / path.name)
    xen.make(tree, "-C", "i386-dm", *(Path(name).name for name in NEEDED), stubdom=True)
    stubdom = {name: f"stubdom/{Path(name).name}" for name in NEEDED}
    tried |= set(stubdom.values())
    compiled |= {stub for name, stub in stubdom.items() if (tree / name).exists()}
    return Build(frozenset(tried), frozenset(compiled), warnings, frozenset(unresolved))


def _unresolved(tree: Path, objects: set[str]) -> set[str]:
    if not objects:
        return set()
    symbols = run(["nm", "-P", *sorted(objects)], tree)
    pairs = [line.split()[:2] for line in symbols.splitlines() if " " in line]
    return {name for name, kind in pairs if kind == "U"} - {name for name, kind in pairs if kind not in "Uw"}


def sources(tree: Path) -> set[str]:
    """The stems of the tree's C files."""
    return {Path(name).stem for name in git(tree, "ls-files", "*.c").splitlines()}


def worse(before: Build, after: Build, still: set[str]) -> list[str]:
    """What was better before. still: the stems of the sources that there are after."""
    gone = [name for name in sorted(before.compiled - after.compiled) if Path(name).stem in still]
    found = [f"{name} is no longer compiled" for name in gone]
    gone = [name for name in sorted(before.tried - after.tried) if Path(name).stem in still]
    found += [f"{name} is no longer tried" for name in gone]
    # an object that is missing defines nothing
    if not found:
        found = [f"nothing defines {name}" for name in sorted(after.unresolved - before.unresolved)]
    return found + [f"new warning: {file}: {text}" for file, text in sorted(after.warnings - before.warnings)]
