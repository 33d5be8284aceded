# SPDX-License-Identifier: LGPL-2.1-only
"""libxlutil of any Debian release, on this machine: `parse_disk` of a program that is linked with it.

Its libraries are unpacked, not installed, and run by the C library that came with them.
"""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.lib import apt, cache
from tests.lib.release import RELEASES
from xenblk import libxl

SOURCE = Path(__file__).with_suffix(".c")
PACKAGES = (
    "libc6",
    "liblzma5",
    "libuuid1",
    "libxen-dev",
    "libxencall1",
    "libxendevicemodel1",
    "libxenevtchn1",
    "libxenforeignmemory1",
    "libxengnttab1",
    "libxenhypfs1",
    "libxenstore4",
    "libxentoolcore1",
    "libxentoollog1",
    "libyajl2",
    "libzstd1",
    "zlib1g",
)


def _libraries(number: int) -> Path:
    """A directory with what the program is linked with and what runs it."""
    release = RELEASES[number]
    packages = (*PACKAGES, f"libxenmisc{release.xen}")

    def make(directory: Path) -> None:
        with cache.step(f"libxlutil of Xen {release.xen}"):
            archive = apt.Archive(directory / "apt", release.suite)
            archive.update()
            # as in a merged /usr, since packages of both kinds come
            (directory / "root/usr/lib64").mkdir(parents=True)
            for name in ("lib", "lib64"):
                (directory / "root" / name).symlink_to(f"usr/{name}")
            for package in packages:
                archive.unpack(package, directory / "root")
            shutil.rmtree(directory / "apt")
            shutil.rmtree(directory / "root/usr/share")

    key = cache.key([release.suite, packages], [Path(__file__), Path(__file__).parent / "apt.py"])
    return cache.product(f"libxlutil-{number}", key, make) / "root"


def _program(number: int) -> list[str]:
    """The command that answers."""
    root = _libraries(number)
    directory = root / "usr/lib/x86_64-linux-gnu"

    def make(product: Path) -> None:
        # The libraries may want a newer C library than this machine's: they find theirs when they run.
        command = ["cc", "-O1", f"-I{root}/usr/include", "-o", str(product / "oracle"), str(SOURCE)]
        command += [f"-L{directory}", "-lxlutil", "-lxenlight", "-Wl,--unresolved-symbols=ignore-in-shared-libs"]
        command += [f"-Wl,-rpath-link,{directory}"]
        subprocess.run(command, check=True, timeout=120)

    built = cache.product(f"diskoracle-{number}", cache.key([str(root)], [SOURCE, Path(__file__)]), make)
    loader = root / "lib64/ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", str(directory), str(built / "oracle")]


class Oracle:
    """The program. A spec that ends it, as "flex scanner jammed" does, is refused, and it is started again."""

    def __init__(self, number: int) -> None:
        self._command = _program(number)
        self._process: "subprocess.Popen[bytes] | None" = None

    def _ask(self, question: bytes) -> tuple[int, bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(question)
        self._process.stdin.flush()
        head = self._process.stdout.readline().split()
        if not head:
            status = self.close()
            raise libxl.GrammarError(f"libxlutil ended with {status}")
        return int(head[0]), self._process.stdout.read(int(head[1]))

    def parse_disk(self, *parts: str) -> dict[str, Any]:
        """What `xenblk.libxl.parse_disk` is for this machine's release."""
        texts = [os.fsencode(part) for part in parts]
        question = b"%d\n" % len(texts) + b"".join(b"%d\n%s" % (len(text), text) for text in texts)
        status, answer = self._ask(question)
        if status:
            raise libxl.GrammarError(os.fsdecode(answer).strip() or os.strerror(status))
        fields: dict[str, Any] = json.loads(os.fsdecode(answer))
        return fields

    def close(self) -> int:
        """Ends the program and returns its status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdin and process.stdout
        process.stdin.close()
        process.stdout.close()
        return process.wait(10)


@functools.cache
def oracle(number: int) -> Oracle:
    """The one of a Debian release; it lives as long as this process."""
    return Oracle(number)
