# SPDX-License-Identifier: LGPL-2.1-only
"""The series for a Debian release's QEMU, against Debian's source.

    python3 -m tests.ioemu.qemu --release=12|13

Gets the source package that the series' base names (apt-get's own archive of that release), applies each patch as it
is, has QEMU's checkpatch.pl judge it, and builds the i386 system emulator for Xen before the series and after each
patch, in a root of the release. Then both emulators, before and after, are started on a xenstored of ours and asked
what they open (drives.py). What was built is cached by what it was built of. Needs root, mmdebstrap and dpkg-dev; boots
no guest. Status 1: something was found.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.ioemu import drives, qemuroot, qemusource
from tests.ioemu.series import PATCHES, Series, git, report, run, verdict
from tests.lib import builder, cache
from tests.lib.release import RELEASES

HERE = Path(__file__).parent
SERIES = {12: Series(PATCHES / "qemu-7.2"), 13: Series(PATCHES / "qemu-10.0")}
EMULATOR = "qemu-system-i386"
CONFIGURE = (
    "--target-list=i386-softmmu",
    "--without-default-features",
    "--enable-system",
    "--enable-xen",
    "--disable-tcg",
    "--disable-kvm",
    "--disable-werror",
    "--disable-debug-info",
    "--disable-docs",
    "--disable-tools",
    "--disable-guest-agent",
    "--disable-install-blobs",
)
# QEMU 7.2 has its vpc driver and vnc always, and would have git fetch what Debian's source has no need of. libxl has -vnc none.
OF_RELEASE = {12: ("--with-git-submodules=ignore",), 13: ("--enable-vpc", "--enable-pixman", "--enable-vnc")}
WARNING = re.compile(r"^(?:\.\./)?(\S+?):\d+:\d+: warning: (.*)$", re.MULTILINE)
JUDGED_CLEAN = re.compile(r"^total: 0 errors, 0 warnings,", re.MULTILINE)


def ninja(root: Path, tree: Path) -> Counter[tuple[str, str]]:
    """Build the emulator. Returns the compiler's warnings."""
    jobs = f"-j{len(os.sched_getaffinity(0))}"
    log = run(builder.inside(root, [tree], tree / "build", ["ninja", jobs, EMULATOR]), tree)
    return Counter(WARNING.findall(log))


def build(number: int, source: Path, directory: Path) -> None:
    """Build before the series and after each patch. Leaves both emulators, and in `found` what is wrong."""
    series, root = SERIES[number], qemuroot.root(number)
    found: dict[str, list[str]] = {}
    start = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="xenblk-qemu-", dir="/var/tmp") as work,
        cache.step(f"{EMULATOR} of {series.base()['version']}"),
    ):
        tree = Path(work) / "source"
        qemusource.repository(source, tree)
        (tree / "build").mkdir()
        configure = ["../configure", *CONFIGURE, *OF_RELEASE[number]]
        run(builder.inside(root, [tree], tree / "build", configure), tree)
        before = ninja(root, tree)
        keep(root, tree, directory / "before")
        cache.say(f"{EMULATOR} without the series: {time.monotonic() - start:.0f} s")
        for name in series.patches():
            series.apply(name, tree)
            changed = git(tree, "diff", "--name-only", "HEAD^").split()
            after = ninja(root, tree)
            found[name] = [f"{path}: {text}" for path, text in after - before if path in changed]
        keep(root, tree, directory / "after")
    result = {"seconds": round(time.monotonic() - start), "found": found}
    (directory / "result.json").write_text(json.dumps(result), encoding="ascii")


def keep(root: Path, tree: Path, where: Path) -> None:
    """Keep the emulator, and what makes it start without Xen."""
    where.mkdir()
    shutil.copy(tree / "build" / EMULATOR, where)
    shutil.copy(HERE / "fakexen.c", where)
    compiler = ["gcc", "-O2", "-shared", "-fPIC", "-o", "fakexen.so", "fakexen.c"]
    run(builder.inside(root, [where], where, compiler), where)


def built(number: int, source: Path) -> Path:
    """The directory with both emulators, from the cache."""
    series = SERIES[number]
    inputs = [series.base(), CONFIGURE, OF_RELEASE[number], qemuroot.PACKAGES]
    files = [*(series.directory / name for name in ["series", *series.patches()]), HERE / "fakexen.c"]
    return cache.product(f"qemu-{number}", cache.key(inputs, files), lambda path: build(number, source, path))


def style(series: Series, source: Path) -> list[str]:
    """What QEMU's own checkpatch.pl says against a patch."""
    found = []
    for name in series.patches():
        command = ["perl", "scripts/checkpatch.pl", "--no-tree", "--terse", str(series.directory / name)]
        judged = run(command, source, check=False)
        if not JUDGED_CLEAN.search(judged):
            found += judged.strip().splitlines()
    return found


def opening(directory: Path, root: Path) -> list[str]:
    """Which disks are not opened as expected, and which of them the base does not treat as the case says."""
    before, after = (
        drives.Program(root, directory / which / EMULATOR, directory / which / "fakexen.so")
        for which in ("before", "after")
    )
    found = [text for case in drives.CASES if (text := drives.wrong(case, after))]
    for case in drives.CASES:
        if case.new != bool(drives.wrong(case, before)):
            found.append(f"{case.name}: the base does {'the same' if case.new else 'something else'}")
    return found


def check(number: int) -> int:
    """All checks. Returns how much was found."""
    series = SERIES[number]
    source = qemusource.source(series.base(), RELEASES[number].suite)
    count = report("checkpatch.pl", style(series, source), f"nothing to say of {len(series.patches())} patches")
    directory = built(number, source)
    result = json.loads((directory / "result.json").read_text(encoding="ascii"))
    for name, found in result["found"].items():
        count += report(name, found, "applies, builds, no new warning")
    print(f"both emulators and what is between them: built in {result['seconds']} s", flush=True)
    same = sum(not case.new for case in drives.CASES)
    good = f"{len(drives.CASES)} cases as expected, {same} of them as without the series"
    return count + report("drives", opening(directory, qemuroot.root(number)), good)


def main() -> int:
    """The program. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="tests.ioemu.qemu", description=__doc__.partition("\n")[0])
    parser.add_argument("--release", type=int, choices=sorted(SERIES), required=True, help="of Debian")
    number = parser.parse_args().release
    name = f"{SERIES[number].directory.name} on {SERIES[number].base()['version']}"
    return verdict(name, lambda: check(number))


if __name__ == "__main__":
    sys.exit(main())
