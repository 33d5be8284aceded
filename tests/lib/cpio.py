# SPDX-License-Identifier: LGPL-2.1-only
"""Writes initrds: "newc" cpio archives, as the Linux kernel unpacks them.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of Linux. Every entry is owned by root.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO


class Cpio:
    """An archive that is being written to `file`. Parents of an entry are made as needed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._seen: set[str] = set()
        self._inode = 0

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        head = b"070701" + b"".join(b"%08x" % value for value in fields) + encoded
        self._file.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory and those above it."""
        name = name.strip("/")
        if not name or name in self._seen:
            return
        if "/" in name:
            self.directory(name.rpartition("/")[0])
        self._seen.add(name)
        self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        name = name.strip("/")
        self.directory(name.rpartition("/")[0])
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        name = name.strip("/")
        self.directory(name.rpartition("/")[0])
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def tree(self, source: Path, under: str) -> None:
        """Add what is in the directory `source`, below `under`, for a root with a merged /usr."""
        for folder, names, files in os.walk(source):
            names.sort()
            inside = os.path.relpath(folder, source)
            for name in sorted([*files, *(n for n in names if os.path.islink(os.path.join(folder, n)))]):
                path = Path(folder, name)
                target = f"{under}/{merged_usr(os.path.normpath(os.path.join(inside, name)))}"
                if path.is_symlink():
                    self.link(target, os.readlink(path))
                else:
                    self.file(target, path.read_bytes(), path.stat().st_mode & 0o7777)
            if inside != "." and inside not in TOP_LINKS:
                self.directory(f"{under}/{merged_usr(inside)}", Path(folder).stat().st_mode & 0o7777)

    def close(self) -> None:
        """Write the trailer. The file stays open."""
        self._entry("TRAILER!!!", 0, b"")


TOP_LINKS = ("bin", "sbin", "lib", "lib64")


def merged_usr(path: str) -> str:
    """The place of `path` where /bin, /sbin and /lib are links into /usr."""
    return f"usr/{path}" if path.split("/", 1)[0] in TOP_LINKS else path
