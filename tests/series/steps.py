# SPDX-License-Identifier: LGPL-2.1-only
"""The checks of one series. Each returns what it found: a text for each thing that is wrong."""

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from patchseries import SeriesError, mail
from patchseries.base import ADDITIONS, added_text
from patchseries.make import added_files
from patchseries.resolve import DRIVER

from tests.lib import builder, cache
from tests.series.dkms import dkms
from tests.series.source import BASE, Source

# What checkpatch may say, and why it is not heeded
EXCEPTIONS = {
    "FILE_PATH_CHANGES": "each new file lies where the entry in MAINTAINERS, which is in the first patch, says; "
    "`maintainers` asks the kernel's get_maintainer.pl whether it does",
}

# Beside allnoconfig: what the driver needs, and what lets as much of it as can be be built
CONFIG = """
64BIT SMP PREEMPT MODULES MODULE_UNLOAD PRINTK BUG SYSFS PROC_FS MULTIUSER EPOLL FILE_LOCKING IA32_EMULATION
BLOCK BLK_DEV
""".split()


def wrong(output: str) -> list[str]:
    """The lines of a quiet build: all are findings, but for what kbuild says of itself."""
    harmless = re.compile(r"^(make(\[\d+\])?: (Entering|Leaving) directory .*|  [A-Z]+ .*|\s*)")
    return [line for line in output.splitlines() if not harmless.fullmatch(line)]


def _tree_files(directory: Path, source: Source) -> dict[str, str]:
    paths = sorted(added_files(source.kernel)) + [addition.path for addition in ADDITIONS]
    return {path: (directory / path).read_text(encoding="utf-8") for path in paths if (directory / path).exists()}


def _expected(source: Source, before: dict[str, str]) -> dict[str, str]:
    """The files of Debian's kernel with ours: not made from the patches."""
    result = dict(added_files(source.kernel))
    for addition in ADDITIONS:
        text = added_text(addition, source.series.parent / "src")
        line = re.compile(f"^{re.escape(addition.anchor)}[ \t]*\n", re.M)
        first = line.search(before[addition.path])
        if not first:
            raise SeriesError(f"{addition.path}: no line {addition.anchor!r}")
        place = first.end() if addition.behind else first.start()
        result[addition.path] = before[addition.path][:place] + text + before[addition.path][place:]
    return result


def apply(source: Source) -> list[str]:
    """`git am` and quilt take the patches at once, each at its place, and what comes out is the source."""
    source.restore()
    before = _tree_files(source.tree, source)
    expected = _expected(source, before)
    result = source.git("am", "-q", "--whitespace=error-all", *(str(path) for path in source.patches))
    if result.returncode:
        return [f"git am: {result.stdout}"]
    if _tree_files(source.tree, source) != expected:
        return ["git am: the result is not what the sources give"]
    changed = set(source.git("diff", "--name-only", BASE, "HEAD").stdout.split())
    found = [f"{path}: changed, and is in no source" for path in sorted(changed - set(expected))]
    with tempfile.TemporaryDirectory(prefix="xenblk-quilt-") as name:
        directory = Path(name)
        for path, text in before.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_text(text, encoding="utf-8")
        command = ["env", f"QUILT_PATCHES={source.series}", "QUILT_PC=.pc", "quilt", "--quiltrc=-", "push", "-a", "--fuzz=0"]
        result = builder.run(command, directory)
        if result.returncode or re.search(r"offset|fuzz|garbage", result.stdout.replace("--fuzz", "")):
            return [*found, f"quilt: {result.stdout}"]
        if _tree_files(directory, source) != expected:
            found.append("quilt: the result is not what the sources give")
    return found


def checkpatch(source: Source) -> list[str]:
    """The kernel's own checkpatch.pl has nothing to say of any patch but the exceptions."""
    found = []
    for path in [source.series / "0000-cover-letter.patch", *source.patches]:
        command = ["perl", "scripts/checkpatch.pl", "--strict", "--show-types", "--terse", "--no-summary", str(path)]
        for line in source.run(*command).stdout.splitlines():
            kind = re.search(r"(ERROR|WARNING|CHECK):(\w+):", line)
            if not kind or kind[2] not in EXCEPTIONS:
                found.append(f"checkpatch: {line}")
    return found


def maintainers(source: Source) -> list[str]:
    """get_maintainer.pl finds the driver's maintainer for each file."""
    found = []
    for path in sorted(added_files(source.kernel)):
        command = ["perl", "scripts/get_maintainer.pl", "--no-git", "--no-git-fallback", "-f", path]
        if f"{mail.AUTHOR} (maintainer:BLKTAP" not in source.run(*command).stdout:
            found.append(f"{path}: MAINTAINERS names nobody for it")
    return found


def documents(source: Source) -> list[str]:
    """The guide is valid, and the kernel's own tool reads the description of sysfs."""
    found = []
    guide = source.tree / "Documentation/admin-guide/blockdev/blktap.rst"
    result = source.run("rst2html", "--strict", str(guide), "/dev/null")
    if result.returncode or result.stdout:
        found.append(f"rst2html: {result.stdout}")
    with tempfile.TemporaryDirectory(prefix="xenblk-abi-") as name:
        shutil.copy(source.tree / "Documentation/ABI/testing/sysfs-class-blktap2", name)
        result = source.run("perl", "scripts/get_abi.pl", "--dir", name, "validate")
    if result.returncode or result.stdout:
        found.append(f"get_abi.pl: {result.stdout}")
    return found


def _make(source: Source, *arguments: str) -> str:
    result = source.run("make", "-s", "-j2", *arguments)
    if result.returncode:
        raise SeriesError(f"make {' '.join(arguments)}: {result.stdout[-6000:]}")
    return result.stdout


def _configure(source: Source, **options: str) -> None:
    lines = [f"CONFIG_{name}=y\n" for name in CONFIG] + [f"CONFIG_{name}={value}\n" for name, value in options.items()]
    fragment = source.tree / ".config-series"
    fragment.write_text("".join(lines), encoding="ascii")
    _make(source, f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig")
    config = (source.tree / ".config").read_text(encoding="ascii")
    missing = [line for line in lines if line not in config]
    if missing:
        raise SeriesError(f"{source.tree}/.config: Kconfig did not take {missing[0].strip()}")


def each_patch(source: Source) -> list[str]:
    """The tree of each patch builds the objects that the patch adds, with W=1 and sparse and without a word."""
    found = []
    tip = source.git("rev-parse", "HEAD").stdout.strip()
    _configure(source, BLKTAP="m")
    with cache.step(f"Linux {source.kernel}: prepare"):
        _make(source, "modules_prepare")
    done: set[str] = set()
    for commit in source.git("rev-list", "--reverse", f"{BASE}..{tip}").stdout.split():
        source.git("checkout", "-q", "-f", "--detach", commit)
        if not (source.tree / DRIVER / "Makefile").exists():
            continue
        names = set(re.findall(r"^blktap-y \+= (\S+)", (source.tree / DRIVER / "Makefile").read_text(), re.M))
        targets = sorted(names - done)
        done = names
        if targets:
            output = _make(source, f"M={DRIVER}", "CONFIG_BLKTAP=m", "W=1", "C=2", *targets)
            subject = source.git("log", "-1", "--format=%s", commit).stdout.strip()
            found += [f"{subject}: {line}" for line in wrong(output)]
    source.git("checkout", "-q", "-f", "--detach", tip)
    if len(done) != sum(1 for path in added_files(source.kernel) if path.endswith(".c")):
        found.append(f"only {' '.join(sorted(done))} were built")
    return found


def _of_ours(output: str) -> list[str]:
    """What a build of the whole kernel says of us: the rest says what it says."""
    return [line for line in wrong(output) if "blktap" in line]


def module(source: Source) -> list[str]:
    """It links as a module: all it uses is exported."""
    _configure(source, BLKTAP="m")
    with cache.step(f"Linux {source.kernel}: build with CONFIG_BLKTAP=m"):
        found = _of_ours(_make(source, "vmlinux", "modules"))
    if not (source.tree / DRIVER / "blktap.ko").exists():
        found.append("CONFIG_BLKTAP=m made no blktap.ko")
    return found


def built_in(source: Source) -> list[str]:
    """It links into the kernel."""
    _configure(source, BLKTAP="y")
    with cache.step(f"Linux {source.kernel}: build with CONFIG_BLKTAP=y"):
        found = _of_ours(_make(source, "vmlinux"))
    if "blktap_init" not in (source.tree / "System.map").read_text(encoding="ascii"):
        found.append("CONFIG_BLKTAP=y: vmlinux has no blktap_init")
    return found


def headers(source: Source) -> list[str]:
    """The kernel's headers for user space, as it installs them, have ours, and it stands alone."""
    with tempfile.TemporaryDirectory(prefix="xenblk-headers-") as name:
        found = _of_ours(_make(source, "headers_install", f"INSTALL_HDR_PATH={name}"))
        header = Path(name) / "include/linux/blktap.h"
        if not header.exists():
            return [*found, "headers_install: no linux/blktap.h"]
        command = ["gcc", "-std=gnu90", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
        result = source.run(*command, "-I", f"{name}/include", "-x", "c", str(header))
        return found + ([f"linux/blktap.h: {result.stdout}"] if result.returncode or result.stdout else [])


STEPS: dict[str, Callable[[Source], list[str]]] = {
    "apply": apply,
    "checkpatch": checkpatch,
    "maintainers": maintainers,
    "documents": documents,
    "headers": headers,
    "each-patch": each_patch,
    "module": module,
    "built-in": built_in,
    "dkms": dkms,
}
